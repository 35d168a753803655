//! An installation with as many services as a test has cases, each with its own upstreams.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::http::Request;
use http_body_util::Full;
use pintle_artifact::PINTLE_PATH;
use pintle_tests::http::Reply;
use pintle_tests::{
    Agent, AgentBuilder, Envoy, EnvoyConfig, Etcd, Instance, Nats, Upstream, assert_eventually,
    http,
};
use serde_json::{Value, json};

/// How long anything may take before the test gives up: far above every bound.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Until every worker has heard of a trip, ten times over.
pub const SETTLED: Duration = Duration::from_millis(100);

pub struct World {
    pub etcd: Etcd,
    pub agent: Agent,
    pub envoy: Envoy,
}

/// Breakers that take every endpoint, turns instead of costs, and no panic: whether a breaker is open
/// then shows in the next answer.
pub fn strict(plugin: &mut Value) {
    plugin["service"] = json!({"from": ["cluster_metadata", "authority"]});
    plugin["select"]["strategy"] = json!("round_robin");
    plugin["select"]["panic_percent"] = json!(0);
    plugin["breaker"] = json!({"max_ejection_percent": 100});
}

impl World {
    /// With services of these names, a plugin configuration and an Envoy configuration of the test's.
    pub async fn start(
        services: &[&str],
        plugin: impl FnOnce(&mut Value),
        patch: impl FnOnce(EnvoyConfig) -> EnvoyConfig,
    ) -> Self {
        let etcd = Etcd::start().await.expect("etcd");
        let agent = Agent::builder().etcd(etcd.url());
        Self::of(etcd, agent, services, plugin, patch).await
    }

    /// The same with events.
    pub async fn with_events(
        nats: &Nats,
        services: &[&str],
        plugin: impl FnOnce(&mut Value),
        patch: impl FnOnce(EnvoyConfig) -> EnvoyConfig,
    ) -> Self {
        let etcd = Etcd::start().await.expect("etcd");
        let agent = Agent::with(&etcd, nats);
        Self::of(etcd, agent, services, plugin, patch).await
    }

    async fn of(
        etcd: Etcd,
        agent: AgentBuilder,
        services: &[&str],
        plugin: impl FnOnce(&mut Value),
        patch: impl FnOnce(EnvoyConfig) -> EnvoyConfig,
    ) -> Self {
        let agent = agent.start().await.expect("the agent");
        let envoy = Envoy::start(patch(config(&agent, services, plugin))).await.expect("Envoy");
        Self { etcd, agent, envoy }
    }

    /// Registers these as instances of the service and waits until every worker and Envoy itself know.
    pub async fn serve(&self, service: &str, upstreams: &[&Upstream]) {
        for upstream in upstreams {
            self.etcd.register(&Instance::of(service, upstream)).await.expect("a registration");
        }
        let hosts = async || self.envoy.hosts(service).await.map_or(0, |hosts| hosts.len());
        assert_eventually!(PATIENCE, hosts().await == upstreams.len(), "EDS of {service}");
        self.settled().await;
    }

    /// Waits until every worker holds what the registry says now.
    pub async fn settled(&self) {
        let proxies = async || {
            let reply = http::get(self.agent.admin(), "/v1/proxies").await;
            reply.map(|reply| reply.text()).unwrap_or_default()
        };
        assert_eventually!(PATIENCE, current(&self.agent).await, "{}", proxies().await);
    }

    pub async fn get(&self, service: &str) -> Reply {
        get(&self.envoy, service).await
    }

    /// Sends one after the other until a breaker answers in the endpoint's place, at most `most`; how
    /// many came before it. After `expect` of them every worker is given the time to hear of it.
    pub async fn until_refused(
        &self,
        expect: usize,
        most: usize,
        send: impl AsyncFn() -> bool,
    ) -> usize {
        for sent in 0..most {
            if sent == expect {
                tokio::time::sleep(SETTLED).await;
            }
            if send().await {
                return sent;
            }
        }
        most
    }

    /// Times that the breakers of a service opened, as Envoy's workers told the agent.
    pub async fn trips(&self, service: &str) -> f64 {
        let label = format!("service=\"{service}\"");
        self.agent.metric("circuit_breaker_trips_total", &[&label]).await.unwrap_or_default()
    }

    pub async fn no_traps(&self) {
        assert_eq!(self.envoy.vm_reloads().await.expect("stats"), 0, "no VM was rebuilt");
    }
}

/// The shipped configuration for these services.
pub fn config(agent: &Agent, services: &[&str], plugin: impl FnOnce(&mut Value)) -> EnvoyConfig {
    let mut config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(agent.socket())
        .wasm(PINTLE_PATH)
        .plugin(plugin);
    for service in services.iter().filter(|service| **service != "orders") {
        config = config.service(service);
    }
    config
}

/// Whether every worker of every connected proxy holds the newest version.
pub async fn current(agent: &Agent) -> bool {
    let Ok(reply) = http::get(agent.admin(), "/v1/proxies").await else { return false };
    let proxies = reply.json().unwrap_or_default();
    let proxies = proxies["proxies"].as_array().cloned().unwrap_or_default();
    let whole = |p: &Value| {
        let workers = p["workers"].as_array().map_or(0, Vec::len);
        p["current"] == true && workers > 2 && p["expected"] == workers
    };
    !proxies.is_empty() && proxies.iter().all(whole)
}

pub async fn get(envoy: &Envoy, service: &str) -> Reply {
    let request = http::request(service, "GET", "/", "").expect("a request");
    http::send(envoy.addr(), request).await.expect("an answer")
}

/// A gRPC call without a body.
pub fn call(service: &str) -> Request<Full<bytes::Bytes>> {
    let mut call = http::request(service, "POST", "/pkg.Service/Method", "").expect("a request");
    let kind = ::http::HeaderValue::from_static("application/grpc");
    call.headers_mut().insert("content-type", kind);
    call.headers_mut().insert("te", ::http::HeaderValue::from_static("trailers"));
    call
}

/// Whether the breaker answered, and nobody else.
pub fn refused(reply: &Reply) -> bool {
    reply.header("x-pintle-reason") == Some("no-endpoint")
}

pub async fn upstream(name: &str) -> Upstream {
    Upstream::start(name).await.expect("an upstream")
}

/// `/v1/breakers`, state and reasons by `service/endpoint`.
pub async fn breakers(agent: &Agent) -> BTreeMap<String, String> {
    let reply = http::get(agent.admin(), "/v1/breakers").await.expect("the breakers");
    let rows = reply.json().expect("JSON")["breakers"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    rows.iter()
        .map(|row| {
            let name = format!("{}/{}", text(&row["service"]), text(&row["endpoint"]));
            (name, text(&row["breaker"]["state"]))
        })
        .collect()
}

/// A thread on every core that wakes each half a millisecond and writes down when it could not: then
/// somebody else had the core, and what came late is not the fault of who is measured.
pub struct Stalls {
    seen: Arc<Mutex<Vec<(Instant, Instant)>>>,
    done: Arc<AtomicBool>,
}

impl Stalls {
    pub fn watch() -> Self {
        let stalls = Self { seen: Arc::default(), done: Arc::default() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for core in 0..cores {
            let (seen, done) = (stalls.seen.clone(), stalls.done.clone());
            std::thread::spawn(move || {
                stay_on(core);
                let mut last = Instant::now();
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_micros(500));
                    let now = Instant::now();
                    if now - last > Duration::from_micros(1_500) {
                        seen.lock().expect("the stalls").push((last, now));
                    }
                    last = now;
                }
            });
        }
        stalls
    }

    /// Whether a core was taken at any time between the two.
    pub fn between(&self, from: Instant, to: Instant) -> bool {
        let seen = self.seen.lock().expect("the stalls");
        seen.iter().any(|(began, ended)| *began < to && *ended > from)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

fn stay_on(core: usize) {
    // SAFETY: a set of cores is plain bits, of which all zero is one, and it outlives both calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set);
    }
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

pub fn since(later: Instant, earlier: Instant) -> f64 {
    millis(later.saturating_duration_since(earlier))
}

/// The value below which `share` of the values lie.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
