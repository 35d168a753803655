//! `select.max_requests` on a real Envoy: what is full is passed over, and when all are the answer
//! is a local one that says so.

use std::time::Duration;

use pintle_tests::{Behaviour, Fault, Latency, Load, Upstream, assert_eventually};
use serde_json::json;

use crate::support::{Held, ORDERS, SOON, World, ask};

const LIMIT: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_worker_keeps_the_limit_exactly_and_says_that_all_are_full() {
    let mut world = World::start(3).await;
    let envoy = world.envoy_with(world.config(), 1).await;
    world.policy(json!({"select": {"max_requests": LIMIT}})).await;
    world.all(&Behaviour::failing(Fault::Hang));
    let mut held = Held::default();
    for _ in 0..LIMIT * 3 {
        held.send(&envoy, &world.upstreams, &[]).await;
    }
    let in_flight = world.upstreams.iter().map(Upstream::in_flight).collect::<Vec<_>>();
    assert_eq!(in_flight, [LIMIT; 3]);
    for _ in 0..5 {
        let reply = ask(&envoy, &[]).await;
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(reply.header("x-pintle-reason"), Some("full"));
        assert_eq!(reply.header("retry-after"), Some("1"));
        let call = ask(&envoy, &[("content-type", "application/grpc")]).await;
        assert_eq!(call.header("grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");
    }
    let count = async |name: &str| {
        envoy.stat(&format!("wasmcustom.pintle_{name}_total")).await.unwrap_or(0)
    };
    assert_eq!(count("full").await, 10);
    for other in ["no_endpoint", "panic", "breaker_opened"] {
        assert_eq!(count(other).await, 0, "{other}");
    }
    world.all(&Behaviour::default());
    held.release(&world.upstreams).await;
    assert_eventually!(SOON, ask(&envoy, &[]).await.status == 200);
}

/// A worker knows its own requests exactly, and the other's as they were a quarter of a second ago:
/// a burst may meet the limit once in each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_more_than_all_can_take_no_endpoint_gets_more_than_the_stated_slack() {
    let mut world = World::start(3).await;
    let envoy = world.envoy(world.config()).await;
    world.policy(json!({"select": {"max_requests": LIMIT}})).await;
    world.all(&Behaviour::slow(Latency::Fixed(Duration::from_millis(100))));
    let load = Load::to(envoy.addr()).host(ORDERS).connections(48);
    let report = load.rate(300.0).run_for_secs(3.0).await;
    let peaks = world.upstreams.iter().map(Upstream::peak_in_flight).collect::<Vec<_>>();
    assert!(peaks.iter().all(|peak| (LIMIT..=LIMIT * 2).contains(peak)), "{peaks:?}");
    let full = envoy.stat("wasmcustom.pintle_full_total").await.unwrap_or(0) as usize;
    assert!(full > 0, "{}", report.summary());
    assert_eq!(report.failed(), full, "nothing else failed: {}", report.summary());
    // Three times three at 100 ms each are 90 a second, if nobody were refused without need.
    assert!(report.total() - full > 3 * 90 / 2, "{}", report.summary());

    world.all(&Behaviour::default());
    let report = Load::to(envoy.addr()).host(ORDERS).rate(100.0).run_for_secs(1.0).await;
    assert_eq!(report.failed(), 0, "with room for all nobody is refused: {}", report.summary());
}
