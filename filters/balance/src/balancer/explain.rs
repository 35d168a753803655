//! Why a request goes where it goes: how each endpoint stands before it.
//!
//! For a person who asks, not for a pick: it looks at every endpoint, and at what the pick before
//! it has built.

use std::time::Duration;

use super::Balancer;
use crate::pool::Pool;
use crate::site::Site;
use crate::subset::{self, Want};
use crate::types::Request;
use crate::verdict::Verdict;
use crate::{Ill, LeftOut, Standing, SubsetFallback};
use pintle_contract::Health;

impl Balancer {
    /// How each endpoint stands before a request that has just been [`Self::pick`]ed for.
    #[must_use]
    pub fn standings(&self, request: &Request<'_>) -> Vec<Standing> {
        let at = self.known_pool(request.subset);
        let asked = at.and_then(|(asked, _)| self.pools.get(asked));
        let pool = at.and_then(|(_, at)| self.pools.get(at));
        let panic =
            pool.is_some_and(|p| p.panics(self.field.policy.panic_percent, request.may_probe));
        let hashed = request.hash.is_some() && self.field.policy.strategy.is_hashing();
        let stands = |(index, site): (u32, &Site)| {
            let subset = |pool: &Pool| self.index.matches(&pool.key, index);
            let left_out = match (asked, pool) {
                (Some(asked), Some(pool)) if subset(asked) => match self.amiss(site, pool, panic) {
                    None if !subset(pool) => Some(LeftOut::Failover),
                    None if self.is_full(index) => Some(LeftOut::Full),
                    None if panic => None,
                    None if site.verdict == Verdict::Probe => Some(LeftOut::Probe),
                    None => pool.passes_over(site, hashed),
                    amiss => amiss,
                },
                _ => Some(LeftOut::Subset),
            };
            self.standing(index, left_out)
        };
        (0..).zip(&self.sites).map(stands).collect()
    }

    /// The pools of what was asked for, and of what is chosen from.
    fn known_pool(&self, wants: &[Want<'_>]) -> Option<(usize, usize)> {
        let known = |key| self.pool_of.get(&key).copied();
        let asked = match self.index.key(wants) {
            _ if wants.is_empty() => Some(0),
            Some(key) if known(key).is_some() => known(key),
            _ => match self.field.policy.subset_fallback {
                SubsetFallback::None => None,
                SubsetFallback::Any => Some(0),
                SubsetFallback::Default => known(subset::DEFAULT),
            },
        }?;
        let key = self.pools.get(asked)?.key;
        let moved =
            self.field.policy.failover.as_ref().and_then(|_| known(subset::failed_over(key)));
        let eligible = |at: &usize| self.pools.get(*at).is_some_and(Pool::has_eligible);
        Some((asked, moved.filter(eligible).unwrap_or(asked)))
    }

    /// What is amiss with an endpoint itself.
    const fn amiss(&self, site: &Site, pool: &Pool, panic: bool) -> Option<LeftOut> {
        match (site.health, site.verdict) {
            (Health::Draining, _) if !(panic && pool.only_draining) => Some(LeftOut::Draining),
            _ if panic => None,
            _ if site.weight == 0 => Some(LeftOut::Weightless),
            (Health::Unhealthy, _) => Some(LeftOut::Unhealthy),
            (_, Verdict::Blocked) => Some(LeftOut::Breaker),
            _ => None,
        }
    }

    fn standing(&self, index: u32, left_out: Option<LeftOut>) -> Standing {
        let at = index as usize;
        let known = self.field.load(index).zip(self.field.histories.get(at));
        let (clock, middle) = (&self.field.clock, &self.field.service.middle);
        let Some((load, past)) = known else {
            return Standing { index: at, ..Standing::default() };
        };
        let factor = past.factor(clock);
        let time = load.time(past, clock, middle, factor);
        let silence = load.silence(clock);
        let ill = (time > middle.limit()).then(|| match load.latency(middle) {
            latency if latency > middle.limit() => Ill::Slow,
            _ if silence > middle.patience() => Ill::Silent,
            _ if past.retry_at > clock.now => Ill::LeftAlone,
            _ if past.is_advised(clock.now) => Ill::Advised,
            _ => Ill::Failing,
        });
        let of = |ns: f64| Duration::from_nanos(ns as u64);
        Standing {
            index: at,
            left_out,
            ill,
            latency: of(f64::from(load.latency(middle))),
            waiting: load.queue(),
            failures: factor,
            cost: of(f64::from(time) * (load.queue() + 1.0)),
            in_flight: load.active(),
            limit: self.limit_of(at),
        }
    }
}
