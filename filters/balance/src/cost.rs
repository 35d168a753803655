//! What a ring or a Maglev table costs, known before it is built.
//!
//! A light endpoint makes a large ring: a weight of 1 beside 1,000,000 asks for a million entries,
//! because the lightest gets a whole one. So the cost is of the weights as well as of the sizes of
//! the policy.

use crate::policy::{Policy, Strategy};
use crate::ring_hash;
use crate::shape::Shape;

/// Bytes and steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes, at most, of one that stands or is being built.
    pub bytes: u64,
    /// Steps to build it; one takes about 10 ns.
    pub steps: u64,
}

/// Of two of a ring's entries: hashes, endpoints, and their share of the index over the hashes.
const ENTRIES: u64 = 2 * (8 + 2) + 1;
/// Of a ring's entry: it is hashed twice, laid out and sorted.
const ENTRY_STEPS: u64 = 8;
/// Of two places in a Maglev table.
const PLACES: u64 = 2 * 2;
/// Of an endpoint in either: address and weight, index, share, its place in the shuffle of bounded
/// load; while it is built, the text that is hashed and its way through the table.
const HOST: u64 = 200;
const HOST_STEPS: u64 = 20;

impl Cost {
    /// Of one ring or table over endpoints of these weights; zero for every strategy that has none.
    #[must_use]
    pub fn of(policy: &Policy, weights: impl IntoIterator<Item = u32>) -> Self {
        let (mut hosts, mut sum, mut least) = (0_u64, 0_u64, u32::MAX);
        for weight in weights.into_iter().map(|weight| weight.max(1)) {
            hosts += 1;
            sum += u64::from(weight);
            least = least.min(weight);
        }
        let (entries, two, steps) = match policy.strategy {
            _ if hosts == 0 => return Self::default(),
            Strategy::RingHash => {
                let scale = ring_hash::scale(&Shape::of(policy), f64::from(least) / sum as f64);
                // Rounding may give each endpoint's part one more.
                (scale.ceil() as u64 + 1, ENTRIES, ENTRY_STEPS)
            }
            Strategy::Maglev => (policy.table_size, PLACES, 1),
            _ => return Self::default(),
        };
        let hosts_bytes = hosts.saturating_mul(HOST);
        Self {
            bytes: entries.saturating_mul(two).div_ceil(2).saturating_add(hosts_bytes),
            steps: entries.saturating_mul(steps).saturating_add(hosts * HOST_STEPS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(strategy: Strategy) -> Policy {
        Policy { strategy, ..Policy::default() }
    }

    #[test]
    fn the_largest_of_each_is_known() {
        let ring = Policy { minimum_ring_size: 8_388_608, ..policy(Strategy::RingHash) };
        assert_eq!(Cost::of(&ring, [1]).bytes, (8_388_609 * ENTRIES).div_ceil(2) + HOST);
        let maglev = Policy { table_size: 5_000_011, ..policy(Strategy::Maglev) };
        assert_eq!(Cost::of(&maglev, [1]).bytes, 5_000_011 * 2 + HOST);
        assert_eq!(Cost::of(&policy(Strategy::P2c), [1]), Cost::default());
        assert_eq!(Cost::of(&ring, []), Cost::default());
    }

    #[test]
    fn one_light_endpoint_makes_a_default_ring_large() {
        let cost = Cost::of(&policy(Strategy::RingHash), [1, 1_000_000]);
        assert!((10_000_000..11_000_000).contains(&cost.bytes), "{cost:?}");
        let bounded = Policy { maximum_ring_size: 4096, ..policy(Strategy::RingHash) };
        assert!(Cost::of(&bounded, [1, 1_000_000]).bytes < 60_000);
    }
}
