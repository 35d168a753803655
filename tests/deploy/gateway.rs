//! The objects of `envoy/gateway`, as far as they can be run without a cluster.
//!
//! Envoy Gateway does not run here. What it would send is made as its translator makes it, seen in
//! `internal/xds/translator`: `buildXdsCluster` and `buildEndpointOverrideLoadBalancingPolicy` of
//! `cluster.go`, `testdata/out/xds-ir/wasm.listeners.yaml` at 165b3899, `wasm.routes.yaml` at
//! 1b8aedd4. A filter is off and turned on by each route, a `vm_id` is the policy's own. The module
//! is a file here, where it is fetched from Envoy Gateway there, and what comes by xDS is static.

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Fault, Instance, Load, Nats, Server as _, Upstream,
    assert_eventually, http, tools,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::PATIENCE;

const HOST: &str = "orders.example";
const ROUTE: &str = "httproute/shop/orders/rule/0";
const TYPES: &str = "type.googleapis.com/envoy";
const EARLY: &str = "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";
const MANAGER: &str = "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const STRING: &str = "type.googleapis.com/google.protobuf.StringValue";

/// A policy; what is in `spec` and is not read is refused.
#[derive(Deserialize)]
#[serde(tag = "kind")]
#[expect(clippy::enum_variant_names, reason = "the names of the kinds")]
enum Object {
    EnvoyExtensionPolicy(Policy<Extensions>),
    BackendTrafficPolicy(Policy<Traffic>),
    ClientTrafficPolicy(Policy<Client>),
    EnvoyPatchPolicy(Policy<Patches>),
}

#[derive(Deserialize)]
struct Policy<Spec> {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Extensions {
    target_refs: [Target; 1],
    wasm: [Wasm; 1],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wasm {
    name: String,
    #[serde(rename = "rootID")]
    root_id: String,
    #[serde(rename = "failOpen")]
    fail_open: bool,
    code: Value,
    config: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Traffic {
    target_refs: [Target; 1],
    load_balancer: Balancer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Balancer {
    r#type: String,
    endpoint_override: Override,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Override {
    extract_from: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Client {
    target_refs: [Target; 1],
    headers: ClientHeaders,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClientHeaders {
    early_request_headers: Early,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Early {
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Patches {
    target_ref: Target,
    r#type: String,
    json_patches: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    r#type: String,
    name: String,
    operation: Operation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op: String,
    path: String,
    value: Value,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    group: String,
    kind: String,
    name: String,
}

/// What an Envoy of the Gateway is sent.
struct Sent {
    filters: Vec<Value>,
    /// Of the route: which filters are on.
    on: Value,
    early: Vec<Value>,
    balancing: Value,
    patches: Vec<Patch>,
}

fn sent() -> Sent {
    let text = std::fs::read_to_string(tools::root().join("envoy/gateway/pintle.yaml"));
    let text = text.expect("the file");
    let objects = serde_yaml_ng::Deserializer::from_str(&text);
    let mut sent = Sent {
        filters: Vec::new(),
        on: json!({}),
        early: Vec::new(),
        balancing: Value::Null,
        patches: Vec::new(),
    };
    let gateway = |target: &Target| {
        assert_eq!((target.kind.as_str(), target.name.as_str()), ("Gateway", "shop"));
        assert_eq!(target.group, "gateway.networking.k8s.io");
    };
    for object in objects {
        // Through JSON: a tag within YAML would be asked for otherwise.
        let object = Value::deserialize(object).expect("YAML");
        assert_eq!(object["apiVersion"], "gateway.envoyproxy.io/v1alpha1");
        match serde_json::from_value(object).expect("an object") {
            Object::EnvoyExtensionPolicy(policy) => {
                gateway(&policy.spec.target_refs[0]);
                let [wasm] = policy.spec.wasm;
                assert_eq!(wasm.code["type"], "Image");
                assert!(wasm.code["image"]["url"].is_string());
                let Metadata { namespace, name } = policy.metadata;
                let id = format!("envoyextensionpolicy/{namespace}/{name}/wasm/0");
                let filter = format!("envoy.filters.http.wasm/{id}");
                sent.on[&filter] =
                    json!({"@type": format!("{TYPES}.config.route.v3.FilterConfig"), "config": {}});
                sent.filters.push(json!({"name": filter, "disabled": true, "typed_config": {
                    "@type": format!("{TYPES}.extensions.filters.http.wasm.v3.Wasm"),
                    "config": {
                        "name": wasm.name,
                        "root_id": wasm.root_id,
                        "fail_open": wasm.fail_open,
                        "configuration": {"@type": STRING,
                            "value": wasm.config.to_string()},
                        "vm_config": {"vm_id": id, "runtime": "envoy.wasm.runtime.v8",
                            "code": {"local": {"filename": PINTLE_PATH}}},
                    },
                }}));
            }
            Object::BackendTrafficPolicy(policy) => {
                assert_eq!(policy.spec.target_refs[0].kind, "HTTPRoute");
                assert_eq!(policy.spec.load_balancer.r#type, "LeastRequest");
                let sources = policy.spec.load_balancer.endpoint_override.extract_from;
                sent.balancing = balancing(&sources);
            }
            Object::ClientTrafficPolicy(policy) => {
                gateway(&policy.spec.target_refs[0]);
                let remove = policy.spec.headers.early_request_headers.remove;
                let mutations: Vec<Value> =
                    remove.iter().map(|name| json!({"remove": name})).collect();
                let mutation = "envoy.http.early_header_mutation.header_mutation";
                sent.early.push(json!({"name": mutation, "typed_config": {
                    "@type": format!("{TYPES}.{EARLY}"),
                    "mutations": mutations}}));
            }
            Object::EnvoyPatchPolicy(policy) => {
                gateway(&policy.spec.target_ref);
                assert_eq!(policy.spec.r#type, "JSONPatch");
                sent.patches = policy.spec.json_patches;
            }
        }
    }
    sent
}

fn balancing(sources: &[Value]) -> Value {
    let policy = |name: &str, message: &str, mut fields: Value| {
        let base = "extensions.load_balancing_policies";
        fields["@type"] = json!(format!("{TYPES}.{base}.{name}.v3.{message}"));
        json!({"policies": [{"typed_extension_config": {
            "name": format!("envoy.load_balancing_policies.{name}"), "typed_config": fields}}]})
    };
    let fallback = policy("least_request", "LeastRequest", json!({}));
    let fields = json!({"override_host_sources": sources, "fallback_policy": fallback});
    policy("override_host", "OverrideHost", fields)
}

fn configuration(agent: &Agent, pods: &[Upstream]) -> EnvoyConfig {
    let sent = sent();
    let address = |addr: std::net::SocketAddr| {
        json!({"socket_address":
        {"address": addr.ip().to_string(), "port_value": addr.port()}})
    };
    let hosts: Vec<Value> = pods
        .iter()
        .map(
            |pod| json!({"endpoint": {"address": address(pod.addr())}, "load_balancing_weight": 1}),
        )
        .collect();
    let mut clusters = vec![json!({
        "name": ROUTE,
        "type": "STATIC",
        "connect_timeout": "10s",
        "common_lb_config": {},
        "lb_policy": "CLUSTER_PROVIDED",
        "ignore_health_on_host_removal": true,
        "per_connection_buffer_limit_bytes": 32_768,
        "load_balancing_policy": sent.balancing,
        "load_assignment": {"cluster_name": ROUTE, "endpoints": [{"lb_endpoints": hosts,
            "load_balancing_weight": 1, "locality": {"region": format!("{ROUTE}/backend/0")}}]},
    })];
    for patch in sent.patches {
        assert_eq!(patch.r#type, format!("{TYPES}.config.cluster.v3.Cluster"));
        assert_eq!(patch.operation.op, "add");
        match patch.operation.path.as_str() {
            "" => {
                let mut cluster = patch.operation.value;
                assert_eq!(cluster["name"], patch.name);
                let path = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/pipe/path";
                *cluster.pointer_mut(path).expect("the agent's socket") = json!(agent.socket());
                clusters.push(cluster);
            }
            path => {
                let cluster = clusters.iter_mut().find(|it| it["name"] == patch.name);
                let key = path.strip_prefix('/').expect("a path");
                cluster.expect("a cluster")[key] = patch.operation.value;
            }
        }
    }
    let mut filters = sent.filters;
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": format!("{TYPES}.extensions.filters.http.router.v3.Router"),
        "suppress_envoy_headers": true}}));
    let manager = json!({
        "@type": format!("{TYPES}.{MANAGER}"),
        "stat_prefix": "http",
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "early_header_mutation_extensions": sent.early,
        "http_filters": filters,
        "route_config": {"name": "shop/shop/http", "ignore_port_in_host_matching": true,
            "virtual_hosts": [{"name": "shop/shop/http/orders", "domains": [HOST], "routes": [{
                "name": format!("{ROUTE}/match/0/orders"), "match": {"prefix": "/"},
                "route": {"cluster": ROUTE, "upgrade_configs": [{"upgrade_type": "websocket"}]},
                "typed_per_filter_config": sent.on}]}]},
    });
    let mut config = EnvoyConfig::shipped().expect("a configuration");
    let admin = config.at("/admin").clone();
    *config.root() = json!({
        "node": {"id": "envoy-shop-0", "cluster": "shop/shop"},
        "admin": admin,
        "static_resources": {
            "listeners": [{"name": "shop/shop/http", "address": {}, "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager}]}]}],
            "clusters": clusters,
        },
    });
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_of_a_gateway_is_chosen_by_the_registry() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let mut agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let mut pods = Vec::new();
    for name in ["orders-0", "orders-1", "orders-2", "unregistered"] {
        pods.push(Upstream::start(name).await.expect("a pod"));
    }
    let envoy = Envoy::start(configuration(&agent, &pods)).await.expect("Envoy");
    let load = || Load::to(envoy.addr()).host(HOST).rate(200.0);
    let ask = async |headers: &[(&'static str, &str)]| {
        let mut request = http::request(HOST, "GET", "/", "").expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a value"));
        }
        http::send(envoy.addr(), request).await.expect("an answer").status
    };
    // Nobody is registered: the fallback policy serves.
    let report = load().run_for_secs(0.5).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 4, "{}", report.summary());

    let turns = r#"{"select": {"strategy": "round_robin"}}"#;
    etcd.put("/pintle/policies/orders", turns).await.expect("a policy");
    for pod in &pods[..3] {
        etcd.register(&Instance::of("orders", pod)).await.expect("a registration");
    }
    assert_eventually!(PATIENCE, {
        let report = load().run_for_secs(0.2).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        report.by_upstream().len() == 3 && !report.by_upstream().contains_key("unregistered")
    });
    // A client's list chooses nobody.
    pods[3].forget();
    let unregistered = pods[3].addr().to_string();
    for _ in 0..20 {
        assert_eq!(ask(&[("x-pintle-endpoints", &unregistered)]).await, 200);
    }
    assert_eq!(pods[3].requests(), 0);
    // Five failures, and without the agent it goes on, breaker and all.
    agent.process().kill9();
    pods[0].forget();
    pods[0].set(Behaviour::failing(Fault::Status(500)));
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(ask(&[]).await != 200);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!((failed, pods[0].requests()), (5, 5));
    assert_eq!(envoy.vm_reloads().await.expect("stats"), 0);
}
