//! Filters between the module and the router, which answer in an endpoint's place, wait, or change
//! what passes; and Envoy's own replies in other words.

use pintle_tests::{EnvoyConfig, http};
use serde_json::{Value, json};

use super::elsewhere::{LUA, beside, lua};
use super::filters::{Place, switched};
use crate::config::{host, http2, retry, route, unretried};
use crate::row::Row;
use crate::upstream::Said;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("fault-abort", 0, |site| async move { site.gets(6, "ok", 418).await }).configured(
            |config| {
                fault(
                    config,
                    "fault-abort",
                    &json!({"abort":
                {"http_status": 418, "percentage": {"numerator": 100}}}),
                )
            },
        ),
        Row::new("fault-delay", 0, |site| async move { site.gets(4, "ok", 200).await }).configured(
            |config| {
                fault(
                    config,
                    "fault-delay",
                    &json!({"delay":
                {"fixed_delay": "0.2s", "percentage": {"numerator": 100}}}),
                )
            },
        ),
        Row::new("too-large", 0, |site| async move {
            for _ in 0..4 {
                let request = http::request(site.name, "POST", "/ok", &"x".repeat(4096));
                assert_eq!(site.send(request.expect("a request")).await.status, 413);
            }
            site.gets(2, "ok", 200).await;
        })
        .configured(|config| {
            filter(
                config,
                "too-large",
                "buffer",
                &json!({"max_request_bytes": 1 << 30}),
                &json!({"buffer": {"max_request_bytes": 1024}}),
                "BufferPerRoute",
                "Buffer",
            )
        }),
        // Another filter's 200 is no endpoint's.
        Row::new("lua-answers", 0, |site| async move { site.gets(6, "ok", 200).await }).configured(
            |config| {
                let answer = "function envoy_on_request(handle) \
                              handle:respond({[':status'] = '200'}, 'lua') end";
                scripted(config, "lua-answers", answer)
            },
        ),
        // The endpoint answers well, and a script cannot hold all of it: Envoy says 500.
        Row::new("lua-holds", 0, |site| async move { site.gets(3, "large", 500).await })
            .configured(|config| {
                let hold = "function envoy_on_response(handle) handle:body() end";
                unretried(scripted(config, "lua-holds", hold), "lua-holds")
            }),
        Row::new("unauthorized", 0, |site| async move {
            site.gets(2, "ok", 200).await;
            site.upstreams[1].always("status/403");
            site.gets(6, "ok", 403).await;
        })
        .strays(1)
        .placed(|config, upstreams| {
            let server = json!({"uri": "http://authz", "cluster": "authz", "timeout": "2s"});
            filter(
                beside(config, "authz", &upstreams[1]),
                "unauthorized",
                "ext_authz",
                &json!({"http_service": {"server_uri": server}}),
                &json!({"check_settings": {}}),
                "ExtAuthzPerRoute",
                "ExtAuthz",
            )
        }),
        Row::new("rate-limited", 0, |site| async move {
            site.gets(2, "ok", 200).await;
            site.gets(6, "ok", 429).await;
        })
        .configured(|config| {
            let always = json!({"default_value": {"numerator": 100}});
            let limit = json!({"stat_prefix": "limited", "filter_enabled": always,
                "filter_enforced": always,
                "token_bucket": {"max_tokens": 2, "fill_interval": "60s"}});
            filter(
                config,
                "rate-limited",
                "local_ratelimit",
                &json!({"stat_prefix": "limited"}),
                &limit,
                "LocalRateLimit",
                "LocalRateLimit",
            )
        }),
        // An endpoint that hangs, and one that cuts: the client reads 200 each time.
        Row::new("page-for-504", 0, |site| async move { site.gets(6, "hang", 200).await })
            .configured(|config| {
                let mut config = unretried(config, "page-for-504");
                route(&mut config, "page-for-504")["timeout"] = json!("0.2s");
                page(config, "page-for-504")
            })
            .failed(|entry| entry.said == Said::Nothing)
            .opens(&[0]),
        Row::new("page-for-503", 0, |site| async move { site.gets(6, "reset", 200).await })
            .configured(|config| page(unretried(config, "page-for-503"), "page-for-503"))
            .opens(&[0]),
        // Of several attempts, too.
        Row::new("page-for-retried", 0, |site| async move { site.gets(6, "reset", 200).await })
            .endpoints(2)
            .configured(|mut config| {
                retry(&mut config, "page-for-retried", "reset", 1, &json!(null));
                page(config, "page-for-retried")
            })
            .opens(&[0, 1]),
        // The filter makes gRPC of it before the module sees it.
        Row::new("grpc-web-first", 20, |site| async move {
            for _ in 0..6 {
                let mut request = site.request("POST", "grpc/trailers/14");
                let kind = "application/grpc-web+proto".parse().expect("a value");
                request.headers_mut().insert("content-type", kind);
                assert_eq!(site.send(request).await.status, 200);
            }
        })
        .configured(|config| {
            let row = "grpc-web-first";
            let message = "grpc_web.v3.GrpcWeb";
            let config = switched(config, row, Place::First, "grpc_web", message, &json!({}));
            http2(config, "grpc-web-first")
        })
        .opens(&[0]),
        // Each connection has one stream and ends with a GOAWAY.
        Row::new("one-request-each", 0, |site| async move { site.gets(8, "ok", 200).await })
            .configured(|config| {
                let mut config = http2(config, "one-request-each");
                let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
                let cluster = config.cluster("one-request-each");
                cluster["typed_extension_protocol_options"][options]
                    ["common_http_protocol_options"] = json!({"max_requests_per_connection": 1});
                config
            }),
        // A client inside asks for the retries.
        Row::new("client-retries", 0, |site| async move {
            site.upstreams[0].always("status/503");
            for _ in 0..4 {
                let mut request = site.request("GET", "ok");
                for (name, value) in [("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "1"),
                    ("x-forwarded-for", "10.0.0.1")]
                {
                    request.headers_mut().insert(name, value.parse().expect("a value"));
                }
                site.send(request).await;
            }
        })
        .endpoints(2)
        .configured(|config| unretried(config, "client-retries")),
        // By weights, to clusters that are versions of one service.
        Row::new("weighted", 0, |site| async move { site.gets(40, "ok", 200).await })
            .endpoints(2)
            .versions(&["1", "2"])
            .placed(|config, upstreams| {
                let mut config = config.service("weighted-2");
                for (name, at) in [("weighted", 0), ("weighted-2", 1)] {
                    config = config.static_hosts(name, &[upstreams[at].addr()]);
                    config.cluster(name)["metadata"]["filter_metadata"]["pintle"] =
                        json!({"service": "weighted", "subset": {"version": (at + 1).to_string()}});
                }
                let action = route(&mut config, "weighted").as_object_mut().expect("an action");
                action.remove("cluster");
                action.insert(
                    "weighted_clusters".into(),
                    json!({"clusters":
                    [{"name": "weighted", "weight": 50}, {"name": "weighted-2", "weight": 50}]}),
                );
                let select = json!({"select": {"subset": [{"metadata": "version"}]}});
                crate::config::policy(config, "weighted", select)
            }),
        Row::new("cluster-header", 0, |site| async move {
            for _ in 0..4 {
                let mut request = site.request("GET", "ok");
                request
                    .headers_mut()
                    .insert("x-to-cluster", "cluster-header".parse().expect("a value"));
                assert_eq!(site.send(request).await.status, 200);
            }
            // To no cluster.
            assert_eq!(site.pass(site.request("GET", "ok")).await.status, 503);
        })
        .configured(|mut config| {
            let action = route(&mut config, "cluster-header").as_object_mut().expect("an action");
            action.remove("cluster");
            action.insert("cluster_header".into(), json!("x-to-cluster"));
            config
        }),
        // A tunnel, in which the endpoint gets one request that Envoy knows nothing of.
        Row::new("connect", 0, |site| async move {
            for _ in 0..3 {
                site.sending();
                let ask = "CONNECT connect:80 HTTP/1.1\r\nhost: connect:80\r\n\r\n\
                           GET /ok HTTP/1.1\r\nhost: inside\r\nconnection: close\r\n\r\n";
                let said = http::raw(site.tcp, ask.as_bytes(), std::time::Duration::from_secs(1));
                let said = said.await.expect("an answer");
                let said = String::from_utf8_lossy(&said);
                assert_eq!(said.matches("HTTP/1.1 200").count(), 2, "{said}");
            }
        })
        .configured(|mut config| {
            let host = host(&mut config, "connect");
            let mut tunnel = host["routes"][0].clone();
            tunnel["name"] = json!("tunnel");
            tunnel["match"] = json!({"connect_matcher": {}});
            tunnel["route"]["upgrade_configs"] =
                json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
            host["routes"].as_array_mut().expect("routes").insert(0, tunnel);
            config
        }),
    ]
}

/// A page with 200 in the place of Envoy's own replies to this row.
fn page(mut config: EnvoyConfig, name: &str) -> EnvoyConfig {
    let own = json!({"header_filter": {"header":
        {"name": ":authority", "string_match": {"exact": name}}}});
    let mappers = &mut config.http_connection_manager()["local_reply_config"]["mappers"];
    if mappers.is_null() {
        *mappers = json!([]);
    }
    mappers.as_array_mut().expect("mappers").push(json!({"filter": own, "status_code": 200,
        "body": {"inline_string": "We are back soon."}}));
    config
}

fn scripted(config: EnvoyConfig, name: &str, script: &str) -> EnvoyConfig {
    let mut config = lua(config);
    host(&mut config, name)["typed_per_filter_config"] = json!({"envoy.filters.http.lua":
        {"@type": format!("{LUA}.LuaPerRoute"), "source_code": {"inline_string": script}}});
    config
}

fn fault(config: EnvoyConfig, name: &str, of_route: &Value) -> EnvoyConfig {
    filter(config, name, "fault", &json!({}), of_route, "HTTPFault", "HTTPFault")
}

/// Puts a filter of Envoy's before the router, which does something on this row's route alone.
fn filter(
    mut config: EnvoyConfig,
    name: &str,
    filter: &str,
    everywhere: &Value,
    of_route: &Value,
    of_route_type: &str,
    filter_type: &str,
) -> EnvoyConfig {
    let typed = |message: &str, fields: &Value| {
        let mut typed = fields.clone();
        let package = format!("envoy.extensions.filters.http.{filter}.v3.{message}");
        typed["@type"] = json!(format!("type.googleapis.com/{package}"));
        typed
    };
    let full = format!("envoy.filters.http.{filter}");
    let filters = config.http_connection_manager()["http_filters"].as_array_mut();
    let filters = filters.expect("filters");
    if !filters.iter().any(|it| it["name"] == full) {
        let before_router = filters.len() - 1;
        filters.insert(
            before_router,
            // A route's own configuration enables it there.
            json!({"name": full, "disabled": true, "typed_config": typed(filter_type, everywhere)}),
        );
    }
    let host = crate::config::host(&mut config, name);
    host["routes"][0]["typed_per_filter_config"][&full] = typed(of_route_type, of_route);
    config
}
