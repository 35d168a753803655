//! What a request's headers say, as far as it matters whatever its service wants to know: heard in
//! one walk over all of them, which is the tracer's.

use std::time::Duration;

use pintle_breaker::classify::{parse_grpc_timeout, parse_timeout_ms};
use pintle_contract::METHODS;

/// What the headers of a request say.
#[derive(Clone, Copy, Default)]
pub(super) struct Said {
    /// Index into [`METHODS`].
    pub(super) method: u8,
    pub(super) grpc: bool,
    /// The client's own.
    pub(super) deadline: Option<Duration>,
    /// Whether the client named endpoints.
    pub(super) spoofed: bool,
}

impl Said {
    /// Hears one header; `list` is the name of the one that names endpoints.
    pub(super) fn hear(&mut self, list: Option<&[u8]>, name: &[u8], value: &[u8]) {
        match name {
            b":method" => self.method = number(value),
            b"content-type" => self.grpc = is_grpc(value),
            b"grpc-timeout" => self.limit(parse_grpc_timeout(value)),
            b"x-envoy-expected-rq-timeout-ms" | b"x-envoy-upstream-rq-timeout-ms" => {
                self.limit(parse_timeout_ms(value));
            }
            _ => self.spoofed |= list == Some(name),
        }
    }

    pub(super) fn is_connect(&self) -> bool {
        METHODS.get(usize::from(self.method)) == Some(&"CONNECT")
    }

    fn limit(&mut self, deadline: Option<Duration>) {
        self.deadline = self.deadline.into_iter().chain(deadline).min();
    }
}

/// Where a method is in [`METHODS`], whose last stands for all others.
fn number(method: &[u8]) -> u8 {
    let known = METHODS.iter().position(|known| known.as_bytes() == method);
    let other = METHODS.len().saturating_sub(1);
    u8::try_from(known.unwrap_or(other)).unwrap_or_default()
}

/// Whether this content type is gRPC; gRPC-Web, whose status stands in the body, is none.
fn is_grpc(value: &[u8]) -> bool {
    let rest = value.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}
