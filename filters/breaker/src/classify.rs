//! What counts as a failure of an endpoint: one function from what Envoy reports to an [`Outcome`].
//!
//! The order of the questions is the point. Whether the client left comes first, because a client
//! that leaves during a slow answer looks like a reset from above. Whether the endpoint was reached
//! comes next: a local overload, a missing route or another filter's reply says nothing of it, even
//! when the code is 503. Only then do the transport, the code and the gRPC status speak.
//!
//! Every value costs a host call, so they are read in this order and only as far as needed:
//!
//! | value | read when |
//! |---|---|
//! | `response.flags`, `response.code` | always, where the caller does not know them from elsewhere |
//! | `response.grpc_status` | the request's content type is gRPC, the flags are 0 and the code is 200 |
//! | `upstream.address` (is there one) | [`Report::asks_upstream`]: code 400 or above, no code, or a gRPC status other than 0 |
//! | `response.code_details` | [`Report::asks_details`]: no flag decides and there is no code |
//! | `retry-after` of the response | the code is 429, or the gRPC status 8 |
//! | the duration | the policy has `slow_call` |
//! | `upstream.request_attempt_count` | the list that was sent has more than one entry |
//!
//! `response.grpc_status` exists for every response, derived from the HTTP code where there is none:
//! asking for it on a plain request would turn each 503 into a gRPC 14.

use std::time::Duration;

use pintle_contract::Now;

use crate::policy::Policy;
use crate::window::Counts;

/// Envoy's response flags: bit `n` is the `n`th of `CoreResponseFlag` in its `stream_info.h`.
pub mod flag {
    /// LH: this Envoy's own health check failed.
    pub const LOCAL_HEALTH: u64 = 1;
    /// UH: no healthy upstream.
    pub const NO_HEALTHY_UPSTREAM: u64 = 1 << 1;
    /// UT: the request timed out upstream, per try or as a whole.
    pub const UPSTREAM_TIMEOUT: u64 = 1 << 2;
    /// LR: Envoy's codec reset the stream.
    pub const LOCAL_RESET: u64 = 1 << 3;
    /// UR: the endpoint reset the stream.
    pub const UPSTREAM_RESET: u64 = 1 << 4;
    /// UF: the connection could not be made.
    pub const CONNECTION_FAILURE: u64 = 1 << 5;
    /// UC: the connection was closed.
    pub const CONNECTION_TERMINATION: u64 = 1 << 6;
    /// UO: the cluster's own limits were reached.
    pub const OVERFLOW: u64 = 1 << 7;
    /// NR: no route.
    pub const NO_ROUTE: u64 = 1 << 8;
    /// DI: a delay was injected.
    pub const DELAY_INJECTED: u64 = 1 << 9;
    /// FI: a fault was injected.
    pub const FAULT_INJECTED: u64 = 1 << 10;
    /// RL: limited by the local rate limit.
    pub const RATE_LIMITED: u64 = 1 << 11;
    /// UAEX: refused by the authorization service.
    pub const UNAUTHORIZED: u64 = 1 << 12;
    /// RLSE: the rate limit service failed.
    pub const RATE_LIMIT_SERVICE: u64 = 1 << 13;
    /// DC: the client closed the connection.
    pub const CLIENT_GONE: u64 = 1 << 14;
    /// URX: retries or connection attempts are used up. Comes with the cause.
    pub const RETRIES_EXHAUSTED: u64 = 1 << 15;
    /// SI: the stream was idle for too long, on whichever side.
    pub const STREAM_IDLE: u64 = 1 << 16;
    /// IH: the client's `x-envoy-*` headers were refused.
    pub const INVALID_HEADERS: u64 = 1 << 17;
    /// DPE: the client broke the protocol.
    pub const CLIENT_PROTOCOL: u64 = 1 << 18;
    /// UMSDR: the configured longest stream duration was reached.
    pub const MAX_STREAM_DURATION: u64 = 1 << 19;
    /// RFCF: answered from a cache.
    pub const FROM_CACHE: u64 = 1 << 20;
    /// NFCF: a filter's configuration never came.
    pub const NO_FILTER_CONFIG: u64 = 1 << 21;
    /// DT: the client's connection reached its longest duration.
    pub const CLIENT_DURATION: u64 = 1 << 22;
    /// UPE: the endpoint broke the protocol, or stopped in the middle of a body.
    pub const UPSTREAM_PROTOCOL: u64 = 1 << 23;
    /// NC: the cluster does not exist.
    pub const NO_CLUSTER: u64 = 1 << 24;
    /// OM: the overload manager ended the stream.
    pub const OVERLOAD_MANAGER: u64 = 1 << 25;
    /// DF: the name did not resolve.
    pub const DNS: u64 = 1 << 26;
    /// DO: dropped by `drop_overload`.
    pub const DROP_OVERLOAD: u64 = 1 << 27;
    /// DR: the client reset the stream.
    pub const CLIENT_RESET: u64 = 1 << 28;
    /// UDO: dropped by a `drop_overload` of 100 %.
    pub const UNCONDITIONAL_DROP: u64 = 1 << 29;

    /// The client ended it.
    pub const CLIENT: u64 =
        CLIENT_GONE | CLIENT_RESET | CLIENT_PROTOCOL | CLIENT_DURATION | INVALID_HEADERS;

    /// This Envoy ended or answered it, on its own account.
    ///
    /// `STREAM_IDLE` is here because it does not say which side was idle, and
    /// `MAX_STREAM_DURATION` because Envoy's outlier detection does not count it either.
    pub const LOCAL: u64 = LOCAL_HEALTH
        | NO_HEALTHY_UPSTREAM
        | OVERFLOW
        | NO_ROUTE
        | FAULT_INJECTED
        | RATE_LIMITED
        | UNAUTHORIZED
        | RATE_LIMIT_SERVICE
        | STREAM_IDLE
        | MAX_STREAM_DURATION
        | FROM_CACHE
        | NO_FILTER_CONFIG
        | NO_CLUSTER
        | OVERLOAD_MANAGER
        | DNS
        | DROP_OVERLOAD
        | UNCONDITIONAL_DROP;

    /// The transport to the endpoint failed.
    pub const TRANSPORT: u64 = UPSTREAM_TIMEOUT
        | LOCAL_RESET
        | UPSTREAM_RESET
        | CONNECTION_FAILURE
        | CONNECTION_TERMINATION
        | UPSTREAM_PROTOCOL;
}

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
        /// For how long, if it said so.
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

/// Which part of a request a [`Report`] is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The request as the client saw it end.
    #[default]
    Request,
    /// One attempt, as the router's upstream log or an upstream filter sees it: an attempt that ends
    /// without a code, and not by the client's doing, has failed, though no flag says so.
    Attempt,
}

/// What Envoy says of a request that ended. Values that were not needed stay at their default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report<'a> {
    /// `response.code`; `None` when there was no response.
    pub code: Option<u16>,
    /// `response.flags`.
    pub flags: u64,
    /// `response.code_details`.
    pub details: &'a [u8],
    /// Whether there is an `upstream.address`.
    pub upstream: bool,
    /// `upstream.transport_failure_reason` is there and not empty.
    pub transport_failure: bool,
    /// `response.grpc_status`, only when the request was gRPC.
    pub grpc: Option<u32>,
    /// How long the answer took, when the policy asks for it.
    pub took: Option<Duration>,
    /// From the response, see [`parse_retry_after`].
    pub retry_after: Option<Duration>,
    /// Of what.
    pub scope: Scope,
}

impl Report<'_> {
    /// Whether [`Report::upstream`] is needed beyond the code and the flags.
    #[must_use]
    pub const fn asks_upstream(&self) -> bool {
        self.flags & (flag::CLIENT | flag::LOCAL | flag::TRANSPORT) == 0
            && (!matches!(self.code, Some(code) if code < 400)
                || !matches!(self.grpc, None | Some(0)))
    }

    /// Whether [`Report::details`] are needed beyond the code and the flags.
    #[must_use]
    pub const fn asks_details(&self) -> bool {
        self.flags & (flag::CLIENT | flag::LOCAL | flag::TRANSPORT) == 0 && self.code.is_none()
    }
}

/// What the report says of the endpoint that served the last attempt.
#[must_use]
pub fn classify(report: &Report<'_>, policy: &Policy) -> Outcome {
    if report.flags & flag::CLIENT != 0 || client_left(report.details) {
        return Outcome::Ignored;
    }
    if report.flags & flag::LOCAL != 0 {
        return Outcome::Ignored;
    }
    if let Some(kind) = transport(report) {
        return Outcome::Failure(kind);
    }
    let Some(code) = report.code else {
        return match report.scope {
            Scope::Request => Outcome::Ignored,
            Scope::Attempt => Outcome::Failure(FailureKind::Reset),
        };
    };
    // A good answer is taken for the endpoint's without asking, which would cost every request.
    let good = code < 400 && matches!(report.grpc, None | Some(0));
    if !good && !report.upstream {
        return Outcome::Ignored;
    }
    if policy.failure_codes.contains(code) {
        return Outcome::Failure(FailureKind::Status(code));
    }
    if code == 429 {
        return Outcome::Soft { retry_after: report.retry_after };
    }
    match report.grpc {
        // The caller gave up.
        Some(1) => return Outcome::Ignored,
        Some(status @ (2 | 4 | 13 | 14 | 15)) if code == 200 => {
            return Outcome::Failure(FailureKind::Grpc(status));
        }
        Some(8) => {
            return Outcome::Soft { retry_after: report.retry_after };
        }
        _ => {}
    }
    let slow = policy.slow_call.zip(report.took).is_some_and(|(call, took)| took >= call.threshold);
    Outcome::Success { slow }
}

fn transport(report: &Report<'_>) -> Option<FailureKind> {
    let any = |bits: u64| report.flags & bits != 0;
    if any(flag::UPSTREAM_TIMEOUT) {
        Some(FailureKind::Timeout)
    } else if any(flag::CONNECTION_FAILURE) {
        let timed_out = contains(report.details, b"connection_timeout");
        Some(if timed_out { FailureKind::Timeout } else { FailureKind::Connect })
    } else if any(flag::UPSTREAM_PROTOCOL) {
        Some(FailureKind::Protocol)
    } else if any(flag::LOCAL_RESET | flag::UPSTREAM_RESET | flag::CONNECTION_TERMINATION)
        || report.details.starts_with(b"upstream_reset_")
    {
        Some(FailureKind::Reset)
    } else if report.code.is_none() && report.transport_failure {
        Some(FailureKind::Connect)
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

/// Who is charged with what: for every entry of the list that was sent, its position and outcome.
///
/// Envoy takes one entry per attempt, so with N attempts the first N - 1 failed and the Nth has the
/// `last` outcome. Attempts past the end of the list went where the fallback policy sent them and
/// charge nobody. Entries that were not reached come back [`Outcome::Ignored`], which frees a probe
/// slot that was taken for one.
///
/// Entries that are no hosts of its cluster Envoy skips. `answered` is the position of the one that the last
/// attempt went to, where that is known: if it lies further down than the attempts reach, it has the `last`
/// outcome, and of those before it nobody can say which were skipped and which failed.
pub fn charges(
    attempts: u32,
    list_len: usize,
    answered: Option<usize>,
    last: Outcome,
) -> impl Iterator<Item = (usize, Outcome)> {
    let reached = usize::try_from(attempts).unwrap_or(usize::MAX);
    let skipped = answered.filter(|at| attempts > 0 && *at >= reached);
    let end = skipped.map_or(reached, |at| at.saturating_add(1));
    (0..list_len).map(move |position| {
        let outcome = match position.saturating_add(1).cmp(&end) {
            std::cmp::Ordering::Less if skipped.is_some() => Outcome::Ignored,
            std::cmp::Ordering::Less => Outcome::Failure(FailureKind::Attempt),
            std::cmp::Ordering::Equal => last,
            std::cmp::Ordering::Greater => Outcome::Ignored,
        };
        (position, outcome)
    })
}

/// The value of a `retry-after` header (RFC 9110, section 10.2.3): seconds, or an IMF-fixdate.
///
/// `None` for anything else; a date in the past is zero. Seconds beyond `u32` are cut to that.
#[must_use]
pub fn parse_retry_after(value: &[u8], now: Now) -> Option<Duration> {
    let text = value.trim_ascii();
    if !text.is_empty() && text.iter().all(u8::is_ascii_digit) {
        let seconds = text.iter().fold(0u64, |sum, digit| {
            (sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))).min(u32::MAX.into())
        });
        return Some(Duration::from_secs(seconds));
    }
    let at = Duration::from_secs(imf_fixdate(text)?);
    Some(at.saturating_sub(Duration::from_nanos(now.0)))
}

/// Seconds since the Unix epoch of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn imf_fixdate(text: &[u8]) -> Option<u64> {
    const MONTHS: [&[u8]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let field = |from: usize, to: usize| text.get(from..to);
    let number = |from: usize, to: usize| -> Option<u64> {
        field(from, to)?.iter().try_fold(0u64, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
        })
    };
    let spaced = text.len() == 29
        && field(3, 5)? == b", "
        && field(7, 8)? == b" "
        && field(11, 12)? == b" "
        && field(16, 17)? == b" "
        && field(19, 20)? == b":"
        && field(22, 23)? == b":"
        && field(25, 29)? == b" GMT";
    if !spaced {
        return None;
    }
    let month = MONTHS.iter().position(|name| field(8, 11) == Some(*name))? as u64 + 1;
    let (day, year) = (number(5, 7)?, number(12, 16)?);
    let (hour, minute, second) = (number(17, 19)?, number(20, 22)?, number(23, 25)?);
    if year < 1970 || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from the civil date, counted in years that begin in March so that the leap day is last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        (y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
