//! What is published of one service: its table, the frames of it, and what stands beside it for
//! people.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use pintle_contract::{Down, Message as _, Table, Version};
use serde_json::Value;

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

/// An encoded table, as long as anybody holds it. Proxies are told of a change at the same time and
/// share it; kept for longer it would be as much again as the table.
#[derive(Debug, Default)]
pub struct Frame(Mutex<Weak<Vec<u8>>>);

impl Clone for Frame {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service {
    /// One of which nothing is known but its table, seen now.
    #[must_use]
    pub fn of(table: Table) -> Self {
        Self {
            table,
            frame: Frame::default(),
            patch: None,
            names: BTreeMap::new(),
            layers: Vec::new(),
            seen_at: SystemTime::now(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.table.service
    }

    /// Whether one of its endpoints has this id, by which the table knows it or beside that.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        let mut beside = self.names.values().flatten();
        self.table.endpoints.iter().any(|endpoint| endpoint.id == id) || beside.any(|it| it == id)
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
