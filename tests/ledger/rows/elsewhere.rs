//! Requests that go elsewhere than where the module sent them, or that are none of its business.

use pintle_tests::EnvoyConfig;
use serde_json::{Value, json};

use crate::config::{host, policy, route};
use crate::row::{Followed, Row};
use crate::upstream::{Entry, Upstream};

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("mirror", 15, |site| async move { site.gets(12, "ok", 200).await })
            .strays(1)
            .placed(|config, upstreams| {
                let mut config = beside(config, "shadow", &upstreams[1]);
                let mirrors = json!([{"cluster": "shadow"}]);
                route(&mut config, "mirror")["request_mirror_policies"] = mirrors;
                config
            })
            .also(|site| untold(&site.upstreams)),
        // Three of version 1, and a bad canary, which alone is in the cluster.
        Row::new("canary", 10, |site| async move {
            site.upstreams[3].always("status/503");
            site.gets(20, "ok", 503).await;
        })
        .endpoints(4)
        .placed(|config, upstreams| config.static_hosts("canary", &[upstreams[3].addr()]))
        .opens(&[3])
        .followed(Followed::Elsewhere),
        // Each version has a cluster of its own, which says so; a header chooses the route.
        Row::new("canary-cluster", 14, |site| async move {
            site.upstreams[3].always("status/503");
            for _ in 0..12 {
                assert_eq!(site.get("ok").await, 200);
                let mut request = site.request("GET", "ok");
                request.headers_mut().insert("x-canary", "1".parse().expect("a value"));
                assert_eq!(site.send(request).await.status, 503);
            }
        })
        .endpoints(4)
        .versions(&["1", "1", "1", "2"])
        .placed(|config, upstreams| {
            let addrs: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
            let mut config = config
                .static_hosts("canary-cluster", &addrs[..3])
                .service("canary-2")
                .static_hosts("canary-2", &addrs[3..]);
            for (name, version) in [("canary-cluster", "1"), ("canary-2", "2")] {
                config.cluster(name)["metadata"]["filter_metadata"]["pintle"] =
                    json!({"service": "canary-cluster", "subset": {"version": version}});
            }
            let host = host(&mut config, "canary-cluster");
            let mut canary = host["routes"][0].clone();
            canary["name"] = json!("canary");
            canary["match"]["headers"] = json!([{"name": "x-canary", "present_match": true}]);
            canary["route"]["cluster"] = json!("canary-2");
            host["routes"].as_array_mut().expect("routes").insert(0, canary);
            let select = json!({"select": {"subset": [{"metadata": "version"}]}});
            policy(config, "canary-cluster", select)
        })
        .opens(&[3]),
        Row::new("stray", 10, |site| async move {
            site.upstreams[2].always("status/503");
            site.gets(12, "ok", 503).await;
        })
        .endpoints(2)
        .strays(1)
        .placed(|config, upstreams| config.static_hosts("stray", &[upstreams[2].addr()]))
        .followed(Followed::Strays),
        // Good answers count for whoever gave them, too.
        Row::new("canary-well", 10, |site| async move { site.gets(100, "ok", 200).await })
            .endpoints(4)
            .placed(|config, upstreams| config.static_hosts("canary-well", &[upstreams[3].addr()]))
            .followed(Followed::Elsewhere),
        Row::new("stray-well", 10, |site| async move { site.gets(100, "ok", 200).await })
            .endpoints(2)
            .strays(1)
            .placed(|config, upstreams| config.static_hosts("stray-well", &[upstreams[2].addr()]))
            .followed(Followed::Strays),
        // A later filter sends it to another service.
        Row::new("reroute", 11, |site| async move {
            site.upstreams[2].always("status/503");
            site.gets(12, "ok", 503).await;
        })
        .endpoints(2)
        .strays(1)
        .placed(|config, upstreams| {
            let mut config = lua(beside(config, "billing", &upstreams[2]));
            let source = "function envoy_on_request(handle) \
                          handle:headers():replace('x-to', 'billing') handle:clearRouteCache() end";
            let host = host(&mut config, "reroute");
            host["typed_per_filter_config"] = json!({"envoy.filters.http.lua":
                {"@type": format!("{LUA}.LuaPerRoute"), "source_code": {"inline_string": source}}});
            let mut billing = host["routes"][0].clone();
            billing["name"] = json!("billing");
            billing["match"]["headers"] =
                json!([{"name": "x-to", "string_match": {"exact": "billing"}}]);
            billing["route"]["cluster"] = json!("billing");
            host["routes"].as_array_mut().expect("routes").insert(0, billing);
            config
        })
        .followed(Followed::Strays),
        Row::new("aggregate", 12, |site| async move {
            site.gets(6, "ok", 200).await;
            site.gets(6, "status/503", 503).await;
        })
        .endpoints(2)
        .placed(|mut config, _| {
            let mut outer = json!({"name": "outer", "connect_timeout": "0.25s",
                "lb_policy": "CLUSTER_PROVIDED",
                "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig",
                    "clusters": ["aggregate"]}}});
            // The line that keeps the list from the upstream: the filters are the outer cluster's.
            let inner = config.cluster("aggregate");
            for field in ["typed_extension_protocol_options", "metadata"] {
                outer[field] = inner[field].clone();
            }
            let clusters = config.at("/static_resources/clusters").as_array_mut();
            clusters.expect("clusters").push(outer);
            route(&mut config, "aggregate")["cluster"] = json!("outer");
            // Always the same choice: Envoy's turns would keep step with ours.
            let one = json!({"strategy": "ring_hash", "hash_key": [{"header": ":authority"}]});
            policy(config, "aggregate", json!({"select": one}))
        })
        .followed(Followed::Elsewhere)
        .also(|site| untold(&site.upstreams)),
        Row::new("direct-response", 16, |site| async move {
            assert_eq!(site.pass(site.request("GET", "healthz")).await.status, 200);
            assert_eq!(site.pass(site.request("GET", "old")).await.status, 301);
        })
        .configured(|mut config| {
            let reply = json!({"match": {"path": "/healthz"},
                "direct_response": {"status": 200, "body": {"inline_string": "well"}}});
            let moved = json!({"match": {"path": "/old"}, "redirect": {"path_redirect": "/ok"}});
            let routes = host(&mut config, "direct-response")["routes"].as_array_mut();
            routes.expect("routes").splice(0..0, [reply, moved]);
            config
        }),
        // The cluster says whose it is, and nobody has registered.
        Row::new("no-table", 16, |site| async move {
            let reply = site.pass(site.request("GET", "ok")).await;
            assert_eq!(reply.header("x-pintle-reason"), Some("no-table"), "{}", reply.status);
        })
        .endpoints(0)
        .strays(1)
        .placed(|config, upstreams| config.static_hosts("no-table", &[upstreams[0].addr()])),
        Row::new("not-ours", 16, |site| async move {
            for _ in 0..4 {
                assert_eq!(site.pass(site.request("GET", "ok")).await.status, 200);
            }
        })
        .strays(1)
        .placed(|config, upstreams| {
            let mut config = beside(config, "theirs", &upstreams[1]);
            route(&mut config, "not-ours")["cluster"] = json!("theirs");
            config
        })
        .also(|site| untold(&site.upstreams)),
    ]
}

pub(super) const LUA: &str = "type.googleapis.com/envoy.extensions.filters.http.lua.v3";

/// A cluster of Envoy's own with this one host.
pub(super) fn beside(config: EnvoyConfig, name: &str, upstream: &Upstream) -> EnvoyConfig {
    let mut config = config.service(name).static_hosts(name, &[upstream.addr()]);
    if let Some(cluster) = config.cluster(name).as_object_mut() {
        cluster.remove("metadata");
    }
    config.native_policy(name, "round_robin", &json!({}))
}

/// A Lua filter behind ours, which does nothing where no route says so.
pub(super) fn lua(mut config: EnvoyConfig) -> EnvoyConfig {
    let filter =
        json!({"name": "envoy.filters.http.lua", "typed_config": {"@type": format!("{LUA}.Lua")}});
    let filters: &mut Value = &mut config.http_connection_manager()["http_filters"];
    let filters = filters.as_array_mut().expect("filters");
    if !filters.contains(&filter) {
        filters.insert(filters.len() - 1, filter);
    }
    config
}

/// No upstream may learn of the list.
fn untold(upstreams: &[Upstream]) -> Result<(), String> {
    let told = |entry: &Entry| entry.headers.contains_key("x-pintle-endpoints");
    match upstreams.iter().any(|one| one.log().iter().any(told)) {
        true => Err("an upstream was told the list".into()),
        false => Ok(()),
    }
}
