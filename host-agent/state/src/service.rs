//! One service as the sources tell it, and what may be taken away from it.
//!
//! A DELETE never says whether a lease ran out or a person acted, and when a network or a registry
//! fails, leases run out by the hundred while the endpoints behind them go on serving. So a removal is
//! a request: one goes at once, as many as `max(1, 15 %)` of the service within a minute, and the rest
//! wait in line; the last endpoint waits for the grace as well. What waits is still served, because
//! the breaker finds a dead endpoint faster than anybody can find a wrongly removed one. An endpoint
//! that the registry already called draining takes no traffic, so its going costs nothing and does
//! not wait, unless the service would be left empty. Nor does one wait whose address another id has: it is
//! the same under another name, and as two it would be asked twice as often and retried at itself.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use pintle_contract::{Endpoint, Health};
use serde_json::Value;

use crate::update::{Moment, Protection};

/// Who tells of an endpoint. When both do, the registry's word counts: it is the one that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    Registry,
    File,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) endpoint: Endpoint,
    pub(crate) raw: Box<[u8]>,
    pub(crate) revision: u64,
    pub(crate) size: usize,
    pub(crate) gone: Option<Gone>,
}

/// Deleted by its source, and waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    pub(crate) since: Duration,
    pub(crate) wall: SystemTime,
    ticket: u64,
}

/// What a removal led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nothing was there, or it waits already.
    Nothing,
    /// It is gone.
    Done,
    /// It waits.
    Held,
}

#[derive(Debug, Default)]
pub(crate) struct Service {
    pub(crate) registry: BTreeMap<String, Entry>,
    pub(crate) file: BTreeMap<String, Entry>,
    pub(crate) registry_policy: Option<Policy>,
    pub(crate) file_policy: Option<Policy>,
    /// When endpoints went, within the window.
    removed: VecDeque<Duration>,
    /// Who waits, in the order of their removal; whoever came back meanwhile is skipped.
    line: VecDeque<(Origin, String, u64)>,
    waiting: usize,
    tickets: u64,
    /// How many of those that do not wait have an address.
    addresses: BTreeMap<SocketAddr, usize>,
    /// Bytes that the endpoints take in a frame, at most.
    pub(crate) size: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) value: Value,
    pub(crate) raw: Box<[u8]>,
}

impl Service {
    pub(crate) fn is_empty(&self) -> bool {
        self.registry.is_empty()
            && self.file.is_empty()
            && self.registry_policy.is_none()
            && self.file_policy.is_none()
    }

    pub(crate) fn entries(&self, origin: Origin) -> &BTreeMap<String, Entry> {
        match origin {
            Origin::Registry => &self.registry,
            Origin::File => &self.file,
        }
    }

    fn entries_mut(&mut self, origin: Origin) -> &mut BTreeMap<String, Entry> {
        match origin {
            Origin::Registry => &mut self.registry,
            Origin::File => &mut self.file,
        }
    }

    /// Endpoints by id, those that wait included.
    pub(crate) fn present(&self) -> usize {
        let only_file = self.file.keys().filter(|id| !self.registry.contains_key(*id));
        self.registry.len().saturating_add(only_file.count())
    }

    pub(crate) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Puts an endpoint in, or back; whether anything but its revision or bytes changed.
    pub(crate) fn put(&mut self, origin: Origin, entry: Entry) -> bool {
        let id = entry.endpoint.id.clone();
        let size = entry.size;
        let endpoint = entry.endpoint.clone();
        *self.addresses.entry(endpoint.socket_addr()).or_default() += 1;
        let old = self.entries_mut(origin).insert(id, entry);
        self.size = self.size.saturating_add(size);
        let Some(old) = old else { return true };
        self.size = self.size.saturating_sub(old.size);
        if old.gone.is_some() {
            self.waiting = self.waiting.saturating_sub(1);
        } else {
            self.left(old.endpoint.socket_addr());
        }
        old.endpoint != endpoint || old.gone.is_some()
    }

    fn left(&mut self, address: SocketAddr) {
        if let Some(count) = self.addresses.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    /// Whoever waits at this address goes: it has been registered under another id; how many went.
    pub(crate) fn succeed(&mut self, address: SocketAddr) -> usize {
        if self.waiting == 0 || !self.addresses.contains_key(&address) {
            return 0;
        }
        let mut went = 0usize;
        for origin in [Origin::Registry, Origin::File] {
            let waits =
                |entry: &Entry| entry.gone.is_some() && entry.endpoint.socket_addr() == address;
            let entries = self.entries(origin).iter();
            let ids: Vec<String> =
                entries.filter(|(_, entry)| waits(entry)).map(|(id, _)| id.clone()).collect();
            for id in ids {
                self.drop_entry(origin, &id);
                went = went.saturating_add(1);
            }
        }
        went
    }

    /// Its source has deleted the endpoint; what became of it, and how many others had waited and went.
    pub(crate) fn remove(
        &mut self,
        origin: Origin,
        id: &str,
        now: Moment,
        rules: &Protection,
    ) -> (Removal, usize) {
        let ticket = self.tickets;
        let present = self.present();
        let other = match origin {
            Origin::Registry => Origin::File,
            Origin::File => Origin::Registry,
        };
        let elsewhere = self.entries(other).get(id).is_some_and(|entry| entry.gone.is_none());
        let staying = present.saturating_sub(self.waiting);
        let Some(entry) = self.entries(origin).get(id) else {
            return (Removal::Nothing, 0);
        };
        if entry.gone.is_some() {
            return (Removal::Nothing, 0);
        }
        let idle = entry.endpoint.health == Health::Draining && staying > 1;
        let address = entry.endpoint.socket_addr();
        let succeeded = self.addresses.get(&address).is_some_and(|count| *count > 1);
        if !rules.enabled || elsewhere || idle || succeeded {
            self.drop_entry(origin, id);
            return (Removal::Done, 0);
        }
        if let Some(entry) = self.entries_mut(origin).get_mut(id) {
            entry.gone = Some(Gone { since: now.mono, wall: now.wall, ticket });
        }
        self.left(address);
        self.tickets = self.tickets.wrapping_add(1);
        self.waiting = self.waiting.saturating_add(1);
        self.line.push_back((origin, id.to_owned(), ticket));
        let went = self.settle(now, rules);
        if self.entries(origin).contains_key(id) {
            (Removal::Held, went)
        } else {
            (Removal::Done, went.saturating_sub(1))
        }
    }

    /// How many may go within one window.
    fn budget(&self, rules: &Protection) -> usize {
        let size = self.present().saturating_add(self.removed.len());
        (size.saturating_mul(usize::from(rules.percent)) / 100).max(1)
    }

    /// Lets go whoever may go now, first come first served; how many went.
    pub(crate) fn settle(&mut self, now: Moment, rules: &Protection) -> usize {
        while self.removed.front().is_some_and(|at| now.mono.saturating_sub(*at) >= rules.window) {
            self.removed.pop_front();
        }
        let budget = self.budget(rules);
        let mut went = 0usize;
        while let Some((origin, id, since)) = self.first_waiting() {
            let last = self.present() <= 1;
            if last && now.mono.saturating_sub(since) < rules.grace {
                break;
            }
            if self.removed.len() >= budget {
                break;
            }
            self.line.pop_front();
            self.drop_entry(origin, &id);
            self.removed.push_back(now.mono);
            went = went.saturating_add(1);
        }
        went
    }

    /// Everybody who waits goes: somebody has confirmed it.
    pub(crate) fn release(&mut self) -> usize {
        let mut went = 0usize;
        while let Some((origin, id, _)) = self.first_waiting() {
            self.line.pop_front();
            self.drop_entry(origin, &id);
            went = went.saturating_add(1);
        }
        went
    }

    /// When [`Service::settle`] may have something to do.
    pub(crate) fn due(&mut self, rules: &Protection) -> Option<Duration> {
        let (_, _, since) = self.first_waiting()?;
        let budgeted = if self.removed.len() < self.budget(rules) {
            Duration::ZERO
        } else {
            self.removed.front()?.saturating_add(rules.window)
        };
        let last = self.present() <= 1;
        let graced = if last { since.saturating_add(rules.grace) } else { Duration::ZERO };
        Some(budgeted.max(graced))
    }

    /// Who waits, since when, and how long still, at most `limit` of them.
    pub(crate) fn line(
        &self,
        now: Moment,
        rules: &Protection,
        limit: usize,
    ) -> Vec<(String, SystemTime, bool, Duration)> {
        let budget = self.budget(rules);
        let opens =
            self.removed.front().map_or(Duration::ZERO, |at| at.saturating_add(rules.window));
        let opens = opens.saturating_sub(now.mono);
        let present = self.present();
        let waiting = self
            .line
            .iter()
            .filter_map(|(origin, id, ticket)| self.gone(*origin, id, *ticket).map(|g| (id, g)));
        let mut list = Vec::new();
        for (at, (id, gone)) in waiting.enumerate().take(limit) {
            let rounds = u32::try_from(at / budget).unwrap_or(u32::MAX);
            let mut left = opens.saturating_add(rules.window.saturating_mul(rounds));
            let last = at.saturating_add(1) >= present;
            if last {
                let graced = gone.since.saturating_add(rules.grace);
                left = left.max(graced.saturating_sub(now.mono));
            }
            list.push((id.clone(), gone.wall, last, left));
        }
        list
    }

    fn gone(&self, origin: Origin, id: &str, ticket: u64) -> Option<Gone> {
        let gone = self.entries(origin).get(id)?.gone?;
        (gone.ticket == ticket).then_some(gone)
    }

    fn first_waiting(&mut self) -> Option<(Origin, String, Duration)> {
        while let Some((origin, id, ticket)) = self.line.front() {
            if let Some(gone) = self.gone(*origin, id, *ticket) {
                return Some((*origin, id.clone(), gone.since));
            }
            self.line.pop_front();
        }
        None
    }

    fn drop_entry(&mut self, origin: Origin, id: &str) {
        if let Some(entry) = self.entries_mut(origin).remove(id) {
            self.size = self.size.saturating_sub(entry.size);
            if entry.gone.is_some() {
                self.waiting = self.waiting.saturating_sub(1);
            } else {
                self.left(entry.endpoint.socket_addr());
            }
        }
    }

    /// The endpoints as registered, sorted by id; where both sources know one, the registry's, unless
    /// only the file still stands by it.
    pub(crate) fn merged(&self) -> Vec<Endpoint> {
        let mut all: BTreeMap<&str, &Entry> = BTreeMap::new();
        for (id, entry) in self.file.iter().chain(&self.registry) {
            match all.get(id.as_str()) {
                Some(file) if entry.gone.is_some() && file.gone.is_none() => {}
                _ => {
                    all.insert(id, entry);
                }
            }
        }
        all.into_values().map(|entry| entry.endpoint.clone()).collect()
    }
}
