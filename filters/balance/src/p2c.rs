//! `p2c`: two distinct choices by weight, and the one where fewer of the own requests wait wins.
//!
//! Own, because what the others have is as of a tick ago: by numbers of that age all workers avoid
//! the same endpoint until the next tick. What others' requests do to an endpoint shows in how long
//! the own ones take there.
//!
//! Two are enough: the choice avoids the worst without everybody running to the best, which is what
//! happens when every worker sorts the same stale numbers. The first is the endpoint whose turn it
//! is and wins a tie, so that equal endpoints get equal shares; the second is drawn. Of an ill one
//! and one that is not, the latter wins; while both are ill there are further draws, and a small
//! deck is searched. When everybody is ill the lowest cost wins, so that capacity is used in the
//! order of what it costs.
//!
//! An ill endpoint whose turn it is may be looked at again ([`crate::looks`]). Where weights
//! differ, the heavy ones keep some of their turns, or they would lose more of them than they win.
//!
//! The places after the first are for retries, and are filled from the loser of the pair before and
//! one fresh draw.

use std::hint::select_unpredictable;

use rand::Rng;

use crate::deck::{Deck, NOBODY};
use crate::eligible::Field;
use crate::types::Picks;

/// Draws while all drawn are ill. With half of them ill, one request of 60,000 finds no other.
const DRAWS: usize = 16;
/// Who wins against the turn has so much less to do: a request, but for rounding; where weights
/// differ, one of the lighter of both. Otherwise a heavy one would win more often than it loses.
const LESS: f64 = 0.75;
/// And so much of what waits there: among hundreds one more or less is chance,
const PART: f64 = 1.0 / 32.0;
/// of so many at most, beside which the costs of ill ones are not to be rounded.
const CROWD: f64 = 65_536.0;
/// A deck up to this size is searched instead.
const SMALL: u32 = 16;

#[inline(never)]
pub(crate) fn fill(
    deck: &mut Deck,
    field: &mut Field,
    rng: &mut impl Rng,
    picks: &mut Picks,
    want: usize,
) {
    let mut left = deck.open;
    if picks.len() >= want || left == 0 {
        return;
    }
    // Enough for the first pair.
    let bits = rng.next_u64();
    let first = if picks.len() == 0 {
        field.looks.count();
        deck.turn_by_weight(field, bits as u32, rng)
    } else {
        deck.draw(field, bits as u32, rng, picks, NOBODY)
    };
    let Some(mut kept) = first else { return };
    let mut rank = field.rank(kept);
    if picks.len() == 0 && left > 1 {
        let stays = if rank >= Field::ILL {
            field.look(kept)
        } else {
            deck.uneven && deck.keeps_turn(field, kept, rng.next_u32())
        };
        if stays {
            rank = -1.0;
        }
    }
    let mut bits = (bits >> 32) as u32;
    while left > 1 {
        let Some(other) = deck.draw(field, bits, rng, picks, kept) else {
            break;
        };
        left -= 1;
        let (mut best, mut lowest) = (other, field.rank(other));
        if lowest >= Field::ILL && rank >= Field::ILL && left > 1 {
            (best, lowest) = search(deck, field, rng, picks, kept, (best, lowest));
        }
        let request = if deck.uneven { field.request(kept, best) } else { 1.0 };
        // Which one wins is anybody's guess, the processor's too.
        let less = lowest + LESS * request + PART * lowest.min(CROWD) <= rank;
        picks.push(select_unpredictable(less, best, kept));
        if picks.len() >= want {
            return;
        }
        kept = select_unpredictable(less, kept, best);
        rank = select_unpredictable(less, rank, lowest);
        bits = rng.next_u32();
    }
    picks.push(kept);
}

/// One that is not ill, or the least ill of those looked at.
#[cold]
#[inline(never)]
fn search(
    deck: &Deck,
    field: &Field,
    rng: &mut impl Rng,
    picks: &Picks,
    kept: u32,
    mut best: (u32, f64),
) -> (u32, f64) {
    let mut consider = |i: u32| {
        let rank = field.rank(i);
        if rank < best.1 {
            best = (i, rank);
        }
        rank < Field::ILL
    };
    if deck.open <= SMALL {
        let skip = rng.next_u32() as usize % SMALL as usize;
        let fits = |i: &u32| *i != kept && !picks.contains(*i);
        let (before, after) = (deck.eligible(field).take(skip), deck.eligible(field).skip(skip));
        for i in after.chain(before).filter(fits) {
            consider(i);
        }
        return best;
    }
    for _ in 0..DRAWS {
        match deck.draw(field, rng.next_u32(), rng, picks, kept) {
            Some(i) if !consider(i) => {}
            _ => break,
        }
    }
    best
}
