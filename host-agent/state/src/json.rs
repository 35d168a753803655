//! What is done with JSON from strangers beside reading it.

pub use pintle_settings::{JsonError, MAX_DEPTH, parse_json as parse};
use serde_json::{Map, Value};

/// One patch that does what `first` and then `second` would do (RFC 7386 merge patches).
///
/// Unlike applying a patch to a document, a null stays: it still has to delete something in the
/// configuration that the filter lays the result over. One thing no single patch can say: where
/// `first` has a null and `second` an object, members that `second` does not name come back from
/// below.
pub fn compose(first: &mut Value, second: Value) {
    match second {
        Value::Object(patch) => {
            if !first.is_object() {
                *first = Value::Object(Map::new());
            }
            if let Value::Object(target) = first {
                for (key, value) in patch {
                    compose(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        other => *first = other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_compose_and_keep_their_nulls() {
        let table = [
            (r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":1,"b":2}"#),
            (r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"x":null}}"#, r#"{"a":{"x":null,"y":2}}"#),
            (r#"{"a":{"x":1}}"#, r#"{"a":null}"#, r#"{"a":null}"#),
            (r#"{"a":null}"#, r#"{"a":{"x":1}}"#, r#"{"a":{"x":1}}"#),
            (r#"{"a":[1]}"#, r#"{"a":[2]}"#, r#"{"a":[2]}"#),
        ];
        for (first, second, expect) in table {
            let mut value = parse(first.as_bytes()).unwrap();
            compose(&mut value, parse(second.as_bytes()).unwrap());
            assert_eq!(value.to_string(), expect, "{first} then {second}");
        }
    }
}
