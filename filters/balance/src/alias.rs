//! A weighted draw in constant time: Walker's alias table as Vose builds it.
//!
//! Every place holds a threshold and an alias, so a draw is one 64-bit random number, one load and one
//! comparison, whatever the weights are.

use rand::Rng;

#[derive(Clone, Debug, Default)]
pub(crate) struct Alias {
    /// (threshold for 32 random bits, the other choice).
    places: Vec<(u32, u32)>,
}

impl Alias {
    /// Over `weights`, all above zero.
    pub(crate) fn build(weights: impl ExactSizeIterator<Item = u64>) -> Self {
        let n = weights.len();
        let weights: Vec<u64> = weights.collect();
        let total: f64 = weights.iter().map(|&w| w as f64).sum();
        let mut places: Vec<(u32, u32)> = (0..n).map(|i| (u32::MAX, i as u32)).collect();
        if total <= 0.0 {
            return Self { places };
        }
        let mut scaled: Vec<f64> = weights
            .iter()
            .map(|&w| w as f64 * n as f64 / total)
            .collect();
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for (i, &share) in scaled.iter().enumerate() {
            if share < 1.0 {
                small.push(i)
            } else {
                large.push(i)
            }
        }
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            let share = scaled.get(less).copied().unwrap_or(1.0);
            if let Some(place) = places.get_mut(less) {
                *place = ((share * 4_294_967_296.0) as u32, more as u32);
            }
            if let Some(rest) = scaled.get_mut(more) {
                *rest -= 1.0 - share;
                if *rest < 1.0 {
                    large.pop();
                    small.push(more);
                }
            }
        }
        Self { places }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A place by weight; 0 when there is none.
    #[inline]
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> usize {
        let bits = rng.next_u64();
        let at = scale(bits >> 32, self.places.len());
        match self.places.get(at) {
            Some(&(threshold, alias)) if bits as u32 >= threshold => alias as usize,
            _ => at,
        }
    }
}

/// 32 random bits to `0..n`, without a division. The bias is `n / 2^32`.
#[inline]
pub(crate) const fn scale(bits: u64, n: usize) -> usize {
    (((bits & 0xffff_ffff) * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::Dice;

    proptest! {
        #[test]
        fn draws_follow_the_weights(weights in prop::collection::vec(1_u64..1000, 1..40), seed: u64) {
            let table = Alias::build(weights.iter().copied());
            let mut rng = Dice::seed_from_u64(seed);
            let draws = 40_000;
            let mut seen = vec![0_u32; weights.len()];
            for _ in 0..draws {
                seen[table.draw(&mut rng)] += 1;
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
