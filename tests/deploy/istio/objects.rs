//! The objects of `envoy/istio`, as istiod reads them: what is in `spec` and is not read is
//! refused.

use pintle_tests::tools;
use serde::Deserialize;
use serde_json::Value;

/// An object of Kubernetes' kind; what is in `spec` and is not read is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    #[serde(rename = "apiVersion")]
    pub version: String,
    pub kind: String,
    pub metadata: Value,
    #[serde(default)]
    pub spec: Value,
    #[serde(default)]
    pub data: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WasmPlugin {
    pub selector: Value,
    pub url: String,
    pub plugin_name: String,
    pub fail_strategy: String,
    pub r#match: Value,
    pub plugin_config: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvoyFilter {
    pub workload_selector: Value,
    pub config_patches: Vec<ConfigPatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConfigPatch {
    pub apply_to: String,
    pub r#match: Value,
    pub patch: Patch,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    pub operation: String,
    pub value: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceEntry {
    pub hosts: [String; 1],
    pub ports: Value,
    pub location: String,
    pub resolution: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DestinationRule {
    pub host: String,
    pub traffic_policy: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    pub selector: Value,
    pub servers: [GatewayServer; 1],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayServer {
    pub port: Value,
    pub hosts: [String; 1],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtualService {
    pub hosts: [String; 1],
    pub gateways: Vec<String>,
    pub http: Vec<HttpRoute>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRoute {
    #[serde(default)]
    pub r#match: Vec<RouteMatch>,
    pub route: [RouteDestination; 1],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteMatch {
    pub gateways: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteDestination {
    pub destination: Destination,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    pub host: String,
    pub port: Port,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    pub number: u16,
}

/// The objects of a file of `envoy`.
pub fn objects(file: &str) -> Vec<Object> {
    objects_of(&text(file))
}

pub fn text(file: &str) -> String {
    std::fs::read_to_string(tools::root().join("envoy").join(file)).expect("the file")
}

pub fn objects_of(text: &str) -> Vec<Object> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|document| Object::deserialize(document).expect("an object")).collect()
}
