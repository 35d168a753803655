//! One service in one worker: the endpoints, what is known of them, and the pick.
//!
//! A [`Balancer`] is built from a table and rebuilt when the table or the policy changes
//! ([`Balancer::update`]); loads and verdicts go over by the registry's id, so reweighting or
//! relabelling an endpoint forgets nothing. An index is good until the next update; a request in
//! flight holds a [`Ticket`](crate::Ticket) instead, which finds its endpoint again or, when it is
//! gone, nothing. `pick.rs` chooses among them, `traffic.rs` is told what became of it.

use std::collections::BTreeMap;
use std::iter::repeat_with;
use std::net::SocketAddr;

use amend::Around;
use pintle_contract::{Endpoint, Health, MAX_ENDPOINTS, Now};
use xxhash_rust::xxh64::xxh64;

use crate::adaptive::Adaptive;
use crate::clock::Clock;
use crate::eligible::Field;
use crate::history::History;
use crate::load::Load;
use crate::memory::{Memory, OverBudget};
use crate::moves::Moves;
use crate::news::News;
use crate::policy::Policy;
use crate::pool::{Pool, Stands};
use crate::shape::Shape;
use crate::site::Site;
use crate::slow_start::{self, STEP};
use crate::stand::Credit;
use crate::state::State;
use crate::sticky::Pin;
use crate::subset::{Index, Key, Words};
use crate::tier::tier_of;
use crate::told;
use crate::verdict::Verdict;
use crate::workers::Workers;

mod amend;
mod explain;
mod limit;
mod pick;
mod tables;
mod traffic;

/// The endpoints of one service, as one worker sees them.
#[derive(Debug)]
pub struct Balancer {
    service: String,
    seed: u64,
    generation: u32,
    sites: Vec<Site>,
    field: Field,
    /// All requests in flight, the other workers' among them.
    active: u64,
    /// Of each endpoint, where the limit adapts; else empty.
    limits: Vec<Adaptive>,
    by_id: Vec<u32>,
    by_address: Vec<(SocketAddr, u32)>,
    by_key: Vec<(u64, u32)>,
    by_pin: Vec<(Pin, u32)>,
    index: Index,
    /// Of a table of which nobody has asked yet: pools and index are of the one before.
    undrawn: Option<Index>,
    /// The first is the whole service.
    pools: Vec<Pool>,
    pool_of: BTreeMap<Key, usize>,
    /// Which pool gives way next.
    evict: usize,
    /// Of the subsets before the last update, until they are asked for again.
    retired: BTreeMap<Words, Stands>,
    memory: Memory,
    /// Of the subsets.
    credit: Credit,
    /// Some ring or table is on its way.
    building: bool,
    refused: Option<OverBudget>,
    /// How often the weights were counted anew.
    weighed: u64,
    /// Endpoints that are owed a probe.
    probes: Vec<u32>,
    workers: Workers,
    news: News,
    /// Indices where requests of theirs are counted.
    elsewhere: Vec<u32>,
    /// Nobody has a weight, and all count the same.
    weightless: bool,
    /// Some endpoint is in its slow start.
    growing: bool,
    /// Some deck should be built again.
    stale: bool,
    /// Among all endpoints there is nothing to narrow, see [`Self::settle`].
    settled: bool,
    refreshed: Now,
}

// === impl Site ===

impl Site {
    pub(crate) const fn counts(&self) -> bool {
        self.weight > 0 && !matches!(self.health, Health::Draining)
    }

    pub(crate) const fn could_be_eligible(&self) -> bool {
        self.weight > 0 && matches!(self.health, Health::Healthy)
    }

    pub(crate) const fn is_awake(&self) -> bool {
        !matches!(self.health, Health::Draining)
    }

    pub(crate) const fn state(&self) -> State {
        match self.verdict {
            _ if !self.could_be_eligible() => State::Shut,
            Verdict::Pass => State::Open,
            Verdict::Probe => State::Probe,
            Verdict::Blocked => State::Shut,
        }
    }
}

// === impl Balancer ===

impl Balancer {
    /// `zone`: where the proxy runs, empty when not known. `seed`: differs from worker to worker.
    #[must_use]
    pub fn new(
        service: &str,
        policy: &Policy,
        endpoints: &[Endpoint],
        zone: &str,
        seed: u64,
        now: Now,
    ) -> Self {
        let mut new = Self {
            service: service.to_owned(),
            seed,
            generation: 0,
            sites: Vec::new(),
            field: Field::new(policy, now),
            active: 0,
            elsewhere: Vec::new(),
            limits: Vec::new(),
            by_id: Vec::new(),
            by_address: Vec::new(),
            by_key: Vec::new(),
            by_pin: Vec::new(),
            index: Index::default(),
            undrawn: None,
            pools: Vec::new(),
            pool_of: BTreeMap::new(),
            evict: 1,
            retired: BTreeMap::new(),
            memory: Memory::default(),
            credit: Credit::default(),
            building: false,
            refused: None,
            weighed: 0,
            probes: Vec::new(),
            workers: Workers::default(),
            news: News::default(),
            weightless: false,
            growing: false,
            stale: false,
            settled: false,
            refreshed: now,
        };
        new.update(policy, endpoints, zone, now);
        new
    }

    /// Takes a new table or policy. Loads and verdicts stay with their ids; indices change.
    ///
    /// Costs O(n log n); a ring or Maglev table is built again only when its endpoints, their
    /// weights or its sizes changed. At most [`MAX_ENDPOINTS`] are taken.
    pub fn update(&mut self, policy: &Policy, endpoints: &[Endpoint], zone: &str, now: Now) {
        let endpoints = endpoints.get(..MAX_ENDPOINTS).unwrap_or(endpoints);
        if self.amend(policy, endpoints, zone, now) {
            return;
        }
        let moves = self.moves_to(endpoints);
        self.begin();
        self.field.policy = policy.clone();
        self.field.tick(now);
        self.field.clock = Clock::new(policy.ewma_decay, policy.failure_penalty, now);

        let around = Around::of(policy, endpoints, zone);
        self.weightless = around.weightless;
        self.arrange(&moves, moves.new_ones().filter_map(|at| endpoints.get(at)));
        let mut readdressed = Vec::new();
        for (at, (site, endpoint)) in self.sites.iter_mut().zip(endpoints).enumerate() {
            let address = endpoint.socket_addr();
            readdressed.extend((site.address != address).then_some(at));
            site.address = address;
            site.take(around.stance(endpoint));
        }
        self.note_news(now);
        self.sort(&moves, &readdressed);
        let mut by_id: Vec<(&str, u32)> =
            self.sites.iter().map(|site| site.id.as_str()).zip(0_u32..).collect();
        by_id.sort_unstable();
        self.by_id = by_id.into_iter().map(|(_, at)| at).collect();
        let index = Index::build(policy, endpoints);
        self.draw_later(index);
    }

    /// The endpoints, or what is known of them by the table, are about to change.
    fn begin(&mut self) {
        self.settled = false;
        self.field.set_panic(false);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Where the endpoints of a whole table are now.
    #[must_use]
    pub fn moves_to(&self, endpoints: &[Endpoint]) -> Moves {
        let mut next = 0;
        let from = endpoints.iter().take(MAX_ENDPOINTS).map(|endpoint| {
            let from = self.find_near(next, &endpoint.id);
            next = from.map_or(next, |at| at.saturating_add(1));
            from
        });
        Moves::new(from, self.sites.len())
    }

    /// Everything that is kept by index; `new`: those that have come, in their order.
    fn arrange<'a>(&mut self, moves: &Moves, new: impl Iterator<Item = &'a Endpoint>) {
        let mut limits = std::mem::take(&mut self.limits);
        // There are none before a policy lets them adapt.
        limits.resize(self.sites.len(), const { Adaptive::new() });
        let sites = std::mem::take(&mut self.sites);
        self.sites = moves.carry(sites, new.map(|endpoint| self.newcomer(endpoint)));
        let Field { loads, histories, clock, policy, .. } = &mut self.field;
        *loads = moves.carry(std::mem::take(loads), repeat_with(|| Load::new(clock)));
        *histories = moves.carry(std::mem::take(histories), repeat_with(History::default));
        if policy.max_requests.range().is_some() {
            self.limits = moves.carry(limits, repeat_with(Adaptive::new));
        }
    }

    /// Finds what is worth telling of, after indices have changed.
    fn note_news(&mut self, now: Now) {
        self.news = News::of(self.field.loads.len());
        let since = told::since(&self.field.clock, true);
        for at in (0..self.field.loads.len()).filter(|at| self.field.is_news(*at, since, now)) {
            self.news.note(at);
        }
    }

    /// After sites have changed: what is drawn from is built by the next request. Ten changes a
    /// second are more than many workers have requests.
    fn draw_later(&mut self, index: Index) {
        self.probes.clear();
        self.field.states = self.sites.iter().map(Site::state).collect();
        let owed = self.field.states.iter().zip(0..).filter(|(s, _)| **s == State::Probe);
        self.probes.extend(owed.map(|(_, i)| i));
        self.spread_remote();
        self.undrawn = Some(index);
    }

    /// Builds what is drawn from, where sites have changed since.
    fn draw(&mut self, now: Now) {
        let Some(index) = self.undrawn.take() else { return };
        self.weigh(now);
        let everyone = (0..self.sites.len() as u32).collect();
        let mut whole = Pool::build(Key::default(), everyone, &self.sites);
        if let Some(stands) = self.retire() {
            whole.keep_stands(stands, Shape::of(&self.field.policy));
        }
        self.index = index;
        self.pools.push(whole);
        self.refresh_pool(0, now);
        self.refreshed = now;
        self.stale = false;
    }

    /// The index of the newest table.
    fn newest_index(&self) -> &Index {
        self.undrawn.as_ref().unwrap_or(&self.index)
    }

    fn newcomer(&self, endpoint: &Endpoint) -> Site {
        Site {
            id: endpoint.id.clone(),
            address: endpoint.socket_addr(),
            weight: endpoint.weight,
            health: endpoint.health,
            local: false,
            priority: 0,
            registered_at: endpoint.registered_at,
            verdict: Verdict::Pass,
            key: xxh64(endpoint.id.as_bytes(), xxh64(self.service.as_bytes(), 0)),
            pin: Pin::of(&self.service, &endpoint.id),
            born: self.generation,
        }
    }

    /// Where the endpoint with this id stands: in sorted tables mostly at `next`.
    fn find_near(&self, next: usize, id: &str) -> Option<usize> {
        let is_next = self.sites.get(next).is_some_and(|site| site.id == id);
        if is_next { Some(next) } else { self.index_of(id) }
    }

    /// The orders in which endpoints are searched but for their ids, after [`Self::arrange`];
    /// `readdressed`: who stays and has another address, ascending.
    fn sort(&mut self, moves: &Moves, readdressed: &[usize]) {
        let Self { sites, by_address, by_key, by_pin, .. } = self;
        let with_site = |at: usize| Some((sites.get(at)?, at as u32));
        let new = moves.new_ones().filter_map(with_site);
        moves.renumber(by_key, &[], new.clone().map(|(site, at)| (site.key, at)));
        moves.renumber(by_pin, &[], new.clone().map(|(site, at)| (site.pin, at)));
        let new = new.chain(readdressed.iter().copied().filter_map(with_site));
        moves.renumber(by_address, readdressed, new.map(|(site, at)| (site.address, at)));
    }

    /// Endpoints, whatever their state.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.sites.len()
    }

    /// Whether there is no endpoint.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The policy in force.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.field.policy
    }

    /// Where the endpoint with this id stands until the next update.
    #[must_use]
    pub fn index_of(&self, id: &str) -> Option<usize> {
        let site = |i: u32| self.sites.get(i as usize).map_or("", |s| s.id.as_str());
        let at = self.by_id.binary_search_by(|&i| site(i).cmp(id)).ok()?;
        self.by_id.get(at).map(|&i| i as usize)
    }

    /// The first endpoint with this address.
    #[must_use]
    pub fn by_address(&self, address: SocketAddr) -> Option<usize> {
        let at = self.by_address.partition_point(|&(a, _)| a < address);
        self.by_address.get(at).filter(|&&(a, _)| a == address).map(|&(_, i)| i as usize)
    }

    /// The endpoint with this key ([`Self::key_of`]).
    #[must_use]
    pub fn by_key(&self, key: u64) -> Option<usize> {
        let at = self.by_key.partition_point(|&(k, _)| k < key);
        self.by_key.get(at).filter(|&&(k, _)| k == key).map(|&(_, i)| i as usize)
    }

    /// The same where it was at `index` when the key was taken; no search where it still is.
    #[must_use]
    pub fn by_key_near(&self, key: u64, index: usize) -> Option<usize> {
        if self.key_of(index) == Some(key) { Some(index) } else { self.by_key(key) }
    }

    /// The endpoint that a pin names.
    #[must_use]
    pub fn by_pin(&self, pin: Pin) -> Option<usize> {
        let at = self.by_pin.partition_point(|&(p, _)| p < pin);
        self.by_pin.get(at).filter(|&&(p, _)| p == pin).map(|&(_, i)| i as usize)
    }

    /// The registry's id.
    #[must_use]
    pub fn id_of(&self, index: usize) -> Option<&str> {
        self.sites.get(index).map(|s| s.id.as_str())
    }

    /// Address and port.
    #[must_use]
    pub fn address_of(&self, index: usize) -> Option<SocketAddr> {
        self.sites.get(index).map(|s| s.address)
    }

    /// A hash of service and id, the same in every worker and proxy.
    #[must_use]
    pub fn key_of(&self, index: usize) -> Option<u64> {
        self.sites.get(index).map(|s| s.key)
    }

    /// What pins a session to this endpoint.
    #[must_use]
    pub fn pin_of(&self, index: usize) -> Option<Pin> {
        self.sites.get(index).map(|s| s.pin)
    }

    /// Requests in flight there: this worker's, and the other workers' as last heard.
    #[must_use]
    pub fn in_flight(&self, index: usize) -> (u32, u32) {
        self.field.loads.get(index).map_or((0, 0), |l| (l.in_flight, l.elsewhere))
    }

    /// Whether any endpoint is eligible, and not as a probe only.
    #[must_use]
    pub fn has_open(&self) -> bool {
        match self.pools.first() {
            Some(pool) if self.undrawn.is_none() => pool.has_open(),
            _ => self.sites.iter().any(|site| site.state() == State::Open),
        }
    }

    /// What the breaker says; call it on change only. O(pools).
    pub fn set_verdict(&mut self, index: usize, verdict: Verdict) {
        let Some(site) = self.sites.get_mut(index) else { return };
        let before = site.state();
        site.verdict = verdict;
        let after = site.state();
        if before == after {
            return;
        }
        self.mark(index);
        self.settled = false;
        let i = index as u32;
        if before == State::Probe {
            self.probes.retain(|&p| p != i);
        }
        if after == State::Probe {
            self.probes.push(i);
        }
        let grains = self.field.grains.get(index).copied().unwrap_or(0);
        let Some(site) = self.sites.get(index).filter(|_| self.undrawn.is_none()) else { return };
        for pool in &mut self.pools {
            if pool.key == Key::default() || self.index.matches(&pool.key, i) {
                self.stale |= pool.shift(site, grains, before, after);
            }
        }
    }

    /// The seed of the order of turns.
    fn turns(&self) -> u64 {
        self.seed ^ u64::from(self.generation)
    }

    /// Effective weights at `now`.
    fn weigh(&mut self, now: Now) {
        self.weighed = self.weighed.wrapping_add(1);
        let policy = self.field.policy.slow_start;
        self.growing = false;
        self.field.grains.clear();
        for site in &self.sites {
            let full = slow_start::grains(site.weight, Now(0), now, None);
            let grains = slow_start::grains(site.weight, site.registered_at, now, policy.as_ref());
            self.growing |= grains < full;
            self.field.grains.push(grains);
        }
        // Weight 0 is only ever compared in a panic, and there it counts as 1.
        let shown = |grains: u64| if grains == 0 { slow_start::GRAINS } else { grains };
        let sum: u64 = self.field.grains.iter().map(|&grains| shown(grains)).sum();
        let mean = sum as f64 / self.field.grains.len().max(1) as f64;
        for (load, &grains) in self.field.loads.iter_mut().zip(&self.field.grains) {
            load.inverse_weight = (mean / shown(grains) as f64) as f32;
        }
    }

    fn refresh(&mut self, now: Now) {
        if now < self.refreshed || now.since(self.refreshed) >= STEP {
            if self.growing {
                self.weigh(now);
            }
            self.refreshed = now;
            self.stale = false;
            self.refresh_pool(0, now);
        }
    }

    /// Builds a pool's draws anew where they are not of the present weights, or one of few is
    /// eligible.
    fn refresh_pool(&mut self, at: usize, now: Now) {
        let turns = self.turns();
        let Some(pool) = self.pools.get_mut(at) else { return };
        let (then, weighed) = pool.refreshed;
        let may = now < then || now.since(then) >= STEP;
        if weighed != self.weighed || (pool.is_stale() && may) {
            pool.refresh(&self.field, turns, &self.sites);
            pool.refreshed = (now, self.weighed);
        }
    }
}

fn priority(endpoint: &Endpoint) -> u8 {
    let priority = endpoint.metadata.iter().find(|(key, _)| key == "priority");
    tier_of(priority.map(|(_, value)| value.as_str()))
}

#[cfg(test)]
mod tests;
