//! Filters of Envoy's own that choose the host, answer out of a store, or speak another protocol
//! to it.

use pintle_tests::{EnvoyConfig, http};
use serde_json::{Value, json};

use crate::config::{host, http2, unretried};
use crate::row::{Followed, Row, Site};

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";
const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
/// By `protoc --descriptor_set_out` of `package ledger; message Text { string text = 1; } service
/// Texts { rpc Say(Text) returns (Text); }`, as proto3.
const TEXTS: &str = "CmYKDGxlZGdlci5wcm90bxIGbGVkZ2VyIhoKBFRleHQSEgoEdGV4dBgBIAEoCVIEdGV4dDIqCgVUZXh\
    0cxIhCgNTYXkSDC5sZWRnZXIuVGV4dBoMLmxlZGdlci5UZXh0YgZwcm90bzM=";

const CONNECT: (&str, &str) = ("connect", "connect_grpc_bridge.v3.FilterConfig");
const HTTP1: (&str, &str) = ("http1", "grpc_http1_bridge.v3.Config");

/// Where a filter stands.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Before the module.
    First,
    /// Between the module and the router.
    Last,
}

pub fn rows() -> Vec<Row> {
    vec![
        // Envoy's own sessions win over the module's choice.
        Row::new("session", 10, sessions)
            .endpoints(3)
            .configured(|config| session(config, "session", Place::Last))
            .followed(Followed::Elsewhere),
        Row::new("session-first", 10, sessions)
            .endpoints(3)
            .configured(|config| session(config, "session-first", Place::First))
            .followed(Followed::Elsewhere),
        // What a store asks for itself has no host, and what it has is nobody's answer.
        Row::new("cached", 10, stored)
            .configured(|config| cache(config, "cached", "cache", ""))
            .followed(Followed::Unknown),
        Row::new("cached-2", 10, stored)
            .configured(|config| cache(config, "cached-2", "cache_v2", "V2"))
            .followed(Followed::Unknown),
        // A call of gRPC in place of the client's JSON, before the module and behind it.
        Row::new("transcoded", 20, transcoded)
            .configured(|config| transcoder(config, "transcoded", Place::Last)),
        Row::new("transcoded-first", 20, transcoded)
            .configured(|config| transcoder(config, "transcoded-first", Place::First)),
        // The same for a client of the Connect protocol.
        Row::new("connect-rpc", 20, connect)
            .configured(|config| bridge(config, "connect-rpc", Place::Last, CONNECT)),
        Row::new("connect-rpc-first", 20, connect)
            .configured(|config| bridge(config, "connect-rpc-first", Place::First, CONNECT)),
        // A client of HTTP/1.1, which reads the status of its call in the head.
        Row::new("grpc-http1", 20, bridged)
            .configured(|config| bridge(config, "grpc-http1", Place::Last, HTTP1)),
        Row::new("grpc-http1-first", 20, bridged)
            .configured(|config| bridge(config, "grpc-http1-first", Place::First, HTTP1)),
        Row::new("compressed", 0, |site| async move {
            for _ in 0..4 {
                let mut request = site.request("GET", "large");
                request.headers_mut().insert("accept-encoding", "gzip".parse().expect("a value"));
                let reply = site.send(request).await;
                assert_eq!((reply.status, reply.header("content-encoding")), (200, Some("gzip")));
            }
        })
        .configured(|config| {
            let gzip = json!({"name": "gzip", "typed_config": {"@type": format!("{EXTENSIONS}.compression.gzip.compressor.v3.Gzip")}});
            let fields = json!({"compressor_library": gzip, "response_direction_config":
                {"common_config": {"content_type": []}}});
            switched(config, "compressed", Place::Last, "compressor", "compressor.v3.Compressor", &fields)
        }),
    ]
}

/// The first answer's cookie binds the others to its host.
async fn sessions(site: Site) {
    let first = site.send(site.request("GET", "ok")).await;
    let cookie = first.header("set-cookie").expect("a session").split(';').next();
    let cookie = cookie.expect("a cookie").parse::<hyper::header::HeaderValue>().expect("a value");
    let of = first.header("x-upstream").map(str::to_owned);
    for _ in 0..100 {
        let mut request = site.request("GET", "ok");
        request.headers_mut().insert("cookie", cookie.clone());
        assert_eq!(site.send(request).await.header("x-upstream"), of.as_deref());
    }
}

/// Answers that are nobody's fault, good ones, and four that are the endpoint's.
async fn transcoded(site: Site) {
    for (status, read) in [(0, 200), (5, 404), (14, 503), (16, 401), (14, 503), (13, 500), (0, 200)]
    {
        let request = http::request(site.name, "POST", "/ledger.Texts/Say", r#"{"text": "hi"}"#);
        let mut request = request.expect("a request");
        let headers = request.headers_mut();
        headers.insert("content-type", "application/json".parse().expect("a value"));
        let act = format!("grpc/trailers/{status}").parse().expect("a value");
        headers.insert("x-act", act);
        assert_eq!(site.send(request).await.status, read, "{status}");
    }
}

async fn connect(site: Site) {
    for (status, read) in [(0, 200), (5, 404), (14, 503), (16, 401), (14, 503), (13, 500), (0, 200)]
    {
        let request = http::request(site.name, "POST", "/ledger.Texts/Say", "");
        let mut request = request.expect("a request");
        let act = format!("grpc/trailers/{status}");
        for (name, value) in [
            ("content-type", "application/proto"),
            ("connect-protocol-version", "1"),
            ("x-act", act.as_str()),
        ] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        assert_eq!(site.send(request).await.status, read, "{status}");
    }
}

async fn bridged(site: Site) {
    for status in ["0", "5", "14", "16", "14", "13", "0"] {
        let mut request = site.request("POST", &format!("grpc/trailers/{status}"));
        let kind = "application/grpc".parse().expect("a value");
        request.headers_mut().insert("content-type", kind);
        assert_eq!(site.send(request).await.header("grpc-status"), Some(status));
    }
}

fn bridge(
    config: EnvoyConfig,
    row: &str,
    place: Place,
    (filter, message): (&str, &str),
) -> EnvoyConfig {
    http2(switched(config, row, place, filter, message, &json!({})), row)
}

/// One answer of the endpoint's and five out of the store; three that are not kept.
async fn stored(site: Site) {
    site.gets(6, "kept", 200).await;
    site.gets(1, "ok", 200).await;
    site.gets(2, "status/503", 503).await;
    assert_eq!(site.upstreams[0].log().len(), 4);
}

fn cache(config: EnvoyConfig, row: &str, package: &str, version: &str) -> EnvoyConfig {
    let store = format!("{package}.simple_http_cache.v3.SimpleHttpCache{version}Config");
    let fields = json!({"typed_config": {"@type": format!("{EXTENSIONS}.http.{store}")}});
    let message = format!("{package}.v3.Cache{version}Config");
    unretried(switched(config, row, Place::Last, "store", &message, &fields), row)
}

fn session(config: EnvoyConfig, row: &str, place: Place) -> EnvoyConfig {
    let state = format!("{EXTENSIONS}.http.stateful_session.cookie.v3.CookieBasedSessionState");
    let cookie = json!({"name": "session", "path": "/", "ttl": "60s"});
    let state = json!({"name": "envoy.http.stateful_session.cookie",
        "typed_config": {"@type": state, "cookie": cookie}});
    let fields = json!({"session_state": state});
    switched(config, row, place, "stateful_session", "stateful_session.v3.StatefulSession", &fields)
}

fn transcoder(config: EnvoyConfig, row: &str, place: Place) -> EnvoyConfig {
    let message = "grpc_json_transcoder.v3.GrpcJsonTranscoder";
    let fields =
        json!({"proto_descriptor_bin": TEXTS, "services": ["ledger.Texts"], "auto_mapping": true});
    http2(switched(config, row, place, "grpc_json_transcoder", message, &fields), row)
}

/// Puts a filter of Envoy's into the chain, which is switched on for this row's route alone.
pub(super) fn switched(
    mut config: EnvoyConfig,
    row: &str,
    place: Place,
    filter: &str,
    message: &str,
    fields: &Value,
) -> EnvoyConfig {
    let name = format!("{row}.{filter}");
    let mut typed = fields.clone();
    typed["@type"] = json!(format!("{HTTP}.{message}"));
    let filters = config.http_connection_manager()["http_filters"].as_array_mut();
    let filters = filters.expect("filters");
    let at = match place {
        Place::First => 0,
        Place::Last => filters.len() - 1,
    };
    filters.insert(at, json!({"name": name, "disabled": true, "typed_config": typed}));
    host(&mut config, row)["routes"][0]["typed_per_filter_config"][name] =
        json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}});
    config
}
