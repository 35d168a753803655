//! What do requests notice while much is registered and while it changes?
//!
//! Two Envoys of two workers on one machine, as shipped and without the module, with the same EDS
//! from the same agent, serve the same load of one service at the same time. Beside it:
//!
//! - *large*: another service of 10,000 endpoints is in use, and one of them has another weight ten
//!   times a second;
//! - *replaced*, *ring*, *maglev*: one of them goes and another comes, ten times a second; under
//!   `p2c`, `ring_hash` and `maglev`;
//! - *many*: 10,000 services of ten endpoints are registered, of which nobody asks for any;
//! - *restart*: the agent is restarted while they are.
//!
//! Of so many services an Envoy is sent what it wants; `--everything` sends all, for comparison.
//!
//! The p99 of the quiet service is compared; memory is what the VMs hold, idle time what the
//! process uses beyond the native one while nobody asks for anything.
//!
//! ```text
//! cargo xtask bench churn              # ~8 minutes
//! cargo xtask bench churn --case ring  # beside none
//! cargo xtask bench churn --check      # exits 1 where a request failed, p99 rose or a VM holds too much
//! ```
//!
//! The last line is JSON.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use etcd_client::{Client, TxnOp};
use pintle_benches::Run;
use pintle_benches::transaction::{commit, failed};
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Error, Etcd, Instance, Latency, Load, Result, Running,
    Upstream, tools,
};
use serde_json::{Value, json};

/// The one that is compared.
const QUIET: &str = "orders";
const LARGE: &str = "catalogue";
const CASES: [&str; 7] = ["none", "large", "replaced", "ring", "maglev", "many", "restart"];
/// Endpoints of the large one, and services beside it.
const MANY: usize = 10_000;
const RATE: f64 = 200.0;
const WORKERS: u32 = 2;
/// How much p99 may be above that of the Envoy without the module.
const MOST: f64 = 1.2;
/// MiB of a worker's VM with 100,000 endpoints registered.
const MEMORY: f64 = 64.0;
/// The share of a core that a thread may use more than without the module, with nothing to do.
const IDLE: f64 = 0.02;
/// What was learned within the decay time goes on being told, and breakers that saw a failure
/// within their window go on being watched: nothing to do is from then on.
const REST: Duration = Duration::from_secs(12);
/// The main thread has a VM, too.
const THREADS: f64 = WORKERS as f64 + 1.0;
/// Bytes of a page of Wasm's, in MiB.
const PAGE: f64 = 1.0 / 16.0;

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    /// Of each case
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Only this one, beside `none`
    #[arg(long, value_parser = PossibleValuesParser::new(CASES))]
    case: Option<String>,
    /// Every table to every Envoy
    #[arg(long)]
    everything: bool,
}

struct World {
    client: Client,
    etcd: Etcd,
    agent: Agent,
    ours: Envoy,
    native: Envoy,
    _upstreams: Vec<Upstream>,
}

fn address(number: usize) -> SocketAddr {
    let at = u32::from(Ipv4Addr::new(127, 4, 0, 0)) + number as u32;
    SocketAddr::from((Ipv4Addr::from(at), 9))
}

fn large(number: usize, weight: usize) -> Instance {
    let instance = Instance::new(LARGE, &format!("c-{number:05}"), address(number));
    instance.metadata("weight", &weight.to_string())
}

impl World {
    async fn start(everything: bool) -> Result<Self> {
        let etcd = Etcd::start().await?;
        let client = Client::connect([etcd.url()], None).await.map_err(failed)?;
        let mut agent = Agent::builder().etcd(etcd.url());
        if everything {
            agent = agent.config("agent.yaml", "serve: {all_up_to: 100000}\n");
        }
        let agent = agent.start().await?;
        let mut upstreams = Vec::new();
        for number in 0..4 {
            let upstream = Upstream::start(&format!("u-{number}")).await?;
            let median = Duration::from_millis(5);
            upstream.set(Behaviour::slow(Latency::LogNormal { median, sigma: 0.2 }));
            etcd.register(&Instance::of(QUIET, &upstream)).await?;
            upstreams.push(upstream);
        }
        let shipped =
            || Ok::<_, Error>(EnvoyConfig::shipped()?.agent_socket(agent.socket()).service(LARGE));
        let ours = Envoy::start_with(shipped()?.wasm(tools::module()?), WORKERS, &[]).await?;
        let native = shipped()?.without_filter().node("native");
        let native = native.native_policy(QUIET, "least_request", &json!({}));
        let native = Envoy::start_with(native, WORKERS, &[]).await?;
        Ok(Self { client, etcd, agent, ours, native, _upstreams: upstreams })
    }

    async fn put(&self, instances: impl Iterator<Item = Instance>) -> Result<()> {
        let operation = |it: Instance| TxnOp::put(it.key(), it.value().to_string(), None);
        let all: Vec<TxnOp> = instances.map(operation).collect();
        let mut client = self.client.clone();
        commit(&mut client, &all).await
    }

    fn quiet(&self) -> [Running; 2] {
        [&self.ours, &self.native].map(|it| Load::to(it.addr()).host(QUIET).rate(RATE).start())
    }

    async fn change(&mut self, case: &str, time: Duration) -> Result<()> {
        let began = Instant::now();
        match case {
            "large" | "replaced" | "ring" | "maglev" => {
                let ask = |envoy: &Envoy| Load::to(envoy.addr()).host(LARGE).rate(5.0).start();
                let _asked = [ask(&self.ours), ask(&self.native)];
                for number in 0.. {
                    if began.elapsed() > time {
                        break;
                    }
                    let at = number * 7 % MANY;
                    if case == "large" {
                        self.put(std::iter::once(large(at, 2 + number % 50))).await?;
                    } else {
                        // The first ten thousand go, and as many others come.
                        let new = large(MANY + number, 1);
                        let put = TxnOp::put(new.key(), new.value().to_string(), None);
                        let gone = TxnOp::delete(large(at, 1).key(), None);
                        commit(&mut self.client, &[put, gone]).await?;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            "restart" => {
                self.agent.terminate(Duration::from_secs(10)).await?;
                self.agent.relaunch()?;
                tokio::time::sleep(time).await;
            }
            _ => tokio::time::sleep(time).await,
        }
        Ok(())
    }

    /// What has to be registered for a case.
    async fn prepare(&self, case: &str) -> Result<()> {
        match case {
            "large" | "replaced" | "ring" | "maglev" => {
                let select = match case {
                    "ring" => json!({"strategy": "ring_hash", "hash_key": [{"path": true}]}),
                    "maglev" => json!({"strategy": "maglev", "hash_key": [{"path": true}]}),
                    _ => json!({}),
                };
                let policy = json!({ "select": select }).to_string();
                self.etcd.put(&format!("/pintle/policies/{LARGE}"), &policy).await?;
                let others = (MANY..2 * MANY).map(|number| large(number, 1).key());
                let gone: Vec<TxnOp> = others.map(|key| TxnOp::delete(key, None)).collect();
                commit(&mut self.client.clone(), &gone).await?;
                self.put((0..MANY).map(|number| large(number, 1))).await?;
            }
            "many" => {
                let places = (0..MANY).flat_map(|at| (0..10).map(move |number| (at, number)));
                let instance = |(at, number): (usize, usize)| {
                    let name = format!("beside-{at:05}");
                    Instance::new(&name, &format!("{number}"), address(at * 10 + number))
                };
                // All but what the table of 10,000 has of the 100,000 that an agent takes.
                self.put(places.take(9 * MANY - 10).map(instance)).await?;
            }
            _ => return Ok(()),
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    }

    /// The share of a core that each thread uses beyond one without the module.
    async fn idle(&self) -> f64 {
        tokio::time::sleep(REST).await;
        let time = Duration::from_secs(10);
        let used = || [&self.ours, &self.native].map(|envoy| envoy.usage().0.as_secs_f64());
        let before = used();
        tokio::time::sleep(time).await;
        let [ours, native] = used();
        (ours - before[0] - (native - before[1])) / time.as_secs_f64() / THREADS
    }
}

async fn run(options: &Options) -> Result<(Value, Vec<String>)> {
    let mut world = World::start(options.everything).await?;
    let (mut figures, mut short) = (json!({}), Vec::new());
    let asked =
        |case: &&str| *case == "none" || options.case.as_deref().is_none_or(|it| it == *case);
    for case in CASES.into_iter().filter(asked) {
        world.prepare(case).await?;
        let quiet = world.quiet();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let began = Instant::now();
        world.change(case, Duration::from_secs(options.seconds)).await?;
        let [ours, native] = quiet.each_ref().map(|load| load.since(began));
        drop(quiet);
        let (p99, beside) = (ours.quantile(0.99), native.quantile(0.99));
        let ratio = p99.as_secs_f64() / beside.as_secs_f64();
        let idle = world.idle().await;
        // One VM more than threads: Envoy tries a configuration in one.
        let memory = world.ours.wasm_pages() as f64 * PAGE / (THREADS + 1.0);
        let (failed, reloads) = (ours.failed(), world.ours.vm_reloads().await?);
        println!(
            "{case:>8}: p99 {p99:.2?}, native {beside:.2?}, x {ratio:.2}; {failed} failed, {reloads} \
             reloads; {memory:.1} MiB a VM, idle {:.2} %",
            idle * 100.0
        );
        if failed > 0 || reloads > 0 {
            short.push(format!("{case}: {failed} requests failed, {reloads} VMs trapped"));
        }
        if ratio > MOST {
            short.push(format!("{case}: p99 is {ratio:.2} of the native one, {MOST:.2} allowed"));
        }
        if memory > MEMORY || idle > IDLE {
            short.push(format!("{case}: {memory:.1} MiB a VM, {idle:.3} of a core with no load"));
        }
        figures[case] = json!({"p99_ratio": ratio, "failed": failed, "reloads": reloads,
            "p99_ms": p99.as_secs_f64() * 1e3, "memory_mib": memory, "idle": idle});
    }
    Ok((figures, short))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("churn", |options: &Options| &options.run, run).await
}
