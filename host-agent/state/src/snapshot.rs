//! What the state publishes: an immutable value that every server reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use pintle_contract::Version;

use crate::services::Services;

/// Everything the agent knows at one version. Shared as `Arc<Snapshot>`, never changed. Copied with
/// each change, so what is long is shared by the copies.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The newest version in it.
    pub version: Version,
    /// By name.
    pub services: Services,
    /// Services that went, and when: readers that hold them are told. Bounded; the oldest are
    /// forgotten, and a reader older than the oldest gets the full state.
    pub gone: Arc<BTreeMap<String, Version>>,
    /// A reader whose version is lower than this must be sent everything.
    pub complete_since: Version,
    /// Whether it comes from disk, not confirmed by the registry yet.
    pub stale: bool,
    /// When the registry last confirmed it (a change or a progress message).
    pub confirmed_at: Option<SystemTime>,
    /// Removals that protection holds back.
    pub held: Arc<[Held]>,
    /// Registry entries, policies and events that were refused, newest last; bounded.
    pub rejected: Arc<[Rejected]>,
    /// What events have laid over the registry, until it expires.
    pub overlays: Arc<[Overlay]>,
}

/// A removal that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The service.
    pub service: String,
    /// The endpoint's id; empty where it is the service's policy.
    pub endpoint: String,
    /// Since when.
    pub since: SystemTime,
    /// Why it is held, in a few words.
    pub reason: String,
    /// When it goes by itself, if it does.
    pub until: Option<SystemTime>,
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// `registry`, `policy`, `event` or `file`.
    pub source: &'static str,
    /// The key or subject, escaped and shortened.
    pub key: String,
    /// A stable word for counters.
    pub reason: &'static str,
    /// What was wrong, in words.
    pub detail: String,
    /// When.
    pub at: SystemTime,
}

/// An event in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// `endpoint`, `service`, `trace` or `breaker`.
    pub kind: &'static str,
    /// The service it is laid over.
    pub service: String,
    /// The endpoint, where it is about one.
    pub endpoint: Option<String>,
    /// What it does, such as `drain`.
    pub action: String,
    /// Who published it.
    pub source: String,
    /// When it ends.
    pub until: SystemTime,
}
