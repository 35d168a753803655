//! The shipped configuration with a test's addresses put in.
//!
//! There is no private copy: every value starts as `envoy/envoy.yaml` (or a file beside it), read
//! from disk, and a method here changes what a test must change: where to listen, which socket,
//! which module, the plugin's settings. What a patch looks for must be there; a renamed cluster in
//! the shipped file breaks the tests at the patch, with the place in the message.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, Result, tools};

const CLUSTERS: &str = "/static_resources/clusters";
const LISTENERS: &str = "/static_resources/listeners";
const HCM: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const WASM: &str = "envoy.filters.http.wasm";
const WASM_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog";
/// The one service of the shipped files, which others are made from.
const SERVICE: &str = "orders";

/// An Envoy bootstrap, as values.
#[derive(Clone, Debug)]
pub struct EnvoyConfig {
    root: Value,
}

impl EnvoyConfig {
    /// `envoy/envoy.yaml`: override_host, hosts by EDS.
    pub fn shipped() -> Result<Self> {
        Self::file("envoy.yaml")
    }

    /// `envoy/original-dst.yaml`: no xDS, the module names the destination.
    pub fn original_dst() -> Result<Self> {
        Self::file("original-dst.yaml")
    }

    /// A file of the `envoy` directory.
    pub fn file(name: &str) -> Result<Self> {
        Ok(Self { root: read(name)? })
    }

    /// Everything, for what has no method here.
    pub fn root(&mut self) -> &mut Value {
        &mut self.root
    }

    /// The value at a JSON pointer.
    ///
    /// # Panics
    ///
    /// When the shipped file has nothing there: the patch is out of date.
    pub fn at(&mut self, pointer: &str) -> &mut Value {
        let found = self.root.pointer_mut(pointer);
        found.unwrap_or_else(|| panic!("the shipped Envoy configuration has nothing at {pointer}"))
    }

    /// The HTTP connection manager of the first listener.
    pub fn http_connection_manager(&mut self) -> &mut Value {
        self.at(HCM)
    }

    /// A cluster by name.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn cluster(&mut self, name: &str) -> &mut Value {
        let clusters = self.at(CLUSTERS).as_array_mut().into_iter().flatten();
        let found = clusters.into_iter().find(|c| c["name"] == name);
        found.unwrap_or_else(|| panic!("the shipped Envoy configuration has no cluster {name}"))
    }

    /// Where the agent listens.
    pub fn agent_socket(mut self, socket: impl AsRef<Path>) -> Self {
        let path = json!({"pipe": {"path": socket.as_ref()}});
        let endpoint = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
        *child(self.cluster("pintle_agent"), endpoint) = path;
        self
    }

    /// Which module to load.
    pub fn wasm(mut self, module: impl AsRef<Path>) -> Self {
        let file = json!(module.as_ref());
        *child(self.wasm_filter(), "/typed_config/config/vm_config/code/local/filename") = file;
        self
    }

    /// Changes the plugin's configuration, the JSON that the module reads.
    pub fn plugin(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let text = child(self.wasm_filter(), "/typed_config/config/configuration/value");
        let mut plugin: Value = serde_json::from_str(text.as_str().unwrap_or_default())
            .expect("the plugin configuration in the shipped file is JSON");
        change(&mut plugin);
        *text = json!(plugin.to_string());
        self
    }

    /// Has the router log each attempt to the module, by the same plugin.
    pub fn upstream_log(mut self) -> Self {
        let config = self.wasm_filter()["typed_config"]["config"].clone();
        let filters = child(self.at(HCM), "/http_filters").as_array_mut();
        let router = filters.and_then(|filters| filters.last_mut()).expect("a router");
        router["typed_config"]["upstream_log"] = json!([{"name": "envoy.access_loggers.wasm",
            "typed_config": {"@type": WASM_LOG, "config": config}}]);
        self
    }

    /// Removes the Wasm filter: what remains must serve by itself.
    pub fn without_filter(mut self) -> Self {
        if let Some(filters) = child(self.at(HCM), "/http_filters").as_array_mut() {
            filters.retain(|f| f["name"] != WASM);
        }
        self
    }

    /// The Wasm filter's entry in the chain, with its VM settings and failure policy.
    ///
    /// # Panics
    ///
    /// When it has been removed.
    pub fn wasm_filter(&mut self) -> &mut Value {
        let filters = child(self.at(HCM), "/http_filters").as_array_mut().into_iter().flatten();
        let found = filters.into_iter().find(|f| f["name"] == WASM);
        found.expect("the chain has a Wasm filter")
    }

    /// One more service: a copy of the shipped cluster under this name, reached by this authority.
    pub fn service(mut self, name: &str) -> Self {
        let mut cluster = self.cluster(SERVICE).clone();
        cluster["name"] = json!(name);
        cluster["metadata"]["filter_metadata"]["pintle"]["service"] = json!(name);
        if let Some(service) = cluster.pointer_mut("/eds_cluster_config/service_name") {
            *service = json!(name);
        }
        self.push_cluster(cluster);
        self.route(name, name)
    }

    /// Appends the clusters of another file of the `envoy` directory (`clusters.yaml`), each
    /// reached by its name as authority.
    pub fn clusters_from(mut self, file: &str) -> Result<Self> {
        let more = read(file)?;
        for cluster in more.pointer(CLUSTERS).and_then(Value::as_array).into_iter().flatten() {
            self.push_cluster(cluster.clone());
            let name = cluster["name"].as_str().unwrap_or_default().to_string();
            self = self.route(&name, &name);
        }
        Ok(self)
    }

    /// Sends requests for this authority to that cluster, with the shipped route's settings.
    pub fn route(mut self, authority: &str, cluster: &str) -> Self {
        let hosts = child(self.at(HCM), "/route_config/virtual_hosts");
        let mut host = hosts[0].clone();
        host["name"] = json!(authority);
        host["domains"] = json!([authority, format!("{authority}:*")]);
        *child(&mut host, "/routes/0/name") = json!(authority);
        *child(&mut host, "/routes/0/route/cluster") = json!(cluster);
        hosts.as_array_mut().expect("virtual_hosts is a list").push(host);
        self
    }

    /// Gives an EDS cluster a fixed list of hosts in place of the agent's: what Envoy alone does.
    pub fn static_hosts(mut self, cluster: &str, hosts: &[SocketAddr]) -> Self {
        let endpoints: Vec<Value> = hosts
            .iter()
            .map(|h| {
                json!({"endpoint": {"address": {"socket_address":
                {"address": h.ip().to_string(), "port_value": h.port()}}}})
            })
            .collect();
        let found = self.cluster(cluster);
        found["type"] = json!("STATIC");
        if let Some(fields) = found.as_object_mut() {
            fields.remove("eds_cluster_config");
        }
        found["load_assignment"] =
            json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]});
        self
    }

    /// Replaces the load balancing policy of a cluster by Envoy's own of this name, for example
    /// `least_request`, `ring_hash`, `maglev`, with these fields.
    pub fn native_policy(mut self, cluster: &str, policy: &str, fields: &Value) -> Self {
        // The message is the name in camel case.
        let message: String = policy.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
        let base = "envoy.extensions.load_balancing_policies";
        let mut typed =
            json!({"@type": format!("type.googleapis.com/{base}.{policy}.v3.{message}")});
        for (key, value) in fields.as_object().into_iter().flatten() {
            typed[key] = value.clone();
        }
        self.cluster(cluster)["load_balancing_policy"] = json!({"policies": [{
            "typed_extension_config": {
                "name": format!("envoy.load_balancing_policies.{policy}"), "typed_config": typed}}]});
        self
    }

    /// Changes the retry policy of every virtual host; `Value::Null` in a field removes it.
    pub fn retry(mut self, change: impl Fn(&mut Value)) -> Self {
        let hosts = child(self.at(HCM), "/route_config/virtual_hosts").as_array_mut();
        for host in hosts.into_iter().flatten() {
            change(&mut host["retry_policy"]);
        }
        self
    }

    /// Another node id, where several proxies share an agent.
    pub fn node(mut self, id: &str) -> Self {
        *self.at("/node/id") = json!(id);
        self
    }

    /// Puts the admin interface and the first listener on these addresses.
    pub(crate) fn listen(&mut self, admin: SocketAddr, http: SocketAddr) {
        *self.at("/admin/address") = socket(admin);
        self.at(LISTENERS)[0]["address"] = socket(http);
    }

    /// The bootstrap as JSON, which Envoy reads as readily as YAML.
    pub fn to_json(&self) -> String {
        format!("{:#}", self.root)
    }

    fn push_cluster(&mut self, cluster: Value) {
        self.at(CLUSTERS).as_array_mut().expect("clusters is a list").push(cluster);
    }
}

fn socket(addr: SocketAddr) -> Value {
    json!({"socket_address": {"address": addr.ip().to_string(), "port_value": addr.port()}})
}

fn child<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
    let name = value["name"].clone();
    let found = value.pointer_mut(pointer);
    found.unwrap_or_else(|| panic!("{name} in the shipped Envoy configuration has no {pointer}"))
}

fn read(name: &str) -> Result<Value> {
    let path = tools::root().join("envoy").join(name);
    let text = std::fs::read_to_string(&path).map_err(|e| Error::from(e).during(path.display()))?;
    serde_yaml_ng::from_str(&text).map_err(|e| Error::from(e).during(path.display()))
}
