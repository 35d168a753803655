//! gRPC's status codes as spans tell them ("Semantic conventions for gRPC" of OpenTelemetry).

use crate::policy::Direction;

/// In the order of their numbers (`google/rpc/code.proto`).
const NAMES: [&[u8]; 17] = [
    b"OK",
    b"CANCELLED",
    b"UNKNOWN",
    b"INVALID_ARGUMENT",
    b"DEADLINE_EXCEEDED",
    b"NOT_FOUND",
    b"ALREADY_EXISTS",
    b"PERMISSION_DENIED",
    b"RESOURCE_EXHAUSTED",
    b"FAILED_PRECONDITION",
    b"ABORTED",
    b"OUT_OF_RANGE",
    b"UNIMPLEMENTED",
    b"INTERNAL",
    b"UNAVAILABLE",
    b"DATA_LOSS",
    b"UNAUTHENTICATED",
];

/// The code's name; one that gRPC does not define is `UNKNOWN`, as gRPC's own clients take it.
pub(crate) fn name(status: u32) -> &'static [u8] {
    usize::try_from(status).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or(b"UNKNOWN")
}

/// Whether a span with this status is an error: to a client all but `OK`, to a server what is its
/// own fault.
pub(crate) fn is_error(status: u32, direction: Direction) -> bool {
    match direction {
        Direction::Egress => status != 0,
        Direction::Ingress => matches!(status, 2 | 4 | 12..=15) || status > 16,
    }
}
