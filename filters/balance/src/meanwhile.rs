//! Whether others answered as usual while one endpoint took long.
//!
//! A slow answer may be the machine's doing: while that stands still nobody answers, and everybody
//! who was asked before looks slow afterwards. Where somebody answered in the midst of the wait,
//! the endpoint itself was slow.

/// When endpoints last answered as usual, ns: the last such moment, and the one before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meanwhile([u64; 2]);

impl Meanwhile {
    /// Somebody answered as usual. Moments that are less than `apart` ns after the last one are not
    /// kept.
    #[inline]
    pub(crate) const fn answered(&mut self, now: u64, apart: u64) {
        let [_, last] = self.0;
        if now < last || now - last > apart {
            self.0 = [last, now];
        }
    }

    /// Whether somebody did between `sent_at` and `now`, and not within `apart` ns of either: what
    /// comes just after a standstill says nothing of those that waited through it.
    pub(crate) fn saw(&self, sent_at: u64, now: u64, apart: u64) -> bool {
        let amid = |&at: &u64| at > sent_at.saturating_add(apart) && at.saturating_add(apart) < now;
        self.0.iter().any(amid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody answers every 5, but for a standstill; `apart` is 40.
    fn with_answers(from: u64, to: u64, still: std::ops::Range<u64>) -> Meanwhile {
        let mut meanwhile = Meanwhile::default();
        let moments = (from..=to).step_by(5).filter(|at| !still.contains(at));
        moments.for_each(|at| meanwhile.answered(at, 40));
        meanwhile
    }

    #[test]
    fn who_is_slow_alone_is_seen_and_a_standstill_is_not() {
        assert!(with_answers(0, 1_000, 0..0).saw(800, 1_000, 40));
        assert!(!with_answers(0, 1_000, 805..995).saw(800, 1_000, 40));
        assert!(!with_answers(0, 1_000, 830..970).saw(800, 1_000, 40));
        assert!(!Meanwhile::default().saw(800, 1_000, 40));
        // Nobody is slow within so short a time.
        assert!(!with_answers(0, 1_000, 0..0).saw(930, 1_000, 40));
    }
}
