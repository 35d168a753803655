//! How a request ended, as Envoy tells a filter in `on_log`, and what the client got.
//!
//! The constructors are the rows of a table that was taken from a real Envoy 1.40: code, flags,
//! details and address of a refused connection, a timeout, a client that went away, and so on.
//! Flags are Envoy's response flags as a number (`StreamInfo::CoreResponseFlag`, one bit each).

use std::time::Duration;

use crate::headers::Headers;

/// The end of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// `response.code`; `None` when the client went away before a response.
    pub response_code: Option<u32>,
    /// `response.flags`.
    pub flags: u64,
    /// `response.code_details`.
    pub details: Option<String>,
    /// `response.grpc_status`, when not to be derived from trailers, headers or the HTTP status.
    pub grpc_status: Option<u32>,
    /// `upstream.address`: of the last attempt.
    pub upstream_address: Option<String>,
    /// `upstream.request_attempt_count`.
    pub attempt_count: u32,
    /// `upstream.transport_failure_reason`.
    pub transport_failure_reason: Option<String>,
    /// `request.duration`; by default the virtual time since the request began.
    pub duration: Option<Duration>,
    /// `response.backend_latency`: of the last attempt, to its last body byte.
    pub backend_latency: Option<Duration>,
    /// `upstream.cx_pool_ready_duration`.
    pub connect_duration: Option<Duration>,
    /// Further response headers; `:status` is written from the code.
    pub headers: Headers,
    /// Response trailers.
    pub trailers: Headers,
}

impl Outcome {
    /// A response of an upstream with any status: one attempt, `via_upstream`.
    pub fn status(code: u32, address: impl Into<String>) -> Self {
        Self {
            response_code: Some(code),
            details: Some("via_upstream".into()),
            upstream_address: Some(address.into()),
            attempt_count: 1,
            ..Self::default()
        }
    }

    /// 200 of an upstream.
    pub fn ok(address: impl Into<String>) -> Self {
        Self::status(200, address)
    }

    /// A gRPC response that ends with `status` in its trailers.
    pub fn grpc(status: u32, address: impl Into<String>) -> Self {
        let mut outcome = Self::ok(address).header("content-type", "application/grpc");
        outcome.trailers.add("grpc-status", status.to_string());
        outcome
    }

    /// The connection was refused.
    pub fn refused(address: impl Into<String>) -> Self {
        let reason = "delayed connect error: Connection refused";
        let details = "upstream_reset_before_response_started{remote_connection_failure\
                       |delayed_connect_error:_Connection_refused}";
        let mut outcome = Self::status(503, address).flags(32).details(details);
        outcome.transport_failure_reason = Some(reason.into());
        outcome
    }

    /// The route's timeout passed.
    pub fn timeout(address: impl Into<String>) -> Self {
        Self::status(504, address).flags(4).details("response_timeout")
    }

    /// The upstream closed the connection before it answered.
    pub fn reset(address: impl Into<String>) -> Self {
        let details = "upstream_reset_before_response_started{connection_termination}";
        Self::status(503, address).flags(64).details(details)
    }

    /// The client went away before a response.
    pub fn client_gone(address: impl Into<String>) -> Self {
        let mut outcome =
            Self::status(0, address).flags(16_384).details("downstream_remote_disconnect");
        outcome.response_code = None;
        outcome
    }

    /// An HTTP/2 client reset the stream (a deadline).
    pub fn client_reset(address: impl Into<String>) -> Self {
        let mut outcome = Self::client_gone(address);
        outcome.flags = 268_435_456;
        outcome.details("http2.remote_reset")
    }

    /// No endpoint to choose from.
    pub fn no_healthy_upstream() -> Self {
        Self {
            response_code: Some(503),
            flags: 2,
            details: Some("no_healthy_upstream".into()),
            attempt_count: 1,
            ..Self::default()
        }
    }

    /// No route.
    pub fn no_route() -> Self {
        Self {
            response_code: Some(404),
            flags: 256,
            details: Some("route_not_found".into()),
            ..Self::default()
        }
    }

    /// The cluster's own circuit breaker had no place.
    pub fn overflow() -> Self {
        Self {
            response_code: Some(503),
            flags: 128,
            details: Some("upstream_reset_before_response_started{overflow}".into()),
            attempt_count: 1,
            ..Self::default()
        }
    }

    /// A filter behind this one answered.
    pub fn local_reply(code: u32) -> Self {
        Self { response_code: Some(code), details: Some(String::new()), ..Self::default() }
    }

    /// Refused before any filter saw it, as for headers that are too large; see
    /// [`Worker::reject`](crate::Worker::reject).
    pub fn headers_too_large() -> Self {
        Self {
            response_code: Some(431),
            flags: 262_144,
            details: Some("http1.headers_too_large".into()),
            ..Self::default()
        }
    }

    /// Sets the response flags.
    #[must_use]
    pub fn flags(mut self, flags: u64) -> Self {
        self.flags = flags;
        self
    }

    /// Sets the code's details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// Sets the number of attempts.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempt_count = attempts;
        self
    }

    /// Sets the last attempt's latency, to its last body byte.
    #[must_use]
    pub fn backend_latency(mut self, latency: Duration) -> Self {
        self.backend_latency = Some(latency);
        self
    }

    /// Sets the request's duration.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Adds a response header.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.headers.add(name, value);
        self
    }

    /// Adds a response trailer.
    #[must_use]
    pub fn trailer(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.trailers.add(name, value);
        self
    }

    /// The headers of the response, or none when there was none.
    pub(crate) fn response_headers(&self) -> Headers {
        let Some(code) = self.response_code else {
            return Headers::new();
        };
        let mut headers = Headers::from([(":status", code.to_string())]);
        for (name, value) in self.headers.iter() {
            headers.add(name, value);
        }
        headers
    }
}

/// What the client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status; `None` when the client had gone.
    pub status: Option<u32>,
    /// All headers, as the filter left them.
    pub headers: Headers,
    /// The body of a local reply; empty for a response of an upstream, whose body is not modelled.
    pub body: Vec<u8>,
    /// All trailers, as the filter left them.
    pub trailers: Headers,
}
