//! A service's policy: what selection, breaker and trace do for it, out of layers of JSON.
//!
//! ```text
//!   plugin configuration ◀─ its "services" entry ◀─ /pintle/policies/{service} ◀─ events
//! ```
//! Each layer is a JSON merge patch (RFC 7386) over the one before, so that a layer says only what
//! it changes and `null` takes a key back to its default. The schema of each part is its crate's;
//! here they come together, for the agent that checks a policy before it publishes it and for the
//! filter that applies it.

mod config;
mod switches;

pub use pintle_balance as select;
pub use pintle_breaker as breaker;

pub use config::{Config, DebugHeader, Pattern, Select, Source, Unknown, Via};
use pintle_settings::{Invalid, MAX_DEPTH, Section, Settings};
use serde_json::{Map, Value};
pub use switches::Switches;

/// The parts, and what turns one off for a service. Null does not: in a merge patch it would give
/// every key of the part its default, which nobody means by it.
const PARTS: [(&str, &str); 3] = [
    ("select", "\"bypass\": true beside it leaves the service to Envoy"),
    ("breaker", "\"bypass\": true beside it leaves the service to Envoy"),
    ("trace", "\"spans\": \"off\" in it sends no spans"),
];

/// What the parts do for one service.
#[derive(Clone, Debug)]
pub struct Policy {
    /// What an operator has turned off.
    pub switches: Switches,
    /// How an endpoint is chosen.
    pub select: pintle_balance::Policy,
    /// When an endpoint's breaker opens.
    pub breaker: pintle_breaker::Policy,
    /// What is sampled and recorded.
    pub trace: pintle_trace::Policy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            switches: Switches::default(),
            select: pintle_balance::Policy::default(),
            breaker: pintle_breaker::Policy::unconfigured(),
            trace: pintle_trace::Policy::default(),
        }
    }
}

impl Settings for Policy {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        Self {
            switches: Switches::read(keys),
            select: keys.section("select").unwrap_or(default.select),
            breaker: keys.section("breaker").unwrap_or(default.breaker),
            trace: keys.section("trace").unwrap_or(default.trace),
        }
    }
}

impl Policy {
    /// The policy of `layers`, the weakest first.
    ///
    /// # Errors
    /// The key that is refused, from the part on, and what it accepts.
    pub fn resolve<'a>(layers: impl IntoIterator<Item = &'a Value>) -> Result<Self, Invalid> {
        let mut merged = Value::Object(Map::new());
        for layer in layers {
            if depth(layer) > MAX_DEPTH {
                return Err(Invalid::new("the policy", format!("at most {MAX_DEPTH} levels deep")));
            }
            let null = |(part, _): &&(&str, &str)| layer.get(*part).is_some_and(Value::is_null);
            if let Some((part, off)) = PARTS.iter().find(null) {
                let accepts = format!("an object of keys ({off})");
                return Err(Invalid::new(*part, accepts).found(&Value::Null));
            }
            merge(&mut merged, layer);
        }
        pintle_settings::read("", merged)
    }

    /// Checks a patch as it would stand over the defaults.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn check(patch: &Value) -> Result<(), Invalid> {
        if !patch.is_object() {
            return Err(Invalid::new("the policy", "an object of keys").found(patch));
        }
        Self::resolve([patch]).map(drop)
    }
}

/// Lays `patch` over `target` (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(depth).max().unwrap_or(0).saturating_add(1),
        Value::Object(entries) => entries.values().map(depth).max().unwrap_or(0).saturating_add(1),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7386, appendix A.
    #[test]
    fn merges_as_rfc_7386_says() {
        let table = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (mut target, patch, expect) in table {
            let before = target.clone();
            merge(&mut target, &patch);
            assert_eq!(target, expect, "{before} with {patch}");
        }
    }

    #[test]
    fn a_later_layer_says_only_what_it_changes() {
        let plugin = json!({"breaker": {"consecutive_failures": 7, "open": "10s"}});
        let event = json!({"breaker": {"open": "20s"}});
        let policy = Policy::resolve([&plugin, &event]).unwrap();
        assert_eq!(policy.breaker.consecutive_failures, 7);
        assert_eq!(policy.breaker.open.as_secs(), 20);
    }

    #[test]
    fn what_is_refused_is_named() {
        let table = [
            (
                json!({"brakes": {}}),
                "unknown key brakes, accepted are bypass, mode, select, breaker, trace",
            ),
            (json!({"select": null}), "select must be an object of keys (\"bypass\": true"),
            (json!({"breaker": null}), "breaker must be an object of keys (\"bypass\": true"),
            (json!({"trace": null}), "trace must be an object of keys (\"spans\": \"off\""),
            (json!({"bypass": "yes"}), "bypass must be true or false, found \"yes\""),
            (json!({"mode": "off"}), "mode must be active or shadow, found \"off\""),
            (json!({"breaker": {"opne": "3s"}}), "opne"),
            (json!({"select": {"strategy": "best"}}), "best"),
            (json!({"trace": {"ratio": 2}}), "ratio"),
            (json!([1]), "object"),
        ];
        for (patch, named) in table {
            let error = Policy::check(&patch).unwrap_err().to_string();
            assert!(error.contains(named), "{patch}: {error}");
        }
    }

    #[test]
    fn a_switch_is_set_by_any_layer_and_taken_back_by_null() {
        let (on, off) = (json!({"bypass": true, "mode": "shadow"}), json!({"mode": null}));
        let switches = |layers: &[&Value]| Policy::resolve(layers.to_vec()).unwrap().switches;
        assert_eq!(switches(&[]), Switches { bypass: false, shadow: false });
        assert_eq!(switches(&[&on]), Switches { bypass: true, shadow: true });
        assert_eq!(switches(&[&on, &off]), Switches { bypass: true, shadow: false });
    }

    #[test]
    fn a_patch_of_any_depth_is_refused_without_harm() {
        let mut patch = json!(1);
        for _ in 0..100 {
            patch = json!({ "select": patch });
        }
        assert!(Policy::check(&patch).is_err());
    }
}
