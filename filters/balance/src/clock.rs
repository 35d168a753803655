//! The time of the pick, and how memory fades.

use std::time::Duration;

use pintle_contract::Now;

/// A clock that steps back further than this, in ns, would freeze what is kept.
const BACK: u64 = 1_000_000_000;

/// The time of the pick, with the policy's decay and penalty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// ns since the epoch of the host's clock.
    pub(crate) now: u64,
    /// The decay time of latencies, ns.
    pub(crate) decay: f64,
    /// Of [`Policy::failure_penalty`](crate::Policy::failure_penalty).
    pub(crate) penalty: f32,
}

impl Clock {
    pub(crate) fn new(decay: Duration, penalty: f64, now: Now) -> Self {
        Self { now: now.0, decay: decay.as_nanos().max(1) as f64, penalty: penalty as f32 }
    }

    /// Moves on to `now`; returns whether the host's clock stepped back so far that stamps would
    /// stay in the future.
    #[inline]
    pub(crate) const fn tick(&mut self, now: Now) -> bool {
        let back = now.0.saturating_add(BACK) < self.now;
        self.now = now.0;
        back
    }

    /// What is left of a score after `elapsed` ns.
    pub(crate) fn forgetting(&self, elapsed: u64) -> f64 {
        (-2.0 * elapsed as f64 / self.decay).exp()
    }
}
