//! What is known of one endpoint's load, and how a request is placed by it.
//!
//! **Two classes.** An endpoint is *ill* while what it takes is clearly more than the middle of its own
//! service ([`crate::middle`]): by its answers, by the silence since one was due, or by its failures.
//! Among the others the latency decides nothing, because between equals it is noise and would give them
//! unequal shares; there the requests that wait per weight decide. Among ill ones the cost decides:
//! `latency x (waiting + 1)`, times a factor for failures.
//!
//! **The estimate** moves by ratios, half of the way up and a quarter of the way down, and one answer
//! never makes more than a factor of [`STEP`] of it. So one slow answer makes nobody ill, and two that
//! know nothing of each other do: a slow answer counts only if it was sent after the one before it had
//! come, since what waited together may have waited for a machine that stood still. One in whose midst
//! others answered as usual ([`crate::meanwhile`]) and this endpoint did not says as much as two.
//!
//! **Failures.** A fast 503 must not look like a fast endpoint, so a failure's latency counts only when
//! it raises the estimate. Each adds to a score what it says ([`crate::baseline`]); the score decays twice
//! as fast as the estimate and falls to a third with each success. The factor is
//! `1 + score + penalty x score`, without the last term while the score is no more than [`EXPECTED`]:
//! errors that everybody has make nobody ill. A slow answer raises the estimate by what it says, too.
//!
//! **Silence.** An endpoint that hangs gives no samples. The time since it last answered, while it owes
//! an answer, is a lower bound of what it takes. Requests whose head came owe nothing.
//!
//! **Other workers.** Their requests are added to the own ones. What they measured replaces what is known
//! here where it is newer and says another class, so one worker's look at an ill endpoint serves all; but
//! an endpoint that has answered here since another worker's slow request was sent is not ill.

use std::time::Duration;

use pintle_contract::{Now, nanos};

use crate::baseline::Baseline;
use crate::meanwhile::Meanwhile;
use crate::middle::{FLOOR, ILL, Middle, SEED};

/// How much one answer may raise an estimate, at most; below [`ILL`].
const STEP: f32 = 2.8;
/// An answer above so many estimates is slow, and says the same as others that waited with it.
const SLOW: f32 = 2.0;
/// A score above this is more than the service's own: one failure where hardly any are, two in a row
/// where 1 % of all answers fail,
const EXPECTED: f32 = 0.6;
/// and it counts until four successes in a row have brought it below this.
const PASSED: f32 = 0.02;
/// A false alarm counts as so many bad answers: while they are common there are few others.
const FALSE_ALARM: u32 = 3;
/// Failures that a score remembers, at most; with the default penalty a factor of about 800.
const MAX_SCORE: f32 = 16.0;
/// A score below which nothing is left: with the default penalty half a percent of the cost.
const FORGOTTEN: f32 = 1e-4;
/// What a success leaves of the score.
const FORGIVEN: f32 = 0.35;
/// A score above which another worker will look whether it still fails.
const STILL_FAILING: f32 = 0.1;
/// A latency above this, in ns, is a broken clock: one hour.
const MAX_LATENCY: f32 = 3.6e12;
/// A clock that steps back further than this, in ns, would freeze what is kept; see [`Clock::tick`].
const BACK: u64 = 1_000_000_000;
/// How much newer another worker's better news must be, in ns: a round of its looks.
const NEWER: u64 = 500_000_000;
/// The first look at an endpoint that has just fallen ill comes after so many ns,
const FIRST_LOOK: u64 = 1_000_000_000;
/// or, because one slow answer may have been chance, after so many,
const FIRST_LOOK_AT_SLOW: u64 = 200_000_000;
/// and each one after a look that found it ill after so many.
pub(crate) const NEXT_LOOK: u64 = 4_200_000_000;
/// An opinion holds for so many ns: ten times as long as until it is told again.
const OPINION: u64 = 1_000_000_000;
/// A worker that heard of another's bad news leaves the look to it for so many ns longer than that one waits,
const LEAVE_TO_OTHERS: u64 = 1_000_000_000;
/// and news within so many ns of an endpoint's fall are of the fall.
const FALL: u64 = 1_000_000_000;

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

/// Who may be drawn, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Eligible.
    #[default]
    Open,
    /// Eligible as a probe only.
    Probe,
    /// Not eligible.
    Shut,
    /// Whatever it was, it has as many requests in flight as it may have: drawn by nobody, and not in a
    /// panic. Only draws see this; what is counted is what it was.
    Full,
}

/// The time of the pick, and how memory fades.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// ns since the epoch of the host's clock.
    pub(crate) now: u64,
    /// The decay time of latencies, ns.
    decay: f64,
    penalty: f32,
}

/// What is known of the service as a whole, beside which an endpoint is ill or is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    pub(crate) middle: Middle,
    /// Failures.
    pub(crate) failing: Baseline,
    /// Answers above the middle's limit.
    pub(crate) slow: Baseline,
    pub(crate) meanwhile: Meanwhile,
}

/// What every pick reads of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// When an answer last came, or the first of those waited for was sent; ns.
    progress: u64,
    /// What an answer takes, ns; 0 while nobody has answered.
    latency: f32,
    /// The service's mean weight over this one's.
    pub(crate) inverse_weight: f32,
    /// Requests sent whose head has not come.
    pub(crate) waiting: u32,
    /// The other workers', as a mean over the last second: a count that is 200 ms old is chance.
    pub(crate) waiting_elsewhere: f32,
    /// Requests in flight, from this worker and from the others.
    pub(crate) in_flight: u32,
    pub(crate) elsewhere: u32,
    /// Other workers that have requests here, at most 65,535.
    pub(crate) sharers: u16,
    /// Whether there may be a score, or a wish to be left alone.
    troubled: bool,
}

/// What only an answer, or a pick that meets an ill endpoint, reads of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// When it last answered, here or at a worker that told of it; ns, as all times here.
    pub(crate) sampled_at: u64,
    /// When the last slow answer came.
    slow_at: u64,
    /// When it fell ill last.
    fell_at: u64,
    /// When, if it is ill, a request may look whether it still is.
    pub(crate) look_at: u64,
    /// Leave it alone until then.
    pub(crate) retry_at: u64,
    /// The failure score as of `score_at`.
    score: f32,
    score_at: u64,
    /// Whether the score exceeded [`EXPECTED`] and has not fallen below [`PASSED`] since.
    failing: bool,
    /// A score that the fleet gives it, which no answer here changes, until `advised_until`.
    advised: f32,
    advised_until: u64,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(decay: Duration, penalty: f64, now: Now) -> Self {
        Self { now: now.0, decay: decay.as_nanos().max(1) as f64, penalty: penalty as f32 }
    }

    /// Moves on to `now`. When the host's clock stepped back, no stamp stays in the future.
    #[inline]
    pub(crate) fn tick(&mut self, now: Now, loads: &mut [Load], histories: &mut [History]) {
        if now.0.saturating_add(BACK) < self.now {
            step_back(now.0, loads, histories);
        }
        self.now = now.0;
    }

    /// What is left of a score after `elapsed` ns.
    fn forgetting(&self, elapsed: u64) -> f64 {
        (-2.0 * elapsed as f64 / self.decay).exp()
    }
}

#[cold]
#[inline(never)]
fn step_back(now: u64, loads: &mut [Load], histories: &mut [History]) {
    for load in loads {
        load.progress = load.progress.min(now);
    }
    for past in histories {
        past.sampled_at = past.sampled_at.min(now);
        past.slow_at = past.slow_at.min(now);
        past.fell_at = past.fell_at.min(now);
        past.look_at = past.look_at.min(now);
        past.retry_at = past.retry_at.min(now);
        past.score_at = past.score_at.min(now);
        past.advised_until = past.advised_until.min(now.saturating_add(OPINION));
    }
}

// === impl Service ===

impl Service {
    /// Counts an answer of an endpoint that was, and now is, ill or not.
    ///
    /// What makes an endpoint ill is not counted, or a service with ill ones would be used to them. It
    /// is when the endpoint proves well soon after: the alarm was false.
    pub(crate) fn learn(&mut self, (was_ill, is_ill): (bool, bool), failed: bool, slow: bool) {
        match (was_ill, is_ill) {
            (false, false) => {
                self.failing.count(failed);
                self.slow.count(slow && !failed);
            }
            (true, false) => {
                for _ in 0..FALSE_ALARM {
                    self.failing.count(true);
                    self.slow.count(true);
                }
            }
            (_, true) => {}
        }
    }
}

// === impl Load ===

impl Load {
    pub(crate) const fn new(clock: &Clock) -> Self {
        Self {
            progress: clock.now,
            latency: 0.0,
            inverse_weight: 1.0,
            waiting: 0,
            waiting_elsewhere: 0.0,
            in_flight: 0,
            elsewhere: 0,
            sharers: 0,
            troubled: false,
        }
    }

    pub(crate) const fn active(&self) -> u32 {
        self.in_flight.saturating_add(self.elsewhere)
    }

    /// Requests that wait here, per mean weight.
    #[inline]
    pub(crate) fn queue(&self) -> f64 {
        (f64::from(self.waiting) + f64::from(self.waiting_elsewhere))
            * f64::from(self.inverse_weight)
    }

    /// `(active + 1)^bias / weight`, times the mean weight.
    #[inline]
    pub(crate) fn burden(&self, bias: f64) -> f64 {
        let requests = (u64::from(self.in_flight) + u64::from(self.elsewhere) + 1) as f64;
        // Left to itself the compiler works out the power for everybody.
        let crowd = if bias == 1.0 { requests } else { power(requests, bias) };
        crowd * f64::from(self.inverse_weight)
    }

    /// Whether it has to be looked at more closely: [`Self::cost`] and [`Middle::limit`] tell.
    #[inline]
    pub(crate) fn is_suspect(&self, clock: &Clock, middle: &Middle) -> bool {
        self.latency > middle.limit()
            || self.troubled
            || (self.waiting > 0 && clock.now.saturating_sub(self.progress) > middle.patience())
    }

    /// How long it has owed an answer, ns; 0 when it owes none.
    pub(crate) const fn silence(&self, clock: &Clock) -> u64 {
        if self.waiting == 0 { 0 } else { clock.now.saturating_sub(self.progress) }
    }

    /// The latency estimate, ns; the service's middle while there is none.
    pub(crate) fn latency(&self, middle: &Middle) -> f32 {
        if self.latency > 0.0 { self.latency } else { middle.latency() }
    }

    /// What an answer takes here now, ns, with what failures and the wish to be left alone add to it.
    pub(crate) fn time(&self, past: &History, clock: &Clock, middle: &Middle, factor: f32) -> f32 {
        let wait = past.retry_at.saturating_sub(clock.now) as f32;
        // Patience is longer than the limit, so that no ordinary pause counts as latency.
        let silence = match self.silence(clock) {
            silence if silence > middle.patience() => silence as f32,
            _ => 0.0,
        };
        self.latency(middle).max(wait).max(silence) * factor
    }

    pub(crate) const fn started(&mut self, now: Now) {
        if self.waiting == 0 {
            self.progress = now.0;
        }
        self.waiting = self.waiting.saturating_add(1);
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// The head came, or the failure.
    pub(crate) const fn answered(&mut self, now: Now) {
        self.waiting = self.waiting.saturating_sub(1);
        self.progress = now.0;
    }

    /// Nobody waits for the head any more; the endpoint still has not answered.
    pub(crate) const fn given_up(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    pub(crate) const fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Takes a measured latency.
    fn sample(&mut self, past: &mut History, clock: &Clock, service: &Service, ns: f32) {
        let old = self.latency(&service.middle);
        if ns <= old {
            // The fourth root of `old^3 x ns`, by two instructions.
            let quarter = (old * (old * ns).sqrt()).sqrt();
            let elapsed = clock.now.saturating_sub(past.sampled_at) as f64;
            // After a long time without answers the old ones say less.
            let kept =
                if elapsed > clock.decay / 4.0 { (-elapsed / clock.decay).exp() } else { 1.0 };
            self.latency = quarter.min(ns + (old - ns) * kept as f32);
            return;
        }
        let sent_at = clock.now.saturating_sub(ns as u64);
        if ns > old * SLOW {
            if sent_at < past.slow_at {
                return;
            }
            past.slow_at = clock.now;
        }
        let limit = service.middle.limit();
        let mut half = (old * ns).sqrt();
        let mut most = STEP;
        if ns > limit {
            let (surprise, apart) = (service.slow.surprise(), limit as u64);
            let alone = past.sampled_at <= sent_at.saturating_add(apart)
                && service.meanwhile.saw(sent_at, clock.now, apart);
            if alone {
                half = (half * ns).sqrt();
            }
            most = STEP.powf(if alone { 2.0 * surprise } else { surprise });
        }
        self.latency = half.min(old * most);
    }
}

// === impl History ===

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

    const fn is_troubled(&self, now: u64) -> bool {
        self.score > 0.0 || self.retry_at > now || self.is_advised(now)
    }

    fn set_score(&mut self, score: f32, clock: &Clock) {
        self.score = if score < FORGOTTEN { 0.0 } else { score.min(MAX_SCORE) };
        self.failing = score > EXPECTED || (self.failing && score > PASSED);
        self.score_at = clock.now;
    }

    /// It has just fallen ill, or still is, and is not to be looked at before a while.
    pub(crate) const fn put_off(&mut self, was_ill: bool, failed: bool, now: u64) {
        if !was_ill {
            self.fell_at = now;
            let wait = if failed { FIRST_LOOK } else { FIRST_LOOK_AT_SLOW };
            self.look_at = now.saturating_add(wait);
        } else if self.look_at <= now {
            self.look_at = now.saturating_add(NEXT_LOOK);
        }
    }

    /// Whether a request may look at an endpoint that owes an answer for `silence` ns.
    pub(crate) const fn may_look(&self, now: u64, silence: u64) -> bool {
        now >= self.look_at && now >= self.retry_at && (silence == 0 || silence > FIRST_LOOK)
    }
}

// === an answer, and what the others tell ===

/// Books what became of a request.
pub(crate) fn observe(
    load: &mut Load,
    past: &mut History,
    clock: &Clock,
    service: &Service,
    sample: (Option<Duration>, bool),
) {
    let (latency, failed) = sample;
    if let Some(latency) = latency {
        let ns = (nanos(latency) as f32).clamp(FLOOR, MAX_LATENCY);
        if !failed || ns > load.latency(&service.middle) {
            load.sample(past, clock, service, ns);
        }
    }
    past.sampled_at = clock.now;
    let score = past.score_now(clock);
    if failed {
        past.set_score(score + service.failing.surprise(), clock);
    } else if past.score > 0.0 {
        past.set_score(score * FORGIVEN, clock);
    }
    load.troubled = past.is_troubled(clock.now);
}

/// Books that nobody waited for the answer, but that it takes at least `waited`.
pub(crate) fn observe_at_least(
    load: &mut Load,
    past: &mut History,
    clock: &Clock,
    service: &Service,
    waited: Duration,
) {
    let ns = (nanos(waited) as f32).clamp(FLOOR, MAX_LATENCY);
    if ns > load.latency(&service.middle) {
        load.sample(past, clock, service, ns);
    }
}

/// Leaves the endpoint alone until `then`, ns.
pub(crate) fn leave_alone(load: &mut Load, past: &mut History, clock: &Clock, then: u64) {
    past.retry_at = past.retry_at.max(then);
    load.troubled |= past.retry_at > clock.now;
}

/// What is worth telling the others: something in flight, or sampled within the decay time.
pub(crate) fn tell(
    load: &Load,
    past: &History,
    key: u64,
    clock: &Clock,
    now: Now,
) -> Option<LoadEntry> {
    let clock = &Clock { now: now.0, ..*clock };
    let age = now.0.saturating_sub(past.sampled_at) as f64;
    let fresh = past.sampled_at > 0 && age <= clock.decay;
    if load.in_flight == 0 && !fresh && past.retry_at <= now.0 {
        return None;
    }
    Some(LoadEntry {
        key,
        in_flight: load.in_flight,
        waiting: load.waiting,
        latency_us: (load.latency / 1e3) as u32,
        failures_milli: (past.score_now(clock) * 1e3) as u32,
        sampled_at: Now(past.sampled_at),
        retry_at: Now(past.retry_at),
    })
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
        (past.advised, past.advised_until) = (score, clock.now.saturating_add(OPINION));
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
    if (slow || score > STILL_FAILING) && sampled_at > past.sampled_at {
        if !was_ill {
            past.fell_at = sampled_at;
        }
        let fell = sampled_at < past.fell_at.saturating_add(FALL);
        let theirs = match fell {
            true if slow => FIRST_LOOK_AT_SLOW,
            true => FIRST_LOOK,
            false => NEXT_LOOK,
        };
        past.look_at = past.look_at.max(sampled_at.saturating_add(theirs + LEAVE_TO_OTHERS));
    }
    if taken {
        // Also where that is earlier than the own one: it must not come back as fresher news.
        past.sampled_at = sampled_at;
    }
    past.retry_at = past.retry_at.max(entry.retry_at.0);
    load.troubled = past.is_troubled(clock.now);
}

#[cold]
#[inline(never)]
fn power(base: f64, exponent: f64) -> f64 {
    base.powf(exponent)
}

const _: () = assert!(STEP < ILL && SEED >= FLOOR);

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
