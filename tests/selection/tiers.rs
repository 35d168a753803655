//! Tiers beside Envoy's own priorities on the same upstreams: the same shares while a tier falls
//! ill. And a service that an operator moves to another region.

use std::collections::BTreeMap;

use pintle_tests::{Envoy, EnvoyConfig, Upstream};
use serde_json::{Value, json};

use crate::support::{World, spread};

const FIRST: usize = 4;
const REQUESTS: usize = 500;

/// An Envoy that knows nothing of Pintle: two priorities, of the first so many unhealthy.
async fn native(upstreams: &[Upstream], unhealthy: usize) -> Envoy {
    let hosts: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
    let config = EnvoyConfig::shipped().unwrap().without_filter().static_hosts("orders", &hosts);
    let mut config = config.native_policy("orders", "random", &json!({}));
    let all = &mut config.cluster("orders")["load_assignment"]["endpoints"];
    let mut first = all[0]["lb_endpoints"].as_array().cloned().unwrap();
    let second = first.split_off(FIRST);
    first.iter_mut().take(unhealthy).for_each(|host| host["health_status"] = json!("UNHEALTHY"));
    let locality =
        |priority: u32, hosts: Vec<Value>| json!({"priority": priority, "lb_endpoints": hosts});
    *all = json!([locality(0, first), locality(1, second)]);
    Envoy::start(config).await.unwrap()
}

/// The part of the requests that the first tier got, and that the unhealthy got, in percent.
fn shares(seen: &BTreeMap<String, usize>, unhealthy: usize) -> (f64, usize) {
    let of = |names: std::ops::Range<usize>| -> usize {
        names.filter_map(|n| seen.get(&format!("u{n:02}"))).sum()
    };
    (of(0..FIRST) as f64 * 100.0 / REQUESTS as f64, of(0..unhealthy))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_spills_as_envoys_priorities_do() {
    let mut world = World::with(FIRST + 2, |number, instance| {
        instance.metadata("priority", if number < FIRST { "0" } else { "1" })
    })
    .await;
    let envoy = world.envoy(world.config()).await;
    // Four would be most of the service, which the agent does not believe while they answer.
    for (unhealthy, expect) in [(0, 100.0), (1, 100.0), (2, 70.0), (3, 35.0)] {
        if unhealthy > 0 {
            let ill = world.instance(unhealthy - 1).metadata("priority", "0").health("unhealthy");
            world.register(&ill).await;
        }
        let theirs = spread(&native(&world.upstreams, unhealthy).await, REQUESTS, &[]).await;
        let ours = spread(&envoy, REQUESTS, &[]).await;
        // Five standard deviations of 500 draws.
        for (whose, seen) in [("Envoy's", theirs), ("ours", ours)] {
            let (first, ill) = shares(&seen, unhealthy);
            assert!((first - expect).abs() <= 11.0, "{whose}, {unhealthy} ill: {seen:?}");
            assert_eq!(ill, 0, "{whose}, {unhealthy} ill: {seen:?}");
        }
    }
    let panics = envoy.stat("wasmcustom.pintle_panic_total").await.unwrap_or(0);
    assert_eq!(panics, 0, "the other tier takes all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_moves_a_service_and_is_not_applied_where_nobody_matches() {
    let mut world = World::with(4, |number, instance| {
        instance.metadata("region", if number < 2 { "eu-1" } else { "eu-2" })
    })
    .await;
    let envoy = world.envoy(world.config()).await;
    let missed = async || envoy.stat("wasmcustom.pintle_failover_missed_total").await.unwrap_or(0);
    for (region, served) in [("eu-2", ["u02", "u03"]), ("eu-1", ["u00", "u01"])] {
        world.policy(json!({"select": {"failover": {"region": region}}})).await;
        let seen = spread(&envoy, 100, &[]).await;
        assert!(seen.keys().eq(served.iter()), "{region}: {seen:?}");
        assert_eq!(missed().await, 0);
    }
    world.policy(json!({"select": {"failover": {"region": "eu-3"}}})).await;
    assert_eq!(spread(&envoy, 100, &[]).await.len(), 4);
    assert_eq!(missed().await, 100);
}
