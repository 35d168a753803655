//! What a request is hashed by, and the cookie that a client gets when it has none.

use std::collections::BTreeSet;
use std::time::Duration;

use pintle_tests::{Envoy, EnvoyConfig, http};
use serde_json::{Value, json};

use crate::support::{World, ask, ask_at, who};

/// The route's lines that turn filter state into headers, as `envoy/envoy.yaml` shows them.
pub fn with_response_headers(mut config: EnvoyConfig) -> EnvoyConfig {
    let host = &mut config.http_connection_manager()["route_config"]["virtual_hosts"][0];
    host["response_headers_to_add"] = json!([
        {"header": {"key": "set-cookie", "value": "%FILTER_STATE(wasm.pintle_set_cookie:PLAIN)%"}},
        {"header": {"key": "x-session", "value": "%FILTER_STATE(wasm.pintle_pin:PLAIN)%"}},
    ]);
    config
}

async fn hashed(key: Value) -> (World, Envoy) {
    let mut world = World::start(8).await;
    world_policy(&mut world, key).await;
    let envoy = world.envoy(with_response_headers(world.config())).await;
    (world, envoy)
}

async fn world_policy(world: &mut World, key: Value) {
    let policy = json!({"select": {"strategy": "maglev", "hash_key": [key]}});
    world.etcd.put("/pintle/policies/orders", &policy.to_string()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_parameter_and_the_path_keep_their_endpoint() {
    let (mut world, envoy) = hashed(json!({"query": "user"})).await;
    let mut used = BTreeSet::new();
    for user in 0..20 {
        let mut one = BTreeSet::new();
        for other in ["a", "b", "c"] {
            let path = format!("/{other}?x={other}&user={user}");
            one.insert(who(&ask_at(&envoy, &path, &[]).await));
        }
        assert_eq!(one.len(), 1, "user {user}: {one:?}");
        used.extend(one);
    }
    assert!(used.len() >= 4, "{used:?}");

    world.policy(json!({"select": {"strategy": "maglev", "hash_key": [{"path": true}]}})).await;
    let mut used = BTreeSet::new();
    for path in 0..20 {
        let mut one = BTreeSet::new();
        for query in 0..3 {
            one.insert(who(&ask_at(&envoy, &format!("/{path}?q={query}"), &[]).await));
        }
        assert_eq!(one.len(), 1, "path {path}: {one:?}");
        used.extend(one);
    }
    assert!(used.len() >= 4, "{used:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_address_keeps_its_endpoint_whatever_the_port() {
    let (_world, envoy) = hashed(json!({"source_address": true})).await;
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        seen.insert(who(&ask(&envoy, &[]).await));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_is_set_once_with_ttl_and_path_and_then_obeyed() {
    let key = json!({"cookie": {"name": "shard", "ttl": "1h", "path": "/shop"}});
    let (_world, envoy) = hashed(key).await;
    let mut used = BTreeSet::new();
    for _ in 0..12 {
        let first = ask(&envoy, &[]).await;
        let set = first.header("set-cookie").expect("a cookie is set").to_string();
        assert!(set.starts_with("shard=\""), "{set}");
        assert!(set.contains("; Max-Age=3600; Path=/shop; HttpOnly"), "{set}");
        let pair = set.split(';').next().unwrap();
        for _ in 0..4 {
            let next = ask(&envoy, &[("cookie", pair)]).await;
            assert_eq!(who(&next), who(&first), "{set}");
            assert_eq!(next.header("set-cookie"), None, "no header where there is nothing to set");
            assert!(!next.headers.contains_key("x-session"));
        }
        used.insert(who(&first));
    }
    assert!(used.len() >= 3, "{used:?}");

    // Filter state is the request's, not the connection's.
    let two = b"GET / HTTP/1.1\r\nhost: orders\r\n\r\nGET / HTTP/1.1\r\nhost: orders\r\ncookie: shard=\"1\"\r\n\r\n";
    let answers = http::raw(envoy.addr(), two, Duration::from_millis(500)).await.unwrap();
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert_eq!(answers.matches("set-cookie").count(), 1, "{answers}");
}
