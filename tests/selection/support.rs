//! One service on real parts: etcd, the agent, upstreams, and an Envoy with the shipped
//! configuration.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::http::{HeaderName, Request};
use bytes::Bytes;
use http_body_util::Full;
use pintle_tests::http::{self, Reply};
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Instance, Upstream, Written, assert_eventually,
    tools,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// How long anything may take before a test gives up.
pub const SOON: Duration = Duration::from_secs(10);

/// The service of the shipped configuration.
pub const ORDERS: &str = "orders";

/// A registry, an agent and what they know of.
pub struct World {
    pub etcd: Etcd,
    pub agent: Agent,
    pub upstreams: Vec<Upstream>,
    written: Written,
}

/// Upstreams `u00`, `u01`, ... in the order in which the table will have them: by id.
pub async fn upstreams(count: usize) -> Vec<Upstream> {
    let mut all = Vec::new();
    for number in 0..count {
        all.push(Upstream::start(&format!("u{number:02}")).await.unwrap());
    }
    all
}

impl World {
    /// So many healthy endpoints of `orders`.
    pub async fn start(count: usize) -> Self {
        Self::with(count, |_, instance| instance).await
    }

    /// The same, each changed before it is registered.
    pub async fn with(count: usize, change: impl Fn(usize, Instance) -> Instance) -> Self {
        let etcd = Etcd::start().await.unwrap();
        let upstreams = upstreams(count).await;
        let mut written = Written { revision: 0 };
        for (number, upstream) in upstreams.iter().enumerate() {
            let instance = change(number, Instance::of(ORDERS, upstream));
            written = etcd.register(&instance).await.unwrap();
        }
        let agent = Agent::builder().etcd(etcd.url()).start().await.unwrap();
        Self { etcd, agent, upstreams, written }
    }

    /// The shipped configuration with this agent and the module.
    pub fn config(&self) -> EnvoyConfig {
        self.adapt(EnvoyConfig::shipped().unwrap())
    }

    /// Any configuration with this agent and the module. Two Envoys of one agent are two nodes.
    pub fn adapt(&self, config: EnvoyConfig) -> EnvoyConfig {
        static NODES: AtomicU32 = AtomicU32::new(0);
        let mut config = config.agent_socket(self.agent.socket()).wasm(tools::module().unwrap());
        let node = NODES.fetch_add(1, Ordering::Relaxed);
        *config.at("/node/id") = json!(format!("node-{node}"));
        config
    }

    /// Two workers, all of which have the tables.
    pub async fn envoy(&self, config: EnvoyConfig) -> Envoy {
        self.envoy_with(config, 2).await
    }

    /// The same with so many workers.
    pub async fn envoy_with(&self, config: EnvoyConfig, workers: u32) -> Envoy {
        let envoy = Envoy::start_with(config, workers, &[]).await.unwrap();
        self.agent.settled(self.written).await.unwrap();
        envoy
    }

    /// `/pintle/policies/orders`, in force in every worker when this returns.
    pub async fn policy(&mut self, policy: Value) {
        let done = self.etcd.put("/pintle/policies/orders", &policy.to_string()).await;
        self.written = done.unwrap();
        self.settled().await;
    }

    /// Registers an instance, or changes it; known to every worker when this returns.
    pub async fn register(&mut self, instance: &Instance) {
        self.written = self.etcd.register(instance).await.unwrap();
        self.settled().await;
    }

    /// Registers an upstream for another service, before any Envoy is there.
    pub async fn register_of(&mut self, service: &str, upstream: &Upstream) {
        self.written = self.etcd.register(&Instance::of(service, upstream)).await.unwrap();
    }

    /// Deletes an instance; known to every worker when this returns.
    pub async fn deregister(&mut self, id: &str) {
        self.written = self.etcd.deregister(ORDERS, id).await.unwrap();
        self.settled().await;
    }

    async fn settled(&self) {
        self.agent.settled(self.written).await.unwrap();
    }

    /// The entry of an upstream as it was first registered.
    pub fn instance(&self, number: usize) -> Instance {
        Instance::of(ORDERS, &self.upstreams[number])
    }

    /// What every upstream does from now on.
    pub fn all(&self, behaviour: &Behaviour) {
        self.upstreams.iter().for_each(|upstream| upstream.set(behaviour.clone()));
    }
}

/// A request to `orders` with these headers.
pub fn request(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = http::request(ORDERS, "GET", path, "").unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

/// One such request, and its answer.
pub async fn ask_at(envoy: &Envoy, path: &str, headers: &[(&str, &str)]) -> Reply {
    http::send(envoy.addr(), request(path, headers)).await.unwrap()
}

/// Requests that wait for an answer until this is dropped, and where each of them went.
#[derive(Default)]
pub struct Held {
    tasks: Vec<JoinHandle<()>>,
}

impl Held {
    /// Sends one and returns, once it has arrived, the index of the upstream that holds it. All
    /// upstreams must hang.
    pub async fn send(
        &mut self,
        envoy: &Envoy,
        upstreams: &[Upstream],
        headers: &[(&str, &str)],
    ) -> usize {
        let before: Vec<usize> = upstreams.iter().map(Upstream::requests).collect();
        let exchange = http::send(envoy.addr(), request("/", headers));
        self.tasks.push(tokio::spawn(async move { drop(exchange.await) }));
        let mut arrived;
        assert_eventually!(SOON, {
            arrived = upstreams.iter().zip(&before).position(|(u, before)| u.requests() > *before);
            arrived.is_some()
        });
        arrived.unwrap()
    }

    /// Every second client goes away; Envoy and the upstreams know when this returns.
    pub async fn halve(&mut self, upstreams: &[Upstream]) {
        let mut number = 0;
        self.tasks.retain(|task| {
            number += 1;
            if number % 2 == 0 {
                task.abort();
            }
            number % 2 != 0
        });
        let left = self.tasks.len();
        assert_eventually!(SOON, in_flight(upstreams) == left);
    }

    /// All go away.
    pub async fn release(mut self, upstreams: &[Upstream]) {
        self.tasks.drain(..).for_each(|task| task.abort());
        assert_eventually!(SOON, in_flight(upstreams) == 0);
    }
}

fn in_flight(upstreams: &[Upstream]) -> usize {
    upstreams.iter().map(Upstream::in_flight).sum()
}

/// The same at `/`.
pub async fn ask(envoy: &Envoy, headers: &[(&str, &str)]) -> Reply {
    ask_at(envoy, "/", headers).await
}

/// Which upstream answered.
pub fn who(reply: &Reply) -> String {
    reply.header("x-upstream").unwrap_or("-").to_string()
}

/// Who answers so many requests, counted.
pub async fn spread(
    envoy: &Envoy,
    count: usize,
    headers: &[(&str, &str)],
) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let reply = ask(envoy, headers).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        *seen.entry(who(&reply)).or_default() += 1;
    }
    seen
}
