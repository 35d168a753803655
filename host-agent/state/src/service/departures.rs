//! Endpoints that no key names any more, and whether they may go.
//!
//! A DELETE does not say why. When a network or a registry fails, leases run out by the hundred
//! while the endpoints behind them go on serving; and when a deployment ends, somebody deletes a
//! key and wants to see it at once. So the reason is found out, and what can't be told by its
//! reason is tried:
//!
//! | why | goes |
//! |---|---|
//! | its key was deleted while the lease lived, or it was draining | at once |
//! | it refuses connections, or was silent three times | at once, the service's last one too |
//! | an endpoint that came within the window took its place and accepts connections | at once |
//! | its key had no lease, and nobody else goes | at once, one in a window |
//! | anything else, and nobody else has gone with it for a window | after the window |
//! | anything else | when a person releases it, or it stops answering |
//!
//! Whoever stays is served as before, because a breaker finds a dead endpoint faster than anybody
//! can find a wrongly removed one. The last one that may still answer never goes by the first line.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use pintle_contract::Health;

use super::registrations::Registration;
use super::trials::Trials;
use crate::update::{Moment, Protection};

/// Why an address has no key any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Somebody deleted its key.
    Deleted,
    /// Its key is gone, and so may be the lease of this number.
    Leased(u64),
    /// Its key is gone and had no lease.
    Unleased,
    /// Its key names another address now, one that came with it.
    Moved(SocketAddr),
    /// Its key names another address now, one that was there before; or why it has none was not
    /// kept over a restart.
    Joined,
}

/// An endpoint without a key.
#[derive(Debug)]
pub(crate) struct Departure {
    /// What its last key said.
    pub(crate) registration: Registration,
    pub(crate) since: Duration,
    pub(crate) since_wall: SystemTime,
    pub(crate) cause: Cause,
    /// Whether it was found to be one of those who stay.
    pub(crate) held: bool,
}

/// An endpoint that came within the window.
#[derive(Clone, Copy, Debug)]
struct Newcomer {
    since: Duration,
    /// Whose place it takes, where that one's key names it now.
    instead_of: Option<SocketAddr>,
    accepts: bool,
}

/// What [`Departures::settle`] is told beside its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances<'a> {
    pub(crate) now: Moment,
    pub(crate) rules: &'a Protection,
    /// Whether anybody answered this agent lately; without that, silence says nothing.
    pub(crate) anybody_answers: bool,
    /// Endpoints with a key.
    pub(crate) registered: usize,
}

/// Who went, and why.
pub(crate) type Went = (Departure, &'static str);

#[derive(Debug, Default)]
pub(crate) struct Departures {
    by_address: BTreeMap<SocketAddr, Departure>,
    by_id: BTreeMap<String, SocketAddr>,
    newcomers: BTreeMap<SocketAddr, Newcomer>,
    /// When newcomers that were promised to nobody were found to accept connections, and when
    /// endpoints whose place nobody had been promised went; within the window.
    arrived: VecDeque<Duration>,
    departed: VecDeque<Duration>,
    /// When one last went that still answered, for all that is known.
    untested: Option<Duration>,
    size: usize,
    bytes: usize,
    /// When the only one there is may go; as of the last [`Departures::settle`].
    alone_until: Option<Duration>,
}

impl Departures {
    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Bytes that they take in a frame, at most.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Bytes of the values that they were read from.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Departure)> {
        self.by_address.iter().map(|(address, departure)| (*address, departure))
    }

    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    pub(crate) fn address_of(&self, id: &str) -> Option<SocketAddr> {
        self.by_id.get(id).copied()
    }

    /// When an endpoint last went untested.
    pub(crate) const fn untested(&self) -> Option<Duration> {
        self.untested
    }

    /// Takes over when that was, from before a restart.
    pub(crate) const fn remember_untested(&mut self, at: Duration) {
        self.untested = Some(at);
    }

    /// An address has a key that had none. Whoever was about to go stays; anybody else is new.
    pub(crate) fn arrive(&mut self, address: SocketAddr, now: Moment) {
        if self.back(address).is_none() {
            let newcomer = Newcomer { since: now.mono, instead_of: None, accepts: false };
            self.newcomers.entry(address).or_insert(newcomer);
        }
    }

    /// Ends a departure because the address has a key again.
    pub(crate) fn back(&mut self, address: SocketAddr) -> Option<Departure> {
        let departure = self.by_address.remove(&address)?;
        self.size = self.size.saturating_sub(departure.registration.size);
        self.bytes = self.bytes.saturating_sub(departure.registration.told.bytes);
        let id = &departure.registration.endpoint.id;
        if self.by_id.get(id) == Some(&address) {
            self.by_id.remove(id);
        }
        Some(departure)
    }

    /// An address has lost its last key.
    pub(crate) fn leave(&mut self, registration: Registration, cause: Cause, now: Moment) {
        let address = registration.endpoint.socket_addr();
        self.newcomers.remove(&address);
        self.by_id.insert(registration.endpoint.id.clone(), address);
        let cause = match cause {
            Cause::Moved(to) if !self.promise(to, address) => Cause::Joined,
            other => other,
        };
        self.size = self.size.saturating_add(registration.size);
        self.bytes = self.bytes.saturating_add(registration.told.bytes);
        let departure =
            Departure { registration, since: now.mono, since_wall: now.wall, cause, held: false };
        self.by_address.insert(address, departure);
    }

    /// A key came back with another address than that of its departure.
    pub(crate) fn follow(&mut self, id: &str, to: SocketAddr) {
        let Some(address) = self.address_of(id).filter(|address| *address != to) else {
            return;
        };
        if self.promise(to, address)
            && let Some(departure) = self.by_address.get_mut(&address)
        {
            departure.cause = Cause::Moved(to);
        }
    }

    fn promise(&mut self, to: SocketAddr, place: SocketAddr) -> bool {
        let newcomer = self.newcomers.get_mut(&to).filter(|it| it.instead_of.is_none());
        newcomer.map(|newcomer| newcomer.instead_of = Some(place)).is_some()
    }

    /// These leases live: what went with them was deleted by somebody. Whether anything did.
    pub(crate) fn leases_live(&mut self, leases: &[u64]) -> bool {
        let mut any = false;
        for departure in self.by_address.values_mut() {
            if matches!(departure.cause, Cause::Leased(lease) if leases.contains(&lease)) {
                departure.cause = Cause::Deleted;
                any = true;
            }
        }
        any
    }

    /// Whether the address is not served yet, because the one whose place it is to take still is.
    pub(crate) fn waits(&self, address: SocketAddr) -> bool {
        self.newcomers.get(&address).is_some_and(|newcomer| {
            let old = newcomer.instead_of.and_then(|place| self.by_address.get(&place));
            !newcomer.accepts && old.is_some_and(|old| old.cause == Cause::Moved(address))
        })
    }

    /// Newcomers of which it is not known that they accept connections.
    pub(crate) fn unproven(&self) -> impl Iterator<Item = SocketAddr> {
        let unproven = self.newcomers.iter().filter(|(_, newcomer)| !newcomer.accepts);
        unproven.map(|(address, _)| *address)
    }

    /// Lets go whoever may go now.
    pub(crate) fn settle(&mut self, trials: &Trials, about: &Circumstances<'_>) -> Vec<Went> {
        self.forget_old(about);
        for (address, newcomer) in &mut self.newcomers {
            if !newcomer.accepts && trials.accepts(*address) {
                newcomer.accepts = true;
                if newcomer.instead_of.is_none() {
                    self.arrived.push_back(about.now.mono);
                }
            }
        }
        let unproven = self.unproven().count();
        let mut serving = about.registered.saturating_sub(unproven);
        serving = serving
            .saturating_add(self.by_address.keys().filter(|at| trials.accepts(**at)).count());
        let mut went = Vec::new();
        for address in self.by_address.keys().copied().collect::<Vec<_>>() {
            let itself = usize::from(trials.accepts(address));
            let others = serving.saturating_sub(itself);
            let Some(why) = self.verdict(address, others, trials, about) else {
                continue;
            };
            serving = others;
            went.extend(self.back(address).map(|departure| (departure, why)));
        }
        self.alone_until = self.time_of_the_only_one(serving, trials, about.rules);
        went
    }

    fn time_of_the_only_one(
        &self,
        serving: usize,
        trials: &Trials,
        rules: &Protection,
    ) -> Option<Duration> {
        let (address, departure) = self.iter().next().filter(|_| self.len() == 1)?;
        let others = serving.saturating_sub(usize::from(trials.accepts(address)));
        (others > 0).then(|| self.untested_from(departure, rules))
    }

    fn verdict(
        &mut self,
        address: SocketAddr,
        others: usize,
        trials: &Trials,
        about: &Circumstances<'_>,
    ) -> Option<&'static str> {
        let (now, rules) = (about.now.mono, about.rules);
        let departure = self.by_address.get(&address)?;
        let dead = if trials.refuses(address) {
            Some("it refuses connections")
        } else {
            (trials.is_silent(address) && about.anybody_answers).then_some("it is silent")
        };
        if dead.is_some() || !rules.enabled {
            self.departed.push_back(now);
            return dead.or(Some("removed"));
        }
        if others == 0 {
            return None;
        }
        if departure.cause == Cause::Deleted
            || departure.registration.endpoint.health == Health::Draining
        {
            self.departed.push_back(now);
            return Some("removed");
        }
        if let Cause::Moved(to) = departure.cause
            && self.newcomers.get(&to).is_none_or(|newcomer| newcomer.accepts)
        {
            return Some("it moved");
        }
        if self.departed.len() < self.arrived.len() {
            self.departed.push_back(now);
            return Some("another took its place");
        }
        if self.may_go_untested(departure, now, rules) {
            self.untested = Some(now);
            self.departed.push_back(now);
            return Some("removed");
        }
        None
    }

    /// One alone may go though it answers: such as a key without a lease that somebody deleted.
    fn may_go_untested(&self, departure: &Departure, now: Duration, rules: &Protection) -> bool {
        self.by_address.len() == 1 && now >= self.untested_from(departure, rules)
    }

    fn untested_from(&self, departure: &Departure, rules: &Protection) -> Duration {
        let window = |from: Duration| from.saturating_add(rules.window);
        let last = self.untested.map_or(Duration::ZERO, window);
        match departure.cause {
            Cause::Unleased => last,
            _ => last.max(window(departure.since)),
        }
    }

    /// When time alone lets somebody go.
    pub(crate) fn next(&self, rules: &Protection) -> Option<Duration> {
        // Whoever came is one of those that serve once the window is over, tried or not.
        let counts = |it: &&Newcomer| !it.accepts && it.instead_of.is_none();
        let aged = self.newcomers.values().filter(counts).map(|it| it.since);
        let aged = aged.min().filter(|_| !self.is_empty());
        self.alone_until.into_iter().chain(aged.map(|at| at.saturating_add(rules.window))).min()
    }

    /// When the only one there is goes, if nothing happens.
    pub(crate) const fn alone_until(&self) -> Option<Duration> {
        self.alone_until
    }

    /// Those that were found to stay, from now on: they are held. How many there are.
    pub(crate) fn hold(&mut self, trials: &Trials) -> usize {
        let stay = self.by_address.iter_mut().filter(|(address, departure)| {
            // Both ends of a move are tried at once, and the old one may be the first to answer.
            let undecided = matches!(departure.cause, Cause::Moved(to) if trials.is_open(to));
            let stays = trials.accepts(**address) || trials.gives_no_word(**address);
            !departure.held && stays && !undecided
        });
        stay.map(|(_, departure)| departure.held = true).count()
    }

    /// Everybody goes: a person has confirmed it.
    pub(crate) fn release(&mut self) -> Vec<Departure> {
        self.by_id.clear();
        self.size = 0;
        self.bytes = 0;
        self.alone_until = None;
        std::mem::take(&mut self.by_address).into_values().collect()
    }

    fn forget_old(&mut self, about: &Circumstances<'_>) {
        let now = about.now.mono;
        let old = |at: Duration| now.saturating_sub(at) >= about.rules.window;
        let departs = &self.by_address;
        self.newcomers.retain(|_, newcomer| {
            let waits = newcomer.instead_of.is_some_and(|place| departs.contains_key(&place));
            waits || !old(newcomer.since)
        });
        for times in [&mut self.arrived, &mut self.departed] {
            while times.front().is_some_and(|at| old(*at)) {
                times.pop_front();
            }
        }
    }
}
