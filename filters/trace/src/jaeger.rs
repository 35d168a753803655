//! Jaeger's `uber-trace-id`: `{trace-id}:{span-id}:{parent-span-id}:{flags}`, all hexadecimal
//! (the "Propagation Format" page of Jaeger's client libraries).
//!
//! Ids may be written without their leading zeroes, and some clients percent-encode the colons.
//! The parent's id is deprecated: ignored when read, `0` when written. Flags: 1 sampled, 2 debug.

use crate::b3::write_trace_id;
use crate::carrier::{Carrier, Field};
use crate::context::{Context, Parent};
use crate::edits::Edits;
use crate::hex;

/// Reads `uber-trace-id`.
pub(crate) fn extract(carrier: &Carrier<'_>) -> Option<Parent> {
    let value = carrier.get(Field::Jaeger)?;
    let (trace_id, rest) = cut(value)?;
    let (span_id, rest) = cut(rest)?;
    let (parent_id, flags) = cut(rest)?;
    let _: [u8; 8] = hex::padded(parent_id)?;
    let [flags] = hex::padded::<1>(flags)?;
    let debug = flags & 3 == 3;
    let parent = Parent {
        trace_id: hex::padded(trace_id)?,
        span_id: Some(hex::padded(span_id).filter(|id| *id != [0; 8])?),
        sampled: Some(flags & 1 != 0),
        debug,
        ..Parent::default()
    };
    parent.has_trace().then_some(parent)
}

/// Writes `uber-trace-id`.
pub(crate) fn inject(carrier: &Carrier<'_>, context: &Context, edits: &mut Edits) {
    edits.set(Field::Jaeger.name(), carrier.get(Field::Jaeger), |out| {
        write_trace_id(out, &context.trace_id);
        out.push(b':');
        hex::write(out, &context.span_id);
        out.extend_from_slice(match (context.debug, context.sampled) {
            (true, _) => b":0:3",
            (false, true) => b":0:1",
            (false, false) => b":0:0",
        });
    });
}

/// Removes `uber-trace-id`, if it is there.
pub(crate) fn remove(carrier: &Carrier<'_>, edits: &mut Edits) {
    if carrier.has(Field::Jaeger) {
        edits.remove(Field::Jaeger.name());
    }
}

/// What is before and after the first colon, plain or percent-encoded.
fn cut(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|c| matches!(c, b':' | b'%'))?;
    let (before, after) = text.split_at_checked(at)?;
    let after = after
        .strip_prefix(b":")
        .or_else(|| after.strip_prefix(b"%3A"))
        .or_else(|| after.strip_prefix(b"%3a"))?;
    Some((before, after))
}
