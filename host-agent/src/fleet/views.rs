//! What the ledger shows: plain values for the metrics, the admin API and the page.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pintle_contract::{BreakerState, Schema, Version};

/// The sums of one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// By name; only services of the current snapshot.
    pub services: BTreeMap<String, ServiceView>,
    /// By node id.
    pub proxies: Vec<ProxyView>,
    /// The module's own counters.
    pub counters: BTreeMap<String, u64>,
    /// Frames and parts of frames that were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Counts per bucket of [`super::PROPAGATION_BUCKETS`], a last one for the rest.
    pub propagation: Vec<u64>,
    /// Sum of the propagation times, in seconds.
    pub propagation_sum: f64,
}

/// One service over all proxies.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceView {
    /// By index into [`pintle_contract::METHODS`] and status.
    pub requests: BTreeMap<(u8, u16), u64>,
    /// Per bucket, not cumulative over buckets.
    pub latency: Vec<u64>,
    /// Sum of the latencies, in microseconds.
    pub latency_sum_us: u64,
    /// In flight now.
    pub in_flight: u64,
    /// Requests spread over all endpoints in panic.
    pub panics: u64,
    /// Requests answered locally.
    pub no_endpoint: u64,
    /// Attempts that went elsewhere than the filter's list says, or nobody knows where.
    pub not_followed: u64,
    /// Requests with a hash that went by p2c for want of their ring or table.
    pub unplaced: u64,
    /// Attempts a second, lately.
    pub rate: f64,
    /// What was counted within the last minute.
    pub minute: MinuteView,
    /// By id; only endpoints of the current snapshot that anything is known of.
    pub endpoints: BTreeMap<String, EndpointView>,
}

/// The last minute of a service: 50 to 60 s, the last second included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MinuteView {
    /// Requests.
    pub requests: u64,
    /// Those of them that ended with 5xx or without a status.
    pub errors: u64,
    /// Those that were timed.
    pub timed: u64,
    /// Sum of their times, in microseconds.
    pub latency_sum_us: u64,
    /// Requests spread over all endpoints in panic.
    pub panics: u64,
    /// Requests answered locally.
    pub no_endpoint: u64,
    /// Attempts that went elsewhere than the filter's list says, or nobody knows where.
    pub not_followed: u64,
    /// Requests with a hash that went by p2c for want of their ring or table.
    pub unplaced: u64,
}

impl MinuteView {
    /// Adds another service's.
    pub(crate) fn add(&mut self, other: &Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.requests, other.requests);
        add(&mut self.errors, other.errors);
        add(&mut self.timed, other.timed);
        add(&mut self.latency_sum_us, other.latency_sum_us);
        add(&mut self.panics, other.panics);
        add(&mut self.no_endpoint, other.no_endpoint);
    }
}

/// One endpoint over all proxies.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointView {
    /// Attempts sent there.
    pub requests: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts within the last minute, and how many of them failed.
    pub minute: (u64, u64),
    /// Times its breaker opened, over all proxies.
    pub trips: u64,
    /// In flight now.
    pub in_flight: u64,
    /// Estimated latency, mean over the workers that know one; zero when none does.
    pub latency_us: u64,
    /// Attempts a second, lately.
    pub rate: f64,
    /// The most severe state over the proxies.
    pub state: BreakerState,
    /// The proxies on which it is not closed.
    pub breakers: Vec<BreakerView>,
}

/// One endpoint's breaker on one proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BreakerView {
    /// Node id.
    pub proxy: String,
    /// Its state there.
    pub state: BreakerState,
    /// Since when.
    pub since: SystemTime,
    /// When the first probe is due, while open.
    pub until: Option<SystemTime>,
    /// Why.
    pub reason: String,
    /// Whether that proxy's own traffic is the cause.
    pub observed: bool,
    /// How many times in a row it has opened there.
    pub trips: u32,
}

/// One Envoy.
#[derive(Clone, Debug)]
pub(crate) struct ProxyView {
    /// Node id.
    pub proxy: String,
    /// Whether it holds a stream.
    pub connected: bool,
    /// Since when it is connected, or not.
    pub since: SystemTime,
    /// Who it is to the kernel, such as `uid 0, pid 71`.
    pub peer: String,
    /// What its module reads.
    pub schema: Schema,
    /// The worker that leads.
    pub leader: u64,
    /// The leader's term.
    pub fence: u64,
    /// How many workers it says it has; 0 before any has said so.
    pub expected: u32,
    /// The version that every one of its workers holds.
    pub version: Version,
    /// Whether all its workers hold the agent's newest version.
    pub current: bool,
    /// For how long it has been connected and taken nothing newer, while it is not current.
    pub behind: Option<Duration>,
    /// The workers that spoke lately.
    pub workers: Vec<WorkerView>,
}

/// One worker VM.
#[derive(Clone, Debug)]
pub(crate) struct WorkerView {
    /// Its random id.
    pub worker: u64,
    /// The newest version it holds.
    pub version: Version,
    /// Seconds since it last spoke.
    pub silent: f64,
}
