//! What istiod makes of services and of the shipped objects, and a real Envoy that runs it.
//!
//! From its sources, `pilot/pkg/networking/core`: `gateway.go` for a gateway's listener,
//! `loadbalancer`'s test at 1.31 for which of several settings counts,
//! `envoyfilter/cluster_patch.go` (2392533c) for what a patch matches, `pkg/proto/merge/merge.go`
//! for how it is merged. A `WasmPlugin` is an extension that is discovered, without a `vm_id`.

use std::path::Path;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Agent, Envoy, EnvoyConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::objects::{
    ConfigPatch, Destination, DestinationRule, EnvoyFilter, Gateway, Object, ServiceEntry,
    VirtualService, WasmPlugin, objects, objects_of, text,
};
use super::shape::Shape;

const HCM: &str = "envoy.filters.network.http_connection_manager";
const SOCKET: &str = "/run/pintle/agent.sock";
const TCP: &str = "envoy.filters.network.tcp_proxy";

/// Merges as protobuf does: messages field by field, lists one behind the other; but an entry of a
/// map replaces the entry, and of a oneof one member remains.
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

/// What a proxy is sent, and where.
pub struct Proxy {
    /// Whose patches it takes.
    context: &'static str,
    /// The labels of its pod, by which files are for it.
    pub labels: Vec<&'static str>,
    bootstrap: Value,
    pub clusters: Vec<Value>,
    pub extensions: Vec<Value>,
    endpoints: Vec<Value>,
    args: Vec<String>,
    socket: String,
    dir: TempDir,
}

impl Proxy {
    /// A sidecar before anything of ours: a listener for port 80.
    pub fn sidecar(agent: &Agent) -> Self {
        let node = "sidecar~10.0.0.7~web-0.shop~shop.svc.cluster.local";
        let listener = json!({"name": "0.0.0.0_80"});
        let manager = json!({"stat_prefix": "outbound_0.0.0.0_80", "normalize_path": true,
            "route_config": {"name": "80", "validate_clusters": false, "virtual_hosts": []}});
        Self::new(agent, "SIDECAR_OUTBOUND", node, listener, manager)
    }

    /// A gateway with a server for HTTP at port 80 of its Service, which is 8080 of its pod.
    pub fn gateway(agent: &Agent) -> Self {
        let node = "router~10.0.0.8~ingress-0.edge~edge.svc.cluster.local";
        let listener = json!({"name": "0.0.0.0_8080"});
        let manager = json!({"stat_prefix": "outbound_0.0.0.0_8080", "normalize_path": true,
            "server_name": "istio-envoy", "use_remote_address": true,
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"subject": true, "cert": true, "dns": true, "uri": true},
            "route_config": {"name": "http.80", "validate_clusters": false, "virtual_hosts": []}});
        Self::new(agent, "GATEWAY", node, listener, manager)
    }

    /// A gateway that passes a connection on as it comes, to one cluster: TLS by its name there
    /// (mode PASSTHROUGH), or TCP. What istiod sends has no connection manager then.
    pub fn tcp(agent: &Agent, cluster: &str) -> Self {
        let mut gateway = Self::gateway(agent);
        gateway.bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"] = json!([{"name": TCP, "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": cluster, "cluster": cluster}}]);
        gateway
    }

    fn new(
        agent: &Agent,
        context: &'static str,
        node: &str,
        mut listener: Value,
        mut manager: Value,
    ) -> Self {
        let dir = TempDir::with_prefix("pintle-istiod-").expect("a directory");
        manager["@type"] = json!(
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        );
        manager["http_filters"] = json!([{"name": "envoy.filters.http.router", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]);
        listener["traffic_direction"] = json!("OUTBOUND");
        listener["filter_chains"] = json!([{"filters": [{"name": HCM, "typed_config": manager}]}]);
        let bootstrap = json!({
            "node": {"id": node, "cluster": "web.shop", "locality": {"region": "eu", "zone": "eu-0"}},
            "admin": {"address": null},
            "dynamic_resources": {"cds_config": from_file(dir.path(), "cds")},
            "static_resources": {"clusters": [], "listeners": [listener]},
        });
        let socket = agent.socket().display().to_string();
        let (clusters, extensions, endpoints) = (Vec::new(), Vec::new(), Vec::new());
        let args = Vec::new();
        let labels = vec!["pintle"];
        Self { context, labels, bootstrap, clusters, extensions, endpoints, args, socket, dir }
    }

    /// What istiod makes of a service by itself.
    pub fn service(&mut self, shape: &Shape<'_>) {
        let cluster = shape.cluster();
        self.clusters.push(shape.built(&from_file(self.dir.path(), &cluster)));
        self.endpoints.push(shape.endpoints());
        if shape.zonal {
            self.discovers_itself(shape);
        }
        self.route(shape, &cluster);
    }

    /// The cluster of the proxy's own kind, one in each zone, that Envoy's zone-aware routing asks
    /// for.
    fn discovers_itself(&mut self, shape: &Shape<'_>) {
        let zones = shape.pods.iter().enumerate().map(|(zone, pod)| {
            json!({"locality": {"region": "eu", "zone": format!("eu-{zone}")},
                "lb_endpoints": [{"endpoint": {"address": {"socket_address": {
                    "address": "10.0.0.7", "port_value": pod.addr().port()}}}}]})
        });
        self.bootstrap["cluster_manager"] = json!({"local_cluster_name": "local_cluster"});
        self.bootstrap["static_resources"]["clusters"] = json!([{"name": "local_cluster",
            "type": "STATIC", "load_assignment": {"cluster_name": "local_cluster",
                "endpoints": zones.collect::<Vec<_>>()}}]);
    }

    fn route(&mut self, shape: &Shape<'_>, cluster: &str) {
        // A gateway has the hosts of VirtualServices.
        if self.context == "SIDECAR_OUTBOUND" && self.speaks_http() {
            let mut domains = vec![shape.authority()];
            if shape.port() == 80 {
                domains.push(shape.host.to_owned());
            }
            let mut action = json!({"cluster": cluster});
            if shape.sticky {
                action["hash_policy"] = json!([{"header": {"header_name": "x-user"}}]);
            }
            self.virtual_host(&shape.authority(), &domains, &action);
        }
    }

    /// A host whose requests are routed so.
    pub fn virtual_host(&mut self, name: &str, domains: &[String], action: &Value) {
        let mut route = json!({"timeout": "0s", "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "num_retries": 2,
            "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
            "host_selection_retry_max_attempts": "5"}});
        merge(&mut route, action);
        let hosts = &mut self.connection_manager()["route_config"]["virtual_hosts"];
        hosts.as_array_mut().expect("a list").push(json!({"name": name, "domains": domains,
            "routes": [{"match": {"prefix": "/"}, "route": route}]}));
    }

    fn speaks_http(&self) -> bool {
        let filter = "/static_resources/listeners/0/filter_chains/0/filters/0/name";
        self.bootstrap.pointer(filter).is_some_and(|name| name == HCM)
    }

    fn connection_manager(&mut self) -> &mut Value {
        let path = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
        self.bootstrap.pointer_mut(path).expect("the connection manager")
    }

    /// Applies a file of `envoy/istio`.
    pub fn apply(&mut self, file: &str) {
        self.apply_objects(objects(file));
    }

    /// As a user does who copies the file and puts in the name of a service of the namespace
    /// `shop`, and a port of it.
    pub fn apply_for(&mut self, file: &str, named: &str, service: &str, port: u16) {
        let of = format!("portNumber: {port}}}");
        let text = text(file).replace(named, service).replace("portNumber: 80}", &of);
        self.apply_objects(objects_of(&text));
    }

    fn apply_objects(&mut self, objects: Vec<Object>) {
        for object in objects {
            let Object { version, kind, metadata, spec, data } = object;
            match (version.as_str(), kind.as_str()) {
                ("extensions.istio.io/v1alpha1", "WasmPlugin") => {
                    self.plugin(&metadata, serde_json::from_value(spec).expect("a WasmPlugin"));
                }
                ("networking.istio.io/v1alpha3", "EnvoyFilter") => {
                    let filter: EnvoyFilter = serde_json::from_value(spec).expect("an EnvoyFilter");
                    let labels = filter.workload_selector["labels"].as_object().expect("labels");
                    assert!(!labels.is_empty() && labels.values().all(|value| value == "enabled"));
                    if labels.keys().all(|label| self.labels.contains(&label.as_str())) {
                        filter.config_patches.into_iter().for_each(|patch| self.patch(patch));
                    }
                }
                ("networking.istio.io/v1", "ServiceEntry") => {
                    let entry: ServiceEntry = serde_json::from_value(spec).expect("a ServiceEntry");
                    assert_eq!(
                        entry.ports,
                        json!([{"number": 80, "name": "http", "protocol": "HTTP"}])
                    );
                    assert_eq!((&*entry.location, &*entry.resolution), ("MESH_EXTERNAL", "STATIC"));
                    self.service(&Shape::new(&entry.hosts[0], &[]));
                }
                ("networking.istio.io/v1", "DestinationRule") => {
                    self.rule(&serde_json::from_value(spec).expect("a DestinationRule"));
                }
                ("networking.istio.io/v1", "Gateway") => {
                    let Gateway { selector, servers: [server] } =
                        serde_json::from_value(spec).expect("a Gateway");
                    // Each file has a gateway of its own kind; its pods carry this label.
                    assert_eq!(selector["istio"], metadata["name"]);
                    assert_eq!(
                        server.port,
                        json!({"number": 80, "name": "http", "protocol": "HTTP"})
                    );
                    assert_eq!(server.hosts.len(), 1);
                }
                ("networking.istio.io/v1", "VirtualService") => {
                    let service = serde_json::from_value(spec).expect("a VirtualService");
                    self.routes(&service);
                }
                // What a pod mounts is no part of what a proxy is sent.
                ("apps/v1", "Deployment") => {}
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

    /// To those of its destinations that a gateway knows; `mesh` are the sidecars.
    fn routes(&mut self, service: &VirtualService) {
        for http in &service.http {
            let of = http.r#match.first().map_or(&service.gateways, |only| &only.gateways);
            let destination = &http.route[0].destination;
            let Destination { host, port } = destination;
            let (cluster, name) = (format!("outbound|{}||{host}", port.number), &service.hosts[0]);
            let takes = self.context == "GATEWAY" && self.speaks_http();
            if takes && of.iter().any(|gateway| gateway != "mesh") {
                let action = json!({"cluster": cluster});
                self.virtual_host(&format!("{name}:80"), std::slice::from_ref(name), &action);
            }
        }
    }

    /// `localityLbSetting.enabled: false` wins over the mesh's settings, by zones or by weights,
    /// and over the Service's `trafficDistribution`: no weights, one priority.
    fn rule(&mut self, rule: &DestinationRule) {
        let off = json!({"loadBalancer": {"localityLbSetting": {"enabled": false}}});
        assert_eq!(rule.traffic_policy, off);
        let suffix = format!("|{}", rule.host);
        let of_host = |name: &Value| name.as_str().is_some_and(|name| name.ends_with(&suffix));
        for cluster in self.clusters.iter_mut().filter(|cluster| of_host(&cluster["name"])) {
            let config = cluster["common_lb_config"].as_object_mut().expect("a message");
            config.remove("locality_weighted_lb_config");
            config.remove("zone_aware_lb_config");
        }
        let hosts = self.endpoints.iter_mut().filter(|hosts| of_host(&hosts["cluster_name"]));
        for zone in hosts.flat_map(|hosts| hosts["endpoints"].as_array_mut().expect("a list")) {
            zone["priority"] = json!(0);
        }
    }

    /// As an extension that is discovered by name, in front of the router. From 1.30 on it is
    /// called as the TrafficExtension that istiod makes of it; before,
    /// `extensions.istio.io/wasmplugin/` and its name.
    fn plugin(&mut self, metadata: &Value, plugin: WasmPlugin) {
        if !self.speaks_http() {
            return;
        }
        assert_eq!(plugin.selector, json!({"matchLabels": {"pintle": "enabled"}}));
        assert_eq!(plugin.r#match, json!([{"mode": "CLIENT"}]));
        assert_eq!(plugin.url, "file:///run/pintle/pintle.wasm");
        let name = format!(
            "extensions.istio.io/trafficextension/{}.{}~istio-translated-wasmplugin",
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

    /// A pod without the annotation `bootstrapOverride`.
    pub fn without_the_bootstrap(&mut self) {
        self.args.clear();
    }

    /// As after a trap, or where the WasmPlugin is not applied.
    pub fn without_the_module(&mut self) {
        self.extensions.clear();
        let filters = self.connection_manager()["http_filters"].as_array_mut().expect("a list");
        filters.retain(|filter| filter.get("config_discovery").is_none());
    }

    fn patch(&mut self, patch: ConfigPatch) {
        let context = patch.r#match["context"].as_str().expect("a context");
        assert!(["SIDECAR_OUTBOUND", "GATEWAY"].contains(&context), "{context}");
        if context != self.context {
            return;
        }
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
                let matched = &patch.r#match["cluster"];
                let service = matched["service"].as_str().expect("a service");
                let port = matched["portNumber"].as_u64().expect("a port").to_string();
                let of = |name: &str| {
                    let parts: Vec<_> = name.split('|').collect();
                    matches!(parts[..], [_, at, _, host] if at == port && host == service)
                };
                for cluster in &mut self.clusters {
                    if cluster["name"].as_str().is_some_and(of) {
                        merge(cluster, &value);
                        // What istiod sends on its own stream is in a file here.
                        let name = cluster["name"].as_str().unwrap_or_default().to_owned();
                        let config = cluster.pointer_mut("/eds_cluster_config/eds_config");
                        if let Some(config) = config.filter(|it| it.get("ads").is_some()) {
                            *config = from_file(self.dir.path(), &name);
                        }
                    }
                }
            }
            ("NETWORK_FILTER" | "HTTP_FILTER", _) if !self.speaks_http() => {}
            ("NETWORK_FILTER", "MERGE") => {
                assert_eq!(
                    patch.r#match["listener"],
                    json!({"filterChain": {"filter": {"name": HCM}}})
                );
                merge(self.connection_manager(), &value["typed_config"]);
            }
            ("HTTP_FILTER", "INSERT_BEFORE") => {
                let router = json!({"name": "envoy.filters.http.router"});
                assert_eq!(
                    patch.r#match["listener"],
                    json!({"filterChain": {"filter": {"name": HCM, "subFilter": router}}})
                );
                let manager = self.connection_manager();
                let filters = manager["http_filters"].as_array_mut().expect("a list");
                filters.insert(filters.len() - 1, value);
            }
            other => panic!("{other:?} is no patch that this test knows"),
        }
    }

    /// Writes what istiod would send, and starts a proxy that reads it. The directory is istiod's.
    pub async fn start(mut self) -> (Envoy, TempDir) {
        let dir = self.dir.path();
        let write = |name: &str, resources: &[Value]| {
            let response = json!({"version_info": "1", "resources": resources}).to_string();
            std::fs::write(dir.join(format!("{name}.json")), response).expect("written");
        };
        write("cds", &self.clusters);
        write("ecds", &self.extensions);
        // From a file a cluster takes its own hosts and nothing else.
        for hosts in &self.endpoints {
            write(hosts["cluster_name"].as_str().expect("a name"), std::slice::from_ref(hosts));
        }
        let mut config = EnvoyConfig::shipped().expect("a configuration");
        *config.root() = self.bootstrap.take();
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        (Envoy::start_with(config, 2, &args).await.expect("a proxy"), self.dir)
    }
}

/// A source of configuration that is `{name}.json` in this directory; of istiod it would be `ads`.
fn from_file(dir: &Path, name: &str) -> Value {
    let path = dir.join(format!("{name}.json"));
    json!({"resource_api_version": "V3", "path_config_source": {"path": path}})
}
