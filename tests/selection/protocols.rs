//! The same choice over gRPC, over TLS, and without xDS.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_tests::{
    Authority, Behaviour, EnvoyConfig, Instance, Upstream, assert_eventually, http,
};
use serde_json::json;

use crate::support::{ORDERS, World, ask, spread};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_streams_and_tls_upstreams_are_chosen_like_any_other() {
    let mut world = World::start(1).await;
    let authority = Authority::new().unwrap();
    let identity = authority.issue(&["vault.internal"]).unwrap();
    let (mut ledger, mut vault) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let grpc = Upstream::start(&format!("l{number}")).await.unwrap();
        grpc.set(Behaviour::grpc());
        world.register_of("ledger", &grpc).await;
        ledger.push(grpc);
        let tls = Upstream::start_tls(&format!("v{number}"), &identity).await.unwrap();
        world.register_of("vault", &tls).await;
        vault.push(tls);
    }
    let mut config = world.config().clusters_from("clusters.yaml").unwrap();
    let tls = &mut config.cluster("vault")["transport_socket"]["typed_config"];
    tls["common_tls_context"]["validation_context"]["trusted_ca"] =
        json!({"filename": authority.certificate()});
    let config = config.plugin(|plugin| plugin["select"]["strategy"] = json!("round_robin"));
    let envoy = world.envoy(config).await;

    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..30 {
        let mut request = http::request("ledger", "POST", "/bank.Ledger/Post", "").unwrap();
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let reply = http::send_h2(envoy.addr(), request).await.unwrap();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.trailers.get("grpc-status").unwrap(), "0");
        *seen.entry(reply.header("x-upstream").unwrap().to_string()).or_default() += 1;
    }
    assert!(seen.len() == 3 && seen.values().all(|n| (8..=12).contains(n)), "{seen:?}");
    for seen in ledger.iter().flat_map(Upstream::seen) {
        assert_eq!(seen.version, ::http::Version::HTTP_2);
        assert!(!seen.headers.contains_key("x-pintle-endpoints"), "{:?}", seen.headers);
    }

    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..30 {
        let reply = http::send(envoy.addr(), http::request("vault", "GET", "/", "").unwrap()).await;
        let reply = reply.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert!(reply.echoed("x-pintle-endpoints").is_empty());
        *seen.entry(reply.header("x-upstream").unwrap().to_string()).or_default() += 1;
    }
    assert!(seen.len() == 3 && seen.values().all(|n| (8..=12).contains(n)), "{seen:?}");
    assert_eq!(envoy.stat("wasmcustom.pintle_unknown_service_total").await.unwrap_or(0), 0);
    drop(vault);
}

/// A stream of the whole state for each cluster is what is shipped; `fixtures` and the other tests
/// here stand on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_come_by_delta_and_over_one_aggregated_stream_as_well() {
    let mut world = World::start(3).await;
    let mut source =
        world.config().cluster(ORDERS)["eds_cluster_config"]["eds_config"]["api_config_source"]
            .take();
    let modes = [("DELTA_GRPC", false), ("GRPC", true), ("DELTA_GRPC", true)];
    for (round, (kind, aggregated)) in modes.into_iter().enumerate() {
        source["api_type"] = json!(kind);
        let mut config =
            world.config().plugin(|plugin| plugin["select"]["strategy"] = json!("round_robin"));
        let eds = &mut config.cluster(ORDERS)["eds_cluster_config"]["eds_config"];
        if aggregated {
            *eds = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "1s"});
            config.root()["dynamic_resources"] = json!({"ads_config": source});
        } else {
            eds["api_config_source"] = source.clone();
        }
        let envoy = world.envoy(config).await;
        let hosts = async |count| {
            assert_eventually!(
                Duration::from_secs(10),
                envoy.hosts(ORDERS).await.unwrap().len() == count,
                "{kind}, aggregated: {aggregated}: {count} hosts"
            );
        };
        hosts(3 + round).await;
        let late = Upstream::start(&format!("u{:02}", 3 + round)).await.unwrap();
        world.register(&Instance::of(ORDERS, &late)).await;
        world.upstreams.push(late);
        hosts(4 + round).await;
        assert_eq!(spread(&envoy, 60, &[]).await.len(), 4 + round, "{kind}, {aggregated}");
        // One a minute may go; of two the second would be held.
        if kind == "DELTA_GRPC" && aggregated {
            world.deregister("u00").await;
            hosts(3 + round).await;
            assert_eq!(spread(&envoy, 60, &[]).await.len(), 3 + round, "{kind}, {aggregated}");
        }
        assert_eq!(envoy.stat("cluster.orders.update_rejected").await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_dst_follows_the_registry_without_xds() {
    let mut world = World::start(3).await;
    let gone = world.upstreams[1].addr();
    let config = world.adapt(EnvoyConfig::original_dst().unwrap());
    let config = config.plugin(|plugin| plugin["select"]["strategy"] = json!("round_robin"));
    let envoy = world.envoy(config).await;
    let seen = spread(&envoy, 30, &[]).await;
    assert!(seen.len() == 3 && seen.values().all(|n| (8..=12).contains(n)), "{seen:?}");

    world.deregister("u01").await;
    assert!(
        !spread(&envoy, 30, &[]).await.contains_key("u01"),
        "removed in the registry is removed"
    );
    let late = Upstream::start("u03").await.unwrap();
    world.register(&Instance::of(ORDERS, &late)).await;
    assert!(spread(&envoy, 30, &[]).await.contains_key("u03"), "and added is added");

    let wanted = gone.to_string();
    let before = world.upstreams[1].requests();
    for header in ["x-envoy-original-dst-host", "x-pintle-endpoints"] {
        for _ in 0..10 {
            assert_eq!(ask(&envoy, &[(header, &wanted)]).await.status, 200);
        }
    }
    assert_eq!(world.upstreams[1].requests(), before, "a client names nobody");
    // Idle connections hold a host; with the process they go, and with them the host.
    world.upstreams[1].close().await;
    assert_eventually!(
        Duration::from_secs(30),
        !envoy.hosts(ORDERS).await.unwrap().contains(&gone),
        "Envoy forgets the host once nothing is connected to it"
    );
}
