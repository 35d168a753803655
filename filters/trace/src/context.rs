//! The trace context of one request: what the headers said, and what was decided.
//!
//! [`Parent`] is the common ground of all formats, so that seven parsers and seven writers make
//! every conversion between two of them; nothing converts a format directly into another. What a
//! format cannot say is `None`, not a guess: B3 and X-Ray may leave the sampling decision to the
//! receiver, X-Ray may name a trace and no span.

use crate::policy::Spans;

/// What a request carried, in whichever format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parent {
    /// All zero if the headers held a decision and no ids (B3's `b3: 0`).
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: Option<[u8; 8]>,
    /// `None`: the decision is left to the receiver.
    pub(crate) sampled: Option<bool>,
    /// Someone asked for this very trace: B3 debug, Jaeger debug, Datadog's "user keep".
    pub(crate) debug: bool,
    /// Datadog's "user reject"; other formats only know "not sampled".
    pub(crate) rejected: bool,
    /// W3C's random flag.
    pub(crate) random: bool,
}

impl Parent {
    pub(crate) fn has_trace(&self) -> bool {
        self.trace_id != [0; 16]
    }
}

/// Another trace's span, to which a restarted trace refers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other trace.
    pub trace_id: [u8; 16],
    /// The span in it.
    pub span_id: [u8; 8],
    /// Whether that trace said that it was sampled.
    pub sampled: bool,
}

/// The context under which a request goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; never all zero.
    pub trace_id: [u8; 16],
    /// The span that the upstream sees as its parent: the proxy's own, newly made, or when the
    /// proxy has no span in the trace, the caller's. Never all zero; where the caller named a trace
    /// and no span, only the formats that can't say so get it.
    pub span_id: [u8; 8],
    /// The caller's span, if the proxy's own span continues one.
    pub parent_span_id: Option<[u8; 8]>,
    /// Whether the trace is sampled.
    pub sampled: bool,
    /// Whether someone forced this trace (B3 or Jaeger debug, Datadog "user keep"); implies
    /// `sampled`.
    pub debug: bool,
    /// Datadog's "user reject", kept for Datadog alone; implies not `sampled`.
    pub rejected: bool,
    /// W3C's random flag: the last seven bytes of the trace id are random.
    pub random: bool,
    /// Whether the trace begins here.
    pub new_root: bool,
    /// Whether the proxy is a span of its own in this trace.
    pub participates: bool,
    /// Whether the ids are the caller's and the headers that they came in stay as they are.
    pub forwarded: bool,
    /// Whether `span_id` is the proxy's own.
    pub own_span: bool,
    /// The trace that a restart at a trust boundary left behind.
    pub link: Option<Link>,
    /// Which spans the policy asked for when the request came.
    pub spans: Spans,
}

impl Context {
    /// Whether a span is to be exported when the request is done.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.sampled && self.participates && self.spans != Spans::Off
    }
}
