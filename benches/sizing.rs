//! What do agent and module need for so many services?
//!
//! For 10, 200 and 1,000 services of ten endpoints each: an agent of its own, an Envoy of two
//! workers as shipped and one without the module, both with these services' clusters and EDS of
//! that agent. Every service is asked until both workers know it; then nothing is asked for ten
//! seconds, then 300 requests/s go to all of them in turn for ten seconds while ten weights a
//! second change.
//!
//! ```text
//! cargo xtask bench sizing             # ~2 minutes
//! cargo xtask bench sizing --check     # exits 1 beyond 128 MiB for the agent, 64 MiB for a VM
//! ```
//!
//! The last line is JSON.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use etcd_client::{Client, TxnOp};
use pintle_benches::Run;
use pintle_benches::transaction::{commit, failed};
use pintle_tests::{Agent, Envoy, EnvoyConfig, Etcd, Instance, Result, Upstream, http, tools};
use serde_json::{Value, json};

const SERVICES: [usize; 3] = [10, 200, 1_000];
const ENDPOINTS: usize = 10;
const WORKERS: u32 = 2;
/// So often each service is asked before anything is measured, by connections of their own, which
/// Envoy spreads over its workers. Each leaves a connection to an upstream behind, and 20,000 files
/// are what a process may have here.
const ASKED: usize = 4;
const TIME: Duration = Duration::from_secs(10);
const RATE: f64 = 300.0;
const MIB: f64 = 1_048_576.0;
/// Bytes of a page of Wasm's, in MiB.
const PAGE: f64 = 1.0 / 16.0;
/// Envoy's main thread has a VM, and so has the one that tries a configuration.
const VMS: f64 = WORKERS as f64 + 2.0;
/// What an agent and a VM may hold, MiB.
const AGENT: f64 = 128.0;
const VM: f64 = 64.0;

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
}

fn name(number: usize) -> String {
    format!("service-{number:04}")
}

struct World {
    client: Client,
    agent: Agent,
    ours: Envoy,
    native: Envoy,
    upstreams: Vec<Upstream>,
    _etcd: Etcd,
}

impl World {
    async fn start(services: usize, upstreams: Vec<Upstream>) -> Result<Self> {
        let etcd = Etcd::start().await?;
        let client = Client::connect([etcd.url()], None).await.map_err(failed)?;
        let agent = Agent::builder().etcd(etcd.url()).start().await?;
        let config = || -> Result<EnvoyConfig> {
            let shipped = EnvoyConfig::shipped()?.agent_socket(agent.socket());
            Ok((0..services).fold(shipped, |config, number| config.service(&name(number))))
        };
        let ours = config()?.wasm(tools::module()?);
        let native = config()?.without_filter().node("native");
        let mut ours = Envoy::launch(ours, WORKERS, &[])?;
        let mut native = Envoy::launch(native, WORKERS, &[])?;
        let mut world_client = client.clone();
        for number in 0..services {
            let all = upstreams.iter().map(|upstream| registration(number, upstream, 1));
            commit(&mut world_client, &all.collect::<Vec<_>>()).await?;
        }
        ours.wait_ready().await?;
        native.wait_ready().await?;
        Ok(Self { client, agent, ours, native, upstreams, _etcd: etcd })
    }

    /// The number of requests that were not answered well.
    async fn ask(&self, envoy: &Envoy, services: usize) -> Result<usize> {
        let mut bad = 0;
        for number in 0..services * ASKED {
            bad += usize::from(!asked(envoy.addr(), number % services).await?);
        }
        Ok(bad)
    }

    /// The share of a core that the agent takes, and that Envoy takes beyond one without the
    /// module.
    async fn shares(&self, during: impl Future<Output = Result<()>>) -> Result<(f64, f64)> {
        let used = || {
            let [ours, native] = [&self.ours, &self.native].map(|envoy| envoy.usage().0);
            (self.agent.cpu_time().as_secs_f64(), ours.as_secs_f64() - native.as_secs_f64())
        };
        let (began, before) = (Instant::now(), used());
        during.await?;
        let (after, time) = (used(), began.elapsed().as_secs_f64());
        Ok(((after.0 - before.0) / time, (after.1 - before.1) / time))
    }

    /// Requests to all services in turn, and weights that change.
    async fn load(&self, services: usize) -> Result<()> {
        let (began, mut client) = (Instant::now(), self.client.clone());
        let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
        let addresses = [self.ours.addr(), self.native.addr()];
        for number in 0_usize.. {
            pace.tick().await;
            if began.elapsed() > TIME {
                break;
            }
            for address in addresses {
                tokio::spawn(asked(address, number % services));
            }
            if number % 30 == 0 {
                let upstream = &self.upstreams[number / 30 % ENDPOINTS];
                let changed = registration(number % services, upstream, 2 + number / 30 % 50);
                commit(&mut client, &[changed]).await?;
            }
        }
        Ok(())
    }
}

fn registration(number: usize, upstream: &Upstream, weight: usize) -> TxnOp {
    let instance = Instance::of(&name(number), upstream).metadata("weight", &weight.to_string());
    TxnOp::put(instance.key(), instance.value().to_string(), None)
}

async fn asked(envoy: SocketAddr, number: usize) -> Result<bool> {
    let request = http::request(&name(number), "GET", "/", "")?;
    Ok(http::send(envoy, request).await?.status == 200)
}

async fn measure(services: usize, upstreams: Vec<Upstream>) -> Result<(Value, Vec<Upstream>)> {
    let world = World::start(services, upstreams).await?;
    let bad = world.ask(&world.ours, services).await? + world.ask(&world.native, services).await?;
    let rest = world
        .shares(async {
            tokio::time::sleep(TIME).await;
            Ok(())
        })
        .await?;
    let load = world.shares(world.load(services)).await?;
    let beyond = world.ours.usage().1 as f64 - world.native.usage().1 as f64;
    let file: u64 = std::fs::read_dir(world.agent.state_dir())?
        .filter_map(|entry| entry.ok()?.metadata().ok().map(|file| file.len()))
        .sum();
    let figures = json!({
        "services": services,
        "bad": bad,
        "agent_mib": world.agent.resident_bytes() as f64 / MIB,
        "agent_at_rest": rest.0,
        "agent_under_load": load.0,
        "state_mib": file as f64 / MIB,
        "vm_mib": world.ours.wasm_pages() as f64 * PAGE / VMS,
        "envoy_beyond_mib": beyond / MIB,
        "envoy_at_rest": rest.1,
    });
    Ok((figures, world.upstreams))
}

async fn run(_: &Options) -> Result<(Value, Vec<String>)> {
    let mut upstreams = Vec::new();
    for number in 0..ENDPOINTS {
        upstreams.push(Upstream::start(&format!("u-{number}")).await?);
    }
    let (mut rows, mut short) = (Vec::new(), Vec::new());
    println!("services  agent MiB  at rest  under load  state MiB  VM MiB  Envoy +MiB  at rest");
    for services in SERVICES {
        let (row, back) = measure(services, upstreams).await?;
        upstreams = back;
        let of = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "{services:>8}  {:>9.1}  {:>5.2} %  {:>8.2} %  {:>9.2}  {:>6.1}  {:>10.1}  {:>5.2} %",
            of("agent_mib"),
            of("agent_at_rest") * 100.0,
            of("agent_under_load") * 100.0,
            of("state_mib"),
            of("vm_mib"),
            of("envoy_beyond_mib"),
            of("envoy_at_rest") * 100.0,
        );
        if of("bad") > 0.0 {
            short.push(format!("{services} services: {} requests failed", row["bad"]));
        }
        for (key, most) in [("agent_mib", AGENT), ("vm_mib", VM)] {
            if of(key) > most {
                short.push(format!("{services} services: {key} is {:.1}, {most} allowed", of(key)));
            }
        }
        rows.push(row);
    }
    Ok((json!({ "rows": rows }), short))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("sizing", |options: &Options| &options.run, run).await
}
