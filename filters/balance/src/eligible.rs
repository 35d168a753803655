//! Who may be chosen, and a draw among them that costs the same for ten and ten thousand.
//!
//! Eligibility changes rarely and is asked for on every request, so it is kept by counting: each
//! change adjusts the sums of the decks that hold the endpoint, nothing is scanned. A [`Deck`] draws
//! from an alias table over all that could be eligible and rejects those that are not at the moment. Half
//! of them ineligible costs one extra draw on average; when it becomes three quarters, the table is built
//! again over the eligible ones (at most once per [`crate::slow_start::STEP`]). After a bounded number
//! of rejections an exact scan answers, so an eligible endpoint is always found when there is one.

use std::time::Duration;

use pintle_contract::{Now, nanos};
use rand::Rng;
use rand::SeedableRng;
use rand::seq::SliceRandom;

use crate::Dice;
use crate::alias::{Alias, scale};
use crate::clock::Clock;
use crate::history::{History, NEXT_LOOK};
use crate::load::{self, Load};
use crate::looks::Looks;
use crate::policy::{Policy, Strategy};
use crate::service::Service;
use crate::site::Site;
use crate::state::State;
use crate::told::{LoadEntry, hear};
use crate::turns::Turns;
use crate::types::Picks;

/// Rejections before the exact scan. With at least a quarter eligible, one draw in 100 gets there.
const TRIES: usize = 16;

/// What a strategy sees of the endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) loads: Vec<Load>,
    /// Apart from the loads, because few picks look at them.
    pub(crate) histories: Vec<History>,
    /// Beside the loads, because most draws look at nothing else: ten thousand are as many bytes.
    pub(crate) states: Vec<State>,
    /// Effective weights.
    pub(crate) grains: Vec<u64>,
    /// Stands at the time of the pick.
    pub(crate) clock: Clock,
    pub(crate) service: Service,
    pub(crate) looks: Looks,
    /// Whether more than two workers ask these endpoints. Two that know nothing of each other's turns still ask
    /// everybody within three; more do not.
    pub(crate) many: bool,
    pub(crate) policy: Policy,
    /// The worst that may be chosen; in a panic anybody.
    pub(crate) worst: State,
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

// === impl Field ===

impl Field {
    /// Of nobody.
    pub(crate) fn new(policy: &Policy, now: Now) -> Self {
        Self {
            loads: Vec::new(),
            histories: Vec::new(),
            states: Vec::new(),
            grains: Vec::new(),
            clock: Clock::new(policy.ewma_decay, policy.failure_penalty, now),
            service: Service::default(),
            looks: Looks::default(),
            many: false,
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

    #[inline]
    fn was_asked(&self, index: u32) -> bool {
        self.many && self.load(index).is_some_and(|load| load.asked)
    }

    /// Whether another worker has asked it meanwhile; it counts once.
    fn take_asked(&mut self, index: u32) -> bool {
        let load = self.loads.get_mut(index as usize);
        load.is_some_and(|load| std::mem::take(&mut load.asked)) && self.many
    }

    /// What a request weighs at the lighter of both.
    pub(crate) fn request(&self, a: u32, b: u32) -> f64 {
        let weighs = |index| self.load(index).map_or(1.0, |load| f64::from(load.inverse_weight));
        weighs(a).max(weighs(b))
    }

    /// How long nobody has asked it, as far as known, in ns by weight.
    fn unasked(&self, index: u32) -> f64 {
        let known = self.load(index).zip(self.histories.get(index as usize));
        known.map_or(0.0, |(load, past)| {
            let asked_at = past.sampled_at.max(past.asked_at);
            self.clock.now.saturating_sub(asked_at) as f64 / f64::from(load.inverse_weight)
        })
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

    /// Ranks from here on are those of ill endpoints.
    pub(crate) const ILL: f64 = 1e12;

    /// The lower, the sooner a request goes there: the requests that wait per weight or, for one that is
    /// clearly ill, [`Self::ILL`] and its cost.
    #[inline]
    pub(crate) fn rank(&self, index: u32) -> f64 {
        match self.load(index) {
            Some(load) if !load.is_suspect(&self.clock, &self.service.middle) => load.queue(),
            _ => self.rank_of_suspect(index),
        }
    }

    #[cold]
    #[inline(never)]
    fn rank_of_suspect(&self, index: u32) -> f64 {
        let Some((load, past)) = self.load(index).zip(self.histories.get(index as usize)) else {
            return f64::INFINITY;
        };
        let time = self.time(load, past);
        if time > self.service.middle.limit() {
            Self::ILL + f64::from(time) * (load.queue() + 1.0)
        } else {
            load.queue() * f64::from(self.service.slowness(time))
        }
    }

    fn time(&self, load: &Load, past: &History) -> f32 {
        let factor = past.factor(&self.clock);
        load.time(past, &self.clock, &self.service.middle, factor)
    }

    /// Whether it is clearly ill beside the middle of its service.
    pub(crate) fn is_ill(&self, index: u32) -> bool {
        self.rank(index) >= Self::ILL
    }

    /// Whether a request may look at this ill endpoint now; then it counts as done.
    #[cold]
    #[inline(never)]
    pub(crate) fn look(&mut self, index: u32) -> bool {
        let now = self.clock.now;
        let at = index as usize;
        let (Some(load), Some(past)) = (self.loads.get(at), self.histories.get_mut(at)) else {
            return false;
        };
        let may =
            self.looks.may(now, self.loads.len()) && past.may_look(now, load.silence(&self.clock));
        if may {
            self.looks.spend(now);
            past.look_at = now.saturating_add(NEXT_LOOK);
        }
        may
    }

    /// Moves on to `now`.
    #[inline]
    pub(crate) fn tick(&mut self, now: Now) {
        if self.clock.tick(now) {
            self.step_back(now.0);
        }
    }

    /// No stamp stays in the future.
    #[cold]
    #[inline(never)]
    fn step_back(&mut self, now: u64) {
        self.loads.iter_mut().for_each(|load| load.step_back(now));
        self.histories.iter_mut().for_each(|past| past.step_back(now));
    }

    /// Books what became of a request at `index`.
    pub(crate) fn observe(&mut self, index: usize, latency: Option<Duration>, failed: bool) {
        let was_ill = self.is_ill(index as u32);
        let (Some(load), Some(past)) = (self.loads.get_mut(index), self.histories.get_mut(index))
        else {
            return;
        };
        let limit = self.service.middle.limit();
        let slow = latency.is_some_and(|latency| nanos(latency) as f32 > limit);
        load::observe(load, past, &self.clock, &self.service, (latency, failed));
        if !failed && latency.is_some() {
            if !slow {
                self.service.meanwhile.answered(self.clock.now, limit as u64);
            }
            self.service.middle.answered(load.latency(&self.service.middle));
        }
        let bad = failed || slow;
        let now = self.clock.now;
        if was_ill && !bad && !past.is_advised(now) {
            past.look_at = now;
            self.looks.refund();
        }
        let is_ill = self.is_ill(index as u32);
        if bad && is_ill {
            let past = self.histories.get_mut(index).into_iter();
            past.for_each(|past| past.put_off(was_ill, failed, now));
        }
        self.service.learn((was_ill, is_ill), failed, slow);
    }

    /// Folds in what another worker knew.
    pub(crate) fn hear(&mut self, index: usize, entry: &LoadEntry) {
        if let Some(load) = self.loads.get_mut(index)
            && let Some(past) = self.histories.get_mut(index)
        {
            hear(load, past, &self.clock, &self.service.middle, entry);
        }
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

// === impl Deck ===

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
            order.sort_by_key(|&i| field.histories.get(i as usize).map(|past| past.sampled_at));
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
            None => None,
        }
    }

    /// Where another worker has taken the turn meanwhile, the one of the next that was longest not asked by
    /// anybody; where it is not eligible, the next that is.
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
    /// Of two distinct draws by weight the heavier one is first too often: from 3 to 1 of 1:2:3 there are
    /// 3/6 x 1/3 of all pairs, the other way 1/6 x 3/5. Keeping `(w - least) / (sum - least)` of its turns
    /// makes both the same, and none where all weigh the same.
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
