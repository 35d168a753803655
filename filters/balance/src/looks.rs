//! How often a request looks at an endpoint that is clearly ill while others are well.
//!
//! A look that finds it still ill costs somebody a slow answer or an error, so all of them together
//! are bounded by the requests of the service. One that finds it well costs nobody anything: it is
//! not counted, and the next may follow at once. The first one after a relapse is counted, or an
//! endpoint that answers every other request would get twice as many.

use crate::history::NEXT_LOOK;

/// One look in so many requests, 0.25 %: with those that found them ill there are less than 0.5 %
/// in 8,000.
const EVERY: u32 = 400;
/// A small service looks more often, or it would take ten seconds to find one of three endpoints
/// well at 30 requests/s: after [`NEXT_LOOK`] in which so many requests were placed
const AT_LEAST: u32 = 60;
/// and so many for each endpoint: 10/s, by one of two workers.
const FOR_EACH: u32 = 20;
/// However few requests there are, nothing is believed for longer than so many ns without a look.
const AGED: u64 = 30_000_000_000;

/// The looks of one service in one worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// Picks since the last look.
    picks: u32,
    /// When that was, ns.
    last: u64,
    /// Whether it was one in fewer than [`EVERY`].
    early: bool,
}

impl Default for Looks {
    fn default() -> Self {
        Self { picks: EVERY, last: 0, early: false }
    }
}

impl Looks {
    /// A request is placed.
    #[inline]
    pub(crate) const fn count(&mut self) {
        self.picks = self.picks.saturating_add(1);
    }

    /// Whether there may be one now, in a service of so many endpoints.
    pub(crate) fn may(&self, now: u64, endpoints: usize) -> bool {
        let since = now.saturating_sub(self.last);
        let least = (FOR_EACH as usize).saturating_mul(endpoints).max(AT_LEAST as usize);
        self.picks >= EVERY || since >= AGED || (since >= NEXT_LOOK && self.picks as usize >= least)
    }

    /// There is one now.
    pub(crate) const fn spend(&mut self, now: u64) {
        self.early = self.picks < EVERY;
        (self.picks, self.last) = (0, now);
    }

    /// The last one found somebody well. Where that is not `sure`, another follows at once only in
    /// a small service, which would have to wait for it.
    pub(crate) const fn refund(&mut self, sure: bool) {
        if sure || self.early {
            self.picks = EVERY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In so many requests at so many a second, beside so many endpoints.
    fn taken(requests: u64, rate: u64, endpoints: usize) -> usize {
        let mut looks = Looks::default();
        let look = |i: &u64| {
            looks.count();
            let now = (i + rate * 60) * 1_000_000_000 / rate;
            let may = looks.may(now, endpoints);
            if may {
                looks.spend(now);
            }
            may
        };
        (0..requests).filter(look).count()
    }

    #[test]
    fn looks_stay_below_half_a_percent() {
        assert_eq!(taken(10_000, 400, 10), 25);
        // By the clock, half a minute.
        assert_eq!(taken(10_000, 10, 30), 34);
    }

    #[test]
    fn a_small_service_looks_more_often_and_a_quiet_one_by_the_clock() {
        // Two workers share 30 requests/s to three.
        assert_eq!(taken(1_000, 15, 3), 16);
        // Half an hour at a request each two seconds.
        assert_eq!(taken(900, 1, 30), 30);
    }

    #[test]
    fn a_look_that_finds_somebody_well_is_followed_at_once() {
        let mut looks = Looks::default();
        looks.spend(5);
        assert!(!looks.may(6, 10));
        looks.refund(true);
        assert!(looks.may(6, 10));
    }

    #[test]
    fn one_that_is_doubted_is_followed_at_once_in_a_small_service_alone() {
        for (picks, early) in [(EVERY, false), (AT_LEAST, true)] {
            let mut looks = Looks { picks, ..Looks::default() };
            looks.spend(5);
            looks.refund(false);
            assert_eq!(looks.may(6, 10), early, "{picks}");
        }
    }
}
