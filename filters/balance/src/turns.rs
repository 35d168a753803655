//! Whose turn it is, by weight: a heap of deadlines.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh64::xxh64;

use crate::slow_start::GRAINS;

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
    /// Of these endpoints, each with its weight in grains.
    pub(crate) fn build(table: &[u32], grains: impl Fn(u32) -> u64, seed: u64) -> Self {
        let due = table
            .iter()
            .map(|&i| {
                let share = xxh64(&i.to_le_bytes(), seed) >> 32;
                let stride = u128::from(stride(grains(i)));
                Reverse((((stride * u128::from(share)) >> 32) as u64, i))
            })
            .collect();
        Self { due }
    }

    /// The earliest that is due and open; who is due and is not open loses its turn.
    pub(crate) fn next(
        &mut self,
        grains: impl Fn(u32) -> u64,
        open: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        for _ in 0..self.due.len() {
            let mut top = self.due.peek_mut()?;
            let Reverse((at, index)) = *top;
            top.0.0 = at.saturating_add(stride(grains(index)));
            // Writing through the guard puts the entry where its new deadline belongs.
            drop(top);
            if at > HORIZON {
                self.due = self
                    .due
                    .drain()
                    .map(|Reverse((t, i))| Reverse((t.saturating_sub(at), i)))
                    .collect();
            }
            if open(index) {
                return Some(index);
            }
        }
        None
    }
}

const fn stride(grains: u64) -> u64 {
    STRIDE.saturating_mul(GRAINS) / if grains == 0 { 1 } else { grains }
}
