//! Side by side: the same keys through an Envoy with its own policy and through one with ours.
//!
//! Order: Envoy's ring depends on the order of its hosts when weights differ (fractions of entries
//! are carried from host to host in floating point) and where two entries collide; its Maglev table
//! does not, since it sorts by address first. Our tables come ordered by id, as the agent's EDS
//! does, so the same cluster over our EDS has the same order; here the static hosts are given in
//! that order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use pintle_tests::{Behaviour, Envoy, EnvoyConfig, Fault, Upstream};
use serde_json::{Value, json};

use crate::support::{Held, World, ask, who};

const KEYS: usize = 500;
const HEADER: &str = "x-user";

/// An Envoy that knows nothing of Pintle.
async fn native(upstreams: &[(SocketAddr, u32)], policy: &str, fields: &Value) -> Envoy {
    let hosts: Vec<SocketAddr> = upstreams.iter().map(|(addr, _)| *addr).collect();
    let config = EnvoyConfig::shipped().unwrap().without_filter().static_hosts("orders", &hosts);
    let mut config = config.native_policy("orders", policy, fields);
    let list = &mut config.cluster("orders")["load_assignment"]["endpoints"][0]["lb_endpoints"];
    for (host, (_, weight)) in list.as_array_mut().unwrap().iter_mut().zip(upstreams) {
        host["load_balancing_weight"] = json!(weight);
    }
    let route =
        &mut config.http_connection_manager()["route_config"]["virtual_hosts"][0]["routes"][0];
    route["route"]["hash_policy"] = json!([{"header": {"header_name": HEADER}}]);
    Envoy::start(config).await.unwrap()
}

async fn placed(envoy: &Envoy) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for number in 0..KEYS {
        let key = format!("user-{number}");
        let reply = ask(envoy, &[(HEADER, &key)]).await;
        all.insert(key, who(&reply));
    }
    all
}

fn hosts(upstreams: &[Upstream], weights: &[u32]) -> Vec<(SocketAddr, u32)> {
    upstreams.iter().map(Upstream::addr).zip(weights.iter().copied()).collect()
}

/// Both, with all endpoints and again when one has left.
async fn compare(policy: &str, ours: Value, theirs: Value, weights: &[u32]) {
    let mut world = World::with(weights.len(), |number, instance| {
        instance.metadata("weight", &weights[number].to_string())
    })
    .await;
    let mut select = ours;
    select["strategy"] = json!(policy);
    select["hash_key"] = json!([{"header": HEADER}]);
    let config =
        world.config().plugin(|plugin| plugin["services"] = json!({"orders": {"select": select}}));
    let envoy = world.envoy(config).await;
    let mut left = hosts(&world.upstreams, weights);

    let expected = placed(&native(&left, policy, &theirs).await).await;
    let got = placed(&envoy).await;
    assert_eq!(got, expected, "{policy} {select} {weights:?}");

    left.remove(2);
    world.deregister("u02").await;
    let after = placed(&native(&left, policy, &theirs).await).await;
    let got = placed(&envoy).await;
    assert_eq!(got, after, "{policy} {select} {weights:?} without u02");
    assert!(got.values().all(|name| name != "u02"));
    let moved = expected.iter().filter(|(key, name)| *name != "u02" && got[*key] != **name).count();
    println!("{policy} {weights:?}: {moved} of {KEYS} keys of the others moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ring_hash_with_equal_weights_names_envoys_endpoint() {
    compare("ring_hash", json!({}), json!({}), &[1; 6]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ring_hash_with_unequal_weights_names_envoys_endpoint() {
    compare("ring_hash", json!({}), json!({}), &[1, 7, 3, 2, 100, 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ring_hash_by_murmur2_and_of_another_size_names_envoys_endpoint() {
    let ours = json!({"hash_function": "murmur2", "minimum_ring_size": 4099});
    let theirs = json!({"hash_function": "MURMUR_HASH_2", "minimum_ring_size": 4099});
    compare("ring_hash", ours, theirs, &[1, 2, 3, 4, 5]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maglev_with_equal_weights_names_envoys_endpoint() {
    compare("maglev", json!({}), json!({}), &[1; 6]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maglev_with_unequal_weights_and_another_size_names_envoys_endpoint() {
    let size = json!({"table_size": 1009});
    compare("maglev", size.clone(), size, &[1, 7, 3, 2, 100, 5]).await;
}

/// Without load a bound binds nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balance_factor_places_single_requests_as_envoy_does() {
    for policy in ["ring_hash", "maglev"] {
        let ours = json!({"hash_balance_factor": 150});
        let theirs = json!({"consistent_hashing_lb_config": {"hash_balance_factor": 150}});
        compare(policy, ours, theirs, &[1; 5]).await;
    }
}

/// Where each of 90 requests goes while none is answered. Two of three have one key, and in the
/// middle every second client goes away, so that load rises, falls and rises again.
async fn filled(envoy: &Envoy, upstreams: &[Upstream]) -> Vec<usize> {
    let mut held = Held::default();
    let mut placed = Vec::new();
    for number in 0..90 {
        if number == 60 {
            held.halve(upstreams).await;
        }
        let key = format!("user-{}", if number % 3 == 0 { number } else { 7 });
        placed.push(held.send(envoy, upstreams, &[(HEADER, &key)]).await);
    }
    held.release(upstreams).await;
    placed
}

/// Endpoint by endpoint, at each load on the way. One worker, since the bound counts what is in
/// flight at that very moment, and a worker of ours knows the others' by the tick.
async fn bounded(weights: &[u32], factor: u32) {
    let mut world = World::with(weights.len(), |number, instance| {
        instance.metadata("weight", &weights[number].to_string())
    })
    .await;
    let envoy = world.envoy_with(world.config(), 1).await;
    world.all(&Behaviour::failing(Fault::Hang));
    for (policy, function) in
        [("ring_hash", "xxhash64"), ("ring_hash", "murmur2"), ("maglev", "xxhash64")]
    {
        let mut select = json!({"strategy": policy, "hash_key": [{"header": HEADER}],
            "hash_balance_factor": factor});
        let mut theirs = json!({"consistent_hashing_lb_config": {"hash_balance_factor": factor}});
        if function == "murmur2" {
            select["hash_function"] = json!("murmur2");
            theirs["hash_function"] = json!("MURMUR_HASH_2");
        }
        world.policy(json!({"select": select})).await;
        let native = native(&hosts(&world.upstreams, weights), policy, &theirs).await;
        let expected = filled(&native, &world.upstreams).await;
        drop(native);
        let got = filled(&envoy, &world.upstreams).await;
        assert_eq!(got, expected, "{select} {weights:?}");
        let hot: BTreeSet<_> = (0..90).filter(|n| n % 3 != 0).map(|n| got[n]).collect();
        assert!(hot.len() >= 2, "the bound has moved nothing: {hot:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_bound_moves_keys_where_envoy_moves_them_with_equal_weights() {
    bounded(&[1; 6], 125).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_bound_moves_keys_where_envoy_moves_them_with_unequal_weights() {
    bounded(&[1, 7, 3, 2, 5, 4], 150).await;
}
