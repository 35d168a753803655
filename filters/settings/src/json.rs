//! JSON from strangers: bounded, and without two readings.
//!
//! `serde_json` alone keeps the last of two equal keys, so that two readers of the same bytes may
//! disagree about an address; here that is an error. Depth is bounded well below the parser's own
//! limit, because values are walked again when policies are merged.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Levels of objects and lists, at most.
pub const MAX_DEPTH: usize = 16;

/// Why bytes are not a JSON value that is taken here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// Not JSON: syntax, encoding, a number beyond what fits, or something after the value; what is
    /// wrong at which line and column.
    Syntax(String),
    /// More than [`MAX_DEPTH`] levels.
    Depth,
    /// An object has this key twice; with its path.
    DuplicateKey(String),
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(what) => write!(f, "not JSON: {what}"),
            Self::Depth => write!(f, "deeper than {MAX_DEPTH} levels"),
            Self::DuplicateKey(key) => write!(f, "the key {key} stands twice in one object"),
        }
    }
}

impl std::error::Error for JsonError {}

/// Reads exactly one value.
///
/// # Errors
/// A [`JsonError`], whatever the bytes are.
pub fn parse_json(bytes: &[u8]) -> Result<Value, JsonError> {
    let place = RefCell::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, place: &place }.deserialize(&mut reader);
    value.and_then(|value| reader.end().map(|()| value)).map_err(|error| {
        let refused = place.take().refused;
        refused.unwrap_or_else(|| JsonError::Syntax(error.to_string()))
    })
}

/// Where the reader is, and why it stopped if not for the syntax.
#[derive(Default)]
struct Place {
    path: String,
    refused: Option<JsonError>,
}

impl Place {
    /// The longest path that is kept, in bytes: keys come from strangers.
    const LONGEST: usize = 256;

    /// One level further down; the length to come back to.
    fn enter(&mut self, key: &str) -> usize {
        let before = self.path.len();
        if before.saturating_add(key.len()) < Self::LONGEST {
            let dot = if before == 0 { "" } else { "." };
            self.path.push_str(dot);
            self.path.push_str(key);
        }
        before
    }

    fn refuse<E: Error>(&mut self, error: JsonError) -> E {
        self.refused = Some(error);
        E::custom("refused")
    }
}

struct Strict<'a> {
    depth: usize,
    place: &'a RefCell<Place>,
}

impl Strict<'_> {
    fn deeper<E: Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(self.place.borrow_mut().refuse(JsonError::Depth));
        }
        Ok(Self { depth: self.depth.saturating_add(1), place: self.place })
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

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
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
            let before = self.place.borrow_mut().enter(&key);
            if map.contains_key(&key) {
                let mut place = self.place.borrow_mut();
                let path = std::mem::take(&mut place.path);
                return Err(place.refuse(JsonError::DuplicateKey(path)));
            }
            map.insert(key, from.next_value_seed(self.deeper()?)?);
            self.place.borrow_mut().path.truncate(before);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_plain_value_is_refused_with_its_reason() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let twice = |key: &str| format!("the key {key} stands twice in one object");
        for (text, says) in [
            (deep(17), "deeper than 16 levels".to_owned()),
            (deep(10_000), "deeper than 16 levels".to_owned()),
            (r#"{"a":1,"a":1}"#.to_owned(), twice("a")),
            (r#"{"z":{"y":{}},"b":[{"a":1,"\u0061":2}]}"#.to_owned(), twice("b.a")),
            (format!(r#"{{"a":{{"{0}":1,"{0}":2}}}}"#, "k".repeat(300)), twice("a")),
            (String::new(), "not JSON: EOF".to_owned()),
            ("{} {}".to_owned(), "not JSON: trailing characters at line 1 column 4".to_owned()),
            ("{".to_owned(), "not JSON: EOF".to_owned()),
            ("NaN".to_owned(), "not JSON: expected value at line 1 column 1".to_owned()),
            ("1e309".to_owned(), "not JSON: number out of range".to_owned()),
            ("'a'".to_owned(), "not JSON: expected value".to_owned()),
        ] {
            let error = parse_json(text.as_bytes()).expect_err(&text).to_string();
            assert!(error.starts_with(&says), "{text:.40}: {error}");
        }
        assert!(matches!(parse_json(b"\"\xff\""), Err(JsonError::Syntax(_))));
        for text in ["{}", r#"{"a":[1,2.5,-3,null,true,"x"],"b":{"a":1}}"#, &deep(16)] {
            assert_eq!(parse_json(text.as_bytes()).map_err(|e| e.to_string()), {
                Ok(serde_json::from_str(text).expect("JSON"))
            });
        }
    }
}
