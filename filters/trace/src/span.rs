//! What the proxy knows of a request when it is done.
//!
//! All fields are borrowed bytes as the proxy gives them, because the span is encoded in the same
//! callback and lives no longer. Empty means unknown; whatever is not valid UTF-8 or too long is
//! made so by the encoder, not by the caller.

use std::time::Duration;

use pintle_contract::Now;

use crate::context::Context;

/// A finished request.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    /// The context under which it went.
    pub context: &'a Context,
    /// When the request came.
    pub start: Now,
    /// When it was done.
    pub end: Now,
    /// `:method`.
    pub method: &'a [u8],
    /// `:path`, the query with it.
    pub path: &'a [u8],
    /// `:scheme`.
    pub scheme: &'a [u8],
    /// `:authority`; host, and port if there is one.
    pub authority: &'a [u8],
    /// Address of who sent the request, as `ip:port`.
    pub client: &'a [u8],
    /// Address of the upstream that served the last attempt, as `ip:port`.
    pub upstream: &'a [u8],
    /// The response's status code; `None` if there was no response.
    pub status: Option<u16>,
    /// The call's gRPC status; `None` if the request was no gRPC call, or ended without one.
    pub grpc_status: Option<u32>,
    /// Why the request failed, in few words that do not vary with the request (`timeout`,
    /// `connection_failure`, a gRPC status). `None`: the status code tells.
    pub error: Option<&'a [u8]>,
    /// `user-agent`.
    pub user_agent: &'a [u8],
    /// `tracestate` as it went upstream, if the shell has it.
    pub tracestate: &'a [u8],
    /// How often the request was sent again.
    pub resend_count: u32,
    /// What was decided about it.
    pub decision: Decision<'a>,
    /// The attempts, first to last; those beyond the sixteenth are left out.
    pub attempts: &'a [Attempt<'a>],
}

/// What the proxy decided about a request, and upon what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decision<'a> {
    /// The service that the request was for.
    pub service: &'a [u8],
    /// The strategy by which the endpoint was chosen.
    pub strategy: &'a str,
    /// How many endpoints could be chosen from; `None` if no choice was made.
    pub candidates: Option<u32>,
    /// The endpoint at the head of the list.
    pub endpoint: &'a [u8],
    /// State of that endpoint's breaker: `closed`, `open` or `half-open`.
    pub breaker: &'a str,
    /// Version of the snapshot, epoch and sequence.
    pub version: Option<(u64, u64)>,
    /// Age of the snapshot.
    pub age: Option<Duration>,
    /// Whose decision it was in the end.
    pub outcome: Outcome,
    /// Why it was not the plain choice.
    pub reason: &'a str,
}

/// Whose decision it was in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was decided; only traces are kept.
    #[default]
    None,
    /// The strategy's choice among eligible endpoints.
    Chosen,
    /// Too few were eligible, so all were.
    Panic,
    /// Envoy's own balancer, for want of a table.
    Fallback,
    /// A local reply; no endpoint was asked.
    LocalReply,
    /// Envoy's own balancer; the decision is only told.
    Shadow,
}

impl Outcome {
    /// The value of the attribute `pintle.outcome`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Chosen => "chosen",
            Self::Panic => "panic",
            Self::Fallback => "fallback",
            Self::LocalReply => "local_reply",
            Self::Shadow => "shadow",
        }
    }
}

/// One attempt of a request at an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attempt<'a> {
    /// The endpoint, as `ip:port`.
    pub endpoint: &'a [u8],
    /// The status code it answered with.
    pub status: Option<u16>,
    /// Why the attempt failed, if no status code tells.
    pub error: Option<&'a [u8]>,
    /// When it was made and done; `None` if unknown, then the request's own times stand.
    pub times: Option<(Now, Now)>,
}
