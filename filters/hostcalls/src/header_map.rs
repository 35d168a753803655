//! A header map as the ABI lays it out: the count, the lengths of every name and value, then names
//! and values with a NUL behind each. Read in place; nothing is copied and nothing is believed.

/// All headers of a map, in order.
#[derive(Debug)]
pub struct HeaderMap {
    bytes: Vec<u8>,
}

impl HeaderMap {
    pub(crate) const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Names (lower-case, as Envoy keeps them) and raw values. Ends early where the block is cut.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let (count, rest) = self.bytes.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let sizes = usize::try_from(u32::from_le_bytes(*count)).unwrap_or_default();
        let cut = sizes.checked_mul(SIZES).and_then(|end| rest.split_at_checked(end));
        let (sizes, texts) = cut.unwrap_or_default();
        sizes.chunks_exact(SIZES).scan(texts, |texts, sizes| {
            let (name, sizes) = sizes.split_first_chunk()?;
            let name = text(texts, name)?;
            Some((name, text(texts, sizes.first_chunk()?)?))
        })
    }

    /// The first value of `name`, which must be lower-case.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| value)
    }
}

/// Bytes of the sizes of a name and its value.
const SIZES: usize = 8;

/// The text of this size, and the NUL behind it, off the beginning of `texts`.
fn text<'a>(texts: &mut &'a [u8], size: &[u8; 4]) -> Option<&'a [u8]> {
    let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
    let (text, rest) = texts.split_at_checked(size)?;
    let (_nul, rest) = rest.split_first()?;
    *texts = rest;
    Some(text)
}

pub(crate) fn serialize(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    let size = |len: usize| u32::try_from(len).unwrap_or(0).to_le_bytes();
    out.extend_from_slice(&size(pairs.len()));
    for (name, value) in pairs {
        out.extend_from_slice(&size(name.len()));
        out.extend_from_slice(&size(value.len()));
    }
    for (name, value) in pairs {
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    }
    out
}
