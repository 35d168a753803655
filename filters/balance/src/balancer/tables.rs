//! Rings and tables of a balancer, and what its pools hold: built outside of requests, within the
//! memory of the VM.

use pintle_contract::Now;

use super::Balancer;
use crate::memory::{Memory, OverBudget};
use crate::pace::Pace;
use crate::pool::{Pool, Stands};
use crate::shape::Shape;
use crate::subset::{Key, MAX_POOLS};

impl Balancer {
    /// Takes what it holds from `memory` from now on; to be called before the first pick.
    #[must_use]
    pub fn within(mut self, memory: &Memory) -> Self {
        self.memory = memory.clone();
        self
    }

    /// Whether a ring or table is on its way, or waits on it: [`Self::build`] goes on with it.
    #[must_use]
    pub const fn is_building(&self) -> bool {
        self.building
    }

    /// Bytes of the smallest ring or table on its way: the larger ones can wait for it.
    #[must_use]
    pub fn building_bytes(&self) -> Option<u64> {
        self.pools.iter().filter_map(Pool::coming_bytes).min()
    }

    /// Goes on with the rings and tables on their way for as long as `more`, which is asked every
    /// fraction of a millisecond. Those before serve meanwhile; without one requests are spread as
    /// by `p2c`. What nobody has asked for in ten
    /// seconds waits until somebody does, or another one is refused for want of its memory.
    pub fn build(&mut self, now: Now, mut more: impl FnMut() -> bool) {
        if self.building {
            let mut pace = Pace::new(&mut more);
            self.building = false;
            for pool in &mut self.pools {
                self.building |= pool.build_tables(now, &mut pace);
            }
        }
    }

    /// Why a ring or table was refused since this was asked last.
    pub const fn take_refused(&mut self) -> Option<OverBudget> {
        self.refused.take()
    }

    /// Takes the pools apart before an update; what the whole service's has built.
    pub(super) fn retire(&mut self) -> Option<Stands> {
        self.pool_of.clear();
        self.evict = 1;
        self.retired.clear();
        let is_hashing = self.field.policy.strategy.is_hashing();
        let mut pools = std::mem::take(&mut self.pools).into_iter().filter(|_| is_hashing);
        let whole = pools.next().and_then(Pool::into_stands);
        for pool in pools {
            let words = self.index.words(&pool.key);
            if let Some((mut tiers, mut panic)) = pool.into_stands() {
                // Those on their way wait until they are asked for again.
                tiers.iter_mut().for_each(|(_, stand)| stand.wait());
                panic.wait();
                self.retired.insert(words, (tiers, panic));
            }
        }
        self.building = whole.is_some();
        whole
    }

    /// Adds the pool of a subset; of too many, and where memory is short, the oldest gives way.
    pub(super) fn add_pool(&mut self, key: Key, members: Vec<u32>, now: Now) -> usize {
        let bytes = Pool::bytes(members.len());
        let mut pool = Pool::build(key, members, &self.sites);
        if !self.retired.is_empty()
            && let Some(stands) = self.retired.remove(&self.index.words(&key))
        {
            self.building = true;
            pool.keep_stands(stands, Shape::of(&self.field.policy));
        }
        pool.refresh(&self.field, self.turns(), &self.sites);
        pool.refreshed = (now, self.weighed);
        pool.hold = self.memory.take(bytes).ok();
        let len = self.pools.len();
        let at = if len < 2 || (len < MAX_POOLS && pool.hold.is_some()) {
            self.pools.push(pool);
            len
        } else {
            let at = if self.evict < len { self.evict } else { 1 };
            self.evict = at + 1;
            if let Some(place) = self.pools.get_mut(at) {
                self.pool_of.remove(&place.key);
                place.hold = None;
                pool.hold = pool.hold.or_else(|| self.memory.take(bytes).ok());
                *place = pool;
            }
            at
        };
        self.pool_of.insert(key, at);
        at
    }
}
