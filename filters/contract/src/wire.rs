//! The bytes: how every type of the contract is written and, totally and boundedly, read back.
//!
//! Own code rather than a serialisation crate, because these bytes cross a trust boundary three
//! times (the stream, shared data, the queues) and are decoded in the proxy: whatever they say,
//! reading costs at most their length and ends in a value or a [`DecodeError`]. Integers are
//! LEB128, lists and strings carry their length, and every value has exactly one encoding, so that
//! equal values are equal bytes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeError {
    /// Ended inside a value.
    Truncated,
    /// Bytes remain after the last value.
    Trailing,
    /// Does not begin with the magic.
    Magic,
    /// Written by a schema that this build does not know.
    Schema(u8),
    /// A kind of message that this build does not know.
    Kind(u8),
    /// The length field and the length differ.
    Length,
    /// The checksum does not match.
    Checksum,
    /// A list, string or frame over its bound.
    TooLong,
    /// Not UTF-8 where text is due.
    Text,
    /// A field outside of what it accepts; the name of the field.
    Invalid(&'static str),
}

impl DecodeError {
    /// A stable word for counters; one of nine.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Trailing => "trailing",
            Self::Magic => "magic",
            Self::Schema(_) => "schema",
            Self::Kind(_) => "kind",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::TooLong => "too_long",
            Self::Text => "text",
            Self::Invalid(_) => "invalid",
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schema(schema) => write!(f, "schema {schema} is not known here"),
            Self::Kind(kind) => write!(f, "message kind {kind} is not known here"),
            Self::Invalid(field) => write!(f, "{field} is out of range"),
            other => f.write_str(other.reason()),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Reads values off the front of borrowed bytes.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The bytes of a text, not looked into.
    pub(crate) fn text(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.length()?;
        self.bytes(length)
    }

    pub(crate) const fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(first)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?.try_into().map_err(|_| DecodeError::Truncated)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit, and a last byte of zero would be a second
            // encoding of a shorter number.
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return Err(DecodeError::Invalid("integer"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid("integer"))
    }

    /// A length that the remaining bytes can still hold, at one byte an item.
    pub(crate) fn length(&mut self) -> Result<usize, DecodeError> {
        let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::TooLong)?;
        if length > self.rest.len() { Err(DecodeError::Truncated) } else { Ok(length) }
    }
}

/// A value with one encoding.
pub(crate) trait Wire: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

impl Wire for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        let mut rest = *self;
        while rest >= 0x80 {
            out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.varint()
    }
}

macro_rules! narrower {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                u64::from(*self).put(out);
            }

            fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("integer"))
            }
        }
    )*};
}
narrower!(u16, u32);

impl Wire for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.byte()
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("flag")),
        }
    }
}

impl Wire for String {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = reader.text()?;
        std::str::from_utf8(bytes).map(ToOwned::to_owned).map_err(|_| DecodeError::Text)
    }
}

impl Wire for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(v4) => {
                out.push(4);
                out.extend_from_slice(&v4.octets());
            }
            Self::V6(v6) => {
                out.push(6);
                out.extend_from_slice(&v6.octets());
            }
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.byte()? {
            4 => Ok(Self::V4(Ipv4Addr::from(reader.array::<4>()?))),
            6 => Ok(Self::V6(Ipv6Addr::from(reader.array::<16>()?))),
            _ => Err(DecodeError::Invalid("address")),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        for item in self {
            item.put(out);
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let length = reader.length()?;
        // The length is believed only as far as bytes back it; growth follows what was read.
        let mut items = Self::with_capacity(length.min(1024));
        for _ in 0..length {
            items.push(T::take(reader)?);
        }
        Ok(items)
    }
}

impl<T: Wire> Wire for Arc<[T]> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u64).put(out);
        for item in self.iter() {
            item.put(out);
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Vec::take(reader).map(Into::into)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if bool::take(reader)? { T::take(reader).map(Some) } else { Ok(None) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::take(reader)?, B::take(reader)?))
    }
}

/// Fields one after the other, in the order given.
macro_rules! wire_struct {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn take(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::DecodeError> {
                Ok(Self { $($field: $crate::wire::Wire::take(reader)?),* })
            }
        }
    };
}
pub(crate) use wire_struct;

/// One byte naming the variant.
macro_rules! wire_enum {
    ($name:ident, $what:literal { $($variant:ident = $code:literal),* $(,)? }) => {
        impl $crate::wire::Wire for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(match self { $(Self::$variant => $code),* });
            }

            fn take(reader: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::DecodeError> {
                match reader.byte()? {
                    $($code => Ok(Self::$variant),)*
                    _ => Err($crate::DecodeError::Invalid($what)),
                }
            }
        }
    };
}
pub(crate) use wire_enum;
