//! Tiers: endpoints of one `priority`, 0 first, and what of the requests goes to each.
//!
//! Envoy's rule for its priorities, number for number (`load_balancer_impl.cc`, 1.36 to 1.40): a
//! tier is held to be provisioned with 40 % to spare, so it takes all that comes to it until less
//! than 5/7 of its endpoints are eligible, and what it does not take goes to the next. When all
//! together take less than the whole, each takes in proportion to what it can. Percents are whole,
//! and a roll of 1 to 100 decides.
//!
//! Within a tier it is the own zone first (`zone.rs`). What is full spills only where nobody of the
//! tier has room.

use rand::Rng;

use crate::deck::Deck;
use crate::eligible::Field;
use crate::site::Site;
use crate::stand::Stand;
use crate::state::State;
use crate::zone;

/// The highest `priority`: Envoy's bound.
const MAX_PRIORITY: u8 = 128;
/// Envoy's `overprovisioning_factor`, in percent.
const OVERPROVISIONED: u32 = 140;

#[derive(Debug)]
pub(crate) struct Tier {
    pub(crate) priority: u8,
    pub(crate) local: Deck,
    pub(crate) rest: Deck,
    /// Those that count: of a weight above zero, and not draining.
    pub(crate) counted: u32,
    /// See [`zone::stay`].
    stay: Option<u32>,
    /// Of the hashing strategies.
    pub(crate) stand: Stand,
}

/// What goes to which tier.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spill {
    /// Percent that go to each tier or one before it; empty while all go to the first.
    up_to: Vec<u32>,
    /// What all tiers together can take, in percent, at most 100.
    pub(crate) provision: u32,
}

// === impl Tier ===

impl Tier {
    /// The tiers of `listed`, the first one first; at least one, which may be empty.
    pub(crate) fn all(listed: &[u32], sites: &[Site]) -> Vec<Self> {
        let of = |i: &u32| sites.get(*i as usize);
        let counted = |i: &u32| of(i).filter(|site| site.counts());
        let mut priorities: Vec<u8> =
            listed.iter().filter_map(counted).map(|s| s.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        if priorities.is_empty() {
            priorities.push(0);
        }
        let tier = |priority| {
            let deck = |local: bool| {
                let fits =
                    |s: &Site| s.priority == priority && s.could_be_eligible() && s.local == local;
                Deck::new(listed.iter().copied().filter(|i| of(i).is_some_and(fits)).collect())
            };
            let here = listed.iter().filter_map(counted).filter(|s| s.priority == priority);
            Self {
                priority,
                local: deck(true),
                rest: deck(false),
                counted: here.count() as u32,
                stay: None,
                stand: Stand::default(),
            }
        };
        priorities.into_iter().map(tier).collect()
    }

    /// Counts and builds the draws anew.
    pub(crate) fn refresh(&mut self, listed: &[u32], field: &Field, seed: u64, sites: &[Site]) {
        (self.local.registered, self.rest.registered) = (0, 0);
        for &i in listed {
            let here = |s: &&Site| s.counts() && s.priority == self.priority;
            if let Some(site) = sites.get(i as usize).filter(here) {
                self.deck(site.local).registered += field.grains(i);
            }
        }
        self.local.rebuild(field, sites, seed);
        self.rest.rebuild(field, sites, seed);
        self.set_stay();
    }

    /// One endpoint went from one state to another.
    pub(crate) fn shift(&mut self, local: bool, grains: u64, before: State, after: State) {
        if before == State::Open || after == State::Open {
            self.deck(local).shift(grains, after == State::Open);
        }
        self.set_stay();
    }

    const fn deck(&mut self, local: bool) -> &mut Deck {
        if local { &mut self.local } else { &mut self.rest }
    }

    fn set_stay(&mut self) {
        let (local, rest) = (&self.local, &self.rest);
        self.stay = zone::stay(local.open_grains, local.registered, rest.open_grains);
    }

    pub(crate) const fn is_stale(&self) -> bool {
        self.local.stale || self.rest.stale
    }

    /// Eligible, and not as a probe only.
    pub(crate) const fn open(&self) -> u32 {
        self.local.open.saturating_add(self.rest.open)
    }

    /// Whether the own zone takes all.
    pub(crate) const fn stays(&self) -> bool {
        self.stay.is_none() && self.local.open > 0
    }

    /// The zone that this request draws from first, and the other.
    #[inline]
    pub(crate) fn zones(&mut self, rng: &mut impl Rng) -> (&mut Deck, &mut Deck) {
        let stays = match self.stay {
            None => true,
            Some(threshold) => (rng.next_u64() >> 32) < u64::from(threshold),
        };
        if stays { (&mut self.local, &mut self.rest) } else { (&mut self.rest, &mut self.local) }
    }
}

// === impl Spill ===

impl Spill {
    pub(crate) fn of(tiers: &[Tier]) -> Self {
        let parts = tiers.iter().map(|tier| (tier.open(), tier.counted));
        Self::of_parts(&parts.collect::<Vec<_>>())
    }

    /// Of eligible endpoints and all that count, by tier.
    fn of_parts(parts: &[(u32, u32)]) -> Self {
        let (loads, provision) = loads(parts);
        if provision == 0 || loads.len() < 2 || loads.first() == Some(&100) {
            return Self { up_to: Vec::new(), provision };
        }
        let mut sum = 0;
        let up_to = loads.into_iter().map(|load| {
            sum += load;
            sum
        });
        Self { up_to: up_to.collect(), provision }
    }

    /// Whether all go to the first tier.
    #[inline]
    pub(crate) const fn is_none(&self) -> bool {
        self.up_to.is_empty()
    }

    /// Percent that go to the tier.
    pub(crate) fn share(&self, tier: usize) -> u32 {
        let up_to = |at: usize| self.up_to.get(at).copied();
        let before = tier.checked_sub(1).and_then(up_to).unwrap_or(0);
        up_to(tier).map_or(if tier == 0 { 100 } else { 0 }, |up_to| up_to - before)
    }

    /// The tier of a request with these bits, which are random or its hash.
    pub(crate) fn tier(&self, bits: u64) -> usize {
        let roll = (bits % 100) as u32 + 1;
        self.up_to.iter().position(|up_to| roll <= *up_to).unwrap_or(0)
    }
}

/// What of a service's requests goes to each tier, in percent, where so many of so many endpoints
/// that count are eligible; all to the first where nobody is.
#[must_use]
pub fn tier_shares(parts: &[(u32, u32)]) -> Vec<u32> {
    loads(parts).0
}

/// The same, and what all tiers together can take, at most 100.
fn loads(parts: &[(u32, u32)]) -> (Vec<u32>, u32) {
    let takes = |&(open, counted): &(u32, u32)| {
        let percent = u64::from(OVERPROVISIONED) * u64::from(open);
        percent.checked_div(u64::from(counted)).map_or(0, |percent| percent.min(100) as u32)
    };
    let takes: Vec<u32> = parts.iter().map(takes).collect();
    let provision = takes.iter().sum::<u32>().min(100);
    let mut left = 100_u32;
    let load = |takes: &u32| {
        let load = (takes * 100).checked_div(provision).unwrap_or(0).min(left);
        left -= load;
        load
    };
    let mut loads: Vec<u32> = takes.iter().map(load).collect();
    // What rounding leaves goes to the first that takes any.
    let first = takes.iter().position(|takes| *takes > 0).unwrap_or(0);
    if let Some(first) = loads.get_mut(first) {
        *first += left;
    }
    (loads, provision)
}

/// The tier that an endpoint's metadata `priority` names; what is no number is the first.
#[must_use]
pub fn tier_of(priority: Option<&str>) -> u8 {
    let priority = priority.and_then(|text| text.parse::<u32>().ok());
    priority.map_or(0, |priority| u8::try_from(priority).unwrap_or(u8::MAX)).min(MAX_PRIORITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of Envoy's documentation on priority levels, and what it says of degraded sums.
    #[test]
    fn what_one_tier_does_not_take_goes_to_the_next() {
        type Parts = &'static [(u32, u32)];
        let cases: [(Parts, &[u32]); 11] = [
            (&[(100, 100), (100, 100)], &[100, 0]),
            (&[(72, 100), (72, 100)], &[100, 0]),
            (&[(71, 100), (71, 100)], &[99, 1]),
            (&[(50, 100), (60, 100)], &[70, 30]),
            (&[(25, 100), (100, 100)], &[35, 65]),
            (&[(0, 100), (100, 100)], &[0, 100]),
            (&[(25, 100), (25, 100)], &[50, 50]),
            (&[(5, 100), (72, 100), (72, 100)], &[7, 93, 0]),
            (&[(20, 100), (20, 100), (10, 100)], &[40, 40, 20]),
            (&[(0, 0), (1, 1)], &[0, 100]),
            (&[(1, 3), (0, 0), (1, 3)], &[50, 0, 50]),
        ];
        for (parts, loads) in cases {
            let spill = Spill::of_parts(parts);
            let mut counts = vec![0; parts.len()];
            for bits in 0..100 {
                counts[if spill.is_none() { 0 } else { spill.tier(bits) }] += 1;
            }
            assert_eq!(counts, loads, "{parts:?}");
        }
    }

    #[test]
    fn what_all_can_take_is_known() {
        for (parts, provision) in
            [([(1, 1), (0, 3)], 100), ([(1, 10), (1, 10)], 28), ([(0, 9), (0, 1)], 0)]
        {
            assert_eq!(Spill::of_parts(&parts).provision, provision, "{parts:?}");
        }
    }
}
