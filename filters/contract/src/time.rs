//! Time as an argument. Nothing in the pure crates reads a clock: callers pass [`Now`].

use std::time::Duration;

/// Nanoseconds since the Unix epoch, by the host's wall clock.
///
/// The host's clock may step back, so differences saturate at zero instead of wrapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub u64);

impl Now {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Milliseconds since the Unix epoch, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The time from `earlier` to `self`; zero if the clock stepped back in between.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `self` moved `by` into the future, at most to the end of time.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

/// Whole nanoseconds, at most `u64::MAX`. `Duration::as_nanos` counts in 128 bits, which Wasm has
/// not.
#[must_use]
pub const fn nanos(time: Duration) -> u64 {
    const SECOND: u64 = 1_000_000_000;
    if time.as_secs() >= u64::MAX / SECOND {
        return u64::MAX;
    }
    time.as_secs().wrapping_mul(SECOND).wrapping_add(time.subsec_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_are_those_of_the_standard_library_as_far_as_they_fit() {
        let far = u64::MAX / 1_000_000_000;
        for time in [(0, 0), (0, 1), (1, 999_999_999), (far - 1, 999_999_999)] {
            let time = Duration::new(time.0, time.1);
            assert_eq!(u128::from(nanos(time)), time.as_nanos());
        }
        assert_eq!(nanos(Duration::new(far, 0)), u64::MAX);
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}
