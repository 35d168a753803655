//! How long work that can be put off may go on.

/// Steps between two looks at the clock: a fraction of a millisecond.
const LOOK: u32 = 2_048;

/// Work in small steps, as long as `more` says so.
pub(crate) struct Pace<'a> {
    left: u32,
    more: &'a mut dyn FnMut() -> bool,
}

impl<'a> Pace<'a> {
    pub(crate) fn new(more: &'a mut dyn FnMut() -> bool) -> Self {
        Self { left: 0, more }
    }

    /// Whether so many steps more may be done.
    #[inline]
    pub(crate) fn allows(&mut self, steps: u32) -> bool {
        if self.left < steps {
            if !(self.more)() {
                self.left = 0;
                return false;
            }
            self.left = LOOK;
        }
        self.left = self.left.saturating_sub(steps);
        true
    }
}
