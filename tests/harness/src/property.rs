//! Properties: typed values under paths, serialised as Envoy does it for the guest.
//!
//! A path is a list of words (`["xds", "cluster_name"]`); the guest joins them by NUL. What a
//! request, its response and its outcome imply (`request.path`, `response.code`,
//! `upstream.address`, ...) is derived from them; everything else is what the test set. Integers
//! are eight bytes little-endian, durations and times are integers of nanoseconds, a boolean is one
//! byte, text and bytes are themselves.

use std::time::Duration;

use crate::abi::encode_pairs;
use crate::headers::Headers;
use crate::outcome::Outcome;
use crate::stream::StreamState;

/// A property's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text or bytes, given as they are. A message (metadata read as a whole) is its protobuf
    /// bytes.
    Bytes(Vec<u8>),
    /// An integer: 8 bytes, little-endian.
    Int(i64),
    /// An unsigned integer: 8 bytes, little-endian.
    Uint(u64),
    /// A boolean: one byte.
    Bool(bool),
    /// A map: a list of pairs.
    Map(Vec<(Vec<u8>, Vec<u8>)>),
}

impl Value {
    /// The bytes that the guest gets.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Int(n) => n.to_le_bytes().to_vec(),
            Self::Uint(n) => n.to_le_bytes().to_vec(),
            Self::Bool(b) => vec![u8::from(*b)],
            Self::Map(pairs) => {
                encode_pairs(pairs.iter().map(|(k, v)| (k.as_slice(), v.as_slice())))
            }
        }
    }

    fn of_headers(headers: &Headers) -> Self {
        Self::Map(headers.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect())
    }

    fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }

    fn nanos(duration: Duration) -> Self {
        Self::Int(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Bytes(text.into_bytes())
    }
}
impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}
impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}
impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}
impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Uint(n)
    }
}
impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}
impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self::nanos(duration)
    }
}

/// The words of a path, joined as the guest joins them.
pub(crate) fn join(path: &[&str]) -> Vec<u8> {
    path.join("\0").into_bytes()
}

/// Whether a property set for the whole Envoy is also there without a request at hand.
pub(crate) fn is_global(path: &[u8]) -> bool {
    const GLOBAL: [&[u8]; 5] = [b"node", b"xds\0node", b"plugin_", b"listener_", b"xds\0listener_"];
    GLOBAL.iter().any(|prefix| path.starts_with(prefix))
}

/// What the request and its outcome imply for `path`.
pub(crate) fn derive(stream: &StreamState, path: &[u8]) -> Option<Value> {
    let words: Vec<&[u8]> = path.split(|b| *b == 0).collect();
    match words.as_slice() {
        [b"request", rest @ ..] => request(stream, rest),
        [b"response", rest @ ..] => response(stream, rest),
        [b"upstream", name] => upstream(stream.outcome.as_ref(), name),
        [b"connection", b"id"] | [b"connection_id"] => Some(Value::Uint(stream.connection_id)),
        [b"source", b"address"] => Some(Value::text("127.0.0.1:50000")),
        [b"destination", b"address"] => Some(Value::text("127.0.0.1:10000")),
        [b"filter_state", name] => stream.filter_state.get(*name).cloned().map(Value::Bytes),
        // A single unknown word is what an earlier `proxy_set_property` stored, and only a single
        // one: Envoy stores a longer path but cannot read it back.
        [name] => {
            let key = [b"wasm.", *name].concat();
            stream.filter_state.get(&key).cloned().map(Value::Bytes)
        }
        _ => None,
    }
}

fn request(stream: &StreamState, rest: &[&[u8]]) -> Option<Value> {
    let headers = &stream.request_headers;
    let header = |name: &str| headers.get(name).map(Value::from);
    match rest {
        [b"headers"] => Some(Value::of_headers(headers)),
        [b"headers", name] => headers.get(name).map(Value::from),
        [b"path"] => header(":path"),
        [b"url_path"] => {
            let path = headers.get(":path")?;
            path.split(|b| *b == b'?').next().map(Value::from)
        }
        [b"query"] => {
            let path = headers.get(":path")?;
            let at = path.iter().position(|b| *b == b'?')?;
            path.get(at + 1..).map(Value::from)
        }
        [b"method"] => header(":method"),
        [b"host"] => header(":authority"),
        [b"scheme"] => header(":scheme"),
        // Absent in response callbacks of a real Envoy, where the request's headers are out of
        // reach.
        [b"id"] => header("x-request-id"),
        [b"useragent"] => header("user-agent"),
        [b"referer"] => header("referer"),
        [b"protocol"] => Some(Value::text("HTTP/1.1")),
        [b"time"] => Some(Value::Int(i64::try_from(stream.started_wall).unwrap_or(i64::MAX))),
        [b"duration"] => stream.outcome.as_ref()?.duration.map(Value::nanos),
        [b"total_size"] => Some(Value::Int(headers.byte_size() as i64)),
        _ => None,
    }
}

fn response(stream: &StreamState, rest: &[&[u8]]) -> Option<Value> {
    let outcome = stream.outcome.as_ref()?;
    match rest {
        [b"headers"] => Some(Value::of_headers(&stream.response_headers)),
        [b"headers", name] => stream.response_headers.get(name).map(Value::from),
        [b"trailers", name] => stream.response_trailers.get(name).map(Value::from),
        [b"code"] => outcome.response_code.map(|code| Value::Int(i64::from(code))),
        [b"code_details"] => outcome.details.as_deref().map(Value::text),
        [b"flags"] => Some(Value::Int(outcome.flags as i64)),
        [b"grpc_status"] => grpc_status(stream, outcome).map(|s| Value::Int(i64::from(s))),
        [b"backend_latency"] => outcome.backend_latency.map(Value::nanos),
        [b"total_size"] => Some(Value::Int(stream.response_headers.byte_size() as i64)),
        _ => None,
    }
}

fn upstream(outcome: Option<&Outcome>, name: &[u8]) -> Option<Value> {
    match name {
        // Zero before the router has run.
        b"request_attempt_count" => {
            Some(Value::Int(outcome.map_or(0, |o| i64::from(o.attempt_count))))
        }
        b"address" => outcome?.upstream_address.as_deref().map(Value::text),
        b"transport_failure_reason" => {
            outcome?.transport_failure_reason.as_deref().map(Value::text)
        }
        b"cx_pool_ready_duration" => outcome?.connect_duration.map(Value::nanos),
        _ => None,
    }
}

/// Envoy always has a gRPC status once a response exists: from the trailers, the headers, or by
/// mapping the HTTP status, for any content type.
fn grpc_status(stream: &StreamState, outcome: &Outcome) -> Option<u32> {
    let number = |headers: &Headers| headers.text("grpc-status").and_then(|s| s.parse().ok());
    outcome
        .grpc_status
        .or_else(|| number(&stream.response_trailers))
        .or_else(|| number(&stream.response_headers))
        .or_else(|| outcome.response_code.map(grpc_of_http))
}

/// gRPC's mapping of HTTP statuses (`http-grpc-status-mapping.md`).
pub(crate) const fn grpc_of_http(code: u32) -> u32 {
    match code {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
