//! A whole installation for one test.

use std::time::Duration;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Instance, Latency, Load, Nats, Proxy, Upstream,
    assert_eventually, http,
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
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
        let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
        Self::of(etcd, nats, agent, plugin).await
    }

    /// With links that can break between the agent and etcd, and between the agent and NATS.
    pub async fn linked() -> (Self, Proxy, Proxy) {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
        let (to_etcd, to_nats) =
            tokio::try_join!(Proxy::to(etcd.addr()), Proxy::to(nats.addr())).expect("links");
        let agent = Agent::builder()
            .etcd(format!("http://{}", to_etcd.addr()))
            .nats(format!("nats://{}", to_nats.addr()))
            .start()
            .await
            .expect("the agent");
        (Self::of(etcd, nats, agent, |_| {}).await, to_etcd, to_nats)
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
            let upstream = quick(&format!("orders-{number}")).await;
            self.etcd.register(&Instance::of("orders", &upstream)).await.expect("a registration");
            upstreams.push(upstream);
        }
        let last = upstreams.last().expect("an upstream");
        assert_eventually!(PATIENCE, {
            self.get("/").await;
            last.requests() > 0
        });
        upstreams
    }

    pub fn load(&self, rate: f64) -> Load {
        Load::to(self.envoy.addr()).host("orders").rate(rate).timeout(Duration::from_secs(5))
    }

    /// The status of one request.
    pub async fn get(&self, path: &str) -> u16 {
        let request = http::request("orders", "GET", path, "").expect("a request");
        http::send(self.envoy.addr(), request).await.map_or(0, |reply| reply.status)
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

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The value below which `share` of the sorted values lie.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values[rank.saturating_sub(1)]
}
