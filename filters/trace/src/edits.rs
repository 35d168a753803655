//! What is to be done to the request's headers.
//!
//! A list of edits instead of a new header map, because a map crosses the boundary to the proxy
//! whole while the usual request needs one or two headers changed. The buffer belongs to the VM
//! and is used again for each request, so nothing is allocated once it has seen a few requests.
//! Names are ours and static; values are checked bytes, see [`is_field_value`].

use std::ops::Range;

/// A reusable list of header edits.
#[derive(Debug, Default)]
pub struct Edits {
    values: Vec<u8>,
    list: Vec<(&'static str, Option<Range<usize>>)>,
}

/// One edit of the request headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Exactly this value remains of the header, whatever was there, however often.
    Set {
        /// Lower-case header name.
        name: &'static str,
        /// A valid HTTP field value, visible ASCII with inner spaces.
        value: &'a [u8],
    },
    /// No copy of the header remains.
    Remove {
        /// Lower-case header name.
        name: &'static str,
    },
}

/// Buffers above this size, in bytes, are given back after the request that needed them: Wasm
/// memory never shrinks, but what is free in it can serve the next allocation.
const KEEP: usize = 32 * 1024;

impl Edits {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all edits and keeps the memory, up to 32 KiB of it.
    pub fn clear(&mut self) {
        self.values.clear();
        if self.values.capacity() > KEEP {
            self.values.shrink_to(KEEP);
        }
        self.list.clear();
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The number of edits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The edits, in the order in which they are to be applied; each name occurs at most once.
    pub fn iter(&self) -> impl Iterator<Item = Edit<'_>> {
        self.list.iter().map(|(name, range)| match range {
            None => Edit::Remove { name },
            Some(range) => {
                Edit::Set { name, value: self.values.get(range.clone()).unwrap_or_default() }
            }
        })
    }

    pub(crate) fn remove(&mut self, name: &'static str) {
        self.list.push((name, None));
    }

    /// Sets `name` to what `write` appends, unless that is `present` already. What is no field
    /// value is not written: the header is removed instead.
    pub(crate) fn set(
        &mut self,
        name: &'static str,
        present: Option<&[u8]>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.put(name, present, write, is_field_value);
    }

    /// The same of ids and flags, which are a field value whatever they are.
    pub(crate) fn set_ids(
        &mut self,
        name: &'static str,
        present: Option<&[u8]>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.put(name, present, write, |value| {
            debug_assert!(is_field_value(value), "{value:?}");
            true
        });
    }

    fn put(
        &mut self,
        name: &'static str,
        present: Option<&[u8]>,
        write: impl FnOnce(&mut Vec<u8>),
        is_valid: impl FnOnce(&[u8]) -> bool,
    ) {
        let start = self.values.len();
        write(&mut self.values);
        let value = self.values.get(start..).unwrap_or_default();
        if present == Some(value) {
            self.values.truncate(start);
        } else if is_valid(value) {
            self.list.push((name, Some(start..self.values.len())));
        } else {
            self.values.truncate(start);
            self.list.push((name, None));
        }
    }
}

/// Whether the bytes are a field value that this crate writes: visible ASCII with spaces inside,
/// not empty. RFC 9110 section 5.5 allows tabs and obs-text too; nothing here has need of them.
#[must_use]
pub fn is_field_value(value: &[u8]) -> bool {
    let (Some(first), Some(last)) = (value.first(), value.last()) else {
        return false;
    };
    *first != b' ' && *last != b' ' && value.iter().all(|c| matches!(c, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_there_already_is_no_edit() {
        let mut edits = Edits::new();
        edits.set("a", Some(b"1"), |out| out.push(b'1'));
        assert!(edits.is_empty());
        edits.set("a", Some(b"0"), |out| out.push(b'1'));
        edits.remove("b");
        let all: Vec<_> = edits.iter().collect();
        assert_eq!(all, [Edit::Set { name: "a", value: b"1" }, Edit::Remove { name: "b" }]);
    }

    #[test]
    fn an_invalid_value_is_never_written() {
        for value in [&b""[..], b" a", b"a ", b"a\r\nb", b"a\tb", b"a\0", b"\x80"] {
            let mut edits = Edits::new();
            edits.set("a", None, |out| out.extend_from_slice(value));
            assert_eq!(edits.iter().next(), Some(Edit::Remove { name: "a" }), "{value:?}");
        }
    }
}
