//! `least_request`: a few distinct draws, all alike, and the highest `weight / (active + 1)^bias`
//! wins, which is the lowest of its inverse.
//!
//! Envoy's rule for the score and for the draws (default 2); with as many draws as endpoints it is
//! a full scan, where a tie is broken by lot, because the first of the table would get every
//! request of an idle service. Active requests are those of all workers, as far as they are known.

use std::hint::select_unpredictable;

use rand::Rng;

use crate::alias::scale;
use crate::deck::{Deck, NOBODY};
use crate::eligible::Field;
use crate::types::Picks;

/// The most draws that a policy may ask for; the bound of the set of those drawn.
const MAX_CHOICES: usize = 100;

#[inline(never)]
pub(crate) fn fill(deck: &Deck, field: &Field, rng: &mut impl Rng, picks: &mut Picks, want: usize) {
    let mut got = 0;
    while picks.len() < want && got < deck.open {
        let best = match field.choices() {
            choices if choices >= deck.open as usize => best_of_all(deck, field, rng, picks),
            2 => best_of_two(deck, field, rng, picks),
            _ => best_of_some(deck, field, rng, picks),
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
fn best_of_all(deck: &Deck, field: &Field, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let (mut best, mut least, mut ties) = (None, u64::MAX, 0);
    for i in deck.eligible(field).filter(|&i| !picks.contains(i)) {
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
fn best_of_some(deck: &Deck, field: &Field, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let mut drawn = [0; MAX_CHOICES];
    let (mut best, mut least) = (None, u64::MAX);
    for n in 0..field.choices().min(MAX_CHOICES) {
        let so_far = drawn.get(..n).unwrap_or_default();
        let Some(i) = deck.draw_other(field, rng, picks, so_far) else {
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
fn best_of_two(deck: &Deck, field: &Field, rng: &mut impl Rng, picks: &Picks) -> Option<u32> {
    let bits = rng.next_u64();
    let first = deck.draw_alike(field, bits as u32, rng, picks, NOBODY)?;
    let bits = (bits >> 32) as u32;
    let Some(second) = deck.draw_alike(field, bits, rng, picks, first) else {
        return Some(first);
    };
    Some(select_unpredictable(burden(field, second) < burden(field, first), second, first))
}
