//! What was counted within the last minute, beside what was counted since the start.
//!
//! A total is remembered every ten seconds, six times; the difference to the oldest is the last
//! minute, 50 to 60 s long, and holds what was counted a moment ago. Time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far the remembered totals are apart.
const STEP: Duration = Duration::from_secs(10);
/// How many are remembered.
const STEPS: usize = 6;

/// The remembered totals of `N` counts.
#[derive(Debug)]
pub(super) struct Minute<const N: usize> {
    marks: VecDeque<(Instant, [u64; N])>,
}

impl<const N: usize> Default for Minute<N> {
    fn default() -> Self {
        Self { marks: VecDeque::new() }
    }
}

impl<const N: usize> Minute<N> {
    /// Once a second: remembers the totals when it is time.
    pub(super) fn tick(&mut self, now: Instant, totals: [u64; N]) {
        let last = self.marks.back().map(|(at, _)| *at);
        if last.is_some_and(|at| now.saturating_duration_since(at) < STEP) {
            return;
        }
        if self.marks.len() >= STEPS {
            self.marks.pop_front();
        }
        self.marks.push_back((now, totals));
    }

    /// What came since the oldest mark; everything before the first one.
    pub(super) fn since(&self, totals: [u64; N]) -> [u64; N] {
        let mut counts = totals;
        if let Some((_, oldest)) = self.marks.front() {
            for (count, oldest) in counts.iter_mut().zip(oldest) {
                *count = count.saturating_sub(*oldest);
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_a_minute_is_left_out_and_what_is_new_is_in_at_once() {
        let start = Instant::now();
        let mut minute = Minute::<1>::default();
        assert_eq!(minute.since([3]), [3], "the first second counts");
        for second in 0..=120 {
            minute.tick(start + Duration::from_secs(second), [second * 10]);
        }
        assert_eq!(minute.since([1_207]), [1_207 - 700], "since 70 s: 50 s and what came now");
    }
}
