//! What only an answer, or a pick that meets an ill endpoint, reads of it: its failures, and when
//! it may be looked at again.
//!
//! A fast 503 must not look like a fast endpoint, so a failure's latency counts only when it raises
//! the estimate. Each adds to a score what it says ([`crate::baseline`]); the score decays twice as
//! fast as the estimate and falls to a third with each success. The factor is
//! `1 + score + penalty x score`, without the last term while the score is no more than
//! [`EXPECTED`]: errors that everybody has make nobody ill. A slow answer raises the estimate by
//! what it says, too.

use crate::clock::Clock;

/// A score above this is more than the service's own: one failure where hardly any are, two in a
/// row where 1 % of all answers fail,
const EXPECTED: f32 = 0.6;
/// and it counts until four successes in a row have brought it below this.
const PASSED: f32 = 0.02;
/// Failures that a score remembers, at most; with the default penalty a factor of about 800.
pub(crate) const MAX_SCORE: f32 = 16.0;
/// A score below which nothing is left: with the default penalty half a percent of the cost.
const FORGOTTEN: f32 = 1e-4;
/// What a success leaves of the score.
const FORGIVEN: f32 = 0.35;
/// The first look at an endpoint that has just fallen ill comes after so many ns,
const FIRST_LOOK: u64 = 1_000_000_000;
/// or, because one slow answer may have been chance, after so many,
const FIRST_LOOK_AT_SLOW: u64 = 200_000_000;
/// and each one after a look that found it ill after so many.
pub(crate) const NEXT_LOOK: u64 = 4_200_000_000;
/// News within so many ns of an endpoint's fall are of the fall.
const FALL: u64 = 1_000_000_000;
/// Who falls ill again within so many ns has relapsed.
const REMEMBERED: u64 = 20_000_000_000;
/// An opinion holds for so many ns: ten times as long as until it is told again.
const OPINION: u64 = 1_000_000_000;

/// What the looks at an ill endpoint have found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Found {
    /// Nothing good yet.
    #[default]
    Ill,
    /// It was well the last time.
    Well,
    /// It was ill after it had been well.
    Relapsed,
}

/// Of one endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// When it last answered, here or at a worker that told of it; ns, as all times here.
    pub(crate) sampled_at: u64,
    /// When another worker was last heard to wait for it.
    pub(crate) asked_at: u64,
    /// When the last slow answer came.
    pub(crate) slow_at: u64,
    /// When it fell ill last.
    pub(crate) fell_at: u64,
    /// When, if it is ill, a request may look whether it still is.
    pub(crate) look_at: u64,
    /// Leave it alone until then.
    pub(crate) retry_at: u64,
    /// The failure score as of `score_at`.
    pub(crate) score: f32,
    score_at: u64,
    /// Whether the score exceeded [`EXPECTED`] and has not fallen below [`PASSED`] since.
    failing: bool,
    /// What the looks at it have found since it fell ill.
    found: Found,
    /// A score that the fleet gives it, which no answer here changes, until `advised_until`.
    advised: f32,
    advised_until: u64,
}

impl History {
    /// The failure score.
    pub(crate) fn score_now(&self, clock: &Clock) -> f32 {
        if self.score == 0.0 {
            return 0.0;
        }
        self.score * clock.forgetting(clock.now.saturating_sub(self.score_at)) as f32
    }

    /// What failures multiply the cost by.
    pub(crate) fn factor(&self, clock: &Clock) -> f32 {
        let score = self.score_now(clock);
        let counted = if self.failing { score } else { 0.0 };
        let advised = if self.is_advised(clock.now) { self.advised } else { 0.0 };
        1.0 + score.max(advised) + clock.penalty * counted.max(advised)
    }

    /// Whether the fleet advises against it.
    pub(crate) const fn is_advised(&self, now: u64) -> bool {
        now < self.advised_until
    }

    /// An answer, `surprise` being what a failure says.
    pub(crate) fn count(&mut self, failed: bool, surprise: f32, clock: &Clock) {
        let score = self.score_now(clock);
        if failed {
            self.set_score(score + surprise, clock);
        } else if score > 0.0 {
            self.set_score(score * FORGIVEN, clock);
        }
    }

    /// The fleet gives it a score.
    pub(crate) const fn advise(&mut self, score: f32, clock: &Clock) {
        (self.advised, self.advised_until) = (score, clock.now.saturating_add(OPINION));
    }

    /// The clock stepped back to `now`: nothing stays in the future.
    pub(crate) fn step_back(&mut self, now: u64) {
        for at in [
            &mut self.sampled_at,
            &mut self.asked_at,
            &mut self.slow_at,
            &mut self.fell_at,
            &mut self.look_at,
            &mut self.retry_at,
            &mut self.score_at,
        ] {
            *at = now.min(*at);
        }
        self.advised_until = self.advised_until.min(now.saturating_add(OPINION));
    }

    pub(crate) const fn is_troubled(&self, now: u64) -> bool {
        self.score > 0.0 || self.retry_at > now || self.is_advised(now)
    }

    pub(crate) fn set_score(&mut self, score: f32, clock: &Clock) {
        self.score = if score < FORGOTTEN { 0.0 } else { score.min(MAX_SCORE) };
        self.failing = score > EXPECTED || (self.failing && score > PASSED);
        self.score_at = clock.now;
    }

    /// It was well and is ill as of `at`, ns.
    pub(crate) fn fall(&mut self, at: u64) {
        let again = self.fell_at > 0 && at.saturating_sub(self.fell_at) < REMEMBERED;
        self.found = if again { Found::Relapsed } else { Found::Ill };
        self.fell_at = at;
    }

    /// Whether what was seen at `at` is of its fall.
    pub(crate) const fn is_of_fall(&self, at: u64) -> bool {
        at < self.fell_at.saturating_add(FALL)
    }

    /// How long after its fall the first look comes, ns.
    pub(crate) const fn first_wait(&self, failed: bool) -> u64 {
        match (failed, self.found) {
            (false, _) => FIRST_LOOK_AT_SLOW,
            (true, Found::Relapsed) => NEXT_LOOK,
            (true, _) => FIRST_LOOK,
        }
    }

    /// It has just fallen ill, or still is, and is not to be looked at before a while.
    pub(crate) fn put_off(&mut self, was_ill: bool, failed: bool, now: u64) {
        if !was_ill {
            self.fall(now);
            self.look_at = now.saturating_add(self.first_wait(failed));
            return;
        }
        if self.found == Found::Well {
            self.found = Found::Relapsed;
        }
        if self.look_at <= now {
            self.look_at = now.saturating_add(NEXT_LOOK);
        }
    }

    /// A look has found it well, at `now`; whether that is to be believed. Who fails, and was found
    /// ill by a look after it had been found well, may answer every other request.
    pub(crate) fn find_well(&mut self, now: u64) -> bool {
        self.look_at = now;
        let before = std::mem::replace(&mut self.found, Found::Well);
        !(self.failing && before == Found::Relapsed)
    }

    /// Whether a request may look at an endpoint that owes an answer for `silence` ns.
    pub(crate) const fn may_look(&self, now: u64, silence: u64) -> bool {
        now >= self.look_at && now >= self.retry_at && (silence == 0 || silence > FIRST_LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn failing(at: u64) -> History {
        let mut past = History { failing: true, ..History::default() };
        past.put_off(false, true, at);
        past
    }

    #[test]
    fn the_first_good_look_after_a_relapse_is_doubted() {
        let mut past = failing(SECOND);
        past.put_off(true, true, 3 * SECOND);
        assert!(past.find_well(8 * SECOND), "nothing good was seen before");
        past.put_off(true, true, 8 * SECOND);
        assert!(!past.find_well(13 * SECOND));
        assert!(past.find_well(14 * SECOND));
    }

    #[test]
    fn who_falls_again_within_a_while_has_relapsed() {
        for (after, relapsed) in [(19 * SECOND, true), (21 * SECOND, false)] {
            let mut past = failing(SECOND);
            past.put_off(false, true, SECOND + after);
            let first = if relapsed { NEXT_LOOK } else { FIRST_LOOK };
            assert_eq!(past.look_at, SECOND + after + first, "{after}");
            assert_eq!(past.find_well(past.look_at), !relapsed, "{after}");
        }
    }

    #[test]
    fn who_is_only_slow_is_believed() {
        let mut past = History::default();
        past.put_off(false, false, SECOND);
        assert!(past.find_well(2 * SECOND));
        past.put_off(true, false, 3 * SECOND);
        assert!(past.find_well(8 * SECOND));
    }
}
