//! Every strategy, by the plugin's configuration and by etcd, and what it does with weights.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_tests::{Behaviour, Envoy, Latency, Load};
use serde_json::json;

use crate::support::{ORDERS, World, ask, spread, who};

const KEYED: [(&str, &str); 1] = [("x-user", "alice")];

/// Weights 1, 2, 3 and 6 of 12.
async fn weighted() -> World {
    let weights = ["1", "2", "3", "6"];
    World::with(4, |number, instance| instance.metadata("weight", weights[number])).await
}

async fn loaded(envoy: &Envoy) -> BTreeMap<String, usize> {
    let load = Load::to(envoy.addr()).host(ORDERS).rate(400.0).connections(32);
    let report = load.run_for_secs(3.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    report.by_upstream()
}

fn within(seen: &BTreeMap<String, usize>, shares: [f64; 4], tolerance: f64, what: &str) {
    let total: usize = seen.values().sum();
    for (number, share) in shares.iter().enumerate() {
        let got = seen.get(&format!("u{number:02}")).copied().unwrap_or(0) as f64 / total as f64;
        assert!(
            (got - share).abs() <= tolerance,
            "{what}: u{number:02} has {got:.3}, not {share:.3}: {seen:?}"
        );
    }
}

const BY_WEIGHT: [f64; 4] = [1.0 / 12.0, 2.0 / 12.0, 3.0 / 12.0, 6.0 / 12.0];
const EQUAL: [f64; 4] = [0.25; 4];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_strategy_spreads_as_it_should_changed_by_etcd_with_envoy_untouched() {
    let mut world = weighted().await;
    let envoy = world.envoy(world.config()).await;
    let before = envoy.stat("listener_manager.lds.update_attempt").await;
    let updates = envoy.stat("cluster.orders.update_success").await;
    // Of 1,200 requests four and a half standard deviations of a half are 0.065.
    for (strategy, shares, tolerance) in [
        ("random", BY_WEIGHT, 0.065),
        ("weighted_round_robin", BY_WEIGHT, 0.01),
        ("round_robin", EQUAL, 0.01),
    ] {
        world.policy(json!({"select": {"strategy": strategy}})).await;
        within(&loaded(&envoy).await, shares, tolerance, strategy);
    }
    // These two follow the load, so their shares are the upstreams' doing; the heaviest takes the
    // most. With several under way at once it is that and not the one answer that was late.
    world.all(&Behaviour::slow(Latency::Fixed(Duration::from_millis(20))));
    for strategy in ["least_request", "p2c"] {
        world.policy(json!({"select": {"strategy": strategy}})).await;
        let seen = loaded(&envoy).await;
        assert_eq!(seen.values().max(), seen.get("u03"), "{strategy}: {seen:?}");
    }
    world.all(&Behaviour::default());
    for strategy in ["ring_hash", "maglev"] {
        world
            .policy(json!({"select": {"strategy": strategy, "hash_key": [{"header": "x-user"}]}}))
            .await;
        assert_eq!(spread(&envoy, 40, &KEYED).await.len(), 1, "{strategy}");
        let mut users = std::collections::BTreeSet::new();
        for user in 0..40 {
            users.insert(who(&ask(&envoy, &[("x-user", &user.to_string())]).await));
        }
        assert!(users.len() >= 3, "{strategy}: {users:?}");
    }
    assert_eq!(envoy.stat("listener_manager.lds.update_attempt").await, before);
    assert_eq!(envoy.stat("cluster.orders.update_success").await, updates, "no xDS update");
    assert_eq!(envoy.vm_reloads().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugins_configuration_chooses_per_service_and_etcd_overrules_it() {
    let mut world = weighted().await;
    let config = world.config().plugin(|plugin| {
        plugin["select"]["strategy"] = json!("random");
        plugin["services"] = json!({"orders": {"select": {"strategy": "round_robin"}}});
    });
    let envoy = world.envoy(config).await;
    within(&loaded(&envoy).await, EQUAL, 0.01, "the service's own");
    world.policy(json!({"select": {"strategy": "weighted_round_robin"}})).await;
    within(&loaded(&envoy).await, BY_WEIGHT, 0.01, "etcd's");
    // What can't be read changes nothing.
    world.policy(json!({"select": {"strategy": "fastest"}})).await;
    within(&loaded(&envoy).await, BY_WEIGHT, 0.01, "the last good one");
}
