//! What one VM is: the tables it decides by, its place among the workers, and its line to the agent.
//!
//! Everything here happens on ticks, queue callbacks and stream messages; requests only read what is
//! left in memory. Decisions come from the pure crates as values and are carried out here.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use indexmap::IndexMap;
use pintle_balance::{Dice, LoadEntry};
use pintle_breaker::{Need, Record, Ticket};
use pintle_contract::{
    Applied, Hello, Index, Lease, Load, Message, Note, Now, Report, Slot, Table, Transition, Up,
    Version,
};
use pintle_hostcalls::{self as host, Level, Queue, Status};
use pintle_policy::Config;
use pintle_sync::{Action, Effect, Election, Inbox, MAX_SLOTS, Step, Stream};
use pintle_trace::{Answer, Edits, Exporter};
use rand::{Rng, SeedableRng};

mod breakers;
mod notes;
mod spans;
mod stream;
mod tables;

use crate::counters::{Count, Counters};
use crate::keys;
use crate::service::Service;

/// Notes taken from the queue in one callback, at most; the next tick goes on.
const MAX_NOTES: usize = 4_096;
/// Messages that wait for the agent, at most; the oldest go first.
const MAX_OUTBOX: usize = 512;
/// Tries to write a breaker's record, at most. Each lost one means that another worker wrote.
const MAX_TRIES: usize = 16;
/// Ticks between reports, and between looks at the index in case a note was lost: one second.
const SLOW: u64 = 10;
/// Every so many reports, all services are told again, for an agent that has restarted.
const FULL_REPORT: u64 = 10;

pub(crate) type Shared = Rc<RefCell<Worker>>;

/// The state of one root context.
pub(crate) struct Worker {
    pub(crate) config: Rc<Config>,
    pub(crate) services: IndexMap<Rc<str>, Service>,
    pub(crate) counters: Counters,
    pub(crate) dice: Dice,
    pub(crate) edits: Edits,
    /// Whether the last request brought a trace context, as the next one then probably does.
    pub(crate) traced: bool,
    pub(crate) exporter: Option<Exporter>,
    /// The call that carries the exporter's batch.
    export_call: Option<u32>,
    /// When a table last came or the agent last said that nothing changed.
    pub(crate) confirmed_at: Now,
    told_confirmed: Now,
    /// The newest version among the tables.
    pub(crate) version: Version,
    told_version: Version,
    id: u64,
    vm_id: Vec<u8>,
    proxy: String,
    zone: String,
    place: Option<Place>,
    /// Queues of the other workers, by slot.
    queues: HashMap<u32, Queue>,
    /// Slots of the other live workers.
    others: BTreeSet<u32>,
    /// Of which services each of them told a load.
    heard: HashMap<u32, Vec<Rc<str>>>,
    election: Election,
    leader_slot: Option<u32>,
    stream: Stream,
    inbox: Option<Inbox>,
    /// Of the leadership that the inbox belongs to.
    inbox_fence: Option<u64>,
    /// Until it is made: what Envoy makes to try a configuration goes no further.
    starting: bool,
    index_dirty: bool,
    outbox: VecDeque<Vec<u8>>,
    ticks: u64,
}

struct Place {
    number: u32,
    queue: Queue,
}

/// A seed that differs from VM to VM: the standard library draws it from the host's entropy.
fn seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

impl Worker {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        let now = host::now();
        let text = |path| host::property(path).map(|b| String::from_utf8_lossy(&b).into_owned());
        // Zero stands for nobody, in a slot or a lease.
        let id = seed().max(1);
        let exporter = config.trace.as_ref().and_then(|trace| Exporter::new(trace, seed()));
        let mut worker = Self {
            services: IndexMap::new(),
            counters: Counters::default(),
            dice: Dice::seed_from_u64(seed()),
            edits: Edits::new(),
            traced: false,
            exporter,
            export_call: None,
            confirmed_at: Now(0),
            told_confirmed: Now(0),
            version: Version::default(),
            told_version: Version::default(),
            id,
            vm_id: host::property(keys::VM_ID).unwrap_or_default(),
            proxy: text(keys::NODE_ID).unwrap_or_default(),
            zone: text(keys::ZONE).unwrap_or_default(),
            place: None,
            queues: HashMap::new(),
            others: BTreeSet::new(),
            heard: HashMap::new(),
            election: Election::new(id),
            leader_slot: None,
            stream: Stream::default(),
            inbox: None,
            inbox_fence: None,
            starting: true,
            index_dirty: false,
            outbox: VecDeque::new(),
            ticks: 0,
            config,
        };
        if worker.config.agent.is_some() {
            // Tables that another VM has left: a reloaded VM and a changed configuration start with
            // them, before the first tick. Only reads, so the canary may do it too.
            worker.load_index(now);
        }
        worker.starting = false;
        worker
    }

    /// The service at this place.
    pub(crate) fn service(&self, at: usize) -> Option<&Service> {
        self.services.get_index(at).map(|(_, service)| service)
    }

    pub(crate) const fn ticks(&self) -> u64 {
        self.ticks
    }

    // === The tick ===

    pub(crate) fn tick(&mut self) {
        let now = host::now();
        self.ticks = self.ticks.wrapping_add(1);
        self.export(now);
        if self.config.agent.is_none() {
            return;
        }
        self.drain_notes(now);
        self.take_place(now);
        let leading = self.elect(now);
        self.run_stream(leading, now);
        if leading.is_none() {
            self.hand_over();
        }
        self.share_confirmation(leading.is_some(), now);
        self.run_breakers(now);
        if self.ticks.is_multiple_of(SLOW) {
            if leading.is_none() {
                self.load_index(now);
            }
            self.report(now);
        }
        self.flush_index(leading.is_some());
    }

    /// Renews the slot, or claims the first free one, and reads the others.
    fn take_place(&mut self, now: Now) {
        let held = self.place.as_ref().map(|place| place.number);
        let mut mine = None;
        let mut vacant = None;
        let mut live = BTreeSet::new();
        for number in 0..MAX_SLOTS {
            let (slot, cas) = match host::shared_data(&keys::slot(number)) {
                Ok((bytes, cas)) => (Slot::decode(&bytes).ok(), cas),
                Err(Status::NOT_FOUND) => {
                    vacant = vacant.or(Some((number, None)));
                    break;
                }
                Err(_) => return self.counters.add(Count::HostError),
            };
            if pintle_sync::is_free(slot.as_ref(), self.id, now) {
                if held == Some(number) {
                    mine = Some((number, Some(cas)));
                } else {
                    vacant = vacant.or(Some((number, Some(cas))));
                }
            } else if let Some(slot) = slot {
                live.insert(number);
                self.hear(number, &slot, now);
            }
        }
        let before = std::mem::replace(&mut self.others, live);
        if before.len() != self.others.len() {
            // The agent waits for as many workers as were said last: said before all had come, or
            // while one was gone, it would take a part of them for all.
            self.told_version = Version::default();
        }
        for number in before.difference(&self.others.clone()) {
            self.unhear(*number, &[]);
        }
        let leads = self.election.leads(now).is_some();
        self.flush_index(leads);
        for number in self.others.clone().difference(&before) {
            if leads {
                // It may have looked at the index just before a table came.
                let note = Note::Index(self.version).encode();
                self.tell(*number, &note);
            }
            self.tell_breakers(*number);
        }
        if mine.is_none() {
            self.place = None;
        }
        if let Some((number, cas)) = mine.or(vacant) {
            self.write_place(number, cas, now);
        }
        self.tell_applied();
    }

    fn write_place(&mut self, number: u32, cas: Option<host::Cas>, now: Now) {
        let key = keys::slot(number);
        // A key that nobody has written takes any CAS: make it first, then compete for it.
        let cas = cas.or_else(|| {
            host::set_shared_data(&key, b"", None).ok()?;
            let (bytes, cas) = host::shared_data(&key).ok()?;
            bytes.is_empty().then_some(cas)
        });
        let Some(cas) = cas else { return };
        let load =
            |(name, service): (&Rc<str>, &Service)| Some((name.to_string(), service.load(now)?));
        let load = self.services.iter().filter_map(load).collect();
        let slot = pintle_sync::renewed(self.id, load, now).encode();
        if host::set_shared_data(&key, &slot, Some(cas)).is_err() {
            self.place = None;
        } else if self.place.is_none() {
            match host::register_queue(&keys::queue(number)) {
                Ok(queue) => {
                    self.place = Some(Place { number, queue });
                    // What came before there was a queue to be told by.
                    self.load_index(now);
                }
                Err(_) => self.counters.add(Count::HostError),
            }
        }
    }

    /// Takes over what another worker says of the load.
    fn hear(&mut self, number: u32, slot: &Slot, now: Now) {
        let mut heard = Vec::with_capacity(slot.load.len());
        for (name, load) in &slot.load {
            let Some((name, _)) = self.services.get_key_value(name.as_str()) else { continue };
            let name = name.clone();
            let entry = |load: &Load| LoadEntry {
                key: load.endpoint,
                in_flight: load.in_flight,
                latency_us: load.latency_us,
                failures_milli: load.failures_milli,
            };
            let entries: Vec<LoadEntry> = load.iter().map(entry).collect();
            if let Some(service) = self.services.get_mut(&name) {
                service.balancer.set_remote_load(number, &entries, slot.at, now);
            }
            heard.push(name);
        }
        self.unhear(number, &heard);
        self.heard.insert(number, heard);
    }

    /// Forgets what a worker said of services that it does not speak of any more.
    fn unhear(&mut self, number: u32, still: &[Rc<str>]) {
        for name in self.heard.remove(&number).unwrap_or_default() {
            if !still.contains(&name)
                && let Some(service) = self.services.get_mut(&name)
            {
                service.balancer.remove_worker(number);
            }
        }
    }

    /// The agent speaks to the leader alone, and every worker's spans say how old the snapshot is.
    fn share_confirmation(&mut self, leading: bool, now: Now) {
        if !self.config.exports() {
            return;
        }
        if leading {
            if self.confirmed_at != self.told_confirmed {
                let bytes = self.confirmed_at.0.to_le_bytes();
                if host::set_shared_data(keys::CONFIRMED, &bytes, None).is_ok() {
                    self.told_confirmed = self.confirmed_at;
                }
            }
        } else if let Ok((bytes, _)) = host::shared_data(keys::CONFIRMED)
            && let Ok(bytes) = <[u8; 8]>::try_from(bytes.as_slice())
        {
            self.confirmed_at = Now(u64::from_le_bytes(bytes)).min(now);
        }
    }

    // === Leadership ===

    /// The fence under which this VM leads, if it does after this.
    fn elect(&mut self, now: Now) -> Option<u64> {
        let place = self.place.as_ref()?.number;
        let (current, cas) = match host::shared_data(keys::LEADER) {
            Ok((bytes, cas)) => (Lease::decode(&bytes).ok(), cas),
            Err(_) => {
                // Made empty first, so that the next tick can compete for it.
                let _ = host::set_shared_data(keys::LEADER, b"", None);
                return None;
            }
        };
        match self.election.decide(current.as_ref(), place, now) {
            Step::Follow => {}
            Step::Write(lease) => {
                let won = host::set_shared_data(keys::LEADER, &lease.encode(), Some(cas)).is_ok();
                self.election.written(lease, won);
            }
        }
        let leads = self.election.leads(now);
        // Whoever led before is gone, and what is put into its queue with it.
        let current = current.filter(|lease| pintle_sync::in_force(lease, now));
        self.leader_slot =
            if leads.is_some() { Some(place) } else { current.map(|lease| lease.slot) };
        // A lease that ran out and was renewed is the same leadership, with its stream in the middle of
        // whatever it was telling.
        if let Some(fence) = leads
            && self.inbox_fence.replace(fence) != Some(fence)
        {
            self.run_stream(None, now);
            self.inbox = Some(Inbox::resume(self.read_index().unwrap_or_default()));
        }
        leads
    }
}
