//! What the filters tell the agent.
//!
//! Counts are cumulative since the VM started, never deltas: a lost, repeated or reordered report
//! changes nothing for good, and a reloaded VM is a new `worker` that starts from zero. The agent
//! adds up the differences per worker.

use crate::wire::{Reader, Wire, wire_enum, wire_struct};
use crate::{DecodeError, Now, Version};

/// Upper bounds of the latency buckets, in milliseconds; what is slower counts in `+Inf` alone.
pub const LATENCY_BUCKETS_MS: [u64; 13] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

/// Opens the stream: who asks, and what it has already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Envoy's node id.
    pub proxy: String,
    /// The VM that leads; random, one per life of a VM.
    pub worker: u64,
    /// Grows with every change of leader in this Envoy; the agent closes the streams of lower ones.
    pub fence: u64,
    /// What the proxy holds; services that have not changed since are not sent again.
    pub have: Version,
}
wire_struct!(Hello { proxy, worker, fence, have });

/// A worker has taken over everything up to `version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The worker VM.
    pub worker: u64,
    /// How many live workers this Envoy has, the main thread's copy included.
    pub workers: u32,
    /// The newest version it holds.
    pub version: Version,
}
wire_struct!(Applied { worker, workers, version });

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Requests pass.
    #[default]
    Closed,
    /// No request passes.
    Open,
    /// A limited number of probes pass.
    HalfOpen,
}
wire_enum!(BreakerState, "state" { Closed = 0, Open = 1, HalfOpen = 2 });

impl BreakerState {
    /// The field's word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// A breaker changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The service of the endpoint.
    pub service: String,
    /// The endpoint's registry id.
    pub endpoint: String,
    /// Before.
    pub from: BreakerState,
    /// After.
    pub to: BreakerState,
    /// Why, in a few words, such as `5 consecutive failures`.
    pub reason: String,
    /// Whether this Envoy's own traffic is the cause (true), or the fleet or an operator (false).
    /// Only own observations are told to the fleet.
    pub observed: bool,
    /// When.
    pub at: Now,
    /// While open: when the first probe is due. Zero otherwise.
    pub until: Now,
    /// How many times in a row it has opened.
    pub trips: u32,
}
wire_struct!(Transition { service, endpoint, from, to, reason, observed, at, until, trips });

/// Requests of one method and status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestCount {
    /// Index into [`METHODS`].
    pub method: u8,
    /// HTTP status; 0 when the request ended without one.
    pub code: u16,
    /// How many, since the VM started.
    pub count: u64,
}
wire_struct!(RequestCount { method, code, count });

/// The nine standard methods and, last, everything else.
pub const METHODS: [&str; 10] =
    ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "_OTHER"];

/// One endpoint as one worker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointReport {
    /// The registry id.
    pub id: String,
    /// Attempts sent there, since the VM started.
    pub requests: u64,
    /// Attempts that failed, since the VM started.
    pub failures: u64,
    /// In flight now, from this worker.
    pub in_flight: u32,
    /// Estimated latency now, in microseconds; zero when nothing is known.
    pub latency_us: u64,
    /// What the breaker says now.
    pub state: BreakerState,
}
wire_struct!(EndpointReport { id, requests, failures, in_flight, latency_us, state });

/// One service as one worker sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceReport {
    /// The service's name.
    pub service: String,
    /// By method and code.
    pub requests: Vec<RequestCount>,
    /// Per bucket of [`LATENCY_BUCKETS_MS`] and a last one for the rest; not cumulative over
    /// buckets.
    pub latency: Vec<u64>,
    /// Sum of the latencies, in microseconds.
    pub latency_sum_us: u64,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests spread over all endpoints because too few were eligible.
    pub panics: u64,
    /// Requests answered locally because no endpoint was eligible.
    pub no_endpoint: u64,
    /// Attempts that nobody is charged with, or another endpoint than the filter's list says. Of
    /// good answers a sample is looked at.
    pub not_followed: u64,
    /// Requests with a hash that went by p2c, because the memory budget does not hold their ring or
    /// table, or it is not built yet.
    pub unplaced: u64,
    /// Those endpoints about which there is something new to say.
    pub endpoints: Vec<EndpointReport>,
}

impl Wire for ServiceReport {
    fn put(&self, out: &mut Vec<u8>) {
        self.service.put(out);
        self.requests.put(out);
        self.latency.put(out);
        self.latency_sum_us.put(out);
        self.in_flight.put(out);
        self.panics.put(out);
        self.no_endpoint.put(out);
        self.endpoints.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            service: Wire::take(reader)?,
            requests: Wire::take(reader)?,
            latency: Wire::take(reader)?,
            latency_sum_us: Wire::take(reader)?,
            in_flight: Wire::take(reader)?,
            panics: Wire::take(reader)?,
            no_endpoint: Wire::take(reader)?,
            // Stand behind all services, see below.
            not_followed: 0,
            unplaced: 0,
            endpoints: Wire::take(reader)?,
        })
    }
}

/// What one worker has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The worker VM.
    pub worker: u64,
    /// The newest version it holds.
    pub version: Version,
    /// Services that changed since the last report; all of them every tenth time.
    pub services: Vec<ServiceReport>,
    /// The module's own counters by name, such as `table_rejected`.
    pub counters: Vec<(String, u64)>,
}

/// A service's position, and what schema 1 does not count of it.
type More = (u64, (u64, u64));

wire_struct!(Report { worker, version, services, counters });

impl Report {
    /// As schema 2 has it: that of schema 1, and behind it what that one does not count, of the
    /// services where there is any.
    pub(crate) fn put_whole(&self, out: &mut Vec<u8>) {
        self.put(out);
        let more = |service: &ServiceReport| (service.not_followed, service.unplaced);
        let more = (0u64..).zip(self.services.iter().map(more));
        more.filter(|(_, counts)| *counts != (0, 0)).collect::<Vec<More>>().put(out);
    }

    pub(crate) fn take_whole(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut report = Self::take(reader)?;
        let more = Vec::<More>::take(reader)?;
        if !more.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(DecodeError::Invalid("counts"));
        }
        for (position, counts) in more {
            let service = usize::try_from(position).ok().and_then(|at| report.services.get_mut(at));
            let service = service.filter(|_| counts != (0, 0));
            let service = service.ok_or(DecodeError::Invalid("counts"))?;
            (service.not_followed, service.unplaced) = counts;
        }
        Ok(report)
    }
}
