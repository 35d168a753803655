//! Killing anything loses no request.

use std::time::{Duration, Instant};

use pintle_tests::{Instance, Server as _, assert_eventually};

use crate::support::{PATIENCE, World, millis, quick};

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_killed_for_ten_seconds_and_no_request_fails() {
    let mut world = World::start().await;
    let _all = world.orders(3).await;
    let load = world.load(500.0).start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.agent.kill9();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let newcomer = quick("orders-4").await;
    world.etcd.register(&Instance::of("orders", &newcomer)).await.expect("a registration");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(newcomer.first_at(), None, "nobody told Envoy");
    let returned = Instant::now();
    world.agent.relaunch().expect("the agent");
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    let took = millis(newcomer.first_at().expect("a request") - returned);
    println!("back in force after {took:.0} ms");
    assert!(took < 2_000.0, "{took:.0} ms, a second on a quiet machine");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_costs_nothing_and_catches_up() {
    let mut world = World::start().await;
    let _all = world.orders(2).await;
    let load = world.load(300.0).start();
    world.agent.stop();
    tokio::time::sleep(Duration::from_secs(8)).await;
    let newcomer = quick("orders-3").await;
    world.etcd.register(&Instance::of("orders", &newcomer)).await.expect("a registration");
    world.agent.cont();
    let continued = Instant::now();
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    println!("caught up after {:.0} ms", millis(continued.elapsed()));
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_and_nats_are_gone_and_come_back() {
    let mut world = World::start().await;
    let all = world.orders(3).await;
    let load = world.load(300.0).start();
    world.etcd.kill9();
    world.nats.kill9();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let middle = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for upstream in &all {
        assert!(upstream.requests_since(middle) > 0, "no endpoint was removed");
    }
    world.etcd.restart().await.expect("etcd");
    world.nats.restart().await.expect("nats");
    let newcomer = quick("orders-4").await;
    world.etcd.register(&Instance::of("orders", &newcomer)).await.expect("a registration");
    let back = Instant::now();
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    println!("fresh {:.0} ms after etcd's return", millis(back.elapsed()));
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_without_etcd_serves_what_was_last_known() {
    let mut world = World::start().await;
    let _all = world.orders(2).await;
    // What is on disk may lag behind what is served by the time of one write.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.agent.kill9();
    world.etcd.kill9();
    world.nats.kill9();
    world.agent.relaunch().expect("the agent");
    world.agent.wait_ready(PATIENCE).await.expect("ready without etcd");
    world.envoy.restart().await.expect("Envoy");
    assert_eventually!(PATIENCE, world.get("/").await == 200);
    let report = world.load(100.0).run_for_secs(2.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 2, "{}", report.summary());
}
