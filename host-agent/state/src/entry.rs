//! A registry value, read: `/services/{name}/{id}` -> an [`Endpoint`], or why not.
//!
//! Anybody who may write under the prefix may write anything, and one bad value must cost exactly
//! itself: every refusal is a [`Reject`] with a stable reason, nothing here fails otherwise, and
//! the bounds are checked before the work is done. The fields are those of DESIGN section 4; what
//! else stands in a value is nobody's business here, and nor is `last_heartbeat`, whatever it is: a
//! value in which only it changes is an equal endpoint and publishes nothing.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use pintle_contract::{
    AddressError, AddressPolicy, Endpoint, Health, MAX_LABEL, MAX_LABELS, MAX_NAME, MAX_POLICY,
    MAX_WEIGHT, Now, is_name,
};
use serde_json::{Map, Value, json};

use crate::json::{self, JsonError};

/// Bytes of a registry key, at most.
pub const MAX_KEY: usize = 512;
/// Bytes of a registry value, at most.
pub const MAX_VALUE: usize = 64 << 10;

/// How it is counted that all values together would be more than `state.budget`.
pub const OVER_BUDGET: &str = "over_budget";

/// How it is counted that a policy asks for more than a VM may hold.
pub const TOO_COSTLY: &str = "too_costly";

/// Why an item was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The key is longer than [`MAX_KEY`].
    KeyTooLong,
    /// The key is not `{prefix}{name}/{id}` with two names.
    Key,
    /// The value is longer than [`MAX_VALUE`].
    ValueTooLong,
    /// The value is not JSON.
    Json(JsonError),
    /// The value is not an object.
    NotAnObject,
    /// A field that must be there is not.
    Missing(&'static str),
    /// A field is something else than it must be: the field, what it must be.
    Type(&'static str, &'static str),
    /// A key of an object is something else than it must be: the object, the key, what it must be.
    Member(&'static str, String, &'static str),
    /// `name` or `id` is not 1 to 253 of `[A-Za-z0-9._:-]`, with any other byte as `%XX`.
    Name(&'static str),
    /// `name` or `id` is not the key's.
    Identity(&'static str),
    /// The address is not an IP literal.
    AddressForm,
    /// The address is one that is not served.
    Address(AddressError),
    /// The port is not an integer from 1 to 65,535.
    Port,
    /// The health is none of `healthy`, `unhealthy`, `draining`.
    Health,
    /// The weight is not an integer from 0 to 1,000,000.
    Weight,
    /// Not RFC 3339 with at most nine decimals.
    Time(&'static str),
    /// More than 64 tags or metadata entries, or one over 4 KiB.
    Labels(&'static str),
    /// There are so many already that no more are taken: what there are.
    TooMany(&'static str),
    /// All values together would be more than `state.budget`, these bytes.
    OverBudget(usize),
    /// The service's table would not fit into its frame.
    FrameTooLarge,
    /// The policy does not follow its schema.
    Policy(String),
    /// The policy's rings and tables do not fit into a VM: bytes of them, of the other services, of
    /// the largest, which has to have room to be built anew, and of all.
    TooCostly {
        /// Of the policy.
        tables: u64,
        /// Of the others.
        others: u64,
        /// Of the largest.
        largest: u64,
        /// `state.vm_budget`.
        budget: u64,
    },
    /// An event whose `type` is not known here.
    EventType,
    /// An event whose `version` is not known here.
    EventVersion,
    /// An event's `ttl` is missing or outside of 1 s to 24 h.
    Ttl,
    /// An event whose NATS subject is not that of its type and subject, in words.
    Subject(String),
    /// An event's `action` is not one of its type, which these are.
    Action(&'static str),
}

impl Reject {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::KeyTooLong => "key_too_long",
            Self::Key => "key",
            Self::ValueTooLong => "value_too_long",
            Self::Json(JsonError::Syntax(_)) => "json",
            Self::Json(JsonError::Depth) => "json_depth",
            Self::Json(JsonError::DuplicateKey(_)) => "json_duplicate_key",
            Self::NotAnObject => "not_an_object",
            Self::Missing(_) => "missing_field",
            Self::Type(..) | Self::Member(..) => "field_type",
            Self::Name(_) => "name",
            Self::Identity(_) => "identity",
            Self::AddressForm => "address_form",
            Self::Address(error) => match error {
                AddressError::Unspecified => "address_unspecified",
                AddressError::Multicast => "address_multicast",
                AddressError::LinkLocal => "address_link_local",
                AddressError::Metadata => "address_metadata",
                AddressError::Embedded => "address_embedded",
                AddressError::Reserved => "address_reserved",
                AddressError::NotAllowed => "address_not_allowed",
            },
            Self::Port => "port",
            Self::Health => "health",
            Self::Weight => "weight",
            Self::Time(_) => "time",
            Self::Labels(_) => "labels",
            Self::TooMany(_) => "too_many",
            Self::OverBudget(_) => OVER_BUDGET,
            Self::FrameTooLarge => "frame_too_large",
            Self::Policy(_) => "policy",
            Self::TooCostly { .. } => TOO_COSTLY,
            Self::EventType => "event_type",
            Self::EventVersion => "event_version",
            Self::Ttl => "ttl",
            Self::Subject(_) => "subject",
            Self::Action(_) => "action",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyTooLong => write!(f, "the key is longer than {MAX_KEY} bytes"),
            Self::Key => f.write_str(
                "the key is not {prefix}{name}/{id}, both of [A-Za-z0-9._:-] with any other byte as %XX",
            ),
            Self::ValueTooLong => write!(f, "the value is longer than {MAX_VALUE} bytes"),
            Self::Json(error @ JsonError::DuplicateKey(_)) => error.fmt(f),
            Self::Json(error) => write!(f, "the value is {error}"),
            Self::NotAnObject => f.write_str("the value is not a JSON object"),
            Self::Missing(field) => write!(f, "{field} is missing"),
            Self::Type(field, expect) => write!(f, "{field} is not {expect}"),
            Self::Member(field, key, expect) => write!(f, "{field}.{key} is not {expect}"),
            Self::Name(field) => {
                write!(
                    f,
                    "{field} is not 1 to {MAX_NAME} characters of [A-Za-z0-9._:-], any other as %XX"
                )
            }
            Self::Identity(field) => write!(f, "{field} is not the one in the key"),
            Self::AddressForm => f.write_str("address is not an IP address"),
            Self::Address(error) => write!(f, "address is {error}"),
            Self::Port => f.write_str("port is not an integer from 1 to 65535"),
            Self::Health => f.write_str("health is not healthy, unhealthy or draining"),
            Self::Weight => write!(f, "weight is not an integer from 0 to {MAX_WEIGHT}"),
            Self::Time(field) => {
                write!(f, "{field} is not an RFC 3339 time with at most nine decimals")
            }
            Self::Labels(field) => {
                write!(
                    f,
                    "{field} has more than {MAX_LABELS} entries or one over {MAX_LABEL} bytes"
                )
            }
            Self::TooMany(what) => write!(f, "there are {what} already, and no more are taken"),
            Self::OverBudget(budget) => {
                let budget = pintle_settings::size_text(u64::try_from(*budget).unwrap_or(u64::MAX));
                write!(f, "all values together would be more than state.budget, {budget}")
            }
            Self::FrameTooLarge => f.write_str("the service's table would exceed 8 MiB"),
            Self::Policy(why) => f.write_str(why),
            Self::TooCostly { tables, others, largest, budget } => write!(
                f,
                "its rings and tables would take {tables} bytes of every proxy's VM; with {others} of \
                 the other services and {largest} to build the largest anew that is more than \
                 memory.budget, {budget}"
            ),
            Self::EventType => f.write_str("type is not endpoint, service, trace or breaker"),
            Self::EventVersion => f.write_str("version is not 1"),
            Self::Ttl => f.write_str("ttl is missing, or no duration from 1s to 24h"),
            Self::Subject(why) => f.write_str(why),
            Self::Action(these) => write!(f, "action is none of {these}"),
        }
    }
}

impl std::error::Error for Reject {}

/// Splits `{prefix}{name}/{id}`.
///
/// # Errors
/// [`Reject::KeyTooLong`] or [`Reject::Key`].
pub fn split_key<'a>(prefix: &str, key: &'a [u8]) -> Result<(&'a str, &'a str), Reject> {
    if key.len() > MAX_KEY {
        return Err(Reject::KeyTooLong);
    }
    key.strip_prefix(prefix.as_bytes())
        .and_then(|rest| std::str::from_utf8(rest).ok())
        .and_then(|rest| rest.split_once('/'))
        .filter(|(name, id)| is_name(name) && is_name(id))
        .ok_or(Reject::Key)
}

/// The service that a policy's key names.
///
/// # Errors
/// [`Reject::KeyTooLong`] or [`Reject::Key`].
pub fn policy_key<'a>(prefix: &str, key: &'a [u8]) -> Result<&'a str, Reject> {
    if key.len() > MAX_KEY {
        return Err(Reject::KeyTooLong);
    }
    key.strip_prefix(prefix.as_bytes())
        .and_then(|rest| std::str::from_utf8(rest).ok())
        .filter(|name| is_name(name))
        .ok_or(Reject::Key)
}

/// Reads a registry value that stands at `{name}/{id}`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(
    name: &str,
    id: &str,
    value: &[u8],
    addresses: &AddressPolicy,
) -> Result<Endpoint, Reject> {
    if value.len() > MAX_VALUE {
        return Err(Reject::ValueTooLong);
    }
    let Value::Object(fields) = json::parse(value).map_err(Reject::Json)? else {
        return Err(Reject::NotAnObject);
    };
    identity(&fields, "name", name)?;
    identity(&fields, "id", id)?;
    let address: IpAddr = text(&fields, "address")?.parse().map_err(|_| Reject::AddressForm)?;
    let address = addresses.check(address).map_err(Reject::Address)?;
    let port = fields
        .get("port")
        .ok_or(Reject::Missing("port"))?
        .as_u64()
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .ok_or(Reject::Port)?;
    let health = match text(&fields, "health")? {
        "healthy" => Health::Healthy,
        "unhealthy" => Health::Unhealthy,
        "draining" => Health::Draining,
        _ => return Err(Reject::Health),
    };
    let mut endpoint = Endpoint {
        address,
        port,
        health,
        registered_at: time(&fields, "registered_at")?,
        tags: tags(&fields)?.into(),
        ..Endpoint::new(id, (address, port).into())
    };
    let mut metadata = metadata(&fields)?;
    if let Some(weight) = take(&mut metadata, "weight") {
        endpoint.weight = weight_of(&weight)?;
    }
    if let Some(zone) = take(&mut metadata, "zone") {
        endpoint.zone = zone;
    }
    endpoint.metadata = metadata.into();
    Ok(endpoint)
}

/// Reads a policy: an object, small enough, and good in the eyes of `check`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_policy(value: &[u8], check: crate::PolicyCheck) -> Result<Value, Reject> {
    if value.len() > MAX_POLICY {
        return Err(Reject::ValueTooLong);
    }
    let policy = json::parse(value).map_err(Reject::Json)?;
    if !policy.is_object() {
        return Err(Reject::NotAnObject);
    }
    check(&policy).map_err(|error| Reject::Policy(error.to_string()))?;
    Ok(policy)
}

/// The endpoint as a registry value from which [`parse`] reads it again.
#[must_use]
pub fn render(name: &str, endpoint: &Endpoint) -> String {
    let mut metadata: Map<String, Value> =
        endpoint.metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    metadata.insert("weight".into(), endpoint.weight.to_string().into());
    if !endpoint.zone.is_empty() {
        metadata.insert("zone".into(), endpoint.zone.clone().into());
    }
    let mut value = json!({
        "id": endpoint.id, "name": name, "address": endpoint.address, "port": endpoint.port,
        "health": match endpoint.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Draining => "draining",
        },
        "tags": *endpoint.tags, "metadata": metadata,
    });
    if let Ok(at) = Timestamp::from_nanosecond(endpoint.registered_at.0.into())
        && let Some(fields) = value.as_object_mut().filter(|_| endpoint.registered_at.0 > 0)
    {
        fields.insert("registered_at".into(), at.to_string().into());
    }
    value.to_string()
}

/// Decimal digits only: no sign, space, exponent or fraction.
fn weight_of(text: &str) -> Result<u32, Reject> {
    if text.is_empty() || text.len() > 7 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Reject::Weight);
    }
    text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT).ok_or(Reject::Weight)
}

fn text<'a>(fields: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, Reject> {
    match fields.get(field) {
        None | Some(Value::Null) => Err(Reject::Missing(field)),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Reject::Type(field, "text")),
    }
}

fn identity(fields: &Map<String, Value>, field: &'static str, expect: &str) -> Result<(), Reject> {
    let found = text(fields, field)?;
    if !is_name(found) {
        Err(Reject::Name(field))
    } else if found != expect {
        Err(Reject::Identity(field))
    } else {
        Ok(())
    }
}

/// Absent and null are zero, and so is everything before 1970: such as the year 1 that some
/// languages write for "never".
fn time(fields: &Map<String, Value>, field: &'static str) -> Result<Now, Reject> {
    match fields.get(field) {
        None | Some(Value::Null) => Ok(Now(0)),
        Some(Value::String(text)) => parse_time(text).ok_or(Reject::Time(field)),
        Some(_) => Err(Reject::Type(field, "text")),
    }
}

/// RFC 3339 with at most nine decimals.
#[must_use]
pub fn parse_time(text: &str) -> Option<Now> {
    // jiff reads more than RFC 3339 (other separators, shorter offsets), so the form comes first.
    let bytes = text.as_bytes();
    let form = b"0000-00-00T00:00:00";
    let (head, mut rest) = bytes.split_at_checked(form.len())?;
    let fits = head.iter().zip(form).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't'),
        _ => byte == form,
    });
    if !fits {
        return None;
    }
    if let Some(decimals) = rest.strip_prefix(b".") {
        let count = decimals.iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=9).contains(&count) {
            return None;
        }
        rest = decimals.get(count..)?;
    }
    let offset = match rest {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    if !offset {
        return None;
    }
    let at: Timestamp = text.parse().ok()?;
    Some(Now(u64::try_from(at.as_nanosecond().max(0)).unwrap_or(u64::MAX)))
}

fn tags(fields: &Map<String, Value>) -> Result<Vec<String>, Reject> {
    let list = match fields.get("tags") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(Reject::Type("tags", "a list of texts")),
    };
    if list.len() > MAX_LABELS {
        return Err(Reject::Labels("tags"));
    }
    let mut tags = Vec::with_capacity(list.len());
    for (at, tag) in list.iter().enumerate() {
        let tag = tag.as_str().ok_or_else(|| Reject::Member("tags", at.to_string(), "text"))?;
        if tag.len() > MAX_LABEL {
            return Err(Reject::Labels("tags"));
        }
        tags.push(tag.to_owned());
    }
    tags.sort_unstable();
    tags.dedup();
    Ok(tags)
}

fn metadata(fields: &Map<String, Value>) -> Result<Vec<(String, String)>, Reject> {
    let map = match fields.get("metadata") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(Reject::Type("metadata", "an object of texts")),
    };
    if map.len() > MAX_LABELS {
        return Err(Reject::Labels("metadata"));
    }
    let mut entries = Vec::with_capacity(map.len());
    for (key, value) in map {
        let member = || Reject::Member("metadata", crate::show(key.as_bytes()), "text");
        let value = value.as_str().ok_or_else(member)?;
        if key.len() > MAX_LABEL || value.len() > MAX_LABEL {
            return Err(Reject::Labels("metadata"));
        }
        entries.push((key.clone(), value.to_owned()));
    }
    entries.sort_unstable();
    Ok(entries)
}

fn take(metadata: &mut Vec<(String, String)>, key: &str) -> Option<String> {
    let at = metadata.iter().position(|(k, _)| k == key)?;
    Some(metadata.remove(at).1)
}

/// Bytes that the endpoint takes in an encoded table, at most.
pub(crate) fn encoded_size(endpoint: &Endpoint) -> usize {
    // Every length is at most five bytes of LEB128, every number ten; 160 covers the fixed fields
    // with an opinion and a force.
    let labels = endpoint.tags.iter().map(|tag| tag.len().saturating_add(5));
    let metadata = endpoint
        .metadata
        .iter()
        .map(|(key, value)| key.len().saturating_add(value.len()).saturating_add(10));
    labels
        .chain(metadata)
        .fold(160, usize::saturating_add)
        .saturating_add(endpoint.id.len())
        .saturating_add(endpoint.zone.len())
}

#[cfg(test)]
mod tests;
