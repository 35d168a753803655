//! An installation with as many services as a test has cases, each with its own upstreams.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::http::Request;
use http_body_util::Full;
use pintle_artifact::PINTLE_PATH;
use pintle_tests::http::Reply;
use pintle_tests::{
    Agent, AgentBuilder, Envoy, EnvoyConfig, Etcd, Instance, Nats, Upstream, Written,
    assert_eventually, http,
};
use serde_json::{Value, json};

/// How long anything may take before the test gives up: far above every bound.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Until every worker has heard of a trip, ten times over.
pub const SETTLED: Duration = Duration::from_millis(100);
/// So long after a trip the next request may be let through as the last resort, a stall having held
/// it up.
const LAST_RESORT: Duration = Duration::from_millis(450);

/// Requests that came through until a breaker answered in the endpoint's place.
#[derive(Debug)]
pub struct Sent {
    /// Before it opened.
    pub before: usize,
    /// After that, each a trip of its own.
    pub probes: usize,
}

pub struct World {
    pub etcd: Etcd,
    pub agent: Agent,
    pub envoy: Envoy,
}

/// Breakers that take every endpoint, turns instead of costs, and no panic: whether a breaker is
/// open then shows in the next answer.
pub fn strict(plugin: &mut Value) {
    plugin["service"] = json!({"from": ["cluster_metadata", "authority"]});
    plugin["select"]["strategy"] = json!("round_robin");
    plugin["select"]["panic_percent"] = json!(0);
    plugin["breaker"] = json!({"max_ejection_percent": 100});
}

impl World {
    /// With services of these names, a plugin configuration and an Envoy configuration of the
    /// test's.
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

    /// Registers these as instances of the service and waits until every worker and Envoy itself
    /// know.
    pub async fn serve(&self, service: &str, upstreams: &[&Upstream]) {
        let mut last = None;
        for upstream in upstreams {
            let written = self.etcd.register(&Instance::of(service, upstream)).await;
            last = Some(written.expect("a registration"));
        }
        let hosts = async || self.envoy.hosts(service).await.map_or(0, |hosts| hosts.len());
        assert_eventually!(PATIENCE, hosts().await == upstreams.len(), "EDS of {service}");
        self.settled(last.expect("an instance")).await;
    }

    /// Lays a policy over a service and waits until every worker holds it.
    pub async fn policy(&self, service: &str, policy: Value) {
        let key = format!("/pintle/policies/{service}");
        let written = self.etcd.put(&key, &policy.to_string()).await.expect("a policy");
        self.settled(written).await;
    }

    /// Waits until every worker holds what was written to the registry.
    pub async fn settled(&self, written: Written) {
        settled(&self.agent, written).await;
    }

    pub async fn get(&self, service: &str) -> Reply {
        get(&self.envoy, service).await
    }

    /// Sends one after the other until a breaker answers in the endpoint's place, at most `most`.
    /// After `expect` of them every worker is given the time to hear of it.
    pub async fn until_refused(
        &self,
        expect: usize,
        most: usize,
        send: impl AsyncFn() -> bool,
    ) -> Sent {
        let (mut sent, mut opened) = (Sent { before: 0, probes: 0 }, None);
        while sent.before < most {
            if sent.before == expect && opened.is_none() {
                opened = Some(Instant::now());
                tokio::time::sleep(SETTLED).await;
            }
            if send().await {
                break;
            }
            match opened.is_some_and(|at| at.elapsed() > LAST_RESORT) && sent.probes < 3 {
                true => sent.probes += 1,
                false => sent.before += 1,
            }
        }
        sent
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

/// Waits until every worker of every connected proxy has said that it holds what was written.
pub async fn settled(agent: &Agent, written: Written) {
    agent.settled(written).await.expect("every worker holds it");
    let all = async || {
        let Ok(reply) = http::get(agent.admin(), "/v1/proxies").await else { return false };
        let proxies = reply.json().unwrap_or_default();
        let proxies = proxies["proxies"].as_array().cloned().unwrap_or_default();
        let whole = |p: &Value| {
            let workers = p["workers"].as_array().map_or(0, Vec::len);
            p["current"] == true && workers > 2 && p["expected"] == workers
        };
        !proxies.is_empty() && proxies.iter().all(whole)
    };
    assert_eventually!(PATIENCE, all().await);
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
