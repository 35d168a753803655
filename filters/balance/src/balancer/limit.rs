//! How many requests one endpoint may have in flight.
//!
//! Over all workers of this Envoy: the own ones exactly, the other workers' as they told last,
//! which is at most a quarter of a second ago. What they have begun since is the slack. A request
//! counts at the endpoint that it was sent to first, until its stream is over; attempts after that
//! one do not.
//!
//! A worker may always have its part of the limit, divided among the workers that have requests
//! there, and more where the others have less than theirs. Without that, two workers that are short
//! of room would take turns in refusing: each leaves all to the other, as it was a tick ago.
//!
//! Full is not ill: it is no reason for a panic, and no panic sends anybody there. So an endpoint
//! that is full stays what it is where endpoints are counted, and only those who draw see
//! [`State::Full`].
//!
//! Where the limit adapts, each worker finds its own. One that has nothing in flight there may send
//! one request below the ceiling whatever the others have, or it would learn nothing more.

use std::time::Duration;

use pintle_contract::nanos;

use super::Balancer;
use crate::max_requests::MaxRequests;
use crate::site::Site;
use crate::state::State;
use crate::types::Ticket;

impl Balancer {
    pub(super) fn is_limited(&self) -> bool {
        self.field.policy.max_requests != MaxRequests::Any
    }

    /// How many requests an endpoint may have in flight now; `None` for any number.
    #[must_use]
    pub fn limit_of(&self, index: usize) -> Option<u32> {
        match self.field.policy.max_requests {
            MaxRequests::Any => None,
            MaxRequests::Fixed(most) => Some(most),
            MaxRequests::Adaptive { min, max } => {
                Some(self.limits.get(index).map_or(max, |limit| limit.limit(min, max)))
            }
        }
    }

    /// Brings what draws see of an endpoint up to date.
    pub(super) fn mark(&mut self, index: usize) {
        let (Some(site), Some(load)) = (self.sites.get(index), self.field.loads.get(index)) else {
            return;
        };
        let most = match self.field.policy.max_requests {
            MaxRequests::Adaptive { max, .. } if load.in_flight == 0 => Some(max),
            _ => self.limit_of(index),
        };
        let part = |most: u32| most / (1 + u32::from(load.sharers));
        let full = most.is_some_and(|most| load.active() >= most && load.in_flight >= part(most));
        let state = if full { State::Full } else { site.state() };
        if let Some(place) = self.field.states.get_mut(index) {
            *place = state;
        }
    }

    /// What an answer, or the wait for one, says of the endpoint's own limit.
    pub(super) fn learn_limit(
        &mut self,
        index: usize,
        ticket: Ticket,
        latency: Option<Duration>,
        failed: bool,
    ) {
        if let Some(range) = self.field.policy.max_requests.range()
            && let Some(limit) = self.limits.get_mut(index)
            && let Some(latency) = latency
        {
            let (now, ns) = (self.field.clock.now, nanos(latency) as f32);
            limit.answered(range, now, ns, ticket.crowd, failed);
        }
    }

    /// Whether an endpoint would take this request if it were not full.
    pub(super) fn is_full(&self, index: u32) -> bool {
        self.field.state(index) == State::Full
    }

    /// Whether somebody fits who is full; asked where nobody else was found.
    #[cold]
    pub(super) fn has_full(&self, fits: impl Fn(u32, &Site) -> bool) -> bool {
        let mut sites = self.sites.iter().zip(0..);
        self.is_limited() && sites.any(|(site, i)| self.is_full(i) && fits(i, site))
    }
}
