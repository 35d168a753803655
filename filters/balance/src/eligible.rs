//! Who may be chosen, and a draw among them that costs the same for ten and ten thousand.
//!
//! Eligibility changes rarely and is asked for on every request, so it is kept by counting: each
//! change adjusts the sums of the tiers that hold the endpoint, nothing is scanned. A [`Tier`] draws
//! from an alias table over all that could be eligible and rejects those that are not at the moment. Half
//! of them ineligible costs one extra draw on average; when it becomes three quarters, the table is built
//! again over the eligible ones (at most once per [`crate::slow_start::STEP`]). After a bounded number
//! of rejections an exact scan answers, so an eligible endpoint is always found when there is one.

use rand::Rng;

use crate::alias::{Alias, scale};
use crate::load::{Load, Moment, State};
use crate::types::Picks;
use crate::weighted_round_robin::Turns;

/// Rejections before the exact scan. With at least a quarter eligible, one draw in 100 gets there.
const TRIES: usize = 16;

/// What a strategy sees of the endpoints during one pick.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) loads: &'a [Load],
    /// Effective weights.
    pub(crate) grains: &'a [u64],
    pub(crate) moment: Moment,
    /// Health and breaker are ignored.
    pub(crate) panic: bool,
    pub(crate) choice_count: usize,
    pub(crate) bias: f32,
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

impl Field<'_> {
    #[inline]
    pub(crate) fn open(&self, index: u32) -> bool {
        self.panic || self.loads.get(index as usize).is_some_and(|l| l.state == State::Open)
    }

    #[inline]
    pub(crate) fn cost(&self, index: u32) -> f64 {
        self.loads.get(index as usize).map_or(f64::INFINITY, |l| l.cost(&self.moment))
    }

    pub(crate) fn grains(&self, index: u32) -> u64 {
        let grains = self.grains.get(index as usize).copied().unwrap_or(0);
        // Weight 0 takes part in a panic, with the least share.
        if self.panic { grains.max(crate::slow_start::GRAINS) } else { grains }
    }

    pub(crate) fn active(&self, index: u32) -> u32 {
        self.loads.get(index as usize).map_or(0, Load::active)
    }
}

// === impl Tier ===

impl Tier {
    pub(crate) fn new(members: Vec<u32>) -> Self {
        Self { members, ..Self::default() }
    }

    /// Counts and builds anew. `turns`: the seed of the weighted turns when the strategy takes them.
    pub(crate) fn rebuild(&mut self, field: &Field<'_>, turns: Option<u64>) {
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
        self.alias = Alias::build(table.iter().map(|&i| (i, field.grains(i))));
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

    /// An eligible one by weight that is neither in `taken` nor `also`.
    #[inline]
    pub(crate) fn draw(
        &self,
        field: &Field<'_>,
        rng: &mut impl Rng,
        taken: &Picks,
        also: Option<u32>,
    ) -> Option<u32> {
        let fits = |i: u32| field.open(i) && also != Some(i) && !taken.contains(i);
        for _ in 0..TRIES {
            let Some(i) = self.alias.draw(rng) else { break };
            if fits(i) {
                return Some(i);
            }
        }
        self.draw_slowly(field, rng, taken, also)
    }

    #[cold]
    #[inline(never)]
    fn draw_slowly(
        &self,
        field: &Field<'_>,
        rng: &mut impl Rng,
        taken: &Picks,
        also: Option<u32>,
    ) -> Option<u32> {
        let fits = |i: u32| field.open(i) && also != Some(i) && !taken.contains(i);
        // One heavy endpoint that is taken already would be drawn by weight for ever.
        for _ in 0..TRIES {
            let Some(i) = self.any(rng) else { break };
            if fits(i) {
                return Some(i);
            }
        }
        self.scan(field, rng, fits)
    }

    /// An eligible one, all alike, that is neither in `taken` nor in `also`.
    pub(crate) fn draw_alike(
        &self,
        field: &Field<'_>,
        rng: &mut impl Rng,
        taken: &Picks,
        also: &[u32],
    ) -> Option<u32> {
        let fits = |i: u32| field.open(i) && !also.contains(&i) && !taken.contains(i);
        for _ in 0..TRIES * 2 {
            if let Some(i) = self.any(rng)
                && fits(i)
            {
                return Some(i);
            }
        }
        self.scan(field, rng, fits)
    }

    fn any(&self, rng: &mut impl Rng) -> Option<u32> {
        self.table.get(scale(rng.next_u64(), self.table.len())).copied()
    }

    fn scan(
        &self,
        field: &Field<'_>,
        rng: &mut impl Rng,
        fits: impl Fn(u32) -> bool,
    ) -> Option<u32> {
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
    pub(crate) fn eligible<'a>(&'a self, field: &'a Field<'_>) -> impl Iterator<Item = u32> + 'a {
        self.members.iter().copied().filter(|&i| field.open(i))
    }

    /// The next eligible one in turn that is not in `taken`, and the turn after it.
    pub(crate) fn after(
        &self,
        field: &Field<'_>,
        turn: usize,
        taken: &Picks,
    ) -> Option<(u32, usize)> {
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
