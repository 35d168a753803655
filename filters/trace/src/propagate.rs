//! Headers in, headers out: extract, decide, inject.
//!
//! The first format of the ordered `extract` list that names a trace wins; where none does, the
//! first that at least holds a sampling decision (B3's `b3: 0`) is heard. The context then goes out
//! in every format of `inject`, so that all of them tell the same story, and the headers of a
//! format that is extracted but not injected are removed, so that none tells an old one. A format
//! that is in neither list is not looked at.
//!
//! A proxy takes part in a trace in one of two ways. When it *participates* it is a span itself:
//! what goes upstream names the proxy's span as the parent. When it exports no span it *forwards*:
//! the format that the context came from is left byte for byte as it was, since a span id that
//! nobody ever sees would cut the caller from the upstream. Two things end forwarding, both by the
//! specification: where there is no context a trace begins here, and where the sampling decision
//! changes, `parent-id` has to change with it. In between, an exporter *stands by* in W3C traces
//! that are not sampled, in which it has no span either: the caller stays the parent, and the
//! headers are only written where they are not as the specification wants them.

use rand::Rng;

use crate::carrier::Carrier;
use crate::context::{Context, Link, Parent};
use crate::edits::Edits;
use crate::format::Format;
use crate::policy::{Boundary, Config, Policy};
use crate::{b3, baggage, datadog, jaeger, w3c, xray};

/// Decides the trace context of one request and appends to `edits` what its headers need.
///
/// `headers` are all request headers in their order, duplicates separate; names match in any case
/// and values may be any bytes. They are walked once. `edits` is cleared first. `rng` gives the new
/// ids, 8 or 24 bytes, and must not repeat itself across workers. Nothing is allocated once `edits`
/// has grown to its usual size, and the work is linear in the size of the headers.
pub fn propagate<'a, R: Rng + ?Sized>(
    config: &Config,
    policy: &Policy,
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    rng: &mut R,
    edits: &mut Edits,
) -> Context {
    edits.clear();
    let carrier = Carrier::pick(config.relevant, headers);
    let found = if carrier.is_empty() { None } else { extract(config, &carrier) };
    let (source, parent) = match found {
        Some((format, parent)) => (Some(format), parent),
        None => (None, Parent::default()),
    };
    let context = decide(config, policy, &parent, source, rng);
    // A new trace does not come from any header.
    let source = source.filter(|_| !context.new_root);
    for format in Format::ALL {
        if config.inject.contains(format) {
            inject(config, &carrier, &context, format, source, edits);
        } else if config.relevant.contains(format) && !carrier.is_empty() {
            remove(&carrier, format, edits);
        }
    }
    context
}

fn extract(config: &Config, carrier: &Carrier<'_>) -> Option<(Format, Parent)> {
    let mut decision = None;
    for format in &config.extract {
        let parent = match format {
            Format::TraceContext => w3c::extract(carrier),
            Format::Baggage => None,
            other => extract_other(carrier, *other),
        };
        match parent {
            Some(parent) if parent.has_trace() => return Some((*format, parent)),
            Some(parent) if decision.is_none() => decision = Some((*format, parent)),
            _ => {}
        }
    }
    decision
}

#[inline(never)]
fn extract_other(carrier: &Carrier<'_>, format: Format) -> Option<Parent> {
    match format {
        Format::TraceContext | Format::Baggage => None,
        Format::B3 => b3::extract_single(carrier),
        Format::B3Multi => b3::extract_multi(carrier),
        Format::Jaeger => jaeger::extract(carrier),
        Format::Datadog => datadog::extract(carrier),
        Format::XRay => xray::extract(carrier),
    }
}

fn decide<R: Rng + ?Sized>(
    config: &Config,
    policy: &Policy,
    parent: &Parent,
    source: Option<Format>,
    rng: &mut R,
) -> Context {
    let new_root = !parent.has_trace() || config.boundary == Boundary::Restart;
    let trusted = config.boundary == Boundary::Trust;
    let trace_id = if new_root { id(rng) } else { parent.trace_id };
    let ours = policy.ratio.samples(&trace_id);
    let sampled = parent.sampled.filter(|_| trusted).unwrap_or(ours);
    let debug = parent.debug && trusted;
    let unchanged = parent.debug == debug && parent.sampled.is_none_or(|was| was == sampled);
    let participates = config.participates(policy);
    // A trace that has no span yet is the caller's as much as one that has: X-Ray's `Root` alone,
    // Datadog's synthetic tests.
    let forwarded = !new_root && unchanged && !participates;
    // Other formats would lose the caller's own parent, which only they name.
    let stands_by =
        !sampled && config.participate.is_none() && source == Some(Format::TraceContext);
    let callers = parent.span_id.filter(|_| forwarded || (!new_root && unchanged && stands_by));
    Context {
        trace_id,
        span_id: callers.unwrap_or_else(|| id(rng)),
        parent_span_id: parent.span_id.filter(|_| !new_root && callers.is_none()),
        sampled,
        debug,
        rejected: parent.rejected && !sampled,
        random: if new_root { true } else { parent.random },
        new_root,
        participates,
        forwarded,
        own_span: callers.is_none() && !forwarded,
        link: match parent.span_id {
            Some(span_id) if new_root && parent.has_trace() => Some(Link {
                trace_id: parent.trace_id,
                span_id,
                sampled: parent.sampled.unwrap_or_default(),
            }),
            _ => None,
        },
        spans: policy.spans,
    }
}

fn inject(
    config: &Config,
    carrier: &Carrier<'_>,
    context: &Context,
    format: Format,
    source: Option<Format>,
    edits: &mut Edits,
) {
    let continued = source == Some(format);
    if context.forwarded && continued {
        return;
    }
    match format {
        Format::TraceContext => {
            let own = config.tracestate_member.as_deref();
            w3c::inject(carrier, context, continued, own, edits);
        }
        // Baggage is no context: it is handed on only by those who read it.
        Format::Baggage if carrier.baggage.count > 0 && config.extract.contains(&format) => {
            baggage::inject(carrier, config.baggage_allow.as_deref(), edits);
        }
        Format::Baggage => {}
        other => inject_other(carrier, context, other, continued, edits),
    }
}

#[inline(never)]
fn inject_other(
    carrier: &Carrier<'_>,
    context: &Context,
    format: Format,
    continued: bool,
    edits: &mut Edits,
) {
    match format {
        Format::TraceContext | Format::Baggage => {}
        Format::B3 => b3::inject_single(carrier, context, edits),
        Format::B3Multi => b3::inject_multi(carrier, context, edits),
        Format::Jaeger => jaeger::inject(carrier, context, edits),
        Format::Datadog => datadog::inject(carrier, context, continued, edits),
        Format::XRay => xray::inject(carrier, context, continued, edits),
    }
}

#[inline(never)]
fn remove(carrier: &Carrier<'_>, format: Format, edits: &mut Edits) {
    match format {
        Format::TraceContext => w3c::remove(carrier, edits),
        Format::Baggage => baggage::remove(carrier, edits),
        Format::B3 => b3::remove_single(carrier, edits),
        Format::B3Multi => b3::remove_multi(carrier, edits),
        Format::Jaeger => jaeger::remove(carrier, edits),
        Format::Datadog => datadog::remove(carrier, edits),
        Format::XRay => xray::remove(carrier, edits),
    }
}

/// A random id that is not all zero.
pub(crate) fn id<const N: usize, R: Rng + ?Sized>(rng: &mut R) -> [u8; N] {
    let mut id = [0; N];
    for part in id.as_chunks_mut::<8>().0 {
        *part = rng.next_u64().to_le_bytes();
    }
    if id == [0; N]
        && let Some(last) = id.last_mut()
    {
        // Once in 2^64 draws, and always with a broken generator: an id all the same.
        *last = 1;
    }
    id
}
