//! A table with the endpoints of the one before: what stays the same is not built again.
//!
//! Of ten thousand endpoints one changes its weight, its health or what is said of it, ten times a
//! second. Names, keys and the orders in which they are searched stay then; the draws are built
//! anew where a weight, a health, a zone or a tier changed, and nothing is where only an opinion or
//! a label did.

use pintle_contract::{Endpoint, Health, Now};

use super::{Balancer, priority};
use crate::policy::Policy;
use crate::site::Site;
use crate::subset::Index;

/// What of an endpoint decides how it is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stance {
    weight: u32,
    health: Health,
    local: bool,
    priority: u8,
    registered_at: Now,
}

/// What of a table is read beside each endpoint.
pub(super) struct Around<'a> {
    /// Of the proxy, where the own zone is preferred; else empty.
    zone: &'a str,
    /// Nobody has a weight, and so all have the same.
    pub(super) weightless: bool,
}

impl<'a> Around<'a> {
    pub(super) fn of(policy: &Policy, endpoints: &[Endpoint], zone: &'a str) -> Self {
        let zone = if policy.zone_aware { zone } else { "" };
        Self { zone, weightless: endpoints.iter().all(|endpoint| endpoint.weight == 0) }
    }

    pub(super) fn stance(&self, endpoint: &Endpoint) -> Stance {
        Stance {
            weight: if self.weightless { 1 } else { endpoint.weight },
            health: endpoint.health,
            local: !self.zone.is_empty() && endpoint.zone == self.zone,
            priority: priority(endpoint),
            registered_at: endpoint.registered_at,
        }
    }
}

impl Site {
    const fn stance(&self) -> Stance {
        let Self { weight, health, local, priority, registered_at, .. } = *self;
        Stance { weight, health, local, priority, registered_at }
    }

    pub(super) const fn take(&mut self, stance: Stance) {
        let Stance { weight, health, local, priority, registered_at } = stance;
        (self.weight, self.health, self.local) = (weight, health, local);
        (self.priority, self.registered_at) = (priority, registered_at);
    }
}

impl Balancer {
    /// Takes a table that has the endpoints of the one before, under the same policy. `false`: it
    /// has not, and nothing has changed.
    pub(super) fn amend(
        &mut self,
        policy: &Policy,
        endpoints: &[Endpoint],
        zone: &str,
        now: Now,
    ) -> bool {
        let stays = |(site, endpoint): (&Site, &Endpoint)| {
            site.id == endpoint.id && site.address == endpoint.socket_addr()
        };
        if self.pools.is_empty()
            || self.sites.len() != endpoints.len()
            || self.field.policy != *policy
            || !self.sites.iter().zip(endpoints).all(stays)
            || self.index != Index::build(policy, endpoints)
        {
            return false;
        }
        let around = Around::of(policy, endpoints, zone);
        self.weightless = around.weightless;
        let stances = endpoints.iter().map(|endpoint| around.stance(endpoint));
        self.take_stances((0..).zip(stances), now);
        true
    }

    /// Takes what is said now of some endpoints, by their indices, at the addresses where they are.
    /// `false`: the whole table has to be looked at, and nothing has changed.
    pub fn amend_few(&mut self, changed: &[(usize, &Endpoint)], zone: &str, now: Now) -> bool {
        let policy = &self.field.policy;
        // Whoever has none may leave nobody with one.
        let weightless = self.weightless || changed.iter().any(|(_, it)| it.weight == 0);
        if weightless || self.pools.is_empty() || policy.reads_labels() {
            return false;
        }
        let zone = if policy.zone_aware { zone } else { "" };
        let around = Around { zone, weightless: false };
        let stances = changed.iter().map(|(at, endpoint)| (*at, around.stance(endpoint)));
        self.take_stances(stances, now);
        true
    }

    fn take_stances(&mut self, stances: impl Iterator<Item = (usize, Stance)>, now: Now) {
        let mut changed = false;
        for (at, stance) in stances {
            if let Some(site) = self.sites.get_mut(at).filter(|site| site.stance() != stance) {
                site.take(stance);
                changed = true;
            }
        }
        self.field.tick(now);
        if changed {
            self.settled = false;
            self.field.set_panic(false);
            self.generation = self.generation.wrapping_add(1);
            self.draw_anew(now);
        }
    }
}
