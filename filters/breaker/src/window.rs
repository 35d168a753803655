//! Ten exact buckets of counts.
//!
//! A moving average would be smaller, but it hides a burst: a second of total outage at a tenth of
//! the usual rate barely moves it. Buckets are numbered by absolute time (`now / length`), not by
//! when a worker started, so the counts of several workers add up bucket by bucket without any
//! rounding.

use std::time::Duration;

use pintle_contract::{Now, nanos};

/// Buckets in a window. Ten, as in Linkerd's breaker: the sum covers 90 to 100 % of the window's
/// length.
pub const BUCKETS: usize = 10;

/// What was answered in some stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All answers that count.
    pub total: u32,
    /// Failures, and soft refusals (429, RESOURCE_EXHAUSTED).
    pub failed: u32,
    /// Successes that took at least the slow-call threshold.
    pub slow: u32,
}

impl Counts {
    /// Whether nothing was counted.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.total == 0 && self.failed == 0 && self.slow == 0
    }

    fn add(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.failed = self.failed.saturating_add(other.failed);
        self.slow = self.slow.saturating_add(other.slow);
    }
}

/// A sliding window of [`BUCKETS`] buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Length of one bucket in nanoseconds; 0 before the first count.
    pub(crate) bucket_ns: u64,
    /// Number of the newest bucket.
    pub(crate) head: u64,
    /// Bucket `n` is at `n % BUCKETS`; buckets that have left the window are zero.
    pub(crate) buckets: [Counts; BUCKETS],
}

/// How far behind the newest bucket a `now` may lie and still be taken for another worker's
/// slightly older reading of the same clock; anything older is a clock that was set back.
const LATE_BUCKETS: u64 = 1;

impl Window {
    /// Nanoseconds of one bucket of a window of that length; at least 1.
    #[must_use]
    pub fn bucket_length(window: Duration) -> u64 {
        (nanos(window) / BUCKETS as u64).max(1)
    }

    /// Adds `counts` at `now` to a window of buckets `bucket_ns` nanoseconds long.
    ///
    /// A window with buckets of another length (the policy changed) or from the future (the clock
    /// was set back) starts empty.
    pub fn add(&mut self, counts: Counts, now: Now, bucket_ns: u64) {
        let number = self.turn(now, bucket_ns);
        self.add_at(number, counts);
    }

    /// Adds every bucket of `other` that is still inside this window at `now`.
    pub fn absorb(&mut self, other: &Self, now: Now, bucket_ns: u64) {
        self.turn(now, bucket_ns);
        if other.bucket_ns != self.bucket_ns {
            return;
        }
        for (number, counts) in other.numbered() {
            // A bucket past the head is from before a backward step of the clock.
            if !counts.is_zero() && number <= self.head.saturating_add(LATE_BUCKETS) {
                self.advance(number);
                self.add_at(number, counts);
            }
        }
    }

    /// The sum over the window that ends at `now`; zero for a window of another bucket length.
    #[must_use]
    pub fn sum(&self, now: Now, bucket_ns: u64) -> Counts {
        let mut sum = Counts::default();
        if self.bucket_ns != bucket_ns || bucket_ns == 0 {
            return sum;
        }
        let current = now.0 / bucket_ns;
        for (number, counts) in self.numbered() {
            if number.saturating_add(BUCKETS as u64) > current {
                sum.add(counts);
            }
        }
        sum
    }

    /// Whether no bucket holds a count, however old.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|counts| counts.is_zero())
    }

    /// Whether something was counted since it was made or cleared.
    pub(crate) const fn was_added_to(&self) -> bool {
        self.bucket_ns != 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Turns the window to `now` and says the number of the bucket that `now` falls into.
    fn turn(&mut self, now: Now, bucket_ns: u64) -> u64 {
        let bucket_ns = bucket_ns.max(1);
        let number = now.0 / bucket_ns;
        let back = self.head > number.saturating_add(LATE_BUCKETS);
        if self.bucket_ns != bucket_ns || back {
            *self = Self { bucket_ns, head: number, buckets: Default::default() };
        }
        self.advance(number);
        number
    }

    fn advance(&mut self, number: u64) {
        let steps = number.saturating_sub(self.head);
        if steps >= BUCKETS as u64 {
            self.buckets = Default::default();
        } else {
            for passed in 1..=steps {
                let slot = slot(self.head.saturating_add(passed));
                if let Some(counts) = self.buckets.get_mut(slot) {
                    *counts = Counts::default();
                }
            }
        }
        self.head = self.head.max(number);
    }

    fn add_at(&mut self, number: u64, counts: Counts) {
        let inside = number <= self.head && number.saturating_add(BUCKETS as u64) > self.head;
        if inside && let Some(bucket) = self.buckets.get_mut(slot(number)) {
            bucket.add(counts);
        }
    }

    /// Every bucket with its number, newest first. Numbers below zero do not exist and are skipped.
    fn numbered(&self) -> impl Iterator<Item = (u64, Counts)> + '_ {
        (0..BUCKETS as u64).filter_map(|age| {
            let number = self.head.checked_sub(age)?;
            self.buckets.get(slot(number)).map(|counts| (number, *counts))
        })
    }
}

const fn slot(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests;
