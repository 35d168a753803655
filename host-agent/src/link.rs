//! What the agent's parts hand each other: sources and state on one side, servers on the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pintle_contract::Transition;
use pintle_state::Snapshot;
use tokio::sync::{broadcast, mpsc, watch};

/// Snapshots, newest only: a slow reader skips what is superseded.
pub type Snapshots = watch::Receiver<Arc<Snapshot>>;

/// A breaker transition that one of this agent's proxies reported; goes to the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Envoy's node id.
    pub proxy: String,
    /// What happened.
    pub transition: Transition,
}

/// Where reported transitions go. Bounded; when full the oldest interest is lost, counted.
pub type Outgoing = mpsc::Sender<Reported>;

/// Something worth a line on the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity {
    /// When.
    pub at: SystemTime,
    /// `registry`, `event`, `breaker`, `removal`, `proxy` or `source`.
    pub kind: &'static str,
    /// The service it is about, if one.
    pub service: Option<String>,
    /// The endpoint it is about, if one.
    pub endpoint: Option<String>,
    /// What happened, in words.
    pub text: String,
}

/// Activities as they come; a slow reader misses some.
pub type Activities = broadcast::Sender<Activity>;

/// How the agent and its proxies are, as the ledger has it; told anew each second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Envoys that hold a stream.
    pub connected: usize,
    /// Those of them whose workers all hold the newest tables.
    pub current: usize,
    /// The others, by node id.
    pub behind: Vec<String>,
    /// What is wrong, the worst first.
    pub troubles: Vec<String>,
}

/// How a source does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Whether it is configured.
    pub enabled: bool,
    /// Whether it answers now.
    pub connected: bool,
    /// Where it answers, without secrets.
    pub endpoint: String,
    /// etcd's revision or JetStream's sequence.
    pub position: u64,
    /// When it last said anything.
    pub last_seen: Option<SystemTime>,
    /// The same on the clock that only goes ahead; the agent's start before it has said anything.
    pub heard: Option<Instant>,
    /// When it was last read from beginning to end, for sources that tell changes otherwise.
    pub listed: Option<Instant>,
    /// For how long it may give nothing.
    pub patience: Duration,
    /// The last error, in words.
    pub error: Option<String>,
    /// Connections made since the start.
    pub connects: u64,
    /// Times that its task had to be started again.
    pub restarts: u64,
    /// What is missing though it answers, by what it is about.
    pub warnings: BTreeMap<&'static str, String>,
}

impl SourceStatus {
    /// It said something just now.
    pub fn hear(&mut self) {
        self.last_seen = Some(SystemTime::now());
        self.heard = Some(Instant::now());
    }
}

/// The sources' states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The registry.
    pub etcd: SourceStatus,
    /// The EndpointSlices.
    pub kubernetes: SourceStatus,
    /// The events.
    pub nats: SourceStatus,
    /// The file.
    pub file: SourceStatus,
    /// The registry's keys that stand beside the instances of other frameworks.
    pub keys_beside: u64,
    /// Events applied, since the start.
    pub events_applied: u64,
    /// Events seen before, since the start.
    pub events_duplicate: u64,
    /// Events kept as dead letters, since the start.
    pub events_dead_lettered: u64,
    /// Removals held back, since the start.
    pub removals_held: u64,
    /// Transitions that could not be published and were dropped, since the start.
    pub outgoing_dropped: u64,
    /// What was refused, since the start: by source (`registry`, `policy`, `event`, `file`,
    /// `kubernetes`) and reason.
    pub refused: BTreeMap<(&'static str, &'static str), u64>,
    /// Why the last good state cannot be written to disk, while it cannot.
    pub disk_error: Option<String>,
}

impl Sources {
    /// Each by its name.
    #[must_use]
    pub const fn all(&self) -> [(&'static str, &SourceStatus); 4] {
        [
            ("etcd", &self.etcd),
            ("kubernetes", &self.kubernetes),
            ("nats", &self.nats),
            ("file", &self.file),
        ]
    }
}

/// The sources' states as they change.
pub type SourcesWatch = watch::Receiver<Sources>;
