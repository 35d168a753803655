//! A hostile header, registry value or event costs a counter, never a trap, and never reaches an
//! address that is not registered.

use std::net::SocketAddr;
use std::time::Duration;

use pintle_tests::{Instance, Upstream, assert_eventually, http};
use serde_json::{Value, json};

use crate::support::{PATIENCE, World, in_turns, quick};

#[tokio::test(flavor = "multi_thread")]
async fn our_own_routing_headers_from_a_client_reach_no_stranger() {
    let world = World::start().await;
    let _all = world.orders(2).await;
    let stranger = Upstream::start("stranger").await.expect("an upstream");
    let address = stranger.addr().to_string();
    let names = [
        "x-pintle-endpoints",
        "X-Pintle-Endpoints",
        "x-pintle-endpoint",
        "x-envoy-original-dst-host",
        "x-pintle-set-cookie",
        "wasm.pintle_pin",
        "envoy.network.transport_socket.original_dst_address",
        "envoy.load_balancing_policies.override_host.filter_state",
    ];
    for name in names {
        for cluster in ["orders", "unknown-service"] {
            let head = format!(
                "GET / HTTP/1.1\r\nhost: {cluster}\r\n{name}: {address}\r\n{name}: {address},{address}\r\n\
                 connection: close\r\n\r\n"
            );
            let reply =
                http::raw(world.envoy.addr(), head.as_bytes(), PATIENCE).await.expect("an answer");
            assert!(!reply.is_empty(), "{name}");
        }
    }
    assert_eq!(stranger.requests(), 0);
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_headers_are_served_like_any_other() {
    let world = World::start().await;
    let _all = world.orders(2).await;
    let long = "a".repeat(55 * 1024);
    let members = (0..400).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    let values: Vec<Vec<u8>> = vec![
        b"\xff\xfe\x80".to_vec(),
        b"".to_vec(),
        long.into_bytes(),
        members.into_bytes(),
        b"00-00000000000000000000000000000000-0000000000000000-01".to_vec(),
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_vec(),
        b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01".to_vec(),
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331".to_vec(),
        b"-".to_vec(),
        "\u{202e}\u{1f980}".as_bytes().to_vec(),
    ];
    let names = ["traceparent", "tracestate", "baggage", "b3", "cookie", "user-agent", "x-any"];
    let mut answered = 0;
    for name in names {
        for value in &values {
            let mut head = format!("GET / HTTP/1.1\r\nhost: orders\r\n{name}: ").into_bytes();
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\nconnection: close\r\n\r\n");
            let reply = http::raw(world.envoy.addr(), &head, PATIENCE).await.expect("an answer");
            let reply = String::from_utf8_lossy(&reply);
            assert!(
                reply.starts_with("HTTP/1.1 200"),
                "{name}: {}",
                reply.lines().next().unwrap_or("")
            );
            answered += 1;
        }
    }
    assert_eq!(answered, names.len() * values.len());
    world.no_traps().await;
}

/// Twenty-odd ways in which a registry value can be wrong.
fn broken(good: &Value) -> Vec<(String, String)> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        value.to_string()
    };
    let text = good.to_string();
    let field = |name: &'static str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        (
            format!("{name}={}", changed[name].to_string().chars().take(20).collect::<String>()),
            changed.to_string(),
        )
    };
    let mut all = vec![
        ("empty".to_owned(), String::new()),
        ("not json".to_owned(), "hello".to_owned()),
        ("truncated".to_owned(), text[..text.len() / 2].to_owned()),
        ("an array".to_owned(), "[]".to_owned()),
        ("deep".to_owned(), format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000))),
        ("long".to_owned(), with(&|v| v["metadata"]["x"] = "y".repeat(70_000).into())),
        ("duplicate key".to_owned(), text.replacen('{', r#"{"port": 1, "#, 1)),
        ("a number too large".to_owned(), text.replacen("\"port\":", "\"port\": 1e309, \"x\":", 1)),
        (
            "missing id".to_owned(),
            with(&|v| drop(v.as_object_mut().expect("an object").remove("id"))),
        ),
    ];
    for address in [
        "localhost",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "0.0.0.0",
        "::",
        "fe80::1",
        "224.0.0.1",
        "255.255.255.255",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "fd00:ec2::254",
        "10.0.0.1",
    ] {
        all.push(field("address", address.into()));
    }
    for port in [json!(0), json!(-1), json!(65_536), json!("80"), json!(80.5), json!(null)] {
        all.push(field("port", port));
    }
    all.push(field("health", "fine".into()));
    all.push(field("name", "other".into()));
    all.push(field("id", "../../etc".into()));
    all.push(field("id", "a\u{0}b".into()));
    all.push(field("registered_at", "yesterday".into()));
    all.push(field("tags", json!({"a": 1})));
    all.push(field("metadata", json!({"weight": "NaN"})));
    all.push(field("metadata", json!({"weight": "-5"})));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_registry_values_and_events_are_counted_and_the_good_ones_beside_them_served() {
    let world = World::with(in_turns).await;
    let all = world.orders(2).await;
    let loopback: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    let load = world.load(200.0).start();
    let mut written = 0;
    for (number, _) in broken(&Instance::new("orders", "x", loopback).value()).iter().enumerate() {
        let instance = Instance::new("orders", &format!("bad-{number}"), loopback);
        let (what, value) = broken(&instance.value()).swap_remove(number);
        world
            .etcd
            .put(&instance.key(), &value)
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        written += 1;
    }
    for key in [
        "/services/",
        "/services/orders",
        "/services/orders/a/b",
        "/services/or ders/a",
        "/services/../a",
    ] {
        world.etcd.put(key, "{}").await.expect("a put");
        written += 1;
    }
    for policy in ["", "[]", "{\"select\": {\"strategy\": \"best\"}}", "{\"brakes\": 1}"] {
        world.etcd.put("/pintle/policies/orders", policy).await.expect("a put");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let good = json!({"id": "e-1", "type": "endpoint", "source": "test", "subject": "orders",
        "data": {"endpoint": "orders-1", "action": "drain", "ttl": "5s"}, "metadata": {},
        "timestamp": "2026-01-01T00:00:00Z", "version": "1"});
    let mut events =
        vec![b"".to_vec(), b"hello".to_vec(), b"{}".to_vec(), b"\xff\xfe".to_vec(), b"[]".to_vec()];
    for (field, value) in [
        ("type", json!("nonsense")),
        ("data", json!(null)),
        ("data", json!({"action": "explode"})),
        ("data", json!({"endpoint": "orders-1", "action": "drain", "ttl": "-1s"})),
        ("version", json!("99")),
        ("subject", json!("../x")),
        ("timestamp", json!("yesterday")),
    ] {
        let mut event = good.clone();
        event[field] = value;
        events.push(event.to_string().into_bytes());
    }
    for event in &events {
        world.nats.publish("events.endpoint.orders", event).await.expect("a publication");
    }

    let rejected = async || world.agent.metric("pintle_rejected_entries", &[]).await.unwrap_or(0.0);
    assert_eventually!(
        PATIENCE,
        rejected().await >= f64::from(written),
        "{} of {written} counted",
        rejected().await
    );
    let dead =
        async || world.agent.metric("pintle_events_dead_lettered_total", &[]).await.unwrap_or(0.0);
    assert_eventually!(PATIENCE, dead().await >= 10.0, "{} dead letters", dead().await);

    // A good one written after all of them is served, and so are those before.
    let newcomer = quick("orders-9").await;
    world.etcd.register(&Instance::of("orders", &newcomer)).await.expect("a registration");
    assert_eventually!(PATIENCE, newcomer.requests() > 10);
    for upstream in &all {
        assert!(upstream.last_at().is_some_and(|at| at.elapsed() < Duration::from_secs(2)));
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}
