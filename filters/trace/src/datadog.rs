//! Datadog: decimal 64-bit ids, the upper half of the trace id in a tag, a priority.
//!
//! `x-datadog-trace-id` and `x-datadog-parent-id` are decimal; the tag `_dd.p.tid` of
//! `x-datadog-tags` holds the upper 64 bits of the trace id as 16 hexadecimal digits. A malformed
//! `_dd.p.tid` makes the whole context malformed here: going on with half of an id would be the
//! silent truncation that joins strangers. Priorities: -1 user reject, 0 and 1 the sampler's,
//! 2 user keep, which is what B3 and Jaeger call debug. A parent id that is missing or 0 says that
//! the trace has no span yet: synthetic tests and browsers send that. A trace id whose lower half
//! is zero cannot be said in this format; then its headers are left out. `x-datadog-origin` is
//! never touched.

use crate::carrier::{Carrier, Field};
use crate::context::{Context, Parent};
use crate::edits::Edits;
use crate::hex;

const TID: &[u8] = b"_dd.p.tid=";
/// Datadog's own bound of the tags' header; longer ones are not propagated by its tracers either.
const MAX_TAGS: usize = 512;

const FIELDS: [Field; 4] =
    [Field::DatadogTraceId, Field::DatadogParentId, Field::DatadogPriority, Field::DatadogTags];

/// Reads `x-datadog-*`.
pub(crate) fn extract(carrier: &Carrier<'_>) -> Option<Parent> {
    let low = decimal(carrier.get(Field::DatadogTraceId)?)?;
    let span = match carrier.has(Field::DatadogParentId) {
        true => decimal(carrier.get(Field::DatadogParentId)?)?,
        false => 0,
    };
    if carrier.has(Field::DatadogTags) && carrier.get(Field::DatadogTags).is_none() {
        return None;
    }
    let mut high = 0;
    for tag in tags(carrier.get(Field::DatadogTags)) {
        if let Some(text) = tag.strip_prefix(TID) {
            high = u64::from_be_bytes(hex::any_case(text)?);
        }
    }
    let priority = match carrier.get(Field::DatadogPriority) {
        Some(b"-1") => Some(-1),
        Some(b"0") => Some(0),
        Some(b"1") => Some(1),
        Some(b"2") => Some(2),
        _ => None,
    };
    if low == 0 {
        return None;
    }
    Some(Parent {
        trace_id: ((u128::from(high) << 64) | u128::from(low)).to_be_bytes(),
        span_id: (span != 0).then(|| span.to_be_bytes()),
        sampled: priority.map(|p| p > 0),
        debug: priority == Some(2),
        rejected: priority == Some(-1),
        random: false,
    })
}

/// Writes `x-datadog-*`. `continued` says that the context came from these headers, so that the
/// other tags belong to it.
pub(crate) fn inject(carrier: &Carrier<'_>, context: &Context, continued: bool, edits: &mut Edits) {
    let id = u128::from_be_bytes(context.trace_id);
    let low = u64::try_from(id & u128::from(u64::MAX)).unwrap_or_default();
    let [high @ .., _, _, _, _, _, _, _, _] = &context.trace_id;
    if low == 0 {
        return remove(carrier, edits);
    }
    let priority = match (context.debug, context.sampled, context.rejected) {
        (true, ..) => "2",
        (_, true, _) => "1",
        (_, _, true) => "-1",
        _ => "0",
    };
    let mut set = |field: Field, write: &dyn Fn(&mut Vec<u8>)| {
        edits.set(field.name(), carrier.get(field), write);
    };
    set(Field::DatadogTraceId, &|out| write_decimal(out, low));
    set(Field::DatadogParentId, &|out| {
        write_decimal(out, u64::from_be_bytes(context.span_id));
    });
    set(Field::DatadogPriority, &|out| out.extend_from_slice(priority.as_bytes()));
    let present = carrier.get(Field::DatadogTags).filter(|_| continued);
    let kept = present.filter(|value| value.len() <= MAX_TAGS && value.iter().all(is_visible));
    let others = || tags(kept).filter(|t| !t.is_empty() && !t.starts_with(TID));
    if *high == [0; 8] && others().next().is_none() {
        if carrier.has(Field::DatadogTags) {
            edits.remove(Field::DatadogTags.name());
        }
        return;
    }
    edits.set(Field::DatadogTags.name(), carrier.get(Field::DatadogTags), |out| {
        let start = out.len();
        let tid = (*high != [0; 8]).then_some(high);
        for tag in others() {
            out.extend_from_slice(tag);
            out.push(b',');
        }
        if let Some(high) = tid {
            out.extend_from_slice(TID);
            hex::write(out, high);
        } else if out.len() > start {
            out.pop();
        }
    });
}

/// Removes what is there of the headers that are written here.
pub(crate) fn remove(carrier: &Carrier<'_>, edits: &mut Edits) {
    for field in FIELDS {
        if carrier.has(field) {
            edits.remove(field.name());
        }
    }
}

fn tags(value: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    value.unwrap_or_default().split(|c| *c == b',').map(crate::carrier::trim)
}

fn is_visible(c: &u8) -> bool {
    matches!(c, b' '..=b'~')
}

/// A decimal number of 64 bits, digits only.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, c| {
        let digit = c.is_ascii_digit().then(|| c.wrapping_sub(b'0'))?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Appends `number`, without the allocation of `to_string`.
pub(crate) fn write_decimal(out: &mut Vec<u8>, number: u64) {
    let start = out.len();
    let mut rest = number;
    loop {
        out.push(b'0'.wrapping_add(u8::try_from(rest % 10).unwrap_or_default()));
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.get_mut(start..).unwrap_or_default().reverse();
}
