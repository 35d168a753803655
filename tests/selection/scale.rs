//! Many services, many workers.

use std::time::{Duration, Instant};

use pintle_tests::{Behaviour, Envoy, EnvoyConfig, Latency, Load, Upstream, Written};
use serde_json::json;

use crate::support::{ORDERS, World};

/// CPU time per request over so many seconds, in microseconds.
async fn cost(envoy: &Envoy, seconds: f64) -> f64 {
    let (before, _) = envoy.usage();
    let load = Load::to(envoy.addr()).host(ORDERS).rate(400.0);
    let report = load.run_for_secs(seconds).await;
    let (after, _) = envoy.usage();
    assert_eq!(report.failed(), 0, "{}", report.summary());
    (after - before).as_secs_f64() * 1e6 / report.total() as f64
}

/// A thousand clusters and routes, and a thousand tables in every worker. Their hosts are static: what
/// is asked here is what the module's tables cost, not what a thousand xDS streams do.
fn crowded(mut config: EnvoyConfig, hosts: &[Upstream]) -> EnvoyConfig {
    let addrs: Vec<_> = hosts.iter().map(Upstream::addr).collect();
    config = config.static_hosts(ORDERS, &addrs);
    for number in 0..1_000 {
        config = config.service(&format!("s-{number:04}"));
    }
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_services_cost_a_request_what_one_does() {
    let world = World::start(3).await;
    let hosts: Vec<_> = world.upstreams.iter().map(Upstream::addr).collect();
    let alone = world.envoy(world.config().static_hosts(ORDERS, &hosts)).await;
    cost(&alone, 1.0).await;
    let one = cost(&alone, 3.0).await;
    drop(alone);

    let mut last = Written { revision: 0 };
    for number in 0..1_000 {
        let service = format!("s-{number:04}");
        for upstream in &world.upstreams {
            let instance = pintle_tests::Instance::of(&service, upstream);
            last = world.etcd.register(&instance).await.unwrap();
        }
    }
    let envoy = Envoy::start(crowded(world.config(), &world.upstreams)).await.unwrap();
    world.agent.settled(last).await.unwrap();
    cost(&envoy, 1.0).await;
    let many = cost(&envoy, 3.0).await;
    let report = Load::to(envoy.addr()).host("s-0999").rate(100.0).run_for_secs(1.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(envoy.stat("wasmcustom.pintle_unknown_service_total").await.unwrap_or(0), 0);
    println!("CPU per request: {one:.0} us with one service, {many:.0} us with 1,001");
    // The machine's own noise is larger than what is looked for; tests/wasm/cost.rs counts exactly.
    assert!(many < one * 1.5 + 50.0, "{one:.0} us with one, {many:.0} us with a thousand");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_is_learned_once_per_envoy_and_not_once_per_worker() {
    let mut world = World::start(10).await;
    let envoy = world.envoy_with(world.config(), 4).await;
    world.policy(json!({"select": {"strategy": "p2c"}})).await;
    world.all(&Behaviour::slow(Latency::Fixed(Duration::from_millis(5))));
    let load = Load::to(envoy.addr()).host(ORDERS).rate(200.0).connections(64).start();
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.upstreams[0].set(Behaviour::slow(Latency::Fixed(Duration::from_millis(400))));
    let ill = Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let report = load.stop().await;
    let sent = world.upstreams[0].requests_since(ill);
    println!("sent to the slow one in 5 s over 4 workers: {sent}; {}", report.summary());
    assert_eq!(report.failed(), 0);
    // Each worker can have one or two under way before the first answer is late anywhere; a fair share
    // would be 100.
    assert!(sent <= 14, "{sent}");
}
