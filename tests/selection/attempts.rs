//! Retries walk the list, and the list is nobody's business but Envoy's.

use std::time::{Duration, Instant};

use pintle_tests::{Behaviour, EnvoyConfig, Fault, Load};
use serde_json::json;

use crate::support::{ORDERS, World, ask};

fn retrying(mut config: EnvoyConfig, times: u32) -> EnvoyConfig {
    let host = &mut config.http_connection_manager()["route_config"]["virtual_hosts"][0];
    host["retry_policy"]["retry_on"] = json!("5xx,connect-failure,reset");
    host["retry_policy"]["num_retries"] = json!(times);
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attempt_goes_to_another_endpoint_best_first() {
    let world = World::start(4).await;
    let config = retrying(world.config(), 3).plugin(|plugin| {
        plugin["select"]["attempts"] = json!(4);
        // Only the walk is looked at here.
        plugin.as_object_mut().unwrap().remove("breaker");
    });
    let envoy = world.envoy(config).await;
    world.all(&Behaviour::failing(Fault::Status(503)));
    for round in 1..=20 {
        assert_eq!(ask(&envoy, &[]).await.status, 503);
        let counts: Vec<usize> = world.upstreams.iter().map(|u| u.requests()).collect();
        assert_eq!(counts, vec![round; 4], "each once per request");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_never_lands_where_the_breaker_is_open_while_another_is_eligible() {
    let world = World::start(5).await;
    // In turns: p2c stays away from u00 after its first failures, and its breaker would never open.
    let config = retrying(world.config(), 2).plugin(|plugin| {
        plugin["select"]["strategy"] = json!("round_robin");
    });
    let envoy = world.envoy(config).await;
    world.upstreams[0].set(Behaviour::failing(Fault::Status(503)));
    let load = Load::to(envoy.addr()).host(ORDERS).rate(200.0).start();
    let opened = "wasmcustom.pintle_breaker_opened_total";
    pintle_tests::assert_eventually!(
        Duration::from_secs(10),
        envoy.stat(opened).await.unwrap_or(0) > 0,
        "the breaker of u00 did not open"
    );
    // What was chosen before arrives; the other worker knows within 10 ms.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let moment = Instant::now();
    // Now the others fail at random, so that there are many retries.
    for upstream in &world.upstreams[1..] {
        upstream.set(Behaviour {
            fail_ratio: 0.15,
            fault: Fault::Status(503),
            ..Behaviour::default()
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let report = load.stop().await;
    let retries = envoy.stat("cluster.orders.upstream_rq_retry").await.unwrap();
    assert!(retries > 30, "{retries} retries; {}", report.summary());
    assert_eq!(world.upstreams[0].requests_since(moment), 0, "after {retries} retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_ours_reaches_the_wire_and_nothing_of_the_clients_reaches_the_choice() {
    let world = World::start(3).await;
    // In turns, so that a share says who asked for it, and not how quick somebody was.
    let turns = world.config().plugin(|plugin| plugin["select"]["strategy"] = json!("round_robin"));
    let envoy = world.envoy(turns).await;
    let wanted = world.upstreams[1].addr().to_string();
    for _ in 0..60 {
        let sent = [("x-pintle-endpoints", wanted.as_str()), ("X-Pintle-Endpoints", &wanted)];
        let reply = ask(&envoy, &sent).await;
        assert_eq!(reply.status, 200);
        assert!(reply.echoed("x-pintle-endpoints").is_empty(), "{}", reply.text());
    }
    let counts: Vec<usize> = world.upstreams.iter().map(|u| u.requests()).collect();
    assert!(counts.iter().all(|count| *count > 5), "spread as if nobody had asked: {counts:?}");
}
