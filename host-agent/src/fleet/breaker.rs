//! One endpoint's breaker on one proxy, from transitions that may come twice, late or out of order.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use pintle_contract::{BreakerState, Now, Transition};

use super::{When, wall};

/// Transitions of one breaker on one proxy that are remembered, to know a repeated one.
const REMEMBERED: usize = 16;

/// What is known of the breaker of one endpoint on one proxy.
#[derive(Debug)]
pub(super) struct Breaker {
    pub(super) state: BreakerState,
    pub(super) since: SystemTime,
    pub(super) until: Now,
    pub(super) reason: String,
    pub(super) observed: bool,
    pub(super) trips: u32,
    pub(super) changed: Instant,
    newest: Now,
    seen: VecDeque<(Now, BreakerState)>,
}

// === impl Breaker ===

impl Breaker {
    pub(super) fn closed(when: When) -> Self {
        Self {
            state: BreakerState::Closed,
            since: when.wall,
            until: Now(0),
            reason: String::new(),
            observed: false,
            trips: 0,
            changed: when.mono,
            newest: Now(0),
            seen: VecDeque::new(),
        }
    }

    /// Whether it was opened by a word, an operator's or the fleet's, that is over: without traffic
    /// no proxy looks at it, and none would tell. `until` is the end of a later word on the
    /// endpoint, if any.
    pub(super) fn is_over(&self, until: Option<Now>, when: When) -> bool {
        let end = until.map_or(self.until, |until| until.max(self.until));
        self.state == BreakerState::Open
            && !self.observed
            && self.until.0 > 0
            && wall(end) <= when.wall
    }

    /// False when the transition is known. An older one is new, but no longer the state.
    pub(super) fn take(&mut self, transition: &Transition, when: When) -> bool {
        let key = (transition.at, transition.to);
        let forgotten =
            self.seen.len() >= REMEMBERED && self.seen.iter().all(|(at, _)| *at > transition.at);
        if forgotten || self.seen.contains(&key) {
            return false;
        }
        if self.seen.len() >= REMEMBERED {
            let oldest = self.seen.iter().enumerate().min_by_key(|(_, (at, _))| *at);
            if let Some(index) = oldest.map(|(index, _)| index) {
                self.seen.remove(index);
            }
        }
        self.seen.push_back(key);
        if transition.at >= self.newest {
            self.newest = transition.at;
            self.state = transition.to;
            self.since = wall(transition.at);
            self.until = transition.until;
            self.reason.clone_from(&transition.reason);
            self.observed = transition.observed;
            self.trips = transition.trips;
            self.changed = when.mono;
        }
        true
    }
}
