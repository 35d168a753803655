//! A header map as the ABI lays it out: the count, the lengths of every name and value, then names and
//! values with a NUL behind each. Read in place; nothing is copied and nothing is believed.

/// All headers of a map, in order.
#[derive(Debug)]
pub struct Pairs {
    bytes: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*field)).ok()
}

impl Pairs {
    pub(crate) const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Names (lower-case, as Envoy keeps them) and raw values. Ends early where the block is cut.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        let count = u32_at(&self.bytes, 0).unwrap_or(0);
        let data = count.saturating_mul(8).saturating_add(4);
        (0..count).scan(data, |at, index| {
            let lengths = index.saturating_mul(8).saturating_add(4);
            let name_size = u32_at(&self.bytes, lengths)?;
            let value_size = u32_at(&self.bytes, lengths.saturating_add(4))?;
            let name_end = at.checked_add(name_size)?;
            let value_start = name_end.checked_add(1)?;
            let value_end = value_start.checked_add(value_size)?;
            let name = self.bytes.get(*at..name_end)?;
            let value = self.bytes.get(value_start..value_end)?;
            *at = value_end.checked_add(1)?;
            Some((name, value))
        })
    }

    /// The first value of `name`, which must be lower-case.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| value)
    }
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
