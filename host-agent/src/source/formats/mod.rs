//! Registries of other frameworks, read and written: one file a format, none with I/O.
//!
//! ```text
//!   key, value ─▶ Reader (which format?) ─▶ Format::read ─▶ Found ─▶ admit ─▶ our own key and value
//! ```
//! A format says what a key and a value *mean* (`Found`); what is the same for all of them is done
//! once, in `admit`: addresses, weights, metadata and names. What comes out is our own registry
//! form, so that nothing behind the source knows who wrote an instance. The lease is not read: an
//! instance is there while its key is.

mod address;
mod admit;
mod config;
mod custom;
mod dubbo;
mod etcd_naming;
mod fields;
mod go_zero;
mod goframe;
mod kitex;
mod kratos;
mod pattern;
mod reader;
mod recognise;
#[cfg(test)]
mod tests;
mod translate;

use pintle_state::entry::Reject;

pub use config::{FormatName, SourceConfig};
pub(crate) use config::{prefix, sources_apart};
pub(crate) use reader::groups;
pub use recognise::{Guess, recognise, survey};
pub(crate) use translate::{Read, Translator};

/// Bytes of a foreign value, at most; etcd's own bound is 1.5 MiB.
pub(crate) const MAX_VALUE: usize = 1 << 20;
/// Instances of one key, at most.
const MAX_FOUND: usize = 64;

/// Why a key is no instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What our own form is refused for as well.
    #[error("{0}")]
    Entry(#[from] Reject),
    /// The value is longer than 1 MiB.
    #[error("the value is longer than 1048576 bytes")]
    TooLong,
    /// A host name stands where Envoy's lists need an address.
    #[error("{0:?} is a host name; register the instance with its IP address")]
    HostName(String),
    /// Neither an address with a port nor a host name.
    #[error("{0:?} is not an IP address and a port")]
    Address(String),
    /// The service's name or the instance's id is empty or longer than 253 once encoded.
    #[error("{0} is empty, or longer than 253 characters once percent-encoded")]
    Name(&'static str),
    /// The weight is no number.
    #[error("weight is not a number")]
    Weight,
    /// The value is none of the format's.
    #[error("the value is not {0}")]
    Value(&'static str),
    /// It is another format's.
    #[error("looks like {0}: set `format: {0}`")]
    Other(Guess),
}

impl Refusal {
    /// A stable word for counters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Entry(reject) => reject.reason(),
            Self::TooLong => "value_too_long",
            Self::HostName(_) => "host_name",
            Self::Address(_) => "address_form",
            Self::Name(_) => "name",
            Self::Weight => "weight",
            Self::Value(_) => "value",
            Self::Other(_) => "format",
        }
    }
}

/// What a format does with its keys. The key is what comes after the source's prefix.
pub(crate) trait Format: Send + Sync + std::fmt::Debug {
    /// Whether key and value are this format's and no other's, as far as can be told.
    fn recognises(&self, key: &[u8], value: &[u8]) -> bool;

    /// The instances; none for a key that stands beside them.
    fn read(&self, key: &[u8], value: &[u8]) -> Result<Vec<Found>, Refusal>;

    /// The schemes of the value's URLs, each as a source's `scheme` names it.
    fn schemes(&self, _: &[u8]) -> Vec<String> {
        Vec::new()
    }

    /// The key, after the prefix, and the value of an instance; `None` while it is not to be found.
    fn write(&self, instance: &Written<'_>) -> Option<(String, String)>;
}

/// One instance as its framework wrote it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The service; empty where the key has none, and the prefix is it.
    pub(crate) name: Vec<u8>,
    /// Empty: the address is the id.
    pub(crate) id: Vec<u8>,
    /// `ip:port`, `[ip]:port`, or an IPv6 address and port without brackets.
    pub(crate) address: String,
    /// What is there of a weight.
    pub(crate) weight: Weight,
    /// Whether the registry calls it unhealthy; else the lease is its health.
    pub(crate) unhealthy: bool,
    /// As text, whatever type it had.
    pub(crate) metadata: Vec<(String, String)>,
    /// Tags.
    pub(crate) tags: Vec<String>,
}

/// A weight with its format's own meaning of nothing and of zero.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weight {
    /// A number or a text; null is nothing.
    pub(crate) said: serde_json::Value,
    /// Where nothing is said.
    pub(crate) default: u32,
    /// What zero and less stand for.
    pub(crate) zero: u32,
}

impl Default for Weight {
    fn default() -> Self {
        Self { said: serde_json::Value::Null, default: 1, zero: 0 }
    }
}

/// One instance to be written.
#[derive(Clone, Debug)]
pub(crate) struct Written<'a> {
    pub(crate) name: &'a str,
    pub(crate) id: &'a str,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) metadata: &'a std::collections::BTreeMap<String, String>,
    /// Whether it is to be used.
    pub(crate) healthy: bool,
    /// The URL's scheme, where the format has one.
    pub(crate) scheme: &'a str,
    /// The lease that it hangs on.
    pub(crate) lease: i64,
}

impl Written<'_> {
    /// The metadata but for the weight.
    fn labels(&self) -> serde_json::Map<String, serde_json::Value> {
        let others = self.metadata.iter().filter(|(key, _)| *key != "weight");
        others.map(|(key, value)| (key.clone(), value.clone().into())).collect()
    }

    fn weight(&self) -> Option<u32> {
        self.metadata.get("weight")?.parse().ok()
    }
}

/// Writes one source's form.
#[derive(Debug)]
pub(crate) struct Writer {
    prefix: Vec<u8>,
    scheme: String,
    format: Box<dyn Format>,
}

impl Writer {
    /// `None` where a custom key is no pattern.
    pub(crate) fn new(source: &SourceConfig) -> Option<Self> {
        let (prefix, scheme) = (source.prefix(), source.scheme.clone());
        Some(Self { prefix, scheme, format: source.format()? })
    }

    pub(crate) fn scheme(&self) -> &str {
        &self.scheme
    }

    /// The whole key and the value; `None` while the instance is not to be found.
    pub(crate) fn write(&self, instance: &Written<'_>) -> Option<(Vec<u8>, String)> {
        let (key, value) = self.format.write(instance)?;
        Some(([&self.prefix, key.as_bytes()].concat(), value))
    }
}

/// The key's last segment and what is before it; the latter is empty where there is no slash.
fn split_last(key: &[u8]) -> (&[u8], &[u8]) {
    match key.iter().rposition(|byte| *byte == b'/') {
        Some(at) => {
            (key.get(..at).unwrap_or_default(), key.get(at.saturating_add(1)..).unwrap_or_default())
        }
        None => (&[], key),
    }
}
