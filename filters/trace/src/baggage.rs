//! W3C Baggage: other people's key-value pairs, handed on.
//!
//! The common case is to do nothing at all: within the limits that the specification obliges every
//! platform to carry (64 members and 8192 bytes) and with no allow-list, the header is not touched,
//! whatever is in it. Only where something has to go, over the limits or at a trust boundary with
//! an allow-list, the list is written anew as one header: whole members, in their order, with those
//! left out that are malformed, not allowed, or do not fit. Values are never decoded.

use crate::carrier::{BAGGAGE, Carrier, LOOKED_AT, trim};
use crate::edits::Edits;

/// Members that are always propagated, and at most.
const MAX_MEMBERS: usize = 64;
/// Bytes of the combined list that are always propagated, and at most.
const MAX_BYTES: usize = 8192;

/// Hands the baggage on, cut to the limits and to the keys of `allow`.
#[inline(never)]
pub(crate) fn inject(carrier: &Carrier<'_>, allow: Option<&[Box<str>]>, edits: &mut Edits) {
    let values = &carrier.baggage;
    if values.count == 0 || (allow.is_none() && !values.cut && fits(values.iter())) {
        return;
    }
    let allowed = |member: &[u8]| {
        key_of(member)
            .is_some_and(|key| allow.is_none_or(|list| list.iter().any(|ok| ok.as_bytes() == key)))
    };
    if !values.cut && fits(values.iter()) && values.members().all(allowed) {
        return;
    }
    let mut any = false;
    edits.set(BAGGAGE, None, |out| {
        let start = out.len();
        let mut left = MAX_MEMBERS;
        for member in values.members().take(LOOKED_AT).filter(|m| allowed(m)) {
            let size = out.len().saturating_sub(start).saturating_add(usize::from(any));
            if left == 0 {
                break;
            }
            if size.saturating_add(member.len()) > MAX_BYTES {
                continue;
            }
            if any {
                out.push(b',');
            }
            out.extend_from_slice(member);
            any = true;
            left = left.saturating_sub(1);
        }
    });
}

/// Removes the header, if it is there.
pub(crate) fn remove(carrier: &Carrier<'_>, edits: &mut Edits) {
    if carrier.baggage.count > 0 {
        edits.remove(BAGGAGE);
    }
}

/// Whether the combined list is within the limits.
fn fits<'a>(values: impl Iterator<Item = &'a [u8]> + Clone) -> bool {
    let bytes = values.clone().map(|v| v.len().saturating_add(1)).sum::<usize>();
    let members = values.map(|v| v.iter().filter(|c| **c == b',').count().saturating_add(1));
    // In this order: of what is too long already the members are not counted.
    bytes.saturating_sub(1) <= MAX_BYTES && members.sum::<usize>() <= MAX_MEMBERS
}

/// The key of a well-formed member; `None` if the member is malformed.
fn key_of(member: &[u8]) -> Option<&[u8]> {
    let mut parts = member.split(|c| *c == b';');
    let (key, value) = pair(parts.next()?);
    let well_formed = is_token(key)
        && value.is_some_and(is_value)
        && parts.map(pair).all(|(key, value)| is_token(key) && value.is_none_or(is_value));
    well_formed.then_some(key)
}

/// Key and value around the first equals sign, both without white space around them.
fn pair(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|c| *c == b'=') {
        None => (trim(text), None),
        Some(at) => {
            (trim(text.get(..at).unwrap_or_default()), text.get(at.saturating_add(1)..).map(trim))
        }
    }
}

/// RFC 9110 section 5.6.2.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(c))
}

fn is_value(text: &[u8]) -> bool {
    text.iter().all(|c| matches!(c, 0x21 | 0x23..=0x2b | 0x2d..=0x3a | 0x3c..=0x5b | 0x5d..=0x7e))
}
