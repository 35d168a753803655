//! The objects of `envoy/istio` and `envoy/kubernetes`, as far as they can be run without a cluster.
//!
//! istiod does not run here. [`Sidecar`] stands for what it would send to a sidecar: a listener and a
//! cluster in the form that Istio gives them, and the shipped objects applied to these by Istio's rules
//! (`WasmPlugin` by extension discovery without a `vm_id`; `MERGE` as protobuf merges). What comes out is
//! run by a real Envoy, with real agent, etcd and mutual TLS.

use std::path::Path;
use std::time::Duration;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Authority, Behaviour, Envoy, EnvoyConfig, Etcd, Fault, Identity, Instance, Load, Nats,
    Server as _, Upstream, assert_eventually, http, tools,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::PATIENCE;

const HCM: &str = "envoy.filters.network.http_connection_manager";
const SOCKET: &str = "/run/pintle/agent.sock";
const ORDERS: &str = "outbound|80||orders.shop.svc.cluster.local";

/// An object of Kubernetes' kind; what is in `spec` and is not read is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    #[serde(rename = "apiVersion")]
    version: String,
    kind: String,
    metadata: Value,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WasmPlugin {
    selector: Value,
    url: String,
    plugin_name: String,
    fail_strategy: String,
    r#match: Value,
    plugin_config: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EnvoyFilter {
    workload_selector: Value,
    config_patches: Vec<ConfigPatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConfigPatch {
    apply_to: String,
    r#match: Value,
    patch: Patch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    operation: String,
    value: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceEntry {
    hosts: [String; 1],
    ports: Value,
    location: String,
    resolution: String,
}

/// The objects of a file of `envoy`.
fn objects(file: &str) -> Vec<Object> {
    let path = tools::root().join("envoy").join(file);
    let text = std::fs::read_to_string(path).expect("the file");
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents.map(|document| Object::deserialize(document).expect("an object")).collect()
}

/// Merges as protobuf does: messages field by field, lists one behind the other; but an entry of a map
/// replaces the entry, and of a oneof one member remains.
fn merge(into: &mut Value, from: &Value) {
    const MAPS: [&str; 2] = ["typed_extension_protocol_options", "filter_metadata"];
    const SOURCES: [&str; 3] = ["ads", "api_config_source", "path_config_source"];
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if SOURCES.contains(&key.as_str()) {
                    SOURCES.iter().for_each(|other| drop(into.remove(*other)));
                }
                let place = into.entry(key).or_insert(Value::Null);
                match (MAPS.contains(&key.as_str()), &mut *place) {
                    (true, Value::Object(entries)) => {
                        entries.extend(value.as_object().expect("a map").clone());
                    }
                    _ => merge(place, value),
                }
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from.iter().cloned()),
        (into, from) => *into = from.clone(),
    }
}

/// What a sidecar is sent, and where.
struct Sidecar {
    bootstrap: Value,
    clusters: Vec<Value>,
    extensions: Vec<Value>,
    endpoints: Vec<Value>,
    args: Vec<String>,
    socket: String,
    dir: TempDir,
}

impl Sidecar {
    /// Before anything of ours: a listener for port 80.
    fn new(agent: &Agent) -> Self {
        let dir = TempDir::with_prefix("pintle-istiod-").expect("a directory");
        let bootstrap = json!({
            "node": {"id": "sidecar~10.0.0.7~web-0.shop~shop.svc.cluster.local", "cluster": "web.shop"},
            "admin": {"address": null},
            "dynamic_resources": {"cds_config": from_file(dir.path(), "cds")},
            "static_resources": {"clusters": [], "listeners": [{
                "name": "0.0.0.0_80",
                "traffic_direction": "OUTBOUND",
                "filter_chains": [{"filters": [{"name": HCM, "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "outbound_0.0.0.0_80",
                    "normalize_path": true,
                    "route_config": {"name": "80", "validate_clusters": false, "virtual_hosts": []},
                    "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
                }}]}],
            }]},
        });
        let socket = agent.socket().display().to_string();
        let (clusters, extensions, endpoints) = (Vec::new(), Vec::new(), Vec::new());
        Self { bootstrap, clusters, extensions, endpoints, args: Vec::new(), socket, dir }
    }

    /// The service with these pods: what istiod makes of it by itself. `tls` are the mesh's authority and
    /// the workload's certificate.
    fn service(&mut self, host: &str, pods: &[&Upstream], tls: Option<(&Authority, &Identity)>) {
        let cluster = format!("outbound|80||{host}");
        let mut matches = vec![json!({"name": "tlsMode-disabled", "match": {},
            "transport_socket": {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}})];
        if let Some((authority, workload)) = tls {
            matches.insert(0, json!({"name": "tlsMode-istio", "match": {"tlsMode": "istio"},
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": {
                        "tls_certificates": [{"certificate_chain": {"filename": workload.certificate},
                            "private_key": {"filename": workload.key}}],
                        "validation_context": {"trusted_ca": {"filename": authority.certificate()}},
                    }}}}));
        }
        self.clusters.push(json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": cluster,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": from_file(self.dir.path(), "eds"),
                "service_name": cluster},
            "connect_timeout": "10s",
            "lb_policy": "LEAST_REQUEST",
            "common_lb_config": {},
            "circuit_breakers": {"thresholds": [{"max_connections": u32::MAX,
                "max_pending_requests": u32::MAX, "max_requests": u32::MAX, "max_retries": u32::MAX,
                "track_remaining": true}]},
            "metadata": {"filter_metadata": {"istio": {"services": [{"host": host}]}}},
            "transport_socket_matches": matches,
        }));
        let metadata =
            json!({"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}});
        let pods = pods.iter().map(|pod| {
            json!({"endpoint": {"address": {"socket_address": {
                "address": pod.addr().ip(), "port_value": pod.addr().port()}}}, "metadata": metadata})
        });
        self.endpoints.push(json!({
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": cluster, "endpoints": [{"lb_endpoints": pods.collect::<Vec<_>>()}]}));
        let hosts = &mut self.connection_manager()["route_config"]["virtual_hosts"];
        hosts.as_array_mut().expect("a list").push(json!({
            "name": format!("{host}:80"),
            "domains": [host, format!("{host}:80")],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s",
                "retry_policy": {
                    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                    "num_retries": 2,
                    "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
                    "host_selection_retry_max_attempts": "5"}}}],
        }));
    }

    fn connection_manager(&mut self) -> &mut Value {
        let path = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
        self.bootstrap.pointer_mut(path).expect("the connection manager")
    }

    /// Applies a file of `envoy/istio`.
    fn apply(&mut self, file: &str) {
        for object in objects(file) {
            let Object { version, kind, metadata, spec, data } = object;
            match (version.as_str(), kind.as_str()) {
                ("extensions.istio.io/v1alpha1", "WasmPlugin") => {
                    self.plugin(&metadata, serde_json::from_value(spec).expect("a WasmPlugin"));
                }
                ("networking.istio.io/v1alpha3", "EnvoyFilter") => {
                    let filter: EnvoyFilter = serde_json::from_value(spec).expect("an EnvoyFilter");
                    assert_eq!(filter.workload_selector, json!({"labels": {"pintle": "enabled"}}));
                    filter.config_patches.into_iter().for_each(|patch| self.patch(patch));
                }
                ("networking.istio.io/v1", "ServiceEntry") => {
                    let entry: ServiceEntry = serde_json::from_value(spec).expect("a ServiceEntry");
                    assert_eq!(
                        entry.ports,
                        json!([{"number": 80, "name": "http", "protocol": "HTTP"}])
                    );
                    assert_eq!((&*entry.location, &*entry.resolution), ("MESH_EXTERNAL", "STATIC"));
                    self.service(&entry.hosts[0], &[], None);
                }
                ("v1", "ConfigMap") => {
                    let text = data["custom_bootstrap.json"].as_str().expect("a bootstrap");
                    assert!(text.contains(SOCKET));
                    let text = text.replace(SOCKET, &self.socket);
                    self.args.extend(["--config-yaml".to_owned(), text]);
                }
                other => panic!("{other:?} is no object that this test knows"),
            }
        }
    }

    /// As an extension that is discovered by name, in front of the router.
    fn plugin(&mut self, metadata: &Value, plugin: WasmPlugin) {
        assert_eq!(plugin.selector, json!({"matchLabels": {"pintle": "enabled"}}));
        assert_eq!(plugin.r#match, json!([{"mode": "CLIENT"}]));
        assert_eq!(plugin.url, "file:///run/pintle/pintle.wasm");
        let name = format!(
            "{}.{}",
            metadata["namespace"].as_str().expect("a namespace"),
            metadata["name"].as_str().expect("a name")
        );
        self.extensions.push(json!({
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": name,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": name,
                    "root_id": plugin.plugin_name,
                    "failure_policy": plugin.fail_strategy,
                    "vm_config": {
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": {"local": {"filename": PINTLE_PATH}},
                        "environment_variables": {"key_values": {
                            "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": "1605"}},
                    },
                    "configuration": {"@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": plugin.plugin_config.to_string()},
                },
            },
        }));
        let source = from_file(self.dir.path(), "ecds");
        let filters = self.connection_manager()["http_filters"].as_array_mut().expect("a list");
        filters.insert(
            0,
            json!({"name": name, "config_discovery": {"config_source": source,
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"]}}),
        );
    }

    fn patch(&mut self, patch: ConfigPatch) {
        assert_eq!(patch.r#match["context"], "SIDECAR_OUTBOUND");
        let value = patch.patch.value;
        match (patch.apply_to.as_str(), patch.patch.operation.as_str()) {
            ("CLUSTER", "ADD") => {
                let mut cluster = value;
                cluster["@type"] = json!("type.googleapis.com/envoy.config.cluster.v3.Cluster");
                let path = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/pipe/path";
                let place = cluster.pointer_mut(path).expect("the agent's socket");
                assert_eq!(*place, SOCKET);
                *place = json!(self.socket);
                self.clusters.push(cluster);
            }
            ("CLUSTER", "MERGE") => {
                let service = patch.r#match["cluster"]["service"].as_str().expect("a service");
                let suffix = format!("|{service}");
                let mut matched = 0;
                for cluster in &mut self.clusters {
                    if cluster["name"].as_str().is_some_and(|name| name.ends_with(&suffix)) {
                        merge(cluster, &value);
                        matched += 1;
                    }
                }
                assert_eq!(matched, 1, "{service}");
            }
            ("NETWORK_FILTER", "MERGE") => {
                assert_eq!(
                    patch.r#match["listener"],
                    json!({"filterChain": {"filter": {"name": HCM}}})
                );
                merge(self.connection_manager(), &value["typed_config"]);
            }
            other => panic!("{other:?} is no patch that this test knows"),
        }
    }

    /// Writes what istiod would send, and starts a sidecar that reads it. The directory is istiod's.
    async fn start(mut self) -> (Envoy, TempDir) {
        let dir = self.dir.path();
        for (name, resources) in
            [("cds", &self.clusters), ("eds", &self.endpoints), ("ecds", &self.extensions)]
        {
            let response = json!({"version_info": "1", "resources": resources}).to_string();
            std::fs::write(dir.join(format!("{name}.json")), response).expect("written");
        }
        let mut config = EnvoyConfig::shipped().expect("a configuration");
        *config.root() = self.bootstrap.take();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        (Envoy::start_with(config, 2, &args).await.expect("a sidecar"), self.dir)
    }
}

/// A source of configuration that is `{name}.json` in this directory; of istiod it would be `ads`.
fn from_file(dir: &Path, name: &str) -> Value {
    let path = dir.join(format!("{name}.json"));
    json!({"resource_api_version": "V3", "path_config_source": {"path": path}})
}

async fn ask(envoy: &Envoy, host: &str, headers: &[(&'static str, &str)]) -> http::Reply {
    let mut request = http::request(host, "GET", "/", "").expect("a request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    http::send(envoy.addr(), request).await.expect("an answer")
}

fn load(envoy: &Envoy, host: &str) -> Load {
    Load::to(envoy.addr()).host(host).rate(200.0).connections(16)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_the_mesh_is_chosen_by_the_registry_and_spoken_to_by_mutual_tls() {
    const HOST: &str = "orders.shop.svc.cluster.local";
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let mut agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let authority = Authority::new().expect("an authority");
    let pod = authority.issue(&["127.0.0.1"]).expect("a certificate");
    let mut pods = Vec::new();
    for name in ["orders-0", "orders-1", "orders-2", "unregistered"] {
        pods.push(Upstream::start_tls(name, &pod).await.expect("a pod"));
    }
    // One is in etcd and nothing that Istio knows.
    let stray = Upstream::start_tls("stray", &pod).await.expect("an upstream");
    let mut sidecar = Sidecar::new(&agent);
    let known: Vec<_> = pods.iter().collect();
    let workload = authority.issue(&["web"]).expect("a certificate");
    sidecar.service(HOST, &known, Some((&authority, &workload)));
    sidecar.apply("istio/pintle.yaml");
    sidecar.apply("istio/orders.yaml");
    let (envoy, _istiod) = sidecar.start().await;

    // Nobody is registered: Istio's own balancing serves.
    let report = load(&envoy, HOST).run_for_secs(0.5).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 4, "{}", report.summary());

    // By latency, whoever was late once would be asked less; in turns everybody is asked the same.
    let turns = r#"{"select": {"strategy": "round_robin"}}"#;
    etcd.put("/pintle/policies/orders", turns).await.expect("a policy");
    for upstream in pods[..3].iter().chain([&stray]) {
        etcd.register(&Instance::of("orders", upstream)).await.expect("a registration");
    }
    assert_eventually!(PATIENCE, {
        let report = load(&envoy, HOST).run_for_secs(0.2).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        !report.by_upstream().contains_key("unregistered")
    });
    pods.iter().for_each(Upstream::forget);
    let report = load(&envoy, HOST).run_for_secs(1.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 3, "{}", report.summary());
    assert_eq!(stray.requests(), 0, "no host of the cluster");

    // Neither our header nor a client's reaches a pod, and a client's chooses none.
    let unregistered = pods[3].addr().to_string();
    for _ in 0..20 {
        let reply = ask(&envoy, HOST, &[("x-pintle-endpoints", &unregistered)]).await;
        assert_eq!(reply.status, 200);
    }
    assert_eq!(pods[3].requests(), 0);
    for seen in pods.iter().flat_map(Upstream::seen) {
        assert!(seen.headers.keys().all(|name| !name.as_str().starts_with("x-pintle")));
        assert!(seen.headers.contains_key("traceparent"));
    }

    let socket = agent.socket().display().to_string();
    let (admin, of_envoy) = (agent.admin().to_string(), envoy.admin().to_string());
    let check = ["check", "--socket", &socket, "--admin", &admin, "--envoy", &of_envoy];
    let servers = ["--etcd", &etcd.url(), "--nats", &nats.url()];
    let done = Agent::command(&[&check[..], &servers].concat()).await.expect("pintle");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.lines().count() > 8 && said.lines().all(|it| it.starts_with("ok")), "{said}");

    // Five failures, and without the agent it goes on, breaker and all.
    pods.iter().for_each(Upstream::forget);
    pods[0].set(Behaviour::failing(Fault::Status(500)));
    let mut failed = 0;
    for number in 0..120 {
        let before = failed;
        failed += usize::from(ask(&envoy, HOST, &[]).await.status != 200);
        if before < 5 && failed == 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if number == 60 {
            agent.process().kill9();
        }
    }
    assert_eq!(failed, 5);
    assert_eq!(pods[0].requests(), 5);
    assert_eq!(envoy.vm_reloads().await.expect("stats"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_only_etcd_knows_has_its_hosts_from_the_agent() {
    const HOST: &str = "billing.pintle.internal";
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let mut sidecar = Sidecar::new(&agent);
    sidecar.apply("istio/pintle.yaml");
    sidecar.apply("istio/outside.yaml");
    let (envoy, _istiod) = sidecar.start().await;
    let mut upstreams = Vec::new();
    for name in ["billing-0", "billing-1"] {
        let upstream = Upstream::start(name).await.expect("an upstream");
        etcd.register(&Instance::of("billing", &upstream)).await.expect("a registration");
        upstreams.push(upstream);
    }
    assert_eventually!(PATIENCE, ask(&envoy, HOST, &[]).await.status == 200);
    assert_eventually!(PATIENCE, {
        let report = load(&envoy, HOST).run_for_secs(0.3).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        report.by_upstream().len() == 2
    });
    let gone = etcd.deregister("billing", "billing-0").await.expect("gone");
    agent.settled(gone).await.expect("every worker knows");
    let unknown = async || envoy.stat("wasmcustom.pintle_unknown_service_total").await;
    let before = unknown().await;
    let report = load(&envoy, HOST).run_for_secs(0.5).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 1, "{}", report.summary());
    assert_eq!(unknown().await, before, "with a table every request is the module's");
}

/// What the head of `pintle.yaml` warns of: a discovered filter that never had a configuration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_starts_without_the_modules_file_answers_nothing() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let upstream = Upstream::start("orders-0").await.expect("an upstream");
    const HOST: &str = "orders.shop.svc.cluster.local";
    let mut sidecar = Sidecar::new(&agent);
    sidecar.service(HOST, &[&upstream], None);
    sidecar.apply("istio/pintle.yaml");
    let code = "/typed_config/config/vm_config/code/local/filename";
    *sidecar.extensions[0].pointer_mut(code).expect("a file") = json!("/nowhere/pintle.wasm");
    let (envoy, _istiod) = sidecar.start().await;
    assert_eq!(ask(&envoy, HOST, &[]).await.status, 500);
    assert_eq!(upstream.requests(), 0);
}

/// What the head of `orders.yaml` warns of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_refuses_our_policy_beside_locality_weights() {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let mut sidecar = Sidecar::new(&agent);
    sidecar.service("orders.shop.svc.cluster.local", &[], None);
    sidecar.apply("istio/orders.yaml");
    sidecar.clusters[0]["common_lb_config"] = json!({"locality_weighted_lb_config": {}});
    let (envoy, _istiod) = sidecar.start().await;
    assert_eq!(envoy.stat("cluster_manager.cds.update_rejected").await, Some(1));
    assert!(envoy.hosts(ORDERS).await.expect("clusters").is_empty());
}

/// With the configuration, the variables, the user and the groups of the DaemonSet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_runs_as_the_daemon_set_has_it() {
    use std::os::unix::fs::MetadataExt as _;

    let objects = objects("kubernetes/agent.yaml");
    let of_kind =
        |kind: &str| objects.iter().find(|object| object.kind == kind).expect("an object");
    let config = of_kind("ConfigMap").data["agent.yaml"].as_str().expect("a configuration");
    let pod = &of_kind("DaemonSet").spec["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["args"], json!(["run", "--config", "/etc/pintle/agent.yaml"]));
    let variable = container["env"][0]["name"].as_str().expect("a variable");
    let etcd = Etcd::start().await.expect("etcd");
    // Where to listen, what to read and what is private differ here; all else is the file's.
    let builder = Agent::builder().etcd(etcd.url()).env(variable, "ip-10-0-1-2.eu.internal");
    let own = std::fs::metadata("/proc/self").expect("this process");
    let (builder, user, group) = if own.uid() == 0 {
        let context = &pod["securityContext"];
        let number = |key: &str| context.pointer(key).and_then(Value::as_u64).expect("a number");
        let (user, group) = (number("/runAsUser"), number("/supplementalGroups/0"));
        // A copy, because the way to the binary need not be open to everybody.
        let script = format!(
            "cp \"$0\" {{dir}}/pintle && chown -R {user} {{dir}} \
             && exec setpriv --reuid {user} --regid {} --groups {group} -- {{dir}}/pintle \"$@\"",
            number("/runAsGroup")
        );
        let builder = builder.under(&["sh", "-c", &script]).config("agent.yaml", config);
        (builder, user, group)
    } else {
        let (user, group) = (own.uid().into(), own.gid().into());
        let config = config.replace("\"1337\"", &format!("\"{group}\""));
        (builder.config("agent.yaml", &config), user, group)
    };
    let agent = builder.start().await.expect("the agent");
    let socket = std::fs::metadata(agent.socket()).expect("the socket");
    assert_eq!(socket.mode() & 0o777, 0o660);
    assert_eq!((u64::from(socket.uid()), u64::from(socket.gid())), (user, group));
    for probe in ["readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().expect("a path");
        assert_eq!(http::get(agent.admin(), path).await.expect("an answer").status, 200);
    }
}

/// With the arguments of the container that stands beside the service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_registers_itself_as_the_deployment_has_it() {
    let objects = objects("kubernetes/orders.yaml");
    let deployment = objects.iter().find(|object| object.kind == "Deployment").expect("one");
    let container = &deployment.spec["template"]["spec"]["containers"][1];
    let arguments: Vec<&str> =
        container["args"].as_array().expect("arguments").iter().filter_map(Value::as_str).collect();
    // What this machine has its own of; the rest is the file's.
    let own = |argument: &str| {
        let names = ["--config=", "--service=", "--id=", "--address=", "--port="];
        names.iter().any(|name| argument.starts_with(name))
    };
    assert_eq!(arguments.iter().filter(|argument| own(argument)).count(), 5);
    assert_eq!(arguments[0], "register");
    let rest: Vec<&str> =
        arguments[1..].iter().copied().filter(|argument| !own(argument)).collect();
    let etcd = Etcd::start().await.expect("etcd");
    let upstream = Upstream::start("orders-7d9c").await.expect("an upstream");
    let mut pod =
        Agent::register(&etcd.url(), "orders", "orders-7d9c", upstream.addr(), &rest).expect("it");
    let key = Instance::of("orders", &upstream).key();
    let health = async || {
        let value = etcd.get(&key).await.expect("etcd")?;
        let value: Value = serde_json::from_str(&value).expect("JSON");
        value["health"].as_str().map(str::to_owned)
    };
    assert_eventually!(PATIENCE, health().await.as_deref() == Some("healthy"));
    pod.terminate(PATIENCE).await.expect("it drains and goes");
    assert_eq!(health().await, None);
}
