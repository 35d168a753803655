//! What is known of one endpoint's load, and how a request is placed by it.
//!
//! **Two classes.** An endpoint is *ill* while what it takes is clearly more than the middle of its
//! own service ([`crate::middle`]): by its answers, by the silence since one was due, or by its
//! failures. Among the others the own requests that wait per weight decide. Their latency says
//! nothing up to two middles, because between equals it is noise and would give them unequal
//! shares; from there on those that wait count for more ([`Middle::slowness`]). Among ill ones the
//! cost decides: `latency x (waiting + 1)`, times a factor for failures.
//!
//! **The estimate** moves by ratios, half of the way up and a quarter of the way down, and one
//! answer never makes more than a factor of [`STEP`] of it. So one slow answer makes nobody ill,
//! and two that know nothing of each other do: a slow answer counts only if it was sent after the
//! one before it had come, since what waited together may have waited for a machine that stood
//! still. One in whose midst others answered as usual ([`crate::meanwhile`]) and this endpoint did
//! not says as much as two. What half of all answers do is what the service does, and is believed.
//!
//! **Silence.** An endpoint that hangs gives no samples. The time since it last answered, while it
//! owes an answer, is a lower bound of what it takes. Requests whose head came owe nothing.

use std::time::Duration;

use pintle_contract::{Now, nanos};

use crate::clock::Clock;
use crate::history::History;
use crate::middle::{FLOOR, ILL, Middle, SEED};
use crate::service::Service;

/// How much one answer may raise an estimate, at most; below [`ILL`].
const STEP: f32 = 2.8;
/// An answer above so many estimates is slow, and says the same as others that waited with it.
const SLOW: f32 = 2.0;
/// A latency above this, in ns, is a broken clock: one hour.
pub(crate) const MAX_LATENCY: f32 = 3.6e12;

/// What every pick reads of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// When an answer last came, or the first of those waited for was sent; ns.
    progress: u64,
    /// What an answer takes, ns; 0 while nobody has answered.
    pub(crate) latency: f32,
    /// The service's mean weight over this one's.
    pub(crate) inverse_weight: f32,
    /// Requests sent whose head has not come.
    pub(crate) waiting: u32,
    /// Requests in flight, from this worker and from the others.
    pub(crate) in_flight: u32,
    pub(crate) elsewhere: u32,
    /// Other workers that have requests here, at most 65,535.
    pub(crate) sharers: u16,
    /// Whether there may be a score, or a wish to be left alone.
    pub(crate) troubled: bool,
    /// Whether another worker has asked it since its turn came here last.
    pub(crate) asked: bool,
}

impl Load {
    pub(crate) const fn new(clock: &Clock) -> Self {
        Self {
            progress: clock.now,
            latency: 0.0,
            inverse_weight: 1.0,
            waiting: 0,
            in_flight: 0,
            elsewhere: 0,
            sharers: 0,
            troubled: false,
            asked: false,
        }
    }

    /// The clock stepped back to `now`.
    pub(crate) fn step_back(&mut self, now: u64) {
        self.progress = self.progress.min(now);
    }

    pub(crate) const fn active(&self) -> u32 {
        self.in_flight.saturating_add(self.elsewhere)
    }

    /// The own requests that wait here, per mean weight.
    #[inline]
    pub(crate) fn queue(&self) -> f64 {
        f64::from(self.waiting) * f64::from(self.inverse_weight)
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
        self.latency > middle.suspect()
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

    /// What an answer takes here now, ns, with what failures and the wish to be left alone add to
    /// it.
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
        if !service.middle.is_known() {
            self.latency = ns;
            return;
        }
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
        // What half of all answers do is no illness.
        if ns > limit && service.slow.surprise() > 0.0 {
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
    past.count(failed, service.failing.surprise(), clock);
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

#[cold]
#[inline(never)]
fn power(base: f64, exponent: f64) -> f64 {
    base.powf(exponent)
}

const _: () = assert!(STEP < ILL && SEED >= FLOOR);

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
