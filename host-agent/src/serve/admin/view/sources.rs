//! Where the state comes from, and how that does.

use serde::{Deserialize, Serialize};

use super::{clean, time};
use crate::link::{SourceStatus, Sources};

/// `/v1/sources`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SourcesJson {
    /// The registry.
    pub etcd: SourceJson,
    /// The EndpointSlices; an agent of before has none.
    #[serde(default)]
    pub kubernetes: SourceJson,
    /// The events.
    pub nats: SourceJson,
    /// The file.
    pub file: SourceJson,
    /// Since the start.
    pub events_applied: u64,
    /// Since the start.
    pub events_duplicate: u64,
    /// Since the start.
    pub events_dead_lettered: u64,
    /// Since the start.
    pub removals_held: u64,
    /// The registry's keys that stand beside the instances of other frameworks.
    #[serde(default)]
    pub keys_beside: u64,
    /// Since the start.
    pub outgoing_dropped: u64,
    /// Why the last good state cannot be written to disk, while it cannot.
    #[serde(default)]
    pub disk_error: Option<String>,
}

impl SourcesJson {
    /// Each by its name.
    pub(crate) const fn all(&self) -> [(&'static str, &SourceJson); 4] {
        [
            ("etcd", &self.etcd),
            ("kubernetes", &self.kubernetes),
            ("nats", &self.nats),
            ("file", &self.file),
        ]
    }

    /// Of the sources.
    #[must_use]
    pub(crate) fn of(sources: &Sources) -> Self {
        let source = |status: &SourceStatus| SourceJson {
            enabled: status.enabled,
            connected: status.connected,
            endpoint: clean(&status.endpoint),
            position: status.position,
            last_seen: status.last_seen.map(time),
            error: status.error.as_deref().map(clean),
            connects: status.connects,
            warnings: status.warnings.values().map(|warning| clean(warning)).collect(),
        };
        Self {
            etcd: source(&sources.etcd),
            kubernetes: source(&sources.kubernetes),
            nats: source(&sources.nats),
            file: source(&sources.file),
            events_applied: sources.events_applied,
            events_duplicate: sources.events_duplicate,
            events_dead_lettered: sources.events_dead_lettered,
            removals_held: sources.removals_held,
            keys_beside: sources.keys_beside,
            outgoing_dropped: sources.outgoing_dropped,
            disk_error: sources.disk_error.as_deref().map(clean),
        }
    }
}

/// How a source does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SourceJson {
    /// Whether it is configured.
    pub enabled: bool,
    /// Whether it answers.
    pub connected: bool,
    /// Where.
    pub endpoint: String,
    /// Revision or sequence.
    pub position: u64,
    /// When it last said anything.
    pub last_seen: Option<String>,
    /// The last error.
    pub error: Option<String>,
    /// Connections made.
    pub connects: u64,
    /// What is missing though it answers.
    #[serde(default)]
    pub warnings: Vec<String>,
}
