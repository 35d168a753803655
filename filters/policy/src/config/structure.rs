//! A `google.protobuf.Struct` as Envoy hands it over: the message's own bytes. Envoy's
//! documentation says JSON; 1.40 gives `Any.value` as it is (seen in
//! `tests/selection/configuration.rs`).

use prost::Message as _;
use prost_types::value::Kind;
use serde_json::{Number, Value};

/// The first byte of a `Struct` that is not empty: its field 1, length-delimited. In text it is a
/// line feed, so that text is to be tried first.
const FIRST: u8 = 0x0a;

/// What the bytes hold, if they are a `Struct`. Numbers are doubles there; levels are bounded by
/// prost, which reads 100.
pub(super) fn decode(bytes: &[u8]) -> Option<Value> {
    if bytes.first() != Some(&FIRST) {
        return None;
    }
    object(prost_types::Struct::decode(bytes).ok()?)
}

fn object(of: prost_types::Struct) -> Option<Value> {
    of.fields.into_iter().map(|(key, held)| Some((key, value(held)?))).collect()
}

/// `None` for a number that JSON cannot hold.
fn value(of: prost_types::Value) -> Option<Value> {
    Some(match of.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::NumberValue(number)) => Value::Number(Number::from_f64(number)?),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(value).collect::<Option<_>>()?,
        Some(Kind::StructValue(fields)) => object(fields)?,
    })
}
