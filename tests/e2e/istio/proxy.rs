//! What istiod makes of services and of the shipped objects, and a real Envoy that runs it.
//!
//! From its sources, `pilot/pkg/networking/core`: `cluster_builder.go` and `cluster_traffic_policy.go` for
//! what a Service and a DestinationRule become, `loadbalancer/loadbalancer.go` for where locality weights
//! come from, its test at 1.31 for which of several settings counts, `gateway.go` for a gateway's listener,
//! `envoyfilter/cluster_patch.go` for what a patch matches, `pkg/proto/merge/merge.go` for how it is merged.
//! A `WasmPlugin` is an extension that is discovered, without a `vm_id`.

use std::path::Path;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Agent, Authority, Envoy, EnvoyConfig, Identity, Upstream};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::objects::{
    ConfigPatch, Destination, DestinationRule, EnvoyFilter, Gateway, Object, ServiceEntry,
    VirtualService, WasmPlugin, objects, objects_of, text,
};

const HCM: &str = "envoy.filters.network.http_connection_manager";
const SOCKET: &str = "/run/pintle/agent.sock";
const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A service of the mesh, and what of it and of its DestinationRule shapes its cluster.
#[derive(Clone, Copy, Default)]
pub struct Shape<'a> {
    /// The service's name in the mesh.
    pub host: &'a str,
    /// The port that requests go to; 80 where it is 0.
    pub port: u16,
    /// A subset that a VirtualService routes to.
    pub subset: &'a str,
    /// The pods behind it, all in one zone or each in its own.
    pub pods: &'a [&'a Upstream],
    /// The mesh's authority, and the sidecar's certificate.
    pub mtls: Option<(&'a Authority, &'a Identity)>,
    /// The port is called `grpc`, or `h2UpgradePolicy` asks for it.
    pub http2: bool,
    /// `trafficDistribution: PreferClose`.
    pub close: bool,
    /// The mesh's `zoneAwareLbSetting`, and a proxy that knows where its own kind runs
    /// (`ISTIO_META_ENABLE_SELF_DISCOVERY`).
    pub zonal: bool,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `connectionPool.http.maxRequestsPerConnection: 1`.
    pub pool: bool,
    /// `outlierDetection`.
    pub outlier: bool,
}

impl<'a> Shape<'a> {
    /// One HTTP port and nothing else.
    pub fn new(host: &'a str, pods: &'a [&'a Upstream]) -> Self {
        Self { host, pods, ..Self::default() }
    }

    fn port(&self) -> u16 {
        if self.port == 0 { 80 } else { self.port }
    }

    /// As istiod calls the cluster.
    pub fn cluster(&self) -> String {
        format!("outbound|{}|{}|{}", self.port(), self.subset, self.host)
    }

    /// As the application calls it.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port())
    }
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

/// What a proxy is sent, and where.
pub struct Proxy {
    /// Whose patches it takes.
    context: &'static str,
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
        Self { context, bootstrap, clusters, extensions, endpoints, args, socket, dir }
    }

    /// What istiod makes of a service by itself.
    pub fn service(&mut self, shape: &Shape<'_>) {
        let cluster = shape.cluster();
        let mut built = json!({
            "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            "name": cluster,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": from_file(self.dir.path(), &cluster),
                "service_name": cluster},
            "connect_timeout": "10s",
            "lb_policy": "LEAST_REQUEST",
            "common_lb_config": {},
            "circuit_breakers": {"thresholds": [{"max_connections": u32::MAX,
                "max_pending_requests": u32::MAX, "max_requests": u32::MAX, "max_retries": u32::MAX,
                "track_remaining": true}]},
            "metadata": {"filter_metadata": {"istio": {"services": [{"host": shape.host}]}}},
        });
        let raw = json!({"name": "envoy.transport_sockets.raw_buffer", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}});
        let mut matches =
            vec![json!({"name": "tlsMode-disabled", "match": {}, "transport_socket": raw})];
        if let Some((authority, workload)) = shape.mtls {
            matches.insert(0, json!({"name": "tlsMode-istio", "match": {"tlsMode": "istio"},
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "common_tls_context": {
                        "tls_certificates": [{"certificate_chain": {"filename": workload.certificate},
                            "private_key": {"filename": workload.key}}],
                        "validation_context": {"trusted_ca": {"filename": authority.certificate()}},
                    }}}}));
        }
        // Without hosts that could be matched, the first is for all.
        if shape.headless {
            built["type"] = json!("ORIGINAL_DST");
            built["lb_policy"] = json!("CLUSTER_PROVIDED");
            built.as_object_mut().expect("a cluster").remove("eds_cluster_config");
            built["transport_socket"] = matches[0]["transport_socket"].take();
        } else {
            built["transport_socket_matches"] = json!(matches);
        }
        let mut options = json!({"@type": format!("type.googleapis.com/{OPTIONS}")});
        if shape.http2 {
            options["explicit_http_config"] = json!({"http2_protocol_options": {}});
        } else if shape.pool {
            options["explicit_http_config"] = json!({"http_protocol_options": {}});
        }
        if shape.pool {
            options["common_http_protocol_options"] = json!({"max_requests_per_connection": 1});
        }
        if shape.http2 || shape.pool {
            built["typed_extension_protocol_options"] = json!({OPTIONS: options});
        }
        if shape.close {
            built["common_lb_config"]["locality_weighted_lb_config"] = json!({});
        }
        if shape.zonal {
            built["common_lb_config"]["zone_aware_lb_config"] = json!({"min_cluster_size": 1});
            self.discovers_itself(shape);
        }
        if shape.outlier {
            built["outlier_detection"] =
                json!({"consecutive_5xx": 5, "enforcing_success_rate": 0, "interval": "10s"});
            built["common_lb_config"]["healthy_panic_threshold"] = json!({});
        }
        self.clusters.push(built);
        let metadata =
            json!({"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}});
        let hosts = shape.pods.iter().map(|pod| {
            json!({"endpoint": {"address": {"socket_address": {
                "address": pod.addr().ip(), "port_value": pod.addr().port()}}}, "metadata": metadata})
        });
        let zones = hosts.enumerate().map(|(zone, host)| {
            json!({"lb_endpoints": [host], "load_balancing_weight": 1,
                "locality": {"region": "eu", "zone": format!("eu-{zone}")},
                "priority": if shape.close { zone } else { 0 }})
        });
        self.endpoints.push(json!({
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": cluster, "endpoints": zones.collect::<Vec<_>>()}));
        self.route(shape, &cluster);
    }

    /// The cluster of the proxy's own kind, one in each zone, that Envoy's zone-aware routing asks for.
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
        if self.context == "SIDECAR_OUTBOUND" {
            let mut domains = vec![shape.authority()];
            if shape.port() == 80 {
                domains.push(shape.host.to_owned());
            }
            self.virtual_host(&shape.authority(), &domains, cluster);
        }
    }

    fn virtual_host(&mut self, name: &str, domains: &[String], cluster: &str) {
        let hosts = &mut self.connection_manager()["route_config"]["virtual_hosts"];
        hosts.as_array_mut().expect("a list").push(json!({
            "name": name,
            "domains": domains,
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
    pub fn apply(&mut self, file: &str) {
        self.apply_objects(objects(file));
    }

    /// As a user does who copies the file and puts in the name of a service of the namespace `shop`.
    pub fn apply_for(&mut self, file: &str, named: &str, service: &str) {
        self.apply_objects(objects_of(&text(file).replace(named, service)));
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
            if self.context == "GATEWAY" && of.iter().any(|gateway| gateway != "mesh") {
                self.virtual_host(&format!("{name}:80"), std::slice::from_ref(name), &cluster);
            }
        }
    }

    /// `localityLbSetting.enabled: false` wins over the mesh's settings, by zones or by weights, and over the
    /// Service's `trafficDistribution`: no weights, one priority.
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

    /// As an extension that is discovered by name, in front of the router. From 1.30 on it is called as the
    /// TrafficExtension that istiod makes of it; before, `extensions.istio.io/wasmplugin/` and its name.
    fn plugin(&mut self, metadata: &Value, plugin: WasmPlugin) {
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
                let service = patch.r#match["cluster"]["service"].as_str().expect("a service");
                let suffix = format!("|{service}");
                let mut matched = 0;
                for cluster in &mut self.clusters {
                    if cluster["name"].as_str().is_some_and(|name| name.ends_with(&suffix)) {
                        merge(cluster, &value);
                        // What istiod sends on its own stream is in a file here.
                        let name = cluster["name"].as_str().unwrap_or_default().to_owned();
                        let config = &mut cluster["eds_cluster_config"]["eds_config"];
                        if config.get("ads").is_some() {
                            *config = from_file(self.dir.path(), &name);
                        }
                        matched += 1;
                    }
                }
                assert!(matched > 0, "{service}");
            }
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
