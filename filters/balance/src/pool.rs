//! The endpoints that one request may choose from: the whole service, or one of its subsets.
//!
//! A pool splits into tiers by priority ([`crate::tier`]), and these into the own zone and the
//! rest, each a [`Deck`]; what only a panic or a hash needs is built when the first request needs
//! it.

use pintle_contract::Now;
use rand::Rng;

use crate::bounded::{Hashing, Placement, Sites};
use crate::deck::Deck;
use crate::eligible::Field;
use crate::memory::Hold;
use crate::pace::Pace;
use crate::policy::Strategy;
use crate::shape::Shape;
use crate::site::Site;
use crate::stand::{Means, Stand};
use crate::standing::LeftOut;
use crate::state::State;
use crate::subset::Key;
use crate::tier::{Spill, Tier};
use crate::types::Picks;
use crate::{least_request, p2c, random, round_robin, weighted_round_robin};

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) key: Key,
    /// All, in the table's order.
    listed: Vec<u32>,
    /// By priority; at least one.
    tiers: Vec<Tier>,
    spill: Spill,
    /// Those that count: of a weight above zero, and not draining.
    counted: u32,
    /// Eligible, as a probe or fully.
    eligible: u32,
    /// All but the draining ones, for a panic; these too, where there is nobody else.
    panic: Option<Deck>,
    pub(crate) only_draining: bool,
    panic_stand: Stand,
    /// When its draws were built last, and of which weights.
    pub(crate) refreshed: (Now, u64),
    /// What it holds, apart from rings and tables.
    pub(crate) hold: Option<Hold>,
}

/// What is expensive to build and outlives an update: of each tier by its priority, and of a panic.
pub(crate) type Stands = (Vec<(u8, Stand)>, Stand);

/// Bytes of a pool, and of each of its members.
const POOL: u64 = 1_024;
const MEMBER: u64 = 48;

impl Pool {
    /// Without its draws; [`Self::refresh`] builds them.
    pub(crate) fn build(key: Key, listed: Vec<u32>, sites: &[Site]) -> Self {
        let of = |i: &u32| sites.get(*i as usize);
        Self {
            key,
            tiers: Tier::all(&listed, sites),
            spill: Spill::default(),
            counted: listed.iter().filter_map(of).filter(|s| s.counts()).count() as u32,
            eligible: 0,
            panic: None,
            only_draining: !listed.iter().filter_map(of).any(Site::is_awake),
            panic_stand: Stand::default(),
            refreshed: (Now(0), 0),
            hold: None,
            listed,
        }
    }

    /// Bytes of a pool with so many members.
    pub(crate) const fn bytes(members: usize) -> u64 {
        POOL.saturating_add(MEMBER.saturating_mul(members as u64))
    }

    /// Takes what the pool before an update had built.
    pub(crate) fn keep_stands(&mut self, (tiers, panic): Stands, shape: Shape) {
        self.panic_stand = panic;
        self.panic_stand.outdate(shape);
        for (priority, mut stand) in tiers {
            if let Some(tier) = self.tiers.iter_mut().find(|tier| tier.priority == priority) {
                stand.outdate(shape);
                tier.stand = stand;
            }
        }
    }

    /// What is built or being built; `None` where that is nothing.
    pub(crate) fn into_stands(self) -> Option<Stands> {
        let tiers = self.tiers.into_iter().map(|tier| (tier.priority, tier.stand));
        let tiers: Vec<_> = tiers.filter(|(_, stand)| !stand.is_empty()).collect();
        let any = !tiers.is_empty() || !self.panic_stand.is_empty();
        any.then_some((tiers, self.panic_stand))
    }

    /// Bytes of the smallest ring or table on its way.
    pub(crate) fn coming_bytes(&self) -> Option<u64> {
        let stands = self.tiers.iter().map(|tier| &tier.stand);
        stands.chain([&self.panic_stand]).filter_map(Stand::coming_bytes).min()
    }

    /// Goes on with the rings and tables on their way; returns whether one still is.
    pub(crate) fn build_tables(&mut self, now: Now, pace: &mut Pace<'_>) -> bool {
        let stands = self.tiers.iter_mut().map(|tier| &mut tier.stand);
        let mut coming = false;
        for stand in stands.chain([&mut self.panic_stand]) {
            if stand.is_coming() {
                stand.build(now, pace);
                coming |= stand.is_coming();
            }
        }
        coming
    }

    /// Counts and builds the draws anew.
    pub(crate) fn refresh(&mut self, field: &Field, seed: u64, sites: &[Site]) {
        let eligible = |i: &u32| sites.get(*i as usize).is_some_and(|s| s.state() != State::Shut);
        self.eligible = self.listed.iter().copied().filter(eligible).count() as u32;
        for tier in &mut self.tiers {
            tier.refresh(&self.listed, field, seed, sites);
        }
        self.spill = Spill::of(&self.tiers);
        self.panic = None;
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.tiers.iter().any(Tier::is_stale)
    }

    /// An endpoint went from one state to another; returns whether the draws should be built again.
    pub(crate) fn shift(&mut self, site: &Site, grains: u64, before: State, after: State) -> bool {
        match (before == State::Shut, after == State::Shut) {
            (true, false) => self.eligible += 1,
            (false, true) => self.eligible = self.eligible.saturating_sub(1),
            _ => {}
        }
        if let Some(tier) = self.tiers.iter_mut().find(|tier| tier.priority == site.priority) {
            tier.shift(site.local, grains, before, after);
        }
        self.spill = Spill::of(&self.tiers);
        self.is_stale()
    }

    /// `may_probe`: whether endpoints that are owed a probe can be of use to this request. As long
    /// as the tiers together can take all, one that is ill as a whole is no reason.
    pub(crate) fn panics(&self, percent: u32, may_probe: bool) -> bool {
        let eligible = if may_probe { self.eligible } else { self.open() };
        percent > 0
            && !self.listed.is_empty()
            && !(self.tiers.len() > 1 && self.spill.provision == 100)
            && (eligible == 0
                || u64::from(eligible) * 100 < u64::from(percent) * u64::from(self.counted))
    }

    fn open(&self) -> u32 {
        self.tiers.iter().map(Tier::open).sum()
    }

    pub(crate) fn has_open(&self) -> bool {
        self.open() > 0
    }

    /// Also when it is as a probe only.
    pub(crate) const fn has_eligible(&self) -> bool {
        self.eligible > 0
    }

    /// How many there were to choose from.
    pub(crate) const fn candidates(&self, panic: bool) -> u32 {
        match &self.panic {
            Some(deck) if panic => deck.open,
            _ => self.eligible,
        }
    }

    /// Why an endpoint that could take a request gets none of those without a panic.
    pub(crate) fn passes_over(&self, site: &Site, hashed: bool) -> Option<LeftOut> {
        let at = self.tiers.iter().position(|tier| tier.priority == site.priority)?;
        if self.spill.share(at) == 0 {
            return Some(LeftOut::Tier);
        }
        let tier = self.tiers.get(at)?;
        (!hashed && !site.local && tier.stays()).then_some(LeftOut::Zone)
    }

    /// Fills `out` by every strategy that does not hash, or lacks a key.
    #[inline]
    pub(crate) fn choose(
        &mut self,
        field: &mut Field,
        sites: &[Site],
        rng: &mut impl Rng,
        out: &mut Picks,
        want: usize,
    ) {
        if field.panics() {
            return run(self.panic_deck(field, sites), field, rng, out, want);
        }
        let at = if self.spill.is_none() { 0 } else { self.spill.tier(rng.next_u64()) };
        if let Some(tier) = self.tiers.get_mut(at) {
            choose_in(tier, field, rng, out, want);
        }
        if out.len() == 0 && self.tiers.len() > 1 {
            for tier in &mut self.tiers {
                if out.len() == 0 {
                    choose_in(tier, field, rng, out, want);
                }
            }
        }
    }

    /// Fills `out` by the request's hash; `false`: there is no table yet, or none at all.
    #[inline(never)]
    pub(crate) fn place(
        &mut self,
        field: &Field,
        sites: &[Site],
        means: &mut Means<'_>,
        key: Placement,
        out: &mut Picks,
    ) -> bool {
        let want = field.policy.attempts;
        if field.panics() {
            let open = self.panic_deck(field, sites).open;
            let (listed, all) = (&self.listed, self.only_draining);
            let hosts = || stand_in(listed, sites, |s| s.is_awake() || all);
            let table = self.panic_stand.ask(means, hosts);
            return fill(table, field, key, open, out, want);
        }
        let at = if self.spill.is_none() { 0 } else { self.spill.tier(key.hash) };
        if !self.place_in(at, field, sites, means, key, out) {
            return false;
        }
        let mut others = 0..self.tiers.len();
        while out.len() == 0
            && let Some(other) = others.next()
        {
            if other != at && !self.place_in(other, field, sites, means, key, out) {
                return false;
            }
        }
        true
    }

    fn place_in(
        &mut self,
        at: usize,
        field: &Field,
        sites: &[Site],
        means: &mut Means<'_>,
        key: Placement,
        out: &mut Picks,
    ) -> bool {
        let Some(tier) = self.tiers.get_mut(at) else { return true };
        let (open, priority) = (tier.open(), tier.priority);
        let listed = &self.listed;
        let hosts = || stand_in(listed, sites, |s| s.could_be_eligible() && s.priority == priority);
        let table = tier.stand.ask(means, hosts);
        fill(table, field, key, open, out, field.policy.attempts)
    }

    fn panic_deck(&mut self, field: &Field, sites: &[Site]) -> &mut Deck {
        let (listed, all) = (&self.listed, self.only_draining);
        self.panic.get_or_insert_with(|| {
            let fits = |i: &u32| sites.get(*i as usize).is_some_and(|s| s.is_awake() || all);
            let mut deck = Deck::new(listed.iter().copied().filter(fits).collect());
            deck.rebuild(field, sites, u64::from(field.clock.now as u32));
            deck
        })
    }
}

/// The own zone of a tier first.
#[inline]
fn choose_in(tier: &mut Tier, field: &mut Field, rng: &mut impl Rng, out: &mut Picks, want: usize) {
    let (first, second) = tier.zones(rng);
    run(first, field, rng, out, want);
    if out.len() < want {
        run(second, field, rng, out, want);
    }
}

#[inline]
fn fill(
    table: Option<&mut Hashing>,
    field: &Field,
    key: Placement,
    open: u32,
    out: &mut Picks,
    want: usize,
) -> bool {
    let standing = table.is_some();
    if let Some(table) = table {
        table.fill(field, key, open, out, want);
    }
    standing
}

/// Who stands in a ring or table, as indices and as it knows them.
#[cold]
#[inline(never)]
fn stand_in(listed: &[u32], sites: &[Site], fits: impl Fn(&Site) -> bool) -> (Vec<u32>, Sites) {
    let of = |&i: &u32| sites.get(i as usize).map(|site| (i, site));
    let those = listed.iter().filter_map(of).filter(|(_, site)| fits(site));
    those.map(|(i, site)| (i, (site.address, site.weight.max(1)))).unzip()
}

#[inline]
fn run(deck: &mut Deck, field: &mut Field, rng: &mut impl Rng, out: &mut Picks, want: usize) {
    if deck.open == 0 {
        return;
    }
    match field.policy.strategy {
        Strategy::P2c | Strategy::RingHash | Strategy::Maglev => {
            p2c::fill(deck, field, rng, out, want);
        }
        Strategy::LeastRequest => least_request::fill(deck, field, rng, out, want),
        Strategy::RoundRobin => round_robin::fill(deck, field, out, want),
        Strategy::WeightedRoundRobin => weighted_round_robin::fill(deck, field, rng, out, want),
        Strategy::Random => random::fill(deck, field, rng, out, want),
    }
}
