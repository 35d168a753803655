//! `ring_hash`: Envoy's ketama ring, bit for bit.
//!
//! Same endpoints in the same order, same weights, same function: same ring, so a user who moves
//! over keeps every cache warm. That fixes details that look arbitrary. An entry hashes
//! `address:port_i`; the number of entries is scaled until the lightest endpoint gets a whole
//! number of them; fractions are carried from one endpoint to the next in floating point, which is
//! why the order of the endpoints matters when weights differ. All of it follows `ring_hash_lb.cc`
//! of Envoy 1.40.
//!
//! The ring stands over the endpoints that the registry holds healthy and of a weight above zero,
//! as Envoy's does. An open breaker does not change it: the walk goes on to the next entry of
//! somebody else.
//!
//! A light endpoint makes a large ring: `maximum_ring_size` bounds it, and [`crate::Cost`] knows
//! it.
//!
//! A ring of millions of entries takes most of a second, so it is built in slices, and not by
//! sorting: hashes are spread evenly, so entries are counted by what their hash begins with, laid
//! out in that order, and sorted by the handful. The counts stay as an index for the search.

use xxhash_rust::xxh64::xxh64;

use crate::chunks::Chunks;
use crate::hash::murmur2;
use crate::pace::Pace;
use crate::policy::HashFunction;
use crate::shape::Shape;

/// Entries that share the beginning of their hash, on average.
const HANDFUL: usize = 8;
/// Starts that are made or summed up between two looks at the clock.
const PIECE: usize = 1 << 12;

/// Hashes in order, and for each the place of its endpoint in the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    hashes: Chunks<u64>,
    places: Chunks<u16>,
    /// Where the entries of each handful begin; last, and once more, where all end.
    starts: Vec<u32>,
}

/// A ring on its way.
#[derive(Debug)]
pub(crate) struct RingBuild {
    entries: Entries,
    again: Entries,
    phase: Phase,
    /// Of the starts.
    handfuls: usize,
    ring: Ring,
    handful: Vec<(u64, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Count,
    /// From this handful on, after so many entries.
    Sum(usize, u32),
    Lay,
    Place,
    /// From this handful on.
    Sort(usize),
    Done,
}

/// The entries of a ring, endpoint by endpoint.
#[derive(Clone, Debug)]
struct Entries {
    function: HashFunction,
    keys: std::rc::Rc<[String]>,
    shares: std::rc::Rc<[f64]>,
    scale: f64,
    place: usize,
    /// Of this endpoint's entries; `None` before its first.
    i: Option<u64>,
    current: f64,
    target: f64,
    text: Vec<u8>,
}

/// Entries of a whole ring in which the lightest endpoint has `least` of 1.
pub(crate) fn scale(shape: &Shape, least: f64) -> f64 {
    let (low, high) = (shape.ring.0 as f64, shape.ring.1 as f64);
    ((least * low).ceil() / least).min(high)
}

// === impl Entries ===

impl Entries {
    fn next(&mut self) -> Option<(u64, u16)> {
        loop {
            let (key, share) = (self.keys.get(self.place)?, self.shares.get(self.place)?);
            let i = self.i.unwrap_or_else(|| {
                self.target += self.scale * share;
                0
            });
            if self.current >= self.target {
                self.place += 1;
                self.i = None;
                continue;
            }
            self.i = Some(i + 1);
            self.current += 1.0;
            if i == 0 {
                self.text.clear();
                self.text.extend_from_slice(key.as_bytes());
                self.text.push(b'_');
            }
            self.text.truncate(key.len() + 1);
            self.text.extend_from_slice(decimal(i, &mut [0; 20]));
            let hash = match self.function {
                HashFunction::Xxhash64 => xxh64(&self.text, 0),
                HashFunction::Murmur2 => murmur2(&self.text),
            };
            return Some((hash, self.place as u16));
        }
    }
}

// === impl RingBuild ===

impl RingBuild {
    /// `keys` and their `shares` of 1, in the table's order.
    pub(crate) fn new(shape: &Shape, keys: Vec<String>, shares: &[f64]) -> Self {
        let least = shares.iter().copied().fold(1.0, f64::min);
        let scale = scale(shape, least);
        let none = keys.is_empty() || !scale.is_finite();
        let entries = Entries {
            function: shape.function,
            keys: keys.into(),
            shares: shares.into(),
            scale,
            place: 0,
            i: None,
            current: 0.0,
            target: 0.0,
            text: Vec::with_capacity(64),
        };
        let handfuls = if none { 0 } else { (scale.ceil() as usize / HANDFUL).max(1) };
        Self {
            again: entries.clone(),
            entries,
            phase: if none { Phase::Done } else { Phase::Start },
            handfuls,
            ring: Ring::default(),
            handful: Vec::new(),
        }
    }

    /// Goes on; the ring once it is done.
    pub(crate) fn advance(&mut self, pace: &mut Pace<'_>) -> Option<Ring> {
        loop {
            let next = match self.phase {
                Phase::Start => self.start(pace),
                Phase::Count => self.count(pace),
                Phase::Sum(from, sum) => self.sum(from, sum, pace),
                Phase::Lay => self.lay(pace),
                Phase::Place => self.place(pace),
                Phase::Sort(from) => self.sort(from, pace),
                Phase::Done => return Some(std::mem::take(&mut self.ring)),
            };
            self.phase = next?;
        }
    }

    /// Two more than there are handfuls: counted one place late, what is a start is in its place
    /// once its entries are.
    fn start(&mut self, pace: &mut Pace<'_>) -> Option<Phase> {
        let starts = &mut self.ring.starts;
        let len = self.handfuls + 2;
        starts.reserve_exact(len.saturating_sub(starts.len()));
        while pace.allows(2_048) {
            starts.resize(len.min(starts.len() + PIECE), 0);
            if starts.len() == len {
                return Some(Phase::Count);
            }
        }
        None
    }

    fn count(&mut self, pace: &mut Pace<'_>) -> Option<Phase> {
        while pace.allows(2) {
            let Some((hash, _)) = self.entries.next() else { return Some(Phase::Sum(0, 0)) };
            let late = self.ring.handful(hash) + 2;
            self.ring.starts.get_mut(late).into_iter().for_each(|count| *count += 1);
        }
        None
    }

    fn sum(&mut self, from: usize, sum: u32, pace: &mut Pace<'_>) -> Option<Phase> {
        let (mut from, mut sum) = (from, sum);
        while pace.allows(2_048) {
            let rest = self.ring.starts.get_mut(from..).unwrap_or_default();
            if rest.is_empty() {
                return Some(Phase::Lay);
            }
            for start in rest.iter_mut().take(PIECE) {
                sum += *start;
                *start = sum;
            }
            from += PIECE;
        }
        self.phase = Phase::Sum(from, sum);
        None
    }

    fn lay(&mut self, pace: &mut Pace<'_>) -> Option<Phase> {
        let len = self.ring.starts.last().map_or(0, |&len| len as usize);
        while pace.allows(2_048) {
            let left = self.ring.hashes.grow(len, 0) + self.ring.places.grow(len, 0);
            if left == 0 {
                return Some(Phase::Place);
            }
        }
        None
    }

    fn place(&mut self, pace: &mut Pace<'_>) -> Option<Phase> {
        while pace.allows(4) {
            let Some((hash, place)) = self.again.next() else { return Some(Phase::Sort(0)) };
            let late = self.ring.handful(hash) + 1;
            if let Some(start) = self.ring.starts.get_mut(late) {
                let at = *start as usize;
                *start += 1;
                self.ring.hashes.get_mut(at).into_iter().for_each(|at| *at = hash);
                self.ring.places.get_mut(at).into_iter().for_each(|at| *at = place);
            }
        }
        None
    }

    fn sort(&mut self, from: usize, pace: &mut Pace<'_>) -> Option<Phase> {
        let mut from = from;
        while pace.allows(16) {
            if from == self.handfuls {
                return Some(Phase::Done);
            }
            let range = self.ring.range(from).unwrap_or_default();
            let Ring { hashes, places, .. } = &mut self.ring;
            self.handful.clear();
            let entry = |at| Some((hashes.get(at)?, places.get(at)?));
            self.handful.extend(range.clone().filter_map(entry));
            self.handful.sort_unstable_by_key(|&(hash, _)| hash);
            for (at, &(hash, place)) in range.zip(&self.handful) {
                hashes.get_mut(at).into_iter().for_each(|at| *at = hash);
                places.get_mut(at).into_iter().for_each(|at| *at = place);
            }
            from += 1;
        }
        self.phase = Phase::Sort(from);
        None
    }
}

// === impl Ring ===

impl Ring {
    pub(crate) const fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Which handful a hash is in; they are in the order of their hashes.
    #[inline]
    fn handful(&self, hash: u64) -> usize {
        let handfuls = self.starts.len().saturating_sub(2) as u64;
        ((hash >> 32).wrapping_mul(handfuls) >> 32) as usize
    }

    #[inline]
    fn range(&self, handful: usize) -> Option<std::ops::Range<usize>> {
        let (from, to) = (self.starts.get(handful)?, self.starts.get(handful + 1)?);
        Some(*from as usize..*to as usize)
    }

    /// The entry that owns `hash`: the first at or after it, around the end.
    #[inline]
    pub(crate) fn locate(&self, hash: u64) -> usize {
        let mut range = self.range(self.handful(hash)).unwrap_or_default();
        let end = range.end;
        let at = range.find(|&at| self.hashes.get(at).is_none_or(|h| h >= hash)).unwrap_or(end);
        if at >= self.len() { 0 } else { at }
    }

    /// Whose entry it is.
    #[inline]
    pub(crate) fn at(&self, entry: usize) -> Option<u32> {
        self.places.get(entry).map(u32::from)
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
