//! All that is known of one breaker, and what can be read from it at a `now`. How it changes is in
//! [`crate::machine`].
//!
//! The record is one value because it is written by compare-and-swap: whatever two workers could
//! race for, a trip, a probe slot, the fifth failure in a row, has to be in it. And it keeps times
//! and not what follows from them, so that reading needs no write: a breaker whose time is up, or a
//! probe that has expired, is seen as such by everyone without anybody having been there in time.

use std::time::Duration;

use pintle_contract::Now;

use crate::policy::{MAX_PROBES, Policy};
use crate::window::{Counts, Window};

/// How long a breaker stays open while nobody else of its service is eligible, at most: then
/// waiting longer protects no one, and the first endpoint that is back should be found within a
/// second.
pub const LAST_RESORT: Duration = Duration::from_millis(500);

/// A `now` this far behind the record's last write is a clock that was set back; anything less is
/// another worker's slightly older reading of the same clock.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// Whether requests pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// Requests pass.
    #[default]
    Closed,
    /// No request passes.
    Open,
    /// Probes pass.
    HalfOpen,
}

/// Whose word opened the breaker, the weakest first. It stays until the breaker is closed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The fleet's alone.
    Fleet,
    /// The fleet's, and one failure seen here.
    Advised,
    /// Failures seen here.
    #[default]
    Own,
    /// An operator's.
    Forced,
}

/// Whether a request may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Pass,
    /// Not before `until`, which may lie in the past when a probe's verdict is overdue.
    Blocked {
        /// The next probe is owed then.
        until: Now,
    },
    /// One may, as a probe: whoever takes the slot ([`Record::try_probe`]).
    ProbeOwed,
}

/// Which generation a request was sent in, and whether it is a probe. Kept with the request and
/// handed back with its outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) generation: u32,
    /// 0 for an ordinary request.
    pub(crate) probe: u32,
}

impl Ticket {
    /// Whether the request holds a probe slot; then its outcome must come back, be it
    /// [`Ignored`](crate::Outcome::Ignored).
    #[must_use]
    pub const fn is_probe(self) -> bool {
        self.probe != 0
    }
}

/// A probe slot. Free when `id` is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) id: u32,
    pub(crate) expires: Now,
}

/// Everything there is to know of one breaker. Its default is closed and quiet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub(crate) state: State,
    pub(crate) origin: Origin,
    /// Failures in a row.
    pub(crate) consecutive: u32,
    /// Trips in a row, less one per clean interval.
    pub(crate) trips: u32,
    /// Raised by every transition.
    pub(crate) generation: u32,
    /// Raised by every write to the store.
    pub(crate) revision: u64,
    /// When the state began.
    pub(crate) since: Now,
    /// When an open breaker takes a probe. Half-open: when it would have, had it not been the last
    /// resort; zero when it was due.
    pub(crate) until: Now,
    /// When the record was last written.
    pub(crate) touched: Now,
    /// Since when there was no failure, in steps of whole intervals.
    pub(crate) clean_since: Now,
    /// Since when workers bring in all they count; zero when they do not.
    pub(crate) watched_since: Now,
    /// The expiry of the last opinion that was acted on. An agent's time: never moved.
    pub(crate) opinion_seen: Now,
    /// The stamp of the last order that was acted on.
    pub(crate) force_seen: u64,
    /// An operator holds it closed until then; zero when not.
    pub(crate) held_until: Now,
    pub(crate) probe_successes: u32,
    pub(crate) last_probe: u32,
    pub(crate) probes: [Probe; MAX_PROBES],
    pub(crate) window: Window,
}

impl Record {
    /// The state as recorded. An open breaker stays open until a probe is taken, see
    /// [`Self::verdict`].
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Whose word opened it; meaningless while closed.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Trips in a row, as last written.
    #[must_use]
    pub const fn trips(&self) -> u32 {
        self.trips
    }

    /// When the state began.
    #[must_use]
    pub const fn since(&self) -> Now {
        self.since
    }

    /// Failures in a row.
    #[must_use]
    pub const fn consecutive(&self) -> u32 {
        self.consecutive
    }

    /// Raised by every transition.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Raised by every write.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether workers bring their counts in on every tick.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.watched_since.0 != 0
    }

    /// Whether a success needs no write: closed, nothing failed lately, nobody holds it.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        matches!(self.state, State::Closed)
            && self.consecutive == 0
            && self.watched_since.0 == 0
            && self.held_until.0 == 0
    }

    /// Whether an operator holds it closed.
    #[must_use]
    pub fn is_held_closed(&self, now: Now) -> bool {
        now < self.held_until
    }

    /// What the shared window holds at `now`.
    #[must_use]
    pub fn counts(&self, policy: &Policy, now: Now) -> Counts {
        self.window.sum(now, Window::bucket_length(policy.window))
    }

    /// Probes that are out.
    #[must_use]
    pub fn probes_out(&self) -> usize {
        self.probes.iter().filter(|probe| probe.id != 0).count()
    }

    /// The ticket of an ordinary request sent now.
    #[must_use]
    pub const fn ticket(&self) -> Ticket {
        Ticket { generation: self.generation, probe: 0 }
    }

    /// Whether a request may be sent. Reading changes nothing.
    #[must_use]
    pub fn verdict(&self, policy: &Policy, now: Now) -> Verdict {
        self.verdict_at(self.open_until(policy), policy, now)
    }

    /// The same while nobody else of the service is eligible: an open breaker takes a probe after
    /// [`LAST_RESORT`], unless an operator ordered it open.
    #[must_use]
    pub fn verdict_as_last_resort(&self, policy: &Policy, now: Now) -> Verdict {
        let until = self.open_until(policy);
        let sooner = match self.origin {
            Origin::Forced => until,
            Origin::Own | Origin::Advised | Origin::Fleet => {
                until.min(self.since.after(LAST_RESORT))
            }
        };
        self.verdict_at(sooner, policy, now)
    }

    fn verdict_at(&self, open_until: Now, policy: &Policy, now: Now) -> Verdict {
        match self.state {
            State::Closed => Verdict::Pass,
            State::Open if now < open_until => Verdict::Blocked { until: open_until },
            State::Open => Verdict::ProbeOwed,
            State::HalfOpen => {
                let out = self.probes.iter().filter(|probe| probe.id != 0);
                let first = out.map(|probe| probe.expires).min();
                match first {
                    Some(until)
                        if until <= now
                            || self.probes_out() >= usize::from(policy.half_open.probes) =>
                    {
                        Verdict::Blocked { until }
                    }
                    _ => Verdict::ProbeOwed,
                }
            }
        }
    }

    /// How far the clock was set back since the record was written; `None` if it was not.
    #[must_use]
    pub fn clock_set_back(&self, now: Now) -> Option<Duration> {
        let behind = self.touched.since(now);
        (behind > CLOCK_SLACK).then_some(behind)
    }

    /// `until`, but no later than the policy in force could have said: a shorter policy takes
    /// effect at once, and a record that somebody else wrote cannot close an endpoint off for ever.
    pub(crate) fn open_until(&self, policy: &Policy) -> Now {
        let longest = match self.origin {
            Origin::Own | Origin::Advised => policy.open_at_most().max(policy.fleet_ttl),
            Origin::Fleet => policy.fleet_ttl,
            Origin::Forced => return self.until,
        };
        self.until.min(self.since.after(longest))
    }
}
