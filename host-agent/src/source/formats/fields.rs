//! Fields of JSON that other languages' libraries wrote.
//!
//! Go's `encoding/json` takes a key in any case and the last of two equal ones, and Java's writers
//! begin with a lower-case letter where Go's begin with a capital; so a field is looked for as it
//! is spelled, and then in any case. Numbers may stand as text.

use serde_json::{Map, Value};

use super::Refusal;

/// An object's fields.
///
/// # Errors
/// The value is too long, or no JSON object.
pub(super) fn object(value: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match json(value)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(pintle_state::entry::Reject::NotAnObject.into()),
    }
}

/// JSON of at most 128 levels, which is the parser's own bound.
///
/// # Errors
/// The value is too long, or no JSON.
pub(super) fn json(value: &[u8]) -> Result<Value, Refusal> {
    use pintle_state::{entry::Reject, json::JsonError};
    if value.len() > super::MAX_VALUE {
        return Err(Refusal::TooLong);
    }
    serde_json::from_slice(value)
        .map_err(|error| Reject::Json(JsonError::Syntax(error.to_string())).into())
}

/// The field in any case; null is none.
pub(super) fn get<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let any_case = || fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    let found = fields.get(name).or_else(|| any_case().map(|(_, value)| value));
    found.filter(|value| !value.is_null())
}

/// Whether all of these fields are there.
pub(super) fn has(fields: &Map<String, Value>, names: &[&str]) -> bool {
    names.iter().all(|name| get(fields, name).is_some())
}

/// Follows an RFC 6901 pointer, in any case; the empty one is the whole.
pub(super) fn point<'a>(root: &'a Value, pointer: &str) -> Option<&'a Value> {
    let mut here = root;
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        here = match here {
            Value::Object(fields) => get(fields, &token)?,
            Value::Array(list) => list.get(token.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    (!here.is_null()).then_some(here)
}

/// A text, number or truth value as text; an object or list as its JSON; null as nothing.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// A field that must be there, as text.
///
/// # Errors
/// It is missing, empty, or an object or list.
pub(super) fn must(fields: &Map<String, Value>, name: &'static str) -> Result<String, Refusal> {
    use pintle_state::entry::Reject;
    match get(fields, name) {
        None => Err(Reject::Missing(name).into()),
        Some(Value::Object(_) | Value::Array(_) | Value::Bool(_)) => {
            Err(Reject::Type(name, "text or a number").into())
        }
        Some(value) => match text(value) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(Reject::Missing(name).into()),
        },
    }
}

/// Whether the field says false, as a truth value, a number or a text.
pub(super) fn is_false(fields: &Map<String, Value>, name: &str) -> bool {
    let said = get(fields, name).and_then(text);
    said.is_some_and(|said| said.eq_ignore_ascii_case("false") || said == "0")
}

/// An object's entries as text; anything else has none.
pub(super) fn labels(value: Option<&Value>) -> Vec<(String, String)> {
    let Some(Value::Object(map)) = value else {
        return Vec::new();
    };
    map.iter().filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

/// A label in any case, as JSON.
pub(super) fn label(labels: &[(String, String)], name: &str) -> Value {
    let found = labels.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map_or(Value::Null, |(_, value)| value.clone().into())
}
