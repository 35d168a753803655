//! `maglev`: Envoy's Maglev table, bit for bit.
//!
//! Each endpoint walks its own permutation of the table, given by two xxHash64 of `address:port`
//! (seeds 0 and 1), and they take free places in turns; an endpoint of a third of the heaviest's
//! weight takes a place in every third turn. Endpoints go in the order of their address's text, so
//! the registry's order does not matter. All of it follows `maglev_lb.cc` of Envoy 1.40, whose
//! compact form holds the same.
//!
//! Envoy asks every endpoint in every turn whether it is due, which takes a second when one of
//! 10,000 weighs as much as the rest together. Here a heap knows who is due next; the answers are
//! the same, because the turn is found by the same comparison in floating point.
//!
//! A table of millions takes a fifth of a second, so it is built in slices.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh64::xxh64;

use crate::chunks::Chunks;
use crate::pace::Pace;

/// For each place, which endpoint of the list. 16 bits hold [`pintle_contract::MAX_ENDPOINTS`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Maglev {
    places: Chunks<u16>,
}

const FREE: u16 = u16::MAX;

/// A table on its way.
#[derive(Debug)]
pub(crate) struct MaglevBuild {
    size: u64,
    most: f64,
    walkers: Vec<Walker>,
    due: BinaryHeap<Reverse<(u64, usize)>>,
    /// Who looks for a free place, and in which turn.
    looking: Option<(u64, usize)>,
    free: u64,
    places: Chunks<u16>,
}

#[derive(Debug)]
struct Walker {
    place: u16,
    share: f64,
    offset: u64,
    skip: u64,
    next: u64,
    target: f64,
}

impl MaglevBuild {
    /// `keys` and their `shares` of 1; `size` is a prime.
    pub(crate) fn new(size: u64, keys: &[String], shares: &[f64]) -> Self {
        let most = shares.iter().copied().fold(0.0, f64::max);
        let mut order: Vec<(&str, u16, f64)> = keys
            .iter()
            .zip(shares)
            .enumerate()
            .filter_map(|(i, (key, &share))| Some((key.as_str(), u16::try_from(i).ok()?, share)))
            .collect();
        order.sort_by(|a, b| a.0.cmp(b.0).then(a.1.cmp(&b.1)));
        let walker = |(key, place, share): (&str, u16, f64)| Walker {
            place,
            share,
            offset: xxh64(key.as_bytes(), 0) % size,
            skip: xxh64(key.as_bytes(), 1) % (size - 1).max(1) + 1,
            next: 0,
            target: 0.0,
        };
        let walkers: Vec<Walker> = order.into_iter().map(walker).collect();
        let size = if most > 0.0 { size } else { 0 };
        Self {
            size,
            most,
            due: (0..walkers.len()).map(|i| Reverse((1, i))).collect(),
            looking: None,
            free: size,
            places: Chunks::default(),
            walkers,
        }
    }

    /// Goes on; the table once it is done.
    pub(crate) fn advance(&mut self, pace: &mut Pace<'_>) -> Option<Maglev> {
        while self.places.len() < self.size as usize {
            if !pace.allows(1_024) {
                return None;
            }
            self.places.grow(self.size as usize, FREE);
        }
        while self.free > 0 {
            let next = || self.due.pop().map(|Reverse(next)| next);
            let Some((turn, i)) = self.looking.take().or_else(next) else { break };
            let Some(walker) = self.walkers.get_mut(i) else { break };
            loop {
                if !pace.allows(1) {
                    self.looking = Some((turn, i));
                    return None;
                }
                let at = (walker.offset + walker.skip * walker.next) % self.size;
                walker.next += 1;
                if let Some(place) = self.places.get_mut(at as usize)
                    && *place == FREE
                {
                    *place = walker.place;
                    break;
                }
            }
            walker.target += self.most;
            self.free -= 1;
            self.due.push(Reverse((walker.due().max(turn + 1), i)));
        }
        Some(Maglev { places: std::mem::take(&mut self.places) })
    }
}

impl Maglev {
    pub(crate) const fn len(&self) -> usize {
        self.places.len()
    }

    #[inline]
    pub(crate) fn locate(&self, hash: u64) -> usize {
        hash.checked_rem(self.places.len() as u64).unwrap_or(0) as usize
    }

    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<u32> {
        self.places.get(place).map(u32::from)
    }
}

impl Walker {
    /// The first turn in which Envoy's `turn * share < target` is false.
    fn due(&self) -> u64 {
        let mut turn = (self.target / self.share).ceil().max(1.0) as u64;
        while turn > 1 && (turn - 1) as f64 * self.share >= self.target {
            turn -= 1;
        }
        while (turn as f64) * self.share < self.target {
            turn += 1;
        }
        turn
    }
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
