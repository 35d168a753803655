//! What the table of `docs/migration/native.md` says is the same: Envoy's own setting and ours on
//! the same upstreams. What is hashed is in `native`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pintle_tests::{Behaviour, Envoy, EnvoyConfig, Fault, Latency, Load, Upstream};
use serde_json::{Value, json};

use crate::support::{World, ask, ask_at, spread, who};

/// An Envoy that knows nothing of Pintle, before the same upstreams.
async fn native(upstreams: &[Upstream], change: impl FnOnce(&mut EnvoyConfig)) -> Envoy {
    let hosts: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
    let config = EnvoyConfig::shipped().unwrap().without_filter().static_hosts("orders", &hosts);
    let mut config = config.native_policy("orders", "round_robin", &json!({}));
    change(&mut config);
    Envoy::start(config).await.unwrap()
}

/// A route for each version, which its metadata asks for.
fn by_version(config: &mut EnvoyConfig, ask: impl Fn(&mut Value, &str)) {
    let hosts = &mut config.http_connection_manager()["route_config"]["virtual_hosts"];
    for version in ["v1", "v2", "v9"] {
        let mut route = hosts[0]["routes"][0].clone();
        route["match"] = json!({"prefix": format!("/{version}/")});
        ask(&mut route, version);
        hosts[0]["routes"].as_array_mut().unwrap().insert(0, route);
    }
}

/// Who answers, and how, to requests of each version.
async fn answers(envoy: &Envoy) -> BTreeMap<&'static str, BTreeSet<(u16, String)>> {
    let mut all = BTreeMap::new();
    for (version, path) in [("v1", "/v1/x"), ("v2", "/v2/x"), ("v9", "/v9/x")] {
        let mut seen = BTreeSet::new();
        for _ in 0..30 {
            let reply = ask_at(envoy, path, &[]).await;
            let by = if reply.status == 200 { who(&reply) } else { String::new() };
            seen.insert((reply.status, by));
        }
        all.insert(version, seen);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_of_lb_subset_config_is_a_subset_of_ours() {
    let version = |number: usize| if number < 2 { "v2" } else { "v1" };
    let mut world = World::with(6, |number, it| it.metadata("version", version(number))).await;
    let mut config = world.config();
    by_version(&mut config, |route, version| {
        let asked = json!({"pintle": {"subset": {"version": version}}});
        route["metadata"] = json!({"filter_metadata": asked});
    });
    let envoy = world.envoy(config).await;
    let select = json!({"strategy": "round_robin", "panic_percent": 0, "subset":
        [{"metadata": "version"}]});
    world.policy(json!({"select": select})).await;
    let ours = answers(&envoy).await;

    let change = |config: &mut EnvoyConfig| {
        by_version(config, |route, version| {
            let asked = json!({"envoy.lb": {"version": version}});
            route["route"]["metadata_match"] = json!({"filter_metadata": asked});
        });
        let cluster = config.cluster("orders");
        // The subsets of a cluster go with a policy of the earlier form alone.
        cluster.as_object_mut().unwrap().remove("load_balancing_policy");
        cluster["lb_policy"] = json!("ROUND_ROBIN");
        cluster["lb_subset_config"] =
            json!({"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["version"]}]});
        let list = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"];
        for (number, host) in list.as_array_mut().unwrap().iter_mut().enumerate() {
            let has = json!({"envoy.lb": {"version": version(number)}});
            host["metadata"] = json!({"filter_metadata": has});
        }
    };
    let theirs = answers(&native(&world.upstreams, change).await).await;
    assert_eq!(ours, theirs);
    assert_eq!(ours["v2"].len(), 2, "{ours:?}");
    assert_eq!(ours["v9"], BTreeSet::from([(503, String::new())]), "{ours:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_failures_in_a_row_keep_an_endpoint_out_by_outlier_detection_and_by_a_breaker() {
    let mut world = World::start(3).await;
    let ours = world.envoy(world.config()).await;
    world.policy(json!({"select": {"strategy": "round_robin"}, "breaker": {}})).await;
    let theirs = native(&world.upstreams, |config| {
        config.cluster("orders")["outlier_detection"] =
            json!({"consecutive_5xx": 5, "base_ejection_time": "30s", "max_ejection_percent": 50});
    })
    .await;
    let bad = &world.upstreams[0];
    bad.set(Behaviour::failing(Fault::Status(500)));
    let mut failures = BTreeMap::new();
    for (name, envoy) in [("ours", &ours), ("theirs", &theirs)] {
        bad.forget();
        for _ in 0..60 {
            ask(envoy, &[]).await;
            // Until the other worker has heard of it.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        failures.insert(name, bad.requests());
        assert!(!spread(envoy, 30, &[]).await.contains_key(bad.name()), "{name}");
    }
    assert_eq!(failures, BTreeMap::from([("ours", 5), ("theirs", 5)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_request_gives_a_slow_endpoint_about_what_envoys_does() {
    let mut world = World::start(3).await;
    let ours = world.envoy(world.config()).await;
    world.policy(json!({"select": {"strategy": "least_request"}})).await;
    let least = |config: &mut EnvoyConfig| {
        *config = config.clone().native_policy("orders", "least_request", &json!({}));
    };
    let theirs = native(&world.upstreams, least).await;
    let (slow, quick) = world.upstreams.split_first().unwrap();
    slow.set(Behaviour::slow(Latency::Fixed(Duration::from_millis(100))));
    for upstream in quick {
        upstream.set(Behaviour::slow(Latency::Fixed(Duration::from_millis(5))));
    }
    let mut shares = Vec::new();
    for envoy in [&ours, &theirs] {
        slow.forget();
        let report = Load::to(envoy.addr()).rate(200.0).run_for_secs(4.0).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        shares.push(slow.requests() as f64 / report.total() as f64);
    }
    // Each worker of Envoy's knows its own requests alone, so that more go to the slow one.
    println!("of the slow one: ours {:.3}, Envoy's {:.3}", shares[0], shares[1]);
    assert!((shares[1] * 0.4..shares[1] * 1.1).contains(&shares[0]), "{shares:?}");
    assert!(shares[1] < 0.25, "{shares:?}");
}
