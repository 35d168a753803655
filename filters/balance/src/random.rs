//! `random`: by weight, without looking at the load. The baseline to measure the others against.

use rand::Rng;

use crate::eligible::{Field, NOBODY, Tier};
use crate::types::Picks;

#[inline(never)]
pub(crate) fn fill(tier: &Tier, field: &Field, rng: &mut impl Rng, picks: &mut Picks, want: usize) {
    let mut got = 0;
    while picks.len() < want && got < tier.open {
        let Some(i) = tier.draw(field, rng.next_u32(), rng, picks, NOBODY) else {
            return;
        };
        picks.push(i);
        got += 1;
    }
}
