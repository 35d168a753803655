//! Killing anything loses no request.

use std::time::{Duration, Instant};

use pintle_tests::{Instance, NetworkFault, Server as _, Upstream, assert_eventually, http};

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

/// 12 s instead of a minute: detection, within 10 s, is the last thing that happens until the link heals.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_and_nats_are_black_holes_and_no_request_fails() {
    let (world, to_etcd, to_nats) = World::linked().await;
    let all = world.orders(3).await;
    let load = world.load(200.0).start();
    assert!(connected(&world, "etcd").await && connected(&world, "nats").await);
    to_etcd.set(NetworkFault::Blackhole);
    to_nats.set(NetworkFault::Blackhole);
    let fell = Instant::now();
    for source in ["etcd", "nats"] {
        let left = Duration::from_secs(10).saturating_sub(fell.elapsed());
        assert_eventually!(left, !connected(&world, source).await, "{source} is noticed");
        println!("{source} noticed after {:.1} s", fell.elapsed().as_secs_f64());
    }
    let newcomer = quick("orders-4").await;
    world.etcd.register(&Instance::of("orders", &newcomer)).await.expect("a registration");
    tokio::time::sleep(Duration::from_secs(12).saturating_sub(fell.elapsed())).await;
    assert_eq!(newcomer.first_at(), None, "nobody could tell the agent");
    everybody_serves(&all).await;
    to_etcd.set(NetworkFault::None);
    to_nats.set(NetworkFault::None);
    let healed = Instant::now();
    assert_eventually!(Duration::from_secs(5), newcomer.first_at().is_some());
    println!("fresh {:.0} ms after the link healed", millis(healed.elapsed()));
    assert_eventually!(Duration::from_secs(5), connected(&world, "nats").await);
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

/// Ten seconds instead of sixty: the budget is one of ten in any window of 60 s, so no second removal
/// would come before.
#[tokio::test(flavor = "multi_thread")]
async fn every_lease_expires_at_once_and_what_lives_goes_on_serving() {
    let world = World::start().await;
    let mut all = Vec::new();
    let lease = world.etcd.grant(3).await.expect("a lease");
    for number in 1..=10 {
        let upstream = quick(&format!("orders-{number:02}")).await;
        let instance = Instance::of("orders", &upstream);
        let value = instance.value().to_string();
        world.etcd.put_leased(&instance.key(), &value, &lease).await.expect("a registration");
        all.push(upstream);
    }
    assert_eventually!(PATIENCE, world.get("/").await == 200);
    let load = world.load(300.0).start();
    let keys = async || world.etcd.list("/services/orders/").await.expect("etcd").len();
    assert_eventually!(PATIENCE, keys().await == 0);
    let expired = Instant::now();
    let held = async || world.agent.metric("pintle_removals_waiting", &[]).await;
    assert_eventually!(Duration::from_secs(5), held().await >= Some(9.0), "the alarm");
    println!("{:?} removals held {:.0} ms after expiry", held().await, millis(expired.elapsed()));
    tokio::time::sleep(Duration::from_secs(8).saturating_sub(expired.elapsed())).await;
    let late = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let serving = all.iter().filter(|upstream| upstream.requests_since(late) > 0).count();
    assert!(serving >= 9, "{serving} of 10, and one may go in 60 s");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_while_the_agent_is_away_removes_what_went_and_nothing_else() {
    let (world, to_etcd, _to_nats) = World::linked().await;
    let all = world.orders(4).await;
    let load = world.load(300.0).start();
    to_etcd.set(NetworkFault::Refuse);
    assert_eventually!(PATIENCE, !connected(&world, "etcd").await);
    let newcomer = quick("orders-5").await;
    world.etcd.deregister("orders", "orders-2").await.expect("a removal");
    let mut last = 0;
    for _ in 0..50 {
        let written = world.etcd.register(&Instance::of("orders", &newcomer)).await;
        last = written.expect("a registration").revision;
    }
    world.etcd.compact(last).await.expect("a compaction");
    to_etcd.set(NetworkFault::None);
    let back = Instant::now();
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    println!("listed again {:.0} ms after the return", millis(back.elapsed()));
    // What was chosen before may still be on its way.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let settled = Instant::now();
    everybody_serves(&[&all[0], &all[2], &all[3], &newcomer]).await;
    assert_eq!(all[1].requests_since(settled), 0, "its removal was found by comparing");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_written_costs_an_alarm_and_no_request() {
    let world = World::start().await;
    let all = world.orders(2).await;
    let load = world.load(300.0).start();
    // A file where the directory should be: no write can succeed, for root neither.
    let dir = world.agent.state_dir();
    std::fs::remove_dir_all(&dir).expect("the state directory");
    std::fs::write(&dir, "in the way").expect("a file");
    let newcomer = quick("orders-3").await;
    world.etcd.register(&Instance::of("orders", &newcomer)).await.expect("a registration");
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    let unwritable = async || world.agent.metric("pintle_state_unwritable", &[]).await;
    assert_eventually!(PATIENCE, unwritable().await == Some(1.0));
    let sources = http::get(world.agent.admin(), "/v1/sources").await.expect("the sources");
    assert!(sources.json().expect("JSON")["disk_error"].is_string(), "{}", sources.text());
    everybody_serves(&all).await;
    std::fs::remove_file(&dir).expect("the file");
    assert_eventually!(PATIENCE, unwritable().await == Some(0.0), "it is tried again by itself");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

async fn connected(world: &World, source: &str) -> bool {
    let label = format!("source=\"{source}\"");
    world.agent.metric("pintle_source_connected", &[&label]).await == Some(1.0)
}

/// Each of them is sent requests from now on.
async fn everybody_serves<U: std::borrow::Borrow<Upstream>>(upstreams: &[U]) {
    let now = Instant::now();
    for upstream in upstreams.iter().map(std::borrow::Borrow::borrow) {
        assert_eventually!(PATIENCE, upstream.requests_since(now) > 0, "{}", upstream.name());
    }
}
