//! The endpoints that one request may choose from: the whole service, or one of its subsets.
//!
//! A pool splits into the own zone and the rest, each a [`Tier`]; what only a panic or a hash needs is
//! built when the first request needs it.

use rand::Rng;

use crate::balancer::Site;
use crate::bounded::{Hashing, Placement};
use crate::eligible::{Field, Tier};
use crate::load::State;
use crate::policy::Strategy;
use crate::subset::Key;
use crate::types::Picks;
use crate::{least_request, p2c, random, round_robin, weighted_round_robin, zone};

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) key: Key,
    /// All, in the table's order.
    listed: Vec<u32>,
    local: Tier,
    rest: Tier,
    /// Those that count: of a weight above zero, and not draining.
    counted: u32,
    /// Those of them that are eligible, as a probe or fully.
    eligible: u32,
    /// All but the draining ones, for a panic; these too, where there is nobody else.
    panic: Option<Tier>,
    only_draining: bool,
    /// See [`zone::stay`].
    stay: Option<u32>,
    hashing: Option<Hashing>,
    panic_hashing: Option<Hashing>,
    /// From before the last update; taken over when they still fit.
    old_tables: Tables,
}

/// What is expensive to build and may outlive an update.
pub(crate) type Tables = (Option<Hashing>, Option<Hashing>);

impl Pool {
    /// Without its draws; [`Self::refresh`] builds them.
    pub(crate) fn build(key: Key, listed: Vec<u32>, sites: &[Site]) -> Self {
        let of = |i: &u32| sites.get(*i as usize);
        let members = |local: bool| {
            let fits = |s: &Site| s.could_be_eligible() && s.local == local;
            Tier::new(listed.iter().copied().filter(|i| of(i).is_some_and(fits)).collect())
        };
        Self {
            key,
            local: members(true),
            rest: members(false),
            counted: listed.iter().filter_map(of).filter(|s| s.counts()).count() as u32,
            eligible: 0,
            panic: None,
            only_draining: !listed.iter().filter_map(of).any(Site::is_awake),
            stay: None,
            hashing: None,
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
        (self.hashing.or(self.old_tables.0), self.panic_hashing.or(self.old_tables.1))
    }

    /// Counts and builds the draws anew.
    pub(crate) fn refresh(&mut self, field: &Field, seed: u64, sites: &[Site]) {
        self.eligible = 0;
        let (mut local, mut rest) = (0, 0);
        for &i in &self.listed {
            let Some(site) = sites.get(i as usize) else { continue };
            self.eligible += u32::from(site.state() != State::Shut);
            if site.counts() {
                *if site.local { &mut local } else { &mut rest } += field.grains(i);
            }
        }
        (self.local.registered, self.rest.registered) = (local, rest);
        self.local.rebuild(field, sites, seed);
        self.rest.rebuild(field, sites, seed);
        self.panic = None;
        self.set_stay();
    }

    pub(crate) const fn is_stale(&self) -> bool {
        self.local.stale || self.rest.stale
    }

    /// One endpoint went from one state to another; returns whether the draws should be built again.
    pub(crate) fn shift(&mut self, local: bool, grains: u64, before: State, after: State) -> bool {
        match (before == State::Shut, after == State::Shut) {
            (true, false) => self.eligible += 1,
            (false, true) => self.eligible = self.eligible.saturating_sub(1),
            _ => {}
        }
        let tier = if local { &mut self.local } else { &mut self.rest };
        if before == State::Open || after == State::Open {
            tier.shift(grains, after == State::Open);
        }
        self.set_stay();
        self.is_stale()
    }

    fn set_stay(&mut self) {
        let (local, rest) = (&self.local, &self.rest);
        self.stay = zone::stay(local.open_grains, local.registered, rest.open_grains);
    }

    /// `may_probe`: whether endpoints that are owed a probe can be of use to this request.
    pub(crate) fn panics(&self, percent: u32, may_probe: bool) -> bool {
        let eligible =
            if may_probe { self.eligible } else { self.local.open.saturating_add(self.rest.open) };
        percent > 0
            && !self.listed.is_empty()
            && (eligible == 0
                || u64::from(eligible) * 100 < u64::from(percent) * u64::from(self.counted))
    }

    pub(crate) const fn has_open(&self) -> bool {
        self.local.open > 0 || self.rest.open > 0
    }

    /// How many there were to choose from.
    pub(crate) fn candidates(&self, panic: bool) -> u32 {
        match &self.panic {
            Some(tier) if panic => tier.open,
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
            return run(self.panic_tier(field, sites), field, rng, out, want);
        }
        let stays = match self.stay {
            None => true,
            Some(threshold) => (rng.next_u64() >> 32) < u64::from(threshold),
        };
        let (first, second) = if stays {
            (&mut self.local, &mut self.rest)
        } else {
            (&mut self.rest, &mut self.local)
        };
        run(first, field, rng, out, want);
        if out.len() < want {
            run(second, field, rng, out, want);
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
        let open = if field.panics() {
            self.panic_tier(field, sites).open
        } else {
            self.local.open + self.rest.open
        };
        let built = if field.panics() { &self.panic_hashing } else { &self.hashing };
        if built.is_none() {
            self.build_hashing(field, sites);
        }
        let hashing = if field.panics() { &mut self.panic_hashing } else { &mut self.hashing };
        if let Some(hashing) = hashing {
            hashing.fill(field, key, open, out, want);
        }
    }

    #[cold]
    #[inline(never)]
    fn build_hashing(&mut self, field: &Field, sites: &[Site]) {
        let fits = |s: &Site| match field.panics() {
            true => s.is_awake() || self.only_draining,
            false => s.could_be_eligible(),
        };
        let (hosts, at) = self
            .listed
            .iter()
            .filter_map(|&i| sites.get(i as usize).map(|s| (i, s)))
            .filter(|(_, s)| fits(s))
            .map(|(i, s)| (i, (s.address, s.weight.max(1))))
            .unzip();
        let (slot, old) = if field.panics() {
            (&mut self.panic_hashing, &mut self.old_tables.1)
        } else {
            (&mut self.hashing, &mut self.old_tables.0)
        };
        *slot = Some(Hashing::build(&field.policy, hosts, at, old.take()));
    }

    fn panic_tier(&mut self, field: &Field, sites: &[Site]) -> &mut Tier {
        let (listed, all) = (&self.listed, self.only_draining);
        self.panic.get_or_insert_with(|| {
            let fits = |i: &u32| sites.get(*i as usize).is_some_and(|s| s.is_awake() || all);
            let mut tier = Tier::new(listed.iter().copied().filter(fits).collect());
            tier.rebuild(field, sites, u64::from(field.clock.now as u32));
            tier
        })
    }
}

#[inline]
fn run(tier: &mut Tier, field: &mut Field, rng: &mut impl Rng, out: &mut Picks, want: usize) {
    if tier.open == 0 {
        return;
    }
    match field.policy.strategy {
        Strategy::P2c | Strategy::RingHash | Strategy::Maglev => {
            p2c::fill(tier, field, rng, out, want);
        }
        Strategy::LeastRequest => least_request::fill(tier, field, rng, out, want),
        Strategy::RoundRobin => round_robin::fill(tier, field, out, want),
        Strategy::WeightedRoundRobin => weighted_round_robin::fill(tier, field, rng, out, want),
        Strategy::Random => random::fill(tier, field, rng, out, want),
    }
}
