//! What a limit per endpoint is worth, on a real Envoy: `select.max_requests`, fixed and adaptive,
//! beside HAProxy's `maxconn` and beside no limit.
//!
//! Three upstreams serve [`CAPACITY`] requests at a time in 40 ms each (log-normal, sigma 0.2) and
//! queue the others: 600 requests/s for all of them. Requests arrive in an open loop, by which a
//! queue that grows shows. Each cell has its limit in force for [`WARM`] before it counts. HAProxy
//! lets a request wait for 100 ms where all servers are full; ours answers at once.
//!
//! ```text
//! cargo xtask bench limits                      # ~4 minutes
//! cargo xtask bench limits --check              # exits 1 where a figure is out of its bound
//! cargo xtask bench limits --seconds 5 --case overload
//! ```
//! The last line is JSON. p99 is that of good answers, refused are local 503, in flight is the most
//! that an upstream had at once.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use pintle_benches::Run;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, HaProxy, Instance, Latency, Load, Outcome, Result,
    Upstream, Written, tools,
};
use serde_json::{Value, json};

const UPSTREAMS: usize = 3;
const CAPACITY: usize = 8;
const MEDIAN: Duration = Duration::from_millis(40);
const SIGMA: f64 = 0.2;
const WARM: Duration = Duration::from_secs(4);
/// The most that can be under way; without a limit all of them are.
const CONNECTIONS: usize = 300;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Unlimited,
    HaProxy,
    Fixed,
    Adaptive,
}

struct Case {
    name: &'static str,
    rate: f64,
    /// What the first upstream serves at a time.
    first: usize,
}

/// Half of what they serve; one and a half times that; half while the first one has room for two.
const CASES: [Case; 3] = [
    Case { name: "half", rate: 300.0, first: CAPACITY },
    Case { name: "overload", rate: 900.0, first: CAPACITY },
    Case { name: "one-choked", rate: 300.0, first: 2 },
];

struct Cell {
    /// Requests a second.
    good: f64,
    refused: f64,
    failed: usize,
    p50: f64,
    p99: f64,
    /// Of each upstream.
    most: Vec<usize>,
}

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    /// Of each cell
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Only these
    #[arg(long = "case", value_parser = PossibleValuesParser::new(CASES.map(|case| case.name)))]
    cases: Vec<String>,
}

struct World {
    etcd: Etcd,
    agent: Agent,
    upstreams: Vec<Upstream>,
    envoy: Envoy,
}

impl Policy {
    const ALL: [Self; 4] = [Self::Unlimited, Self::HaProxy, Self::Fixed, Self::Adaptive];

    const fn name(self) -> &'static str {
        match self {
            Self::Unlimited => "unlimited",
            Self::HaProxy => "haproxy",
            Self::Fixed => "fixed",
            Self::Adaptive => "adaptive",
        }
    }

    fn setting(self) -> Value {
        match self {
            Self::Unlimited | Self::HaProxy => json!({}),
            Self::Fixed => json!({"select": {"max_requests": CAPACITY}}),
            Self::Adaptive => json!({"select": {"max_requests": "adaptive"}}),
        }
    }
}

impl World {
    async fn start() -> Result<Self> {
        let etcd = Etcd::start().await?;
        let (mut upstreams, mut last) = (Vec::new(), Written { revision: 0 });
        for number in 0..UPSTREAMS {
            let upstream = Upstream::start(&format!("u{number}")).await?;
            last = etcd.register(&Instance::of("orders", &upstream)).await?;
            upstreams.push(upstream);
        }
        let agent = Agent::builder().etcd(etcd.url()).start().await?;
        let mut config =
            EnvoyConfig::shipped()?.agent_socket(agent.socket()).wasm(tools::module()?);
        let host = &mut config.http_connection_manager()["route_config"]["virtual_hosts"][0];
        host.as_object_mut().into_iter().for_each(|host| drop(host.remove("retry_policy")));
        // Every refusal would be a line, and writing them would be measured.
        config.http_connection_manager()["access_log"] = json!([]);
        let envoy = Envoy::start(config).await?;
        agent.settled(last).await?;
        Ok(Self { etcd, agent, upstreams, envoy })
    }

    async fn cell(&self, case: &Case, policy: Policy, seconds: f64) -> Result<Cell> {
        let setting = policy.setting().to_string();
        let written = self.etcd.put("/pintle/policies/orders", &setting).await?;
        self.agent.settled(written).await?;
        let servers: Vec<_> = self.upstreams.iter().map(Upstream::addr).collect();
        let haproxy = match policy {
            Policy::HaProxy => {
                let limit = format!("maxconn {CAPACITY}");
                Some(HaProxy::start(&servers, "timeout queue 100ms", &limit).await?)
            }
            _ => None,
        };
        for (number, upstream) in self.upstreams.iter().enumerate() {
            let capacity = Some(if number == 0 { case.first } else { CAPACITY });
            let latency = Latency::LogNormal { median: MEDIAN, sigma: SIGMA };
            upstream.set(Behaviour { capacity, ..Behaviour::slow(latency) });
        }
        let target = haproxy.as_ref().map_or(self.envoy.addr(), HaProxy::addr);
        let load = Load::to(target).rate(case.rate).connections(CONNECTIONS).start();
        tokio::time::sleep(WARM).await;
        self.upstreams.iter().for_each(Upstream::forget);
        let moment = Instant::now();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let most = self.upstreams.iter().map(Upstream::peak_in_flight).collect();
        // What ended, not what was due: a queue that grows must not be waited for.
        let mut report = load.report();
        let ended = moment..moment + Duration::from_secs_f64(seconds);
        report.samples.retain(|sample| ended.contains(&(sample.due + sample.took)));
        load.stop().await;
        let refused = report.outcomes().get(&Outcome::Status(503)).copied().unwrap_or(0);
        let failed = report.failed() - refused;
        let all = report.total();
        report.samples.retain(|sample| !sample.failed());
        let ms = |share| report.quantile(share).as_secs_f64() * 1e3;
        Ok(Cell {
            good: report.total() as f64 / seconds,
            refused: refused as f64 * 100.0 / all.max(1) as f64,
            failed,
            p50: ms(0.5),
            p99: ms(0.99),
            most,
        })
    }
}

/// What a cell of ours must show beside HAProxy's of the same case.
fn short(case: &Case, policy: Policy, ours: &Cell, theirs: &Cell) -> Vec<String> {
    let most = ours.most.iter().copied().max().unwrap_or(0);
    let (least_good, most_in_flight) = match policy {
        // Each of two workers may meet the limit once.
        Policy::Fixed => (0.90, CAPACITY * 2),
        Policy::Adaptive => (0.97, CAPACITY * 5 / 2),
        Policy::Unlimited | Policy::HaProxy => return Vec::new(),
    };
    let overloaded = case.name == "overload";
    let bounds = [
        (ours.failed > 0, format!("{} requests failed otherwise", ours.failed)),
        (most > most_in_flight, format!("{most} in flight > {most_in_flight}")),
        (
            ours.good < theirs.good * least_good,
            format!("{:.0} good/s < {least_good} x {:.0}", ours.good, theirs.good),
        ),
        (ours.p99 > theirs.p99 * 1.1, format!("p99 {:.0} > 1.1 x {:.0} ms", ours.p99, theirs.p99)),
        (!overloaded && ours.refused > 0.5, format!("{:.2} % refused", ours.refused)),
    ];
    bounds.into_iter().filter_map(|(broken, why)| broken.then_some(why)).collect()
}

async fn measure(options: &Options) -> Result<(Value, Vec<String>)> {
    let world = World::start().await?;
    let (mut table, mut missed) = (serde_json::Map::new(), Vec::new());
    println!(
        "{:<11} {:<10} {:>7} {:>10} {:>8} {:>8}  in flight at most",
        "case", "limit", "good/s", "refused %", "p50 ms", "p99 ms"
    );
    let chosen =
        |case: &&Case| options.cases.is_empty() || options.cases.iter().any(|n| n == case.name);
    for case in CASES.iter().filter(chosen) {
        let mut row = serde_json::Map::new();
        let mut theirs = None;
        for policy in Policy::ALL {
            let cell = world.cell(case, policy, options.seconds).await?;
            let Cell { good, refused, failed, p50, p99, most } = &cell;
            println!(
                "{:<11} {:<10} {good:>7.0} {refused:>10.2} {p50:>8.1} {p99:>8.1}  {most:?}",
                case.name,
                policy.name(),
            );
            let figures = json!({"good_per_s": good, "refused_percent": refused,
                "failed": failed, "p50_ms": p50, "p99_ms": p99, "most_in_flight": most});
            row.insert(policy.name().into(), figures);
            if let Some(theirs) = &theirs {
                let why = short(case, policy, &cell, theirs).into_iter();
                missed.extend(why.map(|why| format!("{}, {}: {why}", case.name, policy.name())));
            }
            if policy == Policy::HaProxy {
                theirs = Some(cell);
            }
        }
        table.insert(case.name.into(), Value::Object(row));
    }
    Ok((json!({"seconds": options.seconds, "cases": table}), missed))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("limits", |options: &Options| &options.run, measure).await
}
