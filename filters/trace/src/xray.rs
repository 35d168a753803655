//! AWS X-Ray: `x-amzn-trace-id: Root=1-{8 hex}-{24 hex};Parent={16 hex};Sampled={0|1|?}`.
//!
//! A load balancer sends `Root` alone: the trace has a name, and no span yet to be a child of.
//! `Sampled` may be missing or `?`: the receiver decides. The order of the fields is free and their
//! names match in any case. Other fields (`Self`, `Lineage`, a user's own) go on behind ours while
//! the context is X-Ray's.

use crate::carrier::{Carrier, Field, trim};
use crate::context::{Context, Parent};
use crate::edits::Edits;
use crate::hex;

/// Bytes of other fields that are kept; X-Ray has no bound, an attacker needs one.
const MAX_OTHERS: usize = 512;

/// Reads `x-amzn-trace-id`.
pub(crate) fn extract(carrier: &Carrier<'_>) -> Option<Parent> {
    let mut parent = Parent::default();
    for (key, value) in fields(carrier.get(Field::XRay)?) {
        if key.eq_ignore_ascii_case(b"root") {
            parent.trace_id = root(value)?;
        } else if key.eq_ignore_ascii_case(b"parent") {
            parent.span_id = Some(hex::any_case(value).filter(|id| *id != [0; 8])?);
        } else if key.eq_ignore_ascii_case(b"sampled") {
            parent.sampled = match value {
                b"0" => Some(false),
                b"1" => Some(true),
                _ => None,
            };
        }
    }
    parent.has_trace().then_some(parent)
}

/// Writes `x-amzn-trace-id`. `continued` says that the context came from this header, so that its
/// other fields belong to it.
pub(crate) fn inject(carrier: &Carrier<'_>, context: &Context, continued: bool, edits: &mut Edits) {
    let present = carrier.get(Field::XRay);
    edits.set(Field::XRay.name(), present, |out| {
        let [a, b, c, d, random @ ..] = &context.trace_id;
        out.extend_from_slice(b"Root=1-");
        hex::write(out, &[*a, *b, *c, *d]);
        out.push(b'-');
        hex::write(out, random);
        out.extend_from_slice(b";Parent=");
        hex::write(out, &context.span_id);
        out.extend_from_slice(if context.sampled { b";Sampled=1" } else { b";Sampled=0" });
        let mut left = MAX_OTHERS;
        for (key, value) in fields(present.filter(|_| continued).unwrap_or_default()) {
            let ours = [&b"root"[..], b"parent", b"sampled"];
            let visible = |c: &u8| matches!(c, b'!'..=b'~');
            let size = key.len().saturating_add(value.len()).saturating_add(2);
            if ours.iter().any(|name| key.eq_ignore_ascii_case(name))
                || key.is_empty()
                || !key.iter().chain(value).all(visible)
                || size > left
            {
                continue;
            }
            left = left.saturating_sub(size);
            out.push(b';');
            out.extend_from_slice(key);
            out.push(b'=');
            out.extend_from_slice(value);
        }
    });
}

/// Removes `x-amzn-trace-id`, if it is there.
pub(crate) fn remove(carrier: &Carrier<'_>, edits: &mut Edits) {
    if carrier.has(Field::XRay) {
        edits.remove(Field::XRay.name());
    }
}

/// `1-{8 hex}-{24 hex}`.
fn root(value: &[u8]) -> Option<[u8; 16]> {
    let (time, random) = (value.get(2..10)?, value.get(11..)?);
    if !value.starts_with(b"1-") || value.get(10) != Some(&b'-') {
        return None;
    }
    let (time, random) = (hex::any_case::<4>(time)?, hex::any_case::<12>(random)?);
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(time.iter().chain(&random)) {
        *to = *from;
    }
    Some(id)
}

fn fields(value: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    value.split(|c| *c == b';').filter_map(|field| {
        let at = field.iter().position(|c| *c == b'=')?;
        let (key, value) = field.split_at_checked(at)?;
        Some((trim(key), trim(value.get(1..)?)))
    })
}
