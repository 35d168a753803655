//! What bad endpoints do to everybody's tail, on a real Envoy: one of ten, several of ten, two of
//! three. The native policies and Pintle run on the same upstreams, under the same load.
//!
//! Ten upstreams, or three, answer after 10 ms (log-normal, sigma 0.2, so that a healthy 99th
//! percentile is 16 ms and what is beyond 30 ms has a cause); 400 requests/s arrive in an open
//! loop. Each cell of the table is an Envoy of its own with two workers, warmed for two seconds
//! while all is well; then the first upstreams fall ill, and what was due from that moment on is
//! counted: the time that a policy needs to notice is part of its figure. The cells of one case
//! follow each other, so that a busy machine is busy for all policies. Nobody retries: a retry
//! would hide what is measured.
//!
//! ```text
//! cargo xtask bench tail                        # ~30 minutes
//! cargo xtask bench tail --seconds 5 --case hanging --case refused
//! cargo xtask bench tail --policy pintle        # the others are left out
//! cargo xtask bench tail --check                # exits 1 where Pintle falls short of the figures below
//! ```
//! A machine that is busy with something else shows in the p99 of every policy and most in
//! Pintle's: a stall of the proxy is taken for latency, and an estimate that follows peaks keeps it
//! for its decay time, in which the slow endpoint looks less slow than it is. On such a machine
//! `nice -n -18` helps.
//!
//! The last line is JSON. p99 is that of all requests, failed ones included.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use pintle_benches::Run;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Fault, Instance, Latency, Load, Report, Result,
    Upstream, tools,
};
use serde_json::{Value, json};

const RATE: f64 = 400.0;
/// More than any policy has in flight, so that nothing waits for a connection of the load.
const CONNECTIONS: usize = 160;
const WARM: Duration = Duration::from_secs(2);
const MEDIAN: Duration = Duration::from_millis(10);
const SIGMA: f64 = 0.2;

/// Percent that go to the ill ones, the requests that find them ill among them,
const TO_THE_ILL: f64 = 0.5;
/// of so many requests at least: of the first hundred more is found out.
const OF: f64 = 8_000.0;

/// So long a window is in which equal endpoints get equal shares.
const WINDOW: Duration = Duration::from_secs(5);

/// What Pintle must show.
enum Bound {
    P99(f64),
    /// p99 at most so many times that of the same endpoints while all are well.
    Healthy(f64),
    /// In any window each endpoint gets a share within so much of the mean.
    Even(f64),
    Errors(f64),
    /// p50 and p99 at most so many percent above native least request.
    Native(f64),
}

struct Case {
    name: &'static str,
    /// So many of so many endpoints fall ill.
    count: (usize, usize),
    bound: Bound,
    ill: fn() -> Ill,
}

/// How an upstream falls ill.
enum Ill {
    Behaves(Behaviour),
    Closes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    LeastRequest,
    RoundRobin,
    LeastRequestOutlier,
    FullScan,
    Pintle,
}

struct Cell {
    errors: f64,
    p50: f64,
    p99: f64,
    /// What went to those that are ill.
    share: f64,
    /// The least and the most that an endpoint got in a window, as parts of the mean.
    even: (f64, f64),
    total: usize,
}

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    /// Of each cell
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Only these
    #[arg(long = "case", value_parser = PossibleValuesParser::new(CASES.map(|case| case.name)))]
    cases: Vec<String>,
    /// Only these
    #[arg(long = "policy", value_parser = PossibleValuesParser::new(Policy::ALL.map(Policy::name)))]
    policies: Vec<String>,
}

fn well() -> Behaviour {
    Behaviour::slow(Latency::LogNormal { median: MEDIAN, sigma: SIGMA })
}

fn slower(factor: u32) -> Behaviour {
    Behaviour::slow(Latency::LogNormal { median: MEDIAN * factor, sigma: SIGMA })
}

fn half_fails() -> Ill {
    Ill::Behaves(Behaviour { fail_ratio: 0.5, fault: Fault::Status(503), ..well() })
}

fn fails(fault: Fault) -> Ill {
    Ill::Behaves(Behaviour::failing(fault))
}

fn quick() -> Ill {
    let median = Duration::from_millis(2);
    Ill::Behaves(Behaviour::slow(Latency::LogNormal { median, sigma: SIGMA }))
}

fn now_and_then() -> Ill {
    let slow = Duration::from_millis(400);
    Ill::Behaves(Behaviour::slow(Latency::Mixed { ratio: 0.3, slow, fast: MEDIAN }))
}

const fn case(name: &'static str, count: (usize, usize), bound: Bound, ill: fn() -> Ill) -> Case {
    Case { name, count, bound, ill }
}

/// Those of one number of endpoints stand together, the one in which all are well first.
const CASES: [Case; 17] = [
    case("healthy", (0, 10), Bound::Native(5.0), || Ill::Behaves(well())),
    case("20x-slower", (1, 10), Bound::Healthy(1.2), || Ill::Behaves(slower(20))),
    case("2-20x-slower", (2, 10), Bound::Healthy(1.2), || Ill::Behaves(slower(20))),
    case("3-20x-slower", (3, 10), Bound::Healthy(1.2), || Ill::Behaves(slower(20))),
    case("5-20x-slower", (5, 10), Bound::Healthy(1.2), || Ill::Behaves(slower(20))),
    case("50%-503", (1, 10), Bound::Errors(0.15), half_fails),
    case("3-50%-503", (3, 10), Bound::Errors(0.30), half_fails),
    case("all-503", (1, 10), Bound::Errors(0.10), || fails(Fault::Status(503))),
    case("reset", (1, 10), Bound::Errors(0.10), || fails(Fault::Reset)),
    case("refused", (1, 10), Bound::Errors(0.10), || Ill::Closes),
    case("hanging", (1, 10), Bound::Errors(0.20), || fails(Fault::Hang)),
    case("3-hanging", (3, 10), Bound::Errors(0.30), || fails(Fault::Hang)),
    case("30%-at-400ms", (1, 10), Bound::P99(30.0), now_and_then),
    case("5x-slower-capacity-2", (1, 10), Bound::P99(30.0), || {
        Ill::Behaves(Behaviour { capacity: Some(2), ..slower(5) })
    }),
    case("equal-of-2ms", (10, 10), Bound::Even(0.25), quick),
    case("3-healthy", (0, 3), Bound::Native(5.0), || Ill::Behaves(well())),
    case("2-of-3-20x-slower", (2, 3), Bound::Healthy(1.2), || Ill::Behaves(slower(20))),
];

impl Policy {
    const ALL: [Self; 5] = [
        Self::LeastRequest,
        Self::RoundRobin,
        Self::LeastRequestOutlier,
        Self::FullScan,
        Self::Pintle,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::LeastRequestOutlier => "least_request+outlier",
            Self::FullScan => "full_scan",
            Self::Pintle => "pintle",
        }
    }

    fn config(self, upstreams: &[Upstream], agent: &Agent, case: &Case) -> Result<EnvoyConfig> {
        let config = EnvoyConfig::shipped()?.agent_socket(agent.socket());
        let hosts: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
        let with = |config: EnvoyConfig, name: &str, settings: &Value| {
            let config = config.without_filter().static_hosts("orders", &hosts);
            config.native_policy("orders", name, settings)
        };
        let native = |config: EnvoyConfig, name: &str| with(config, name, &json!({}));
        let mut config = match self {
            Self::LeastRequest => native(config, "least_request"),
            Self::RoundRobin => native(config, "round_robin"),
            Self::LeastRequestOutlier => {
                let mut config = native(config, "least_request");
                config.cluster("orders")["outlier_detection"] = json!({});
                config
            }
            Self::FullScan => {
                with(config, "least_request", &json!({"selection_method": "FULL_SCAN"}))
            }
            Self::Pintle => config.wasm(tools::module()?),
        };
        let host = &mut config.http_connection_manager()["route_config"]["virtual_hosts"][0];
        if let Some(fields) = host.as_object_mut() {
            fields.remove("retry_policy");
        }
        if case.name.ends_with("hanging") {
            host["routes"][0]["route"]["timeout"] = json!("1s");
        }
        // Every failure would be a line, and writing them would be measured.
        config.http_connection_manager()["access_log"] = json!([]);
        Ok(config)
    }
}

struct Bench {
    agent: Agent,
    upstreams: Vec<Upstream>,
    last: pintle_tests::Written,
    _etcd: Etcd,
}

impl Bench {
    async fn start(endpoints: usize) -> Result<Self> {
        let etcd = Etcd::start().await?;
        let mut upstreams = Vec::new();
        let mut last = None;
        for number in 0..endpoints {
            let upstream = Upstream::start(&format!("u{number}")).await?;
            upstream.set(well());
            last = Some(etcd.register(&Instance::of("orders", &upstream)).await?);
            upstreams.push(upstream);
        }
        let last = last.ok_or_else(|| pintle_tests::Error::new("no endpoint"))?;
        let agent = Agent::builder().etcd(etcd.url()).start().await?;
        Ok(Self { agent, upstreams, last, _etcd: etcd })
    }

    async fn cell(&mut self, case: &Case, policy: Policy, seconds: f64) -> Result<Cell> {
        let config = policy.config(&self.upstreams, &self.agent, case)?;
        let envoy = Envoy::start(config).await?;
        if policy == Policy::Pintle {
            self.agent.settled(self.last).await?;
        }
        let load = Load::to(envoy.addr()).rate(RATE).connections(CONNECTIONS);
        let running = load.start();
        tokio::time::sleep(WARM).await;
        for upstream in &mut self.upstreams[..case.count.0] {
            match (case.ill)() {
                Ill::Behaves(behaviour) => upstream.set(behaviour),
                Ill::Closes => upstream.close().await,
            }
        }
        let moment = Instant::now();
        let end = moment + Duration::from_secs_f64(seconds);
        let mut even = (1.0_f64, 1.0_f64);
        while Instant::now() < end {
            let began = Instant::now();
            tokio::time::sleep(WINDOW.min(end.saturating_duration_since(began))).await;
            let got = self.upstreams.iter().map(|upstream| upstream.requests_since(began));
            let got: Vec<f64> = got.map(|requests| requests as f64).collect();
            let mean = got.iter().sum::<f64>() / got.len() as f64;
            if began.elapsed() >= WINDOW {
                even.0 = got.iter().fold(even.0, |least, got| least.min(got / mean));
                even.1 = got.iter().fold(even.1, |most, got| most.max(got / mean));
            }
        }
        let all = running.stop().await;
        let report =
            Report { samples: all.samples.into_iter().filter(|s| s.due >= moment).collect() };
        let ill = &mut self.upstreams[..case.count.0];
        let sent = match (case.ill)() {
            Ill::Behaves(_) => ill.iter().map(|ill| ill.requests_since(moment)).sum(),
            // Nothing arrives at a closed port; who was sent there was refused.
            Ill::Closes => report.failed(),
        };
        for upstream in ill {
            upstream.open().await?;
        }
        for upstream in &self.upstreams {
            upstream.set(well());
            upstream.forget();
        }
        let total = report.total().max(1);
        let percent = |part: usize| part as f64 * 100.0 / total as f64;
        let ms = |share| report.quantile(share).as_secs_f64() * 1e3;
        Ok(Cell {
            errors: percent(report.failed()),
            p50: ms(0.5),
            p99: ms(0.99),
            share: percent(sent),
            even,
            total,
        })
    }
}

impl Case {
    /// Why Pintle falls short, if it does, beside its p99 when all are well.
    fn short(&self, cells: &[(Policy, Cell)], well: Option<f64>) -> Vec<String> {
        let of = |policy| cells.iter().find(|(p, _)| *p == policy).map(|(_, cell)| cell);
        let Some(ours) = of(Policy::Pintle) else { return Vec::new() };
        let bound = self.exceeded(ours, of(Policy::LeastRequest), well);
        bound.into_iter().chain(self.looked(ours)).collect()
    }

    /// Whether too much went to the ill ones while others were well. One that answers well seven
    /// times in ten is ill for a while only.
    fn looked(&self, ours: &Cell) -> Option<String> {
        let sent = ours.share * ours.total as f64;
        let most = TO_THE_ILL * OF.max(ours.total as f64);
        let ill = self.count.0 < self.count.1 && self.name != "30%-at-400ms";
        (ill && sent > most)
            .then(|| format!("{:.2} % went to the ill ones > {TO_THE_ILL} %", ours.share))
    }

    /// Whether its own bound is.
    fn exceeded(&self, ours: &Cell, native: Option<&Cell>, well: Option<f64>) -> Option<String> {
        match self.bound {
            Bound::P99(ms) if ours.p99 > ms => Some(format!("p99 {:.1} ms > {ms} ms", ours.p99)),
            Bound::Healthy(times) if well.is_some_and(|well| ours.p99 > well * times) => {
                Some(format!("p99 {:.1} ms > {times} x that of all well", ours.p99))
            }
            Bound::Even(part) if ours.even.0 < 1.0 - part || ours.even.1 > 1.0 + part => {
                let (least, most) = ours.even;
                Some(format!("an endpoint got {least:.2} of the mean, another {most:.2}"))
            }
            Bound::Errors(most) if ours.errors > most => {
                Some(format!("errors {:.3} % > {most} %", ours.errors))
            }
            Bound::Native(percent) => {
                let native = native?;
                let over = |ours: f64, native: f64| ours > native * (1.0 + percent / 100.0);
                (over(ours.p50, native.p50) || over(ours.p99, native.p99)).then(|| {
                    format!(
                        "p50 {:.1} / p99 {:.1} ms against {:.1} / {:.1} of least request",
                        ours.p50, ours.p99, native.p50, native.p99
                    )
                })
            }
            _ => None,
        }
    }
}

async fn measure(options: &Options) -> Result<(Value, Vec<String>)> {
    println!(
        "{:<22} {:<22} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "case", "policy", "errors %", "p50 ms", "p99 ms", "share %", "of the mean"
    );
    let mut bench: Option<Bench> = None;
    let mut well = None;
    let (mut table, mut short) = (serde_json::Map::new(), Vec::new());
    let chosen =
        |case: &&Case| options.cases.is_empty() || options.cases.iter().any(|n| n == case.name);
    for case in CASES.iter().filter(chosen) {
        if bench.as_ref().is_none_or(|bench| bench.upstreams.len() != case.count.1) {
            bench = None;
            well = None;
        }
        let bench = match &mut bench {
            Some(bench) => bench,
            none => none.insert(Bench::start(case.count.1).await?),
        };
        let mut cells = Vec::new();
        let asked = |policy: &Policy| {
            options.policies.is_empty() || options.policies.iter().any(|n| n == policy.name())
        };
        for policy in Policy::ALL.into_iter().filter(asked) {
            let cell = bench.cell(case, policy, options.seconds).await?;
            println!(
                "{:<22} {:<22} {:>9.3} {:>9.1} {:>9.1} {:>9.2} {:>5.2} to {:.2}",
                case.name,
                policy.name(),
                cell.errors,
                cell.p50,
                cell.p99,
                cell.share,
                cell.even.0,
                cell.even.1,
            );
            cells.push((policy, cell));
        }
        if case.count.0 == 0 {
            well = cells.iter().find(|(policy, _)| *policy == Policy::Pintle).map(|(_, it)| it.p99);
        }
        let why = case.short(&cells, well).into_iter();
        short.extend(why.map(|why| format!("{}: {why}", case.name)));
        let row = cells.iter().map(|(policy, cell)| {
            let value = json!({"errors_percent": cell.errors, "p50_ms": cell.p50,
                "p99_ms": cell.p99, "share_percent": cell.share, "of_the_mean": [cell.even.0, cell.even.1], "requests": cell.total});
            (policy.name().to_string(), value)
        });
        table.insert(case.name.into(), Value::Object(row.collect()));
    }
    Ok((json!({"seconds": options.seconds, "cases": table}), short))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("tail", |options: &Options| &options.run, measure).await
}
