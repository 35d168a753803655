//! Places of the shipped configuration that rows change.

use pintle_tests::EnvoyConfig;
use serde_json::{Value, json};

/// The virtual host of a row.
pub fn host<'a>(config: &'a mut EnvoyConfig, name: &str) -> &'a mut Value {
    let hosts = config.http_connection_manager()["route_config"]["virtual_hosts"].as_array_mut();
    hosts.into_iter().flatten().find(|host| host["name"] == name).expect("a virtual host")
}

/// The route action of a row.
pub fn route<'a>(config: &'a mut EnvoyConfig, name: &str) -> &'a mut Value {
    &mut host(config, name)["routes"][0]["route"]
}

/// Retries of a row: on what, how often, and more fields.
pub fn retry(config: &mut EnvoyConfig, name: &str, on: &str, times: u32, more: &Value) {
    let mut policy = json!({"retry_on": on, "num_retries": times,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        policy[key] = value.clone();
    }
    host(config, name)["retry_policy"] = policy;
}

/// No retries of a row.
pub fn unretried(mut config: EnvoyConfig, name: &str) -> EnvoyConfig {
    retry(&mut config, name, "", 0, &json!(null));
    config
}

/// The policy of a row's service.
pub fn policy(config: EnvoyConfig, name: &str, policy: Value) -> EnvoyConfig {
    config.plugin(|plugin| plugin["services"][name] = policy)
}

/// HTTP/2 to the upstreams of a row.
pub fn http2(mut config: EnvoyConfig, name: &str) -> EnvoyConfig {
    let options = "/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config";
    let found = config.cluster(name).pointer_mut(options).expect("a protocol");
    *found = json!({"http2_protocol_options": {}});
    config
}
