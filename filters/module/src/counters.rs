//! What the module counts about itself, beside the services' own numbers.
//!
//! Each counter is there twice: in Envoy's statistics (`wasmcustom.pintle_*`, for who looks at
//! Envoy) and in the report to the agent. The set is fixed: Envoy never frees a metric.

use pintle_hostcalls::{Metric, MetricKind};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// Requests whose service has no table, left to Envoy or refused.
    UnknownService,
    /// Requests spread over all endpoints because too few were eligible.
    Panic,
    /// Requests answered here because no endpoint was eligible.
    NoEndpoint,
    /// Requests answered here because every endpoint had as many in flight as it may have.
    Full,
    /// Requests of a service whose failover was not applied, because nobody eligible matches it.
    FailoverMissed,
    /// Requests left to Envoy because their service is bypassed.
    Bypassed,
    /// Requests of a service in shadow.
    Shadow,
    /// Of these: Envoy chose the endpoint that would have been chosen.
    ShadowSame,
    /// Of these: too few endpoints were eligible, and all would have been.
    ShadowPanic,
    /// Of these: no endpoint was eligible, and the answer would have been given here.
    ShadowRefused,
    /// Copies of our own header that a client sent.
    SpoofedHeader,
    /// Frames from the agent that were refused.
    FrameRejected,
    /// Values in shared data or queues that could not be read.
    SharedRejected,
    /// Endpoints refused for their address.
    AddressRejected,
    /// Policies that this build cannot read; the one before stays.
    PolicyRejected,
    /// Rings and tables, and tables of endpoints, that the budget of memory does not hold.
    OverBudget,
    /// Requests with a hash that went by p2c, because their ring or table is not built or was
    /// refused.
    Unplaced,
    /// Breakers that opened, as this worker decided.
    BreakerOpened,
    /// Host calls that failed where they should not.
    HostError,
    /// Messages for the agent that were dropped because it is away.
    ReportDropped,
    /// Spans that found the queue full or that the collector did not take.
    SpanDropped,
    /// Spans that the collector took.
    SpanExported,
    /// Callbacks that came in the middle of another one of the same worker and were dropped.
    CallbackDropped,
    /// Terms of leadership that this VM began.
    LeaderElected,
}

const NAMES: [&str; 24] = [
    "unknown_service",
    "panic",
    "no_endpoint",
    "full",
    "failover_missed",
    "bypassed",
    "shadow",
    "shadow_same",
    "shadow_panic",
    "shadow_refused",
    "spoofed_header",
    "frame_rejected",
    "shared_rejected",
    "address_rejected",
    "policy_rejected",
    "over_budget",
    "unplaced",
    "breaker_opened",
    "host_error",
    "report_dropped",
    "span_dropped",
    "span_exported",
    "callback_dropped",
    "leader_elected",
];

/// The counters of one VM.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    values: [u64; NAMES.len()],
    metrics: [Option<Metric>; NAMES.len()],
}

impl Counters {
    /// Adds one.
    pub(crate) fn add(&mut self, count: Count) {
        self.add_many(count, 1);
    }

    /// Adds `many`.
    pub(crate) fn add_many(&mut self, count: Count, many: u64) {
        let index = count as usize;
        if many == 0 {
            return;
        }
        if let Some(value) = self.values.get_mut(index) {
            *value = value.saturating_add(many);
        }
        let (Some(metric), Some(name)) = (self.metrics.get_mut(index), NAMES.get(index)) else {
            return;
        };
        if metric.is_none() {
            *metric = Metric::define(MetricKind::Counter, &format!("pintle_{name}_total")).ok();
        }
        if let Some(metric) = metric {
            // A statistic that cannot be written is in the report all the same.
            let _ = metric.increment(i64::try_from(many).unwrap_or(i64::MAX));
        }
    }

    /// Names and values, those that are not zero.
    pub(crate) fn report(&self) -> Vec<(String, u64)> {
        let all = NAMES.iter().zip(self.values);
        all.filter(|(_, value)| *value > 0)
            .map(|(name, value)| ((*name).to_owned(), value))
            .collect()
    }
}
