//! `random`: by weight, without looking at the load. The baseline to measure the others against.

use rand::Rng;

use crate::deck::{Deck, NOBODY};
use crate::eligible::Field;
use crate::types::Picks;

#[inline(never)]
pub(crate) fn fill(deck: &Deck, field: &Field, rng: &mut impl Rng, picks: &mut Picks, want: usize) {
    let mut got = 0;
    while picks.len() < want && got < deck.open {
        let Some(i) = deck.draw(field, rng.next_u32(), rng, picks, NOBODY) else {
            return;
        };
        picks.push(i);
        got += 1;
    }
}
