//! What counts as a failure of an endpoint: one function from what Envoy reports to an [`Outcome`].
//!
//! The head is the answer. Once an endpoint's head has come, its code (and gRPC status) judges it,
//! and what ends the stream later says nothing more of the endpoint, unless the endpoint itself cut
//! its answer short: a client that has read enough, a time-out of the route, an idle stream, the
//! close of a tunnel. Without a head the order of the questions is the point. Whether the client
//! left comes first, because a client that leaves during a slow answer looks like a reset from
//! above. Whether the endpoint was reached comes next: a local overload, a missing route or another
//! filter's reply says nothing of it, even when the code is 503. Only then do time-outs, the
//! transport, the code and the gRPC status speak.
//!
//! Every value costs a host call, so they are read in this order and only as far as needed:
//!
//! | value | read when |
//! |---|---|
//! | `response.flags` | always |
//! | `response.code` | no head has come |
//! | `grpc-status` of the head or the trailers | [`Report::asks_grpc`], of a gRPC request |
//! | `upstream.address` (is there one) | [`Report::asks_upstream`] |
//! | `response.code_details` | [`Report::asks_details`]: no flag decides and there is no code |
//! | `retry-after` of the head | the code is 429, or the request is gRPC |
//! | the duration | the policy has `slow_call` |
//! | `upstream.request_attempt_count` | always |
//!
//! The property `response.grpc_status` exists for every response, derived from the HTTP code where
//! there is none: on a plain request it would turn each 503 into a gRPC 14, and on gRPC-Web, whose
//! status stands in the body, each 200 into a gRPC 2.

use std::time::Duration;

use crate::policy::Policy;
use crate::window::Counts;

pub mod flag;
mod header;

pub use header::{parse_grpc_timeout, parse_retry_after, parse_timeout_ms};

/// What an answer says of the endpoint that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It works; 4xx and the gRPC statuses of a caller's mistake included.
    Success {
        /// It took at least the policy's slow-call threshold.
        slow: bool,
    },
    /// It does not.
    Failure(FailureKind),
    /// It works and asks to be spared (429, RESOURCE_EXHAUSTED): counts in the rate only, and fails
    /// a probe.
    Soft {
        /// For how long, if it said so; at most the policy's `retry_after`.
        retry_after: Option<Duration>,
    },
    /// Nothing: the client left, or the endpoint was never asked.
    Ignored,
}

impl Outcome {
    /// What it adds to a window; `None` when nothing.
    #[must_use]
    pub const fn counts(self) -> Option<Counts> {
        match self {
            Self::Success { slow } => Some(Counts { total: 1, failed: 0, slow: slow as u32 }),
            Self::Failure(_) | Self::Soft { .. } => Some(Counts { total: 1, failed: 1, slow: 0 }),
            Self::Ignored => None,
        }
    }
}

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection: refused, unreachable, TLS.
    Connect,
    /// No answer in time, of the connection, the try or the request.
    Timeout,
    /// The stream or connection ended before its answer did.
    Reset,
    /// Not the protocol that was spoken.
    Protocol,
    /// A status code of the policy's set.
    Status(u16),
    /// gRPC 2, 4, 13, 14 or 15.
    Grpc(u32),
    /// An earlier attempt, of which only its number is known.
    Attempt,
}

/// What Envoy says of a request that ended, or of one of its attempts. Values that were not needed
/// stay at their default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report<'a> {
    /// `response.code`; `None` when there was no response.
    pub code: Option<u16>,
    /// `response.flags`.
    pub flags: u64,
    /// Whether the head of an endpoint's answer had come. A reply of this Envoy's own is none.
    pub head: bool,
    /// The request's method is CONNECT.
    pub connect: bool,
    /// The client's own deadline had passed at the end, see [`overdue`].
    pub overdue: bool,
    /// `response.code_details`.
    pub details: &'a [u8],
    /// Whether there is an `upstream.address`.
    pub upstream: bool,
    /// `response.grpc_status`, only when the request was gRPC.
    pub grpc: Option<u32>,
    /// How long the answer's head took, when the policy asks for it.
    pub took: Option<Duration>,
    /// From the response, see [`parse_retry_after`].
    pub retry_after: Option<Duration>,
}

impl Report<'_> {
    /// Whether [`Report::upstream`] is needed beyond the code and the flags.
    #[must_use]
    pub fn asks_upstream(&self) -> bool {
        if self.head {
            return false;
        }
        let idle = self.flags & (flag::STREAM_IDLE | flag::MAX_STREAM_DURATION) != 0;
        let good = self.code.is_some_and(|code| is_good(code, self.grpc));
        idle || (self.flags & flag::DECIDES == 0 && !good)
    }

    /// Whether [`Report::details`] are needed beyond the code and the flags.
    #[must_use]
    pub const fn asks_details(&self) -> bool {
        self.flags & flag::DECIDES == 0 && self.code.is_none()
    }

    /// Whether [`Report::grpc`] is needed, of a gRPC request.
    #[must_use]
    pub const fn asks_grpc(&self) -> bool {
        self.flags & flag::DECIDES == 0
    }
}

/// Whether an answer is a good one. A gRPC status that it names stands above its HTTP code, as in
/// gRPC's own mapping: a bridge to HTTP/1.1 says NOT_FOUND with a 503.
#[must_use]
pub fn is_good(code: u16, grpc: Option<u32>) -> bool {
    grpc.map_or(code < 400, |status| status == 0)
}

/// Whether a request with this deadline of its client's was past it when it ended after `lasted`.
///
/// An endpoint that was handed the deadline gives up a little before, to be heard: from nine tenths
/// on it counts as passed.
#[must_use]
pub fn overdue(deadline: Option<Duration>, lasted: Duration) -> bool {
    deadline.is_some_and(|deadline| lasted >= deadline / 10 * 9)
}

/// What the report says of the endpoint that served the last attempt.
#[must_use]
pub fn classify(report: &Report<'_>, policy: &Policy) -> Outcome {
    match interrupted(report) {
        Some(outcome) => outcome,
        None => answered(report, policy),
    }
}

/// What the way in which it ended says; `None` where the answer speaks for itself.
fn interrupted(report: &Report<'_>) -> Option<Outcome> {
    let any = |bits: u64| report.flags & bits != 0;
    let client = any(flag::CLIENT) || client_left(report.details);
    // No reply of Envoy's own is a 101.
    let switched = report.code == Some(101);
    if (report.head || switched) && !any(flag::FROM_CACHE) {
        // Either side may close a tunnel, and whoever is left sees a connection that ends.
        let tunnel = switched || report.connect && report.code.is_some_and(|code| code / 100 == 2);
        let whole = client || tunnel || any(flag::WAITED | flag::LOCAL);
        return if whole { None } else { transport(report).map(Outcome::Failure) };
    }
    if client || any(flag::LOCAL) {
        return Some(Outcome::Ignored);
    }
    if any(flag::WAITED) {
        // 408 is what Envoy says where the client's request was not whole yet.
        let unasked = !any(flag::UPSTREAM_TIMEOUT) && !report.upstream;
        let theirs = report.overdue || report.code == Some(408);
        let kind = Outcome::Failure(FailureKind::Timeout);
        return Some(if theirs || unasked { Outcome::Ignored } else { kind });
    }
    transport(report).map(Outcome::Failure)
}

/// What the code and the gRPC status say.
fn answered(report: &Report<'_>, policy: &Policy) -> Outcome {
    let Some(code) = report.code else { return Outcome::Ignored };
    // A good answer is taken for the endpoint's without asking, which would cost every request.
    if !is_good(code, report.grpc) && !report.head && !report.upstream {
        return Outcome::Ignored;
    }
    // It gave up when its caller would.
    if report.overdue && (code == 504 || report.grpc == Some(4)) {
        return Outcome::Ignored;
    }
    let retry_after = report.retry_after.map(|asked| asked.min(policy.retry_after));
    match report.grpc {
        // The caller gave up.
        Some(1) => return Outcome::Ignored,
        Some(status @ (2 | 4 | 13 | 14 | 15)) => {
            return Outcome::Failure(FailureKind::Grpc(status));
        }
        Some(8) => return Outcome::Soft { retry_after },
        Some(_) => {}
        None if policy.failure_codes.contains(code) => {
            return Outcome::Failure(FailureKind::Status(code));
        }
        None if code == 429 => return Outcome::Soft { retry_after },
        None => {}
    }
    let slow = policy.slow_call.zip(report.took).is_some_and(|(call, took)| took >= call.threshold);
    Outcome::Success { slow }
}

fn transport(report: &Report<'_>) -> Option<FailureKind> {
    let any = |bits: u64| report.flags & bits != 0;
    if any(flag::CONNECTION_FAILURE) {
        let timed_out = contains(report.details, b"connection_timeout");
        Some(if timed_out { FailureKind::Timeout } else { FailureKind::Connect })
    } else if any(flag::UPSTREAM_PROTOCOL) {
        Some(FailureKind::Protocol)
    } else if any(flag::LOCAL_RESET | flag::UPSTREAM_RESET | flag::CONNECTION_TERMINATION)
        || report.details.starts_with(b"upstream_reset_")
    {
        Some(FailureKind::Reset)
    } else {
        None
    }
}

/// An attempt that the client cut short carries no flag of its own in every version.
fn client_left(details: &[u8]) -> bool {
    details.starts_with(b"downstream_") || details.starts_with(b"http2.remote_reset")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests;
