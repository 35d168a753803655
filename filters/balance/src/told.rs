//! What one worker tells the others of an endpoint, and what these make of it.
//!
//! What they measured replaces what is known here where it is newer and says another class, so one
//! worker's look at an ill endpoint serves all; but an endpoint that has answered here since
//! another worker's slow request was sent is not ill. Their requests in flight count where limits
//! and `least_request` count, and that they have asked an endpoint takes its turn here.

use pintle_contract::Now;

use crate::clock::Clock;
use crate::history::{History, MAX_SCORE, NEXT_LOOK};
use crate::load::{Load, MAX_LATENCY};
use crate::middle::{FLOOR, Middle};

/// What was sampled within so many ns is told with every tick.
const RECENT: u64 = 1_000_000_000;
/// How much newer another worker's better news must be, in ns: a round of its looks.
const NEWER: u64 = 500_000_000;
/// A score above which another worker will look whether it still fails.
const STILL_FAILING: f32 = 0.1;
/// A worker that heard of another's bad news leaves the look to it for so many ns longer than that
/// one waits,
const LEAVE_TO_OTHERS: u64 = 1_000_000_000;

/// One endpoint's load as one worker tells it to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadEntry {
    /// Which endpoint: [`crate::Balancer::key_of`].
    pub key: u64,
    /// Requests that this worker has in flight there.
    pub in_flight: u32,
    /// Those of them whose response's head has not come.
    pub waiting: u32,
    /// Latency estimate, µs; 0 when nothing is known yet.
    pub latency_us: u32,
    /// Failure score, thousandths.
    pub failures_milli: u32,
    /// When the endpoint last answered, as far as the worker knows. 0 with a failure score:
    /// an opinion, which no answer changes for a second.
    pub sampled_at: Now,
    /// Until when the endpoint asked to be left alone; in the past when it did not.
    pub retry_at: Now,
}

/// Who was sampled since then is worth telling of, ns.
pub(crate) const fn since(clock: &Clock, all: bool) -> u64 {
    let age = if all { clock.decay as u64 } else { RECENT };
    // At 0 nothing was sampled yet.
    let since = clock.now.saturating_sub(age);
    if since == 0 { 1 } else { since }
}

/// Whether an endpoint is worth telling of.
#[inline]
pub(crate) const fn is_news(load: &Load, past: &History, since: u64, now: Now) -> bool {
    load.in_flight > 0 || past.sampled_at >= since || past.retry_at > now.0
}

/// The latency estimate, µs.
pub(crate) const fn micros(load: &Load) -> u32 {
    (load.latency / 1e3) as u32
}

/// What is told of it.
pub(crate) fn tell(load: &Load, past: &History, key: u64, clock: &Clock) -> LoadEntry {
    LoadEntry {
        key,
        in_flight: load.in_flight,
        waiting: load.waiting,
        latency_us: micros(load),
        failures_milli: (past.score_now(clock) * 1e3) as u32,
        sampled_at: Now(past.sampled_at),
        retry_at: Now(past.retry_at),
    }
}

/// Folds in what another worker knew.
pub(crate) fn hear(
    load: &mut Load,
    past: &mut History,
    clock: &Clock,
    middle: &Middle,
    entry: &LoadEntry,
) {
    let score = (entry.failures_milli as f32 / 1e3).min(MAX_SCORE);
    if entry.sampled_at.0 == 0 && score > 0.0 {
        past.advise(score, clock);
        load.troubled = true;
        return;
    }
    // No clock but the host's own is in it, and that may have stepped back meanwhile.
    let sampled_at = entry.sampled_at.0.min(clock.now);
    let newer = sampled_at > past.sampled_at.saturating_add(NEWER);
    let recent = sampled_at.saturating_add(NEWER) > past.sampled_at;
    let latency = (entry.latency_us as f32 * 1e3).min(MAX_LATENCY);
    let answered_since = past.sampled_at.saturating_add(latency as u64) > sampled_at;
    let was_ill = load.latency > middle.limit() || past.score > 0.0;
    let mut taken = newer;
    if latency > 0.0 {
        let (ill, known_ill) = (latency > middle.limit(), load.latency > middle.limit());
        let worse = ill && !known_ill && recent && !answered_since;
        if load.latency == 0.0 || worse || (!ill && known_ill && newer) {
            load.latency = latency.max(FLOOR);
            taken = true;
        }
    }
    let known = past.score_now(clock);
    if (score > known && recent) || (score < known && newer) {
        past.set_score(score, clock);
        taken = true;
    }
    let slow = latency > middle.limit() && load.latency > middle.limit();
    // That it does better puts no look off.
    let failing = score > STILL_FAILING && score >= known;
    if (slow || failing) && sampled_at > past.sampled_at {
        if !was_ill {
            past.fall(sampled_at);
        }
        let fell = past.is_of_fall(sampled_at);
        let theirs = if fell { past.first_wait(!slow) } else { NEXT_LOOK };
        past.look_at = past.look_at.max(sampled_at.saturating_add(theirs + LEAVE_TO_OTHERS));
    }
    if entry.waiting > 0 {
        past.asked_at = clock.now;
    }
    let long_ago = clock.now > past.sampled_at.saturating_add(NEWER);
    load.asked |= newer || (long_ago && entry.waiting > load.waiting);
    if taken {
        // Also where that is earlier than the own one: it must not come back as fresher news.
        past.sampled_at = sampled_at;
    }
    past.retry_at = past.retry_at.max(entry.retry_at.0);
    load.troubled = past.is_troubled(clock.now);
}
