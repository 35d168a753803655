//! What do other services notice while policies, weights and clients ask for too much?
//!
//! Two Envoys of two workers on one machine, as shipped and without the module, serve the same load
//! of one service at the same time, so that a machine that is busy is busy for both. Beside it both
//! are sent the same requests of others, and of the one with the module they ask the largest rings
//! of twelve services, a weight of 1 beside 1,000,000, and 256 values of a subset with a large
//! Maglev table each, or a ring; the p99 of the quiet service is compared. First come cookies of 50
//! KB, of which the last decides on the endpoint, and what such a request costs each of CPU is
//! compared as well.
//!
//! ```text
//! cargo xtask bench hostile            # ~12 minutes
//! cargo xtask bench hostile --case values --seconds 20
//! cargo xtask bench hostile --check    # exits 1 where a VM trapped, a request failed or p99 rose
//! ```
//!
//! The last line is JSON.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use futures::future::join_all;
use pintle_benches::Run;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Instance, Latency, Load, Report, Result, Running,
    Server, Upstream, tools,
};
use serde_json::{Value, json};

/// The one that is compared.
const QUIET: &str = "orders";
const RINGS: usize = 12;
const TAGS: usize = 64;
/// Requests a second: of the quiet service, of each that asks for too much, of each value of a
/// subset.
const RATES: [f64; 3] = [200.0, 10.0, 1.0];
/// How much p99, and the CPU of a request, may be above those of the Envoy without the module.
const MOST: f64 = 1.2;
/// With a large cookie, on both Envoys.
const COOKIES: &str = "cookies";
const COOKIE_RATE: f64 = 100.0;
/// What the later ones ask for is built in slices for minutes, and would be in the cookies' CPU.
const CASES: [&str; 6] = ["none", COOKIES, "rings", "weights", "values", "value-rings"];

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    /// Of each case
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only this one, beside `none`
    #[arg(long, value_parser = PossibleValuesParser::new(CASES))]
    case: Option<String>,
}

struct World {
    etcd: Etcd,
    agent: Agent,
    ours: Envoy,
    quiet: [Running; 2],
    native: Envoy,
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
        ours = ours.service(COOKIES);
        let ours = Envoy::start_with(ours, 2, &[]).await?;
        let mut native = shipped()?.without_filter().node("native").service(COOKIES);
        for number in 0..RINGS {
            native = native.service(&service(number));
        }
        let native = native.native_policy(QUIET, "least_request", &json!({}));
        let mut native = native.native_policy(COOKIES, "ring_hash", &json!({}));
        let hosts = &mut native.http_connection_manager()["route_config"]["virtual_hosts"];
        for host in hosts.as_array_mut().into_iter().flatten() {
            if host["domains"][0] == COOKIES {
                host["routes"][0]["route"]["hash_policy"] =
                    json!([{"cookie": {"name": "session"}}]);
            }
        }
        let native = Envoy::start_with(native, 2, &[]).await?;
        for upstream in &upstreams {
            etcd.register(&Instance::of(QUIET, upstream)).await?;
        }
        let load = |envoy: &Envoy| Load::to(envoy.addr()).host(QUIET).rate(RATES[0]).start();
        let quiet = [load(&ours), load(&native)];
        Ok(Self { etcd, agent, ours, quiet, native, upstreams })
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

    /// Seconds of CPU that both Envoys have used.
    fn cpu(&mut self) -> [f64; 2] {
        [&mut self.ours, &mut self.native].map(|envoy| envoy.process().cpu_time().as_secs_f64())
    }

    async fn ask_for(&self, case: &str) -> Result<Vec<Running>> {
        let load = |envoy: &Envoy, name: &str| {
            Load::to(envoy.addr()).host(name).rate(RATES[1]).connections(2)
        };
        let both = [&self.ours, &self.native];
        let ring = |size: u64| json!({"strategy": "ring_hash", "minimum_ring_size": size, "hash_key": [{"path": true}]});
        match case {
            "rings" => {
                let mut loads = Vec::new();
                for name in (0..RINGS).map(service) {
                    self.serve(&name, &ring(8_388_608), |at| self.instance(at)).await?;
                    loads.extend(both.map(|envoy| load(envoy, &name).start()));
                }
                Ok(loads)
            }
            "weights" => {
                let weight = |at: usize| if at == 0 { "1" } else { "1000000" };
                let instance = |at| self.instance(at).metadata("weight", weight(at));
                self.serve(&service(0), &ring(1_024), instance).await?;
                Ok(both.map(|envoy| load(envoy, &service(0)).start()).into())
            }
            COOKIES => {
                let select = json!({"strategy": "ring_hash",
                    "hash_key": [{"cookie": {"name": "session"}}]});
                self.serve(COOKIES, &select, |at| self.instance(at)).await?;
                let many: String =
                    (0..2_000).map(|n| format!("name-{n:04}=value-{n:06}; ")).collect();
                let cookie = format!("{many}session=of-this-one");
                let load = |envoy: &Envoy| {
                    let load = Load::to(envoy.addr()).host(COOKIES).header("cookie", &cookie);
                    load.rate(COOKIE_RATE).start()
                };
                Ok(both.map(load).into())
            }
            _ => {
                let mut select = json!({"strategy": "maglev", "table_size": 1_000_003,
                    "hash_key": [{"path": true}], "subset": [{"header": "x-tag", "tag": true}]});
                if case == "value-rings" {
                    select["strategy"] = json!("ring_hash");
                    select["minimum_ring_size"] = json!(65_536);
                }
                let tag = |number: usize| format!("t{number}");
                let tags = |at| (at * TAGS..(at + 1) * TAGS).map(tag).collect();
                let instance = |at| Instance { tags: tags(at), ..self.instance(at) };
                self.serve(&service(0), &select, instance).await?;
                let mut loads = Vec::new();
                let count = self.upstreams.len() * TAGS;
                for number in 0..count {
                    let of = |envoy| load(envoy, &service(0)).header("x-tag", &tag(number));
                    loads.extend(both.map(|envoy| of(envoy).rate(RATES[2]).connections(1).start()));
                    // In step, all of them would come in the same millisecond of each second.
                    tokio::time::sleep(Duration::from_secs_f64(1.0 / count as f64)).await;
                }
                Ok(loads)
            }
        }
    }
}

async fn run(options: &Options) -> Result<(Value, Vec<String>)> {
    let mut world = World::start().await?;
    let (mut figures, mut short) = (json!({}), Vec::new());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut usual = [0.0; 2];
    let asked =
        |case: &&str| *case == "none" || options.case.as_deref().is_none_or(|it| it == *case);
    for case in CASES.into_iter().filter(asked) {
        let hostile = if case == "none" { Vec::new() } else { world.ask_for(case).await? };
        let (began, before) = (Instant::now(), world.cpu());
        tokio::time::sleep(Duration::from_secs(options.seconds)).await;
        let [ours, native] = world.quiet.each_ref().map(|load| load.since(began));
        let seconds = began.elapsed().as_secs_f64();
        let after = world.cpu();
        let used = [0, 1].map(|at| after[at] - before[at]);
        // Together: one of them ends within a second, and there are hundreds.
        let ended = join_all(hostile.into_iter().map(Running::stop)).await;
        let failed = ours.failed() + ended.iter().map(Report::failed).sum::<usize>();
        match case {
            "none" => usual = used.map(|used| used / seconds),
            COOKIES => {
                let of_cookies = |at: usize| used[at] - usual[at] * seconds;
                let ratio = of_cookies(0) / of_cookies(1);
                let each = [0, 1].map(|at| of_cookies(at) / (COOKIE_RATE * seconds) * 1e6);
                println!(
                    "   cookie: CPU {:.0} us a request, native {:.0}, x {ratio:.2}",
                    each[0], each[1]
                );
                figures["cookie_cpu_ratio"] = json!(ratio);
                if ratio > MOST {
                    short.push(format!("{case}: {ratio:.2} of the native CPU, {MOST:.2} allowed"));
                }
            }
            _ => {}
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
    pintle_benches::conclude("hostile", |options: &Options| &options.run, run).await
}
