//! The services that this VM knows, from their tables in shared data.
//!
//! A table is read when the first request for its service comes, which waits for nothing: the bytes
//! are in this process. What nobody asks for here costs its name, but for tables in which an
//! operator or the fleet says something of a breaker: that is obeyed, and shown, before anybody
//! asks.
//!
//! Keys: `pintle/t/{service}`, `pintle/p/{service}` and `pintle/confirmed`, written by the leader;
//! `pintle/index` is read.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use indexmap::IndexMap;
use pintle_balance::{Balancer, Memory};
use pintle_contract::{Down, Endpoint, Load, Message, Now, Patch, Table, Version};
use pintle_hostcalls::{self as host, Cas, Level, Status};
use pintle_policy::Config;
use rand::Rng as _;

use super::amendments::gathered;
use super::leadership::read_index;
use super::turn::Turn;
use crate::counters::Count;
use crate::keys;
use crate::service::Service;

/// Envoy's property with the zone of this proxy.
const ZONE: &[u8] = b"xds\0node\0locality\0zone";

/// What of a tick goes into rings and tables that are built outside of requests.
const SLICE: Duration = Duration::from_micros(200);

/// All services, and how recent they are.
pub(crate) struct Services {
    by_name: IndexMap<Rc<str>, Service>,
    /// Those with a table that no request has asked for here, and its version as last heard.
    unread: HashMap<Box<str>, Version>,
    /// Which index was read last.
    index: Option<Cas>,
    memory: Memory,
    /// Those with rings or tables on their way, as they were found with the last whole tick.
    building: Vec<Rc<str>>,
    /// The newest version among the tables.
    version: Version,
    zone: String,
    /// When a table last came or the agent last said that nothing changed.
    confirmed_at: Now,
    /// As much of it as shared data says.
    shared_confirmation: Now,
    /// Of which services each of the other workers told a load.
    remote: HashMap<u32, Vec<Rc<str>>>,
}

/// A service whose table was replaced.
pub(crate) struct Replaced {
    pub(crate) name: Rc<str>,
    /// The indices of endpoints that were not there before.
    pub(crate) new: Vec<usize>,
}

impl Services {
    pub(crate) fn new(config: &Config) -> Self {
        let zone = host::property(ZONE).unwrap_or_default();
        Self {
            by_name: IndexMap::new(),
            unread: HashMap::new(),
            index: None,
            memory: Memory::new(config.memory),
            building: Vec::new(),
            version: Version::default(),
            zone: String::from_utf8_lossy(&zone).into_owned(),
            confirmed_at: Now(0),
            shared_confirmation: Now(0),
            remote: HashMap::new(),
        }
    }

    // === Access ===

    pub(crate) fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.unread.is_empty()
    }

    /// Whether the service has a table that is to be read with [`Self::load`].
    pub(crate) fn is_unread(&self, name: &str) -> bool {
        self.unread.contains_key(name)
    }

    /// Where a service is among all, as long as none of them goes, and its name.
    pub(crate) fn find(&self, name: &str) -> Option<(usize, Rc<str>)> {
        self.by_name.get_full(name).map(|(at, name, _)| (at, Rc::clone(name)))
    }

    /// Where a service is that was at `at` when the name was taken from here; no hash where it
    /// still is.
    pub(crate) fn find_near(&self, name: &Rc<str>, at: usize) -> Option<usize> {
        match self.by_name.get_index(at) {
            Some((here, _)) if Rc::ptr_eq(here, name) => Some(at),
            _ => self.by_name.get_index_of(&**name),
        }
    }

    pub(crate) fn at(&self, at: usize) -> Option<&Service> {
        self.by_name.get_index(at).map(|(_, service)| service)
    }

    pub(crate) fn at_mut(&mut self, at: usize) -> Option<&mut Service> {
        self.by_name.get_index_mut(at).map(|(_, service)| service)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Service> {
        self.by_name.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Service> {
        self.by_name.get_mut(name)
    }

    pub(crate) fn names(&self) -> Vec<Rc<str>> {
        self.by_name.keys().cloned().collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Rc<str>, &Service)> {
        self.by_name.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&Rc<str>, &mut Service)> {
        self.by_name.iter_mut()
    }

    /// The newest version among the tables.
    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    /// Everything up to `version` is here. Whether that is news.
    pub(crate) fn reach(&mut self, version: Version) -> bool {
        let news = version > self.version;
        self.version = self.version.max(version);
        news
    }

    // === Tables ===

    /// Stores a table's frame for the other workers; an empty one stands for a service that is
    /// gone.
    pub(crate) fn store(name: &str, frame: &[u8]) -> host::Result<()> {
        host::set_shared_data(&keys::table(name), frame, None)
    }

    /// Forgets a service.
    pub(crate) fn remove(&mut self, name: &str) {
        self.by_name.swap_remove(name);
        self.unread.remove(name);
    }

    /// Loads what the index says is newer than what this VM has, and drops what it does not name.
    pub(crate) fn load_index(&mut self, config: &Config, turn: &mut Turn<'_>) -> Vec<Replaced> {
        let Some((index, cas)) = read_index(self.index, turn.counters) else { return Vec::new() };
        self.index = Some(cas);
        let mut replaced = Vec::new();
        for (name, version) in &index.services {
            match self.by_name.get(name.as_str()) {
                Some(held) if held.version < *version => {
                    replaced.extend(self.load(name, config, turn));
                }
                Some(_) => {}
                None => self.note(name, *version),
            }
        }
        let named = |name: &str| {
            index.services.binary_search_by(|(other, _)| other.as_str().cmp(name)).is_ok()
        };
        // The leader writes the index with its next tick: a table that is newer came after it.
        self.by_name.retain(|name, held| named(name) || held.version > index.version);
        self.unread.retain(|name, version| named(name) || *version > index.version);
        self.version = self.version.max(index.version);
        replaced
    }

    fn note(&mut self, name: &str, version: Version) {
        match self.unread.get_mut(name) {
            Some(known) => *known = version,
            None => drop(self.unread.insert(name.into(), version)),
        }
    }

    /// The table of a service in shared data is another, or gone.
    pub(crate) fn heard_of(
        &mut self,
        name: &str,
        config: &Config,
        turn: &mut Turn<'_>,
    ) -> Option<Replaced> {
        if let Some(held) = self.by_name.get(name) {
            let held = held.version;
            return match gathered(name) {
                Some(patch) if patch.version == held => None,
                Some(patch) if patch.leads_from(held) => self.amend(&patch, config, turn),
                _ => self.load(name, config, turn),
            };
        }
        // Where patches say how far it goes, a table that nobody asks for here is not copied to
        // see.
        if let Some(known) = self.unread.get(name).copied()
            && let Some(patch) = gathered(name).filter(|patch| patch.leads_from(known))
        {
            return self.amend(&patch, config, turn);
        }
        match host::shared_data(&keys::table(name)) {
            Ok((bytes, _)) if bytes.is_empty() => self.remove(name),
            Ok((bytes, _)) => match Down::table_head(&bytes) {
                Ok((service, version)) if service == name => {
                    self.note(name, version);
                    self.version = self.version.max(version);
                }
                _ => turn.counters.add(Count::SharedRejected),
            },
            Err(Status::NOT_FOUND) => {}
            Err(_) => turn.counters.add(Count::HostError),
        }
        None
    }

    /// The table of a service was changed by this patch, which lies beside it in shared data. What
    /// was read of one before is brought up to it, where that can be done.
    pub(crate) fn amend(
        &mut self,
        patch: &Patch,
        config: &Config,
        turn: &mut Turn<'_>,
    ) -> Option<Replaced> {
        let Some(service) = self.by_name.get_mut(patch.service.as_str()) else {
            if patch.endpoints.iter().any(is_told) {
                return self.load(&patch.service, config, turn);
            }
            self.note(&patch.service, patch.version);
            self.version = self.version.max(patch.version);
            return None;
        };
        let allowed = |it: &Endpoint| config.addresses.check(it.address).is_ok();
        let new = patch.endpoints.iter().all(allowed);
        let new = new.then(|| service.amend(patch, &self.memory, &self.zone, turn.now)).flatten();
        let Some(new) = new else { return self.load(&patch.service, config, turn) };
        self.version = self.version.max(patch.version);
        Some(Replaced { name: patch.service.as_str().into(), new })
    }

    /// A table came from the agent.
    pub(crate) fn came(
        &mut self,
        table: Table,
        config: &Config,
        turn: &mut Turn<'_>,
    ) -> Option<Replaced> {
        if self.by_name.contains_key(table.service.as_str()) || table.endpoints.iter().any(is_told)
        {
            self.unread.remove(table.service.as_str());
            return self.replace(table, config, turn);
        }
        self.note(&table.service, table.version);
        self.version = self.version.max(table.version);
        None
    }

    /// Reads one table from shared data.
    pub(crate) fn load(
        &mut self,
        name: &str,
        config: &Config,
        turn: &mut Turn<'_>,
    ) -> Option<Replaced> {
        self.unread.remove(name);
        match host::shared_data(&keys::table(name)) {
            Ok((bytes, _)) if bytes.is_empty() => self.remove(name),
            Ok((bytes, _)) => match decode(name, &bytes) {
                Some(table) => return self.replace(table, config, turn),
                None => turn.counters.add(Count::SharedRejected),
            },
            Err(Status::NOT_FOUND) => {}
            Err(_) => turn.counters.add(Count::HostError),
        }
        None
    }

    /// Makes a table the one that requests see, unless it is older than what is held.
    fn replace(
        &mut self,
        mut table: Table,
        config: &Config,
        turn: &mut Turn<'_>,
    ) -> Option<Replaced> {
        let held = self.by_name.get(table.service.as_str());
        if held.is_some_and(|held| table.version < held.version) {
            return None;
        }
        let hold = match self.memory.take(Service::bytes(&table)) {
            Ok(hold) => hold,
            Err(over) => {
                turn.counters.add(Count::OverBudget);
                let name = &table.service;
                host::log(Level::Warn, &format!("pintle: table of {name} refused: {over}"));
                return None;
            }
        };
        let before = table.endpoints.len();
        table.endpoints.retain(|endpoint| config.addresses.check(endpoint.address).is_ok());
        let refused = before.saturating_sub(table.endpoints.len());
        turn.counters.add_many(Count::AddressRejected, refused as u64);

        let policy = match config.policy(&table.service, &table.policy) {
            Ok(policy) => Some(policy),
            Err(error) => {
                turn.counters.add(Count::PolicyRejected);
                host::log(
                    Level::Warn,
                    &format!("pintle: policy of {} refused: {error}", table.service),
                );
                None
            }
        };
        self.version = self.version.max(table.version);
        let name: Rc<str> = table.service.as_str().into();
        let new = match self.by_name.get_mut(&name) {
            Some(service) => service.update(&table, policy, hold, &self.zone, turn.now),
            None => {
                let own = || config.policy(&table.service, "").ok();
                let policy = policy.or_else(own).unwrap_or_else(|| config.default_policy.clone());
                let seed = turn.rng.next_u64();
                let balancer =
                    Balancer::new(&table.service, &policy.select, &[], &self.zone, seed, turn.now);
                let mut service = Service::new(policy, balancer.within(&self.memory));
                service.update(&table, None, hold, &self.zone, turn.now);
                self.by_name.insert(Rc::clone(&name), service);
                (0..table.endpoints.len()).collect()
            }
        };
        Some(Replaced { name, new })
    }

    /// Whether rings or tables are on their way.
    pub(crate) fn is_building(&self) -> bool {
        self.memory.building() > 0
    }

    /// Finds the services with rings and tables on their way.
    pub(crate) fn find_building(&mut self) {
        self.building.clear();
        // What waits gives way to what is refused.
        if self.is_building() || self.memory.is_short() {
            let building = self.by_name.iter().filter(|(_, it)| it.balancer.is_building());
            self.building.extend(building.map(|(name, _)| Rc::clone(name)));
        }
    }

    /// Goes on with rings and tables that are on their way, of the services that were found last.
    pub(crate) fn build_tables(&mut self) {
        if self.building.is_empty() {
            return;
        }
        let now = host::now();
        let until = now.after(SLICE);
        let in_time = || host::now() < until;
        // A small one must not wait for a large one, which takes minutes.
        let bytes = |name: &Rc<str>| Some(self.by_name.get(name)?.balancer.building_bytes());
        self.building.sort_by_cached_key(bytes);
        for name in &self.building {
            if let Some(service) = self.by_name.get_mut(name) {
                service.balancer.build(now, in_time);
            }
            if !in_time() {
                return;
            }
        }
    }

    // === What workers tell each other ===

    /// Takes over what another worker says of the load.
    pub(crate) fn set_remote_load(&mut self, worker: u32, loads: &[(String, Vec<Load>)], now: Now) {
        let mut told = Vec::with_capacity(loads.len());
        for (name, load) in loads {
            let Some((at, name)) = self.find(name) else { continue };
            told.push(name);
            if let Some(service) = self.at_mut(at) {
                service.set_remote_load(worker, load, now);
            }
        }
        self.forget_remote_load(worker, &told);
        self.remote.insert(worker, told);
    }

    /// Forgets what a worker that is gone said of the load.
    pub(crate) fn remove_remote_load(&mut self, worker: u32) {
        self.forget_remote_load(worker, &[]);
    }

    /// Forgets what a worker said of services that it does not speak of any more.
    fn forget_remote_load(&mut self, worker: u32, still: &[Rc<str>]) {
        for name in self.remote.remove(&worker).unwrap_or_default() {
            if !still.contains(&name)
                && let Some(service) = self.by_name.get_mut(&name)
            {
                service.balancer.remove_worker(worker);
            }
        }
    }

    /// The agent spoke at `now`.
    pub(crate) const fn confirm(&mut self, now: Now) {
        self.confirmed_at = now;
    }

    /// The agent speaks to the leader alone, and every worker's spans say how old the tables are.
    pub(crate) fn share_confirmation(&mut self, leading: bool, now: Now) {
        if !leading {
            if let Ok((bytes, _)) = host::shared_data(keys::CONFIRMED)
                && let Ok(bytes) = <[u8; 8]>::try_from(bytes.as_slice())
            {
                self.confirmed_at = Now(u64::from_le_bytes(bytes)).min(now);
            }
        } else if self.confirmed_at != self.shared_confirmation {
            let bytes = self.confirmed_at.0.to_le_bytes();
            if host::set_shared_data(keys::CONFIRMED, &bytes, None).is_ok() {
                self.shared_confirmation = self.confirmed_at;
            }
        }
    }

    /// How long ago the tables were last confirmed, if they ever were.
    pub(crate) fn age(&self, now: Now) -> Option<Duration> {
        (self.confirmed_at > Now(0)).then(|| now.since(self.confirmed_at))
    }
}

/// The newest table of a service, by the frame of the whole one.
fn decode(name: &str, whole: &[u8]) -> Option<Table> {
    let read = |bytes: &[u8]| match Down::decode(bytes) {
        Ok(Down::Table(table)) if table.service == name => Some(table),
        _ => None,
    };
    let table = read(whole)?;
    let large = table.endpoints.len() >= Patch::LARGE;
    let patch = large.then(|| gathered(name)).flatten().filter(|it| it.from == table.version);
    patch.map_or(Some(table), |patch| read(&patch.apply(whole).ok()?))
}

/// Whether the table says something of the endpoint's breaker.
const fn is_told(endpoint: &Endpoint) -> bool {
    endpoint.opinion.is_some() || endpoint.force.is_some()
}
