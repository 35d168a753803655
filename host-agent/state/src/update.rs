//! What goes into the state and what comes out beside the snapshot.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use pintle_balance::Demand;
use pintle_contract::{AddressPolicy, Endpoint, Now};
use serde_json::Value;

use crate::event::Event;

/// Checks a policy (a merge patch) against its schema; the error says what is wrong, in words.
pub type PolicyCheck = fn(&Value) -> Result<(), BadPolicy>;

/// What a service with this policy and these endpoints holds of every VM.
pub type PolicyDemand = fn(&Value, &[Endpoint]) -> Demand;

/// What is wrong with a policy, from whoever knows policies.
pub type BadPolicy = Box<dyn std::error::Error + Send + Sync>;

/// Now, twice: a clock that may step, for what is shown and sent; and one that only runs, for
/// everything that is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock.
    pub wall: SystemTime,
    /// Since some fixed moment of this process, by a monotonic clock.
    pub mono: Duration,
}

impl Moment {
    /// The wall clock `later` from now, if it does not step.
    #[must_use]
    pub fn wall_after(&self, later: Duration) -> SystemTime {
        self.wall.checked_add(later).unwrap_or(self.wall)
    }
}

/// A wall clock's reading as the filters count it.
#[must_use]
pub fn now_of(wall: SystemTime) -> Now {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// How removals are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Only the operator's configuration turns it off.
    pub enabled: bool,
    /// One removal of a service may go untested in this time, and for so long a newcomer may take
    /// the place of another.
    pub window: Duration,
}

impl Default for Protection {
    fn default() -> Self {
        Self { enabled: true, window: Duration::from_secs(60) }
    }
}

/// Who tells of endpoints; the greater one's word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The file of services.
    File,
    /// The EndpointSlices of a Kubernetes cluster.
    Kubernetes,
    /// etcd.
    Registry,
}

impl Source {
    /// All, the least first.
    pub const ALL: [Self; 3] = [Self::File, Self::Kubernetes, Self::Registry];

    /// As it is called where refusals are listed.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Kubernetes => "kubernetes",
            Self::Registry => "registry",
        }
    }
}

/// What the state needs to know from the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This agent's id; breaker transitions from it are not the fleet's opinion.
    pub agent: String,
    /// The first half of every version: milliseconds since the Unix epoch at the agent's start.
    pub epoch: u64,
    /// The registry's prefix of services, such as `/services/`.
    pub services: String,
    /// The registry's prefix of policies, such as `/pintle/policies/`.
    pub policies: String,
    /// Which addresses endpoints may have.
    pub addresses: AddressPolicy,
    /// Bytes of all values that are held, at most.
    pub budget: usize,
    /// How removals are held back.
    pub protection: Protection,
    /// Whose whole content ends staleness: the greatest source that is configured.
    pub decides: Source,
    /// The schema of policies.
    pub check_policy: PolicyCheck,
    /// Their arithmetic.
    pub demand: PolicyDemand,
    /// Bytes that a VM may hold: the modules' `memory.budget`.
    pub vm_budget: u64,
}

/// A registry's key and value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// The whole key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that wrote it.
    pub revision: u64,
    /// The revision that created the key; zero when it is not known.
    pub created: u64,
    /// The lease that the key goes with; zero when it has none.
    pub lease: u64,
}

/// Everything that the registry held at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The revision; may be lower than what was seen before, after a restore.
    pub revision: u64,
    /// Both prefixes.
    pub items: Vec<Item>,
}

/// A part of a [`Listing`] that is taken as it is read; [`Listed`] follows the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Whether it is the first; a listing that was not ended is broken off.
    pub begins: bool,
    /// The revision, the same for all.
    pub revision: u64,
    /// The items.
    pub items: Vec<Item>,
}

/// All pages have been told: what is in none of them is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Whether policies could not be read, and stay.
    pub without_policies: bool,
}

/// One change that the registry told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The whole key.
    pub key: Vec<u8>,
    /// The new value; `None` when the key was deleted.
    pub value: Option<Vec<u8>>,
    /// The revision of the change.
    pub revision: u64,
    /// Of a put: the revision that created the key; zero when it is not known.
    pub created: u64,
    /// Of a put: the lease that the key goes with; zero when it has none.
    pub lease: u64,
}

/// A key that a source could not make anything of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadKey {
    /// The whole key.
    pub key: Vec<u8>,
    /// The stable word.
    pub reason: &'static str,
    /// In words.
    pub detail: String,
}

/// Which of the registry's keys its source could not read, and no [`Item`] stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// Whether `refused` is all of them: what was refused before and is not in it is good or gone.
    pub whole: bool,
    /// Refused.
    pub refused: Vec<UnreadKey>,
    /// Refused before, and good or gone now.
    pub read: Vec<Vec<u8>>,
}

impl Unread {
    /// Whether it says nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        !self.whole && self.refused.is_empty() && self.read.is_empty()
    }
}

/// All that a source other than the registry tells of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its policy's JSON, if it has one.
    pub policy: Option<Vec<u8>>,
    /// Its endpoints: the id, and a value as the registry would hold it.
    pub endpoints: Vec<(String, Vec<u8>)>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The registry's whole content.
    Listing(Listing),
    /// A part of it.
    Page(Page),
    /// The end of what pages told.
    Listed(Listed),
    /// What changed in the registry, in its order.
    Changes(Vec<Change>),
    /// The registry is alive and has nothing older than this revision to tell.
    Progress {
        /// The revision.
        revision: u64,
    },
    /// What the registry's source could not read.
    Unread(Unread),
    /// Services of a source that tells each as a whole.
    Services {
        /// Which source.
        source: Source,
        /// Whether these are all of its services; those that are not among them are gone then.
        whole: bool,
        /// The services.
        services: Vec<Told>,
    },
    /// Events, in any order.
    Events(Vec<Event>),
    /// A transition that a proxy of this agent observed: an opinion for the others, whatever the
    /// stream.
    Reported(Event),
    /// Which stream events come from now. Another identity than before is another stream, whose
    /// sequences start anew; events of the one before are ignored from then on.
    Stream {
        /// Tells one life of the stream from the next (when the server created it).
        identity: u64,
    },
    /// A source refused something; kept for the list.
    Refused {
        /// `event`, `file` or `kubernetes`.
        source: &'static str,
        /// The subject or path.
        key: String,
        /// The stable word.
        reason: &'static str,
        /// In words.
        detail: String,
    },
    /// What came of trials that [`State::take_trials`](crate::State::take_trials) asked for.
    Trials(Vec<(Trial, Tried)>),
    /// Leases of [`Changes::leases`] that live.
    LeasesLive(Vec<u64>),
    /// A proxy holds versions of this epoch, which is above this agent's.
    Outrun {
        /// The proxy's.
        epoch: u64,
    },
    /// A person confirms the removals held of a service.
    Release {
        /// The service.
        service: String,
    },
    /// Time has passed.
    Tick,
}

impl Update {
    /// The whole content of the file.
    #[must_use]
    pub const fn file(services: Vec<Told>) -> Self {
        Self::Services { source: Source::File, whole: true, services }
    }
}

/// An endpoint to connect to, and to let go of at once: is anybody there?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The service.
    pub service: String,
    /// Where.
    pub address: SocketAddr,
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried {
    /// The connection was accepted.
    Accepted,
    /// Nobody listens at the port.
    Refused,
    /// No answer within a second, or the network knows no way to the host.
    Silent,
    /// The agent could not try, for want of descriptors or ports.
    Failed,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In force, or has ended what was.
    Applied,
    /// Seen before, or a later one of the same kind has been.
    Duplicate,
    /// From a stream that is no more.
    Stale,
    /// This agent's own.
    Own,
    /// Older than its ttl: only its place in the order was kept.
    Expired,
    /// Too many overlays already.
    Full,
}

/// Something worth a line in the log and on the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `registry`, `event`, `breaker`, `removal` or `source`.
    pub kind: &'static str,
    /// The service it is about, if one.
    pub service: Option<String>,
    /// The endpoint it is about, if one.
    pub endpoint: Option<String>,
    /// What happened, in words.
    pub text: String,
    /// Whether somebody should look.
    pub alarm: bool,
}

/// What an update did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services whose table may have changed.
    pub services: Vec<String>,
    /// Whether what stands beside the tables changed: removals held, refusals, overlays, staleness.
    pub meta: bool,
    /// What to tell people; bounded.
    pub notices: Vec<Notice>,
    /// For [`Update::Events`]: one an event, in their order.
    pub outcomes: Vec<Outcome>,
    /// Removals held by this update.
    pub held: u64,
    /// Refusals by this update: source and reason.
    pub refused: Vec<(&'static str, &'static str)>,
    /// For [`Update::Release`]: how many endpoints went.
    pub released: usize,
    /// Leases of keys that are gone: those that live tell that somebody deleted the keys. Whoever
    /// can ask tells by [`Update::LeasesLive`].
    pub leases: Vec<u64>,
}
