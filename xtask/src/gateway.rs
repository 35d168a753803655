//! The objects for Envoy Gateway against what its CRDs take.
//!
//! `gateway/schemas.yaml` has required fields, rules and bounds of what the objects use, in our own
//! words. `gateway/published.json` has every field and enumeration of the four kinds, made by a
//! generator from types that npm publishes and that are made from Envoy Gateway's.

use boon::{Compiler, Schemas};
use pintle_tests::tools;
use serde::Deserialize as _;
use serde_json::{Value, json};

/// Below these anything may stand: what the plugin or Envoy reads.
const OPEN: [&str; 2] = ["config", "value"];

fn read(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

fn objects() -> Vec<Value> {
    read(&std::fs::read_to_string(tools::root().join("envoy/gateway/pintle.yaml")).unwrap())
}

/// Why a value is not what the schema has under the kind of its object.
fn judged(schema: &str, kind: &Value, value: &Value) -> Option<String> {
    let [schema]: [Value; 1] = read(schema).try_into().unwrap();
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("gateway.json", schema).unwrap();
    let at = format!("gateway.json#/$defs/{}", kind.as_str().unwrap());
    let schema = compiler.compile(&at, &mut schemas).unwrap();
    schemas.validate(value, schema).err().map(|error| error.to_string())
}

/// Why an object is refused.
fn refused(object: &Value) -> Option<String> {
    judged(include_str!("gateway/schemas.yaml"), &object["kind"], object)
}

/// What the published types say against its spec.
fn refused_by_types(object: &Value) -> Option<String> {
    judged(include_str!("gateway/published.json"), &object["kind"], &object["spec"])
}

/// The JSON pointers of all fields above what is open.
fn fields(value: &Value, at: &str) -> Vec<String> {
    let mut all = Vec::new();
    if let Value::Object(map) = value {
        for (key, inner) in map {
            let pointer = format!("{at}/{key}");
            if !OPEN.contains(&key.as_str()) {
                all.extend(fields(inner, &pointer));
            }
            all.push(pointer);
        }
    } else if let Value::Array(list) = value {
        for (index, inner) in list.iter().enumerate() {
            all.extend(fields(inner, &format!("{at}/{index}")));
        }
    }
    all
}

#[test]
fn every_object_is_of_a_kind_of_envoy_gateway() {
    let objects = objects();
    for object in &objects {
        assert_eq!(refused(object), None, "{object}");
        assert_eq!(refused_by_types(object), None, "{object}");
    }
    let mut kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    let policy = ["BackendTraffic", "ClientTraffic", "EnvoyExtension", "EnvoyPatch"];
    assert_eq!(kinds, policy.map(|name| format!("{name}Policy")));
}

#[test]
fn every_field_is_refused_when_it_is_misspelt() {
    let mut tried = 0;
    for object in objects() {
        // By the kind the schema is found.
        for field in fields(&object, "").iter().filter(|field| *field != "/kind") {
            let (parent, key) = field.rsplit_once('/').unwrap();
            let mut wrong = object.clone();
            let map = wrong.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            let value = map.remove(key).unwrap();
            map.insert(format!("{key}s"), value);
            assert!(refused(&wrong).is_some(), "{field} of {}", object["kind"]);
            if field.starts_with("/spec/") {
                assert!(refused_by_types(&wrong).is_some(), "{field} of {}", object["kind"]);
            }
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
}

#[test]
fn values_that_its_rules_exclude_are_refused() {
    let objects = objects();
    let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
    for (kind, field, value) in [
        ("EnvoyExtensionPolicy", "/spec/targetRefs/0/kind", json!("Service")),
        ("EnvoyExtensionPolicy", "/spec/wasm/0/code/type", json!("HTTP")),
        ("EnvoyExtensionPolicy", "/spec/wasm/0/code/type", json!("ConfigMap")),
        ("EnvoyExtensionPolicy", "/spec/wasm/0/failOpen", json!("yes")),
        ("BackendTrafficPolicy", "/spec/loadBalancer/type", json!("Maglev")),
        ("BackendTrafficPolicy", "/spec/loadBalancer/type", json!("ConsistentHash")),
        ("BackendTrafficPolicy", "/spec/loadBalancer/endpointOverride/extractFrom", json!([])),
        ("BackendTrafficPolicy", "/spec/targetRefs/0/group", json!("gateway.envoyproxy.io")),
        ("ClientTrafficPolicy", "/spec/targetRefs/0/kind", json!("HTTPRoute")),
        ("ClientTrafficPolicy", "/spec/headers/earlyRequestHeaders/remove", json!(["a", "a"])),
        ("EnvoyPatchPolicy", "/spec/type", json!("MergePatch")),
        ("EnvoyPatchPolicy", "/spec/jsonPatches/0/type", json!("envoy.config.cluster.v3.Cluster")),
        ("EnvoyPatchPolicy", "/spec/jsonPatches/0/operation/op", json!("merge")),
    ] {
        let mut wrong = of(kind).clone();
        *wrong.pointer_mut(field).unwrap() = value.clone();
        assert!(refused(&wrong).is_some(), "{field}: {value}");
    }
    let mut both = of("ClientTrafficPolicy").clone();
    both["spec"]["targetRef"] = both["spec"]["targetRefs"][0].clone();
    assert!(refused(&both).is_some(), "one way of saying what it is for");
}
