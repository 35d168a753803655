//! What all formats share: from what a framework wrote to our own form, or why not.

use std::net::SocketAddr;

use pintle_contract::{AddressPolicy, MAX_LABEL, MAX_LABELS, MAX_WEIGHT, encode_name};
use pintle_state::entry;
use serde_json::{Map, Value, json};

use super::config::SourceConfig;
use super::{Found, Refusal, Weight, address, fields};

/// An instance in our own form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// `{name}/{id}`.
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
}

/// Judges what was found. `alone`: no other instance has the same id.
///
/// # Errors
/// The first thing that is wrong with it.
pub(super) fn admit(
    found: Found,
    alone: bool,
    source: &SourceConfig,
    allowed: &AddressPolicy,
) -> Result<Admitted, Refusal> {
    let at = address::parse(&found.address)?;
    let weight = weight(&found.weight)?;
    let name = encode_name(&service(&found, source)).ok_or(Refusal::Name("name"))?;
    let id = encode_name(&identity(&found, at, alone, source)).ok_or(Refusal::Name("id"))?;
    let value = own(&name, &id, at, weight, found, source).to_string().into_bytes();
    // The state reads it again; what it would refuse is refused here, where the key is known.
    entry::parse(&name, &id, &value, allowed)?;
    Ok(Admitted { key: format!("{name}/{id}"), value })
}

/// The source's template, filled in: `{name}` and any key of the metadata.
fn service(found: &Found, source: &SourceConfig) -> Vec<u8> {
    let prefix = source.last_of_prefix();
    let name = if found.name.is_empty() { &prefix } else { &found.name };
    let mut out = Vec::new();
    let mut rest = source.name.as_str();
    while let Some((before, (part, after))) =
        rest.split_once('{').and_then(|(before, after)| Some((before, after.split_once('}')?)))
    {
        out.extend_from_slice(before.as_bytes());
        if part == "name" {
            out.extend_from_slice(name);
        } else if let Value::String(text) = fields::label(&found.metadata, part) {
            out.extend_from_slice(text.as_bytes());
        }
        rest = after;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// An address in an id has no brackets: one spelling, and nothing to encode. Where one service is
/// made of several names, a name is part of the id.
fn identity(found: &Found, at: SocketAddr, alone: bool, source: &SourceConfig) -> Vec<u8> {
    let address = format!("{}:{}", at.ip().to_canonical(), at.port());
    if found.id.is_empty() {
        return address.into_bytes();
    }
    let mut id = Vec::new();
    if !source.name.contains("{name}") && !found.name.is_empty() {
        id.extend_from_slice(&found.name);
        id.push(b'/');
    }
    id.extend_from_slice(&found.id);
    if !alone {
        id.push(b'-');
        id.extend_from_slice(address.as_bytes());
    }
    id
}

fn weight(weight: &Weight) -> Result<u32, Refusal> {
    let number = match &weight.said {
        Value::Null => return Ok(weight.default),
        Value::String(text) if text.trim().is_empty() => return Ok(weight.default),
        Value::String(text) => text.trim().parse::<f64>().ok(),
        other => other.as_f64(),
    };
    let number = number.filter(|number| number.is_finite()).ok_or(Refusal::Weight)?;
    if number <= 0.0 {
        return Ok(weight.zero);
    }
    // In range by the clamp; what is between nothing and one is still something.
    let whole = number.round().clamp(1.0, f64::from(MAX_WEIGHT));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    Ok(whole as u32)
}

/// Metadata of another framework is kept as far as it fits: an instance is not lost over a note in
/// it.
fn own(
    name: &str,
    id: &str,
    at: SocketAddr,
    weight: u32,
    found: Found,
    source: &SourceConfig,
) -> Value {
    let fits = |text: &str| text.len() <= MAX_LABEL;
    let mut metadata: Map<String, Value> = Map::new();
    let zone = fields::label(&found.metadata, &source.zone);
    let region = fields::label(&found.metadata, &source.region);
    // Three places are for the weight, the zone and the region.
    let kept = found.metadata.into_iter().filter(|(key, value)| fits(key) && fits(value));
    for (key, value) in kept.take(MAX_LABELS - 3) {
        metadata.insert(key, value.into());
    }
    for (key, value) in [("zone", zone), ("region", region), ("weight", weight.to_string().into())]
    {
        if value.as_str().is_some_and(|text| !text.is_empty() && fits(text)) {
            metadata.insert(key.to_owned(), value);
        } else {
            metadata.remove(key);
        }
    }
    let tags: Vec<String> =
        found.tags.into_iter().filter(|tag| fits(tag)).take(MAX_LABELS).collect();
    json!({
        "id": id,
        "name": name,
        "address": at.ip().to_canonical().to_string(),
        "port": at.port(),
        "health": if found.unhealthy { "unhealthy" } else { "healthy" },
        "metadata": metadata,
        "tags": tags,
    })
}
