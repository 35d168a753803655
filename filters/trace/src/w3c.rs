//! W3C Trace Context Level 2: `traceparent` and `tracestate`.
//!
//! `traceparent` is refused as a whole or used as a whole. Versions above 00 are read as far as 00
//! defines them, `ff` is none, and what is written is always 00.

use crate::carrier::{Carrier, Field, TRACESTATE};
use crate::context::{Context, Parent};
use crate::edits::Edits;
use crate::hex;
use crate::tracestate::{List, MAX_BYTES, MAX_MEMBERS};

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// Reads `traceparent`; `None` if it is missing, came twice, or is malformed.
pub(crate) fn extract(carrier: &Carrier<'_>) -> Option<Parent> {
    let value = carrier.get(Field::Traceparent)?;
    let [version] = hex::lower::<1>(value.get(..2)?)?;
    // Version 00 ends after its 55 characters; a later one may go on after another dash.
    let end = match value.get(55) {
        None => true,
        Some(next) => version > 0 && *next == b'-',
    };
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    if version == 0xff || !end || !dashes {
        return None;
    }
    let trace_id = hex::lower(value.get(3..35)?)?;
    let span_id = hex::lower(value.get(36..52)?)?;
    let [flags] = hex::lower::<1>(value.get(53..55)?)?;
    if trace_id == [0; 16] || span_id == [0; 8] {
        return None;
    }
    Some(Parent {
        trace_id,
        span_id: Some(span_id),
        sampled: Some(flags & SAMPLED != 0),
        random: flags & RANDOM != 0,
        ..Parent::default()
    })
}

/// Writes `traceparent`, and `tracestate` where it has to change. `continued` says that the context
/// came from the `traceparent` in the carrier; `own` is the vendor key under which the span id is
/// put into `tracestate`.
pub(crate) fn inject(
    carrier: &Carrier<'_>,
    context: &Context,
    continued: bool,
    own: Option<&str>,
    edits: &mut Edits,
) {
    edits.set_ids(Field::Traceparent.name(), carrier.get(Field::Traceparent), |out| {
        out.extend_from_slice(b"00-");
        hex::write(out, &context.trace_id);
        out.push(b'-');
        hex::write(out, &context.span_id);
        out.push(b'-');
        let flags = [(context.sampled, SAMPLED), (context.random, RANDOM)];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, bit)| flags | bit);
        hex::write(out, &[flags]);
    });
    // A member of ours names our span, so there is none while someone else's goes on.
    let own = own.filter(|_| context.own_span);
    if own.is_some() || carrier.tracestate.count > 0 {
        inject_state(carrier, context, continued, own, edits);
    }
}

#[inline(never)]
fn inject_state(
    carrier: &Carrier<'_>,
    context: &Context,
    continued: bool,
    own: Option<&str>,
    edits: &mut Edits,
) {
    if !continued || carrier.tracestate.count == 0 {
        return write(carrier, context, std::iter::empty(), own, edits);
    }
    let mut list = List::EMPTY;
    if list.read(&carrier.tracestate, own).is_none() {
        // No valid list: nothing of it goes on, which also makes room for our own member.
        return write(carrier, context, std::iter::empty(), own, edits);
    }
    if own.is_none() && !list.changed {
        return;
    }
    let own_bytes = own.map_or(0, |key| key.len().saturating_add(1 + 16 + 1));
    list.cut(
        MAX_MEMBERS.saturating_sub(usize::from(own.is_some())),
        MAX_BYTES.saturating_sub(own_bytes),
    );
    write(carrier, context, list.members(), own, edits);
}

/// Removes both headers, if they are there.
pub(crate) fn remove(carrier: &Carrier<'_>, edits: &mut Edits) {
    if carrier.has(Field::Traceparent) {
        edits.remove(Field::Traceparent.name());
    }
    if carrier.tracestate.count > 0 {
        edits.remove(TRACESTATE);
    }
}

fn write<'a>(
    carrier: &Carrier<'_>,
    context: &Context,
    members: impl Iterator<Item = &'a [u8]>,
    own: Option<&str>,
    edits: &mut Edits,
) {
    let mut members = members.peekable();
    if own.is_none() && members.peek().is_none() {
        if carrier.tracestate.count > 0 {
            edits.remove(TRACESTATE);
        }
        return;
    }
    edits.set(TRACESTATE, None, |out| {
        if let Some(key) = own {
            out.extend_from_slice(key.as_bytes());
            out.push(b'=');
            hex::write(out, &context.span_id);
        }
        for (at, member) in members.enumerate() {
            if at > 0 || own.is_some() {
                out.push(b',');
            }
            out.extend_from_slice(member);
        }
    });
}
