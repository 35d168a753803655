//! `p2c`: two distinct draws by weight, and the one where a request costs less wins.
//!
//! Two are enough: the choice avoids the worst without everybody running to the best, which is what
//! happens when every worker sorts the same stale numbers. The places after the first are for retries
//! and are filled the same way, from the loser of the pair before and one fresh draw, so that a list of
//! three costs four draws.

use std::hint::select_unpredictable;

use rand::Rng;

use crate::eligible::{Field, NOBODY, Tier};
use crate::types::Picks;

#[inline(never)]
pub(crate) fn fill(tier: &Tier, field: &Field, rng: &mut impl Rng, picks: &mut Picks, want: usize) {
    let mut left = tier.open;
    if picks.len() >= want || left == 0 {
        return;
    }
    // Enough for the first pair.
    let bits = rng.next_u64();
    let Some(mut kept) = tier.draw(field, bits as u32, rng, picks, NOBODY) else {
        return;
    };
    // What is not negative compares by its bits, and whole numbers are chosen without a branch.
    let mut price = field.cost(kept).to_bits();
    let mut bits = (bits >> 32) as u32;
    while left > 1 {
        let Some(other) = tier.draw(field, bits, rng, picks, kept) else {
            break;
        };
        left -= 1;
        let cost = field.cost(other).to_bits();
        // Which one wins is anybody's guess, the processor's too.
        let less = cost < price;
        picks.push(select_unpredictable(less, other, kept));
        if picks.len() >= want {
            return;
        }
        kept = select_unpredictable(less, kept, other);
        price = select_unpredictable(less, price, cost);
        bits = rng.next_u32();
    }
    picks.push(kept);
}
