//! What every step of a callback needs beside its own part of the worker.

use pintle_balance::Dice;
use pintle_contract::Now;

use crate::counters::Counters;

/// The time of the callback, randomness, and where to count.
pub(crate) struct Turn<'a> {
    pub(crate) now: Now,
    pub(crate) rng: &'a mut Dice,
    pub(crate) counters: &'a mut Counters,
}
