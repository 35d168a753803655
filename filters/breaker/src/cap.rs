//! How many open breakers count.
//!
//! The limit cannot be kept when a breaker opens: two workers that open two breakers in the same
//! microsecond do not see each other, and the fleet's opinions arrive from machines that see
//! nothing of this one. So breakers open as they must, and *reading* applies the limit: from the
//! same records every worker picks the same ones to honour, the worst first, and treats the rest as
//! closed. Neither a race nor a lying node can take more of a service than the policy allows.

use std::cmp::Reverse;
use std::time::Duration;

use pintle_contract::Now;

use crate::record::{Origin, Record, State, Verdict};

/// How bad an endpoint is, for comparison: the greater is honoured first.
///
/// An operator's order outranks what was seen here, which outranks what the fleet says; then the
/// one that tripped more often; then the one that has been open for longer, so that a newcomer does
/// not push an older one back into traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Severity {
    origin: Origin,
    trips: u32,
    since: Reverse<Now>,
}

impl Record {
    /// How bad the endpoint is; `None` when its breaker is closed.
    ///
    /// Half-open counts as open: it takes probes and nothing else.
    #[must_use]
    pub fn severity(&self) -> Option<Severity> {
        match self.state() {
            State::Closed => None,
            State::Open | State::HalfOpen => Some(Severity {
                origin: self.origin(),
                trips: self.trips(),
                since: Reverse(self.since()),
            }),
        }
    }
}

/// How many of `endpoints` may be open at once: `floor(percent * endpoints / 100)`.
#[must_use]
pub fn allowed(endpoints: usize, max_ejection_percent: u8) -> usize {
    let percent = usize::from(max_ejection_percent.min(100));
    // Split, so that no count of endpoints overflows.
    (endpoints / 100).saturating_mul(percent).saturating_add((endpoints % 100) * percent / 100)
}

/// Keeps those open breakers that count, the worst ones, and drops the others, which are to be read
/// as closed.
///
/// `open` holds the severity and the position in the service's table of every endpoint whose record
/// has a [`Record::severity`]; `endpoints` is the number of endpoints in that table. Ties go to
/// the lower position, so equal tables and records give equal answers in every worker. On return
/// `open` is sorted by position.
///
/// What is dropped keeps its record. Its requests should still go out as probes when one is owed,
/// so that it can close; its other answers count nothing until it has.
pub fn honour(open: &mut Vec<(Severity, u32)>, endpoints: usize, max_ejection_percent: u8) {
    open.sort_unstable_by_key(|&(severity, position)| (Reverse(severity), position));
    open.truncate(allowed(endpoints, max_ejection_percent));
    open.sort_unstable_by_key(|&(_, position)| position);
}

/// What a local answer should say in `retry-after` when every endpoint is blocked: the time until
/// the first of them takes a probe, in whole seconds rounded up, 1 s at least and `limit` at most.
#[must_use]
pub fn retry_after(
    verdicts: impl IntoIterator<Item = Verdict>,
    now: Now,
    limit: Duration,
) -> Duration {
    let soonest = verdicts
        .into_iter()
        .map(|verdict| match verdict {
            Verdict::Blocked { until } => until.since(now),
            Verdict::Pass | Verdict::ProbeOwed => Duration::ZERO,
        })
        .min()
        .unwrap_or(limit)
        .min(limit);
    let whole = soonest.as_secs().saturating_add(u64::from(soonest.subsec_nanos() > 0));
    Duration::from_secs(whole.max(1))
}

#[cfg(test)]
mod tests;
