//! The breaker's words: for the log, the event and the span.

use std::fmt;

use crate::classify::FailureKind;
use crate::machine::Reason;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consecutive(count) => write!(f, "{count} consecutive failures"),
            Self::Rate { failed, total } => write!(f, "{failed} of {total} requests failed"),
            Self::Slow { slow, total } => write!(f, "{slow} of {total} requests were slow"),
            Self::Advised { reporters } => {
                write!(f, "one failure, and {reporters} other proxies hold it open")
            }
            Self::Fleet { reporters } => write!(f, "{reporters} other proxies hold it open"),
            Self::Probing => f.write_str("time for a probe"),
            Self::ProbeFailed => f.write_str("a probe failed"),
            Self::ProbeExpired => f.write_str("a probe went unanswered"),
            Self::ProbesSucceeded(count) => write!(f, "{count} probes succeeded"),
            Self::Forced => f.write_str("forced by an operator"),
            Self::Cleared => f.write_str("cleared by an operator"),
        }
    }
}

impl FailureKind {
    /// A word of few values, for `error.type`; `None` where the status code says it.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Connect => Some("connection_failure"),
            Self::Timeout => Some("timeout"),
            Self::Reset => Some("reset"),
            Self::Protocol => Some("protocol_error"),
            Self::Attempt => Some("retried"),
            Self::Status(_) => None,
            Self::Grpc(2) => Some("UNKNOWN"),
            Self::Grpc(4) => Some("DEADLINE_EXCEEDED"),
            Self::Grpc(13) => Some("INTERNAL"),
            Self::Grpc(14) => Some("UNAVAILABLE"),
            Self::Grpc(_) => Some("DATA_LOSS"),
        }
    }
}
