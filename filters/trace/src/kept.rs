//! What a span will need of the request's headers, kept from the way in to the end.
//!
//! The proxy would give the headers again when the request is done; but reading the map is the
//! dearest call there is, and by then other filters and the route have rewritten it, while a span
//! is to say what was asked. So the few values are copied once, only for requests that are
//! recorded, into one block that is bounded whatever the client sent.

use std::ops::Range;

use crate::edits::{Edit, Edits};

/// Bytes of a value that are kept: a path and a query at their full length in the span, and a byte
/// more, by which the encoder sees that it cuts.
const MAX: usize = 2 * 1024 + 2;

/// The values that are kept, in this order.
const VALUES: usize = 6;

fn place(name: &[u8]) -> Option<usize> {
    Some(match name {
        b":method" => 0,
        b":path" => 1,
        b":scheme" => 2,
        b":authority" => 3,
        b"user-agent" => 4,
        b"tracestate" => 5,
        _ => return None,
    })
}

/// Copies of a request's values; empty for those that it did not have.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    bytes: Vec<u8>,
    ends: [usize; VALUES],
}

impl Kept {
    /// Copies what is there, the first of several values, and `tracestate` as it goes upstream
    /// after `edits`. Names must be lower-case. At most about 12 KiB.
    #[must_use]
    pub fn new<'a>(
        headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        edits: &'a Edits,
    ) -> Self {
        let mut values: [Option<&[u8]>; VALUES] = [None; VALUES];
        for (name, value) in headers {
            if let Some(slot) = place(name).and_then(|at| values.get_mut(at)) {
                slot.get_or_insert(value);
            }
        }
        for edit in edits.iter() {
            let (name, value) = match edit {
                Edit::Set { name, value } => (name, value),
                Edit::Remove { name } => (name, &[][..]),
            };
            if let (crate::carrier::TRACESTATE, Some(slot)) = (name, values.last_mut()) {
                *slot = Some(value);
            }
        }
        let values = values.map(|value| {
            let value = value.unwrap_or_default();
            value.get(..MAX).unwrap_or(value)
        });
        let size = values.iter().fold(0_usize, |size, value| size.saturating_add(value.len()));
        let mut kept = Self { bytes: Vec::with_capacity(size), ..Self::default() };
        for (end, value) in kept.ends.iter_mut().zip(values) {
            kept.bytes.extend_from_slice(value);
            *end = kept.bytes.len();
        }
        kept
    }

    /// `:method`.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.value(0)
    }

    /// `:path`, the query with it.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.value(1)
    }

    /// `:scheme`.
    #[must_use]
    pub fn scheme(&self) -> &[u8] {
        self.value(2)
    }

    /// `:authority`.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        self.value(3)
    }

    /// `user-agent`.
    #[must_use]
    pub fn user_agent(&self) -> &[u8] {
        self.value(4)
    }

    /// `tracestate` as it went upstream.
    #[must_use]
    pub fn tracestate(&self) -> &[u8] {
        self.value(5)
    }

    fn value(&self, at: usize) -> &[u8] {
        let end = self.ends.get(at).copied().unwrap_or_default();
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before));
        let range: Range<usize> = start.copied().unwrap_or_default()..end;
        self.bytes.get(range).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_each_name_is_kept_and_what_is_missing_is_empty() {
        let headers: [(&[u8], &[u8]); 6] = [
            (b":path", b"/a?b"),
            (b"x-other", b"1"),
            (b":method", b"GET"),
            (b"user-agent", b"one"),
            (b"user-agent", b"two"),
            (b"tracestate", b"a=1"),
        ];
        let edits = Edits::new();
        let kept = Kept::new(headers, &edits);
        let all = [kept.method(), kept.path(), kept.scheme(), kept.authority(), kept.user_agent()];
        assert_eq!(all, [&b"GET"[..], b"/a?b", b"", b"", b"one"]);
        assert_eq!(kept.tracestate(), b"a=1");
    }

    #[test]
    fn tracestate_is_what_goes_upstream() {
        let headers: [(&[u8], &[u8]); 2] = [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")];
        let mut edits = Edits::new();
        edits.set("traceparent", None, |out| out.extend_from_slice(b"00-"));
        edits.set("tracestate", None, |out| out.extend_from_slice(b"a=1,b=2"));
        assert_eq!(Kept::new(headers, &edits).tracestate(), b"a=1,b=2");
        edits.clear();
        edits.remove("tracestate");
        assert_eq!(Kept::new(headers, &edits).tracestate(), b"");
    }

    #[test]
    fn what_a_client_sends_is_kept_within_bounds() {
        let long = vec![b'a'; 96 * 1024];
        let names = [":method", ":path", ":scheme", ":authority", "user-agent", "tracestate"];
        let headers = names.map(|name| (name.as_bytes(), long.as_slice()));
        let kept = Kept::new(headers, &Edits::new());
        assert_eq!(kept.bytes.len(), VALUES * MAX);
        assert_eq!(kept.bytes.capacity(), VALUES * MAX);
        assert_eq!(kept.tracestate().len(), MAX);
    }
}
