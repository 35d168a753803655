//! `ring_hash`: Envoy's ketama ring, bit for bit.
//!
//! Same endpoints in the same order, same weights, same function: same ring, so a user who moves over
//! keeps every cache warm. That fixes details that look arbitrary. An entry hashes `address:port_i`; the
//! number of entries is scaled until the lightest endpoint gets a whole number of them; fractions are
//! carried from one endpoint to the next in floating point, which is why the order of the endpoints
//! matters when weights differ. All of it follows `ring_hash_lb.cc` of Envoy 1.40.
//!
//! The ring stands over the endpoints that the registry holds healthy and of a weight above zero, as Envoy's
//! does. An open breaker does not change it: the walk goes on to the next entry of somebody else.
//!
//! A light endpoint makes a large ring: weights 1 and 1000 among 10,000 endpoints ask for millions
//! of entries at 16 bytes. `maximum_ring_size` bounds it.

use xxhash_rust::xxh64::xxh64;

use crate::hash::murmur2;
use crate::policy::{HashFunction, Policy};

/// (hash, place in the list of endpoints), sorted by hash.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    entries: Vec<(u64, u32)>,
}

impl Ring {
    /// `keys` and their `shares` of 1, in the table's order.
    pub(crate) fn build(policy: &Policy, keys: &[String], shares: &[f64]) -> Self {
        let least = shares.iter().copied().fold(1.0, f64::min);
        let (low, high) = (policy.minimum_ring_size as f64, policy.maximum_ring_size as f64);
        let scale = ((least * low).ceil() / least).min(high);
        if keys.is_empty() || !scale.is_finite() {
            return Self { entries: Vec::new() };
        }
        let mut entries = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        let mut text = Vec::with_capacity(64);
        for ((place, key), share) in (0_u32..).zip(keys).zip(shares) {
            target += scale * share;
            let mut i = 0_u64;
            while current < target {
                text.clear();
                text.extend_from_slice(key.as_bytes());
                text.push(b'_');
                text.extend_from_slice(decimal(i, &mut [0; 20]));
                let hash = match policy.hash_function {
                    HashFunction::Xxhash64 => xxh64(&text, 0),
                    HashFunction::Murmur2 => murmur2(&text),
                };
                entries.push((hash, place));
                i += 1;
                current += 1.0;
            }
        }
        entries.sort_unstable_by_key(|&(hash, _)| hash);
        Self { entries }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry that owns `hash`: the first at or after it, around the end.
    pub(crate) fn locate(&self, hash: u64) -> usize {
        let at = self.entries.partition_point(|&(h, _)| h < hash);
        if at == self.entries.len() { 0 } else { at }
    }

    /// Whose entry it is.
    pub(crate) fn at(&self, entry: usize) -> Option<u32> {
        self.entries.get(entry).map(|&(_, place)| place)
    }
}

/// The digits of `i`, without the formatting machinery: a ring is millions of them.
fn decimal(mut i: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        if let Some(digit) = buffer.get_mut(start) {
            *digit = b'0' + (i % 10) as u8;
        }
        i /= 10;
        if i == 0 {
            return buffer.get(start..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
#[path = "ring_hash_tests.rs"]
mod tests;
