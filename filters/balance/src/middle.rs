//! A service's own middle: what its requests take where they mostly go.
//!
//! Who is clearly ill can't be said in milliseconds that somebody has to configure, so it is said
//! beside the service itself. The middle is the median of the endpoints' estimates, each counted as
//! often as it answers. That way half of the endpoints may be ill, or two of three: the cost sends
//! most requests to the others at once, and the middle is theirs. When the well ones slow down
//! under what they got the middle rises with them, until the others are drawn again.
//!
//! It is kept by one step per answer, up where an estimate lies above it and down where below, and
//! so costs the same for ten endpoints and for ten thousand.

/// What an answer takes where nothing is known, ns.
pub(crate) const SEED: f32 = 30e6;
/// Estimates' lower bound, ns: what is below differs by the machine's noise.
pub(crate) const FLOOR: f32 = 50e3;
/// An estimate above so many middles is clearly ill. Equal endpoints whose single answers vary by a
/// factor of e (sigma 1) differ by less in 99.8 % of the cases.
pub(crate) const ILL: f32 = 4.0;
/// Above so many it is slower than chance makes it, where answers vary by half as much.
const SUSPECT: f32 = 2.0;
/// An answer that is owed for longer than so many middles is not a slow one any more.
const PATIENCE: f32 = 4.0;
/// The first answers move it by a quarter each, all later ones by a twentieth.
const COARSE: (u32, f32) = (16, 1.25);
const FINE: f32 = 1.05;

/// The middle of one service, as one worker sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Middle {
    /// ns; [`SEED`] while there was no answer.
    latency: f32,
    answers: u32,
    limit: f32,
    suspect: f32,
    patience: u64,
}

impl Default for Middle {
    fn default() -> Self {
        // Nobody can be ill beside nothing.
        Self {
            latency: SEED,
            answers: 0,
            limit: f32::INFINITY,
            suspect: f32::INFINITY,
            patience: u64::MAX,
        }
    }
}

impl Middle {
    /// Whether anybody has answered.
    #[inline]
    pub(crate) const fn is_known(&self) -> bool {
        self.answers > 0
    }

    /// ns.
    #[inline]
    pub(crate) const fn latency(&self) -> f32 {
        self.latency
    }

    /// An estimate above this, in ns, is clearly ill.
    #[inline]
    pub(crate) const fn limit(&self) -> f32 {
        self.limit
    }

    /// An estimate above this, in ns, is looked at more closely.
    #[inline]
    pub(crate) const fn suspect(&self) -> f32 {
        self.suspect
    }

    /// By what the requests that wait at an endpoint count, whose answers take `ns`: 1 up to
    /// [`SUSPECT`] middles, 5 where it is all but ill. So one that is choked gets less before it
    /// is.
    pub(crate) fn slowness(&self, ns: f32) -> f32 {
        (2.0 * ns / self.latency - (2.0 * SUSPECT - 1.0)).max(1.0)
    }

    /// A silence above this, in ns, is too.
    #[inline]
    pub(crate) const fn patience(&self) -> u64 {
        self.patience
    }

    /// Begins at the median of what another worker measured, where nobody has answered here.
    pub(crate) fn seed(&mut self, measured: impl Iterator<Item = u32>) {
        if self.is_known() {
            return;
        }
        let mut micros: Vec<u32> = measured.filter(|&micros| micros > 0).collect();
        micros.sort_unstable();
        if let Some(&median) = micros.get(micros.len().saturating_sub(1) / 2) {
            self.answered(median as f32 * 1e3);
        }
    }

    /// An endpoint answered, and its estimate is now `ns`.
    pub(crate) fn answered(&mut self, ns: f32) {
        let step = if self.answers < COARSE.0 { COARSE.1 } else { FINE };
        self.latency = match self.answers {
            0 => ns,
            _ if ns > self.latency => (self.latency * step).min(ns),
            _ => (self.latency / step).max(ns),
        }
        .max(FLOOR);
        self.answers = self.answers.saturating_add(1);
        self.limit = self.latency * ILL;
        self.suspect = self.latency * SUSPECT;
        self.patience = (self.latency * PATIENCE) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(answers: impl Iterator<Item = f32>) -> f32 {
        let mut middle = Middle::default();
        answers.for_each(|ns| middle.answered(ns));
        middle.latency() / 1e6
    }

    #[test]
    fn the_middle_is_where_most_requests_go() {
        // Two of three are ill and get one request of three.
        let mixed = (0..600).map(|i| if i % 3 == 0 { 200e6 } else { 10e6 });
        let got = after(mixed);
        assert!((9.0..12.0).contains(&got), "{got}");
    }

    #[test]
    fn a_whole_service_that_slows_down_takes_its_middle_along() {
        let got = after((0..200).map(|i| if i < 100 { 10e6 } else { 200e6 }));
        assert!((180.0..=200.0).contains(&got), "{got}");
    }

    #[test]
    fn waiting_requests_count_for_more_from_two_middles_on() {
        let mut middle = Middle::default();
        middle.answered(10e6);
        let slowness = [1e6, 10e6, 20e6, 30e6, 40e6].map(|ns| middle.slowness(ns));
        assert_eq!(slowness, [1.0, 1.0, 1.0, 3.0, 5.0]);
    }

    #[test]
    fn nobody_is_ill_beside_nothing() {
        let middle = Middle::default();
        assert_eq!((middle.limit(), middle.patience()), (f32::INFINITY, u64::MAX));
    }
}
