//! What is said of configurations that are right, and of each thing that is wrong.

use serde_json::{Value, json};
use wiremock::matchers::{method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::serve::admin::view::{SourceJson, SourcesJson};

const SOCK: &str = "/run/pintle/agent.sock";

fn good() -> Value {
    json!({"configs": [
        {"bootstrap": {"node": {"id": "envoy-1", "cluster": "edge"}, "static_resources": {}}},
        {"static_listeners": [{"listener": {"filter_chains": [{"filters": [{"typed_config": {
            "stat_prefix": "in",
            "early_header_mutation_extensions": [{"typed_config": {"mutations": [{"remove": "x-pintle-endpoints"}]}}],
            "http_filters": [{"name": "pintle", "typed_config": {"config": {
                "name": "pintle",
                "configuration": {"value": r#"{"sync": {"cluster": "sync"}, "select": {}}"#},
                "failure_policy": "FAIL_RELOAD",
                "reload_config": {"backoff": {"base_interval": "0.100s"}},
                "vm_config": {"vm_id": "pintle", "code": {"local": {"filename": "pintle.wasm"}}}
            }}}],
            "route_config": {"virtual_hosts": []}
        }}]}]}}]},
        {"static_clusters": [
            {"cluster": {"name": "sync", "type": "STATIC", "http2_protocol_options": {}, "load_assignment": {"endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"pipe": {"path": SOCK}}}}]}]}}},
            {"cluster": {"name": "orders", "type": "EDS",
                "eds_cluster_config": {"eds_config": {"api_config_source": {}, "initial_fetch_timeout": "2s"}},
                "metadata": {"filter_metadata": {"pintle": {"service": "orders"}}},
                "typed_extension_protocol_options": {"http": {"http_filters": [{"typed_config": {
                    "mutations": {"request_mutations": [{"remove": "x-pintle-endpoints"}]}}}]}},
                "load_balancing_policy": {"policies": [{"typed_extension_config": {"typed_config": {
                    "override_host_sources": [{"header": "x-pintle-endpoints"}]}}}]}}}
        ]}
    ]})
}

/// The dump with the value at `pointer` replaced, or taken away.
fn with(pointer: &str, value: Option<Value>) -> Value {
    let mut dump = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = dump.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(key.to_owned(), value),
        None => parent.remove(key),
    };
    dump
}

const MANAGER: &str =
    "/configs/1/static_listeners/0/listener/filter_chains/0/filters/0/typed_config";

#[test]
fn the_shipped_shape_is_good() {
    let findings = judge(&good(), SOCK);
    let worse: Vec<_> = findings.iter().filter(|it| it.state != State::Good).collect();
    assert!(worse.is_empty(), "{worse:?}");
    assert!(findings.len() >= 4, "{findings:?}");
}

#[test]
fn tracing_alone_needs_no_agent() {
    let pointer = format!("{MANAGER}/http_filters/0/typed_config/config/configuration/value");
    let findings = judge(&with(&pointer, Some(json!(r#"{"trace": {}}"#))), SOCK);
    assert!(findings.iter().all(|it| it.state == State::Good), "{findings:?}");
}

#[test]
fn each_thing_that_is_wrong_is_named_with_what_to_do() {
    use State::{Bad, Warn};
    let plugin = |key: &str| format!("{MANAGER}/http_filters/0/typed_config/config/{key}");
    let manager = |key: &str| format!("{MANAGER}/{key}");
    let orders = |key: &str| format!("/configs/2/static_clusters/1/cluster/{key}");
    for (pointer, value, state, says) in [
        (plugin("failure_policy"), None, Bad, "every request there gets 503"),
        (plugin("failure_policy"), Some(json!("FAIL_CLOSED")), Bad, "FAIL_CLOSED"),
        (plugin("failure_policy"), Some(json!("FAIL_OPEN")), Warn, "without the module"),
        (plugin("reload_config/backoff/base_interval"), Some(json!("0.001s")), Bad, "0.001"),
        (plugin("reload_config/backoff/base_interval"), Some(json!("3s")), Warn, "3 s"),
        (plugin("reload_config"), None, Warn, "not set (1 s)"),
        (plugin("vm_config/vm_id"), None, Warn, "share its data"),
        (plugin("vm_config/allow_precompiled"), Some(json!(true)), Warn, "precompiled"),
        (plugin("vm_config/code"), Some(json!({"remote": {"http_uri": {}}})), Bad, "sha256"),
        (plugin("vm_config"), None, Bad, "no Wasm plugin"),
        (
            plugin("configuration/value"),
            Some(json!(r#"{"select": {}}"#)),
            Bad,
            "sync.cluster is not set",
        ),
        (
            plugin("configuration/value"),
            Some(json!(r#"{"sync": {"cluster": "other"}}"#)),
            Bad,
            "no such cluster",
        ),
        (
            plugin("configuration/value"),
            Some(json!(r#"{"sync": {"cluster": "sync"}, "breaker": {}}"#)),
            Bad,
            "without select",
        ),
        (
            plugin("configuration/value"),
            Some(json!(r#"{"sync": {"cluster": "sync"}, "select": {"header": "x-other"}}"#)),
            Bad,
            "in x-other, and no cluster reads it",
        ),
        (manager("early_header_mutation_extensions"), None, Bad, "choose its host through in"),
        (
            manager("route_config/request_headers_to_remove"),
            Some(json!(["x-pintle-endpoints"])),
            Bad,
            "before the host is chosen",
        ),
        (
            orders("original_dst_lb_config"),
            Some(json!({"use_http_header": true})),
            Bad,
            "any address can be reached",
        ),
        (
            orders("eds_cluster_config/eds_config/initial_fetch_timeout"),
            None,
            Warn,
            "closed for 15 s",
        ),
        ("/configs/0/bootstrap/node/cluster".to_owned(), None, Bad, "node.cluster"),
        (
            "/configs/2/static_clusters/0/cluster/load_assignment".to_owned(),
            None,
            Bad,
            "no cluster has the pipe",
        ),
    ] {
        let findings = judge(&with(&pointer, value), SOCK);
        let found: Vec<_> = findings.iter().filter(|it| it.state != State::Good).collect();
        assert_eq!(found.len(), 1, "{pointer}: {found:?}");
        assert_eq!(found[0].state, state, "{pointer}");
        assert!(found[0].detail.contains(says), "{pointer}: {found:?}");
        assert!(found[0].todo.is_some());
    }
}

async fn envoy(answers: &[(&str, u16, Value)]) -> MockServer {
    let server = MockServer::start().await;
    for (at, status, body) in answers {
        Mock::given(method("GET"))
            .and(path(*at))
            .respond_with(ResponseTemplate::new(*status).set_body_json(body))
            .mount(&server)
            .await;
    }
    server
}

#[tokio::test]
async fn a_running_envoy_is_asked_for_all_of_it() {
    let clusters = |active: &str| {
        json!({"cluster_statuses": [{"name": "sync", "host_statuses": [{
            "address": {"pipe": {"path": SOCK}},
            "stats": [
                {"name": "cx_connect_fail", "value": "4"},
                {"type": "GAUGE", "name": "cx_active", "value": active}]}]}]})
    };
    let stats = |active: u64, reloads: u64| {
        json!({"stats": [
            {"name": "wasm.envoy.wasm.runtime.v8.active", "value": active},
            {"name": "wasm.pintle.vm_reload_success", "value": reloads}]})
    };
    let listeners = json!({"listener_statuses": [{"name": "in"}]});
    let server = envoy(&[
        ("/config_dump", 200, good()),
        ("/ready", 200, json!("LIVE")),
        ("/stats", 200, stats(3, 0)),
        ("/clusters", 200, clusters("2")),
        ("/listeners", 200, listeners),
    ])
    .await;
    let findings = envoy::check(&server.address().to_string(), SOCK, None).await;
    assert!(findings.iter().all(|it| it.state == State::Good), "{findings:?}");
    let server = envoy(&[
        ("/config_dump", 200, good()),
        ("/ready", 503, json!("PRE_INITIALIZING")),
        ("/stats", 200, stats(0, 7)),
        ("/clusters", 200, clusters("0")),
        ("/listeners", 200, json!({})),
    ])
    .await;
    let findings = envoy::check(&server.address().to_string(), SOCK, None).await;
    let wrong: Vec<_> =
        findings.iter().filter(|it| it.state != State::Good).map(|it| it.detail.as_str()).collect();
    assert_eq!(
        wrong,
        [
            "/ready answers 503 Service Unavailable",
            "no VM is active",
            "a VM has trapped: 7 reloads since Envoy's start",
            "no connection to the agent (4 failed)",
            "none is listening",
        ]
    );
}

#[tokio::test]
async fn an_envoy_that_is_not_there_is_one_finding() {
    let findings = envoy::check("127.0.0.1:1", SOCK, None).await;
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].state, State::Bad);
}

#[test]
fn what_a_source_says_of_itself_is_found_whether_it_answers_or_not() {
    let source = |connected, error: Option<&str>, warnings: &[&str]| SourceJson {
        enabled: true,
        connected,
        endpoint: "http://etcd-1:2379".to_owned(),
        error: error.map(ToOwned::to_owned),
        warnings: warnings.iter().map(|it| (*it).to_owned()).collect(),
        ..SourceJson::default()
    };
    for (etcd, expect) in [
        (source(true, None, &[]), vec![]),
        (source(false, Some("no answer"), &["old"]), vec!["etcd-away"]),
        (source(true, Some("no permission to read /a/"), &["x"]), vec!["source-impaired"; 2]),
        (SourceJson::default(), vec!["sources-none"]),
    ] {
        let sources = SourcesJson { etcd: etcd.clone(), ..SourcesJson::default() };
        let found = agent::sources(&sources, &[]);
        let codes: Vec<_> = found.iter().filter_map(|it| Some(it.code?.as_str())).collect();
        assert_eq!(codes, expect, "{etcd:?}");
    }
    let away = SourcesJson { etcd: source(false, None, &[]), ..SourcesJson::default() };
    assert!(agent::sources(&away, &[Code::EtcdAway]).is_empty(), "it was found already");
}

/// A code that is printed has a section to be looked up in, and no section is about nothing.
#[test]
fn every_code_has_a_section() {
    use std::collections::BTreeSet;
    let page = include_str!("../../../../docs/troubleshooting.md");
    let headings = page.lines().filter_map(|line| line.strip_prefix("## ")).map(str::trim);
    let (_alerts, sections): (BTreeSet<&str>, BTreeSet<&str>) =
        headings.partition(|heading| heading.starts_with("Pintle"));
    let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(sections, codes);
}
