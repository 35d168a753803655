//! What the state publishes: an immutable value that every server reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use pintle_contract::{Down, Message as _, Table, Version};
use serde_json::Value;

use crate::services::Services;

/// Everything the agent knows at one version. Shared as `Arc<Snapshot>`, never changed. Copied with each
/// change, so what is long is shared by the copies.
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

/// One service.
#[derive(Clone, Debug)]
pub struct Service {
    /// The table; its version tells when it last changed.
    pub table: Table,
    /// The frame of the table while somebody is sent it.
    pub frame: Frame,
    /// What changed since the table before, where that is little.
    pub patch: Option<Patched>,
    /// The other ids of endpoints that have several, by the id that the table has.
    pub names: BTreeMap<String, Vec<String>>,
    /// What the table's policy was made of, lowest first.
    pub layers: Vec<PolicyLayer>,
    /// When etcd's change behind it was seen by the agent; for the propagation metric.
    pub seen_at: SystemTime,
}

/// An encoded table, as long as anybody holds it. Proxies are told of a change at the same time and share
/// it; kept for longer it would be as much again as the table.
#[derive(Debug, Default)]
pub struct Frame(Mutex<Weak<Vec<u8>>>);

impl Clone for Frame {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.table.service
    }

    /// The encoded `Down::Table`.
    #[must_use]
    pub fn frame(&self) -> Arc<Vec<u8>> {
        let mut shared = self.frame.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let frame = Arc::new(Down::Table(self.table.clone()).encode());
            *shared = Arc::downgrade(&frame);
            frame
        })
    }
}

/// The encoded `Down::Patch` frame, for readers that hold the table before.
#[derive(Clone, Debug)]
pub struct Patched {
    /// The version of that table.
    pub from: Version,
    /// The frame.
    pub frame: Vec<u8>,
}

/// One of the patches that a service's policy is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLayer {
    /// Where it comes from: `file`, `registry` or `event`.
    pub source: &'static str,
    /// The merge patch.
    pub patch: Value,
    /// Whether it is in force; one that does not go with those below or above it is left out.
    pub in_force: bool,
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
