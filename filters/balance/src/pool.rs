//! The endpoints that one request may choose from: the whole service, or one of its subsets.
//!
//! A pool splits into tiers by priority ([`crate::tier`]), and these into the own zone and the rest, each a
//! [`Deck`]; what only a panic or a hash needs is built when the first request needs it.

use rand::Rng;

use crate::bounded::{Hashing, Placement};
use crate::eligible::{Deck, Field};
use crate::load::State;
use crate::policy::Strategy;
use crate::site::Site;
use crate::subset::Key;
use crate::tier::{Spill, Tier};
use crate::types::Picks;
use crate::{least_request, p2c, random, round_robin, weighted_round_robin};

#[derive(Clone, Debug)]
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
    only_draining: bool,
    panic_hashing: Option<Hashing>,
    /// From before the last update, of the first tier and a panic; taken over when they still fit.
    old_tables: Tables,
}

/// What is expensive to build and may outlive an update.
pub(crate) type Tables = (Option<Hashing>, Option<Hashing>);

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
            panic_hashing: None,
            old_tables: (None, None),
            listed,
        }
    }

    /// Takes what a pool before an update had built.
    pub(crate) fn keep_tables(&mut self, tables: Tables) {
        self.old_tables = tables;
    }

    pub(crate) fn into_tables(self) -> Tables {
        let first = self.tiers.into_iter().next().and_then(|tier| tier.hashing);
        (first.or(self.old_tables.0), self.panic_hashing.or(self.old_tables.1))
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

    /// `may_probe`: whether endpoints that are owed a probe can be of use to this request. As long as the
    /// tiers together can take all, one that is ill as a whole is no reason.
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

    /// Fills `out` by the request's hash.
    #[inline(never)]
    pub(crate) fn place(
        &mut self,
        field: &Field,
        sites: &[Site],
        key: Placement,
        out: &mut Picks,
        want: usize,
    ) {
        if field.panics() {
            let open = self.panic_deck(field, sites).open;
            if self.panic_hashing.is_none() {
                let fits = |s: &Site| s.is_awake() || self.only_draining;
                let old = self.old_tables.1.take();
                self.panic_hashing = Some(hashing(&self.listed, field, sites, old, fits));
            }
            if let Some(hashing) = &mut self.panic_hashing {
                hashing.fill(field, key, open, out, want);
            }
            return;
        }
        let at = if self.spill.is_none() { 0 } else { self.spill.tier(key.hash) };
        self.place_in(at, field, sites, key, out, want);
        let mut others = 0..self.tiers.len();
        while out.len() == 0
            && let Some(other) = others.next()
        {
            if other != at {
                self.place_in(other, field, sites, key, out, want);
            }
        }
    }

    fn place_in(
        &mut self,
        at: usize,
        field: &Field,
        sites: &[Site],
        key: Placement,
        out: &mut Picks,
        want: usize,
    ) {
        let Some(tier) = self.tiers.get_mut(at) else { return };
        let (open, priority) = (tier.open(), tier.priority);
        let built = tier.hashing.get_or_insert_with(|| {
            let fits = |s: &Site| s.could_be_eligible() && s.priority == priority;
            let old = if at == 0 { self.old_tables.0.take() } else { None };
            hashing(&self.listed, field, sites, old, fits)
        });
        built.fill(field, key, open, out, want);
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

#[cold]
#[inline(never)]
fn hashing(
    listed: &[u32],
    field: &Field,
    sites: &[Site],
    old: Option<Hashing>,
    fits: impl Fn(&Site) -> bool,
) -> Hashing {
    let (hosts, at) = listed
        .iter()
        .filter_map(|&i| sites.get(i as usize).map(|s| (i, s)))
        .filter(|(_, s)| fits(s))
        .map(|(i, s)| (i, (s.address, s.weight.max(1))))
        .unzip();
    Hashing::build(&field.policy, hosts, at, old)
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
