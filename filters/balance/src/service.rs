//! What is known of a service as a whole.

use crate::baseline::Baseline;
use crate::meanwhile::Meanwhile;
use crate::middle::Middle;

/// A false alarm counts as so many bad answers: while they are common there are few others.
const FALSE_ALARM: u32 = 3;
/// What a slow answer says, at most, where more than a tenth of all are: there a slow estimate is
/// chance.
const CHANCE: f32 = 0.25;

/// The middles of all, beside which an endpoint is ill or is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Service {
    pub(crate) middle: Middle,
    /// Failures.
    pub(crate) failing: Baseline,
    /// Answers above the middle's limit.
    pub(crate) slow: Baseline,
    pub(crate) meanwhile: Meanwhile,
}

impl Service {
    /// By what the requests that wait at an endpoint count, whose answers take `ns`.
    pub(crate) fn slowness(&self, ns: f32) -> f32 {
        if self.slow.surprise() > CHANCE { self.middle.slowness(ns) } else { 1.0 }
    }

    /// Counts an answer of an endpoint that was, and now is, ill or not.
    ///
    /// What makes an endpoint ill is not counted, or a service with ill ones would be used to them.
    /// It is when the endpoint proves well soon after: the alarm was false.
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
