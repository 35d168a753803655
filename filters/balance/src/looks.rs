//! How often a request looks at an endpoint that is clearly ill while others are well.
//!
//! A look that finds it still ill costs somebody a slow answer or an error, so all of them together
//! are bounded by the requests of the service. One that finds it well costs nobody anything: it is not
//! counted, and the next may follow at once.

use crate::load::NEXT_LOOK;

/// One look in so many requests: a third of a percent, so that with those which found them ill there are
/// less than 0.5 % in 8,000.
const EVERY: u32 = 300;
/// A small service looks a little more often than that, or it would take ten seconds to find one of
/// three endpoints well at 30 requests/s.
const AT_LEAST: u32 = 120;

/// The looks of one service in one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// Picks since the last look.
    picks: u32,
    /// When that was, ns.
    last: u64,
}

impl Default for Looks {
    fn default() -> Self {
        Self { picks: EVERY, last: 0 }
    }
}

impl Looks {
    /// A request is placed.
    #[inline]
    pub(crate) const fn count(&mut self) {
        self.picks = self.picks.saturating_add(1);
    }

    /// Whether there may be one now.
    pub(crate) const fn may(&self, now: u64) -> bool {
        self.picks >= EVERY
            || (self.picks >= AT_LEAST && now.saturating_sub(self.last) >= NEXT_LOOK)
    }

    /// There is one now.
    pub(crate) const fn spend(&mut self, now: u64) {
        (self.picks, self.last) = (0, now);
    }

    /// The last one found somebody well.
    pub(crate) const fn refund(&mut self) {
        self.picks = EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_stay_below_half_a_percent() {
        let mut looks = Looks::default();
        let taken = (0..10_000_u64)
            .filter(|i| {
                looks.count();
                let now = i * 2_500_000;
                let may = looks.may(now);
                if may {
                    looks.spend(now);
                }
                may
            })
            .count();
        assert_eq!(taken, 34);
    }

    #[test]
    fn a_look_that_finds_somebody_well_is_followed_at_once() {
        let mut looks = Looks::default();
        looks.spend(5);
        assert!(!looks.may(6));
        looks.refund();
        assert!(looks.may(6));
    }
}
