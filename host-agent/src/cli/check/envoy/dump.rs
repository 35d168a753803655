//! Envoy's configuration, searched for the shapes that matter wherever they are (static, dynamic,
//! nested in filter chains), rather than walked by its schema, which differs by version.

use std::collections::{BTreeMap, BTreeSet};

use pintle_policy::Config;
use serde_json::{Map, Value};

pub(super) type Object = Map<String, Value>;

/// Every object of a `/config_dump`, or of a bootstrap file.
#[derive(Debug)]
pub(super) struct Dump<'a> {
    pub(super) all: Vec<&'a Object>,
}

impl<'a> Dump<'a> {
    pub(super) fn of(value: &'a Value) -> Self {
        let mut all = Vec::new();
        visit(value, &mut |object| all.push(object));
        Self { all }
    }

    /// The clusters by name, each once.
    pub(super) fn clusters(&self) -> BTreeMap<&'a str, &'a Object> {
        let marks = ["connect_timeout", "type", "cluster_type", "load_assignment", "lb_policy"];
        let clusters = self.all.iter().filter(|it| marks.iter().any(|mark| it.contains_key(*mark)));
        clusters.filter_map(|cluster| Some((text(cluster, "name")?, *cluster))).collect()
    }

    /// The settings of our own plugins, with the plugin's name; another module's are none of ours.
    pub(super) fn plugins(&self) -> Vec<(&'a str, Config)> {
        let plugins = self.all.iter().filter(|object| object.contains_key("vm_config"));
        plugins
            .filter_map(|plugin| {
                let config = Config::parse(told(plugin)?.as_bytes()).ok()?;
                Some((text(plugin, "name").unwrap_or("(no name)"), config))
            })
            .collect()
    }

    /// The headers that choose a host of some cluster: those that a cluster reads, and those that a
    /// filter moves into the metadata that a cluster reads.
    pub(super) fn override_headers(&self) -> BTreeSet<&'a str> {
        let places: BTreeSet<_> =
            self.all.iter().flat_map(|object| sources(object)).filter_map(place).collect();
        let moved = self.all.iter().filter_map(|rule| {
            let to = rule.get("on_header_present")?.as_object()?;
            let place = (text(to, "metadata_namespace")?, text(to, "key")?);
            places.contains(&place).then(|| text(rule, "header"))?
        });
        let read = self.all.iter().flat_map(|object| sources(object)).filter_map(header);
        read.chain(moved).collect()
    }
}

/// A plugin's settings as the module gets them.
pub(super) fn told(plugin: &Object) -> Option<String> {
    Some(match at(plugin, &["configuration", "value"])? {
        Value::String(json) => json.clone(),
        // A `Struct`, which Envoy prints as what it holds.
        tree => tree.to_string(),
    })
}

/// An object's `override_host_sources`.
fn sources(object: &Object) -> impl Iterator<Item = &Value> {
    object.get("override_host_sources").and_then(Value::as_array).into_iter().flatten()
}

fn header(source: &Value) -> Option<&str> {
    source.get("header")?.as_str()
}

/// The namespace and the key of a source that is metadata.
fn place(source: &Value) -> Option<(&str, &str)> {
    let metadata = source.get("metadata")?.as_object()?;
    let key = metadata.get("path")?.as_array()?.first()?.get("key")?;
    Some((text(metadata, "key")?, key.as_str()?))
}

/// The headers that choose a host of `cluster`.
pub(super) fn override_headers(cluster: &Object) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    if let Some(policy) = cluster.get("load_balancing_policy") {
        visit(policy, &mut |object| found.extend(sources(object).filter_map(header)));
    }
    found
}

/// Whether `cluster` follows a choice that is made elsewhere, by header or by metadata.
pub(super) fn overridden(cluster: &Object) -> bool {
    let mut found = false;
    if let Some(policy) = cluster.get("load_balancing_policy") {
        visit(policy, &mut |object| found |= sources(object).next().is_some());
    }
    found
}

/// The clusters that `cluster` is an aggregate of; none where it is no aggregate.
pub(super) fn members(cluster: &Object) -> impl Iterator<Item = &str> {
    let members = at(cluster, &["cluster_type", "typed_config", "clusters"]);
    members.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

pub(super) fn visit<'a>(value: &'a Value, found: &mut impl FnMut(&'a Object)) {
    // A dump is nested as deep as serde_json reads, which is 128.
    match value {
        Value::Object(object) => {
            found(object);
            for value in object.values() {
                visit(value, found);
            }
        }
        Value::Array(list) => {
            for value in list {
                visit(value, found);
            }
        }
        _ => {}
    }
}

pub(super) fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

pub(super) fn at<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(object.get(*first)?, |value, key| value.get(*key))
}

/// A protobuf duration such as `0.010s`.
pub(super) fn seconds(value: Option<&Value>) -> Option<f64> {
    value?.as_str()?.strip_suffix('s')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plugins_settings_are_read_from_text_and_from_a_struct() {
        for value in [json!(r#"{"trace": {}}"#), json!({"trace": {}})] {
            let plugin =
                json!({"name": "ours", "vm_config": {}, "configuration": {"value": value}});
            let found = Dump::of(&plugin).plugins();
            let [("ours", config)] = found.as_slice() else { panic!("{value}: {found:?}") };
            assert_eq!(config.parts_on(), ["trace"]);
        }
    }
}
