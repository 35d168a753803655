//! A whole installation for one test.

use std::borrow::Borrow;
use std::time::{Duration, Instant};

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, AgentBuilder, Behaviour, Envoy, EnvoyConfig, Etcd, Instance, Latency, Load, Nats, Proxy,
    Upstream, assert_eventually, http,
};
use serde_json::Value;

/// How long anything may take before the test gives up: far above every bound.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct World {
    pub etcd: Etcd,
    pub nats: Nats,
    pub agent: Agent,
    pub envoy: Envoy,
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// With a changed plugin configuration.
    pub async fn with(plugin: impl FnOnce(&mut Value)) -> Self {
        Self::changed(|agent| agent, plugin).await
    }

    /// With a changed agent and a changed plugin configuration.
    pub async fn changed(
        agent: impl FnOnce(AgentBuilder) -> AgentBuilder,
        plugin: impl FnOnce(&mut Value),
    ) -> Self {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
        let agent = agent(Agent::with(&etcd, &nats)).start().await.expect("the agent");
        Self::of(etcd, nats, agent, plugin).await
    }

    /// With links that can break between the agent and etcd, and between the agent and NATS.
    pub async fn linked(plugin: impl FnOnce(&mut Value)) -> (Self, Proxy, Proxy) {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
        let (to_etcd, to_nats) =
            tokio::try_join!(Proxy::to(etcd.addr()), Proxy::to(nats.addr())).expect("links");
        let agent = Agent::builder()
            .etcd(format!("http://{}", to_etcd.addr()))
            .nats(format!("nats://{}", to_nats.addr()))
            .start()
            .await
            .expect("the agent");
        (Self::of(etcd, nats, agent, plugin).await, to_etcd, to_nats)
    }

    async fn of(etcd: Etcd, nats: Nats, agent: Agent, plugin: impl FnOnce(&mut Value)) -> Self {
        let config = EnvoyConfig::shipped()
            .expect("the shipped configuration")
            .agent_socket(agent.socket())
            .wasm(PINTLE_PATH)
            .plugin(plugin);
        let envoy = Envoy::start(config).await.expect("Envoy");
        Self { etcd, nats, agent, envoy }
    }

    /// So many instances of `orders`, registered and served.
    pub async fn orders(&self, count: usize) -> Vec<Upstream> {
        let mut upstreams = Vec::new();
        for number in 1..=count {
            upstreams.push(self.newcomer(&format!("orders-{number}")).await);
        }
        let last = upstreams.last().expect("an upstream");
        assert_eventually!(PATIENCE, {
            self.get("/").await;
            last.requests() > 0
        });
        upstreams
    }

    /// Waits until every worker has a table and so chooses for itself.
    pub async fn chosen(&self) {
        let unknown = async || self.envoy.stat("wasmcustom.pintle_unknown_service_total").await;
        assert_eventually!(PATIENCE, {
            let before = unknown().await;
            self.load(200.0).run_for_secs(0.1).await;
            unknown().await == before
        });
    }

    pub fn load(&self, rate: f64) -> Load {
        Load::to(self.envoy.addr()).host("orders").rate(rate).timeout(Duration::from_secs(5))
    }

    /// The status of one request.
    pub async fn get(&self, path: &str) -> u16 {
        let request = http::request("orders", "GET", path, "").expect("a request");
        http::send(self.envoy.addr(), request).await.map_or(0, |reply| reply.status)
    }

    /// Puts one more instance of `orders` into the registry.
    pub async fn newcomer(&self, name: &str) -> Upstream {
        let upstream = quick(name).await;
        self.etcd.register(&Instance::of("orders", &upstream)).await.expect("a registration");
        upstream
    }

    /// Whether the agent says that it is connected to `etcd` or `nats`.
    pub async fn connected(&self, source: &str) -> bool {
        let label = format!("source=\"{source}\"");
        self.agent.metric("pintle_source_connected", &[&label]).await == Some(1.0)
    }

    /// How many removals the agent holds back.
    pub async fn held(&self) -> f64 {
        self.agent.metric("pintle_removals_waiting", &[]).await.expect("the metric")
    }

    /// How often a breaker opened in Envoy.
    pub async fn opened(&self) -> u64 {
        self.envoy.stat("wasmcustom.pintle_breaker_opened_total").await.unwrap_or(0)
    }

    pub async fn no_traps(&self) {
        assert_eq!(self.envoy.vm_reloads().await.expect("stats"), 0, "no VM was rebuilt");
    }
}

/// An upstream that takes as long as a quick service does.
pub async fn quick(name: &str) -> Upstream {
    let upstream = Upstream::start(name).await.expect("an upstream");
    let latency = Latency::Uniform(Duration::from_millis(1), Duration::from_millis(3));
    upstream.set(Behaviour::slow(latency));
    upstream
}

/// Endpoints take turns, so that neither the cost of a failure keeps requests away before the
/// breaker does, nor that of an answer which the machine held up.
pub fn in_turns(plugin: &mut Value) {
    plugin["select"]["strategy"] = "round_robin".into();
}

/// Each of them is sent requests from now on.
pub async fn everybody_serves<U: Borrow<Upstream>>(upstreams: &[U]) {
    let now = Instant::now();
    for upstream in upstreams.iter().map(Borrow::borrow) {
        assert_eventually!(PATIENCE, upstream.requests_since(now) > 0, "{}", upstream.name());
    }
}

/// How long after `moment` the upstream got its first request.
pub async fn first_after(upstream: &Upstream, moment: Instant) -> Duration {
    assert_eventually!(PATIENCE, upstream.first_at().is_some(), "{}", upstream.name());
    upstream.first_at().unwrap_or(moment).saturating_duration_since(moment)
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value below which `share` of the sorted values lie.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values[rank.saturating_sub(1)]
}
