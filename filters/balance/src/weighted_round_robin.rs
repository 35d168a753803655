//! `weighted_round_robin`: turns in proportion to the weights, and never two of the heavy one in a
//! row while others are due.
//!
//! Earliest deadline first, as Envoy does it: each endpoint's next turn is due one stride (1 /
//! weight) after its last, and the earliest due goes. That is exact for any weights and smooth, at
//! a heap's O(log n) per pick; schemes in constant time either clamp the weights or store a
//! schedule as long as their sum. The first deadlines are spread by a hash of the seed, so that
//! workers don't move in step. An ineligible endpoint loses its turn. Retry places are drawn by
//! weight and take no turn.

use rand::Rng;

use crate::deck::Deck;
use crate::eligible::Field;
use crate::types::Picks;

#[inline(never)]
pub(crate) fn fill(
    deck: &mut Deck,
    field: &Field,
    rng: &mut impl Rng,
    picks: &mut Picks,
    want: usize,
) {
    if let Some(i) = deck.turns.next(|i| field.grains(i), |i| field.open(i))
        && !picks.contains(i)
        && picks.len() < want
    {
        picks.push(i);
    }
    crate::random::fill(deck, field, rng, picks, want);
}
