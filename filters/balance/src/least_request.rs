//! `least_request`: a few distinct draws, all alike, and the highest `weight / (active + 1)^bias` wins,
//! which is the lowest of its inverse.
//!
//! Envoy's rule for the score and for the draws (default 2); with as many draws as endpoints it is a full
//! scan, where a tie is broken by lot, because the first of the table would get every request of an
//! idle service. Active requests are those of all workers, as far as they are known.

use std::hint::select_unpredictable;

use rand::Rng;

use crate::alias::scale;
use crate::eligible::{Field, NOBODY, Tier};
use crate::types::Picks;

/// The most draws that a policy may ask for; the bound of the set of those drawn.
const MAX_CHOICES: usize = 100;

#[inline(never)]
pub(crate) fn fill(tier: &Tier, field: &Field, rng: &mut impl Rng, picks: &mut Picks, want: usize) {
    let mut got = 0;
    while picks.len() < want && got < tier.open {
        let best = match field.choices() {
            choices if choices >= tier.open as usize => best_of_all(tier, field, rng, picks),
            2 => best_of_two(tier, field, rng, picks),
            _ => best_of_some(tier, field, rng, picks),
        };
        let Some(best) = best else { return };
        picks.push(best);
        got += 1;
    }
}

/// What is compared: lower is better, and the bits of what is not negative compare as it does.
#[inline]
fn burden(field: &Field, index: u32) -> u64 {
    field.burden(index).to_bits()
}

#[inline(never)]
fn best_of_all(tier: &Tier, field: &Field, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let (mut best, mut least, mut ties) = (None, u64::MAX, 0);
    for i in tier.eligible(field).filter(|&i| !picks.contains(i)) {
        let burden = burden(field, i);
        if burden < least {
            (best, least, ties) = (Some(i), burden, 1);
        } else if burden == least {
            ties += 1;
            if scale(rng.next_u32(), ties) == 0 {
                best = Some(i);
            }
        }
    }
    best
}

#[inline(never)]
fn best_of_some(tier: &Tier, field: &Field, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let mut drawn = [0; MAX_CHOICES];
    let (mut best, mut least) = (None, u64::MAX);
    for n in 0..field.choices().min(MAX_CHOICES) {
        let so_far = drawn.get(..n).unwrap_or_default();
        let Some(i) = tier.draw_other(field, rng, picks, so_far) else {
            break;
        };
        if let Some(place) = drawn.get_mut(n) {
            *place = i;
        }
        let burden = burden(field, i);
        if burden < least {
            (best, least) = (Some(i), burden);
        }
    }
    best
}

/// The default, without a set of those drawn.
#[inline]
fn best_of_two(tier: &Tier, field: &Field, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let bits = rng.next_u64();
    let first = tier.draw_alike(field, bits as u32, rng, picks, NOBODY)?;
    let bits = (bits >> 32) as u32;
    let Some(second) = tier.draw_alike(field, bits, rng, picks, first) else {
        return Some(first);
    };
    Some(select_unpredictable(burden(field, second) < burden(field, first), second, first))
}
