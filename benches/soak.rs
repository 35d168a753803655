//! Does anything grow, or get lost, while everything changes all the time?
//!
//! Three services of ten instances on a real etcd and nats-server, an agent, an Envoy with four
//! workers and everything on, spans exported included. Requests come without a pause; once a second
//! something happens, chosen by a seed: an instance comes back under another id, falls ill for two
//! seconds, is drained by an event; a policy changes; clients give up in mid-stream; hostile
//! headers come. Now and then the agent, etcd, NATS or the collector is killed and comes back. In
//! the end all is well again, and nothing may be left over.
//!
//! ```text
//! cargo xtask bench soak                       # half an hour
//! cargo xtask bench soak --minutes 5 --seed 7
//! cargo xtask bench soak --check               # exits 1 where something grew, was lost or failed
//! ```
//!
//! The last line is JSON.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pintle_benches::Run;
use pintle_tests::{
    Agent, Behaviour, Collector, Envoy, EnvoyConfig, Etcd, Fault, Instance, Latency, Load, Nats,
    Result, Upstream, http, tools,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const SERVICES: [&str; 3] = ["orders", "billing", "search"];
const ENDPOINTS: usize = 10;
const WORKERS: u32 = 4;
/// Requests a second, of each service.
const RATE: f64 = 150.0;
const SAMPLE: Duration = Duration::from_secs(5);
const STRATEGIES: [&str; 5] = ["p2c", "least_request", "round_robin", "random", "maglev"];
/// How endpoints fall ill, and how many requests may fail of one illness: five open the breaker,
/// and a probe or two find it still ill. A hung endpoint is known as one after the timeout of a
/// second, by which time any of its requests may have come.
const ILLNESSES: [&str; 5] =
    ["ill: 503", "ill: resets", "ill: half an answer", "ill: hangs", "ill: slow"];
const FAILED_AN_ILLNESS: [usize; 5] = [7, 7, 7, 25, 0];

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Of what happens
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What may not grow.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// Linear memory of all VMs, in pages of 64 KiB.
    pages: usize,
    envoy: u64,
    agent: u64,
}

struct Soak {
    etcd: Etcd,
    nats: Nats,
    agent: Agent,
    envoy: Envoy,
    collector: Collector,
    upstreams: Vec<Upstream>,
    /// By upstream: how often it has been registered, which is part of its id.
    lives: Vec<usize>,
    /// Who is ill, and until when.
    ill: BTreeMap<usize, Instant>,
    rng: StdRng,
    done: BTreeMap<&'static str, usize>,
}

fn well() -> Behaviour {
    let (least, most) = (Duration::from_millis(1), Duration::from_millis(4));
    Behaviour::slow(Latency::Uniform(least, most))
}

impl Soak {
    async fn start(seed: u64) -> Result<Self> {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start())?;
        let agent = Agent::with(&etcd, &nats).start().await?;
        let collector = Collector::start().await?;
        let mut upstreams = Vec::new();
        for service in SERVICES {
            for number in 0..ENDPOINTS {
                let upstream = Upstream::start(&format!("{service}-{number}")).await?;
                upstream.set(well());
                upstreams.push(upstream);
            }
        }
        let mut config = EnvoyConfig::shipped()?
            .agent_socket(agent.socket())
            .wasm(tools::module()?)
            .plugin(|plugin| {
                plugin["trace"] = json!({"ratio": 0.1, "spans": "per_attempt",
                    "export": {"cluster": "otel", "service_name": "soak"}});
                plugin["breaker"] = json!({"open": "1s", "open_max": "4s"});
            });
        for service in &SERVICES[1..] {
            config = config.service(service);
        }
        let mut otel = config.cluster("pintle_agent").clone();
        otel["name"] = json!("otel");
        otel["load_assignment"] = json!({"cluster_name": "otel", "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"socket_address": {"address": collector.addr().ip(),
                "port_value": collector.addr().port()}}}}]}]});
        let clusters = config.at("/static_resources/clusters").as_array_mut();
        clusters.into_iter().for_each(|clusters| clusters.push(otel.clone()));
        let manager = config.http_connection_manager();
        // Every failure would be a line of a log that grows.
        manager["access_log"] = json!([]);
        for host in manager["route_config"]["virtual_hosts"].as_array_mut().into_iter().flatten() {
            host["routes"][0]["route"]["timeout"] = json!("1s");
        }
        let envoy = Envoy::start_with(config, WORKERS, &[]).await?;
        let lives = vec![0; upstreams.len()];
        let (ill, done, rng) = (BTreeMap::new(), BTreeMap::new(), StdRng::seed_from_u64(seed));
        let mut soak =
            Self { etcd, nats, agent, envoy, collector, upstreams, lives, ill, rng, done };
        let mut last = None;
        for at in 0..soak.upstreams.len() {
            last = Some(soak.etcd.register(&soak.instance(at)).await?);
        }
        if let Some(last) = last {
            soak.agent.settled(last).await?;
        }
        soak.rng = StdRng::seed_from_u64(seed);
        Ok(soak)
    }

    fn service(&self, at: usize) -> &'static str {
        SERVICES[at / ENDPOINTS]
    }

    fn id(&self, at: usize) -> String {
        format!("{}-life{}", self.upstreams[at].name(), self.lives[at])
    }

    fn instance(&self, at: usize) -> Instance {
        Instance::new(self.service(at), &self.id(at), self.upstreams[at].addr())
    }

    /// One second's event.
    async fn happen(&mut self) -> Result<()> {
        let at = self.rng.random_range(0..self.upstreams.len());
        let what = match self.rng.random_range(0..100) {
            0..30 => {
                self.etcd.deregister(self.service(at), &self.id(at)).await?;
                self.lives[at] += 1;
                self.etcd.register(&self.instance(at)).await?;
                "another life"
            }
            30..55 if self.ill.len() < 2 => {
                let faults = [
                    Behaviour::failing(Fault::Status(503)),
                    Behaviour::failing(Fault::Reset),
                    Behaviour::failing(Fault::CloseMidBody),
                    Behaviour::failing(Fault::Hang),
                    Behaviour::slow(Latency::Fixed(Duration::from_millis(200))),
                ];
                let kind = self.rng.random_range(0..faults.len());
                self.upstreams[at].set(faults[kind].clone());
                self.ill.insert(at, Instant::now() + Duration::from_secs(2));
                ILLNESSES[kind]
            }
            30..65 => {
                let (service, id) = (self.service(at), self.id(at));
                Agent::drain(&self.nats.url(), service, &id, Duration::from_secs(2)).await?;
                "drain"
            }
            65..80 => {
                let strategy = STRATEGIES[self.rng.random_range(0..STRATEGIES.len())];
                let ratio = self.rng.random_range(0.0..1.0);
                let policy = json!({"select": {"strategy": strategy, "attempts": 3},
                    "trace": {"ratio": ratio}});
                let key = format!("/pintle/policies/{}", self.service(at));
                self.etcd.put(&key, &policy.to_string()).await?;
                "policy"
            }
            80..90 => {
                for number in 0..50 {
                    let _ = abort(&self.envoy, self.service(at), number).await;
                }
                "given up"
            }
            _ => {
                for number in 0..20 {
                    let _ = hostile(&self.envoy, self.service(at), number).await;
                }
                "hostile headers"
            }
        };
        *self.done.entry(what).or_default() += 1;
        Ok(())
    }

    /// Heals whoever has been ill for long enough.
    fn heal(&mut self, all: bool) {
        let now = Instant::now();
        let upstreams = &self.upstreams;
        self.ill.retain(|at, until| {
            let stays = !all && *until > now;
            if !stays {
                upstreams[*at].set(well());
            }
            stays
        });
    }

    /// What happens rarely: each of the four in turn. The agent only `early`: what it keeps shows
    /// in one that lives.
    async fn kill(&mut self, number: usize, early: bool) -> Result<()> {
        let who = ["agent", "etcd", "nats", "collector"][number % 4];
        if who == "agent" && !early {
            return Ok(());
        }
        match who {
            "agent" => self.agent.restart().await?,
            "etcd" => self.etcd.restart().await?,
            "nats" => self.nats.restart().await?,
            _ => {
                self.collector.close().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.collector.open().await?;
            }
        }
        *self.done.entry(who).or_default() += 1;
        Ok(())
    }

    fn size(&mut self) -> Size {
        Size {
            pages: self.envoy.wasm_pages(),
            envoy: self.envoy.usage().1,
            agent: self.agent.resident_bytes(),
        }
    }

    /// What is not as it was, once all is well again; waits for it as long as a lease may last.
    async fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        for _ in 0..120 {
            left.clear();
            for service in SERVICES {
                let label = format!("service=\"{service}\"");
                for name in ["http_requests_in_flight", "pintle_endpoint_in_flight"] {
                    let value = self.agent.metric(name, &[&label]).await;
                    if value.is_none_or(|value| value != 0.0) {
                        left.push(format!("{name} of {service} is {value:?}"));
                    }
                }
                for _ in 0..20 {
                    let request = http::request(service, "GET", "/", "");
                    if let Ok(request) = request {
                        let reply = http::send(self.envoy.addr(), request).await;
                        if reply.as_ref().map_or(0, |reply| reply.status) != 200 {
                            left.push(format!("{service} answers {reply:?}"));
                        }
                    }
                }
            }
            let open = http::get(self.agent.admin(), "/v1/breakers").await.and_then(|r| r.json());
            match open.map(|open| open["breakers"].as_array().map(Vec::len)) {
                Ok(Some(0)) => {}
                open => left.push(format!("breakers: {open:?}")),
            }
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        match self.envoy.vm_reloads().await {
            Ok(0) => {}
            reloads => left.push(format!("VMs rebuilt: {reloads:?}")),
        }
        left
    }
}

/// A stream that its client leaves.
async fn abort(envoy: &Envoy, service: &str, number: usize) -> Result<()> {
    let mut stream = TcpStream::connect(envoy.addr()).await?;
    let head = format!("GET / HTTP/1.1\r\nhost: {service}\r\n\r\n");
    let cut = if number.is_multiple_of(3) { head.len() / 2 } else { head.len() };
    stream.write_all(&head.as_bytes()[..cut]).await?;
    tokio::time::sleep(Duration::from_millis(number as u64 % 4)).await;
    stream.set_zero_linger()?;
    Ok(())
}

/// Headers that no client of good will sends.
async fn hostile(envoy: &Envoy, service: &str, number: usize) -> Result<()> {
    let long = "a".repeat(3_000);
    let list = "k=v,".repeat(600);
    let headers: [(&str, &[u8]); 6] = [
        ("traceparent", b"00-\xff\xfe-01"),
        ("tracestate", list.as_bytes()),
        ("baggage", b"a=%zz,\xc3\x28=1"),
        ("x-pintle-endpoints", b"169.254.169.254:80,127.0.0.1:1"),
        ("user-agent", b"\xf0\x9f\x92"),
        ("b3", long.as_bytes()),
    ];
    let (name, value) = headers[number % headers.len()];
    let mut request = http::request(service, "GET", &format!("/?{long}"), "")?;
    if let (Ok(name), Ok(value)) =
        (name.parse::<::http::HeaderName>(), ::http::HeaderValue::from_bytes(value))
    {
        request.headers_mut().insert(name, value);
    }
    http::send(envoy.addr(), request).await.map(drop)
}

/// Where the second half of the samples lies above the first: pages, which are a high-water mark of
/// what came by chance at once, by a twentieth; resident memory by a tenth and the allocators'
/// play.
fn grown(sizes: &[Size]) -> Vec<String> {
    const PLAY: u64 = 8 << 20;
    let (first, second) = sizes.split_at(sizes.len() / 2);
    let most = |half: &[Size], of: fn(&Size) -> u64| half.iter().map(of).max().unwrap_or(0);
    let mut grown = Vec::new();
    let mut compare = |what: &str, of: fn(&Size) -> u64, room: fn(u64) -> u64| {
        let (before, after) = (most(first, of), most(second, of));
        if after > room(before) {
            grown.push(format!("{what} grew from {before} to {after}"));
        }
    };
    compare("the VMs' memory (pages)", |size| size.pages as u64, |before| before + before / 20);
    compare("Envoy (bytes)", |size| size.envoy, |before| before / 10 * 11 + PLAY);
    compare("the agent (bytes)", |size| size.agent, |before| before / 10 * 11 + PLAY);
    grown
}

async fn run(options: &Options) -> Result<(Value, Vec<String>)> {
    let mut soak = Soak::start(options.seed).await?;
    let loads = SERVICES.map(|service| {
        Load::to(soak.envoy.addr()).host(service).rate(RATE).connections(48).start()
    });
    let began = Instant::now();
    let (mut sizes, mut kills, mut sampled) = (Vec::new(), 0, began);
    let until = Duration::from_secs_f64(options.minutes * 60.0);
    println!("{:>8} {:>8} {:>10} {:>10} {:>8}", "s", "pages", "Envoy MiB", "agent MiB", "failed");
    while began.elapsed() < until {
        let second = Instant::now();
        soak.heal(false);
        soak.happen().await?;
        if began.elapsed().as_secs() / 20 > kills {
            soak.kill(kills as usize, began.elapsed() < until / 4).await?;
            kills += 1;
        }
        if sampled.elapsed() >= SAMPLE {
            let failed: usize = loads.iter().map(|load| load.since(sampled).failed()).sum();
            sampled = Instant::now();
            let size = soak.size();
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            println!(
                "{:>8} {:>8} {:>10.1} {:>10.1} {failed:>8}",
                began.elapsed().as_secs(),
                size.pages,
                mib(size.envoy),
                mib(size.agent)
            );
            sizes.push(size);
        }
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(second.elapsed())).await;
    }
    soak.heal(true);
    let (mut total, mut failed, mut outcomes) = (0, 0, BTreeMap::new());
    for load in loads {
        let report = load.stop().await;
        total += report.total();
        failed += report.failed();
        for (outcome, count) in report.outcomes() {
            *outcomes.entry(format!("{outcome:?}")).or_insert(0) += count;
        }
    }
    let mut wrong = grown(&sizes);
    wrong.extend(soak.left_over().await);
    let times = ILLNESSES.map(|ill| soak.done.get(ill).copied().unwrap_or(0));
    let most: usize = times.iter().zip(FAILED_AN_ILLNESS).map(|(times, each)| times * each).sum();
    if failed > most {
        wrong.push(format!("{failed} requests failed, {most} at most by what was ill"));
    }
    let last = sizes.last().copied().unwrap_or_default();
    Ok((
        json!({"seed": options.seed, "minutes": options.minutes, "requests": total, "failed": failed,
            "outcomes": outcomes, "happened": soak.done, "pages": last.pages,
            "envoy_bytes": last.envoy, "agent_bytes": last.agent}),
        wrong,
    ))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("soak", |options: &Options| &options.run, run).await
}
