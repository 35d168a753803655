//! What a request hashes to: Envoy's `hash_policy`, value for value.
//!
//! Every part is xxHash64 with seed 0 of the bytes that Envoy hashes. Several parts combine as
//! Envoy combines them: the hash so far is rotated left by one and xored with the next, a part that
//! is absent is passed over, and a `terminal` part ends the search once there is a hash. So
//! `[{"header": "x-user"}, {"source_address": true}]` hashes both; with `"terminal": true` on the
//! first it means "the user if known, else the address".
//!
//! Two things differ. A header sent several times is seen here as Envoy's Wasm ABI joins it, where
//! the native policy hashes its sorted values. A generated cookie is random instead of a hash of
//! the connection's two addresses: behind a proxy those are the same for thousands of users.

use rand::Rng;
use xxhash_rust::xxh64::xxh64;

use crate::policy::{Cookie, HashSource, Policy};

/// What a hash key and a subset are read from.
pub trait RequestView {
    /// A header by its lower-case name, pseudo-headers included.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The client's address without the port, as text.
    fn source_address(&self) -> Option<&[u8]>;
}

/// What [`hash_key`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashKey {
    /// `None`: nothing to hash, choose as `p2c`.
    pub hash: Option<u64>,
    /// The value of a `set-cookie` header to add to the response.
    pub set_cookie: Option<String>,
}

/// Hashes the request as the policy says. Allocates only for a cookie to set.
pub fn hash_key(policy: &Policy, request: &impl RequestView, rng: &mut impl Rng) -> HashKey {
    let mut key = HashKey::default();
    for part in &policy.hash_key {
        let found = match &part.source {
            HashSource::Header(name) => request.header(name).map(xx),
            HashSource::Cookie(cookie) => cookie_hash(cookie, request, rng, &mut key.set_cookie),
            HashSource::Query(name) => {
                request.header(":path").and_then(|p| query(p, name.as_bytes())).map(xx)
            }
            HashSource::Path => request
                .header(":path")
                .map(|p| xx(p.split(|&b| b == b'?').next().unwrap_or_default())),
            HashSource::SourceAddress => request.source_address().filter(|a| !a.is_empty()).map(xx),
        };
        if let Some(found) = found {
            key.hash = Some(key.hash.map_or(0, |h| h.rotate_left(1)) ^ found);
        }
        if part.terminal && key.hash.is_some() {
            break;
        }
    }
    key
}

fn xx(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

fn cookie_hash(
    cookie: &Cookie,
    request: &impl RequestView,
    rng: &mut impl Rng,
    set: &mut Option<String>,
) -> Option<u64> {
    let value = request.header("cookie").and_then(|c| cookie_value(c, cookie.name.as_bytes()));
    if let Some(value) = value.filter(|v| !v.is_empty()) {
        return Some(xx(value));
    }
    cookie.ttl?;
    let value = format!("{:016x}", rng.next_u64());
    // Two generated cookies in one policy would need two headers; the first is the one that sticks.
    set.get_or_insert_with(|| cookie.set(&value));
    Some(xx(value.as_bytes()))
}

impl Cookie {
    /// The value of a `set-cookie` header, in Envoy's form.
    #[must_use]
    pub fn set(&self, value: &str) -> String {
        let mut text = format!("{}=\"{value}\"", self.name);
        if let Some(ttl) = self.ttl.filter(|ttl| ttl.as_secs() > 0) {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if !self.path.is_empty() {
            text.push_str("; Path=");
            text.push_str(&self.path);
        }
        text.push_str("; HttpOnly");
        text
    }
}

/// The first cookie of that name, without the quotes around it.
///
/// Eight bytes at a time: cookies may be 60 KiB, and byte by byte, or pair by pair, they cost more
/// than all else that is done for a request.
pub(crate) fn cookie_value<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let first = *name.first()?;
    if let Some(value) = pair_value(header, name) {
        return Some(value);
    }
    let (words, tail) = header.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let mut found = semicolons(*word);
        while found != 0 {
            let at = i.wrapping_mul(8).wrapping_add((found.trailing_zeros() >> 3) as usize);
            found &= found.wrapping_sub(1);
            // Nearly always there is one space, and another name behind it.
            if let Some([_, b' ', other, ..]) = header.get(at..)
                && *other > b' '
                && *other != first
            {
                continue;
            }
            if let Some(value) = pair_value(header.get(at.wrapping_add(1)..)?, name) {
                return Some(value);
            }
        }
    }
    let mut rest = tail;
    while let Some(at) = rest.iter().position(|&b| b == b';') {
        rest = rest.get(at.wrapping_add(1)..)?;
        if let Some(value) = pair_value(rest, name) {
            return Some(value);
        }
    }
    None
}

/// The value of the pair that begins here, if it is the one of that name.
#[inline(never)]
fn pair_value<'a>(rest: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = rest.trim_ascii_start().strip_prefix(name)?.strip_prefix(b"=")?;
    let (words, tail) = value.as_chunks::<8>();
    let whole = words.iter().take_while(|word| semicolons(**word) == 0).count() * 8;
    let rest = value.get(whole..).unwrap_or(tail);
    let end = whole + rest.iter().position(|&b| b == b';').unwrap_or(rest.len());
    let value = value.get(..end).unwrap_or(value);
    let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
    Some(bare.unwrap_or(value))
}

/// The high bit of each byte that is a semicolon.
const fn semicolons(word: [u8; 8]) -> u64 {
    const LOW: u64 = u64::MAX / 0xff * 0x7f;
    let zero_there = u64::from_le_bytes(word) ^ (u64::MAX / 0xff * 0x3b);
    !((zero_there & LOW).wrapping_add(LOW) | zero_there | LOW)
}

/// The first parameter of that name, undecoded as in Envoy; one without `=` is empty.
fn query<'a>(path: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let start = path.iter().position(|&b| b == b'?')? + 1;
    for pair in path.get(start..)?.split(|&b| b == b'&') {
        let at = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
        if pair.get(..at) == Some(name) {
            return Some(pair.get(at + 1..).unwrap_or_default());
        }
    }
    None
}

/// The 64-bit murmur 2 of libstdc++'s `_Hash_bytes`, which Envoy uses with this seed for its ring.
pub(crate) fn murmur2(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MUL);
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        let data = mix(u64::from_le_bytes(*word).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    if !tail.is_empty() {
        let data = tail.iter().rev().fold(0, |data, &b| (data << 8) | u64::from(b));
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
#[path = "hash_tests.rs"]
mod tests;
