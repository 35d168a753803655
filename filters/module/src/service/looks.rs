//! When a good answer is asked which host gave it. To ask costs a host call, so that it is done now
//! and then, and each time as long as the last ones were not where the list said.

/// Of so many good answers one is asked.
const EVERY: u8 = 64;
/// The first answers are asked: where Envoy chooses itself, some of them come from where the list
/// said all the same.
const FIRST: u16 = 16;
/// So many answers in turn must be where the list said before they are trusted again.
const DOUBTS: u16 = 1_000;

/// Of one service, in one worker.
#[derive(Debug)]
pub(crate) struct Looks {
    /// Until the next is asked.
    trusted: u8,
    /// As long as there are any, all are asked.
    doubts: u16,
}

impl Default for Looks {
    fn default() -> Self {
        Self { trusted: EVERY, doubts: FIRST }
    }
}

impl Looks {
    /// Whether the next good answer is asked.
    pub(crate) const fn due(&mut self) -> bool {
        self.trusted = self.trusted.saturating_sub(1);
        let due = self.doubts > 0 || self.trusted == 0;
        if due {
            self.trusted = EVERY;
        }
        due
    }

    /// An answer came from where the list said, or did not.
    pub(crate) const fn saw(&mut self, expected: bool) {
        self.doubts = if expected { self.doubts.saturating_sub(1) } else { DOUBTS };
    }
}
