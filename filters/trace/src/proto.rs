//! The wire form of Protocol Buffers, as much of it as OTLP needs.
//!
//! Written by hand because the alternative, generated types, would build a tree of `String`s and
//! `Vec`s for each span only to walk it once. A nested message is written in place: room is left
//! for the length that is usual, and only a message of another length moves its tail. An attribute
//! is written in two copies, because what its key settles is laid out at compile time ([`Key`]): a
//! span has a dozen of them, and each copy in Wasm is a call.

/// Appends fields to a buffer.
pub(crate) struct Writer<'a>(pub(crate) &'a mut Vec<u8>);

impl Writer<'_> {
    fn tag(&mut self, field: u32, wire: u32) {
        varint(self.0, u64::from((field << 3) | wire));
    }

    /// A field of type int or enum; zero, the default, is written too.
    pub(crate) fn uint(&mut self, field: u32, value: u64) {
        self.tag(field, 0);
        varint(self.0, value);
    }

    /// A field of type fixed64.
    pub(crate) fn fixed64(&mut self, field: u32, value: u64) {
        self.tag(field, 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A field of type fixed32.
    pub(crate) fn fixed32(&mut self, field: u32, value: u32) {
        self.tag(field, 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A field of type bytes.
    pub(crate) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.tag(field, 2);
        varint(self.0, value.len() as u64);
        self.0.extend_from_slice(value);
    }

    /// A field of type string, of at most `max` bytes, from bytes that need not be UTF-8.
    pub(crate) fn text(&mut self, field: u32, value: &[u8], max: usize) {
        if value.len() <= max && std::str::from_utf8(value).is_ok() {
            self.bytes(field, value);
        } else {
            self.message(field, |w| lossy(w.0, value, max));
        }
    }

    /// A nested message, or a string, of which `write` appends the content; usually below 128
    /// bytes.
    pub(crate) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer<'_>)) {
        self.nested(field, [0; 1], write);
    }

    /// A nested message that usually has 128 bytes or more, and less than 16 KiB.
    pub(crate) fn large_message(&mut self, field: u32, write: impl FnOnce(&mut Writer<'_>)) {
        self.nested(field, [0; 2], write);
    }

    fn nested<const N: usize>(
        &mut self,
        field: u32,
        room: [u8; N],
        write: impl FnOnce(&mut Writer<'_>),
    ) {
        self.tag(field, 2);
        let at = self.0.len();
        self.0.extend_from_slice(&room);
        let start = self.0.len();
        write(&mut Writer(self.0));
        let size = self.0.len().saturating_sub(start);
        let (length, used) = encode_varint(size as u64);
        if let (true, Some(room), Some(length)) =
            (used == N, self.0.get_mut(at..start), length.first_chunk::<N>())
        {
            room.copy_from_slice(length);
            return;
        }
        let length = length.get(..used).unwrap_or_default();
        self.0.splice(at..start, length.iter().copied());
    }

    /// The attribute `key` of a span with a string of at most `max` bytes, from bytes that need not
    /// be UTF-8.
    pub(crate) fn attribute(&mut self, key: Key, value: &[u8], max: usize) {
        let start = self.0.len();
        let end = start.saturating_add(key.0.len());
        let short = value.len().saturating_add(key.0.len()) < 0x80 && value.len() <= max;
        if !short || std::str::from_utf8(value).is_err() {
            return self.attribute_of(key, |w| w.text(1, value, max));
        }
        self.0.extend_from_slice(key.0);
        self.0.extend_from_slice(value);
        let size = |of: usize| u8::try_from(value.len().saturating_add(of)).unwrap_or_default();
        let all = size(key.0.len().saturating_sub(2));
        if let Some([_, attribute, .., any, _, text]) = self.0.get_mut(start..end) {
            (*attribute, *any, *text) = (all, size(2), size(0));
        }
    }

    /// The attribute `key` of a span with a number.
    pub(crate) fn attribute_uint(&mut self, key: Key, value: u64) {
        let (number, used) = encode_varint(value);
        let size = |of: usize| u8::try_from(used.saturating_add(of)).unwrap_or_default();
        let field = key.field();
        self.0
            .extend_from_slice(&[(ATTRIBUTES << 3 | 2) as u8, size(field.len().saturating_add(3))]);
        self.0.extend_from_slice(field);
        self.0.extend_from_slice(&[2 << 3 | 2, size(1), 3 << 3]);
        self.0.extend_from_slice(number.get(..used).unwrap_or_default());
    }

    /// The attribute `key` of a span, of whose `AnyValue` `write` appends the content.
    pub(crate) fn attribute_of(&mut self, key: Key, write: impl FnOnce(&mut Writer<'_>)) {
        self.message(ATTRIBUTES, |w| {
            w.0.extend_from_slice(key.field());
            w.message(2, write);
        });
    }
}

/// `Span.attributes`.
const ATTRIBUTES: u32 = 9;

/// A string attribute's bytes without the string: tag and size of the attribute, the key with its
/// tag and size, tag and size of the `AnyValue`, tag and size of its string. The three sizes that
/// depend on the string are zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key(&'static [u8]);

impl Key {
    /// To be had by [`key!`], which counts.
    pub(crate) const fn new(bytes: &'static [u8]) -> Self {
        Self(bytes)
    }

    /// `KeyValue.key`, tag and size with it.
    fn field(self) -> &'static [u8] {
        self.0.get(2..self.0.len().saturating_sub(4)).unwrap_or_default()
    }

    /// Lays the bytes out; `N` is the name's length and [`Self::AROUND`].
    #[expect(
        clippy::indexing_slicing,
        reason = "run by the compiler, which refuses what is outside"
    )]
    pub(crate) const fn layout<const N: usize>(name: &str) -> [u8; N] {
        let name = name.as_bytes();
        assert!(name.len() + Self::AROUND == N && name.len() < 0x60, "a short name");
        let mut bytes = [0; N];
        bytes[0] = (ATTRIBUTES << 3 | 2) as u8;
        bytes[2] = 1 << 3 | 2;
        bytes[3] = name.len() as u8;
        let mut at = 0;
        while at < name.len() {
            bytes[4 + at] = name[at];
            at += 1;
        }
        bytes[N - 4] = 2 << 3 | 2;
        bytes[N - 2] = 1 << 3 | 2;
        bytes
    }

    /// Bytes beside the name.
    pub(crate) const AROUND: usize = 8;
}

/// The [`Key`] of this name.
macro_rules! key {
    ($name:literal) => {{
        const BYTES: [u8; $name.len() + Key::AROUND] = Key::layout($name);
        Key::new(&BYTES)
    }};
}
pub(crate) use key;

/// Appends `value` as at most `max` bytes of UTF-8, cut at a character's border; what is no UTF-8
/// becomes U+FFFD.
pub(crate) fn lossy(out: &mut Vec<u8>, value: &[u8], max: usize) {
    const REPLACEMENT: &str = "\u{fffd}";
    // Nothing gets shorter, so that no character from behind `max` has room; the last before it is
    // seen whole, or it would pass for malformed.
    let near = value.get(..max.saturating_add(3)).unwrap_or(value);
    let mut room = max;
    for chunk in near.utf8_chunks() {
        let replacement = if chunk.invalid().is_empty() { "" } else { REPLACEMENT };
        for text in [chunk.valid(), replacement] {
            let whole = text.get(..text.floor_char_boundary(room)).unwrap_or_default();
            out.extend_from_slice(whole.as_bytes());
            if whole.len() < text.len() {
                return;
            }
            room = room.saturating_sub(whole.len());
        }
    }
}

/// Appends a variable-length number.
pub(crate) fn varint(out: &mut Vec<u8>, value: u64) {
    if let Ok(byte @ ..0x80) = u8::try_from(value) {
        return out.push(byte);
    }
    let (bytes, used) = encode_varint(value);
    out.extend_from_slice(bytes.get(..used).unwrap_or_default());
}

fn encode_varint(mut value: u64) -> ([u8; 10], usize) {
    let mut bytes = [0; 10];
    let mut used = 0_usize;
    for byte in &mut bytes {
        used = used.saturating_add(1);
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            *byte = low;
            break;
        }
        *byte = low | 0x80;
    }
    (bytes, used)
}

/// Reads fields from bytes that anyone may have sent: `None` ends the reading, nothing panics.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

/// One field of a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A variable-length number.
    Varint(u64),
    /// Bytes, a string or a message.
    Bytes(&'a [u8]),
    /// A fixed-width number, of no interest here.
    Fixed,
}

impl<'a> Iterator for Reader<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let size = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(size)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return None };
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}
