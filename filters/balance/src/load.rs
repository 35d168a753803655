//! What is known of an endpoint's load, and what one more request there costs.
//!
//! The cost is `peak-EWMA(latency) x (in-flight + 1) / weight`, times a factor for failures. The
//! estimate follows Finagle's: a sample above it is taken at once, one below decays in with the decay
//! time (10 s), and without samples it decays to the floor, so that a slow endpoint is tried again
//! without a timer. Reads are projections to `now`; only samples write.
//!
//! **Stalls.** What a machine that stands still adds to every latency says nothing of an endpoint, and
//! after it the slow one, of which nobody takes samples, must not look the fastest for ten seconds. So
//! beside the decay time each sample below the estimate takes a quarter of the difference: a dozen
//! fast answers, and an endpoint is as fast as it was. One that is slow gives none.
//!
//! **Forward decay.** A pick reads several estimates, and an exponential for each would be most of its
//! cost. Everything decays at one rate, so an estimate is kept as what it would have been at a common
//! epoch, `latency x e^((at - epoch) / decay)`: then estimates compare as they are, and whatever does not
//! decay (the floor, a time of silence) is multiplied once by the [`Clock`]'s factor for `now`. The epoch
//! moves before the numbers grow large, and when the host's clock steps back.
//!
//! **Failures.** A fast 503 must not look like a fast endpoint, so a failure's latency counts only when
//! it raises the estimate, and each failure adds one to a score that decays twice as fast as the
//! latency does. The factor is `1 + score + penalty x excess`: the second term holds for everybody, the
//! third only for the part of the score that exceeds twice the mean of the *other* endpoints. Without
//! that comparison a service that answers 1 % of its requests with errors would see its traffic
//! chase whichever endpoint had not failed for a second.
//!
//! **Silence.** An endpoint that hangs gives no samples. The time since an endpoint with requests in
//! flight last answered any of them is a lower bound on what it takes, so it counts as latency, one
//! subtraction per read. Beyond the decay time it no longer does: what has been quiet for that long is
//! a stream.
//!
//! **Other workers.** Their in-flight counts are added. Their estimates and scores are folded in by
//! maximum, which is safe to repeat and to hear back from a third: an echo is never above what its source
//! once knew, and fades with the decay time.

use std::time::Duration;

use pintle_contract::Now;

/// A fresh endpoint's estimate, ns. Zero would make it look free, and everybody would go there.
const SEED: f64 = 30e6;
/// The estimate's lower bound, ns: differences below a millisecond are noise of the machine.
const FLOOR: f64 = 1e6;
/// Of an estimate above the sample, what is kept at most.
const RECOVERY: f64 = 0.75;
/// Failures that a score remembers, at most; with the default penalty a factor of about 800.
const MAX_SCORE: f64 = 16.0;
/// Failures too long ago to matter: with the default penalty half a percent of the cost.
const FORGOTTEN: f64 = 1e-4;
/// The longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Decay times from one epoch to the next. e^64 is far from any bound of a double, also squared.
const EPOCH_SPANS: u64 = 64;
/// A latency above this is a broken clock. An hour in ns.
const MAX_LATENCY: f64 = 3.6e12;

/// One endpoint's load as one worker tells it to the others. As of the moment of telling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadEntry {
    /// Which endpoint: [`crate::Balancer::key_of`].
    pub key: u64,
    /// Requests of this worker there whose response's head has not come.
    pub in_flight: u32,
    /// Latency estimate, µs; 0 when nothing is known yet.
    pub latency_us: u32,
    /// Failure score, thousandths.
    pub failures_milli: u32,
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
}

/// How memory fades, for all endpoints of a service, and what time it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// `1 / (decay x ln 2)` per ns: turns a time into halvings' exponent.
    halvings_per_ns: f64,
    /// The decay time, ns.
    span: u64,
    /// How long the factor may lag, ns.
    step: u64,
    penalty: f64,
    epoch: u64,
    last: u64,
    /// `e^((scaled_at - epoch) / decay)`.
    scale: f64,
    scaled_at: u64,
    /// The least estimate, as of the epoch.
    floor: f64,
}

/// The sum of all scores, so that one endpoint's can be compared with the mean of the others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Failures {
    /// As of the epoch.
    sum: f64,
}

/// One endpoint's load.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Estimate as of the epoch, ns.
    latency: f64,
    /// Score as of the epoch; it decays twice as fast.
    score: f64,
    /// When the estimate last took a sample.
    at: u64,
    /// When an answer last came, or the first of those in flight left.
    progress: u64,
    /// Leave it alone until then.
    retry_at: u64,
    /// When this worker last sampled it.
    sampled_at: u64,
    pub(crate) in_flight: u32,
    /// Those of them whose response's head has not come.
    waiting: u32,
    /// In flight from the other workers.
    pub(crate) elsewhere: u32,
    /// `1 / weight`.
    pub(crate) inverse_weight: f32,
    /// Whether there may be a score, or a wish to be left alone.
    troubled: bool,
    /// Whether another worker has told of it.
    heard_of: bool,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(span: Duration, penalty: f64, now: Now) -> Self {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            halvings_per_ns: std::f64::consts::LOG2_E / span as f64,
            span,
            step: span >> 12,
            penalty,
            epoch: now.0,
            last: now.0,
            scale: 1.0,
            scaled_at: now.0,
            floor: FLOOR,
        }
    }

    /// Moves on to `now`; before everything else that takes a time. The factor may lag by a four
    /// thousandth of the decay time, also where the clock stepped back by no more than that.
    #[inline]
    pub(crate) fn tick(&mut self, now: Now, loads: &mut [Load], failures: &mut Failures) {
        // A time before the factor's is a very long time after it here.
        if now.0.wrapping_sub(self.scaled_at) > self.step {
            self.advance(now, loads, failures);
        }
        self.last = now.0;
    }

    #[cold]
    #[inline(never)]
    fn advance(&mut self, now: Now, loads: &mut [Load], failures: &mut Failures) {
        if now.0 < self.last || now.0 - self.epoch > self.span.saturating_mul(EPOCH_SPANS) {
            self.rebase(now, loads, failures);
        } else {
            self.scale = self.power(now.0 - self.epoch);
            self.floor = FLOOR * self.scale;
            self.scaled_at = now.0;
        }
    }

    /// Where the last tick moved it.
    pub(crate) const fn now(&self) -> u64 {
        self.last
    }

    /// Makes `now` the epoch. When the clock stepped back, nothing has decayed meanwhile, and no stamp
    /// stays in the future.
    fn rebase(&mut self, now: Now, loads: &mut [Load], failures: &mut Failures) {
        let scale = self.power(self.last.max(now.0) - self.epoch);
        for load in loads {
            load.latency /= scale;
            load.score /= scale * scale;
            load.at = load.at.min(now.0);
            load.progress = load.progress.min(now.0);
            load.sampled_at = load.sampled_at.min(now.0);
            load.retry_at = load.retry_at.min(now.after(MAX_RETRY_AFTER).0);
        }
        failures.sum /= scale * scale;
        (self.epoch, self.scaled_at) = (now.0, now.0);
        (self.scale, self.floor) = (1.0, FLOOR);
    }

    /// `e^(elapsed / decay)`, to a few millionths; without end beyond 690 decay times.
    fn power(&self, elapsed: u64) -> f64 {
        let x = elapsed as f64 * self.halvings_per_ns;
        if x > 1000.0 {
            return f64::INFINITY;
        }
        let whole = (x + 0.5) as u64;
        let f = (x - whole as f64) * std::f64::consts::LN_2;
        let ff = f * f;
        let part =
            (1.0 + f) + ff * ((0.5 + f * (1.0 / 6.0)) + ff * (1.0 / 24.0 + f * (1.0 / 120.0)));
        part * f64::from_bits((1023 + whole) << 52)
    }
}

// === impl Failures ===

impl Failures {
    /// The sum over `loads`, after the table changed.
    pub(crate) fn of(loads: &[Load]) -> Self {
        Self { sum: loads.iter().map(|l| l.score).sum() }
    }
}

// === impl Load ===

impl Load {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self {
            latency: SEED * clock.scale,
            score: 0.0,
            at: clock.last,
            progress: clock.last,
            retry_at: 0,
            sampled_at: 0,
            in_flight: 0,
            waiting: 0,
            elsewhere: 0,
            inverse_weight: 1.0,
            troubled: false,
            heard_of: false,
        }
    }

    /// The decay time changed: what is known at `old`'s time becomes what is known at `new`'s.
    pub(crate) fn convert(&mut self, old: &Clock, new: &Clock) {
        self.latency = self.latency / old.scale * new.scale;
        self.score = self.score / (old.scale * old.scale) * (new.scale * new.scale);
    }

    pub(crate) const fn active(&self) -> u32 {
        self.in_flight.saturating_add(self.elsewhere)
    }

    /// Whether nobody has been there yet, from this worker or, as far as it heard, another.
    pub(crate) const fn is_untried(&self) -> bool {
        self.sampled_at == 0 && !self.heard_of && self.active() == 0
    }

    /// What one more request costs here now, one of `endpoints`; ns per unit of weight, as of the epoch.
    #[inline]
    pub(crate) fn cost(&self, clock: &Clock, all: &Failures, endpoints: usize) -> f64 {
        if self.troubled {
            return self.cost_when_troubled(clock, all, endpoints);
        }
        self.time(clock) * self.queue()
    }

    #[cold]
    #[inline(never)]
    fn cost_when_troubled(&self, clock: &Clock, all: &Failures, endpoints: usize) -> f64 {
        let wait = self.retry_at.saturating_sub(clock.last) as f64 * clock.scale;
        let cost = higher(self.time(clock), wait) * self.queue();
        let now = 1.0 / (clock.scale * clock.scale);
        let score = self.score * now;
        let others = endpoints.saturating_sub(1).max(1) as f64;
        let mean = (all.sum * now - score).max(0.0) / others;
        let excess = (score - 2.0 * mean).max(0.0);
        cost * (1.0 + score + clock.penalty * excess)
    }

    /// What an answer takes; ns, as of the epoch.
    #[inline]
    fn time(&self, clock: &Clock) -> f64 {
        let ns = higher(self.latency, clock.floor);
        if self.waiting == 0 {
            return ns;
        }
        let silence = clock.last.saturating_sub(self.progress);
        if silence > clock.span {
            return ns;
        }
        higher(ns, silence as f64 * clock.scale)
    }

    /// `(waiting + 1) / weight`. What streams its body keeps nobody waiting.
    #[inline]
    fn queue(&self) -> f64 {
        let requests = (u64::from(self.waiting) + u64::from(self.elsewhere) + 1) as f64;
        requests * f64::from(self.inverse_weight)
    }

    /// `(active + 1)^bias / weight`.
    #[inline]
    pub(crate) fn burden(&self, bias: f64) -> f64 {
        let requests = (u64::from(self.in_flight) + u64::from(self.elsewhere) + 1) as f64;
        // Left to itself the compiler works out the power for everybody.
        let crowd = if bias == 1.0 { requests } else { power(requests, bias) };
        crowd * f64::from(self.inverse_weight)
    }

    pub(crate) const fn started(&mut self, now: Now) {
        if self.waiting == 0 {
            self.progress = now.0;
        }
        self.in_flight = self.in_flight.saturating_add(1);
        self.waiting = self.waiting.saturating_add(1);
    }

    /// One less waits; the answer itself goes to [`Self::observe`].
    pub(crate) const fn answered(&mut self, now: Now) {
        self.waiting = self.waiting.saturating_sub(1);
        self.progress = now.0;
    }

    /// One in flight less.
    pub(crate) const fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(crate) fn observe(
        &mut self,
        clock: &Clock,
        all: &mut Failures,
        latency: Option<Duration>,
        failed: bool,
    ) {
        let now = clock.last;
        if let Some(latency) = latency {
            let sample = (latency.as_nanos() as f64).min(MAX_LATENCY) * clock.scale;
            // The first answer takes the seed's place: an assumption has no memory worth decaying.
            let first = self.sampled_at == 0 && !failed;
            if sample >= self.latency || first {
                self.latency = sample;
            } else if !failed {
                let faded = 1.0 / clock.power(now.saturating_sub(self.at));
                let kept = faded.min(RECOVERY);
                self.latency = self.latency * (kept / faded) + sample * (1.0 - kept);
            }
            self.at = now;
        }
        self.sampled_at = now;
        if failed {
            let one = clock.scale * clock.scale;
            let added = (MAX_SCORE * one - self.score).clamp(0.0, one);
            self.score += added;
            all.sum += added;
        } else if self.score > 0.0 && self.score < FORGOTTEN * clock.scale * clock.scale {
            all.sum -= self.score;
            self.score = 0.0;
        }
        self.troubled = self.score > 0.0 || self.retry_at > now;
    }

    /// Nobody waited for the end, but it took at least `waited`.
    pub(crate) fn observe_at_least(&mut self, clock: &Clock, waited: Duration) {
        let sample = (waited.as_nanos() as f64).min(MAX_LATENCY) * clock.scale;
        self.latency = self.latency.max(sample);
    }

    pub(crate) fn leave_alone(&mut self, now: Now, wish: Duration) {
        self.retry_at = self.retry_at.max(now.after(wish.min(MAX_RETRY_AFTER)).0);
        self.troubled = true;
    }

    /// Worth telling the others: a request that waits, or sampled within the decay time.
    pub(crate) fn tell(&self, key: u64, clock: &Clock, now: Now) -> Option<LoadEntry> {
        let fresh = self.sampled_at > 0 && now.0.saturating_sub(self.sampled_at) <= clock.span;
        if self.waiting == 0 && !fresh {
            return None;
        }
        let scale = clock.power(now.0.saturating_sub(clock.epoch));
        let known = self.sampled_at > 0 || self.heard_of;
        let mut ns = if known { self.latency / scale } else { 0.0 };
        let silence = now.0.saturating_sub(self.progress);
        if self.waiting > 0 && silence <= clock.span {
            ns = ns.max(silence as f64);
        }
        if self.retry_at > now.0 {
            ns = ns.max((self.retry_at - now.0) as f64);
        }
        Some(LoadEntry {
            key,
            in_flight: self.waiting,
            latency_us: (ns / 1e3) as u32,
            failures_milli: (self.score / (scale * scale) * 1e3) as u32,
        })
    }

    /// Folds in what another worker knew at `then`.
    pub(crate) fn hear(&mut self, clock: &Clock, all: &mut Failures, entry: &LoadEntry, then: Now) {
        let age = clock.power(clock.last.saturating_sub(then.0));
        let scale = clock.scale / age;
        let latency = (f64::from(entry.latency_us) * 1e3).min(MAX_LATENCY) * scale;
        // Zero: it has requests there and no answer yet.
        if entry.latency_us > 0 {
            let nothing_known = self.sampled_at == 0 && !self.heard_of;
            self.latency = if nothing_known { latency } else { self.latency.max(latency) };
            self.heard_of = true;
        }
        let score = (f64::from(entry.failures_milli) / 1e3).min(MAX_SCORE) * scale * scale;
        if score > self.score {
            all.sum += score - self.score;
            self.score = score;
            self.troubled = true;
        }
    }
}

/// `f64::max` without its care for NaN, which is several instructions in Wasm. Neither is one here.
#[inline]
const fn higher(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

#[cold]
#[inline(never)]
fn power(base: f64, exponent: f64) -> f64 {
    base.powf(exponent)
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
