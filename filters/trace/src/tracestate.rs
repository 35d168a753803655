//! The list in `tracestate` (W3C Trace Context Level 2, section 3.3).
//!
//! The list belongs to others. It is left as it is, byte for byte, as long as it
//! is valid, came in one header, fits and we have nothing to add. A list with a malformed member or
//! with more than 32 members is dropped as a whole (the specification leaves that to us; its test
//! suite wants it), because a half-understood list is worse than none. A list of too many bytes, or
//! one that our own member makes too long, loses whole members: those over 128 characters first,
//! then from the right, until at most 32 members and 8192 bytes are left. The specification wants
//! at least 512 bytes propagated; 8192 is what Baggage allows, and well below the 60 KiB that Envoy
//! accepts for all headers. Of a repeated key the left-most, which is the newest, stays.

use crate::carrier::{LOOKED_AT, Values};

/// Members that a list may have, by the specification.
pub(crate) const MAX_MEMBERS: usize = 32;
/// Bytes of the combined list that are propagated.
pub(crate) const MAX_BYTES: usize = 8192;
/// Members above this length, in characters, are dropped first.
const LONG: usize = 128;

/// A member, and what tells its key apart from others before bytes are compared.
#[derive(Clone, Copy)]
struct Member<'a> {
    text: &'a [u8],
    key: &'a [u8],
    hash: u32,
}

impl Member<'_> {
    const NONE: Self = Self { text: &[], key: &[], hash: 0 };
}

/// A valid list, without empty members and repeated keys.
pub(crate) struct List<'a> {
    members: [Member<'a>; MAX_MEMBERS],
    len: usize,
    /// Whether it differs from what the request carries in its header.
    pub(crate) changed: bool,
}

impl<'a> List<'a> {
    pub(crate) const EMPTY: Self =
        Self { members: [Member::NONE; MAX_MEMBERS], len: 0, changed: false };

    /// `None` if any member is malformed or there are more than [`MAX_MEMBERS`]. The member of
    /// `own` is left out. To be called once, on an empty list.
    pub(crate) fn read(&mut self, values: &Values<'a, 32>, own: Option<&str>) -> Option<()> {
        let list = self;
        if values.cut {
            return None;
        }
        list.changed = values.count > 1 || values.iter().any(|value| value.len() > MAX_BYTES);
        let mut members = values.members();
        let looked_at = members.by_ref().take(LOOKED_AT);
        for (read, text) in looked_at.filter(|m| !m.is_empty()).enumerate() {
            let member = member(text).filter(|_| read < MAX_MEMBERS)?;
            let repeated =
                |other: &Member<'_>| other.hash == member.hash && other.key == member.key;
            if own.is_some_and(|own| own.as_bytes() == member.key)
                || list.members.iter().take(list.len).any(repeated)
            {
                list.changed = true;
            } else if let Some(slot) = list.members.get_mut(list.len) {
                *slot = member;
                list.len = list.len.saturating_add(1);
            }
        }
        // An empty list must be accepted and should not be sent.
        list.changed |= list.len == 0;
        members.next().is_none().then_some(())
    }

    /// The members that are left, in order.
    pub(crate) fn members(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.members.iter().take(self.len).map(|m| m.text).filter(|m| !m.is_empty())
    }

    /// Drops members until at most `members` and `bytes` are left.
    pub(crate) fn cut(&mut self, members: usize, bytes: usize) {
        let mut count = self.members().count();
        // Each brings a comma; the last one's is counted too, for simplicity.
        let mut size = self.members().map(|m| m.len().saturating_add(1)).sum::<usize>();
        for longer_than in [LONG, 0] {
            for member in self.members.iter_mut().take(self.len).rev() {
                if count <= members && size <= bytes {
                    return;
                }
                if member.text.len() > longer_than {
                    count = count.saturating_sub(1);
                    size = size.saturating_sub(member.text.len().saturating_add(1));
                    *member = Member::NONE;
                }
            }
        }
    }
}

/// Reads a member; `None` if it is malformed.
fn member(text: &[u8]) -> Option<Member<'_>> {
    let equals = text.iter().position(|c| *c == b'=')?;
    let (key, value) = (text.get(..equals)?, text.get(equals.saturating_add(1)..)?);
    let value_ok = (1..=256).contains(&value.len())
        && value.iter().all(|c| matches!(c, b' '..=b'~') && *c != b',' && *c != b'=');
    // FNV-1a. Who makes keys collide gains the comparison of a bounded number of bytes.
    let hash =
        key.iter().fold(0x811c_9dc5_u32, |h, c| (h ^ u32::from(*c)).wrapping_mul(0x0100_0193));
    (is_key(key) && value_ok).then_some(Member { text, key, hash })
}

/// Whether the text is a key of a `tracestate` member.
pub(crate) fn is_key(key: &[u8]) -> bool {
    let keychar =
        |c: &u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
    key.len() <= 256
        && key.first().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        && key.iter().all(keychar)
}
