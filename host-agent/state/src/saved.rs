//! What survives the process: enough to serve before any source has answered.
//!
//! What is kept is what the sources said of each endpoint, not the tables made of it: the next
//! start reads it through the same checks under its own configuration, and the registry's first
//! listing is then *compared* with them, so that a registry which comes back empty is met by the
//! removal protection and not by trust.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use pintle_contract::Endpoint;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::entry;

/// The state's memory, for a file. Version 1 of the form; what was added since may be absent, and
/// is passed over by an agent that does not know it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// The form; other numbers are not read.
    pub form: u32,
    /// The epoch that wrote it; the next one must be higher.
    pub epoch: u64,
    /// By service.
    pub services: Vec<SavedService>,
    /// Overlays and the places of ended ones.
    pub overlays: Vec<SavedOverlay>,
    /// The highest revision of the registry.
    #[serde(default)]
    pub revision: u64,
    /// The stream that events came from, if any did.
    pub stream: Option<SavedStream>,
}

/// Where in which stream the events end that the overlays come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStream {
    /// Which life of the stream.
    pub identity: u64,
    /// How many lives have been seen.
    pub generation: u64,
    /// The highest sequence applied.
    pub highest: u64,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedService {
    /// Its name.
    pub name: String,
    /// The registry's values by id.
    pub registry: Vec<(String, SavedValue)>,
    /// Kubernetes' values by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes: Vec<(String, SavedValue)>,
    /// The file's values by id.
    pub file: Vec<(String, SavedValue)>,
    /// The registry's policy.
    pub registry_policy: Option<String>,
    /// The file's policy.
    pub file_policy: Option<String>,
    /// Endpoints without a key that are held: the last id and value of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departing: Vec<(String, SavedValue)>,
    /// Which revision created a key of the registry, for ids that share their address with others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub created: BTreeMap<String, u64>,
    /// Milliseconds since the Unix epoch: when an endpoint last went untested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untested_ms: Option<u64>,
}

/// A value as the registry would hold it. The text is made when it is written, one at a time: all
/// of them together would be as much again as the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedValue {
    /// As it was read.
    Text(String),
    /// The endpoint of this service that was read from it.
    Endpoint(Arc<str>, Box<Endpoint>),
}

impl SavedValue {
    /// The JSON.
    #[must_use]
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Endpoint(service, endpoint) => entry::render(service, endpoint).into(),
        }
    }
}

impl Serialize for SavedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for SavedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::Text)
    }
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedOverlay {
    /// The service.
    pub service: String,
    /// What is set.
    pub key: SavedKey,
    /// What it is set to; absent when it only keeps its place.
    pub effect: Option<SavedEffect>,
    /// Which life of the stream.
    pub generation: u64,
    /// Where in it.
    pub sequence: u64,
    /// Who published it.
    pub source: String,
    /// Milliseconds since the Unix epoch: when the effect ends.
    pub until_ms: u64,
    /// Milliseconds since the Unix epoch: when its place is forgotten.
    pub forget_ms: u64,
}

/// What an overlay sets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the events")]
pub enum SavedKey {
    Drain(String),
    Eject(String),
    Weight(String),
    Force(String),
    Reporter(String, String, String),
    Policy,
    Bypass,
    Shadow,
    Failover,
    Trace,
}

/// What an overlay sets it to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the events")]
pub enum SavedEffect {
    Drain,
    Eject,
    Weight(u32),
    ForceOpen(u64),
    ForceClose(u64),
    Clear(u64),
    Open,
    Policy(serde_json::Value),
    Trace(f64),
}
