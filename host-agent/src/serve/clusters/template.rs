//! The template of all clusters: the shipped one with the patch of `serve.clusters` over it.
//!
//! A patch in the sense of RFC 7386, like a policy: it says what differs, and nobody can forget
//! what a cluster of ours has to have. `{service}` in any text is the service's name. What comes
//! out is read by the descriptors in `proto/clusters`, so a key that they do not have is refused by
//! its path.

use std::hash::{DefaultHasher, Hasher};
use std::sync::LazyLock;

use pintle_policy::merge;
use pintle_settings::{Found, Invalid};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

/// What stands for the service's name.
const PLACE: &str = "{service}";
/// The file whose cluster is copied.
const SHIPPED: &str = include_str!("../../../../envoy/envoy.yaml");
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ANY: &str = "google.protobuf.Any";

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clusters.bin"));
    DescriptorPool::decode(bytes).ok()
});

/// The template, which makes a cluster of every name.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    cluster: Value,
    /// What stands before and after the service in a cluster's name.
    around: (String, String),
}

/// A cluster, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Equal bytes have equal fingerprints, in every life of the agent.
    pub(crate) fingerprint: u64,
}

impl Template {
    /// Lays `patch`, which stands at `path`, over the shipped cluster.
    ///
    /// # Errors
    /// The first key that is not known, or the first value that is none of what Envoy takes there.
    pub(crate) fn read(path: &str, patch: &Value) -> Result<Self, Invalid> {
        if !patch.is_object() {
            return Err(Invalid::new(path, "what differs from the shipped cluster").found(patch));
        }
        let mut cluster = shipped().ok_or_else(|| Invalid::new(path, "left out"))?;
        merge(&mut cluster, patch);
        for (place, fixed) in [("/type", "EDS"), ("/eds_cluster_config/service_name", PLACE)] {
            if cluster.pointer(place).and_then(Value::as_str) != Some(fixed) {
                let key = place.replace('/', ".");
                return Err(Invalid::new(format!("{path}{key}"), format!("left out, or {fixed}")));
            }
        }
        let name = cluster.get("name").and_then(Value::as_str).unwrap_or_default();
        let around = name.split_once(PLACE).filter(|(_, after)| !after.contains(PLACE));
        let Some((before, after)) = around else {
            let accepts = format!("a text with {PLACE} in it, once");
            return Err(Invalid::new(format!("{path}.name"), accepts));
        };
        let around = (before.to_owned(), after.to_owned());
        let template = Self { cluster, around };
        known(path, &template.cluster, descriptor(CLUSTER).as_ref())?;
        template
            .encode("a")
            .map_err(|error| Invalid::new(path, format!("a cluster that Envoy takes ({error})")))?;
        Ok(template)
    }

    /// What the cluster of a service is called.
    pub(crate) fn name_of(&self, service: &str) -> String {
        format!("{}{service}{}", self.around.0, self.around.1)
    }

    /// Whose cluster is called so.
    pub(crate) fn service_of<'a>(&self, cluster: &'a str) -> Option<&'a str> {
        cluster.strip_prefix(&*self.around.0)?.strip_suffix(&*self.around.1)
    }

    /// The cluster of a service. `None` does not happen: a template is tried when it is read, and a
    /// name changes nothing but texts.
    pub(crate) fn cluster(&self, service: &str) -> Option<Cluster> {
        let bytes = self.encode(service).ok()?;
        // DefaultHasher::new has fixed keys.
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Some(Cluster { name: self.name_of(service), fingerprint: hasher.finish(), bytes })
    }

    fn encode(&self, service: &str) -> Result<Vec<u8>, serde_json::Error> {
        let mut cluster = self.cluster.clone();
        fill(&mut cluster, service);
        let descriptor =
            descriptor(CLUSTER).ok_or_else(|| serde::de::Error::custom("no schema"))?;
        Ok(DynamicMessage::deserialize(descriptor, cluster)?.encode_to_vec())
    }
}

/// The shipped cluster as a template: its hosts come by the stream that it comes by itself.
fn shipped() -> Option<Value> {
    let file: Value = serde_yaml_ng::from_str(SHIPPED).ok()?;
    let mut cluster = file.pointer("/static_resources/clusters/0")?.clone();
    let patch = json!({
        "name": PLACE,
        "metadata": {"filter_metadata": {"pintle": {"service": PLACE}}},
        "eds_cluster_config": {
            "service_name": PLACE,
            "eds_config": {"api_config_source": null, "ads": {}},
        },
    });
    merge(&mut cluster, &patch);
    Some(cluster)
}

fn descriptor(name: &str) -> Option<MessageDescriptor> {
    POOL.as_ref()?.get_message_by_name(name)
}

/// Puts the name in its places.
fn fill(value: &mut Value, service: &str) {
    match value {
        Value::String(text) if text.contains(PLACE) => *text = text.replace(PLACE, service),
        Value::Array(list) => list.iter_mut().for_each(|value| fill(value, service)),
        Value::Object(map) => map.values_mut().for_each(|value| fill(value, service)),
        _ => {}
    }
}

/// Whether each key below `path` is one of its message.
fn known(path: &str, value: &Value, message: Option<&MessageDescriptor>) -> Result<(), Invalid> {
    let (Value::Object(map), Some(message)) = (value, message) else { return Ok(()) };
    if message.full_name() == ANY {
        return extension(path, map);
    }
    // The wrappers, durations and trees of protobuf itself have forms of their own in JSON.
    if message.full_name().starts_with("google.protobuf.") {
        return Ok(());
    }
    for (key, value) in map.iter().filter(|(key, _)| *key != "@type") {
        let field = message.get_field_by_name(key).or_else(|| message.get_field_by_json_name(key));
        let Some(field) = field else {
            let names: Vec<String> = message.fields().map(|it| it.name().to_owned()).collect();
            return Err(Invalid {
                field: format!("{path}.{key}"),
                accepts: names.join(", "),
                found: Found::UnknownKey,
            });
        };
        below(&format!("{path}.{key}"), value, &field)?;
    }
    Ok(())
}

/// The message, the messages of a list, or those of a map.
fn below(path: &str, value: &Value, field: &FieldDescriptor) -> Result<(), Invalid> {
    let Kind::Message(message) = field.kind() else { return Ok(()) };
    match value {
        Value::Array(list) => list
            .iter()
            .enumerate()
            .try_for_each(|(at, value)| known(&format!("{path}[{at}]"), value, Some(&message))),
        Value::Object(map) if field.is_map() => {
            let Kind::Message(message) = message.map_entry_value_field().kind() else {
                return Ok(());
            };
            map.iter()
                .try_for_each(|(key, value)| known(&format!("{path}.{key}"), value, Some(&message)))
        }
        value => known(path, value, Some(&message)),
    }
}

/// An extension, whose type stands in it.
fn extension(path: &str, map: &Map<String, Value>) -> Result<(), Invalid> {
    let url = map.get("@type").and_then(Value::as_str).unwrap_or_default();
    let name = url.strip_prefix(PREFIX).filter(|name| EXTENSIONS.contains(name));
    let Some(message) = name.and_then(descriptor) else {
        let accepts = EXTENSIONS.map(|name| format!("{PREFIX}{name}")).join(", ");
        return Err(Invalid::new(format!("{path}.@type"), accepts).found(&Value::from(url)));
    };
    known(path, &Value::Object(map.clone()), Some(&message))
}

const PREFIX: &str = "type.googleapis.com/";
/// The messages that may stand in an `Any`.
const EXTENSIONS: [&str; 8] = [
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
    "envoy.extensions.load_balancing_policies.random.v3.Random",
    "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
];
