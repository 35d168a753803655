//! Who may be chosen: sessions, subsets, zones, newcomers, and what happens when hardly anybody
//! may.

use std::collections::BTreeMap;

use pintle_tests::Instance;
use serde_json::json;

use crate::keys::with_response_headers;
use crate::support::{World, ask, spread, who};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_draining_by_cookie_and_by_header() {
    let mut world = World::start(3).await;
    let envoy = world.envoy(with_response_headers(world.config())).await;
    let rows = [
        (json!({"cookie": {"name": "sid", "ttl": "1h", "path": "/"}}), "set-cookie", "cookie"),
        (json!({"header": "x-session"}), "x-session", "x-session"),
    ];
    for (sticky, answered, asked) in rows {
        world.policy(json!({"select": {"sticky": sticky}})).await;
        let first = ask(&envoy, &[]).await;
        let pin = first.header(answered).expect("a session is pinned").to_string();
        let pin = pin.split(';').next().unwrap().to_string();
        let session = [(asked, pin.as_str())];
        let at = who(&first);
        let stays = BTreeMap::from([(at.clone(), 20)]);
        assert_eq!(spread(&envoy, 20, &session).await, stays, "{sticky}");

        let number: usize = at[1..].parse().unwrap();
        world.register(&world.instance(number).health("draining")).await;
        assert_eq!(spread(&envoy, 20, &session).await, stays, "{sticky}: draining keeps its own");
        assert!(!spread(&envoy, 30, &[]).await.contains_key(&at), "{sticky}: and gets nobody new");

        world.register(&world.instance(number).health("unhealthy")).await;
        assert!(
            !spread(&envoy, 20, &session).await.contains_key(&at),
            "{sticky}: unhealthy does not"
        );
        world.register(&world.instance(number)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_is_asked_for_by_header_and_by_the_routes_metadata() {
    let mut world = World::with(6, |number, mut instance| {
        instance.tags = if number % 2 == 0 { vec!["canary".into()] } else { Vec::new() };
        instance.metadata("version", if number < 2 { "v2" } else { "v1" })
    })
    .await;
    let policy = json!({"select": {"strategy": "round_robin", "panic_percent": 0, "subset":
        [{"header": "x-version", "metadata": "version"}, {"header": "x-tag", "tag": true}]}});
    let mut config = world.config();
    let hosts = &mut config.http_connection_manager()["route_config"]["virtual_hosts"];
    let mut ruled = hosts[0]["routes"][0].clone();
    ruled["match"] = json!({"prefix": "/beta"});
    ruled["metadata"] = json!({"filter_metadata": {"pintle": {"subset": {"version": "v2"}}}});
    hosts[0]["routes"].as_array_mut().unwrap().insert(0, ruled);
    let envoy = world.envoy(config).await;
    world.policy(policy.clone()).await;

    let names = |seen: BTreeMap<String, usize>| seen.into_keys().collect::<Vec<_>>();
    assert_eq!(names(spread(&envoy, 30, &[("x-version", "v2")]).await), ["u00", "u01"]);
    assert_eq!(
        names(spread(&envoy, 30, &[("x-version", "v1")]).await),
        ["u02", "u03", "u04", "u05"]
    );
    assert_eq!(names(spread(&envoy, 30, &[("x-tag", "canary")]).await), ["u00", "u02", "u04"]);
    let both = [("x-tag", "canary"), ("x-version", "v2")];
    assert_eq!(names(spread(&envoy, 20, &both).await), ["u00"]);
    assert_eq!(spread(&envoy, 40, &[]).await.len(), 6);
    for _ in 0..20 {
        let reply = crate::support::ask_at(&envoy, "/beta/x", &[]).await;
        assert!(["u00", "u01"].contains(&who(&reply).as_str()), "{}", who(&reply));
    }
    let nobody = ask(&envoy, &[("x-version", "v9")]).await;
    assert_eq!(nobody.status, 503);
    assert_eq!(nobody.header("x-pintle-reason"), Some("no-endpoint"));

    let mut other = policy;
    other["select"]["subset_fallback"] = json!("any");
    world.policy(other.clone()).await;
    assert_eq!(spread(&envoy, 40, &[("x-version", "v9")]).await.len(), 6);
    other["select"]["subset_fallback"] = json!("default");
    other["select"]["subset_default"] = json!({"metadata": {"version": "v1"}, "tags": ["canary"]});
    world.policy(other).await;
    assert_eq!(names(spread(&envoy, 20, &[("x-version", "v9")]).await), ["u02", "u04"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_own_zone_first_and_in_proportion_elsewhere_when_it_is_short() {
    let mut world = World::with(8, |number, instance| {
        instance.metadata("zone", if number < 4 { "a" } else { "b" })
    })
    .await;
    let mut config = world.config();
    config.root()["node"]["locality"] = json!({"zone": "a"});
    let envoy = world.envoy(config).await;
    world.policy(json!({"select": {"strategy": "random"}})).await;
    let local = |seen: &BTreeMap<String, usize>| {
        seen.iter().filter(|(name, _)| name.as_str() < "u04").map(|(_, n)| n).sum::<usize>()
    };
    assert_eq!(
        local(&spread(&envoy, 100, &[]).await),
        100,
        "all stay while the zone can take them"
    );
    for number in 0..2 {
        let mut instance = world.instance(number).metadata("zone", "a");
        instance.health = "unhealthy".into();
        world.register(&instance).await;
    }
    // 1.4 x 2 of 4 is 70 %; of 1,000 requests four and a half standard deviations are 65.
    let seen = spread(&envoy, 1000, &[]).await;
    assert!((635..=765).contains(&local(&seen)), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_starts_slowly() {
    let mut world = World::start(1).await;
    let newcomer = pintle_tests::Upstream::start("u01").await.unwrap();
    let envoy = world.envoy(world.config()).await;
    // Registered a moment ago, all of them: within a window of 10 s at the end, beyond one of 1 s.
    world.policy(json!({"select": {"strategy": "weighted_round_robin"}})).await;
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    world
        .policy(json!({"select": {"strategy": "weighted_round_robin",
        "slow_start": {"window": "60s"}}}))
        .await;
    world.upstreams.push(newcomer);
    // The old one is as new as the agent's table says; make it old.
    let mut old = world.instance(0).value();
    old["registered_at"] = json!("2020-01-01T00:00:00Z");
    world.etcd.put(&world.instance(0).key(), &old.to_string()).await.unwrap();
    world.register(&world.instance(1)).await;
    let seen = spread(&envoy, 200, &[]).await;
    let new = seen.get("u01").copied().unwrap_or(0);
    // 10 % of the old one's weight: 18 of 200, and a little more as it ages.
    assert!((8..=50).contains(&new), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_eligible_is_panic_and_without_panic_a_local_answer() {
    // From the start: that most of a service fell ill at once would not be believed.
    let ill = |number, instance: Instance| match number {
        0..3 => instance.health("unhealthy"),
        _ => instance,
    };
    let mut world = World::with(4, ill).await;
    let envoy = world.envoy(world.config()).await;
    world.policy(json!({"select": {"strategy": "round_robin"}})).await;
    assert_eq!(spread(&envoy, 40, &[]).await.len(), 4, "below half: spread over all");
    assert!(envoy.stat_sum("pintle_panic_total").await.unwrap() >= 40);

    world.policy(json!({"select": {"strategy": "round_robin", "panic_percent": 0}})).await;
    assert_eq!(spread(&envoy, 20, &[]).await, BTreeMap::from([("u03".into(), 20)]));
    world.register(&world.instance(3).health("unhealthy")).await;
    let reply = ask(&envoy, &[]).await;
    assert_eq!((reply.status, reply.header("x-pintle-reason")), (503, Some("no-endpoint")));
    assert!(reply.header("retry-after").is_some());
}
