//! How many requests one endpoint may have in flight.
//!
//! Over all workers of this Envoy: the own ones exactly, the other workers' as they told last, which is at
//! most a quarter of a second ago. What they have begun since is the slack. A request counts at the
//! endpoint that it was sent to first, until its stream is over; attempts after that one do not.
//!
//! Full is not ill: it is no reason for a panic, and no panic sends anybody there. So an endpoint that is
//! full stays what it is where endpoints are counted, and only those who draw see [`State::Full`].

use super::Balancer;
use crate::load::State;
use crate::site::Site;

impl Balancer {
    pub(super) const fn is_limited(&self) -> bool {
        self.field.policy.max_requests > 0
    }

    /// Brings what draws see of an endpoint up to date.
    pub(super) fn mark(&mut self, index: usize) {
        let (Some(site), Some(load)) = (self.sites.get(index), self.field.loads.get(index)) else {
            return;
        };
        let most = self.field.policy.max_requests;
        let state = if most > 0 && load.active() >= most { State::Full } else { site.state() };
        if let Some(place) = self.field.states.get_mut(index) {
            *place = state;
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
