//! Ingress and egress gateways with the files that sidecars have, and `gateway.yaml` for the rest.

use pintle_tests::{Agent, Etcd, Instance, Nats, Upstream, assert_eventually};

use super::proxy::Proxy;
use super::shape::Shape;
use super::{ask, load};
use crate::PATIENCE;

const OUTSIDE: &str = "orders.example.com";
const BILLING: &str = "billing.pintle.internal";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_choose_by_the_registry_and_obey_no_clients_header() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let mut pods = Vec::new();
    for name in ["orders-0", "orders-1", "unregistered"] {
        pods.push(Upstream::start(name).await.expect("a pod"));
    }
    let billing = Upstream::start("billing-0").await.expect("an upstream");
    let mut gateway = Proxy::gateway(&agent);
    let known: Vec<_> = pods.iter().collect();
    gateway.labels.push("pintle-outside");
    gateway.service(&Shape::new("orders.shop.svc.cluster.local", &known));
    for file in ["pintle", "orders", "outside", "gateway"] {
        gateway.apply(&format!("istio/{file}.yaml"));
    }
    let (envoy, _istiod) = gateway.start().await;
    assert_eq!(envoy.stat("cluster_manager.cds.update_rejected").await, Some(0));

    // Nobody is registered: Istio's own balancing serves, and a client's header chooses nothing.
    let unregistered = pods[2].addr().to_string();
    let chosen = [("x-pintle-endpoints", unregistered.as_str())];
    for _ in 0..60 {
        assert_eq!(ask(&envoy, OUTSIDE, &chosen).await.status, 200);
    }
    assert!(pods.iter().all(|pod| pod.requests() > 0), "every one of them is asked");

    for upstream in &pods[..2] {
        etcd.register(&Instance::of("orders", upstream)).await.expect("a registration");
    }
    let last = etcd.register(&Instance::of("billing", &billing)).await.expect("a registration");
    agent.settled(last).await.expect("every worker knows");
    assert_eventually!(PATIENCE, {
        pods.iter().for_each(Upstream::forget);
        let report = load(&envoy, OUTSIDE).run_for_secs(0.3).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        !report.by_upstream().contains_key("unregistered")
    });
    pods.iter().for_each(Upstream::forget);
    for _ in 0..20 {
        assert_eq!(ask(&envoy, OUTSIDE, &chosen).await.status, 200);
    }
    assert_eq!(pods[2].requests(), 0);

    // What goes out, to hosts that the agent brings.
    assert_eventually!(PATIENCE, ask(&envoy, BILLING, &chosen).await.status == 200);
    for seen in pods.iter().chain([&billing]).flat_map(Upstream::seen) {
        assert!(seen.headers.keys().all(|name| !name.as_str().starts_with("x-pintle")));
    }
    assert_eq!(envoy.vm_reloads().await.expect("stats"), 0);
}

/// There `override_host` would obey it, were it not removed first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_the_module_obeys_no_clients_header() {
    let etcd = Etcd::start().await.expect("etcd");
    let agent = Agent::builder().etcd(etcd.url()).start().await.expect("the agent");
    let mut pods = Vec::new();
    for name in ["orders-0", "orders-1", "orders-2"] {
        pods.push(Upstream::start(name).await.expect("a pod"));
    }
    let mut gateway = Proxy::gateway(&agent);
    let known: Vec<_> = pods.iter().collect();
    gateway.service(&Shape::new("orders.shop.svc.cluster.local", &known));
    for file in ["pintle", "orders", "gateway"] {
        gateway.apply(&format!("istio/{file}.yaml"));
    }
    gateway.without_the_module();
    let (envoy, _istiod) = gateway.start().await;
    let one = pods[2].addr().to_string();
    for _ in 0..60 {
        assert_eq!(ask(&envoy, OUTSIDE, &[("x-pintle-endpoints", &one)]).await.status, 200);
    }
    assert!(pods.iter().all(|pod| pod.requests() > 0), "every one of them is asked");
}

/// What passes a gateway as it comes (TLS by mode PASSTHROUGH, or TCP) has no connection manager,
/// and so no module: a cluster with our policy balances by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_passes_connections_on_balances_by_itself() {
    let etcd = Etcd::start().await.expect("etcd");
    let agent = Agent::builder().etcd(etcd.url()).start().await.expect("the agent");
    let mut pods = Vec::new();
    for name in ["orders-0", "orders-1", "orders-2"] {
        pods.push(Upstream::start(name).await.expect("a pod"));
    }
    etcd.register(&Instance::of("orders", &pods[0])).await.expect("a registration");
    let known: Vec<_> = pods.iter().collect();
    for port in [80, 443] {
        let shape = Shape { port, ..Shape::new("orders.shop.svc.cluster.local", &known) };
        let mut gateway = Proxy::tcp(&agent, &shape.cluster());
        gateway.service(&shape);
        gateway.apply("istio/pintle.yaml");
        gateway.apply("istio/orders.yaml");
        let (envoy, _istiod) = gateway.start().await;
        pods.iter().for_each(Upstream::forget);
        for _ in 0..60 {
            assert_eq!(ask(&envoy, "orders.example.com", &[]).await.status, 200);
        }
        assert!(pods.iter().all(|pod| pod.requests() > 0), "every one of them is asked");
    }
}
