//! The breaker of one endpoint, as a pure machine: a [`Record`] and an [`Input`] at a `now` give
//! the next record and, at most, one [`Transition`].
//!
//! ```text
//!                 failures in a row | failure rate | slow rate | advised and one failure
//!                 | the fleet, enforced | an operator's order
//!      +--------+ ------------------------------------------------> +------+ <-----------+
//!      | closed |                                                   | open |             |
//!      +--------+ <--- an operator's order: close, clear ---------- +------+             |
//!       ^      ^                                                        |                |
//!       |      |                  time is up, or it is the last resort:                  |
//!       |      |                              a worker takes a probe                     |
//!       |      |                                                        v                |
//!       |      +-- an operator's order: close, clear ------------ +-----------+          |
//!       |                                                         | half-open | ---------+
//!       +------ as many probes succeeded as the policy asks ----- +-----------+
//!                         a probe failed | went unanswered | the fleet, enforced | an order
//! ```
//!
//! *Closed*: requests pass. *Open*: none pass until the time is up. *Half-open*: a few probes pass,
//! each with a slot and an expiry, so that a hung one can neither block the endpoint for ever nor
//! be joined by a crowd. An open breaker whose time is up stays open in the record until somebody
//! wants to send there, because a transition that nobody needs would be written for nothing.
//!
//! *The last resort*: while nobody of a service is eligible, its open breakers are tried after
//! [`LAST_RESORT`](crate::LAST_RESORT) and not after their own time, an operator's order aside.
//! Such a probe can only help: if it fails before the breaker's own time, the breaker has as many
//! trips as before and is open until the same time, so that being tried twice a second costs an
//! endpoint nothing once another is back. A hung one holds its slot for the policy's timeout, as
//! any probe does. It is a transition like any other, and told as one: at most two probes a second
//! per endpoint, each of them a request.
//!
//! Every transition raises the record's *generation*, and an answer carries the generation in which
//! its request was sent ([`Ticket`]): what was sent before the breaker opened says nothing about
//! the endpoint after it, so it is dropped. All times come from the host's wall clock, which may be
//! set: [`Record::apply`] notices a clock behind the record's last write and moves the record's
//! times back with it, so that what was 20 s away stays 20 s away.

use std::time::Duration;

use pintle_contract::{Force, ForceAction, Now, Opinion, nanos};

use crate::classify::Outcome;
use crate::policy::{Fleet, Policy};
use crate::record::{Origin, Probe, Record, State, Ticket, Verdict};
use crate::window::{Counts, Window};

/// A rate may trip only when the record has been watched for this long: workers bring in what they
/// counted at least this often, so until then the successes of the others are missing.
pub const WATCH_BEFORE_RATE: Duration = Duration::from_millis(250);

/// Trips are counted no further; `open_max` is reached long before.
pub(crate) const MAX_TRIPS: u32 = 32;

/// What the machine is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// An ordinary request of this generation was answered.
    Answer(Outcome),
    /// The probe `id` was answered at `at`.
    Probe {
        /// Which probe.
        id: u32,
        /// How it ended; [`Outcome::Ignored`] gives the slot back without a verdict.
        outcome: Outcome,
        /// When, which may be before the context's `now`.
        at: Now,
    },
    /// Time has passed.
    Tick,
    /// An operator's order. It acts once, and only if its stamp is greater than that of the last
    /// one.
    Force(Force),
    /// What the fleet says. It acts once per expiry, and only where the policy enforces it.
    Opinion(Opinion),
}

/// What the machine decides by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The service's policy.
    pub policy: &'a Policy,
    /// The fleet's opinion of this endpoint, if there is one.
    pub opinion: Option<Opinion>,
    /// Whether nobody of the service is eligible, so that a probe is taken before its time.
    pub last_resort: bool,
    /// The time.
    pub now: Now,
    /// Any number, for jitter.
    pub random: u32,
}

/// Why a breaker changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// So many failures in a row.
    Consecutive(u32),
    /// The failure rate.
    Rate {
        /// Failures and soft refusals.
        failed: u32,
        /// Of so many requests.
        total: u32,
    },
    /// The slow-call rate.
    Slow {
        /// Slow successes.
        slow: u32,
        /// Of so many requests.
        total: u32,
    },
    /// One failure, and the fleet had said so.
    Advised {
        /// How many other proxies said it.
        reporters: u32,
    },
    /// The fleet said so.
    Fleet {
        /// How many other proxies said it.
        reporters: u32,
    },
    /// The time was up and a probe went out.
    Probing,
    /// A probe failed.
    ProbeFailed,
    /// A probe went unanswered.
    ProbeExpired,
    /// So many probes succeeded.
    ProbesSucceeded(u32),
    /// An operator ordered it.
    Forced,
    /// An operator had the breaker forget.
    Cleared,
}

/// A change of state: one log line, one counter, one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From which state.
    pub from: State,
    /// To which.
    pub to: State,
    /// Why.
    pub reason: Reason,
    /// Whose word opened the breaker.
    pub origin: Origin,
    /// When.
    pub at: Now,
    /// When it takes its next probe, if it opened.
    pub until: Option<Now>,
    /// Trips in a row, this one included.
    pub trips: u32,
    /// The generation that begins.
    pub generation: u32,
}

impl Transition {
    /// Whether the fleet should hear of it: only what this proxy has seen for itself.
    ///
    /// An opinion that was passed on would come back as another node's, and a rumour would outlive
    /// its cause.
    #[must_use]
    pub const fn is_for_the_fleet(&self) -> bool {
        matches!(self.origin, Origin::Own)
    }
}

impl Record {
    /// The next record. Total: every input in every state does something, if only nothing.
    pub fn apply(&mut self, input: Input, context: &Context<'_>) -> Option<Transition> {
        self.follow_clock(context.now);
        let transition = match input {
            Input::Answer(outcome) => {
                self.count(outcome, context);
                self.judge(outcome, context).or_else(|| self.check_rates(context))
            }
            Input::Probe { id, outcome, at } => self.probe_answered(id, outcome, at, context),
            Input::Tick => self.settle(context),
            Input::Force(force) => self.obey(force, context),
            Input::Opinion(opinion) => self.hear(opinion, context),
        };
        self.touched = self.touched.max(context.now);
        transition
    }

    /// Takes a probe slot if one is owed. The ticket's outcome must come back within the policy's
    /// timeout, else the probe has failed.
    pub fn try_probe(&mut self, context: &Context<'_>) -> (Option<Ticket>, Option<Transition>) {
        let Context { policy, now, .. } = *context;
        let mut transition = self.apply(Input::Tick, context);
        let verdict = if context.last_resort {
            self.verdict_as_last_resort(policy, now)
        } else {
            self.verdict(policy, now)
        };
        if transition.is_some() || verdict != Verdict::ProbeOwed {
            return (None, transition);
        }
        if self.state == State::Open {
            let until = self.open_until(policy);
            transition = Some(self.enter(State::HalfOpen, Reason::Probing, context));
            if now < until {
                self.until = until;
            }
        }
        // 0 marks a free slot, so the count steps over it.
        self.last_probe = self.last_probe.checked_add(1).unwrap_or(1);
        let id = self.last_probe;
        let Some(free) = self.probes.iter_mut().find(|probe| probe.id == 0) else {
            return (None, transition);
        };
        *free = Probe { id, expires: now.after(policy.half_open.timeout) };
        (Some(Ticket { generation: self.generation, probe: id }), transition)
    }

    // === the steps ===

    /// Moves every time of the record back by as much as the clock was set back.
    pub(crate) fn follow_clock(&mut self, now: Now) {
        let Some(behind) = self.clock_set_back(now) else {
            return;
        };
        let back = |time: &mut Now| {
            // Zero says "never" and stays; what would become zero is a moment later.
            if time.0 != 0 {
                time.0 = time.0.saturating_sub(nanos(behind)).max(1);
            }
        };
        back(&mut self.since);
        back(&mut self.until);
        back(&mut self.clean_since);
        back(&mut self.watched_since);
        back(&mut self.held_until);
        self.probes.iter_mut().for_each(|probe| back(&mut probe.expires));
        // Its buckets are numbered by a time that has not come yet.
        self.window.clear();
        self.touched = now;
    }

    /// Adds an answer to the window.
    pub(crate) fn count(&mut self, outcome: Outcome, context: &Context<'_>) {
        if self.state == State::Closed
            && let Some(counts) = outcome.counts()
        {
            let length = Window::bucket_length(context.policy.window);
            self.window.add(counts, context.now, length);
        }
    }

    /// What an answer that is counted already does beyond its count.
    pub(crate) fn judge(&mut self, outcome: Outcome, context: &Context<'_>) -> Option<Transition> {
        if self.state != State::Closed {
            return None;
        }
        match outcome {
            Outcome::Ignored => None,
            Outcome::Success { slow } => {
                self.consecutive = 0;
                if slow && context.policy.slow_call.is_some() {
                    self.watch(context.now);
                }
                None
            }
            Outcome::Soft { .. } => {
                self.watch(context.now);
                None
            }
            Outcome::Failure(_) => {
                self.watch(context.now);
                self.forgive(context);
                self.clean_since = context.now;
                self.consecutive = self.consecutive.saturating_add(1);
                if self.is_held_closed(context.now) {
                    return None;
                }
                let limit = context.policy.consecutive_failures;
                if limit > 0 && self.consecutive >= limit {
                    let reason = Reason::Consecutive(self.consecutive);
                    return Some(self.trip(reason, Origin::Own, context));
                }
                let opinion = context.opinion.filter(|opinion| {
                    context.policy.fleet != Fleet::Off && context.now < opinion.expires_at
                })?;
                let reason = Reason::Advised { reporters: opinion.reporters };
                Some(self.trip(reason, Origin::Advised, context))
            }
        }
    }

    /// Opens the breaker if a rate over the whole window says so.
    fn check_rates(&mut self, context: &Context<'_>) -> Option<Transition> {
        let Context { policy, now, .. } = *context;
        if self.state != State::Closed
            || !self.is_watched()
            || now.since(self.watched_since) < WATCH_BEFORE_RATE
            || self.is_held_closed(now)
        {
            return None;
        }
        let Counts { total, failed, slow } = self.counts(policy, now);
        let reason = if policy.failure_rate.reached(failed, total) && failed > 0 {
            Reason::Rate { failed, total }
        } else if policy.slow_call.is_some_and(|call| call.rate.reached(slow, total)) && slow > 0 {
            Reason::Slow { slow, total }
        } else {
            return None;
        };
        self.forgive(context);
        Some(self.trip(reason, Origin::Own, context))
    }

    /// What time alone brings about.
    pub(crate) fn settle(&mut self, context: &Context<'_>) -> Option<Transition> {
        let now = context.now;
        if self.held_until.0 != 0 && now >= self.held_until {
            self.held_until = Now(0);
        }
        match self.state {
            State::Open => None,
            State::HalfOpen => {
                let expired = self.probes.iter().any(|probe| probe.id != 0 && probe.expires <= now);
                expired.then(|| self.reopen(Reason::ProbeExpired, context))
            }
            State::Closed => {
                self.forgive(context);
                let transition = self.check_rates(context);
                if transition.is_none() && self.is_watched() {
                    let counts = self.counts(context.policy, now);
                    let slow = context.policy.slow_call.is_some() && counts.slow > 0;
                    if counts.failed == 0 && !slow {
                        self.watched_since = Now(0);
                    }
                }
                transition
            }
        }
    }

    fn probe_answered(
        &mut self,
        id: u32,
        outcome: Outcome,
        at: Now,
        context: &Context<'_>,
    ) -> Option<Transition> {
        if self.state != State::HalfOpen || id == 0 {
            return None;
        }
        // An answer after the expiry is no answer; the tick that follows fails the probe.
        let slot = self.probes.iter_mut().find(|probe| probe.id == id && at < probe.expires)?;
        *slot = Probe::default();
        match outcome {
            Outcome::Ignored => None,
            Outcome::Success { .. } => {
                self.probe_successes = self.probe_successes.saturating_add(1);
                let successes = self.probe_successes;
                (successes >= u32::from(context.policy.half_open.successes))
                    .then(|| self.close(Reason::ProbesSucceeded(successes), context))
            }
            Outcome::Soft { .. } | Outcome::Failure(_) => {
                Some(self.reopen(Reason::ProbeFailed, context))
            }
        }
    }

    fn obey(&mut self, force: Force, context: &Context<'_>) -> Option<Transition> {
        if force.stamp <= self.force_seen {
            return None;
        }
        self.force_seen = force.stamp;
        let holds = context.now < force.until;
        match force.action {
            ForceAction::Open if holds => {
                let was = self.state;
                self.held_until = Now(0);
                self.origin = Origin::Forced;
                let transition = self.enter(State::Open, Reason::Forced, context);
                self.until = force.until;
                (was != State::Open).then_some(Transition { until: Some(self.until), ..transition })
            }
            ForceAction::Close if holds => {
                let open = self.state != State::Closed;
                let transition = open.then(|| self.close(Reason::Forced, context));
                self.held_until = force.until;
                transition
            }
            ForceAction::Clear => {
                let open = self.state != State::Closed;
                // The transition tells of the trips that are about to be forgotten.
                let transition = open.then(|| self.close(Reason::Cleared, context));
                *self = Self {
                    generation: self.generation,
                    revision: self.revision,
                    since: self.since,
                    touched: self.touched,
                    clean_since: self.clean_since,
                    opinion_seen: self.opinion_seen,
                    force_seen: self.force_seen,
                    last_probe: self.last_probe,
                    ..Self::default()
                };
                transition
            }
            // An order that is over before it arrives.
            ForceAction::Open | ForceAction::Close => None,
        }
    }

    fn hear(&mut self, opinion: Opinion, context: &Context<'_>) -> Option<Transition> {
        let Context { policy, now, .. } = *context;
        if policy.fleet != Fleet::Enforce
            || opinion.expires_at <= self.opinion_seen
            || opinion.expires_at <= now
        {
            return None;
        }
        self.opinion_seen = opinion.expires_at;
        if self.is_held_closed(now) {
            return None;
        }
        let until = opinion.expires_at.min(now.after(policy.fleet_ttl));
        match self.state {
            State::Closed | State::HalfOpen => {
                if self.state == State::Closed {
                    self.origin = Origin::Fleet;
                }
                let reason = Reason::Fleet { reporters: opinion.reporters };
                let transition = self.enter(State::Open, reason, context);
                self.until = until;
                Some(Transition { until: Some(until), ..transition })
            }
            State::Open => {
                if self.origin == Origin::Fleet && until > self.until {
                    self.since = now;
                    self.until = until;
                }
                None
            }
        }
    }

    fn trip(&mut self, reason: Reason, origin: Origin, context: &Context<'_>) -> Transition {
        self.trips = self.trips.saturating_add(1).min(MAX_TRIPS);
        self.origin = origin;
        let transition = self.enter(State::Open, reason, context);
        self.until = context.now.after(context.policy.open_for(self.trips, context.random));
        Transition { until: Some(self.until), ..transition }
    }

    fn reopen(&mut self, reason: Reason, context: &Context<'_>) -> Transition {
        // The order is over; what holds it open now is the probe.
        let origin = if self.origin == Origin::Forced { Origin::Own } else { self.origin };
        let until = self.until;
        if context.now < until {
            // Tried before its time: as if it had not been.
            self.origin = origin;
            let transition = self.enter(State::Open, reason, context);
            self.until = until;
            return Transition { until: Some(until), ..transition };
        }
        self.trip(reason, origin, context)
    }

    fn close(&mut self, reason: Reason, context: &Context<'_>) -> Transition {
        self.clean_since = context.now;
        self.enter(State::Closed, reason, context)
    }

    fn enter(&mut self, to: State, reason: Reason, context: &Context<'_>) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        self.generation = self.generation.wrapping_add(1);
        self.since = context.now;
        self.until = Now(0);
        self.consecutive = 0;
        self.watched_since = Now(0);
        self.probe_successes = 0;
        self.probes = Default::default();
        self.window.clear();
        Transition {
            from,
            to,
            reason,
            origin: self.origin,
            at: context.now,
            until: None,
            trips: self.trips,
            generation: self.generation,
        }
    }

    /// One trip less for every whole interval without a failure.
    fn forgive(&mut self, context: &Context<'_>) {
        let interval = nanos(context.policy.window).max(1);
        if self.trips == 0 {
            return;
        }
        let clean = context.now.0.saturating_sub(self.clean_since.0) / interval;
        self.trips = self.trips.saturating_sub(u32::try_from(clean).unwrap_or(u32::MAX));
        self.clean_since.0 =
            self.clean_since.0.saturating_add(clean.saturating_mul(interval)).min(context.now.0);
    }

    fn watch(&mut self, now: Now) {
        if !self.is_watched() {
            self.watched_since = Now(now.0.max(1));
        }
    }
}

#[cfg(test)]
mod tests;
