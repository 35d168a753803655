//! Who may be chosen, and a draw among them that costs the same for ten and ten thousand.
//!
//! Eligibility changes rarely and is asked for on every request, so it is kept by counting: each
//! change adjusts the sums of the tiers that hold the endpoint, nothing is scanned. A [`Tier`] draws
//! from an alias table over all that could be eligible and rejects those that are not at the moment. Half
//! of them ineligible costs one extra draw on average; when it becomes three quarters, the table is built
//! again over the eligible ones (at most once per [`crate::slow_start::STEP`]). After a bounded number
//! of rejections an exact scan answers, so an eligible endpoint is always found when there is one.

use pintle_contract::Now;
use rand::Rng;

use crate::alias::{Alias, scale};
use crate::load::{Clock, Failures, Load, State};
use crate::policy::Policy;
use crate::types::Picks;
use crate::weighted_round_robin::Turns;

/// Rejections before the exact scan. With at least a quarter eligible, one draw in 100 gets there.
const TRIES: usize = 16;

/// What a strategy sees of the endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) loads: Vec<Load>,
    /// Beside the loads, because most draws look at nothing else: ten thousand are as many bytes.
    pub(crate) states: Vec<State>,
    /// Effective weights.
    pub(crate) grains: Vec<u64>,
    /// Stands at the time of the pick.
    pub(crate) clock: Clock,
    pub(crate) failures: Failures,
    pub(crate) policy: Policy,
    /// The worst that may be chosen; in a panic anybody.
    pub(crate) worst: State,
}

/// A set of endpoints with the means to draw from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tier {
    /// Those that could be eligible, in the table's order.
    members: Vec<u32>,
    /// Those of them in `alias`: all, or the eligible ones only.
    table: Vec<u32>,
    alias: Alias,
    /// `table` lacks the ineligible members.
    reduced: bool,
    built: bool,
    /// The table should be built again.
    pub(crate) stale: bool,
    /// Eligible members, and the sum of their weights.
    pub(crate) open: u32,
    pub(crate) open_grains: u64,
    /// The weights of all that count, healthy or not.
    pub(crate) registered: u64,
    /// Sum of the members' weights when the table was built.
    total: u64,
    /// `round_robin`: whose turn it is.
    turn: usize,
    /// `weighted_round_robin`: whose turn it is.
    pub(crate) turns: Turns,
}

// === impl Field ===

impl Field {
    /// Of nobody.
    pub(crate) fn new(policy: &Policy, now: Now) -> Self {
        Self {
            loads: Vec::new(),
            states: Vec::new(),
            grains: Vec::new(),
            clock: Clock::new(policy.ewma_decay, policy.failure_penalty, now),
            failures: Failures::default(),
            policy: policy.clone(),
            worst: State::Open,
        }
    }

    /// Whether health and breaker are ignored.
    #[inline]
    pub(crate) fn panics(&self) -> bool {
        self.worst != State::Open
    }

    pub(crate) fn set_panic(&mut self, panic: bool) {
        self.worst = if panic { State::Shut } else { State::Open };
    }

    #[inline]
    pub(crate) fn load(&self, index: u32) -> Option<&Load> {
        self.loads.get(index as usize)
    }

    pub(crate) fn state(&self, index: u32) -> State {
        self.states.get(index as usize).copied().unwrap_or(State::Shut)
    }

    #[inline]
    pub(crate) fn open(&self, index: u32) -> bool {
        self.states.get(index as usize).is_some_and(|&state| state <= self.worst)
    }

    /// Whether it is eligible, and new to the list.
    #[inline(always)]
    fn fits(&self, taken: &Picks, also: u32, index: u32) -> bool {
        self.open(index) && also != index && !taken.contains(index)
    }

    #[inline]
    pub(crate) fn cost(&self, index: u32) -> f64 {
        let cost = |load: &Load| load.cost(&self.clock, &self.failures, self.loads.len());
        self.load(index).map_or(f64::INFINITY, cost)
    }

    /// `(active + 1)^bias / weight`.
    #[inline]
    pub(crate) fn burden(&self, index: u32) -> f64 {
        let bias = self.policy.active_request_bias;
        self.load(index).map_or(f64::INFINITY, |load| load.burden(bias))
    }

    pub(crate) fn grains(&self, index: u32) -> u64 {
        let grains = self.grains.get(index as usize).copied().unwrap_or(0);
        // Weight 0 takes part in a panic, with the least share.
        if self.panics() { grains.max(crate::slow_start::GRAINS) } else { grains }
    }

    pub(crate) const fn choices(&self) -> usize {
        self.policy.choice_count as usize
    }
}

/// No index: there are fewer endpoints. What is not inlined returns it, because in Wasm an `Option` goes
/// through memory.
pub(crate) const NOBODY: u32 = u32::MAX;

#[inline]
fn somebody(index: u32) -> Option<u32> {
    (index != NOBODY).then_some(index)
}

// === impl Tier ===

impl Tier {
    pub(crate) fn new(members: Vec<u32>) -> Self {
        Self { members, ..Self::default() }
    }

    /// Counts and builds anew. `turns`: the seed of the weighted turns when the strategy takes them.
    pub(crate) fn rebuild(&mut self, field: &Field, turns: Option<u64>) {
        (self.open, self.open_grains, self.total) = (0, 0, 0);
        for &i in &self.members {
            let grains = field.grains(i);
            self.total += grains;
            if field.open(i) {
                self.open += 1;
                self.open_grains += grains;
            }
        }
        self.reduced = self.scarce();
        let table: Vec<u32> =
            self.members.iter().copied().filter(|&i| !self.reduced || field.open(i)).collect();
        self.alias = Alias::build(table.iter().map(|&i| (i as u16, field.grains(i))));
        // Slow start comes here ten times a second: whoever is next stays next.
        if let Some(seed) = turns.filter(|_| !self.built || self.table != table) {
            self.turns = Turns::build(&table, field, seed);
            if !self.built {
                self.turn = (seed >> 32) as usize;
            }
        }
        self.built = true;
        self.table = table;
        self.stale = false;
    }

    /// One member became eligible or ceased to be.
    pub(crate) const fn shift(&mut self, grains: u64, opened: bool) {
        if opened {
            self.open += 1;
            self.open_grains += grains;
            self.stale |= self.reduced;
        } else {
            self.open = self.open.saturating_sub(1);
            self.open_grains = self.open_grains.saturating_sub(grains);
            self.stale |= !self.reduced && self.scarce();
        }
    }

    const fn scarce(&self) -> bool {
        (self.open as usize) * 4 < self.members.len() || self.open_grains * 4 < self.total
    }

    pub(crate) const fn start_at(&mut self, turn: usize) {
        self.turn = turn;
    }

    /// An eligible one by weight that is neither in `taken` nor `also`; `bits` are random.
    #[inline(always)]
    pub(crate) fn draw(
        &self,
        field: &Field,
        bits: u32,
        rng: &mut impl Rng,
        taken: &Picks,
        also: u32,
    ) -> Option<u32> {
        match self.alias.draw(bits) {
            Some(i) if field.fits(taken, also, i) => Some(i),
            _ => somebody(self.draw_again(field, rng, taken, also)),
        }
    }

    #[cold]
    #[inline(never)]
    fn draw_again(&self, field: &Field, rng: &mut impl Rng, taken: &Picks, also: u32) -> u32 {
        let fits = |&i: &u32| field.fits(taken, also, i);
        let mut by_weight = (0..TRIES).map_while(|_| self.alias.draw(rng.next_u32()));
        if let Some(i) = by_weight.find(fits) {
            return i;
        }
        // One heavy endpoint that is taken already would be drawn by weight for ever.
        let mut alike = (0..TRIES).map_while(|_| self.any(rng.next_u32()));
        alike.find(fits).or_else(|| self.scan(field, rng, |i| fits(&i))).unwrap_or(NOBODY)
    }

    /// An eligible one, all alike, that is neither in `taken` nor `also`; `bits` are random.
    #[inline(always)]
    pub(crate) fn draw_alike(
        &self,
        field: &Field,
        bits: u32,
        rng: &mut impl Rng,
        taken: &Picks,
        also: u32,
    ) -> Option<u32> {
        match self.any(bits) {
            Some(i) if field.fits(taken, also, i) => Some(i),
            _ => self.draw_other(field, rng, taken, &[also]),
        }
    }

    /// An eligible one, all alike, that is neither in `taken` nor in `also`.
    #[inline]
    pub(crate) fn draw_other(
        &self,
        field: &Field,
        rng: &mut impl Rng,
        taken: &Picks,
        also: &[u32],
    ) -> Option<u32> {
        somebody(self.search(field, rng, taken, also))
    }

    #[inline(never)]
    fn search(&self, field: &Field, rng: &mut impl Rng, taken: &Picks, also: &[u32]) -> u32 {
        let fits = |&i: &u32| field.fits(taken, NOBODY, i) && !also.contains(&i);
        let mut alike = (0..TRIES * 2).map_while(|_| self.any(rng.next_u32()));
        alike.find(fits).or_else(|| self.scan(field, rng, |i| fits(&i))).unwrap_or(NOBODY)
    }

    #[inline]
    fn any(&self, bits: u32) -> Option<u32> {
        self.table.get(scale(bits, self.table.len())).copied()
    }

    fn scan(&self, field: &Field, rng: &mut impl Rng, fits: impl Fn(u32) -> bool) -> Option<u32> {
        let total: u64 = self.members.iter().filter(|&&i| fits(i)).map(|&i| field.grains(i)).sum();
        let mut left = if total == 0 { 0 } else { rng.next_u64() % total };
        let mut last = None;
        for &i in self.members.iter().filter(|&&i| fits(i)) {
            let grains = field.grains(i);
            if left < grains {
                return Some(i);
            }
            left -= grains;
            last = Some(i);
        }
        last
    }

    /// Each eligible member once, in the table's order.
    pub(crate) fn eligible<'a>(&'a self, field: &'a Field) -> impl Iterator<Item = u32> + 'a {
        self.members.iter().copied().filter(|&i| field.open(i))
    }

    /// The next eligible one in turn that is not in `taken`, and the turn after it.
    pub(crate) fn after(&self, field: &Field, turn: usize, taken: &Picks) -> Option<(u32, usize)> {
        let n = self.table.len();
        // A division only for the first turn and after the table shrank.
        let start = if turn < n { turn } else { turn.checked_rem(n).unwrap_or(0) };
        for step in 0..n {
            let at = if start + step < n { start + step } else { start + step - n };
            if let Some(&i) = self.table.get(at)
                && field.open(i)
                && !taken.contains(i)
            {
                return Some((i, if at + 1 < n { at + 1 } else { 0 }));
            }
        }
        // A reduced table may lack one that has just become eligible.
        let missing = |&i: &u32| field.open(i) && !taken.contains(i);
        self.members.iter().copied().find(|i| missing(i)).map(|i| (i, start))
    }

    pub(crate) const fn turn(&self) -> usize {
        self.turn
    }
}
