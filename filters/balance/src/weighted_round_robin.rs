//! `weighted_round_robin`: turns in proportion to the weights, and never two of the heavy one in a row
//! while others are due.
//!
//! Earliest deadline first, as Envoy does it: each endpoint's next turn is due one stride (1 / weight)
//! after its last, and the earliest due goes. That is exact for any weights and smooth, at a heap's
//! O(log n) per pick; schemes in constant time either clamp the weights or store a schedule as long as
//! their sum. The first deadlines are spread by a hash of the seed, so that workers don't move in step.
//! An ineligible endpoint loses its turn. Retry places are drawn by weight and take no turn.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::Rng;
use xxhash_rust::xxh64::xxh64;

use crate::eligible::{Deck, Field};
use crate::slow_start::GRAINS;
use crate::types::Picks;

/// The stride of weight 1. Weight 1,000,000 still has one of 2^20, exact to a millionth.
const STRIDE: u64 = 1 << 40;
/// Deadlines start over here; the heap is shifted down once in eight million rounds.
const HORIZON: u64 = 1 << 63;

/// Whose turn it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    due: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Turns {
    pub(crate) fn build(table: &[u32], field: &Field, seed: u64) -> Self {
        let due = table
            .iter()
            .map(|&i| {
                let share = xxh64(&i.to_le_bytes(), seed) >> 32;
                let stride = u128::from(stride(field.grains(i)));
                Reverse((((stride * u128::from(share)) >> 32) as u64, i))
            })
            .collect();
        Self { due }
    }

    fn next(&mut self, field: &Field) -> Option<u32> {
        for _ in 0..self.due.len() {
            let mut top = self.due.peek_mut()?;
            let Reverse((at, index)) = *top;
            top.0.0 = at.saturating_add(stride(field.grains(index)));
            // Writing through the guard puts the entry where its new deadline belongs.
            drop(top);
            if at > HORIZON {
                self.due = self
                    .due
                    .drain()
                    .map(|Reverse((t, i))| Reverse((t.saturating_sub(at), i)))
                    .collect();
            }
            if field.open(index) {
                return Some(index);
            }
        }
        None
    }
}

const fn stride(grains: u64) -> u64 {
    STRIDE.saturating_mul(GRAINS) / if grains == 0 { 1 } else { grains }
}

#[inline(never)]
pub(crate) fn fill(
    deck: &mut Deck,
    field: &Field,
    rng: &mut impl Rng,
    picks: &mut Picks,
    want: usize,
) {
    if let Some(i) = deck.turns.next(field)
        && !picks.contains(i)
        && picks.len() < want
    {
        picks.push(i);
    }
    crate::random::fill(deck, field, rng, picks, want);
}
