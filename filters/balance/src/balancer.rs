//! One service in one worker: the endpoints, what is known of them, and the pick.
//!
//! A [`Balancer`] is built from a table and rebuilt when the table or the policy changes
//! ([`Balancer::update`]); loads and verdicts go over by the registry's id, so reweighting or relabelling an
//! endpoint forgets nothing. An index is good until the next update; a request in flight holds a
//! [`Ticket`] instead, which finds its endpoint again or, when it is gone, nothing.
//!
//! A pick is narrowed in this order: subset, panic, pin, probe, newcomer; then the strategy chooses, in the
//! own zone first. Where there is nothing to narrow, which is most of the time, it begins with the strategy.
//! The strategy never sees an endpoint that may not be chosen, unless the pool is in panic, and then it
//! sees all but the draining ones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pintle_snapshot::{Endpoint, Health, MAX_ENDPOINTS, Now};
use rand::Rng;
use xxhash_rust::xxh64::xxh64;

use crate::bounded::Placement;
use crate::eligible::Field;
use crate::load::{Clock, Failures, Load, LoadEntry, State};
use crate::policy::{Policy, Strategy};
use crate::pool::Pool;
use crate::slow_start::{self, STEP};
use crate::sticky::{self, Pin};
use crate::subset::{self, Index, Key, MAX_POOLS};
use crate::types::{Choice, Nothing, Picks, Request, Sample, Ticket, Verdict};

/// Workers whose load is kept, at most; Envoy runs one per core.
const MAX_WORKERS: usize = 1024;

/// What does not change between updates, of one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    id: String,
    pub(crate) address: SocketAddr,
    /// As chosen by: the registered one, or 1 when the whole service has none.
    pub(crate) weight: u32,
    pub(crate) health: Health,
    pub(crate) local: bool,
    registered_at: Now,
    verdict: Verdict,
    key: u64,
    pin: Pin,
    /// The generation it came with.
    born: u32,
}

/// The endpoints of one service, as one worker sees them.
#[derive(Clone, Debug)]
pub struct Balancer {
    service: String,
    seed: u64,
    generation: u32,
    sites: Vec<Site>,
    field: Field,
    /// All requests in flight, the other workers' among them.
    active: u64,
    by_id: Vec<u32>,
    by_address: Vec<(SocketAddr, u32)>,
    by_key: Vec<(u64, u32)>,
    by_pin: Vec<(Pin, u32)>,
    index: Index,
    /// The first is the whole service.
    pools: Vec<Pool>,
    pool_of: BTreeMap<Key, usize>,
    /// Which pool gives way next.
    evict: usize,
    /// Endpoints that are owed a probe.
    probes: Vec<u32>,
    /// Endpoints of which nothing is known.
    newcomers: Vec<u32>,
    workers: Vec<(u32, Vec<LoadEntry>)>,
    /// Some endpoint is in its slow start.
    growing: bool,
    /// Some tier should be built again.
    stale: bool,
    /// Among all endpoints there is nothing to narrow, see [`Self::settle`].
    settled: bool,
    refreshed: Now,
}

/// Newcomers that are looked at for one request, at most: some wait for their health.
const LOOK: usize = 4;

/// What is left for the strategy.
#[derive(Clone, Copy, Debug)]
struct Narrowed {
    /// Which of the pools.
    pool: usize,
    panic: bool,
    /// Who takes a probe when the hash finds nobody.
    probe: Option<u32>,
    want: usize,
}

// === impl Site ===

impl Site {
    pub(crate) const fn counts(&self) -> bool {
        self.weight > 0 && !matches!(self.health, Health::Draining)
    }

    pub(crate) const fn could_be_eligible(&self) -> bool {
        self.weight > 0 && matches!(self.health, Health::Healthy)
    }

    pub(crate) const fn may_panic(&self) -> bool {
        !matches!(self.health, Health::Draining)
    }

    const fn state(&self) -> State {
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
            by_id: Vec::new(),
            by_address: Vec::new(),
            by_key: Vec::new(),
            by_pin: Vec::new(),
            index: Index::default(),
            pools: Vec::new(),
            pool_of: BTreeMap::new(),
            evict: 1,
            probes: Vec::new(),
            newcomers: Vec::new(),
            workers: Vec::new(),
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
    /// Costs O(n log n); a ring or Maglev table is built again only when its endpoints, their weights
    /// or its sizes changed. At most [`MAX_ENDPOINTS`] are taken.
    pub fn update(&mut self, policy: &Policy, endpoints: &[Endpoint], zone: &str, now: Now) {
        let endpoints = endpoints.get(..MAX_ENDPOINTS).unwrap_or(endpoints);
        self.settled = false;
        self.field.set_panic(false);
        self.generation = self.generation.wrapping_add(1);
        let same_tables = (self.field.policy.strategy, self.field.policy.hash_function)
            == (policy.strategy, policy.hash_function)
            && self.field.policy.minimum_ring_size == policy.minimum_ring_size
            && self.field.policy.maximum_ring_size == policy.maximum_ring_size
            && self.field.policy.table_size == policy.table_size;
        self.field.policy = policy.clone();
        self.tick(now);
        let clock = Clock::new(policy.ewma_decay, policy.failure_penalty, now);
        for load in &mut self.field.loads {
            load.convert(&self.field.clock, &clock);
        }
        self.field.clock = clock;

        let weightless = endpoints.iter().all(|e| e.weight == 0);
        let local = |e: &Endpoint| policy.zone_aware && !zone.is_empty() && e.zone == zone;
        let mut sites = Vec::with_capacity(endpoints.len());
        let mut loads = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let old = self.index_of(&endpoint.id);
            let known = old.and_then(|i| Some((self.sites.get(i)?, self.field.loads.get(i)?)));
            sites.push(Site {
                id: endpoint.id.clone(),
                address: endpoint.socket_addr(),
                weight: if weightless { 1 } else { endpoint.weight },
                health: endpoint.health,
                local: local(endpoint),
                registered_at: endpoint.registered_at,
                verdict: known.map_or(Verdict::Pass, |(site, _)| site.verdict),
                key: xxh64(endpoint.id.as_bytes(), xxh64(self.service.as_bytes(), 0)),
                pin: Pin::of(&self.service, &endpoint.id),
                born: known.map_or(self.generation, |(site, _)| site.born),
            });
            let load = known.map(|(_, load)| load.clone());
            loads.push(load.unwrap_or_else(|| Load::new(&self.field.clock)));
        }
        // With zones, only those of the own one: the others are for what spills over.
        let zoned = sites.iter().any(|site| site.local);
        let tried = policy.strategy == Strategy::P2c && policy.slow_start.is_none();
        let fits = |s: &Site, load: &Load| tried && (s.local || !zoned) && load.is_untried();
        self.newcomers = (0_u32..)
            .zip(sites.iter().zip(&loads))
            .filter(|(_, (site, load))| fits(site, load))
            .map(|(i, _)| i)
            .collect();
        self.sites = sites;
        self.field.loads = loads;
        self.sort();
        self.index = Index::build(policy, endpoints);
        self.probes.clear();
        self.field.states = self.sites.iter().map(Site::state).collect();
        let owed = self.field.states.iter().zip(0..).filter(|(s, _)| **s == State::Probe);
        self.probes.extend(owed.map(|(_, i)| i));
        self.spread_remote();
        self.field.failures = Failures::of(&self.field.loads);
        self.weigh(now);

        let tables = if same_tables && !self.pools.is_empty() {
            Some(self.pools.swap_remove(0).into_tables())
        } else {
            None
        };
        self.pools.clear();
        self.pool_of.clear();
        self.evict = 1;
        let everyone = (0..self.sites.len() as u32).collect();
        let mut whole = Pool::build(Key::default(), everyone, &self.sites);
        if let Some(tables) = tables {
            whole.keep_tables(tables);
        }
        self.pools.push(whole);
        self.refresh_pools(now, true);
    }

    fn sort(&mut self) {
        let sites = self.sites.iter();
        self.by_address = sites.clone().map(|s| s.address).zip(0_u32..).collect();
        self.by_address.sort_unstable();
        self.by_key = sites.clone().map(|s| s.key).zip(0_u32..).collect();
        self.by_key.sort_unstable();
        self.by_pin = sites.clone().map(|s| s.pin).zip(0_u32..).collect();
        self.by_pin.sort_unstable();
        let mut by_id: Vec<(&str, u32)> = sites.map(|s| s.id.as_str()).zip(0_u32..).collect();
        by_id.sort_unstable();
        self.by_id = by_id.into_iter().map(|(_, i)| i).collect();
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

    /// The endpoint with this [`LoadEntry::key`].
    #[must_use]
    pub fn by_key(&self, key: u64) -> Option<usize> {
        let at = self.by_key.partition_point(|&(k, _)| k < key);
        self.by_key.get(at).filter(|&&(k, _)| k == key).map(|&(_, i)| i as usize)
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
        self.pools.first().is_some_and(Pool::has_open)
    }

    /// What the breaker says; call it on change only. O(pools).
    pub fn set_verdict(&mut self, index: usize, verdict: Verdict) {
        let (Some(site), Some(state)) =
            (self.sites.get_mut(index), self.field.states.get_mut(index))
        else {
            return;
        };
        site.verdict = verdict;
        let (before, after) = (*state, site.state());
        *state = after;
        if before == after {
            return;
        }
        self.settled = false;
        let i = index as u32;
        if before == State::Probe {
            self.probes.retain(|&p| p != i);
        }
        if after == State::Probe {
            self.probes.push(i);
        }
        let grains = self.field.grains.get(index).copied().unwrap_or(0);
        for pool in &mut self.pools {
            if pool.key == Key::default() || self.index.matches(&pool.key, i) {
                self.stale |= pool.shift(site.local, grains, before, after);
            }
        }
    }

    /// Chooses for one request; `out` is cleared first. The list is [`Policy::attempts`] long, with one more
    /// while its first is a probe, and repeats endpoints rather than run out.
    #[inline]
    pub fn pick(
        &mut self,
        request: &Request<'_>,
        now: Now,
        rng: &mut impl Rng,
        out: &mut Picks,
    ) -> Choice {
        out.clear();
        self.tick(now);
        let whole = request.subset.is_empty() && request.pinned.is_none();
        let narrowed = if self.settled && whole {
            Narrowed { pool: 0, panic: false, probe: None, want: self.field.policy.attempts }
        } else {
            match self.narrow(request, now, out) {
                Ok(narrowed) => narrowed,
                Err(nothing) => return Choice::None(nothing),
            }
        };
        self.choose(request, narrowed, rng, out)
    }

    /// Everything but the strategy: who may be chosen, and who goes first for another reason than that.
    #[inline(never)]
    fn narrow(
        &mut self,
        request: &Request<'_>,
        now: Now,
        out: &mut Picks,
    ) -> Result<Narrowed, Nothing> {
        if self.sites.is_empty() {
            return Err(Nothing::Empty);
        }
        self.field.set_panic(false);
        if self.growing || self.stale {
            self.refresh(now);
        }
        let at = if request.subset.is_empty() {
            0
        } else {
            self.pool(request.subset).ok_or(Nothing::Subset)?
        };
        let pool = self.pools.get(at).ok_or(Nothing::Subset)?;
        let panic = pool.panics(self.field.policy.panic_percent, request.may_probe);
        let matches = |i: u32| at == 0 || self.index.matches(&pool.key, i);
        let mut narrowed =
            Narrowed { pool: at, panic, probe: None, want: self.field.policy.attempts };

        if let Some(pin) = request.pinned
            && let Some(i) = self.by_pin(pin)
            && let Some(site) = self.sites.get(i)
            && sticky::may_stay(site.health, site.verdict, site.weight > 0)
            && matches(i as u32)
        {
            out.push_pinned(i as u32);
        }
        if request.may_probe && !panic && out.len() == 0 {
            let probe = self.probes.iter().copied().find(|&i| matches(i));
            if request.hash.is_some() && self.field.policy.strategy.is_hashing() {
                narrowed.probe = probe;
            } else if let Some(probe) = probe {
                out.push_probe(probe);
                narrowed.want += 1;
            }
        }
        if at == 0
            && out.len() == 0
            && let Some(i) = self.newcomer(panic)
        {
            out.push(i);
        }
        self.settle();
        Ok(narrowed)
    }

    /// By the strategy.
    #[inline]
    fn choose(
        &mut self,
        request: &Request<'_>,
        narrowed: Narrowed,
        rng: &mut impl Rng,
        out: &mut Picks,
    ) -> Choice {
        let Narrowed { pool, panic, probe, mut want } = narrowed;
        let Some(pool) = self.pools.get_mut(pool) else {
            return Choice::None(Nothing::Subset);
        };
        self.field.set_panic(panic);
        match request.hash.filter(|_| self.field.policy.strategy.is_hashing()) {
            Some(hash) => {
                let key = Placement { hash, active: self.active, may_probe: request.may_probe };
                pool.place(&self.field, &self.sites, key, out, want);
                // A probe elsewhere would cost this key its cache; with nobody else it costs nothing.
                if let Some(probe) = probe.filter(|_| out.len() == 0) {
                    out.push_probe(probe);
                }
                want += usize::from(out.probe());
            }
            None => pool.choose(&self.field, &self.sites, rng, out, want),
        }
        if out.len() == 0 {
            return Choice::None(Nothing::Ineligible);
        }
        out.repeat_to(want);
        let candidates = pool.candidates(panic);
        if panic { Choice::Panic { candidates } } else { Choice::Eligible { candidates } }
    }

    /// An endpoint to try because nothing is known of it, for `p2c`.
    ///
    /// Two draws among many endpoints find one newcomer late: with 25 others, one of a hundred waits for
    /// 57 requests. Its cost is a guess until then, so it is tried once, as soon as it may be.
    fn newcomer(&mut self, panic: bool) -> Option<u32> {
        for back in (0..self.newcomers.len()).rev().take(LOOK) {
            let i = *self.newcomers.get(back)?;
            let at = i as usize;
            let (site, load) = (self.sites.get(at)?, self.field.loads.get(at)?);
            let may = if panic {
                site.may_panic()
            } else {
                self.field.open(i) && *self.field.grains.get(at)? > 0
            };
            let untried = load.is_untried();
            if may || !untried {
                self.newcomers.swap_remove(back);
            }
            if may && untried {
                return Some(i);
            }
        }
        None
    }

    /// Finds out whether the next pick among all needs to be narrowed. Only [`Self::update`] and
    /// [`Self::set_verdict`] end that.
    fn settle(&mut self) {
        let percent = self.field.policy.panic_percent;
        let calm = |pool: &Pool| !pool.panics(percent, false);
        self.settled = self.probes.is_empty()
            && self.newcomers.is_empty()
            && !self.growing
            && !self.stale
            && self.pools.first().is_some_and(calm);
    }

    /// A request was sent there.
    pub fn started(&mut self, index: usize, now: Now) -> Option<Ticket> {
        let (site, load) = (self.sites.get(index)?, self.field.loads.get_mut(index)?);
        load.started(now);
        self.active = self.active.saturating_add(1);
        Some(Ticket { index: index as u32, generation: self.generation, key: site.key })
    }

    /// It was answered, or failed.
    pub fn finished(&mut self, ticket: Ticket, now: Now, sample: Sample) {
        self.tick(now);
        if let Some(index) = self.end(ticket, now) {
            self.observed(index, now, sample);
        }
    }

    /// Nobody waited for the answer: the client went away after `waited`, when that is known.
    pub fn abandoned(&mut self, ticket: Ticket, now: Now, waited: Option<Duration>) {
        self.tick(now);
        if let Some(index) = self.end(ticket, now)
            && let (Some(waited), Some(load)) = (waited, self.field.loads.get_mut(index))
        {
            load.observe_at_least(&self.field.clock, waited);
        }
    }

    /// What became of an attempt that was not [`Self::started`]: one that Envoy retried.
    pub fn observed(&mut self, index: usize, now: Now, sample: Sample) {
        self.tick(now);
        let Some(load) = self.field.loads.get_mut(index) else {
            return;
        };
        load.observe(&self.field.clock, &mut self.field.failures, sample.latency, sample.failed);
        if let Some(wish) = sample.retry_after {
            load.leave_alone(now, wish);
        }
    }

    /// Where the ticket's endpoint stands now; `None` when it left, or left and came back.
    #[must_use]
    pub fn resolve(&self, ticket: Ticket) -> Option<usize> {
        if ticket.generation == self.generation {
            return Some(ticket.index as usize);
        }
        let index = self.by_key(ticket.key)?;
        let born = self.sites.get(index)?.born;
        // Serial-number comparison: generations may wrap.
        (ticket.generation.wrapping_sub(born) < 1 << 31).then_some(index)
    }

    #[inline]
    fn tick(&mut self, now: Now) {
        self.field.clock.tick(now, &mut self.field.loads, &mut self.field.failures);
    }

    fn end(&mut self, ticket: Ticket, now: Now) -> Option<usize> {
        let index = self.resolve(ticket)?;
        self.field.loads.get_mut(index)?.ended(now);
        self.active = self.active.saturating_sub(1);
        Some(index)
    }

    /// What this worker has to tell the others, as of `now`: endpoints with requests in flight or sampled
    /// within the decay time.
    pub fn local_load(&self, now: Now) -> impl Iterator<Item = LoadEntry> + '_ {
        let clock = &self.field.clock;
        self.sites.iter().zip(&self.field.loads).filter_map(move |(s, l)| l.tell(s.key, clock, now))
    }

    /// What `worker` knew at `then`. Replaces what it told before: an endpoint it no longer names
    /// has nothing in flight there.
    pub fn set_remote_load(&mut self, worker: u32, entries: &[LoadEntry], then: Now, now: Now) {
        self.tick(now);
        self.remove_worker(worker);
        if self.workers.len() >= MAX_WORKERS {
            return;
        }
        let entries = entries.get(..MAX_ENDPOINTS).unwrap_or(entries);
        for entry in entries {
            if let Some(i) = self.by_key(entry.key)
                && let Some(load) = self.field.loads.get_mut(i)
            {
                load.elsewhere = load.elsewhere.saturating_add(entry.in_flight);
                self.active = self.active.saturating_add(u64::from(entry.in_flight));
                load.hear(&self.field.clock, &mut self.field.failures, entry, then);
            }
        }
        self.workers.push((worker, entries.to_vec()));
    }

    /// Forgets what a vanished worker had in flight; what it taught of latencies decays by itself.
    pub fn remove_worker(&mut self, worker: u32) {
        let Some(at) = self.workers.iter().position(|&(w, _)| w == worker) else {
            return;
        };
        let (_, entries) = self.workers.swap_remove(at);
        for entry in entries {
            if let Some(i) = self.by_key(entry.key)
                && let Some(load) = self.field.loads.get_mut(i)
            {
                load.elsewhere = load.elsewhere.saturating_sub(entry.in_flight);
                self.active = self.active.saturating_sub(u64::from(entry.in_flight));
            }
        }
    }

    /// The other workers' in-flight counts, after the table changed.
    fn spread_remote(&mut self) {
        for load in &mut self.field.loads {
            load.elsewhere = 0;
        }
        for (_, entries) in &self.workers {
            for entry in entries {
                let at = self.by_key.partition_point(|&(k, _)| k < entry.key);
                if let Some(&(_, i)) = self.by_key.get(at).filter(|&&(k, _)| k == entry.key)
                    && let Some(load) = self.field.loads.get_mut(i as usize)
                {
                    load.elsewhere = load.elsewhere.saturating_add(entry.in_flight);
                }
            }
        }
        self.active = self.field.loads.iter().map(|l| u64::from(l.active())).sum();
    }

    /// The pool of a subset; `None` when nobody matches and there is no fallback.
    fn pool(&mut self, wants: &[subset::Want<'_>]) -> Option<usize> {
        if let Some(key) = self.index.key(wants) {
            if let Some(&at) = self.pool_of.get(&key) {
                return Some(at);
            }
            let members = self.index.members(&key);
            if !members.is_empty() {
                return Some(self.add_pool(key, members));
            }
        }
        match self.field.policy.subset_fallback {
            crate::policy::SubsetFallback::None => None,
            crate::policy::SubsetFallback::Any => Some(0),
            crate::policy::SubsetFallback::Default => {
                if let Some(&at) = self.pool_of.get(&subset::DEFAULT) {
                    return Some(at);
                }
                let members = self.index.members(&subset::DEFAULT);
                (!members.is_empty()).then(|| self.add_pool(subset::DEFAULT, members))
            }
        }
    }

    fn add_pool(&mut self, key: Key, members: Vec<u32>) -> usize {
        let mut pool = Pool::build(key, members, &self.sites);
        pool.refresh(&self.field, self.turns(), &self.sites);
        let at = if self.pools.len() < MAX_POOLS {
            self.pools.push(pool);
            self.pools.len() - 1
        } else {
            let at = self.evict;
            self.evict = if at + 1 < MAX_POOLS { at + 1 } else { 1 };
            if let Some(place) = self.pools.get_mut(at) {
                self.pool_of.remove(&place.key);
                *place = pool;
            }
            at
        };
        self.pool_of.insert(key, at);
        at
    }

    /// The seed of the weighted turns, when the strategy takes them.
    fn turns(&self) -> Option<u64> {
        matches!(self.field.policy.strategy, Strategy::WeightedRoundRobin | Strategy::RoundRobin)
            .then(|| self.seed ^ u64::from(self.generation))
    }

    /// Effective weights at `now`.
    fn weigh(&mut self, now: Now) {
        let policy = self.field.policy.slow_start;
        self.growing = false;
        self.field.grains.clear();
        for (site, load) in self.sites.iter().zip(&mut self.field.loads) {
            let full = slow_start::grains(site.weight, Now(0), now, None);
            let grains = slow_start::grains(site.weight, site.registered_at, now, policy.as_ref());
            self.growing |= grains < full;
            self.field.grains.push(grains);
            // Weight 0 is only ever compared in a panic, and there it counts as 1.
            let shown = if grains == 0 { slow_start::GRAINS } else { grains };
            load.inverse_weight = slow_start::GRAINS as f32 / shown as f32;
        }
    }

    fn refresh(&mut self, now: Now) {
        if now < self.refreshed || now.since(self.refreshed) >= STEP {
            let grew = self.growing;
            if grew {
                self.weigh(now);
            }
            self.refresh_pools(now, grew);
        }
    }

    fn refresh_pools(&mut self, now: Now, all: bool) {
        let turns = self.turns();
        let mut pools = std::mem::take(&mut self.pools);
        for pool in &mut pools {
            if all || pool.is_stale() {
                pool.refresh(&self.field, turns, &self.sites);
            }
        }
        self.pools = pools;
        self.stale = false;
        self.refreshed = now;
    }
}

#[cfg(test)]
#[path = "balancer_tests.rs"]
mod tests;
