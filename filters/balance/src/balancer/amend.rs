//! A table of which little changed: what stays the same is not built again.
//!
//! Of ten thousand endpoints one changes its weight, its health or what is said of it, or is
//! replaced by another, ten times a second. The names, keys and orders of the others stay then. The
//! draws are built anew where somebody came or went, or a weight, a health, a zone or a tier
//! changed; nothing is where only an opinion did, or a label that no policy reads.

use pintle_contract::{Endpoint, Health, MAX_ENDPOINTS, Now, Patch};

use super::{Balancer, priority};
use crate::moves::Moves;
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
        if self.sites.is_empty()
            || self.sites.len() != endpoints.len()
            || self.field.policy != *policy
            || !self.sites.iter().zip(endpoints).all(stays)
            || *self.newest_index() != Index::build(policy, endpoints)
        {
            return false;
        }
        let around = Around::of(policy, endpoints, zone);
        self.weightless = around.weightless;
        let mut changed = false;
        for (site, endpoint) in self.sites.iter_mut().zip(endpoints) {
            let stance = around.stance(endpoint);
            changed |= site.stance() != stance;
            site.take(stance);
        }
        self.field.tick(now);
        if changed {
            self.begin();
            self.draw_later(self.newest_index().clone());
        }
        true
    }

    /// Where endpoints are once a patch is taken; `None`: the whole table has to be looked at.
    #[must_use]
    pub fn moves_by(&self, patch: &Patch) -> Option<Moves> {
        // A table is in the order of its ids.
        if self.sites.is_empty() || self.by_id.iter().zip(0..).any(|(&at, place)| at != place) {
            return None;
        }
        let stays = patch.endpoints.iter().filter_map(|it| self.index_of(&it.id));
        let stays: Vec<usize> = stays.collect();
        let goes: Vec<usize> = patch.gone.iter().filter_map(|id| self.index_of(id)).collect();
        // Where nobody has a weight, all have the same; who has none beside others gets nothing.
        let weighs = patch.endpoints.iter().any(|it| it.weight > 0);
        let others = || {
            let left =
                |at: &usize| stays.binary_search(at).is_ok() || goes.binary_search(at).is_ok();
            self.sites.iter().enumerate().any(|(at, site)| site.weight > 0 && !left(&at))
        };
        if self.weightless == (weighs || (!self.weightless && others())) {
            return None;
        }
        if goes.is_empty() && stays.len() == patch.endpoints.len() {
            return Some(Moves::none());
        }
        let new = patch.endpoints.iter().filter_map(|it| self.place_of(&it.id).err());
        let (mut new, mut goes) = (new.peekable(), goes.into_iter().peekable());
        let mut from = Vec::with_capacity(self.sites.len().saturating_add(patch.endpoints.len()));
        for at in 0..self.sites.len() {
            while new.next_if_eq(&at).is_some() {
                from.push(None);
            }
            if goes.next_if_eq(&at).is_none() {
                from.push(Some(at));
            }
        }
        from.extend(new.map(|_| None));
        (from.len() <= MAX_ENDPOINTS).then(|| Moves::new(from.into_iter(), self.sites.len()))
    }

    /// Takes what changed of the table, with its [`Self::moves_by`].
    pub fn amend_by<'a>(&mut self, patch: &'a Patch, moves: &Moves, zone: &str, now: Now) {
        self.field.tick(now);
        let zone = if self.field.policy.zone_aware { zone } else { "" };
        let around = Around { zone, weightless: self.weightless };
        let arranged = !moves.is_none();
        if arranged {
            let new = patch.endpoints.iter().filter(|it| self.place_of(&it.id).is_err());
            let new: Vec<&Endpoint> = new.collect();
            self.begin();
            self.arrange(moves, new.into_iter());
            self.note_news(now);
        }
        let place = |it: &'a Endpoint| Some((self.place_of(&it.id).ok()?, it));
        let places: Vec<(usize, &Endpoint)> = patch.endpoints.iter().filter_map(place).collect();
        let mut changed = arranged;
        let mut readdressed = Vec::new();
        for (at, endpoint) in &places {
            let Some(site) = self.sites.get_mut(*at) else { continue };
            let (address, stance) = (endpoint.socket_addr(), around.stance(endpoint));
            readdressed.extend((site.address != address).then_some(*at));
            changed |= site.address != address || site.stance() != stance;
            site.address = address;
            site.take(stance);
        }
        if arranged || !readdressed.is_empty() {
            self.sort(moves, &readdressed);
            self.by_id = (0..self.sites.len() as u32).collect();
        }
        let index = self.newest_index().amended(&self.field.policy, moves, &places);
        if changed || index != *self.newest_index() {
            if !arranged {
                self.begin();
            }
            self.draw_later(index);
        }
    }

    /// Where the endpoint with this id stands, or would.
    fn place_of(&self, id: &str) -> Result<usize, usize> {
        self.sites.binary_search_by(|site| site.id.as_str().cmp(id))
    }
}
