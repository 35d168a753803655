//! `random`: by weight, without looking at the load. The baseline to measure the others against.

use rand::Rng;

use crate::eligible::{Field, Tier};
use crate::types::Picks;

pub(crate) fn fill(
    tier: &Tier,
    field: &Field<'_>,
    rng: &mut impl Rng,
    picks: &mut Picks,
    want: usize,
) {
    let mut got = 0;
    while picks.len() < want && got < tier.open {
        let Some(i) = tier.draw(field, rng, picks, None) else {
            return;
        };
        picks.push(i);
        got += 1;
    }
}
