//! The pick.
//!
//! It is narrowed in this order: subset, panic, pin, probe; then the strategy chooses, in the own
//! zone first. Where there is nothing to narrow, which is most of the time, it begins with the
//! strategy. The strategy never sees an endpoint that may not be chosen, unless the pool is in
//! panic, and then it sees all but the draining ones.

use pintle_contract::Now;
use rand::Rng;

use super::Balancer;
use crate::bounded::Placement;
use crate::policy::SubsetFallback;
use crate::pool::Pool;
use crate::site::Site;
use crate::stand::Means;
use crate::state::State;
use crate::sticky;
use crate::subset;
use crate::types::{Choice, Nothing, Picks, Request};

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

impl Balancer {
    /// Chooses for one request; `out` is cleared first. The list is
    /// [`Policy::attempts`](crate::Policy::attempts) long, with one more while its first is a
    /// probe, and repeats endpoints rather than run out.
    #[inline]
    pub fn pick(
        &mut self,
        request: &Request<'_>,
        now: Now,
        rng: &mut impl Rng,
        out: &mut Picks,
    ) -> Choice {
        out.clear();
        self.field.tick(now);
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

    /// Everything but the strategy: who may be chosen, and who goes first for another reason than
    /// that.
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
        self.draw(now);
        self.field.set_panic(false);
        if self.growing || self.stale {
            self.refresh(now);
        }
        let at = if request.subset.is_empty() {
            0
        } else {
            self.pool(request.subset, now).ok_or(Nothing::Subset)?
        };
        let at =
            if self.field.policy.failover.is_none() { at } else { self.fail_over(at, now, out) };
        if at > 0 {
            self.refresh_pool(at, now);
        }
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
            if self.is_full(i as u32) {
                out.stray();
            } else {
                out.push_pinned(i as u32);
            }
        }
        if request.may_probe && !panic && out.len() == 0 {
            let fits = |i: &u32| matches(*i) && !self.is_full(*i);
            let probe = self.probes.iter().copied().find(fits);
            if request.hash.is_some() && self.field.policy.strategy.is_hashing() {
                narrowed.probe = probe;
            } else if let Some(probe) = probe {
                out.push_probe(probe);
                narrowed.want += 1;
            }
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
        let Narrowed { pool: at, panic, probe, mut want } = narrowed;
        let Some(pool) = self.pools.get_mut(at) else {
            return Choice::None(Nothing::Subset);
        };
        self.field.set_panic(panic);
        match request.hash.filter(|_| self.field.policy.strategy.is_hashing()) {
            Some(hash) => {
                let key = Placement { hash, active: self.active, may_probe: request.may_probe };
                let mut means = Means {
                    policy: &self.field.policy,
                    memory: &self.memory,
                    places: &self.by_address,
                    now: self.field.clock.now,
                    credit: (at > 0).then_some(&mut self.credit),
                    refused: &mut self.refused,
                    building: &mut self.building,
                };
                if let Some(credit) = &mut means.credit {
                    credit.earn();
                }
                if !pool.place(&self.field, &self.sites, &mut means, key, out) {
                    out.miss_table();
                    pool.choose(&mut self.field, &self.sites, rng, out, want);
                }
                // A probe elsewhere would cost this key its cache; with nobody else it costs
                // nothing.
                if let Some(probe) = probe.filter(|_| out.len() == 0) {
                    out.push_probe(probe);
                }
                want += usize::from(out.probe());
            }
            None => pool.choose(&mut self.field, &self.sites, rng, out, want),
        }
        let candidates = pool.candidates(panic);
        if out.len() == 0 {
            return Choice::None(self.nobody(at, panic));
        }
        out.repeat_to(want);
        if panic { Choice::Panic { candidates } } else { Choice::Eligible { candidates } }
    }

    /// Why nobody of a pool was found.
    #[cold]
    #[inline(never)]
    fn nobody(&self, at: usize, panic: bool) -> Nothing {
        let Some(pool) = self.pools.get(at) else { return Nothing::Subset };
        let fits = |i: u32, site: &Site| {
            let may = panic || site.state() == State::Open;
            may && (at == 0 || self.index.matches(&pool.key, i))
        };
        if self.has_full(fits) { Nothing::Full } else { Nothing::Ineligible }
    }

    /// Finds out whether the next pick among all needs to be narrowed. Only [`Self::update`] and
    /// [`Self::set_verdict`] end that.
    fn settle(&mut self) {
        let percent = self.field.policy.panic_percent;
        let calm = |pool: &Pool| !pool.panics(percent, false);
        self.settled = self.probes.is_empty()
            && !self.growing
            && !self.stale
            && self.field.policy.failover.is_none()
            && self.pools.first().is_some_and(calm);
    }

    /// The pool of a subset; `None` when nobody matches and there is no fallback.
    fn pool(&mut self, wants: &[subset::Want<'_>], now: Now) -> Option<usize> {
        if let Some(key) = self.index.key(wants) {
            if let Some(&at) = self.pool_of.get(&key) {
                return Some(at);
            }
            let members = self.index.members(&key);
            if !members.is_empty() {
                return Some(self.add_pool(key, members, now));
            }
        }
        match self.field.policy.subset_fallback {
            SubsetFallback::None => None,
            SubsetFallback::Any => Some(0),
            SubsetFallback::Default => {
                if let Some(&at) = self.pool_of.get(&subset::DEFAULT) {
                    return Some(at);
                }
                let members = self.index.members(&subset::DEFAULT);
                (!members.is_empty()).then(|| self.add_pool(subset::DEFAULT, members, now))
            }
        }
    }

    /// The pool of those of the pool `at` that the policy fails over to; `at` itself where none of
    /// them is eligible.
    #[cold]
    #[inline(never)]
    fn fail_over(&mut self, at: usize, now: Now, out: &mut Picks) -> usize {
        let Some(pool) = self.pools.get(at) else { return at };
        let key = subset::failed_over(pool.key);
        if let Some(&known) = self.pool_of.get(&key) {
            if self.pools.get(known).is_some_and(Pool::has_eligible) {
                return known;
            }
            out.miss_failover();
            return at;
        }
        let members = self.index.members(&key);
        let eligible =
            |i: &u32| self.sites.get(*i as usize).is_some_and(|s| s.state() != State::Shut);
        if members.iter().any(eligible) {
            return self.add_pool(key, members, now);
        }
        out.miss_failover();
        at
    }
}
