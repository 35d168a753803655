//! `round_robin`: equal turns in the table's order, whatever the weights.
//!
//! Only the first place takes a turn; the places for retries are the ones that follow, and keep
//! theirs. Every worker starts somewhere else, or all of them would greet the first endpoint at
//! once. An ineligible endpoint is passed over; a whole round passes each of them once, so a pick
//! looks at two endpoints on average while half are eligible.

use crate::deck::Deck;
use crate::eligible::Field;
use crate::types::Picks;

#[inline(never)]
pub(crate) fn fill(deck: &mut Deck, field: &Field, picks: &mut Picks, want: usize) {
    let (mut turn, mut got) = (deck.turn(), 0);
    while picks.len() < want && got < deck.open {
        let Some((i, next)) = deck.after(field, turn, picks) else {
            return;
        };
        if got == 0 {
            deck.start_at(next);
        }
        picks.push(i);
        turn = next;
        got += 1;
    }
}
