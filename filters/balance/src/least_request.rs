//! `least_request`: a few distinct draws, all alike, and the highest `weight / (active + 1)^bias` wins.
//!
//! Envoy's rule for the score and for the draws (default 2); with as many draws as endpoints it is a full
//! scan, where a tie is broken by lot, because the first of the table would get every request of an
//! idle service. Active requests are those of all workers, as far as they are known.

use std::hint::select_unpredictable;

use rand::Rng;

use crate::alias::scale;
use crate::eligible::{Field, Tier};
use crate::types::Picks;

/// The most draws that a policy may ask for; the bound of the set of those drawn.
const MAX_CHOICES: usize = 100;

pub(crate) fn fill(
    tier: &Tier,
    field: &Field<'_>,
    rng: &mut impl Rng,
    picks: &mut Picks,
    want: usize,
) {
    let mut got = 0;
    while picks.len() < want && got < tier.open {
        let best = if field.choice_count >= tier.open as usize {
            best_of_all(tier, field, rng, picks)
        } else {
            best_of_some(tier, field, rng, picks)
        };
        let Some(best) = best else { return };
        picks.push(best);
        got += 1;
    }
}

fn score(field: &Field<'_>, index: u32) -> f32 {
    let (weight, active) = (field.grains(index) as f32, field.active(index) as f32 + 1.0);
    match field.bias {
        0.0 => weight,
        1.0 => weight / active,
        bias => weight / active.powf(bias),
    }
}

fn best_of_all(tier: &Tier, field: &Field<'_>, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let (mut best, mut high, mut ties) = (None, f32::NEG_INFINITY, 0);
    for i in tier.eligible(field).filter(|&i| !picks.contains(i)) {
        let score = score(field, i);
        if score > high {
            (best, high, ties) = (Some(i), score, 1);
        } else if score == high {
            ties += 1;
            if scale(rng.next_u64(), ties) == 0 {
                best = Some(i);
            }
        }
    }
    best
}

fn best_of_some(tier: &Tier, field: &Field<'_>, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    if field.choice_count == 2 {
        return best_of_two(tier, field, rng, picks);
    }
    let mut drawn = [0; MAX_CHOICES];
    let (mut best, mut high) = (None, f32::NEG_INFINITY);
    for n in 0..field.choice_count.min(MAX_CHOICES) {
        let Some(i) = tier.draw_alike(field, rng, picks, drawn.get(..n).unwrap_or_default()) else {
            break;
        };
        if let Some(place) = drawn.get_mut(n) {
            *place = i;
        }
        let score = score(field, i);
        if score > high {
            (best, high) = (Some(i), score);
        }
    }
    best
}

/// The default, without a set of those drawn.
fn best_of_two(tier: &Tier, field: &Field<'_>, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let first = tier.draw_alike(field, rng, picks, &[])?;
    let Some(second) = tier.draw_alike(field, rng, picks, &[first]) else {
        return Some(first);
    };
    Some(select_unpredictable(score(field, second) > score(field, first), second, first))
}
