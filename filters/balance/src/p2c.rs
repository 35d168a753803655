//! `p2c`: two distinct draws by weight, and the one where a request costs less wins.
//!
//! Two are enough: the choice avoids the worst without everybody running to the best, which is what
//! happens when every worker sorts the same stale numbers. The places after the first are for retries
//! and are filled the same way, from the loser of the pair before and one fresh draw, so that a list of
//! three costs four draws.

use std::hint::select_unpredictable;

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
    let (mut spare, mut drawn) = (None, 0);
    let mut next = |picks: &Picks, also: Option<(u32, f64)>| {
        if drawn >= tier.open {
            return None;
        }
        drawn += 1;
        tier.draw(field, rng, picks, also.map(|(i, _)| i)).map(|i| (i, field.cost(i)))
    };
    while picks.len() < want {
        let Some(first) = spare.take().or_else(|| next(picks, None)) else {
            return;
        };
        let Some(second) = next(picks, Some(first)) else {
            picks.push(first.0);
            continue;
        };
        // Which one wins is anybody's guess, the processor's too.
        let less = second.1 < first.1;
        picks.push(select_unpredictable(less, second.0, first.0));
        spare = Some((
            select_unpredictable(less, first.0, second.0),
            select_unpredictable(less, first.1, second.1),
        ));
    }
}
