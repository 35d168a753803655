//! Spans in OTLP's form: `opentelemetry/proto/trace/v1/trace.proto`, attributes by the stable HTTP
//! semantic conventions, and our own under `pintle.`.
//!
//! A span is encoded once, when its request is done, as the field `spans` of a `ScopeSpans`; a
//! batch is then nothing but a head and such bytes in a row. Each string is bounded, so that a span
//! is at most 16 KiB, whatever the client sent.

use std::time::Duration;

use pintle_contract::Now;
use rand::Rng;

use crate::context::Link;
use crate::grpc;
use crate::policy::{Direction, Export};
use crate::propagate;
use crate::proto::{Key, Reader, Value, Writer, key, varint};
use crate::span::{Attempt, Outcome, Span};

/// Bytes of most strings, at most; what is longer is cut.
const TEXT: usize = 256;
/// Bytes of a path, a query, a URL, at most.
const PATH: usize = 1024;
/// Attempts that are told of, at most: more than any sane retry policy makes.
pub(crate) const MAX_ATTEMPTS: usize = 16;

const KIND_SERVER: u64 = 2;
const KIND_CLIENT: u64 = 3;
const STATUS_ERROR: u64 = 2;
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK` and `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`.
const KNOWN_REMOTE: u32 = 0x100;
const REMOTE: u32 = 0x200;

/// How spans of this plugin are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub(crate) direction: Direction,
    pub(crate) query: bool,
}

/// Appends `span` as the field `spans` of a `ScopeSpans`.
pub(crate) fn write_span(out: &mut Vec<u8>, span: &Span<'_>, style: Style) {
    let context = span.context;
    let method = known(span.method);
    Writer(out).large_message(2, |w| {
        w.bytes(1, &context.trace_id);
        w.bytes(2, &context.span_id);
        if !span.tracestate.is_empty() {
            w.text(3, span.tracestate, PATH);
        }
        if let Some(id) = &context.parent_span_id {
            w.bytes(4, id);
        }
        w.text(5, method.unwrap_or(b"HTTP"), TEXT);
        let (kind, errors_from) = match style.direction {
            Direction::Ingress => (KIND_SERVER, 500),
            Direction::Egress => (KIND_CLIENT, 400),
        };
        w.uint(6, kind);
        times(w, span.start, span.end);
        request_attributes(w, span, method, style);
        let decided = span.decision.outcome != Outcome::None || !span.decision.service.is_empty();
        if decided || !span.attempts.is_empty() {
            decision_attributes(w, span);
        }
        if let Some(link) = &context.link {
            write_link(w, link);
        }
        outcome(w, span, errors_from, style.direction);
        let remote = if context.parent_span_id.is_some() { REMOTE } else { 0 };
        w.fixed32(16, flags(span) | KNOWN_REMOTE | remote);
    });
}

/// Appends a client span for the attempt, a child of the request's span.
pub(crate) fn write_attempt<R: Rng + ?Sized>(
    out: &mut Vec<u8>,
    span: &Span<'_>,
    attempt: &Attempt<'_>,
    at: usize,
    rng: &mut R,
) {
    let method = known(span.method);
    Writer(out).large_message(2, |w| {
        w.bytes(1, &span.context.trace_id);
        w.bytes(2, &propagate::id::<8, R>(rng));
        w.bytes(4, &span.context.span_id);
        w.text(5, method.unwrap_or(b"HTTP"), TEXT);
        w.uint(6, KIND_CLIENT);
        let (start, end) = attempt.times.unwrap_or((span.start, span.end));
        times(w, start, end);
        text(w, key!("http.request.method"), method.unwrap_or(b"_OTHER"), TEXT);
        let endpoint = host_and_port(attempt.endpoint);
        address(w, key!("server.address"), key!("server.port"), endpoint);
        address(w, key!("network.peer.address"), key!("network.peer.port"), endpoint);
        if at > 0 {
            w.attribute_uint(key!("http.request.resend_count"), at as u64);
        }
        http_outcome(w, attempt.status, attempt.error, 400);
        w.fixed32(16, flags(span) | KNOWN_REMOTE);
    });
}

fn request_attributes(w: &mut Writer<'_>, span: &Span<'_>, method: Option<&[u8]>, style: Style) {
    match method {
        Some(method) => text(w, key!("http.request.method"), method, TEXT),
        None => {
            text(w, key!("http.request.method"), b"_OTHER", TEXT);
            text(w, key!("http.request.method_original"), span.method, TEXT);
        }
    }
    let mut halves = span.path.splitn(2, |c| *c == b'?');
    let path = halves.next().unwrap_or_default();
    let query = halves.next().filter(|_| style.query);
    text(w, key!("url.scheme"), span.scheme, TEXT);
    text(w, key!("url.path"), path, PATH);
    text(w, key!("url.query"), query.unwrap_or_default(), PATH);
    // Credentials do not belong into an authority, and not into a span either.
    let authority = span.authority.rsplit(|c| *c == b'@').next().unwrap_or_default();
    address(w, key!("server.address"), key!("server.port"), host_and_port(authority));
    text(w, key!("user_agent.original"), span.user_agent, TEXT);
    match style.direction {
        Direction::Ingress => {
            let client = host_and_port(span.client);
            text(w, key!("client.address"), client.0, TEXT);
            address(w, key!("network.peer.address"), key!("network.peer.port"), client);
        }
        Direction::Egress => {
            url_full(w, span.scheme, authority, path, query);
            address(
                w,
                key!("network.peer.address"),
                key!("network.peer.port"),
                host_and_port(span.upstream),
            );
        }
    }
    if span.resend_count > 0 {
        w.attribute_uint(key!("http.request.resend_count"), u64::from(span.resend_count));
    }
}

/// `url.full`, which the conventions require of client spans.
#[inline(never)]
fn url_full(
    w: &mut Writer<'_>,
    scheme: &[u8],
    authority: &[u8],
    path: &[u8],
    query: Option<&[u8]>,
) {
    if scheme.is_empty() || authority.is_empty() {
        return;
    }
    let mut url = [0; PATH];
    let mut used = 0_usize;
    let (mark, query) = query.map_or((&b""[..], &b""[..]), |q| (b"?", q));
    let parts = [scheme, b"://", authority, path, mark, query].into_iter().flatten();
    for (to, from) in url.iter_mut().zip(parts) {
        *to = *from;
        used = used.saturating_add(1);
    }
    text(w, key!("url.full"), url.get(..used).unwrap_or_default(), PATH);
}

#[inline(never)]
fn write_link(w: &mut Writer<'_>, link: &Link) {
    w.message(13, |w| {
        w.bytes(1, &link.trace_id);
        w.bytes(2, &link.span_id);
        w.fixed32(6, u32::from(link.sampled) | KNOWN_REMOTE | REMOTE);
    });
}

#[inline(never)]
fn decision_attributes(w: &mut Writer<'_>, span: &Span<'_>) {
    let decision = &span.decision;
    text(w, key!("pintle.service"), decision.service, TEXT);
    text(w, key!("pintle.strategy"), decision.strategy.as_bytes(), TEXT);
    if let Some(candidates) = decision.candidates {
        w.attribute_uint(key!("pintle.candidates"), u64::from(candidates));
    }
    text(w, key!("pintle.endpoint"), decision.endpoint, TEXT);
    text(w, key!("pintle.breaker.state"), decision.breaker.as_bytes(), TEXT);
    if let Some((epoch, sequence)) = decision.version {
        w.attribute_of(key!("pintle.snapshot.version"), |w| {
            w.message(1, |w| {
                crate::datadog::write_decimal(w.0, epoch);
                w.0.push(b'.');
                crate::datadog::write_decimal(w.0, sequence);
            });
        });
    }
    if let Some(age) = decision.age {
        w.attribute_uint(key!("pintle.snapshot.age_ms"), millis(age));
    }
    text(w, key!("pintle.outcome"), decision.outcome.as_str().as_bytes(), TEXT);
    text(w, key!("pintle.reason"), decision.reason.as_bytes(), TEXT);
    if span.attempts.is_empty() {
        return;
    }
    w.attribute_of(key!("pintle.attempts"), |w| {
        w.message(5, |w| {
            for attempt in span.attempts.iter().take(MAX_ATTEMPTS) {
                w.message(1, |w| w.message(1, |w| attempt_text(w, attempt)));
            }
        });
    });
}

/// `10.0.0.1:80=503`, `10.0.0.1:80=timeout`, or the endpoint alone; without an endpoint that anyone
/// knows, what came of it.
fn attempt_text(w: &mut Writer<'_>, attempt: &Attempt<'_>) {
    crate::proto::lossy(w.0, attempt.endpoint, TEXT);
    let status = attempt.status.filter(|_| attempt.error.is_none());
    if (attempt.error.is_some() || status.is_some()) && !attempt.endpoint.is_empty() {
        w.0.push(b'=');
    }
    if let Some(error) = attempt.error {
        crate::proto::lossy(w.0, error, TEXT);
    } else if let Some(status) = status {
        crate::datadog::write_decimal(w.0, u64::from(status));
    }
}

/// What came of the request, by the conventions of HTTP and, where it was a call, of gRPC.
fn outcome(w: &mut Writer<'_>, span: &Span<'_>, errors_from: u16, direction: Direction) {
    let Some(status) = span.grpc_status else {
        return http_outcome(w, span.status, span.error, errors_from);
    };
    let name = grpc::name(status);
    text(w, key!("rpc.system.name"), b"grpc", TEXT);
    text(w, key!("rpc.response.status_code"), name, TEXT);
    // As it was called until 1.37 of the conventions, by which many collectors still search.
    text(w, key!("rpc.system"), b"grpc", TEXT);
    w.attribute_uint(key!("rpc.grpc.status_code"), u64::from(status));
    let failed = grpc::is_error(status, direction).then_some(name);
    http_outcome(w, span.status, span.error.or(failed), errors_from);
}

/// Status code, `error.type` and the span's status.
fn http_outcome(w: &mut Writer<'_>, status: Option<u16>, error: Option<&[u8]>, errors_from: u16) {
    if let Some(status) = status {
        w.attribute_uint(key!("http.response.status_code"), u64::from(status));
    }
    let failed = status.filter(|s| *s >= errors_from);
    if error.is_some() || failed.is_some() {
        failure(w, error, failed);
    }
}

#[inline(never)]
fn failure(w: &mut Writer<'_>, error: Option<&[u8]>, failed: Option<u16>) {
    match (error, failed) {
        (Some(error), _) => text(w, key!("error.type"), error, TEXT),
        (None, Some(status)) => w.attribute_of(key!("error.type"), |w| {
            w.message(1, |w| crate::datadog::write_decimal(w.0, u64::from(status)));
        }),
        (None, None) => return,
    }
    w.message(15, |w| w.uint(3, STATUS_ERROR));
}

/// The head of every request to the collector, as far as it never changes.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `ResourceSpans.resource`.
    resource: Vec<u8>,
    /// `ScopeSpans.scope`.
    scope: Vec<u8>,
}

impl Head {
    pub(crate) fn new(export: &Export) -> Self {
        let mut resource = Vec::new();
        Writer(&mut resource).message(1, |w| {
            let optional = |value: &Option<Box<str>>| value.clone().unwrap_or_default();
            for (key, value) in [
                ("service.name", export.service_name.clone()),
                ("service.version", optional(&export.service_version)),
                ("deployment.environment.name", optional(&export.environment)),
            ]
            .iter()
            .map(|(key, value)| (*key, &**value))
            .chain(export.resource.iter().map(|(key, value)| (&**key, &**value)))
            {
                if !value.is_empty() {
                    pair(w, 1, key, |w| w.text(1, value.as_bytes(), TEXT));
                }
            }
        });
        let mut scope = Vec::new();
        Writer(&mut scope).message(1, |w| {
            w.text(1, b"pintle", TEXT);
            w.text(2, env!("CARGO_PKG_VERSION").as_bytes(), TEXT);
        });
        Self { resource, scope }
    }

    /// Appends an `ExportTraceServiceRequest` of encoded spans.
    pub(crate) fn write(&self, out: &mut Vec<u8>, spans: &[u8]) {
        let scope_spans = self.scope.len().saturating_add(spans.len());
        let mut inner = Vec::with_capacity(12);
        varint(&mut inner, 2 << 3 | 2);
        varint(&mut inner, scope_spans as u64);
        let size = self.resource.len().saturating_add(inner.len()).saturating_add(scope_spans);
        varint(out, 1 << 3 | 2);
        varint(out, size as u64);
        for part in [&self.resource, &inner, &self.scope, spans] {
            out.extend_from_slice(part);
        }
    }
}

/// `rejected_spans` of an `ExportTraceServiceResponse`; zero if there is none or the bytes are not
/// such a message.
pub(crate) fn rejected(response: &[u8]) -> u64 {
    let partial = Reader(response).find_map(|field| match field {
        (1, Value::Bytes(message)) => Some(message),
        _ => None,
    });
    let rejected = Reader(partial.unwrap_or_default()).find_map(|field| match field {
        (1, Value::Varint(n)) => Some(n),
        _ => None,
    });
    // An int64: negative is nonsense and reads as none.
    rejected.filter(|n| i64::try_from(*n).is_ok()).unwrap_or_default()
}

fn flags(span: &Span<'_>) -> u32 {
    u32::from(span.context.sampled) | if span.context.random { 2 } else { 0 }
}

/// The method, if `http.request.method` knows it: those of RFC 9110, and PATCH.
fn known(method: &[u8]) -> Option<&[u8]> {
    let known = matches!(
        method,
        b"GET"
            | b"POST"
            | b"PUT"
            | b"DELETE"
            | b"HEAD"
            | b"OPTIONS"
            | b"PATCH"
            | b"CONNECT"
            | b"TRACE"
    );
    known.then_some(method)
}

/// Start and end; a clock that stepped back in between makes a span of no length.
fn times(w: &mut Writer<'_>, start: Now, end: Now) {
    w.fixed64(7, start.0);
    w.fixed64(8, end.0.max(start.0));
}

/// Host and port of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn host_and_port(authority: &[u8]) -> (&[u8], Option<u16>) {
    let (host, port) = match authority {
        [b'[', rest @ ..] => {
            let end = rest.iter().position(|c| *c == b']').unwrap_or(rest.len());
            let after = rest.get(end.saturating_add(1)..).unwrap_or_default();
            (rest.get(..end).unwrap_or_default(), after.strip_prefix(b":"))
        }
        _ => match authority.iter().position(|c| *c == b':') {
            // Two colons without brackets: an IPv6 address alone.
            Some(at) if authority.iter().skip(at).filter(|c| **c == b':').count() == 1 => {
                (authority.get(..at).unwrap_or_default(), authority.get(at.saturating_add(1)..))
            }
            _ => (authority, None),
        },
    };
    let port = port.and_then(|p| std::str::from_utf8(p).ok()).and_then(|p| p.parse().ok());
    (host, port)
}

fn address(w: &mut Writer<'_>, host_key: Key, port_key: Key, (host, port): (&[u8], Option<u16>)) {
    text(w, host_key, host, TEXT);
    if let Some(port) = port.filter(|_| !host.is_empty()) {
        w.attribute_uint(port_key, u64::from(port));
    }
}

/// A string attribute, unless it is empty.
fn text(w: &mut Writer<'_>, key: Key, value: &[u8], max: usize) {
    if !value.is_empty() {
        w.attribute(key, value, max);
    }
}

fn pair(w: &mut Writer<'_>, field: u32, key: &str, write: impl FnOnce(&mut Writer<'_>)) {
    w.message(field, |w| {
        w.bytes(1, key.as_bytes());
        w.message(2, write);
    });
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
