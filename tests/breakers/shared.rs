//! One state per Envoy: what one worker learns holds for all, and outlives a new configuration.

use std::time::{Duration, Instant, SystemTime};

use pintle_tests::{
    Behaviour, EnvoyConfig, Fault, Latency, Load, Port, Stalls, Upstream, assert_eventually, http,
};
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, millis, quantile, since, upstream};

/// Turns instead of costs, and a breaker that opens for so short that a test sees it close.
fn quick(plugin: &mut Value) {
    plugin["select"]["strategy"] = json!("round_robin");
    plugin["breaker"] = json!({"open": "500ms", "open_max": "500ms", "jitter_percent": 0});
}

fn arrivals(upstream: &Upstream, from: Instant) -> Vec<Instant> {
    upstream.seen().iter().map(|seen| seen.at).filter(|at| *at >= from).collect()
}

/// Tells the upstream when Envoy took each request, by the clock of both.
fn started(mut config: EnvoyConfig) -> EnvoyConfig {
    let route = &mut config.http_connection_manager()["route_config"];
    route["request_headers_to_add"] =
        json!([{"header": {"key": "x-started", "value": "%START_TIME(%s.%6f)%"}}]);
    config
}

/// When Envoy took the last request that arrived.
fn taken(upstream: &Upstream, from: Instant) -> Instant {
    let (now, wall) = (Instant::now(), SystemTime::now());
    let wall = wall.duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_secs_f64();
    let seen = upstream.seen();
    let started = seen.iter().filter(|seen| seen.at >= from).map(|seen| {
        let started = seen.headers["x-started"].to_str().expect("text").parse::<f64>();
        now - Duration::from_secs_f64(wall - started.expect("seconds"))
    });
    started.max().expect("a request")
}

async fn three(world: &World) -> [Upstream; 3] {
    let all = [upstream("one").await, upstream("two").await, upstream("three").await];
    world.serve("orders", &[&all[0], &all[1], &all[2]]).await;
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trip_in_one_worker_holds_in_all_within_ten_milliseconds() {
    const ROUNDS: usize = 100;
    let short = |plugin: &mut Value| {
        quick(plugin);
        plugin["breaker"]["open"] = json!("200ms");
        plugin["breaker"]["open_max"] = json!("200ms");
    };
    let world = World::start(&["orders"], short, started).await;
    let all = three(&world).await;
    let dead = &all[0];
    let load = Load::to(world.envoy.addr()).host("orders").rate(1000.0).connections(32).start();
    let stalls = Stalls::watch();
    let (mut late, mut undisturbed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        dead.forget();
        let began = Instant::now();
        dead.set(Behaviour::failing(Fault::Status(500)));
        assert_eventually!(PATIENCE, arrivals(dead, began).len() >= 5);
        // Before the first probe is due.
        tokio::time::sleep(Duration::from_millis(120)).await;
        let seen = arrivals(dead, began);
        let (fifth, last) = (seen[4], seen[seen.len() - 1]);
        late.push(since(last, fifth));
        // After a stall many come at once, and late; what counts is when Envoy has taken them.
        if !stalls.between(fifth, last) {
            undisturbed.push(taken(dead, began).saturating_duration_since(fifth));
        }
        dead.set(Behaviour::default());
        let healed = Instant::now();
        assert_eventually!(PATIENCE, dead.requests_since(healed) > 20);
    }
    let report = load.stop().await;
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| quantile(&late, share));
    println!(
        "the last request after the fifth failure: p50 {p50:.1}, p99 {p99:.1}, max {max:.1} ms"
    );
    let most = undisturbed.iter().max().copied().unwrap_or_default();
    println!("{} rounds without a stall, at most {most:.1?}", undisturbed.len());
    println!("{}", report.summary());
    assert!(p50 <= 10.0, "median of {late:?}");
    // Two cores are shared by Envoy, its load and its upstreams: a stalled test is not a late
    // worker.
    assert!(quantile(&late, 0.75) <= 10.0, "three of four of {late:?}");
    assert!(most <= Duration::from_millis(10), "without a stall: {undisturbed:.1?}");
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_costs_five_failures_over_all_workers_and_no_client_anything() {
    let turns = |plugin: &mut Value| plugin["select"]["strategy"] = json!("round_robin");
    let world = World::start(&["orders"], turns, |config| config).await;
    let mut all = three(&world).await;
    // Two connections: what comes at once after a stall, while the fifth failure is on its way, is
    // bounded.
    let load = Load::to(world.envoy.addr()).host("orders").rate(300.0).connections(2).start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    all[0].close().await;
    let closed = Instant::now();
    assert_eventually!(PATIENCE, world.trips("orders").await == 1.0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut report = load.stop().await;
    // What it had taken and not answered ended with it, and is not Envoy's to send again.
    report.samples.retain(|sample| sample.due >= closed);
    let failures =
        world.agent.metric("pintle_endpoint_failures_total", &["endpoint=\"one\""]).await;
    println!("{failures:?} failures; {}", report.summary());
    // Those that were sent before the fifth had failed count, too.
    assert!(failures.is_some_and(|count| (5.0..=7.0).contains(&count)), "{failures:?}");
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_probe_at_a_time_over_all_workers() {
    let probing = |plugin: &mut Value| {
        quick(plugin);
        plugin["breaker"]["half_open"] = json!({"successes": 8});
    };
    let world = World::start(&["orders"], probing, |config| config).await;
    let all = three(&world).await;
    let load = Load::to(world.envoy.addr()).host("orders").rate(1000.0).connections(32).start();
    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eventually!(PATIENCE, world.trips("orders").await >= 1.0);
    // What was under way has arrived.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let failed = all[0].requests();
    all[0].forget();
    all[0].set(Behaviour::slow(Latency::Fixed(Duration::from_millis(100))));
    assert_eventually!(PATIENCE, all[0].requests() >= 7);
    println!("{} probes, at most {} at once", all[0].requests(), all[0].peak_in_flight());
    assert_eq!(all[0].peak_in_flight(), 1);
    assert_eventually!(PATIENCE, all[0].requests() > 100, "and then it closes");
    let report = load.stop().await;
    assert_eq!(report.failed(), failed, "nobody failed but there: {}", report.summary());
}

/// The first listener once more, from a file that Envoy watches.
fn dynamic(config: &mut EnvoyConfig, port: &Port, dir: &std::path::Path) -> Value {
    let mut listener = config.at("/static_resources/listeners/0").clone();
    listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
    listener["name"] = json!("dynamic");
    listener["address"]["socket_address"] =
        json!({"address": "127.0.0.1", "port_value": port.number()});
    config.root()["dynamic_resources"] = json!({"lds_config": {"resource_api_version": "V3",
        "path_config_source": {"path": dir.join("lds.json"), "watched_directory": {"path": dir}}}});
    listener
}

fn write(dir: &std::path::Path, version: &str, listener: &Value) {
    let next = dir.join("next.json");
    let response = json!({"version_info": version, "resources": [listener]});
    std::fs::write(&next, response.to_string()).expect("written");
    std::fs::rename(&next, dir.join("lds.json")).expect("moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_a_new_plugin_configuration() {
    let dir = tempfile::TempDir::with_prefix("pintle-lds-").expect("a directory");
    let port = Port::take().expect("a port");
    let mut listener = Value::Null;
    let turns = |plugin: &mut Value| plugin["select"]["strategy"] = json!("round_robin");
    let world = World::start(&["orders"], turns, |mut config| {
        listener = dynamic(&mut config, &port, dir.path());
        write(dir.path(), "1", &listener);
        config
    })
    .await;
    let all = three(&world).await;
    all[0].set(Behaviour::failing(Fault::Status(500)));
    let send = async || {
        let request = http::request("orders", "GET", "/", "").expect("a request");
        http::send(port.addr(), request).await.map_or(0, |reply| reply.status)
    };
    assert_eventually!(PATIENCE, send().await == 200);
    assert_eventually!(PATIENCE, {
        send().await;
        all[0].requests() >= 5
    });
    assert_eventually!(PATIENCE, world.trips("orders").await == 1.0);
    all[0].forget();

    let filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
        .as_array_mut()
        .expect("filters");
    let value = &mut filters[0]["typed_config"]["config"]["configuration"]["value"];
    let mut plugin: Value = serde_json::from_str(value.as_str().expect("text")).expect("JSON");
    plugin["breaker"]["consecutive_failures"] = json!(6);
    *value = json!(plugin.to_string());
    write(dir.path(), "2", &listener);
    let modified = async || world.envoy.stat("listener_manager.listener_modified").await;
    let in_place = async || world.envoy.stat("listener_manager.listener_in_place_updated").await;
    assert_eventually!(PATIENCE, modified().await == Some(1) || in_place().await == Some(1));
    // The listener before drains for a second; after it only the new configuration is left.
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(send().await, 200);
        sent += 1;
    }
    println!("{sent} requests after the update, {} at the open endpoint", all[0].requests());
    assert_eq!(all[0].requests(), 0, "still open, {:.0} ms later", millis(began.elapsed()));
    world.no_traps().await;
}
