//! What is known of an endpoint's load, and what one more request there costs.
//!
//! The cost is `peak-EWMA(latency) x (in-flight + 1) / weight`, times a factor for failures. The
//! estimate follows Finagle's: a sample above it is taken at once, one below decays in with the decay
//! time (10 s), and without samples it decays to the floor, so that a slow endpoint is tried again
//! without a timer. Reads are projections to `now`; only samples write.
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
//! maximum, which is safe to repeat and to hear back from a third, because every estimate decays
//! at the same rate: an echo is never above its source.

use std::time::Duration;

use pintle_snapshot::Now;

/// A fresh endpoint's estimate, ns. Zero would make it look free, and everybody would go there.
const SEED: f64 = 30e6;
/// The estimate's lower bound, ns: differences below a millisecond are noise of the machine.
const FLOOR: f64 = 1e6;
/// Failures that a score remembers, at most; with the default penalty a factor of about 800.
const MAX_SCORE: f32 = 16.0;
/// The longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// A latency above this is a broken clock. An hour in ns.
const MAX_LATENCY: f64 = 3.6e12;

/// One endpoint's load as one worker tells it to the others. As of the moment of telling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadEntry {
    /// Which endpoint: [`crate::Balancer::key_of`].
    pub key: u64,
    /// Requests that this worker has in flight there.
    pub in_flight: u32,
    /// Latency estimate, µs.
    pub latency_us: u32,
    /// Failure score, thousandths.
    pub failures_milli: u32,
}

/// Who may be drawn; kept beside the load because a draw looks at both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Eligible.
    #[default]
    Open,
    /// Eligible as a probe only.
    Probe,
    /// Not eligible.
    Shut,
}

/// How memory fades, for all endpoints of a service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decay {
    /// `1 / (decay x ln 2)` per ns: turns a time into halvings' exponent.
    halvings_per_ns: f64,
    /// The decay time, ns.
    span: u64,
    penalty: f32,
}

/// The sum of all scores, so that one endpoint's can be compared with the mean of the others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Failures {
    sum: f64,
    at: u64,
}

/// What one pick knows before it looks at an endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    decay: Decay,
    failures: f32,
    others: f32,
}

/// One endpoint's load. A cache line.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Estimate at `at`, ns.
    latency: f64,
    at: u64,
    /// When an answer last came, or the first of those in flight left.
    progress: u64,
    /// Leave it alone until then.
    retry_at: u64,
    /// When this worker last sampled it.
    sampled_at: u64,
    /// Score at `at`.
    score: f32,
    pub(crate) in_flight: u32,
    /// In flight from the other workers.
    pub(crate) elsewhere: u32,
    /// `1 / weight`.
    pub(crate) inverse_weight: f32,
    pub(crate) state: State,
}

// === impl Decay ===

impl Decay {
    pub(crate) fn new(span: Duration, penalty: f64) -> Self {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self {
            halvings_per_ns: std::f64::consts::LOG2_E / span as f64,
            span,
            penalty: penalty as f32,
        }
    }

    /// `e^(-elapsed / decay)`, to a few millionths.
    ///
    /// A pick calls this several times, and the library's `exp` alone would be half of its cost.
    #[inline]
    fn keep(self, elapsed: u64) -> f64 {
        // Signed conversions are one instruction; 292 years are enough.
        let x = elapsed.cast_signed() as f64 * self.halvings_per_ns;
        if !(0.0..=64.0).contains(&x) {
            return 0.0;
        }
        // Adding 1.5 x 2^52 rounds to a whole number, and leaves it in the low bits.
        let rounded = x + 6_755_399_441_055_744.0;
        let whole = rounded - 6_755_399_441_055_744.0;
        let f = (whole - x) * std::f64::consts::LN_2;
        let ff = f * f;
        let part =
            (1.0 + f) + ff * ((0.5 + f * (1.0 / 6.0)) + ff * (1.0 / 24.0 + f * (1.0 / 120.0)));
        part * f64::from_bits((1023 - (rounded.to_bits() & 0x7f)) << 52)
    }
}

// === impl Failures ===

impl Failures {
    fn add(&mut self, decay: Decay, now: u64, score: f32) {
        let keep = decay.keep(now.saturating_sub(self.at));
        self.sum = self.sum * keep * keep + f64::from(score);
        self.at = now.max(self.at);
    }

    /// The sum over `loads`, after the table changed.
    pub(crate) fn of(loads: &[Load], decay: Decay, now: Now) -> Self {
        let sum = loads
            .iter()
            .map(|l| f64::from(l.score_at(decay, now.0)))
            .sum();
        Self { sum, at: now.0 }
    }

    pub(crate) fn moment(&self, decay: Decay, now: Now, endpoints: usize) -> Moment {
        let failures = if self.sum > 0.0 {
            let keep = decay.keep(now.0.saturating_sub(self.at));
            self.sum * keep * keep
        } else {
            0.0
        };
        Moment {
            now: now.0,
            decay,
            failures: failures as f32,
            others: endpoints.saturating_sub(1).max(1) as f32,
        }
    }
}

// === impl Load ===

impl Load {
    pub(crate) const fn new(now: Now) -> Self {
        Self {
            latency: SEED,
            at: now.0,
            progress: now.0,
            retry_at: 0,
            sampled_at: 0,
            score: 0.0,
            in_flight: 0,
            elsewhere: 0,
            inverse_weight: 1.0,
            state: State::Open,
        }
    }

    pub(crate) const fn active(&self) -> u32 {
        self.in_flight.saturating_add(self.elsewhere)
    }

    /// What one more request costs here; ns per unit of weight.
    #[inline]
    pub(crate) fn cost(&self, moment: &Moment) -> f32 {
        let keep = moment.decay.keep(moment.now.saturating_sub(self.at));
        let mut ns = (self.latency * keep).max(FLOOR);
        if self.in_flight > 0 {
            let silence = moment.now.saturating_sub(self.progress);
            if silence <= moment.decay.span {
                ns = ns.max(silence as f64);
            }
        }
        if self.retry_at > moment.now {
            ns = ns.max((self.retry_at - moment.now) as f64);
        }
        let mut cost = ns as f32 * (self.active() as f32 + 1.0) * self.inverse_weight;
        if self.score > 0.0 {
            let score = self.score * (keep * keep) as f32;
            let others = (moment.failures - score).max(0.0) / moment.others;
            let excess = (score - 2.0 * others).max(0.0);
            cost *= 1.0 + score + moment.decay.penalty * excess;
        }
        cost
    }

    pub(crate) const fn started(&mut self, now: Now) {
        if self.in_flight == 0 {
            self.progress = now.0;
        }
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// One in flight less; the answer itself goes to [`Self::observe`].
    pub(crate) const fn ended(&mut self, now: Now) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.progress = now.0;
    }

    pub(crate) fn observe(
        &mut self,
        decay: Decay,
        all: &mut Failures,
        now: Now,
        latency: Option<Duration>,
        failed: bool,
    ) {
        let keep = self.settle(decay, now.0);
        self.sampled_at = now.0;
        if let Some(latency) = latency {
            let sample = (latency.as_nanos() as f64).min(MAX_LATENCY);
            if sample >= self.latency {
                self.latency = sample;
            } else if !failed {
                self.latency += sample * (1.0 - keep);
            }
        }
        if failed && self.score < MAX_SCORE {
            let added = (MAX_SCORE - self.score).min(1.0);
            self.score += added;
            all.add(decay, now.0, added);
        }
    }

    /// Nobody waited for the end, but it took at least `waited`.
    pub(crate) fn observe_at_least(&mut self, decay: Decay, now: Now, waited: Duration) {
        self.settle(decay, now.0);
        self.latency = self
            .latency
            .max((waited.as_nanos() as f64).min(MAX_LATENCY));
    }

    pub(crate) fn leave_alone(&mut self, now: Now, wish: Duration) {
        self.retry_at = self.retry_at.max(now.after(wish.min(MAX_RETRY_AFTER)).0);
    }

    /// Worth telling the others: something in flight, or sampled within the decay time.
    pub(crate) fn tell(&self, key: u64, decay: Decay, now: Now) -> Option<LoadEntry> {
        let fresh = self.sampled_at > 0 && now.0.saturating_sub(self.sampled_at) <= decay.span;
        if self.in_flight == 0 && !fresh {
            return None;
        }
        let mut ns = self.latency * decay.keep(now.0.saturating_sub(self.at));
        let silence = now.0.saturating_sub(self.progress);
        if self.in_flight > 0 && silence <= decay.span {
            ns = ns.max(silence as f64);
        }
        if self.retry_at > now.0 {
            ns = ns.max((self.retry_at - now.0) as f64);
        }
        Some(LoadEntry {
            key,
            in_flight: self.in_flight,
            latency_us: (ns / 1e3) as u32,
            failures_milli: (self.score_at(decay, now.0) * 1e3) as u32,
        })
    }

    /// Folds in what another worker knew at `then`.
    pub(crate) fn hear(
        &mut self,
        decay: Decay,
        all: &mut Failures,
        entry: &LoadEntry,
        then: Now,
        now: Now,
    ) {
        self.settle(decay, now.0);
        let keep = decay.keep(now.0.saturating_sub(then.0));
        let latency = (f64::from(entry.latency_us) * 1e3).min(MAX_LATENCY) * keep;
        self.latency = self.latency.max(latency);
        let score = (entry.failures_milli as f32 / 1e3).min(MAX_SCORE) * (keep * keep) as f32;
        if score > self.score {
            all.add(decay, now.0, score - self.score);
            self.score = score;
        }
    }

    fn score_at(&self, decay: Decay, now: u64) -> f32 {
        let keep = decay.keep(now.saturating_sub(self.at));
        self.score * (keep * keep) as f32
    }

    /// Moves estimate and score to `now`; returns what was kept.
    fn settle(&mut self, decay: Decay, now: u64) -> f64 {
        let keep = decay.keep(now.saturating_sub(self.at));
        self.latency *= keep;
        self.score *= (keep * keep) as f32;
        // After a step back of the clock the old stamp would freeze the estimate until it is reached.
        self.at = now;
        keep
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
