//! JSON from strangers: bounded, and without two readings.
//!
//! `serde_json` alone keeps the last of two equal keys, so that two readers of the same bytes may
//! disagree about an address; here that is an error. Depth is bounded well below the parser's own
//! limit, because values are walked again when policies are merged.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Levels of objects and lists, at most.
pub const MAX_DEPTH: usize = 16;

/// Why bytes are not a JSON value that is taken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JsonError {
    /// Not JSON: syntax, encoding, a number beyond what fits, or something after the value.
    Syntax,
    /// More than [`MAX_DEPTH`] levels.
    Depth,
    /// An object says a key twice.
    DuplicateKey,
}

/// Reads exactly one value.
///
/// # Errors
/// A [`JsonError`], whatever the bytes are.
pub fn parse(bytes: &[u8]) -> Result<Value, JsonError> {
    let found = Cell::new(JsonError::Syntax);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let seed = Strict { depth: 0, found: &found };
    seed.deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|_| found.get())
}

struct Strict<'a> {
    depth: usize,
    found: &'a Cell<JsonError>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            self.found.set(JsonError::Depth);
            return Err(E::custom("too deep"));
        }
        Ok(Self { depth: self.depth.saturating_add(1), found: self.found })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = from.next_element_seed(self.deeper()?)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            let value = from.next_value_seed(self.deeper()?)?;
            if map.insert(key, value).is_some() {
                self.found.set(JsonError::DuplicateKey);
                return Err(A::Error::custom("duplicate key"));
            }
        }
        Ok(Value::Object(map))
    }
}

/// One patch that does what `first` and then `second` would do (RFC 7386 merge patches).
///
/// Unlike applying a patch to a document, a null stays: it still has to delete something in the
/// configuration that the filter lays the result over. One thing no single patch can say: where `first` has
/// a null and `second` an object, members that `second` does not name come back from below.
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
    fn what_is_not_one_plain_value_is_refused_with_its_reason() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let table: &[(String, Result<(), JsonError>)] = &[
            ("{}".into(), Ok(())),
            (r#"{"a":[1,2.5,-3,null,true,"x"]}"#.into(), Ok(())),
            (deep(16), Ok(())),
            (deep(17), Err(JsonError::Depth)),
            (deep(10_000), Err(JsonError::Depth)),
            (r#"{"a":1,"a":1}"#.into(), Err(JsonError::DuplicateKey)),
            (r#"{"b":{"a":1,"\u0061":2}}"#.into(), Err(JsonError::DuplicateKey)),
            ("".into(), Err(JsonError::Syntax)),
            ("{} {}".into(), Err(JsonError::Syntax)),
            ("{".into(), Err(JsonError::Syntax)),
            ("NaN".into(), Err(JsonError::Syntax)),
            ("1e309".into(), Err(JsonError::Syntax)),
            ("'a'".into(), Err(JsonError::Syntax)),
        ];
        for (text, expect) in table {
            assert_eq!(parse(text.as_bytes()).map(drop), *expect, "{text:.40}");
        }
        assert_eq!(parse(b"\"\xff\"").map(drop), Err(JsonError::Syntax));
    }

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
