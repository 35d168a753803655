//! A VM that traps is rebuilt by the next request, and knows what the one before it knew.
//!
//! Envoy answers those inside a VM that traps 503 with it; nobody else may notice.

use std::time::Duration;

use pintle_artifact::PINTLE;
use pintle_tests::{Behaviour, Fault, Instance, Upstream, assert_eventually, http, trapping};
use serde_json::json;

use crate::support::{PATIENCE, World, breakers, upstream};

/// So many headers trap; what else is sent here has a dozen.
const MANY: i32 = 77;
const WORKERS: usize = 2;
/// Requests of [`well`].
const WELL: u64 = 12;
/// Reports come once a second.
const REPORTED: Duration = Duration::from_millis(2_500);

/// A request that traps the VM of whichever worker accepts it.
async fn trap(world: &World) {
    let mut request = http::request("orders", "GET", "/", "").expect("a request");
    for number in 0..MANY {
        let name = format!("x-{number}").parse::<::http::HeaderName>().expect("a name");
        request.headers_mut().insert(name, ::http::HeaderValue::from_static("1"));
    }
    assert_eq!(http::send(world.envoy.addr(), request).await.expect("an answer").status, 503);
}

/// Connections that each worker has accepted.
async fn accepted(world: &World) -> Vec<u64> {
    let port = world.envoy.addr().port();
    let stats = world.envoy.stats().await.expect("stats");
    let name = |worker| format!("listener.127.0.0.1_{port}.worker_{worker}.downstream_cx_total");
    (0..WORKERS).map(|worker| stats.get(&name(worker)).copied().unwrap_or_default()).collect()
}

/// Traps until every worker's VM has; how many traps that took.
async fn trap_every_worker(world: &World, between: impl AsyncFn()) -> u64 {
    let mut trapped = [false; WORKERS];
    let mut traps = 0;
    while trapped.contains(&false) {
        assert!(traps < 64, "every worker accepts some");
        let before = accepted(world).await;
        trap(world).await;
        traps += 1;
        let after = accepted(world).await;
        for (worker, trapped) in trapped.iter_mut().enumerate() {
            *trapped |= after[worker] > before[worker];
        }
        between().await;
    }
    traps
}

async fn reloads(world: &World) -> u64 {
    world.envoy.stat_sum("vm_reload_success").await.expect("stats")
}

/// Sends until both workers have taken some; every answer is 200.
async fn well(world: &World, service: &str) {
    for _ in 0..WELL {
        assert_eq!(world.get(service).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_breakers_survives_the_trap_of_every_vm() {
    let dir = tempfile::TempDir::with_prefix("pintle-trap-").expect("a directory");
    let path = dir.path().join("trapping.wasm");
    let module = trapping(PINTLE, MANY).expect("a module that traps");
    std::fs::write(&path, module).expect("written");
    let path = path.display().to_string();
    let turns = |plugin: &mut serde_json::Value| {
        plugin["select"]["strategy"] = json!("round_robin");
    };
    let world = World::start(&["orders", "probed"], turns, |config| config.wasm(&path)).await;
    let quick = json!({"breaker": {"open": "300ms", "open_max": "300ms", "jitter_percent": 0,
        "half_open": {"timeout": "4s"}}});
    world.etcd.put("/pintle/policies/probed", &quick.to_string()).await.expect("a policy");
    let all = [upstream("one").await, upstream("two").await, upstream("three").await];
    let refs: Vec<&Upstream> = all.iter().collect();
    for one in &all {
        world.etcd.register(&Instance::of("probed", one)).await.expect("a registration");
    }
    world.serve("orders", &refs).await;

    still_open(&world, &all).await;
    no_slot_and_no_count(&world, &all).await;
}

/// An open breaker is open in the VM that was rebuilt, too, and only the requests that trap fail.
async fn still_open(world: &World, all: &[Upstream; 3]) {
    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        world.trips("orders").await == 1.0
    });
    let counted = async || {
        tokio::time::sleep(REPORTED).await;
        let total = world.agent.metric("http_requests_total", &["service=\"orders\""]).await;
        total.expect("it has served")
    };
    for _ in 0..5 {
        well(world, "orders").await;
    }
    assert_eventually!(PATIENCE, counted().await >= 60.0);
    let before = counted().await;
    all[0].forget();
    let traps = trap_every_worker(world, async || well(world, "orders").await).await;
    well(world, "orders").await;
    // What a VM had not reported is gone with it; what it had is not counted again.
    let (more, sent) = (counted().await - before, (traps + 1) * WELL);
    assert!(more > 0.0 && more <= sent as f64, "{before}, {more} of {sent}");
    let reloads = reloads(world).await;
    println!("{traps} traps, {reloads} VMs rebuilt, {} at the open one", all[0].requests());
    assert!(reloads >= WORKERS as u64, "every VM was rebuilt: {reloads}");
    assert_eq!(all[0].requests(), 0, "still open");
    let state = breakers(&world.agent).await;
    assert_eq!(state.get("orders/one").map(String::as_str), Some("open"), "{state:?}");
    assert_eq!(world.trips("orders").await, 1.0, "and it opened once");
    all[0].set(Behaviour::default());
}

/// A probe and ordinary requests that were under way in every VM when it trapped.
async fn no_slot_and_no_count(world: &World, all: &[Upstream; 3]) {
    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eventually!(PATIENCE, {
        world.get("probed").await;
        world.trips("probed").await >= 1.0
    });
    all.iter().for_each(|one| one.set(Behaviour::failing(Fault::Hang)));
    all.iter().for_each(Upstream::forget);
    // Open for 300 ms: of these, one is the probe.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let addr = world.envoy.addr();
    let hanging: Vec<_> = (0..16)
        .map(|_| http::request("probed", "GET", "/", "").expect("a request"))
        .map(|request| tokio::spawn(http::send(addr, request)))
        .collect();
    assert_eventually!(PATIENCE, all[0].requests() == 1, "a probe");
    assert_eventually!(PATIENCE, all.iter().map(Upstream::requests).sum::<usize>() == 16);
    let metric = async |name| world.agent.metric(name, &["service=\"probed\""]).await;
    assert_eventually!(PATIENCE, metric("http_requests_in_flight").await == Some(16.0));
    trap_every_worker(world, async || ()).await;
    for one in hanging {
        assert_eq!(one.await.expect("sent").expect("an answer").status, 503, "inside the VM");
    }
    all.iter().for_each(|one| one.set(Behaviour::default()));
    // The slot of a probe that was lost with its VM expires, and the next ones close it.
    assert_eventually!(PATIENCE, {
        world.get("probed").await;
        breakers(&world.agent).await.keys().all(|name| !name.starts_with("probed/"))
    });
    all.iter().for_each(Upstream::forget);
    well(world, "probed").await;
    assert!(all.iter().all(|one| one.requests() > 0), "all of them serve");
    assert_eventually!(PATIENCE, metric("http_requests_in_flight").await == Some(0.0));
    assert_eventually!(PATIENCE, metric("pintle_endpoint_in_flight").await == Some(0.0));
}
