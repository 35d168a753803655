//! What do requests notice while the agent, etcd or NATS is away?
//!
//! Three services of ten instances that answer after 5 ms (log-normal, sigma 0.2), an Envoy of four
//! workers as shipped, 900 requests/s in an open loop without retries of the client's. In each
//! round everything is there for a while, then one of the three is killed and stays away for as
//! long, and comes back; the p99 of the two halves are compared within the round, so that a machine
//! that is busy is busy for both.
//!
//! ```text
//! cargo xtask bench outage                              # ~8 minutes
//! cargo xtask bench outage --seconds 600 --rounds 1     # away for ten minutes each
//! cargo xtask bench outage --check                      # exits 1 where a request failed or p99 rose
//! ```
//!
//! The last line is JSON. A ratio is the median of the rounds.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use pintle_benches::Run;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Instance, Latency, Load, Nats, Report, Result,
    Running, Server as _, Upstream, tools,
};
use serde_json::{Value, json};

const SERVICES: [&str; 3] = ["orders", "billing", "search"];
const ENDPOINTS: usize = 10;
const WORKERS: u32 = 4;
/// Requests a second, of each service.
const RATE: f64 = 300.0;
/// After a death or a return, before a half begins: a stall of the machine by a start is not the
/// outage's.
const SETTLE: Duration = Duration::from_secs(2);
/// How much p99 may rise.
const MOST: f64 = 1.10;

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    /// For which somebody is away, in each round
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

struct World {
    etcd: Etcd,
    nats: Nats,
    agent: Agent,
    loads: Vec<Running>,
    _envoy: Envoy,
    _upstreams: Vec<Upstream>,
}

impl World {
    async fn start() -> Result<Self> {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start())?;
        let agent = Agent::with(&etcd, &nats).start().await?;
        let (mut upstreams, mut last) = (Vec::new(), None);
        for service in SERVICES {
            for number in 0..ENDPOINTS {
                let upstream = Upstream::start(&format!("{service}-{number}")).await?;
                let median = Duration::from_millis(5);
                upstream.set(Behaviour::slow(Latency::LogNormal { median, sigma: 0.2 }));
                last = Some(etcd.register(&Instance::of(service, &upstream)).await?);
                upstreams.push(upstream);
            }
        }
        let mut config =
            EnvoyConfig::shipped()?.agent_socket(agent.socket()).wasm(tools::module()?);
        for service in &SERVICES[1..] {
            config = config.service(service);
        }
        let envoy = Envoy::start_with(config, WORKERS, &[]).await?;
        if let Some(last) = last {
            agent.settled(last).await?;
        }
        let load = |service| Load::to(envoy.addr()).host(service).rate(RATE).connections(48);
        let loads = SERVICES.map(|service| load(service).start()).into();
        Ok(Self { etcd, nats, agent, loads, _envoy: envoy, _upstreams: upstreams })
    }

    fn kill(&mut self, who: &str) {
        match who {
            "agent" => self.agent.kill9(),
            "etcd" => self.etcd.kill9(),
            _ => self.nats.kill9(),
        }
    }

    async fn bring_back(&mut self, who: &str) -> Result<()> {
        match who {
            "agent" => self.agent.restart().await,
            "etcd" => self.etcd.restart().await,
            _ => self.nats.restart().await,
        }
    }

    /// What was due since then.
    fn since(&self, moment: Instant) -> Report {
        let samples = self.loads.iter().flat_map(|load| load.since(moment).samples).collect();
        Report { samples }
    }

    /// What is due from now on for so long.
    async fn half(&self, long: Duration) -> Report {
        let began = Instant::now();
        tokio::time::sleep(long).await;
        self.since(began)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

async fn run(options: &Options) -> Result<(Value, Vec<String>)> {
    let mut world = World::start().await?;
    tokio::time::sleep(SETTLE).await;
    let (mut figures, mut short) = (json!({}), Vec::new());
    println!("{:>6} {:>14} {:>14} {:>14} {:>14}", "away", "p50 there", "away", "p99 there", "away");
    let half = Duration::from_secs(options.seconds);
    for who in ["agent", "etcd", "nats"] {
        let (mut p50s, mut p99s) = (Vec::new(), Vec::new());
        let began = Instant::now();
        for _ in 0..options.rounds {
            let there = world.half(half).await;
            world.kill(who);
            tokio::time::sleep(SETTLE).await;
            let away = world.half(half).await;
            world.bring_back(who).await?;
            tokio::time::sleep(SETTLE).await;
            let of = |share| (there.quantile(share), away.quantile(share));
            let ((p50, p50_away), (p99, p99_away)) = (of(0.5), of(0.99));
            println!("{who:>6} {p50:>14.2?} {p50_away:>14.2?} {p99:>14.2?} {p99_away:>14.2?}");
            p50s.push(p50_away.as_secs_f64() / p50.as_secs_f64());
            p99s.push(p99_away.as_secs_f64() / p99.as_secs_f64());
        }
        // Deaths and returns among them.
        let all = world.since(began);
        let (p50, p99) = (median(p50s), median(p99s));
        let (total, failed) = (all.total(), all.failed());
        println!("{who:>6} p50 x {p50:.3}, p99 x {p99:.3}, {total} requests, {failed} failed");
        if failed > 0 {
            short.push(format!("{who}: {failed} requests failed"));
        }
        if p99 > MOST {
            short.push(format!("{who}: p99 is {p99:.2} of what it was, {MOST:.2} allowed"));
        }
        figures[who] = json!({"requests": total, "failed": failed,
            "p50_ratio": p50, "p99_ratio": p99});
    }
    figures["seconds"] = json!(options.seconds);
    figures["rounds"] = json!(options.rounds);
    Ok((figures, short))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("outage", |options: &Options| &options.run, run).await
}
