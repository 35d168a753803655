//! `select.max_requests: adaptive`: how many requests an endpoint takes before they wait for each
//! other.
//!
//! Told by the gradient of latency over requests in flight. With up to
//! [`MaxRequests::Adaptive::min`](crate::MaxRequests) beside it a request is taken to wait for
//! nobody, and what such ones take is the rest. Answers of a crowd are taken together, [`WINDOW`]
//! at a time. While they take no more than [`PATIENCE`] times the rest, and than chance makes of
//! it, the limit grows, if it is in use at all; from the second window in turn that takes more it
//! falls by that much, to the half at most:
//!
//! ```text
//! limit = min(limit, most in flight) x (patience x rest / answers) + sqrt(limit) / 3
//! ```
//! An endpoint that serves N side by side and queues the rest settles at 1.5 N and a little. Three
//! things keep it honest. Only answers to requests sent under the present limit count, so that it
//! is not lowered again for a queue that it has already ended. Where fewer requests, twice in turn,
//! did not make answers faster, they don't wait for each other: the endpoint itself is slower than
//! it was, and what they take is the new rest. And where a limit that is reached sees answers
//! become faster, the rest may be hidden behind a queue: the limit goes down as long as that makes
//! them faster still.
//!
//! All means are geometric: one answer of a second among thirty of 10 ms is a matter of that
//! request.

/// Answers that are taken together.
const WINDOW: u32 = 32;
/// Answers that the rest is a mean of.
const RESTING: u32 = 128;
/// How many times the rest answers may take,
const PATIENCE: f32 = 1.5;
/// or so many standard deviations of a window's mean.
const CHANCE: f32 = 3.0;
/// A limit grows by less where answers take nearly as long as they may: from this part of it on.
const NEAR: f32 = 0.5;
/// The least that a window leaves of the limit.
const STEEPEST: f32 = 0.5;
/// With so much of the crowd
const FEWER: f32 = 0.6;
/// answers that wait take less than so much of the time.
const FASTER: f32 = 0.8;

/// What one worker knows of one endpoint. Latencies are natural logarithms of nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adaptive {
    limit: f32,
    /// What an answer takes that waits for nobody.
    rest: f32,
    /// Answers in `rest`, at most [`RESTING`].
    rested: u32,
    window: Window,
    /// The first slow window in turn; then the last that had clearly fewer, or was clearly slower.
    slow: Option<Slow>,
    /// When the limit was last changed, ns.
    set_at: u64,
}

/// A window whose answers took longer than they may.
#[derive(Clone, Copy, Debug)]
struct Slow {
    crowd: f32,
    latency: f32,
    /// Whether it took as long as one with clearly more did.
    same: bool,
}

/// The answers of a crowd since the last window ended.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    answers: u32,
    latency: f32,
    /// Of the latencies.
    squares: f32,
    crowd: f32,
    most: u32,
}

impl Adaptive {
    /// Nothing is limited but by the ceiling until answers have been seen to wait.
    pub(crate) const fn new() -> Self {
        let window = Window { answers: 0, latency: 0.0, squares: 0.0, crowd: 0.0, most: 0 };
        let limit = f32::INFINITY;
        Self { limit, rest: 0.0, rested: 0, window, slow: None, set_at: 0 }
    }

    /// Requests in flight, at most.
    pub(crate) fn limit(&self, min: u32, max: u32) -> u32 {
        (self.limit as u32).clamp(min, max)
    }

    /// An answer came after `ns` to a request that was sent as one of `crowd` in flight. One that
    /// failed counts if it was slow: a quick failure says nothing of a queue.
    pub(crate) fn answered(
        &mut self,
        (min, max): (u32, u32),
        now: u64,
        ns: f32,
        crowd: u32,
        failed: bool,
    ) {
        let latency = ns.max(1.0).ln();
        if failed && (self.rested == 0 || latency <= self.rest + PATIENCE.ln()) {
            return;
        }
        if crowd <= min {
            self.rested = (self.rested + 1).min(RESTING);
            self.rest += (latency - self.rest) / self.rested as f32;
            return;
        }
        if now.saturating_sub(ns as u64) < self.set_at {
            return;
        }
        self.window.add(latency, crowd);
        if self.window.answers >= WINDOW {
            let window = std::mem::take(&mut self.window);
            let within = |limit: f32| limit.clamp(min as f32, max as f32);
            let before = within(self.limit);
            self.limit = within(self.follow(&window, before));
            if self.limit != before {
                self.set_at = now;
            }
        }
    }

    /// The limit after a window.
    fn follow(&mut self, window: &Window, limit: f32) -> f32 {
        let (latency, variance, crowd) = window.means();
        if self.rested == 0 {
            (self.rest, self.rested) = (latency, WINDOW);
        }
        let parts = 1.0 / WINDOW as f32 + 1.0 / self.rested as f32;
        let chance = CHANCE * (variance * parts).sqrt();
        let most = window.most as f32;
        if latency < self.rest - chance.max(-FASTER.ln()) && most + 1.0 >= limit {
            (self.rest, self.rested, self.slow) = (latency, WINDOW, None);
            return crowd * FEWER;
        }
        if latency < self.rest {
            // Nothing is faster for being one of many.
            self.rest += (latency - self.rest) / 4.0;
        }
        let growth = if most * 2.0 >= limit { limit.sqrt() / 3.0 } else { 0.0 };
        let gradient = (self.rest + chance.max(PATIENCE.ln()) - latency).exp();
        if gradient >= 1.0 {
            self.slow = None;
            return limit + growth * ((gradient - 1.0) / NEAR).min(1.0);
        }
        let now = Slow { crowd, latency, same: false };
        let Some(before) = self.slow else {
            self.slow = Some(now);
            return limit;
        };
        let fewer = crowd <= before.crowd * FEWER;
        let same = fewer && latency > before.latency + FASTER.ln();
        // Twice, because what is becoming slower looks for once as if fewer took as long.
        if same && before.same {
            (self.rest, self.rested, self.slow) = (latency, WINDOW, None);
            return limit;
        }
        if fewer || latency > before.latency - FASTER.ln() {
            self.slow = Some(Slow { same, ..now });
        }
        limit.min(most) * gradient.max(STEEPEST) + growth
    }
}

impl Window {
    fn add(&mut self, latency: f32, crowd: u32) {
        self.answers += 1;
        self.latency += latency;
        self.squares += latency * latency;
        self.crowd += crowd as f32;
        self.most = self.most.max(crowd);
    }

    /// Of the latency, its variance, and the crowd's.
    fn means(&self) -> (f32, f32, f32) {
        let answers = self.answers.max(1) as f32;
        let latency = self.latency / answers;
        let variance = (self.squares / answers - latency * latency).max(0.0);
        (latency, variance, self.crowd / answers)
    }
}

const _: () = assert!(FEWER < FASTER);
