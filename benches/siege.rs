//! What does the agent hold, and whom does it keep waiting, while others ask too much of it?
//!
//! The agent as it is released, with a real etcd and nats-server; beside each attack somebody who
//! does nothing wrong:
//!
//! - *opinions*: 200,000 opinions about breakers are published; how long `pintle drain` takes
//!   behind them, and whether the agent starts again in the memory in which it wrote its state;
//! - *streams*: one process opens 500 discovery streams for everything and reads none of them;
//! - *silent*: one process opens 520 connections and says nothing; in both, how long it takes until
//!   an Envoy that starts serves a request by its tables;
//! - *reports*: 40 MB of forged reports of one proxy, over made-up services, endpoints and codes;
//!   how many lines `/metrics` has more;
//! - *values*: ten values of 1 MiB lie before 20,000 keys, 4 ms there and back; how long an agent
//!   takes to start;
//! - *frozen*: etcd stands still; how long the agent calls itself ready after its reconcile time.
//!
//! ```text
//! cargo xtask bench siege              # ~3 minutes
//! cargo xtask bench siege --case silent
//! cargo xtask bench siege --check      # exits 1 where a figure is out of bounds
//! ```
//!
//! The last line is JSON.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use etcd_client::{Client, TxnOp};
use futures::StreamExt as _;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_benches::reader::{Reader, framed};
use pintle_benches::transaction::commit;
use pintle_benches::{Run, peak_mib};
use pintle_contract::{
    BreakerState, EndpointReport, Report, RequestCount, ServiceReport, Up, Version,
};
use pintle_tests::{
    Agent, Envoy, EnvoyConfig, Error, Etcd, Instance, Nats, NetworkFault, Proxy, Result,
    Server as _, Upstream, http, text, tools,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;

const CASES: [&str; 6] = ["opinions", "streams", "silent", "reports", "values", "frozen"];
/// Registered beside the one that is asked for: services, and endpoints of each.
const SERVICES: usize = 1_000;
const EACH: usize = 10;
const OPINIONS: usize = 200_000;
const STREAMS: usize = 500;
const SILENT: usize = 520;
/// Bytes of forged reports.
const FORGED: usize = 40_000_000;
/// Far above every bound.
const PATIENCE: Duration = Duration::from_secs(120);
/// The agent's reconcile time where its registry stands still.
const RECONCILE: Duration = Duration::from_secs(10);

#[derive(clap::Parser)]
struct Options {
    #[command(flatten)]
    run: Run,
    /// Only this one
    #[arg(long, value_parser = PossibleValuesParser::new(CASES))]
    case: Option<String>,
}

struct World {
    etcd: Etcd,
    nats: Nats,
    agent: Agent,
    upstream: Upstream,
}

/// Figures, and what falls short.
#[derive(Default)]
struct Told(Vec<(String, f64)>, Vec<String>);

impl Told {
    fn put(&mut self, name: &str, value: f64, most: f64) {
        println!("  {name}: {value:.3} (at most {most})");
        if value > most {
            self.1.push(format!("{name}: {value:.3}, at most {most}"));
        }
        self.0.push((name.to_owned(), value));
    }
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::new(e.to_string())
}

impl World {
    async fn start() -> Result<Self> {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start())?;
        register(&etcd, (0..SERVICES * EACH).map(instance)).await?;
        let upstream = Upstream::start("orders-1").await?;
        etcd.register(&Instance::of("orders", &upstream)).await?;
        let reconcile = format!("{}s", RECONCILE.as_secs());
        let config = json!({"etcd": {"reconcile": reconcile}}).to_string();
        let agent = Agent::with(&etcd, &nats).config("agent.yaml", &config).start().await?;
        Ok(Self { etcd, nats, agent, upstream })
    }

    fn peak(&mut self) -> f64 {
        peak_mib(self.agent.process().pid())
    }

    /// Seconds until an Envoy that starts now serves a request, and the agent knows it.
    async fn serves(&self) -> Result<f64> {
        let config = EnvoyConfig::shipped()?.agent_socket(self.agent.socket());
        let began = Instant::now();
        let envoy = Envoy::start_with(config.wasm(tools::module()?), 2, &[]).await?;
        loop {
            let request = http::request("orders", "GET", "/", "")?;
            let answered = http::send(envoy.addr(), request).await.is_ok_and(|it| it.status == 200);
            let proxies = http::get(self.agent.admin(), "/v1/proxies").await?.json()?;
            let known = proxies.to_string().contains("\"connected\":true");
            if answered && known {
                return Ok(began.elapsed().as_secs_f64());
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::new(format!("answered: {answered}; {proxies}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn opinions(&mut self, told: &mut Told) -> Result<()> {
        let client = async_nats::connect(self.nats.url()).await.map_err(failed)?;
        let timestamp = text::now_rfc3339();
        for number in 0..OPINIONS {
            let target = format!("{}/e{}", service(number % SERVICES), number / SERVICES % EACH);
            let event = json!({
                "id": format!("o-{number}"), "type": "breaker", "subject": target,
                "source": format!("agent-{}", number % 100), "timestamp": timestamp,
                "metadata": {}, "version": "1",
                "data": {"action": "transition", "proxy": format!("envoy-{number}"), "ttl": "600s",
                    "from": "closed", "to": "open", "reason": "5 consecutive failures", "trips": 1},
            });
            let subject = format!("events.breaker.{target}");
            client.publish(subject, event.to_string().into()).await.map_err(failed)?;
            if number % 1_000 == 999 {
                client.flush().await.map_err(failed)?;
            }
        }
        client.flush().await.map_err(failed)?;
        let began = Instant::now();
        Agent::drain(&self.nats.url(), "orders", "orders-1", Duration::from_secs(600)).await?;
        told.put("drain_behind_opinions_s", began.elapsed().as_secs_f64(), 2.0);
        let url = self.nats.url();
        let taken = async || {
            let client = async_nats::connect(&url).await.map_err(failed)?;
            let js = async_nats::jetstream::new(client);
            let stream = js.get_stream("PINTLE_EVENTS").await.map_err(failed)?;
            let mut left = 0;
            let mut consumers = stream.consumers();
            while let Some(consumer) = consumers.next().await {
                left += consumer.map_err(failed)?.num_pending;
            }
            Ok::<_, Error>(left == 0)
        };
        while !taken().await? {
            if began.elapsed() > PATIENCE {
                return Err(Error::new("the opinions were not taken"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("  all taken after {:.1?}", began.elapsed());
        let peak = self.peak();
        told.put("opinions_peak_mib", peak, 192.0);
        self.agent.terminate(PATIENCE).await?;
        let written = std::fs::metadata(self.agent.state_dir().join("state"))?.len();
        told.put("opinions_state_mib", written as f64 / f64::from(1 << 20), 32.0);
        let began = Instant::now();
        self.agent.relaunch()?;
        self.agent.wait_ready(PATIENCE).await?;
        told.put("opinions_ready_again_s", began.elapsed().as_secs_f64(), 5.0);
        told.put("opinions_peak_again_ratio", self.peak() / peak, 1.1);
        Ok(())
    }

    async fn streams(&mut self, told: &mut Told) -> Result<()> {
        let mut held = Vec::new();
        for _ in 0..STREAMS / 50 {
            held.push(Discoveries::open(self.agent.socket(), 50).await?);
        }
        told.put("streams_serves_s", self.serves().await?, 5.0);
        told.put("streams_peak_mib", self.peak(), 256.0);
        Ok(())
    }

    async fn silent(&mut self, told: &mut Told) -> Result<()> {
        let mut held = Vec::new();
        for _ in 0..SILENT {
            // Those beyond the quota are hung up on.
            held.extend(UnixStream::connect(self.agent.socket()).await);
        }
        println!("  {} of {SILENT} connect", held.len());
        told.put("silent_serves_s", self.serves().await?, 5.0);
        told.put("silent_peak_mib", self.peak(), 192.0);
        Ok(())
    }

    async fn reports(&mut self, told: &mut Told) -> Result<()> {
        let lines = async |agent: &Agent| Ok::<_, Error>(agent.metrics().await?.lines().count());
        let before = lines(&self.agent).await?;
        let mut sent = 0;
        let forged = (0u64..).map(forged).take_while(move |up| {
            sent += size(up);
            sent < FORGED
        });
        let began = Instant::now();
        let forged = stream::iter(forged).boxed();
        let reader = Reader::connect_saying(self.agent.socket(), "forger", forged).await?;
        tokio::time::sleep(Duration::from_secs(20)).await;
        println!("  ended: {:?} after {:.1?}", reader.look(|it| it.ended.take()), began.elapsed());
        let began = Instant::now();
        let after = lines(&self.agent).await?;
        told.put("reports_page_s", began.elapsed().as_secs_f64(), 2.0);
        told.put("reports_lines_more", after.saturating_sub(before) as f64, 40_000.0);
        told.put("reports_serves_s", self.serves().await?, 5.0);
        told.put("reports_peak_mib", self.peak(), 256.0);
        Ok(())
    }

    async fn values(&mut self, told: &mut Told) -> Result<()> {
        let first = SERVICES * EACH;
        register(&self.etcd, (first..2 * first).map(instance)).await?;
        for number in 0..10 {
            self.etcd.put(&format!("/services/a/{number}"), &"x".repeat(1 << 20)).await?;
        }
        let far = Proxy::to(self.etcd.addr()).await?;
        far.set(NetworkFault::Delay(Duration::from_millis(2)));
        let began = Instant::now();
        let mut agent = Agent::builder().etcd(format!("http://{}", far.addr())).launch()?;
        agent.wait_ready(PATIENCE).await?;
        told.put("values_start_s", began.elapsed().as_secs_f64(), 5.0);
        told.put("values_peak_mib", peak_mib(agent.process().pid()), 192.0);
        Ok(())
    }

    async fn frozen(&mut self, told: &mut Told) -> Result<()> {
        self.etcd.process().stop();
        let began = Instant::now();
        loop {
            let reply = http::get(self.agent.admin(), "/readyz").await?;
            if reply.status != 200 {
                println!("  says: {}", reply.text().lines().next().unwrap_or_default());
                break;
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::new("ready beside a registry that says nothing"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let late = began.elapsed().saturating_sub(RECONCILE);
        told.put("frozen_ready_too_long_s", late.as_secs_f64(), 10.0);
        self.etcd.process().signal(libc::SIGCONT);
        Ok(())
    }
}

/// The endpoint of this number, of all beside the one that is asked for.
fn instance(number: usize) -> Instance {
    let [.., high, low] = (number as u32).to_be_bytes();
    let at = std::net::SocketAddr::from(([127, 5, high, low], 9));
    Instance::new(&service(number / EACH), &format!("e{}", number % EACH), at)
}

async fn register(etcd: &Etcd, instances: impl Iterator<Item = Instance>) -> Result<()> {
    let mut client = Client::connect([etcd.url()], None).await.map_err(failed)?;
    let put = |it: Instance| TxnOp::put(it.key(), it.value().to_string(), None);
    let all: Vec<TxnOp> = instances.map(put).collect();
    commit(&mut client, &all).await
}

fn service(number: usize) -> String {
    format!("beside-{number:04}")
}

/// A report that nobody's traffic is behind.
fn forged(number: u64) -> Up {
    let endpoint = |at: u64| EndpointReport {
        id: format!("forged-{number}-{at}"),
        requests: number,
        failures: 0,
        in_flight: 0,
        latency_us: 1_000,
        state: BreakerState::Closed,
    };
    let requests = (100..600).map(|code| RequestCount { method: 1, code, count: number }).collect();
    let services = vec![
        ServiceReport {
            service: service((number % 1_000) as usize),
            requests,
            endpoints: (0..100).map(endpoint).collect(),
            ..ServiceReport::default()
        },
        ServiceReport { service: format!("forged-{number}"), ..ServiceReport::default() },
    ];
    let counters = vec![(format!("forged_{number}"), number)];
    Up::Report(Report { worker: number, version: Version::default(), services, counters })
}

fn size(up: &Up) -> usize {
    use pintle_contract::Message as _;
    up.encode().len()
}

#[derive(Clone, PartialEq, prost::Message)]
struct Node {
    #[prost(string, tag = "1")]
    id: String,
}

/// As much of it as it takes to ask for everything.
#[derive(Clone, PartialEq, prost::Message)]
struct DiscoveryRequest {
    #[prost(message, optional, tag = "2")]
    node: Option<Node>,
    #[prost(string, repeated, tag = "3")]
    resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    type_url: String,
}

/// Streams on one connection that are never read.
struct Discoveries {
    _held: Vec<::http::Response<hyper::body::Incoming>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Discoveries {
    async fn open(socket: &Path, count: usize) -> Result<Self> {
        use prost::Message as _;
        let io = TokioIo::new(UnixStream::connect(socket).await?);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        let connection = tokio::spawn(async move {
            // That it ends is what the bench is about.
            let _ = connection.await;
        });
        let request = DiscoveryRequest {
            node: Some(Node { id: "greedy".into() }),
            resource_names: (0..SERVICES).map(service).collect(),
            type_url: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment".into(),
        };
        let mut held = Vec::new();
        for _ in 0..count {
            let asked: std::result::Result<_, std::convert::Infallible> =
                Ok(Frame::data(framed(&request.encode_to_vec())));
            let up = stream::iter([asked]).chain(stream::pending());
            let path = "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints";
            let request = ::http::Request::post(format!("http://agent{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(StreamBody::new(up.boxed()))?;
            let Ok(Ok(answer)) =
                tokio::time::timeout(Duration::from_secs(5), sender.send_request(request)).await
            else {
                break;
            };
            held.push(answer);
        }
        Ok(Self { _held: held, connection })
    }
}

impl Drop for Discoveries {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn run(options: &Options) -> Result<(Value, Vec<String>)> {
    let mut told = Told::default();
    let asked = |case: &&str| options.case.as_deref().is_none_or(|it| it == *case);
    for case in CASES.into_iter().filter(asked) {
        println!("{case}:");
        let mut world = World::start().await?;
        match case {
            "opinions" => world.opinions(&mut told).await?,
            "streams" => world.streams(&mut told).await?,
            "silent" => world.silent(&mut told).await?,
            "reports" => world.reports(&mut told).await?,
            "values" => world.values(&mut told).await?,
            _ => world.frozen(&mut told).await?,
        }
        // One that gave way is no trap and no end: it is still there.
        if !world.agent.process().is_running() {
            told.1.push(format!("{case}: the agent has ended"));
        }
        drop(world.upstream);
    }
    let figures: serde_json::Map<String, Value> =
        told.0.into_iter().map(|(name, value)| (name, json!(value))).collect();
    Ok((Value::Object(figures), told.1))
}

#[tokio::main]
async fn main() -> ExitCode {
    pintle_benches::conclude("siege", |options: &Options| &options.run, run).await
}
