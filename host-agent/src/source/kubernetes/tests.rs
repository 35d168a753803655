//! The source before a server that speaks the API server's protocol.

use std::sync::Arc;
use std::time::Duration;

use pintle_contract::Health;
use pintle_state::Snapshot;
use pintle_tests::assert_eventually;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::*;
use crate::source::{self, Running, SourcesConfig, StateConfig};

const SOON: Duration = Duration::from_secs(10);

struct Agent {
    running: Running,
    shutdown: CancellationToken,
}

impl Agent {
    fn start(kubernetes: KubernetesConfig) -> Self {
        let allow = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        let config = SourcesConfig {
            agent: "test".into(),
            kubernetes: Some(kubernetes),
            // Nobody listens at these addresses; who may go is not the question here.
            state: StateConfig { allow, protect: false, ..StateConfig::default() },
            ..SourcesConfig::default()
        };
        let shutdown = CancellationToken::new();
        let running = source::start(config, |_| Ok(()), shutdown.clone());
        Self { running, shutdown }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.running.snapshots.borrow().clone()
    }

    /// The ids of a service's endpoints.
    fn ids(&self, service: &str) -> Vec<String> {
        let snapshot = self.snapshot();
        let endpoints = snapshot.services.get(service).map(|it| it.table.endpoints.clone());
        endpoints.unwrap_or_default().into_iter().map(|endpoint| endpoint.id).collect()
    }

    fn status(&self) -> crate::link::SourceStatus {
        self.running.sources.borrow().kubernetes.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn config(cluster: &Cluster) -> KubernetesConfig {
    KubernetesConfig { kubeconfig: Some(cluster.good_kubeconfig()), ..KubernetesConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_come_change_and_go_with_their_slices() {
    let cluster = Cluster::start().await;
    cluster.put("default", "orders", "orders-x", &[("o-1", "10.0.0.1"), ("o-2", "10.0.0.2")]);
    cluster.put("shop", "cart", "cart-x", &[("c-1", "10.0.1.1")]);
    let agent = Agent::start(config(&cluster));
    assert_eventually!(SOON, agent.ids("orders.default") == ["o-1", "o-2"]);
    assert_eventually!(SOON, agent.ids("cart.shop") == ["c-1"]);
    assert_eventually!(SOON, !agent.snapshot().stale);
    cluster.put("default", "orders", "orders-x", &[("o-2", "10.0.0.2"), ("o-3", "10.0.0.3")]);
    assert_eventually!(SOON, agent.ids("orders.default") == ["o-2", "o-3"]);
    // One that terminates and still serves is drained.
    cluster.put_slice(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "cart-x", "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "cart"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.1.1"], "targetRef": {"name": "c-1"},
            "conditions": {"ready": false, "serving": true, "terminating": true}}],
    }));
    let health = || {
        let snapshot = agent.snapshot();
        let cart = snapshot.services.get("cart.shop");
        cart.and_then(|it| it.table.endpoints.first().map(|endpoint| endpoint.health))
    };
    assert_eventually!(SOON, health() == Some(Health::Draining));
    cluster.remove("default", "orders-x");
    assert_eventually!(SOON, agent.ids("orders.default").is_empty());
    assert_eq!(agent.ids("cart.shop"), ["c-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_where_it_was_and_is_listed_anew_where_the_past_is_gone() {
    let cluster = Cluster::start().await;
    cluster.put("default", "orders", "orders-x", &[("o-1", "10.0.0.1")]);
    let agent = Agent::start(config(&cluster));
    assert_eventually!(SOON, agent.ids("orders.default") == ["o-1"]);
    let lists =
        |cluster: &Cluster| cluster.asked().iter().filter(|it| it.starts_with("list")).count();
    // Cut in the middle: the next watch begins at the last revision, and nothing is listed.
    let asked = cluster.asked().len();
    cluster.cut();
    cluster.put("default", "orders", "orders-x", &[("o-2", "10.0.0.2")]);
    assert_eventually!(SOON, agent.ids("orders.default") == ["o-2"]);
    assert!(cluster.asked().len() > asked);
    assert_eq!(lists(&cluster), 1);
    // What was removed while the past was forgotten is found by the listing.
    for (by_status, expect) in [(true, 2), (false, 3)] {
        cluster.put("default", "orders", "orders-y", &[("o-9", "10.0.0.9")]);
        assert_eventually!(SOON, agent.ids("orders.default") == ["o-2", "o-9"]);
        cluster.remove("default", "orders-y");
        cluster.compact(by_status);
        cluster.cut();
        assert_eventually!(SOON, lists(&cluster) == expect);
        assert_eventually!(SOON, agent.ids("orders.default") == ["o-2"]);
    }
    assert_eventually!(SOON, agent.status().connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_selectors_and_namespaces_are_asked_for_and_a_throttled_reader_waits() {
    let cluster = Cluster::start().await;
    for i in 0..1_203 {
        let address = format!("10.1.{}.{}", i / 200, i % 200 + 1);
        cluster.put(
            "default",
            "orders",
            &format!("orders-{i:04}"),
            &[(&format!("o-{i:04}"), &address)],
        );
    }
    cluster.put("default", "other", "other-x", &[("x-1", "10.0.0.1")]);
    cluster.put("shop", "orders", "orders-x", &[("s-1", "10.0.2.1")]);
    cluster.put("hidden", "orders", "orders-x", &[("h-1", "10.0.3.1")]);
    cluster.throttle(1);
    let began = Instant::now();
    let agent = Agent::start(KubernetesConfig {
        namespaces: vec!["default".into(), "shop".into()],
        selector: Some("team=orders".into()),
        ..config(&cluster)
    });
    assert_eventually!(SOON, agent.ids("orders.default").len() == 1_203);
    assert_eventually!(SOON, agent.ids("orders.shop") == ["s-1"]);
    assert!(began.elapsed() >= Duration::from_secs(1), "the server asked to wait for a second");
    let snapshot = agent.snapshot();
    assert_eq!(snapshot.services.keys().collect::<Vec<_>>(), ["orders.default", "orders.shop"]);
    let pages = cluster.asked().iter().filter(|it| it.starts_with("list limit=500")).count();
    assert!(pages >= 4, "three pages and one of the other namespace: {:?}", cluster.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_denies_says_so_and_what_was_served_stays() {
    let cluster = Cluster::start().await;
    cluster.put("default", "orders", "orders-x", &[("o-1", "10.0.0.1")]);
    let denied = Agent::start(KubernetesConfig {
        kubeconfig: Some(cluster.kubeconfig("another")),
        ..KubernetesConfig::default()
    });
    let error = || denied.status().error.unwrap_or_default();
    assert_eventually!(SOON, error().contains("Unauthorized"));
    let absent = Agent::start(KubernetesConfig {
        kubeconfig: Some("/nonexistent/config".into()),
        ..KubernetesConfig::default()
    });
    let error = || absent.status().error.unwrap_or_default();
    assert_eventually!(SOON, error().contains("/nonexistent/config"));
    let agent = Agent::start(config(&cluster));
    assert_eventually!(SOON, agent.ids("orders.default") == ["o-1"]);
    drop(cluster);
    assert_eventually!(SOON, agent.status().error.is_some() && !agent.status().connected);
    assert_eq!(agent.ids("orders.default"), ["o-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_can_not_be_served_is_listed_with_what_to_set() {
    let cluster = Cluster::start().await;
    cluster.put_slice(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "orders-x", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "orders"}},
        "ports": [{"name": "http", "port": 8080}, {"name": "grpc", "port": 9000}],
        "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"name": "o-1"}}],
    }));
    // Outside of what may be an endpoint's address.
    cluster.put("default", "far", "far-x", &[("f-1", "127.0.0.1"), ("f-2", "10.0.0.9")]);
    let agent = Agent::start(config(&cluster));
    let listed = |key: &str, text: &str| {
        let snapshot = agent.snapshot();
        let is = |it: &&pintle_state::Rejected| it.source == "kubernetes" && it.key == key;
        snapshot.rejected.iter().find(is).is_some_and(|it| it.detail.contains(text))
    };
    assert_eventually!(SOON, listed("orders.default", "set kubernetes.port"));
    assert_eventually!(SOON, agent.ids("far.default") == ["f-2"]);
    // Mended, it is served and listed no more.
    cluster.put("default", "orders", "orders-x", &[("o-1", "10.0.0.1")]);
    assert_eventually!(SOON, agent.ids("orders.default") == ["o-1"]);
    assert_eventually!(SOON, !listed("orders.default", ""));
}
