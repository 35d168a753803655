//! From etcd and NATS to the next request, and from a failure to the breaker.

use std::time::{Duration, Instant};

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Fault, Instance, Nats, Stalls, assert_eventually,
    http,
};
use serde_json::json;

use crate::support::{PATIENCE, World, in_turns, millis, quantile, quick};

/// The demo holds p99 under 50 ms; here is room for a machine that is busy with other tests.
const PROPAGATION: f64 = 250.0;

#[tokio::test(flavor = "multi_thread")]
async fn a_registered_endpoint_gets_its_first_request_within_milliseconds() {
    let world = World::start().await;
    let mut all = world.orders(1).await;
    let load = world.load(500.0).start();
    let stalls = Stalls::watch();
    let (mut took, mut undisturbed) = (Vec::new(), Vec::new());
    for round in 2..=22 {
        let upstream = quick(&format!("orders-{round}")).await;
        let instance = Instance::of("orders", &upstream);
        let put = Instant::now();
        world.etcd.register(&instance).await.expect("a registration");
        assert_eventually!(PATIENCE, upstream.first_at().is_some());
        let first = upstream.first_at().expect("a request");
        took.push(millis(first - put));
        if stalls.longest(put, first) < Duration::from_millis(100) {
            undisturbed.push(millis(first - put));
        }
        all.push(upstream);
        tokio::time::sleep(Duration::from_millis(37)).await;
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    let (p50, p99) = (quantile(&mut took, 0.5), quantile(&mut took, 0.99));
    println!("etcd put to first request: p50 {p50:.1} ms, p99 {p99:.1} ms");
    assert!(p50 < PROPAGATION, "p50 {p50:.1} ms: {took:.1?}");
    let worst = quantile(&mut undisturbed, 1.0);
    assert!(worst < PROPAGATION, "without a stall {worst:.1} ms: {took:.1?}");
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deregistered_endpoint_gets_no_request_any_more_and_none_fails() {
    let world = World::start().await;
    let all = world.orders(3).await;
    let load = world.load(500.0).start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.etcd.deregister("orders", "orders-2").await.expect("a deletion");
    let deleted = Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let last = all[1].last_at().expect("it had requests");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert!(millis(last.saturating_duration_since(deleted)) < PROPAGATION);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_event_stops_new_requests_and_its_end_brings_them_back() {
    let world = World::with(in_turns).await;
    let all = world.orders(3).await;
    let load = world.load(500.0).start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut tap = world.nats.tap("events.>").await.expect("a tap");
    let ttl = Duration::from_secs(3);
    // Side by side: an event counts from when it is read, and the command ends later than it
    // publishes.
    let url = world.nats.url();
    let command = Agent::drain(&url, "orders", "orders-2", ttl);
    let (event, done) = tokio::join!(tap.next(PATIENCE), command);
    let event = event.expect("the event");
    done.expect("a drain");
    tokio::time::sleep(Duration::from_millis(800)).await;
    let last = all[1].last_at().expect("it had requests");
    let took = millis(last.saturating_duration_since(event.at));
    println!("drain event to last request: {took:.1} ms");
    assert!(took < PROPAGATION, "{took:.1} ms");
    assert!(last.elapsed() > Duration::from_millis(400), "nothing new comes");
    let before = all[1].requests();
    assert_eventually!(PATIENCE, all[1].requests() > before + 5);
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

/// How many of a row of requests fail, every worker having been told of the breaker after so many.
async fn failures(world: &World, expect: usize) -> usize {
    let mut failed = 0;
    for _ in 0..60 {
        let before = failed;
        failed += usize::from(world.get("/").await != 200);
        if before < expect && failed == expect {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    failed
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_five_requests_fail_at_a_dead_endpoint() {
    let world = World::with(in_turns).await;
    let all = world.orders(3).await;
    world.chosen().await;
    all[0].forget();
    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eq!(failures(&world, 5).await, 5);
    assert_eq!(all[0].requests(), 5);
    assert_eq!(world.envoy.stat("wasmcustom.pintle_breaker_opened_total").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_refused_is_retried_elsewhere_and_nobody_notices() {
    let world = World::start().await;
    let mut all = world.orders(3).await;
    let load = world.load(300.0).start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    all[0].close().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let report = load.stop().await;
    // What was being answered when the process died may break; what was sent later must not.
    let broken = report.failed();
    assert!(broken <= 3, "{}", report.summary());
    world.no_traps().await;
}

/// One VM serves both, as it does any number of configurations.
#[tokio::test(flavor = "multi_thread")]
async fn tracing_may_be_a_filter_of_its_own_in_the_same_chain() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let mut config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(agent.socket())
        .wasm(PINTLE_PATH)
        .plugin(|plugin| *plugin = json!({"trace": {"tracestate_member": "pintle"}}));
    let tracing = config.wasm_filter().clone();
    let mut config = config.plugin(|plugin| {
        *plugin = json!({"sync": {"cluster": "pintle_agent"}, "breaker": {},
            "select": {"strategy": "round_robin"}});
    });
    let filters = config.http_connection_manager()["http_filters"].as_array_mut();
    filters.expect("filters").insert(0, tracing);
    let envoy = Envoy::start(config).await.expect("Envoy");
    let world = World { etcd, nats, agent, envoy };
    let all = world.orders(2).await;
    world.chosen().await;
    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eq!(failures(&world, 5).await, 5);
    let seen = all[1].seen();
    assert!(seen.iter().all(|seen| seen.headers.contains_key("traceparent")));
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_client_reaches_the_upstream() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let world = World::start().await;
    let all = world.orders(1).await;
    all[0].forget();
    let mut request = http::request("orders", "GET", "/traced", "").expect("a request");
    for (name, value) in [("traceparent", PARENT), ("tracestate", "a=1"), ("baggage", "k=v")] {
        request.headers_mut().insert(name, value.parse().expect("a value"));
    }
    let reply = http::send(world.envoy.addr(), request).await.expect("an answer");
    assert_eq!(reply.status, 200);
    world.get("/untraced").await;
    let seen = all[0].seen();
    let header = |path: &str, name: &str| {
        let request = seen.iter().find(|seen| seen.path == path).expect("the request");
        request.headers.get(name).map(|v| v.to_str().expect("text").to_owned())
    };
    assert_eq!(
        header("/traced", "traceparent").as_deref(),
        Some(PARENT),
        "no span of ours: as it came"
    );
    assert_eq!(header("/traced", "tracestate").as_deref(), Some("a=1"));
    assert_eq!(header("/traced", "baggage").as_deref(), Some("k=v"));
    assert_eq!(header("/untraced", "traceparent").map(|value| value.len()), Some(55));
    assert_eq!(header("/traced", "x-pintle-endpoints"), None, "stripped before the wire");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_registers_itself_drains_and_goes_on_sigterm() {
    let world = World::start().await;
    let _all = world.orders(1).await;
    let upstream = quick("own").await;
    let mut own = Agent::register(
        &world.etcd.url(),
        "orders",
        "own",
        upstream.addr(),
        &["--lease", "5s", "--drain", "1s"],
    )
    .expect("pintle register");
    let load = world.load(300.0).start();
    assert_eventually!(PATIENCE, upstream.requests() > 10);
    own.terminate(PATIENCE).await.expect("it ends");
    let ended = Instant::now();
    let key = Instance::of("orders", &upstream).key();
    assert_eq!(world.etcd.get(&key).await.expect("etcd"), None, "deleted, not left to its lease");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let last = upstream.last_at().expect("it had requests");
    assert!(last < ended, "drained before it went");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

/// Beside a service in its pod: one process serves Envoy and keeps its neighbour registered.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_registers_its_neighbour_and_takes_it_away_when_it_ends() {
    let upstream = quick("orders-1").await;
    let addr = upstream.addr();
    let text = format!(
        "register: {{drain: 500ms, instances: [{{name: orders, id: orders-1, address: {}, \
         port: {}, check: {{http: /, interval: 1s}}}}]}}\n",
        addr.ip(),
        addr.port()
    );
    let mut world = World::changed(|agent| agent.config("agent.yaml", &text), |_| {}).await;
    assert_eventually!(PATIENCE, world.get("/").await == 200 && upstream.requests() > 0);
    let key = Instance::of("orders", &upstream).key();
    let value = world.etcd.get(&key).await.expect("etcd").expect("it is registered");
    assert!(value.contains("\"healthy\""), "{value}");
    world.agent.terminate(Duration::from_secs(12)).await.expect("it ends");
    assert_eq!(world.etcd.get(&key).await.expect("etcd"), None, "deleted, not left to its lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_registry_a_file_of_services_serves() {
    let upstream = quick("filed").await;
    let addr = upstream.addr();
    let services = format!(
        "services:\n  orders:\n    endpoints:\n      - {{id: filed, address: {}, port: {}}}\n",
        addr.ip(),
        addr.port()
    );
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("services.yaml");
    std::fs::write(&file, services).expect("a file");
    let agent = Agent::builder()
        .arg("--file")
        .arg(file.display().to_string())
        .start()
        .await
        .expect("the agent");
    let config = pintle_tests::EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(agent.socket())
        .wasm(pintle_artifact::PINTLE_PATH);
    let envoy = pintle_tests::Envoy::start(config).await.expect("Envoy");
    let request = || http::request("orders", "GET", "/", "").expect("a request");
    assert_eventually!(
        PATIENCE,
        http::send(envoy.addr(), request()).await.is_ok_and(|reply| reply.status == 200)
    );
    assert!(upstream.requests() > 0);
}
