//! Where one reader stands, and what it must be sent next.
//!
//! Not a queue of messages: the reader's state per service against the newest snapshot. A reader that
//! stalls therefore costs what a quick one does, and when it comes back it gets the newest table of
//! each service once, whatever happened meanwhile.
//!
//! What is pending goes out in the order of its version, so at every moment everything up to the
//! version sent last has been sent. A reader may give that version as its `have` after a
//! disconnect, wherever in the sequence the stream broke.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use pintle_contract::{Down, Initial, Message, Removed, Schema, Version};
use pintle_state::Snapshot;

/// The frame of a service, without a copy.
struct Frame(Arc<Vec<u8>>);

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The state of one reader.
#[derive(Debug)]
pub(crate) struct Cursor {
    /// Per service that the reader holds: at which version.
    sent: HashMap<String, Version>,
    /// What it lacks, by name and in the order of the versions.
    due: BTreeMap<String, Version>,
    pending: BTreeSet<(Version, String)>,
    snapshot: Arc<Snapshot>,
    reached: Version,
    /// Whether the reader was sent everything from the start.
    full: bool,
    schema: Schema,
}

impl Cursor {
    /// For a reader of `schema` that holds everything up to `have`; zero for nothing.
    ///
    /// It is believed when it is of this epoch and neither older than what the snapshot remembers of
    /// removals nor newer than the snapshot. Otherwise everything is sent, remembered removals
    /// included, so that a reader with tables of an earlier agent gives up what is gone.
    #[must_use]
    pub(crate) fn new(have: Version, schema: Schema, snapshot: Arc<Snapshot>) -> Self {
        let resumes = have.epoch == snapshot.version.epoch
            && have >= snapshot.complete_since
            && have <= snapshot.version;
        let holds_something = have != Version::default();
        let have = if resumes { have } else { Version::default() };
        let mut sent = HashMap::new();
        for (name, service) in snapshot.services.iter() {
            let version = service.table.version;
            if version <= have {
                sent.insert(name.clone(), version);
            } else if holds_something {
                // It may hold an older table of it, which must go if the service does meanwhile.
                sent.insert(name.clone(), Version::default());
            }
        }
        for (name, version) in snapshot.gone.iter() {
            if *version > have && holds_something {
                sent.insert(name.clone(), Version::default());
            }
        }
        let mut names: BTreeSet<String> = sent.keys().cloned().collect();
        names.extend(snapshot.services.keys().cloned());
        let (due, pending) = (BTreeMap::new(), BTreeSet::new());
        let mut cursor =
            Self { sent, due, pending, snapshot, reached: have, full: !resumes, schema };
        names.iter().for_each(|name| cursor.look(name));
        cursor
    }

    /// A newer snapshot is there. An older one is ignored: a reader never goes back.
    pub(crate) fn advance(&mut self, snapshot: Arc<Snapshot>) {
        if snapshot.version >= self.snapshot.version {
            let before = std::mem::replace(&mut self.snapshot, snapshot);
            let newest = Arc::clone(&self.snapshot);
            for name in newest.services.differing(&before.services) {
                self.look(name);
            }
        }
    }

    /// Whether the reader lacks this service's table, or the word that it is gone.
    fn look(&mut self, name: &str) {
        if let Some(version) = self.due.remove(name) {
            self.pending.remove(&(version, name.to_owned()));
        }
        let sent = self.sent.get(name).copied();
        let due = match self.snapshot.services.get(name) {
            Some(service) => Some(service.table.version).filter(|version| sent < Some(*version)),
            None => sent.map(|_| self.gone(name)),
        };
        if let Some(version) = due {
            self.due.insert(name.to_owned(), version);
            self.pending.insert((version, name.to_owned()));
        }
    }

    fn gone(&self, name: &str) -> Version {
        let gone = self.snapshot.gone.get(name).copied();
        gone.unwrap_or(self.snapshot.version)
    }

    /// Whether the reader holds the snapshot.
    #[must_use]
    pub(crate) fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// What ends the start: everything up to there has been sent, and whether it was everything.
    #[must_use]
    pub(crate) fn initial(&self) -> Initial {
        Initial { version: self.reached(), full: self.full }
    }

    /// The version up to which everything has been handed out.
    #[must_use]
    pub(crate) fn reached(&self) -> Version {
        if self.pending.is_empty() { self.snapshot.version } else { self.reached }
    }

    /// The next frame, which then counts as sent.
    pub(crate) fn next_frame(&mut self) -> Option<Bytes> {
        let (version, name) = self.pending.pop_first()?;
        self.due.remove(&name);
        self.reached = self.reached.max(version);
        match self.snapshot.services.get(&name) {
            Some(service) => {
                let held = self.sent.insert(name, version);
                let patch = service.patch.as_ref();
                let patch = patch.filter(|it| self.schema >= Schema::Two && held == Some(it.from));
                Some(match patch {
                    Some(patch) => Bytes::copy_from_slice(&patch.frame),
                    None => Bytes::from_owner(Frame(service.frame())),
                })
            }
            None => {
                self.sent.remove(&name);
                let removed = Removed { service: name, version };
                Some(Down::Remove(removed).encode().into())
            }
        }
    }
}
