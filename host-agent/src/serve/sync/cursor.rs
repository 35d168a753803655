//! Where one reader stands, and what it must be sent next.
//!
//! Not a queue of messages: the reader's state per service against the newest snapshot. A reader
//! that stalls therefore costs what a quick one does, and when it comes back it gets the newest
//! table of each service once, whatever happened meanwhile.
//!
//! What is pending goes out in the order of its version, so at every moment everything up to the
//! version sent last has been sent. A reader may give that version as its `have` after a
//! disconnect, wherever in the sequence the stream broke.
//!
//! A reader gets all services, or those that it wants. What it was sent once it is kept up to date
//! with, whether it still wants it or not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use pintle_contract::{Down, Initial, Message, Removed, Schema, Version};
use pintle_state::Snapshot;

/// While so much waits for the reader, it is not told what is not there.
const MAX_ABSENT: usize = 1_024;

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
    /// The newest version that the reader was sent, or holds.
    told: Version,
    /// Whether the reader was sent everything from the start.
    full: bool,
    schema: Schema,
    /// Whether the reader gets all services, or those of `wanted` and what it was sent already.
    all: bool,
    /// Wanted whether they are there or not.
    wanted: BTreeSet<String>,
}

impl Cursor {
    /// For a reader of `schema` that holds everything up to `have`; zero for nothing.
    ///
    /// It is believed when it is of this epoch and neither older than what the snapshot remembers
    /// of removals nor newer than the snapshot. Otherwise everything is sent, remembered removals
    /// included, so that a reader with tables of an earlier agent gives up what is gone.
    #[must_use]
    pub(crate) fn new(have: Version, schema: Schema, snapshot: Arc<Snapshot>) -> Self {
        let resumes = is_believed(have, &snapshot);
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
        let mut cursor = Self::bare(have, schema, snapshot);
        (cursor.sent, cursor.full) = (sent, !resumes);
        names.iter().for_each(|name| cursor.look(name));
        cursor
    }

    /// For a reader that holds these services up to `have`, and gets them and what it wants.
    #[must_use]
    pub(crate) fn lazy(
        have: Version,
        held: Vec<String>,
        schema: Schema,
        snapshot: Arc<Snapshot>,
    ) -> Self {
        let resumes = is_believed(have, &snapshot);
        let have = if resumes { have } else { Version::default() };
        let mut cursor = Self::bare(have, schema, snapshot);
        (cursor.all, cursor.full) = (false, !resumes);
        for name in held {
            let version = cursor.snapshot.services.get(&name).map(|it| it.table.version);
            let known = version.filter(|version| *version <= have).unwrap_or_default();
            cursor.sent.insert(name.clone(), known);
            cursor.look(&name);
        }
        cursor
    }

    fn bare(reached: Version, schema: Schema, snapshot: Arc<Snapshot>) -> Self {
        Self {
            sent: HashMap::new(),
            due: BTreeMap::new(),
            pending: BTreeSet::new(),
            snapshot,
            reached,
            told: reached,
            full: false,
            schema,
            all: true,
            wanted: BTreeSet::new(),
        }
    }

    /// Whether the reader gets all services from now on. What it was sent stays its own.
    pub(crate) fn set_all(&mut self, all: bool) {
        if std::mem::replace(&mut self.all, all) == all {
            return;
        }
        let snapshot = Arc::clone(&self.snapshot);
        snapshot.services.keys().for_each(|name| self.look(name));
    }

    /// What the reader wants whether it is there or not, in the place of what that was before.
    pub(crate) fn want(&mut self, wanted: BTreeSet<String>) {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        wanted.symmetric_difference(&before).for_each(|name| self.look(name));
    }

    /// What the reader wants now: of what is not there it is told that, or not where it reads too
    /// slowly.
    pub(crate) fn ask(&mut self, names: Vec<String>) {
        for name in names {
            if self.sent.contains_key(&name) || self.due.contains_key(&name) {
                continue;
            }
            if self.snapshot.services.contains_key(&name) {
                // From now on it is told what becomes of it.
                self.sent.insert(name.clone(), Version::default());
                self.look(&name);
            } else if self.pending.len() < MAX_ABSENT {
                self.due.insert(name.clone(), self.snapshot.version);
                self.pending.insert((self.snapshot.version, name));
            }
        }
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
        let is_wanted = self.all || sent.is_some() || self.wanted.contains(name);
        let due = match self.snapshot.services.get(name).filter(|_| is_wanted) {
            Some(service) => Some(service.table.version).filter(|version| sent < Some(*version)),
            None if self.snapshot.services.contains_key(name) => None,
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
    pub(crate) fn initial(&mut self) -> Initial {
        self.told = self.reached();
        Initial { version: self.told, full: self.full }
    }

    /// Whoever holds this version holds all that was sent.
    #[must_use]
    pub(crate) const fn told(&self) -> Version {
        self.told
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
        if self.sent.contains_key(&name) || self.snapshot.services.contains_key(&name) {
            self.told = self.told.max(version);
        }
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

/// Whether a reader can go on from `have`: it is of this epoch and neither older than what the
/// snapshot remembers of removals nor newer than the snapshot.
fn is_believed(have: Version, snapshot: &Snapshot) -> bool {
    have.epoch == snapshot.version.epoch
        && have >= snapshot.complete_since
        && have <= snapshot.version
}
