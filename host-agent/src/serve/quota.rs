//! What one peer and one user may hold of the proxies' server, so that none of them shuts out the
//! rest.
//!
//! Five things are held: connections, Watch streams, discovery streams, the names that these
//! subscribe to, and bytes of discovery responses that the peer has not answered. Each has a limit
//! for all, for one user and for one process; whoever asks beyond a limit is refused, and the
//! others notice nothing. A process is known by the kernel's word; where there is none (another pid
//! namespace says 0), its user's limit holds alone.
//!
//! A refusal is counted, logged once in [`SAY_EVERY`], and shown by [`Quotas::usage`] until it is
//! [`RECENT`] old.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Log lines about one limit are this far apart.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// A limit that was reached within this time is told as full.
const RECENT: Duration = Duration::from_secs(60);

/// Whose account something is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum User {
    /// A uid of this machine.
    Uid(u32),
    /// The certificate of a client, as a hash.
    Certificate(u64),
    /// No connection of this server's (tests).
    Unknown,
}

/// Who holds something: a user, and the process where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    /// The user.
    pub user: User,
    /// The process, unless the kernel does not say.
    pub process: Option<i32>,
}

/// What can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Connections.
    Connections,
    /// Watch streams.
    Watches,
    /// Discovery streams.
    Discoveries,
    /// Names that discovery streams subscribe to.
    Names,
    /// Bytes of discovery responses that were not answered yet.
    Unanswered,
}

/// All kinds, in the order in which they are shown.
pub(crate) const KINDS: [Kind; 5] =
    [Kind::Connections, Kind::Watches, Kind::Discoveries, Kind::Names, Kind::Unanswered];

/// The most that may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// By everybody together.
    pub all: usize,
    /// By one user.
    pub user: usize,
    /// By one process.
    pub process: usize,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{scope} holds {limit} {} already, as many as it may", kind.as_str())]
pub struct Full {
    /// Of what.
    pub kind: Kind,
    /// Whose limit it is: `this process`, `this user` or `the agent`.
    pub scope: &'static str,
    /// The limit.
    pub limit: usize,
}

/// How much of a kind is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Of what.
    pub kind: Kind,
    /// Held now.
    pub used: usize,
    /// The limit for all.
    pub limit: usize,
    /// Refusals since the start.
    pub refused: u64,
    /// Whether somebody was refused within the last minute.
    pub full: bool,
}

/// The accounts of all peers. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Quotas {
    accounts: Arc<Mutex<HashMap<Kind, Account>>>,
}

#[derive(Debug)]
struct Account {
    limit: Limit,
    used: usize,
    users: HashMap<User, usize>,
    processes: HashMap<Owner, usize>,
    refused: u64,
    refused_at: Option<Instant>,
    said_at: Option<Instant>,
}

/// Something that is held; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    quotas: Quotas,
    kind: Kind,
    owner: Owner,
    units: usize,
}

// === impl Kind ===

impl Kind {
    /// The word in metrics, logs and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Watches => "watches",
            Self::Discoveries => "discoveries",
            Self::Names => "names",
            Self::Unanswered => "unanswered_bytes",
        }
    }

    /// The reason in `pintle_frames_refused_total`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "quota_connections",
            Self::Watches => "quota_watches",
            Self::Discoveries => "quota_discoveries",
            Self::Names => "quota_names",
            Self::Unanswered => "quota_unanswered",
        }
    }

    /// An Envoy has one Watch stream and a connection for each of its threads at most; a discovery
    /// stream takes about 20 kB, a name about 300 bytes. `connections` follows the descriptors.
    const fn limit(self, connections: usize) -> Limit {
        match self {
            Self::Connections => Limit {
                all: connections,
                user: connections / 4 * 3,
                process: if connections < 256 { connections / 4 } else { 64 },
            },
            Self::Watches => Limit { all: 256, user: 192, process: 16 },
            Self::Discoveries => Limit { all: 8_192, user: 4_096, process: 2_048 },
            Self::Names => Limit { all: 400_000, user: 200_000, process: 100_000 },
            Self::Unanswered => Limit { all: 128 << 20, user: 64 << 20, process: 32 << 20 },
        }
    }
}

// === impl Quotas ===

impl Quotas {
    /// Nothing is held; at most `connections` connections may be.
    #[must_use]
    pub(crate) fn new(connections: usize) -> Self {
        let accounts = KINDS.map(|kind| (kind, Account::new(kind.limit(connections))));
        Self { accounts: Arc::new(Mutex::new(HashMap::from(accounts))) }
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Kind, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `units` of `kind` on the account of `owner`.
    ///
    /// # Errors
    /// [`Full`] with the limit that stands in the way.
    pub(crate) fn take(&self, kind: Kind, owner: Owner, units: usize) -> Result<Place, Full> {
        let mut place = Place { quotas: self.clone(), kind, owner, units: 0 };
        place.resize(units)?;
        Ok(place)
    }

    /// What is held now, by kind.
    #[must_use]
    pub(crate) fn usage(&self) -> Vec<Usage> {
        let accounts = self.accounts();
        let shown = KINDS.iter().filter_map(|kind| Some((*kind, accounts.get(kind)?)));
        shown
            .map(|(kind, account)| Usage {
                kind,
                used: account.used,
                limit: account.limit.all,
                refused: account.refused,
                full: account.refused_at.is_some_and(|at| at.elapsed() < RECENT),
            })
            .collect()
    }
}

// === impl Place ===

impl Place {
    /// Holds `units` from now on, instead of what it held.
    ///
    /// # Errors
    /// [`Full`], and what was held stays.
    pub(crate) fn resize(&mut self, units: usize) -> Result<(), Full> {
        let (kind, owner) = (self.kind, self.owner);
        let mut accounts = self.quotas.accounts();
        let Some(account) = accounts.get_mut(&kind) else { return Ok(()) };
        if units > self.units
            && let Some((scope, limit)) = account.lacks(owner, units - self.units)
        {
            if account.refuse(Instant::now()) {
                tracing::warn!(
                    kind = kind.as_str(), %owner, scope, limit, refused = account.refused,
                    "a peer is refused: its quota is used up"
                );
            }
            return Err(Full { kind, scope, limit });
        }
        account.give_back(owner, self.units);
        account.hold(owner, units);
        drop(accounts);
        self.units = units;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(account) = self.quotas.accounts().get_mut(&self.kind) {
            account.give_back(self.owner, self.units);
        }
    }
}

// === impl Account ===

impl Account {
    fn new(limit: Limit) -> Self {
        Self {
            limit,
            used: 0,
            users: HashMap::new(),
            processes: HashMap::new(),
            refused: 0,
            refused_at: None,
            said_at: None,
        }
    }

    /// The limit that `more` units of `owner` would break.
    fn lacks(&self, owner: Owner, more: usize) -> Option<(&'static str, usize)> {
        let beyond = |held: Option<&usize>, limit: usize| {
            held.copied().unwrap_or(0).saturating_add(more) > limit
        };
        let process = owner.process.and_then(|_| {
            beyond(self.processes.get(&owner), self.limit.process)
                .then_some(("this process", self.limit.process))
        });
        process
            .or_else(|| {
                beyond(self.users.get(&owner.user), self.limit.user)
                    .then_some(("this user", self.limit.user))
            })
            .or_else(|| {
                beyond(Some(&self.used), self.limit.all).then_some(("the agent", self.limit.all))
            })
    }

    fn hold(&mut self, owner: Owner, units: usize) {
        if units == 0 {
            return;
        }
        self.used = self.used.saturating_add(units);
        let user = self.users.entry(owner.user).or_default();
        *user = user.saturating_add(units);
        let process = self.processes.entry(owner).or_default();
        *process = process.saturating_add(units);
    }

    fn give_back(&mut self, owner: Owner, units: usize) {
        self.used = self.used.saturating_sub(units);
        less(&mut self.users, owner.user, units);
        less(&mut self.processes, owner, units);
    }

    /// Counts a refusal; true when it is time for a line in the log.
    fn refuse(&mut self, now: Instant) -> bool {
        self.refused = self.refused.saturating_add(1);
        self.refused_at = Some(now);
        let say = self.said_at.is_none_or(|at| now.saturating_duration_since(at) >= SAY_EVERY);
        if say {
            self.said_at = Some(now);
        }
        say
    }
}

/// Takes `units` off, and the entry with the last of them.
fn less<K: Eq + Hash>(held: &mut HashMap<K, usize>, key: K, units: usize) {
    if let Entry::Occupied(mut entry) = held.entry(key) {
        let left = entry.get().saturating_sub(units);
        if left == 0 {
            entry.remove();
        } else {
            entry.insert(left);
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.user {
            User::Uid(uid) => write!(f, "uid {uid}")?,
            User::Certificate(hash) => write!(f, "certificate {hash:016x}")?,
            User::Unknown => f.write_str("unknown")?,
        }
        self.process.map_or(Ok(()), |pid| write!(f, ", pid {pid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: u32, pid: i32) -> Owner {
        Owner { user: User::Uid(uid), process: (pid > 0).then_some(pid) }
    }

    fn fill(quotas: &Quotas, who: Owner) -> (Vec<Place>, Full) {
        let mut held = Vec::new();
        loop {
            match quotas.take(Kind::Connections, who, 1) {
                Ok(place) => held.push(place),
                Err(full) => return (held, full),
            }
        }
    }

    #[test]
    fn one_process_and_one_user_leave_room_for_the_others() {
        let quotas = Quotas::new(400);
        let (first, full) = fill(&quotas, owner(7, 1));
        assert_eq!((first.len(), full.scope), (64, "this process"));
        let (second, full) = fill(&quotas, owner(7, 0));
        assert_eq!((first.len() + second.len(), full.scope), (300, "this user"));
        let (third, full) = fill(&quotas, owner(8, 0));
        assert_eq!((third.len(), full.scope), (100, "the agent"));
        let usage = quotas.usage()[0];
        assert_eq!((usage.used, usage.limit, usage.refused, usage.full), (400, 400, 3, true));
        drop(first);
        assert_eq!(fill(&quotas, owner(8, 0)).0.len(), 64);
        drop((second, third));
        assert_eq!(quotas.usage()[0].used, 0);
        assert!(quotas.accounts().values().all(|it| it.users.is_empty()));
        assert!(quotas.accounts().values().all(|it| it.processes.is_empty()));
    }

    #[test]
    fn a_place_that_cannot_grow_keeps_what_it_holds() {
        let quotas = Quotas::new(8);
        let mut place = quotas.take(Kind::Names, owner(7, 1), 60_000).unwrap();
        let other = quotas.take(Kind::Names, owner(7, 1), 40_000).unwrap();
        assert!(place.resize(60_001).is_err());
        assert!(place.resize(10).is_ok());
        drop(other);
        assert!(place.resize(100_000).is_ok());
        assert_eq!(quotas.usage()[3].used, 100_000);
    }
}
