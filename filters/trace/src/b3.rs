//! B3, in one header and in several (openzipkin/b3-propagation).
//!
//! Trace ids have 64 or 128 bits; a short one is the lower half. When written, an id whose upper
//! half is zero is short again, so that a system that only knows 64 bits gets back what it sent.
//! A missing sampling state leaves the decision to the receiver; a state without ids (`b3: 0`) is a
//! decision about a trace that has yet to begin. Debug implies sampled and is kept as debug.

use crate::carrier::{Carrier, Field};
use crate::context::{Context, Parent};
use crate::edits::Edits;
use crate::hex;

/// The headers of the multiple form.
const MULTI: [Field; 5] =
    [Field::B3TraceId, Field::B3SpanId, Field::B3ParentSpanId, Field::B3Sampled, Field::B3Flags];

/// Reads `b3`.
pub(crate) fn extract_single(carrier: &Carrier<'_>) -> Option<Parent> {
    let mut parts = carrier.get(Field::B3)?.split(|c| *c == b'-');
    let (first, second, third, fourth, fifth) =
        (parts.next()?, parts.next(), parts.next(), parts.next(), parts.next());
    let mut parent = Parent::default();
    let Some(span_id) = second else {
        state(first, &mut parent)?;
        return Some(parent);
    };
    ids(first, span_id, &mut parent)?;
    if let Some(text) = third {
        state(text, &mut parent)?;
    }
    let parent_ok = fourth.is_none_or(|id| hex::any_case::<8>(id).is_some());
    (parent_ok && fifth.is_none()).then_some(parent)
}

/// Reads `x-b3-*`.
pub(crate) fn extract_multi(carrier: &Carrier<'_>) -> Option<Parent> {
    let mut parent = Parent::default();
    let decided = match (carrier.get(Field::B3Flags), carrier.get(Field::B3Sampled)) {
        (Some(b"1"), _) => state(b"d", &mut parent).is_some(),
        (_, Some(sampled)) => {
            if sampled.eq_ignore_ascii_case(b"true") {
                parent.sampled = Some(true);
            } else if sampled.eq_ignore_ascii_case(b"false") {
                parent.sampled = Some(false);
            } else {
                // A state that is no state is as if it were not there.
                let _ = state(sampled, &mut parent);
            }
            parent.sampled.is_some()
        }
        _ => false,
    };
    if !carrier.has(Field::B3TraceId) && !carrier.has(Field::B3SpanId) {
        return decided.then_some(parent);
    }
    ids(carrier.get(Field::B3TraceId)?, carrier.get(Field::B3SpanId)?, &mut parent)?;
    Some(parent)
}

/// Writes `b3`.
pub(crate) fn inject_single(carrier: &Carrier<'_>, context: &Context, edits: &mut Edits) {
    edits.set(Field::B3.name(), carrier.get(Field::B3), |out| {
        write_trace_id(out, &context.trace_id);
        out.push(b'-');
        hex::write(out, &context.span_id);
        out.extend_from_slice(match (context.debug, context.sampled) {
            (true, _) => b"-d",
            (false, true) => b"-1",
            (false, false) => b"-0",
        });
        if let Some(id) = context.parent_span_id {
            out.push(b'-');
            hex::write(out, &id);
        }
    });
}

/// Writes `x-b3-*`.
pub(crate) fn inject_multi(carrier: &Carrier<'_>, context: &Context, edits: &mut Edits) {
    write(
        carrier,
        edits,
        Field::B3TraceId,
        Some(|out: &mut Vec<u8>| write_trace_id(out, &context.trace_id)),
    );
    write(
        carrier,
        edits,
        Field::B3SpanId,
        Some(|out: &mut Vec<u8>| hex::write(out, &context.span_id)),
    );
    let parent = context.parent_span_id;
    write(
        carrier,
        edits,
        Field::B3ParentSpanId,
        parent.map(|id| move |out: &mut Vec<u8>| hex::write(out, &id)),
    );
    // Debug implies an accept decision, which is therefore not sent beside it.
    let sampled = if context.sampled { b'1' } else { b'0' };
    let (flags, state) = if context.debug { (Some(b'1'), None) } else { (None, Some(sampled)) };
    write(carrier, edits, Field::B3Flags, flags.map(|c| move |out: &mut Vec<u8>| out.push(c)));
    write(carrier, edits, Field::B3Sampled, state.map(|c| move |out: &mut Vec<u8>| out.push(c)));
}

/// Sets the header to what `value` appends; without one the header goes.
fn write(
    carrier: &Carrier<'_>,
    edits: &mut Edits,
    field: Field,
    value: Option<impl FnOnce(&mut Vec<u8>)>,
) {
    match value {
        Some(write) => edits.set(field.name(), carrier.get(field), write),
        None if carrier.has(field) => edits.remove(field.name()),
        None => {}
    }
}

/// Removes `b3`, if it is there.
pub(crate) fn remove_single(carrier: &Carrier<'_>, edits: &mut Edits) {
    if carrier.has(Field::B3) {
        edits.remove(Field::B3.name());
    }
}

/// Removes what is there of `x-b3-*`.
pub(crate) fn remove_multi(carrier: &Carrier<'_>, edits: &mut Edits) {
    for field in MULTI {
        if carrier.has(field) {
            edits.remove(field.name());
        }
    }
}

fn state(text: &[u8], parent: &mut Parent) -> Option<()> {
    match text {
        b"0" => parent.sampled = Some(false),
        b"1" => parent.sampled = Some(true),
        b"d" => (parent.sampled, parent.debug) = (Some(true), true),
        _ => return None,
    }
    Some(())
}

fn ids(trace_id: &[u8], span_id: &[u8], parent: &mut Parent) -> Option<()> {
    parent.trace_id = match trace_id.len() {
        16 => u128::from(u64::from_be_bytes(hex::any_case(trace_id)?)).to_be_bytes(),
        _ => hex::any_case(trace_id)?,
    };
    parent.span_id = Some(hex::any_case(span_id).filter(|id| *id != [0; 8])?);
    parent.has_trace().then_some(())
}

/// 32 digits, or 16 if the rest is zero.
pub(crate) fn write_trace_id(out: &mut Vec<u8>, id: &[u8; 16]) {
    match id {
        [0, 0, 0, 0, 0, 0, 0, 0, low @ ..] => hex::write(out, low),
        _ => hex::write(out, id),
    }
}
