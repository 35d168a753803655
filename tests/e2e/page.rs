//! The status page of a running installation, in a real browser.
//!
//! `PAGE_SHOTS=dir` keeps the picture, to be looked at.

use std::path::Path;
use std::time::Duration;

use pintle_tests::{Agent, Instance, Port, assert_eventually, browser};
use serde_json::json;

use crate::support::{PATIENCE, World, in_turns, quick};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_an_installation_at_work() {
    // Open for as long as the browser may take.
    let world = World::with(|plugin| {
        in_turns(plugin);
        plugin["breaker"] = json!({"open": "300s"});
    })
    .await;
    let mut all = Vec::new();
    for (number, zone, weight) in [(1, "eu-1a", "1"), (2, "eu-1a", "2"), (3, "eu-1b", "1")] {
        let upstream = quick(&format!("orders-{number}")).await;
        let instance = Instance::of("orders", &upstream);
        let instance = instance.metadata("zone", zone).metadata("weight", weight);
        world.etcd.register(&instance).await.expect("a registration");
        all.push(upstream);
    }
    let nobody = Port::take().expect("a port");
    let dead = Instance::new("orders", "orders-dead", nobody.addr());
    world.etcd.register(&dead).await.expect("a registration");
    world.etcd.put("/services/orders/broken", "{").await.expect("a put");
    let load = world.load(100.0).start();
    assert_eventually!(PATIENCE, world.opened().await > 0);
    let ttl = Duration::from_secs(600);
    Agent::drain(&world.nats.url(), "orders", "orders-3", ttl).await.expect("a drain");
    // Until the rates are those of a load that has been there for a while.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let url = format!("http://{}/", world.agent.admin());
    let html = browser::document(&url, "open on pintle-envoy").await.expect("the page");
    for text in [
        "● live",
        "orders-1",
        "eu-1b",
        "requests/s",
        "draining",
        "pintle undrain orders/orders-3",
        "endpoint: drain",
        "consecutive failures",
        "pintle breaker clear orders/orders-dead",
        "newest",
        // Two workers and Envoy's main thread.
        "3 of 3",
        "pintle services --rejected",
        &world.etcd.url(),
    ] {
        assert!(html.contains(text), "{text}\n\n{html}");
    }
    let temp = tempfile::tempdir().expect("a directory");
    let kept = std::env::var_os("PAGE_SHOTS");
    let dir = kept.as_ref().map_or(temp.path(), Path::new);
    let picture = dir.join("running.png");
    browser::picture(&url, &picture, (1280, 1400), false, 60_000).await.expect("a picture");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}
