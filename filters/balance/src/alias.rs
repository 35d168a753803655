//! A weighted draw in constant time: Walker's alias table as Vose builds it.
//!
//! Every place holds a threshold and an alias, so a draw is 32 random bits, one load and one
//! comparison, whatever the weights are.
//!
//! Chance alone leaves one of a hundred equal endpoints unasked for five rounds, so there are turns
//! as well ([`Alias::next`]): every place comes once a round, each half of the round in an order of
//! its own, and which of its two items it is follows a sequence that fills the range evenly. Nobody
//! waits longer than one and a half rounds, and nothing in the traffic can fall into step.

use std::hint::select_unpredictable;

#[derive(Clone, Debug, Default)]
pub(crate) struct Alias {
    places: Vec<Place>,
    /// Whose turn it is.
    at: usize,
    /// Where in the range of thresholds this round is.
    round: u32,
}

/// 2^32 over the golden ratio: its multiples fill the range as evenly as any sequence does.
const GOLDEN: u32 = 0x9e37_79b9;
/// Spreads the places over the range.
const SPREAD: u32 = 0x85eb_ca6b;

/// Both choices are in the place itself: at 10,000 endpoints every further look-up is a cache miss.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// For 32 random bits; at or above it is `other`.
    threshold: u32,
    own: u16,
    other: u16,
}

impl Alias {
    /// Over `items` and their weights, all above zero.
    pub(crate) fn build(items: impl ExactSizeIterator<Item = (u16, u64)>) -> Self {
        let n = items.len() as f64;
        let mut places = Vec::with_capacity(items.len());
        let mut shares = Vec::with_capacity(items.len());
        for (item, weight) in items {
            places.push(Place { threshold: u32::MAX, own: item, other: item });
            shares.push(weight as f64);
        }
        let total: f64 = shares.iter().sum();
        if total <= 0.0 {
            return Self { places, ..Self::default() };
        }
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (i, share) in shares.iter_mut().enumerate() {
            *share *= n / total;
            if *share < 1.0 { small.push(i) } else { large.push(i) }
        }
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            let share = shares.get(less).copied().unwrap_or(1.0);
            let giver = places.get(more).map_or(0, |p| p.own);
            if let Some(place) = places.get_mut(less) {
                place.threshold = (share * 4_294_967_296.0) as u32;
                place.other = giver;
            }
            if let Some(rest) = shares.get_mut(more) {
                *rest -= 1.0 - share;
                if *rest < 1.0 {
                    large.pop();
                    small.push(more);
                }
            }
        }
        Self { places, ..Self::default() }
    }

    /// The item whose turn it is; `bits` are random and shuffle this half of the round.
    #[inline]
    pub(crate) fn next(&mut self, bits: u32) -> Option<u32> {
        let n = self.places.len();
        if self.at >= n {
            self.at = 0;
            self.round = self.round.wrapping_add(GOLDEN);
        }
        let half = n.div_ceil(2);
        let end = if self.at < half { half } else { n };
        let other = self.at + scale(bits, end - self.at);
        if other < n {
            self.places.swap(self.at, other);
        }
        let place = *self.places.get(self.at)?;
        self.at += 1;
        let into = u32::from(place.own).wrapping_mul(SPREAD).wrapping_add(self.round);
        Some(select_unpredictable(into < place.threshold, place.own, place.other).into())
    }

    /// An item by weight, from 32 random bits; `None` when there is none. Shares are kept to
    /// `n / 2^32` of a place.
    #[inline]
    pub(crate) fn draw(&self, bits: u32) -> Option<u32> {
        // The place, and how far into it.
        let product = u64::from(bits) * self.places.len() as u64;
        let place = self.places.get((product >> 32) as usize)?;
        // A branch here would be mispredicted half of the time.
        let own = (product as u32) < place.threshold;
        Some(select_unpredictable(own, place.own, place.other).into())
    }
}

/// 32 random bits to `0..n`, without a division. The bias is `n / 2^32`.
#[inline]
pub(crate) const fn scale(bits: u32, n: usize) -> usize {
    ((bits as u64 * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::Dice;

    #[test]
    fn equal_items_wait_a_round_and_a_half_at_most() {
        let mut table = Alias::build((0..10).map(|i| (i, 7)).collect::<Vec<_>>().into_iter());
        let mut rng = Dice::seed_from_u64(3);
        let mut last = [0; 10];
        for turn in 1..5_000 {
            let i = table.next(rng.next_u32()).unwrap() as usize;
            assert!(turn - last[i] <= 15, "{i}: {}", turn - last[i]);
            last[i] = turn;
        }
    }

    proptest! {
        #[test]
        fn turns_follow_the_weights(weights in prop::collection::vec(1_u64..100, 1..20), seed: u64) {
            let items: Vec<_> = (0..).zip(weights.iter().copied()).collect();
            let mut table = Alias::build(items.into_iter());
            let mut rng = Dice::seed_from_u64(seed);
            let n = weights.len();
            let rounds = 2_000;
            let mut seen = vec![0_u32; n];
            for _ in 0..rounds * n {
                seen[table.next(rng.next_u32()).unwrap() as usize] += 1;
            }
            let total: u64 = weights.iter().sum();
            for (i, &w) in weights.iter().enumerate() {
                let expect = w as f64 / total as f64 * (rounds * n) as f64;
                let slack = 4.0 * n as f64;
                prop_assert!((f64::from(seen[i]) - expect).abs() <= slack, "{i}: {} for {expect}", seen[i]);
            }
        }

        #[test]
        fn draws_follow_the_weights(weights in prop::collection::vec(1_u64..1000, 1..40), seed: u64) {
            let table = Alias::build((0..).zip(weights.iter().copied()).collect::<Vec<_>>().into_iter());
            let mut rng = Dice::seed_from_u64(seed);
            let draws = 40_000;
            let mut seen = vec![0_u32; weights.len()];
            for _ in 0..draws {
                seen[table.draw(rng.next_u32()).unwrap() as usize] += 1;
            }
            let total: u64 = weights.iter().sum();
            for (i, &w) in weights.iter().enumerate() {
                let p = w as f64 / total as f64;
                let expect = p * f64::from(draws);
                // Six standard deviations, and six draws for the rarest.
                let slack = 6.0 * (expect * (1.0 - p)).sqrt() + 6.0;
                prop_assert!((f64::from(seen[i]) - expect).abs() <= slack, "{i}: {} for {expect}", seen[i]);
            }
        }
    }
}
