//! A weighted draw in constant time: Walker's alias table as Vose builds it.
//!
//! Every place holds a threshold and an alias, so a draw is 32 random bits, one load and one comparison,
//! whatever the weights are.

use std::hint::select_unpredictable;

#[derive(Clone, Debug, Default)]
pub(crate) struct Alias {
    places: Vec<Place>,
}

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
            return Self { places };
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
        Self { places }
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

    proptest! {
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
