//! What one worker knows of one breaker: the record as last seen, and what it has not written yet.
//!
//! The store costs about a microsecond per call and a lock that all workers share, so it is asked
//! only when the answer can matter:
//!
//! | happens | costs |
//! |---|---|
//! | a success at a quiet endpoint | a count in the worker's own window, nothing else |
//! | a failure, a soft refusal, a probe's answer, a success after failures | read, [`Mirror::merge`], compare-and-swap |
//! | a tick (at most 250 ms apart) while it is half-open, or watched with something counted here | the same, for the counts |
//! | a tick while it is watched and nothing was counted here | the same once it may be judged, then once a second |
//! | any other tick | nothing |
//!
//! The first failure brings the worker's whole window into the record, which from then on is
//! *watched*; the other workers learn of it ([`Merged::wake`]) and bring in theirs. So a rate is
//! judged over the requests of all workers: exactly, but for the successes of the last tick.
//! Failures are never late.
//!
//! The cycle is always: read the record, [`Mirror::merge`] (pure: pending inputs are replayed over
//! what was read), write if [`Merged::changed`], and [`Mirror::commit`] only when the write was
//! accepted. On a mismatch, read and merge again; nothing is lost by giving up, since the next tick
//! tries again.

use std::time::Duration;

use pintle_contract::{Force, Now, Opinion};

use crate::classify::Outcome;
use crate::machine::{Context, Input, Transition, WATCH_BEFORE_RATE};
use crate::policy::{Fleet, Policy};
use crate::record::{Record, State, Ticket};
use crate::window::Window;

/// While nothing is counted here, time alone changes the rates of a watched record, by whole
/// buckets that leave the window; so it is read once in so long.
const SETTLE: Duration = Duration::from_secs(1);
/// Inputs that wait for the store, at most. One waits in the normal case; this many only while the
/// store refuses every write, and then the oldest goes (its count in the window stays).
const MAX_PENDING: usize = 64;

/// Whether the store has to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Need {
    /// No.
    Nothing,
    /// Read, merge, write what changed, commit.
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    ticket: Ticket,
    outcome: Outcome,
    at: Now,
}

/// One worker's view of one breaker.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    record: Record,
    /// Counted in the record's generation and not yet in the record.
    window: Window,
    pending: Vec<Pending>,
    /// As the table says, and until when it counts here.
    opinion: Option<(Opinion, Now)>,
    force: Option<Force>,
    /// When the record was last read, or a merge of it written.
    read_at: Now,
}

/// What a merge would write.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The record to write.
    pub record: Record,
    /// Whether it differs from what was read; if not, nothing is written.
    pub changed: bool,
    /// Whether the other workers should read it now and not with their next tick.
    pub wake: bool,
    /// The slot, when one was asked for and is owed.
    pub ticket: Option<Ticket>,
    /// To be reported once the write is accepted, in order.
    pub transitions: Vec<Transition>,
    at: Now,
}

impl Mirror {
    /// The record as last seen.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Whether no tick has anything to do, until something is observed or said of the endpoint.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let said = self.opinion.is_some() || self.force.is_some();
        let closed = self.record.state == State::Closed && self.record.held_until.0 == 0;
        closed && !self.record.is_watched() && self.pending.is_empty() && !said
    }

    /// Whether the fleet advises against the endpoint, so that it should cost more.
    #[must_use]
    pub fn is_advised(&self, policy: &Policy, now: Now) -> bool {
        policy.fleet != Fleet::Off && self.advice(policy, now).is_some()
    }

    /// The opinion, while it counts. One that counts for longer than any may was stretched by a
    /// clock that was set back.
    fn advice(&self, policy: &Policy, now: Now) -> Option<Opinion> {
        let (said, until) = self.opinion?;
        let left = until.since(now);
        let counts = !left.is_zero() && left <= policy.fleet_ttl;
        counts.then_some(Opinion { expires_at: until, ..said })
    }

    /// Takes in a record that was read because another worker wrote it.
    pub fn refresh(&mut self, fresh: Record, now: Now) -> Need {
        if fresh.revision < self.record.revision {
            // The store was wiped; what is known here is to be written again.
            return Need::Sync;
        }
        self.adopt(fresh);
        self.read_at = now;
        self.need(now)
    }

    /// Takes in what the table says of the endpoint.
    pub fn overlay(
        &mut self,
        opinion: Option<Opinion>,
        force: Option<Force>,
        policy: &Policy,
        now: Now,
    ) -> Need {
        if opinion != self.opinion.map(|(said, _)| said) {
            let until = |said: Opinion| said.expires_at.min(now.after(policy.fleet_ttl));
            self.opinion = opinion.map(|said| (said, until(said)));
        }
        self.force = force;
        let orders = force.is_some_and(|force| force.stamp > self.record.force_seen);
        let enforced = policy.fleet == Fleet::Enforce
            && opinion.is_some_and(|said| {
                said.expires_at > self.record.opinion_seen && said.expires_at > now
            });
        if orders || enforced { Need::Sync } else { self.need(now) }
    }

    /// Takes in how a request ended.
    ///
    /// Stray answers, those of a request sent in another generation, count nothing; but a probe's
    /// answer always goes to the record, which knows whether the slot still exists.
    pub fn observe(&mut self, ticket: Ticket, outcome: Outcome, policy: &Policy, now: Now) -> Need {
        if ticket.is_probe() {
            self.push(Pending { ticket, outcome, at: now });
            return Need::Sync;
        }
        if ticket.generation != self.record.generation || self.record.state != State::Closed {
            return Need::Nothing;
        }
        let Some(counts) = outcome.counts() else {
            return Need::Nothing;
        };
        self.window.add(counts, now, Window::bucket_length(policy.window));
        let matters = match outcome {
            Outcome::Ignored => false,
            Outcome::Success { slow } => {
                self.record.consecutive > 0
                    || !self.pending.is_empty()
                    || (slow && policy.slow_call.is_some() && !self.record.is_watched())
            }
            Outcome::Soft { .. } | Outcome::Failure(_) => true,
        };
        if !matters {
            return Need::Nothing;
        }
        self.push(Pending { ticket, outcome, at: now });
        Need::Sync
    }

    /// To be asked at least every 250 ms.
    pub fn tick(&self, now: Now) -> Need {
        self.need(now)
    }

    /// What to write over `fresh`, the record just read; `None` if the store holds none that
    /// decodes.
    ///
    /// A record older than the one already seen (the store was wiped) gives way to that one.
    #[must_use]
    pub fn merge(&self, fresh: Option<Record>, policy: &Policy, now: Now, random: u32) -> Merged {
        let opinion = self.advice(policy, now);
        self.build(fresh, &Context { policy, opinion, last_resort: false, now, random }, false)
    }

    /// As [`Self::merge`], and takes a probe slot if one is owed ([`Merged::ticket`]): by the
    /// policy, or as the last resort.
    #[must_use]
    pub fn claim(
        &self,
        fresh: Option<Record>,
        policy: &Policy,
        last_resort: bool,
        now: Now,
        random: u32,
    ) -> Merged {
        let opinion = self.advice(policy, now);
        self.build(fresh, &Context { policy, opinion, last_resort, now, random }, true)
    }

    /// The store accepted `merged`, or nothing had changed. Returns what is to be reported.
    ///
    /// Nothing may be observed between the merge and its commit: it would be taken for written.
    pub fn commit(&mut self, merged: Merged) -> Vec<Transition> {
        self.record = merged.record;
        self.read_at = merged.at;
        self.window.clear();
        self.pending.clear();
        merged.transitions
    }

    fn build(&self, fresh: Option<Record>, context: &Context<'_>, probe: bool) -> Merged {
        let Context { policy, now, .. } = *context;
        // The store was wiped, or overwritten by a worker that found it wiped.
        let stale = fresh.as_ref().map_or(0, Record::revision) < self.record.revision;
        let read = fresh.filter(|_| !stale).unwrap_or_else(|| self.record.clone());
        let mut record = read.clone();
        let mut transitions = Vec::new();

        record.follow_clock(now);
        if let Some(force) = self.force {
            transitions.extend(record.apply(Input::Force(force), context));
        }
        if let Some((said, _)) = self.opinion {
            transitions.extend(record.apply(Input::Opinion(said), context));
        }
        let counted_here =
            record.state == State::Closed && record.generation == self.record.generation;
        if counted_here && !self.window.is_empty() {
            record.window.absorb(&self.window, now, Window::bucket_length(policy.window));
        }
        for pending in &self.pending {
            let Pending { ticket, outcome, at } = *pending;
            if ticket.is_probe() {
                let input = Input::Probe { id: ticket.probe, outcome, at };
                transitions.extend(record.apply(input, context));
            } else if ticket.generation == record.generation {
                transitions.extend(record.judge(outcome, context));
            }
        }
        transitions.extend(record.apply(Input::Tick, context));
        let mut ticket = None;
        if probe {
            let (taken, transition) = record.try_probe(context);
            ticket = taken;
            transitions.extend(transition);
        }

        // When it was written is no reason to write it, unless that lies in the future.
        let touched = record.touched;
        record.touched = read.touched;
        let changed = stale || record != read || touched < read.touched;
        let wake = !transitions.is_empty()
            || (record.is_watched() && !read.is_watched())
            || (record.consecutive > 0 && read.consecutive == 0)
            || record.until != read.until
            || record.held_until != read.held_until;
        if changed {
            record.touched = touched;
            record.revision = record.revision.saturating_add(1);
        }
        Merged { record, changed, wake, ticket, transitions, at: now }
    }

    fn need(&self, now: Now) -> Need {
        let set_back = self.record.clock_set_back(now).is_some();
        let waits = match self.record.state {
            // A failure that nobody watches any more counts until a success; time does nothing to
            // it.
            State::Closed if self.record.is_watched() => {
                self.window.was_added_to() || self.may_be_judged(now)
            }
            State::Closed => self.record.held_until.0 != 0 && !self.record.is_held_closed(now),
            // An open breaker waits for a worker that wants to send; time alone changes nothing.
            State::Open => false,
            State::HalfOpen => true,
        };
        if set_back || waits || !self.pending.is_empty() { Need::Sync } else { Need::Nothing }
    }

    /// Whether time may have changed what is to be said of a watched record since it was read.
    fn may_be_judged(&self, now: Now) -> bool {
        let Record { watched_since, held_until, .. } = self.record;
        let came = |at: Now| at.0 != 0 && self.read_at < at && at <= now;
        now.since(self.read_at) >= SETTLE
            || came(watched_since.after(WATCH_BEFORE_RATE))
            || came(held_until)
    }

    fn push(&mut self, pending: Pending) {
        if self.pending.len() >= MAX_PENDING {
            self.pending.remove(0);
        }
        self.pending.push(pending);
    }

    /// What was counted for another generation says nothing of this one.
    fn adopt(&mut self, record: Record) {
        if record.generation != self.record.generation {
            self.window.clear();
            self.pending.retain(|pending| pending.ticket.is_probe());
        }
        self.record = record;
    }
}

#[cfg(test)]
mod tests;
