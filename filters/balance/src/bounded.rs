//! The hashing strategies' common part: who stands in the table, who owns a key, and where a
//! key goes when its owner is overloaded or may not be chosen.
//!
//! **Bounded load** is Envoy's, number for number (`thread_aware_lb_impl.cc`): an endpoint takes at
//! most `hash_balance_factor` percent of its weighted mean of the active requests; beyond it the
//! key goes to the first with room in a shuffle that is seeded by the hash, so that equal keys go
//! astray together. The shuffle is a 32-bit Mersenne Twister, because Envoy's is.
//!
//! **Not eligible** (an open breaker) is answered by walking on from the key's own entry, each
//! endpoint once. The way is fixed by the hash, so a key whose owner is away has one stand-in, in
//! every worker and every proxy, and the owner's keys spread over all the others.

use std::net::SocketAddr;

use crate::eligible::Field;
use crate::maglev::{Maglev, MaglevBuild};
use crate::pace::Pace;
use crate::policy::{Policy, Strategy};
use crate::ring_hash::{Ring, RingBuild};
use crate::shape::Shape;
use crate::state::State;
use crate::types::Picks;

/// Entries to walk before every endpoint is asked in turn. With a quarter eligible, the chance to
/// get that far without a list of 16 is nil.
const WALK: usize = 1024;

#[derive(Debug)]
enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

/// What decides where a hashed request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    pub(crate) hash: u64,
    /// The service's requests in flight.
    pub(crate) active: u64,
    pub(crate) may_probe: bool,
}

/// Address and weight of who stands in a ring or table.
pub(crate) type Sites = Vec<(SocketAddr, u32)>;

/// A ring or a table, and who stands in it.
#[derive(Debug)]
pub(crate) struct Hashing {
    table: Table,
    shape: Shape,
    /// As long as these are the same, so is the table.
    sites: Sites,
    /// Their indices; of one that is gone none.
    hosts: Vec<u32>,
    /// Their shares of 1.
    shares: Vec<f64>,
    balance: u32,
    /// Envoy's `host_index`, and in which shuffle each of its places was last written.
    shuffle: Vec<(u32, u32)>,
    shuffles: u32,
}

/// A ring or table on its way.
#[derive(Debug)]
pub(crate) struct Build {
    shape: Shape,
    sites: Sites,
    shares: Vec<f64>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// What is hashed of those that stand in it.
    Keys(Vec<String>),
    Ring(Box<RingBuild>),
    Maglev(Box<MaglevBuild>),
}

// === impl Build ===

impl Build {
    pub(crate) fn new(policy: &Policy, sites: Sites) -> Self {
        let sum: u64 = sites.iter().map(|&(_, w)| u64::from(w)).sum();
        // In Envoy's order of operations: the product first, then the quotient.
        let shares: Vec<f64> =
            sites.iter().map(|&(_, w)| f64::from(w) * 1.0 / sum.max(1) as f64).collect();
        Self { shape: Shape::of(policy), sites, shares, work: Work::Keys(Vec::new()) }
    }

    pub(crate) fn has(&self, shape: Shape) -> bool {
        self.shape == shape
    }

    /// Goes on; the ring or table once it is done, in which nobody is found before
    /// [`Hashing::seat`].
    pub(crate) fn advance(&mut self, pace: &mut Pace<'_>) -> Option<Hashing> {
        let table = match &mut self.work {
            Work::Keys(keys) => {
                let Self { shape, sites, shares, .. } = self;
                while let Some((at, _)) = sites.get(keys.len()) {
                    if !pace.allows(32) {
                        return None;
                    }
                    keys.push(at.to_string());
                }
                let keys = std::mem::take(keys);
                self.work = if shape.strategy == Strategy::Maglev {
                    Work::Maglev(Box::new(MaglevBuild::new(shape.table, &keys, shares)))
                } else {
                    Work::Ring(Box::new(RingBuild::new(shape, keys, shares)))
                };
                return self.advance(pace);
            }
            Work::Ring(build) => Table::Ring(build.advance(pace)?),
            Work::Maglev(build) => Table::Maglev(build.advance(pace)?),
        };
        let sites = std::mem::take(&mut self.sites);
        Some(Hashing {
            table,
            shape: self.shape,
            hosts: vec![GONE; sites.len()],
            shuffle: vec![(0, 0); sites.len()],
            sites,
            shares: std::mem::take(&mut self.shares),
            balance: 0,
            shuffles: 0,
        })
    }
}

/// The index of nobody.
const GONE: u32 = u32::MAX;

impl Hashing {
    /// Whether it is what would be built now.
    pub(crate) fn is(&self, shape: Shape, sites: &[(SocketAddr, u32)]) -> bool {
        self.shape == shape && self.sites == sites
    }

    /// Finds everybody in it again among `sites`, whose indices are `hosts`, ascending; `places`:
    /// all there are, by address. Who is not there is gone.
    pub(crate) fn seat(
        &mut self,
        sites: &[(SocketAddr, u32)],
        hosts: &[u32],
        places: &[(SocketAddr, u32)],
        balance: u32,
    ) {
        self.balance = balance;
        if self.sites == sites {
            self.hosts = hosts.to_vec();
            return;
        }
        // Both are in the table's order, and mostly the next one is who is looked for.
        let mut next = 0_usize;
        let is_at = |place: usize, at: SocketAddr| sites.get(place).is_some_and(|it| it.0 == at);
        let search = |at: SocketAddr| {
            let those = places.get(places.partition_point(|&(other, _)| other < at)..)?;
            let mut those = those.iter().take_while(|&&(other, _)| other == at);
            those.find_map(|(_, host)| hosts.binary_search(host).ok())
        };
        self.hosts.clear();
        for &(at, _) in &self.sites {
            let near = (next..next.saturating_add(2)).find(|&place| is_at(place, at));
            let place = near.or_else(|| search(at));
            next = place.map_or(next, |place| place.saturating_add(1));
            self.hosts.push(place.and_then(|place| hosts.get(place)).map_or(GONE, |&host| host));
        }
    }

    /// Fills `picks` up to `want`: the key's owner, then where the walk leads. `open`: how many are
    /// eligible.
    #[inline]
    pub(crate) fn fill(
        &mut self,
        field: &Field,
        key: Placement,
        open: u32,
        picks: &mut Picks,
        want: usize,
    ) {
        let start = self.locate(key.hash);
        if self.balance == 0
            && picks.len() == 0
            && let Some(index) = self.at(start).and_then(|owner| self.host(owner))
            && field.open(index)
        {
            picks.push(index);
        }
        if picks.len() < want {
            self.walk(field, key, start, open, picks, want);
        }
    }

    #[inline(never)]
    fn walk(
        &mut self,
        field: &Field,
        key: Placement,
        start: usize,
        open: u32,
        picks: &mut Picks,
        want: usize,
    ) {
        let Placement { hash, active, may_probe } = key;
        if picks.len() == 0
            && let Some(owner) = self.at(start)
        {
            let index = self.host(owner);
            if let Some(index) = index
                && may_probe
                && !field.panics()
                && field.state(index) == State::Probe
            {
                picks.push_probe(index);
            } else if self.balance > 0
                && let Some(index) = self.with_room(field, hash, owner, active)
            {
                picks.push(index);
            }
        }
        let want = want + usize::from(picks.probe());
        // A draining endpoint that keeps its session stands beside those that are open.
        let stays = picks.pinned()
            && picks.as_slice().first().is_some_and(|&i| field.state(i) == State::Shut);
        let beside = usize::from(picks.probe()) + usize::from(stays);
        let reach = picks.len().max(open as usize + beside).min(want);
        let len = self.len();
        for step in 0..len.min(WALK) {
            if picks.len() >= reach {
                return;
            }
            let entry = self.at(self.step(hash, start, step));
            if let Some(i) = entry.and_then(|owner| self.host(owner))
                && field.open(i)
                && !picks.contains(i)
            {
                picks.push(i);
            }
        }
        let from = hash.checked_rem(self.hosts.len() as u64).unwrap_or(0) as usize;
        for &i in self.hosts.iter().cycle().skip(from).take(self.hosts.len()) {
            if picks.len() >= reach {
                return;
            }
            // Nobody's state is that of who is gone.
            if field.open(i) && !picks.contains(i) {
                picks.push(i);
            }
        }
    }

    #[inline]
    fn host(&self, place: u32) -> Option<u32> {
        self.hosts.get(place as usize).copied().filter(|&index| index != GONE)
    }

    fn len(&self) -> usize {
        match &self.table {
            Table::Ring(ring) => ring.len(),
            Table::Maglev(maglev) => maglev.len(),
        }
    }

    fn locate(&self, hash: u64) -> usize {
        match &self.table {
            Table::Ring(ring) => ring.locate(hash),
            Table::Maglev(maglev) => maglev.locate(hash),
        }
    }

    /// The `step`th place on the walk of a hash that starts at `start`.
    ///
    /// Neighbours on a ring are strangers. In a Maglev table they are not: every endpoint sits at
    /// regular distances, so the place after one's own belongs to the same few others. There each
    /// step is a fresh place, by splitmix64 of the hash.
    fn step(&self, hash: u64, start: usize, step: usize) -> usize {
        match &self.table {
            _ if step == 0 => start,
            Table::Ring(ring) => {
                let (at, len) = (start + step, ring.len());
                if at < len { at } else { at - len }
            }
            Table::Maglev(maglev) => {
                let mut x = hash.wrapping_add((step as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                maglev.locate(x ^ (x >> 31))
            }
        }
    }

    fn at(&self, at: usize) -> Option<u32> {
        match &self.table {
            Table::Ring(ring) => ring.at(at),
            Table::Maglev(maglev) => maglev.at(at),
        }
    }

    /// Who takes the key under bounded load. `None`: nobody in the table is eligible.
    fn with_room(&mut self, field: &Field, hash: u64, owner: u32, active: u64) -> Option<u32> {
        let factor = self.overload(field, owner, active);
        let mut least = None;
        if let Some((index, factor)) = factor {
            if factor <= 1.0 {
                return Some(index);
            }
            least = Some((index, factor));
        }
        let n = self.hosts.len() as u32;
        self.shuffles = self.shuffles.wrapping_add(1);
        if self.shuffles == 0 {
            self.shuffle.fill((0, 0));
            self.shuffles = 1;
        }
        let mut random = Twister::new(hash as u32);
        for i in 0..n {
            let j = i + random.below(n - i);
            // Envoy swaps i and j and takes what is then at i; i is not looked at again.
            let (low, high) = (self.shuffled(i), self.shuffled(j));
            if let Some(place) = self.shuffle.get_mut(j as usize) {
                *place = (low, self.shuffles);
            }
            if high == owner {
                continue;
            }
            let Some((index, factor)) = self.overload(field, high, active) else {
                continue;
            };
            if factor <= 1.0 {
                return Some(index);
            }
            if least.is_none_or(|(_, low)| low > factor) {
                least = Some((index, factor));
            }
        }
        least.map(|(index, _)| index)
    }

    fn shuffled(&self, at: u32) -> u32 {
        match self.shuffle.get(at as usize) {
            Some(&(value, written)) if written == self.shuffles => value,
            _ => at,
        }
    }

    /// The index, and active requests over slots; `None` for one that may not be chosen.
    fn overload(&self, field: &Field, host: u32, active: u64) -> Option<(u32, f64)> {
        let index = self.host(host)?;
        let load = field.load(index).filter(|_| field.open(index))?;
        let share = *self.shares.get(host as usize)?;
        let slots = (active + 1).saturating_mul(u64::from(self.balance)).saturating_add(99) / 100;
        let slots = (slots as f64 * share).ceil().max(1.0);
        Some((index, f64::from(load.active()) / slots))
    }
}

/// MT19937, as `std::mt19937`.
struct Twister {
    state: [u32; Self::N],
    at: usize,
}

impl Twister {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [0; Self::N];
        let mut word = seed;
        for (i, place) in (0_u32..).zip(&mut state) {
            if i > 0 {
                word = (word ^ (word >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i);
            }
            *place = word;
        }
        Self { state, at: Self::N }
    }

    fn next(&mut self) -> u32 {
        if self.at >= Self::N {
            self.twist();
        }
        let mut y = self.word(self.at);
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = (self.word(i) & 0x8000_0000) | (self.word((i + 1) % Self::N) & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            let value = self.word((i + Self::M) % Self::N) ^ (y >> 1) ^ odd;
            if let Some(place) = self.state.get_mut(i) {
                *place = value;
            }
        }
        self.at = 0;
    }

    fn word(&self, at: usize) -> u32 {
        self.state.get(at).copied().unwrap_or(0)
    }

    /// Envoy's own mapping to `0..k`, the same on every platform.
    fn below(&mut self, k: u32) -> u32 {
        let bucket = ((1_u64 << 32) / u64::from(k.max(1))) as u32;
        loop {
            // For k = 1 the bucket is 2^32, which no 32-bit number reaches.
            let x = if k <= 1 { 0 } else { self.next() / bucket };
            if k <= 1 {
                self.next();
            }
            if x < k.max(1) {
                return x;
            }
        }
    }
}

#[cfg(test)]
#[path = "bounded_tests.rs"]
mod tests;
