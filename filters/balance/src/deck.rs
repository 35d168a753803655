//! A draw among the eligible that costs the same for ten and ten thousand.
//!
//! A [`Deck`] draws from an alias table over all that could be eligible and rejects those that are
//! not at the moment. Half of them ineligible costs one extra draw on average; when it becomes
//! three quarters, the table is built again over the eligible ones (at most once per
//! [`crate::slow_start::STEP`]). After a bounded number of rejections an exact scan answers, so an
//! eligible endpoint is always found when there is one.

use rand::Rng;
use rand::SeedableRng;
use rand::seq::SliceRandom;

use crate::Dice;
use crate::alias::{Alias, scale};
use crate::eligible::Field;
use crate::policy::Strategy;
use crate::site::Site;
use crate::turns::Turns;
use crate::types::Picks;

/// Rejections before the exact scan. With at least a quarter eligible, one draw in 100 gets there.
const TRIES: usize = 16;

/// No index: there are fewer endpoints. What is not inlined returns it, because in Wasm an `Option`
/// goes through memory.
pub(crate) const NOBODY: u32 = u32::MAX;

#[inline]
fn somebody(index: u32) -> Option<u32> {
    (index != NOBODY).then_some(index)
}

/// A set of endpoints with the means to draw from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deck {
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
    /// The least weight in the table, and whether there is another.
    lightest: u64,
    pub(crate) uneven: bool,
    /// `round_robin`: whose turn it is.
    turn: usize,
    /// `weighted_round_robin`: whose turn it is.
    pub(crate) turns: Turns,
}

impl Deck {
    pub(crate) fn new(members: Vec<u32>) -> Self {
        Self { members, ..Self::default() }
    }

    /// Counts and builds anew. `seed`: of the order of turns.
    pub(crate) fn rebuild(&mut self, field: &Field, sites: &[Site], seed: u64) {
        // Who is full now may have room with the next draw, and counts.
        let open = |i: u32| sites.get(i as usize).is_some_and(|site| site.state() <= field.worst);
        (self.open, self.open_grains, self.total) = (0, 0, 0);
        for &i in &self.members {
            let grains = field.grains(i);
            self.total += grains;
            if open(i) {
                self.open += 1;
                self.open_grains += grains;
            }
        }
        self.reduced = self.scarce();
        let table: Vec<u32> =
            self.members.iter().copied().filter(|&i| !self.reduced || open(i)).collect();
        let strategy = field.policy.strategy;
        let mut order = table.clone();
        if matches!(strategy, Strategy::P2c | Strategy::RingHash | Strategy::Maglev) {
            // Whoever answered least recently is next. Where nobody did, workers begin differently.
            order.shuffle(&mut Dice::seed_from_u64(seed));
            let sampled_at =
                |i: u32| field.histories.get(i as usize).map_or(0, |past| past.sampled_at);
            let asked: Vec<u32> = order.extract_if(.., |i| sampled_at(*i) > 0).collect();
            let never = order.len();
            order.extend(asked);
            if let Some(asked) = order.get_mut(never..) {
                asked.sort_by_key(|&i| sampled_at(i));
            }
        }
        let grains = || table.iter().map(|&i| field.grains(i));
        self.lightest = grains().min().unwrap_or(0);
        self.uneven = grains().any(|grains| grains > self.lightest);
        self.alias = Alias::build(order.iter().map(|&i| (i as u16, field.grains(i))));
        // Slow start comes here ten times a second: whoever is next stays next.
        let by_turns = matches!(strategy, Strategy::RoundRobin | Strategy::WeightedRoundRobin);
        if by_turns && (!self.built || self.table != table) {
            self.turns = Turns::build(&table, |i| field.grains(i), seed);
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

    /// The eligible one whose turn it is, by weight; `bits` are random.
    #[inline(always)]
    pub(crate) fn turn_by_weight(
        &mut self,
        field: &mut Field,
        bits: u32,
        rng: &mut impl Rng,
    ) -> Option<u32> {
        match self.alias.next(bits) {
            Some(i) if field.open(i) && (self.uneven || !field.was_asked(i)) => Some(i),
            Some(i) => somebody(self.turn_again(i, field, rng)),
            None => somebody(self.draw_again(field, rng, &Picks::new(), NOBODY)),
        }
    }

    /// Where another worker has taken the turn meanwhile, the one of the next that was longest not
    /// asked by anybody; where it is not eligible, the next that is.
    #[cold]
    #[inline(never)]
    fn turn_again(&mut self, mut i: u32, field: &mut Field, rng: &mut impl Rng) -> u32 {
        let (mut longest, mut most) = (NOBODY, 0.0);
        for _ in 0..TRIES {
            if field.open(i) {
                if longest == NOBODY && (self.uneven || !field.take_asked(i)) {
                    return i;
                }
                let unasked = field.unasked(i);
                if longest == NOBODY || (unasked > most && !field.is_ill(i)) {
                    (longest, most) = (i, unasked);
                }
            }
            match self.alias.next(rng.next_u32()) {
                Some(next) => i = next,
                None => break,
            }
        }
        if longest == NOBODY { self.draw_again(field, rng, &Picks::new(), NOBODY) } else { longest }
    }

    /// Whether the one whose turn it is keeps it, whoever is drawn beside it; `bits` are random.
    ///
    /// Of two distinct draws by weight the heavier one is first too often: from 3 to 1 of 1:2:3
    /// there are 3/6 x 1/3 of all pairs, the other way 1/6 x 3/5. Keeping
    /// `(w - least) / (sum - least)` of its turns makes both the same, and none where all weigh the
    /// same.
    #[cold]
    #[inline(never)]
    pub(crate) fn keeps_turn(&self, field: &Field, index: u32, bits: u32) -> bool {
        let more = field.grains(index).saturating_sub(self.lightest) as f64;
        let others = self.open_grains.saturating_sub(self.lightest) as f64;
        f64::from(bits) * others < more * 4_294_967_296.0
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
