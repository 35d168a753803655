//! What do other services notice while policies, weights and clients ask for too much?
//!
//! Two Envoys of two workers on one machine, as shipped and without the module, serve the same load of one
//! service at the same time, so that a machine that is busy is busy for both. Beside it the one with the
//! module is asked for the largest rings of twelve services, for a weight of 1 beside 1,000,000, and for 256
//! values of a subset with a large Maglev table each; the p99 of the quiet service is compared.
//!
//! ```text
//! cargo xtask bench hostile            # ~9 minutes
//! cargo xtask bench hostile --check    # exits 1 where a VM trapped, a request failed or p99 rose
//! ```
//!
//! The last line is JSON.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Instance, Latency, Load, Result, Running, Upstream,
    tools,
};
use serde_json::{Value, json};

/// The one that is compared.
const QUIET: &str = "orders";
const RINGS: usize = 12;
const TAGS: usize = 64;
/// Requests a second: of the quiet service, of each that asks for too much, of each value of a subset.
const RATES: [f64; 3] = [200.0, 10.0, 1.0];
/// How much p99 may be above that of the Envoy without the module.
const MOST: f64 = 1.2;

struct Options {
    check: bool,
    seconds: u64,
}

struct World {
    etcd: Etcd,
    agent: Agent,
    ours: Envoy,
    quiet: [Running; 2],
    _native: Envoy,
    upstreams: Vec<Upstream>,
}

fn service(number: usize) -> String {
    format!("s{number}")
}

impl World {
    async fn start() -> Result<Self> {
        let etcd = Etcd::start().await?;
        let agent = Agent::builder().etcd(etcd.url()).start().await?;
        let mut upstreams = Vec::new();
        for number in 0..4 {
            let upstream = Upstream::start(&format!("u-{number}")).await?;
            let median = Duration::from_millis(5);
            upstream.set(Behaviour::slow(Latency::LogNormal { median, sigma: 0.2 }));
            upstreams.push(upstream);
        }
        let shipped =
            || Ok::<_, pintle_tests::Error>(EnvoyConfig::shipped()?.agent_socket(agent.socket()));
        let mut ours = shipped()?.wasm(tools::module()?);
        for number in 0..RINGS {
            ours = ours.service(&service(number));
        }
        let ours = Envoy::start_with(ours, 2, &[]).await?;
        let native = shipped()?.without_filter().node("native");
        let native = native.native_policy(QUIET, "least_request", &json!({}));
        let native = Envoy::start_with(native, 2, &[]).await?;
        for upstream in &upstreams {
            etcd.register(&Instance::of(QUIET, upstream)).await?;
        }
        let load = |envoy: &Envoy| Load::to(envoy.addr()).host(QUIET).rate(RATES[0]).start();
        let quiet = [load(&ours), load(&native)];
        Ok(Self { etcd, agent, ours, quiet, _native: native, upstreams })
    }

    /// Registers the upstreams under a name, and lays a policy over it.
    async fn serve(
        &self,
        name: &str,
        select: &Value,
        more: impl Fn(usize) -> Instance,
    ) -> Result<()> {
        let policy = json!({ "select": select }).to_string();
        self.etcd.put(&format!("/pintle/policies/{name}"), &policy).await?;
        let mut last = None;
        for at in 0..self.upstreams.len() {
            let instance = Instance { service: name.to_owned(), ..more(at) };
            last = Some(self.etcd.register(&instance).await?);
        }
        match last {
            Some(last) => self.agent.settled(last).await,
            None => Ok(()),
        }
    }

    fn instance(&self, at: usize) -> Instance {
        Instance::of(QUIET, &self.upstreams[at])
    }

    async fn ask_for(&self, case: &str) -> Result<Vec<Running>> {
        let load = |name: &str| Load::to(self.ours.addr()).host(name).rate(RATES[1]).connections(2);
        let ring = |size: u64| json!({"strategy": "ring_hash", "minimum_ring_size": size, "hash_key": [{"path": true}]});
        match case {
            "rings" => {
                let mut loads = Vec::new();
                for name in (0..RINGS).map(service) {
                    self.serve(&name, &ring(8_388_608), |at| self.instance(at)).await?;
                    loads.push(load(&name).start());
                }
                Ok(loads)
            }
            "weights" => {
                let weight = |at: usize| if at == 0 { "1" } else { "1000000" };
                let instance = |at| self.instance(at).metadata("weight", weight(at));
                self.serve(&service(0), &ring(1_024), instance).await?;
                Ok(vec![load(&service(0)).start()])
            }
            _ => {
                let select = json!({"strategy": "maglev", "table_size": 1_000_003,
                    "hash_key": [{"path": true}], "subset": [{"header": "x-tag", "tag": true}]});
                let tag = |number: usize| format!("t{number}");
                let tags = |at| (at * TAGS..(at + 1) * TAGS).map(tag).collect();
                let instance = |at| Instance { tags: tags(at), ..self.instance(at) };
                self.serve(&service(0), &select, instance).await?;
                let of = |number| {
                    load(&service(0)).header("x-tag", &tag(number)).rate(RATES[2]).connections(1)
                };
                Ok((0..self.upstreams.len() * TAGS).map(|number| of(number).start()).collect())
            }
        }
    }
}

fn options() -> std::result::Result<Option<Options>, String> {
    let mut options = Options { check: false, seconds: 120 };
    let mut benching = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--bench" => benching = true,
            "--check" => options.check = true,
            "--seconds" => {
                let number = args.next().and_then(|value| value.parse().ok());
                options.seconds = number.ok_or("--seconds: a number")?;
            }
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    // `cargo test --benches` runs this without the flag: building is the test there.
    Ok(benching.then_some(options))
}

async fn run(options: &Options) -> Result<(Value, Vec<String>)> {
    let world = World::start().await?;
    let (mut figures, mut short) = (json!({}), Vec::new());
    tokio::time::sleep(Duration::from_secs(3)).await;
    for case in ["none", "rings", "weights", "values"] {
        let hostile = if case == "none" { Vec::new() } else { world.ask_for(case).await? };
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(options.seconds)).await;
        let [ours, native] = world.quiet.each_ref().map(|load| load.since(began));
        let mut failed = ours.failed();
        for load in hostile {
            failed += load.stop().await.failed();
        }
        let (p99, beside) = (ours.quantile(0.99), native.quantile(0.99));
        let ratio = p99.as_secs_f64() / beside.as_secs_f64();
        let reloads = world.ours.vm_reloads().await?;
        let unplaced = world.ours.stat("wasmcustom.pintle_unplaced_total").await.unwrap_or(0);
        let refused = world.ours.stat("wasmcustom.pintle_over_budget_total").await.unwrap_or(0);
        println!(
            "{case:>8}: p99 {p99:.2?}, native {beside:.2?}, x {ratio:.2}; {failed} failed, {reloads} \
             reloads; by p2c {unplaced}, refused {refused}; {} pages",
            world.ours.wasm_pages()
        );
        if failed > 0 {
            short.push(format!("{case}: {failed} requests failed"));
        }
        if reloads > 0 {
            short.push(format!("{case}: {reloads} VMs trapped"));
        }
        if ratio > MOST {
            short.push(format!("{case}: p99 is {ratio:.2} of the native one, {MOST:.2} allowed"));
        }
        figures[case] = json!({"p99_ratio": ratio, "failed": failed, "reloads": reloads,
            "unplaced": unplaced, "refused": refused});
    }
    Ok((figures, short))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("hostile", options(), |options| options.check, run).await
}
