//! What one VM is: the tables it decides by, its place among the workers, and its line to the agent.
//!
//! Everything here happens on ticks, queue callbacks and stream messages; requests only read what is
//! left in memory. Decisions come from the pure crates as values and are carried out here.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;

use pintle_balance::{Dice, LoadEntry};
use pintle_breaker::{Need, Record, Ticket};
use pintle_host::{self as host, Level, Queue, Status};
use pintle_policy::Config;
use pintle_snapshot::{
    Applied, Hello, Index, Lease, Load, Message, Note, Now, Report, Slot, Table, Transition, Up,
    Version,
};
use pintle_sync::{Action, Effect, Election, Inbox, MAX_SLOTS, Step, Stream};
use pintle_trace::{Answer, Edits, Exporter};
use rand::{Rng, SeedableRng};

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
    pub(crate) services: HashMap<Rc<str>, Service>,
    pub(crate) counters: Counters,
    pub(crate) dice: Dice,
    pub(crate) edits: Edits,
    pub(crate) exporter: Option<Exporter>,
    /// The call that carries the exporter's batch.
    export_call: Option<u32>,
    /// When a table last came or the agent last said that nothing changed.
    pub(crate) confirmed_at: Now,
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
            services: HashMap::new(),
            counters: Counters::default(),
            dice: Dice::seed_from_u64(seed()),
            edits: Edits::new(),
            exporter,
            export_call: None,
            confirmed_at: Now(0),
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
        worker
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
        if self.election.leads(now).is_some() {
            // It may have looked at the index just before a table came.
            self.flush_index(true);
            let note = Note::Index(self.version).encode();
            for number in self.others.clone().difference(&before) {
                self.tell(*number, &note);
            }
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
        let led = self.election.leads(now).is_some();
        match self.election.decide(current.as_ref(), place, now) {
            Step::Follow => {}
            Step::Write(lease) => {
                let won = host::set_shared_data(keys::LEADER, &lease.encode(), Some(cas)).is_ok();
                self.election.written(lease, won);
            }
        }
        let leads = self.election.leads(now);
        self.leader_slot =
            if leads.is_some() { Some(place) } else { current.map(|lease| lease.slot) };
        if leads.is_some() && !led {
            self.inbox = Some(Inbox::resume(self.read_index().unwrap_or_default()));
        }
        leads
    }

    // === The stream ===

    fn run_stream(&mut self, leading: Option<u64>, now: Now) {
        let Some(cluster) = self.config.agent.clone() else { return };
        match self.stream.tick(leading.is_some(), now, self.dice.next_u32()) {
            Action::Nothing => {}
            Action::Cancel(token) => {
                let _ = host::cancel_grpc(token);
            }
            Action::Open => {
                let opened = host::open_grpc_stream(&cluster, "pintle.v1.Sync", "Watch");
                self.stream.opened(opened.ok(), now, self.dice.next_u32());
                let inbox = self.inbox.get_or_insert_default();
                inbox.begin();
                if let (Ok(token), Some(fence)) = (opened, leading) {
                    let hello = Hello {
                        proxy: self.proxy.clone(),
                        worker: self.id,
                        fence,
                        have: inbox.version(),
                    };
                    let _ = host::send_grpc_message(token, &Up::Hello(hello).encode());
                    self.told_version = Version::default();
                    self.tell_applied();
                }
            }
        }
        self.flush_outbox();
    }

    /// A message of the agent's.
    pub(crate) fn on_message(&mut self, token: u32, size: usize) {
        let now = host::now();
        if !self.stream.heard(token, now) {
            return;
        }
        let Ok(bytes) = host::grpc_message(size) else {
            return self.counters.add(Count::HostError);
        };
        self.confirmed_at = now;
        let Some(inbox) = &mut self.inbox else { return };
        match inbox.frame(&bytes) {
            Err(refused) => {
                self.counters.add(Count::FrameRejected);
                host::log(
                    Level::Warn,
                    &format!("pintle: frame from the agent refused: {}", refused.reason()),
                );
            }
            Ok(effects) => {
                for effect in effects {
                    self.carry_out(effect, &bytes, now);
                }
            }
        }
    }

    pub(crate) fn on_stream_closed(&mut self, token: u32) {
        self.stream.closed(token, host::now(), self.dice.next_u32());
    }

    fn carry_out(&mut self, effect: Effect, frame: &[u8], now: Now) {
        match effect {
            Effect::Store(table) => {
                if host::set_shared_data(&keys::table(&table.service), frame, None).is_err() {
                    self.counters.add(Count::HostError);
                }
                self.index_dirty = true;
                let name = table.service.clone();
                self.take_table(table, now);
                self.tell_others(&Note::Table(name));
                self.tell_applied();
            }
            Effect::Remove(name) => {
                if host::set_shared_data(&keys::table(&name), b"", None).is_err() {
                    self.counters.add(Count::HostError);
                }
                self.index_dirty = true;
                self.services.remove(name.as_str());
                self.tell_others(&Note::Table(name));
            }
            Effect::Complete(version) => {
                self.version = self.version.max(version);
                self.flush_index(true);
                self.tell_applied();
            }
        }
    }

    // === Tables ===

    fn read_index(&mut self) -> Option<Index> {
        let (bytes, _) = host::shared_data(keys::INDEX).ok()?;
        let index = Index::decode(&bytes);
        if index.is_err() && !bytes.is_empty() {
            self.counters.add(Count::SharedRejected);
        }
        index.ok()
    }

    fn flush_index(&mut self, leading: bool) {
        if let (true, true, Some(inbox)) = (leading, self.index_dirty, &self.inbox) {
            self.index_dirty = false;
            if host::set_shared_data(keys::INDEX, &inbox.index().encode(), None).is_err() {
                self.counters.add(Count::HostError);
            }
        }
    }

    /// Loads what the index names and this VM has not, and drops what it does not name.
    fn load_index(&mut self, now: Now) {
        let Some(index) = self.read_index() else { return };
        for (name, version) in &index.services {
            if self.services.get(name.as_str()).is_none_or(|held| held.version < *version) {
                self.load_table(name, now);
            }
        }
        let named = |name: &Rc<str>| {
            index.services.binary_search_by(|(other, _)| other.as_str().cmp(name)).is_ok()
        };
        self.services.retain(|name, _| named(name));
        self.version = self.version.max(index.version);
        self.tell_applied();
    }

    fn load_table(&mut self, name: &str, now: Now) {
        match host::shared_data(&keys::table(name)) {
            Ok((bytes, _)) if bytes.is_empty() => {
                self.services.remove(name);
            }
            Ok((bytes, _)) => match pintle_snapshot::Down::decode(&bytes) {
                Ok(pintle_snapshot::Down::Table(table)) if table.service == name => {
                    self.take_table(table, now);
                }
                _ => self.counters.add(Count::SharedRejected),
            },
            Err(Status::NOT_FOUND) => {}
            Err(_) => self.counters.add(Count::HostError),
        }
    }

    /// Makes a table the one that requests see. Older than what is held: nothing.
    fn take_table(&mut self, mut table: Table, now: Now) {
        if self
            .services
            .get(table.service.as_str())
            .is_some_and(|held| table.version < held.version)
        {
            return;
        }
        let before = table.endpoints.len();
        let addresses = &self.config.addresses;
        table.endpoints.retain(|endpoint| addresses.check(endpoint.address).is_ok());
        let refused = before.saturating_sub(table.endpoints.len());
        self.counters.add_many(Count::AddressRejected, refused as u64);

        let policy = match self.config.policy(&table.service, &table.policy) {
            Ok(policy) => Some(policy),
            Err(error) => {
                self.counters.add(Count::PolicyRejected);
                host::log(
                    Level::Warn,
                    &format!("pintle: policy of {} refused: {error}", table.service),
                );
                None
            }
        };
        self.version = self.version.max(table.version);
        let name: Rc<str> = table.service.as_str().into();
        let fresh = match self.services.get_mut(&name) {
            Some(service) => service.update(&table, policy, &self.zone, now),
            None => {
                let policy = policy.unwrap_or_else(|| self.config.default_policy.clone());
                let service = Service::new(&table, policy, &self.zone, self.dice.next_u64(), now);
                self.services.insert(name.clone(), service);
                (0..table.endpoints.len()).collect()
            }
        };
        if self.config.breaker {
            for index in fresh {
                self.read_breaker(&name, index, now);
            }
            self.sync_due(&name, now);
        }
    }

    // === Breakers ===

    fn run_breakers(&mut self, now: Now) {
        if !self.config.breaker {
            return;
        }
        let names: Vec<Rc<str>> = self.services.keys().cloned().collect();
        for name in names {
            self.sync_due(&name, now);
        }
    }

    fn sync_due(&mut self, name: &Rc<str>, now: Now) {
        let due = self.services.get_mut(name).map(|service| service.due(now)).unwrap_or_default();
        for index in due {
            self.sync_breaker(name, index, false, now);
        }
        if let Some(service) = self.services.get_mut(name) {
            service.judge(None, now);
            service.advise(now);
        }
    }

    /// Reads a breaker's record because another worker, or an earlier VM, wrote it.
    fn read_breaker(&mut self, name: &Rc<str>, index: usize, now: Now) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(id) = service.balancer.id_of(index) else { return };
        let record = match host::shared_data(&keys::breaker(name, id)) {
            Ok((bytes, _)) if !bytes.is_empty() => Record::decode(&bytes),
            _ => return,
        };
        let Ok(record) = record else { return self.counters.add(Count::SharedRejected) };
        let need = service.mirror_mut(index).map(|mirror| mirror.refresh(record, now));
        service.judge(Some(index), now);
        if need == Some(Need::Sync) {
            self.sync_breaker(name, index, false, now);
        }
    }

    /// Brings what this worker saw of an endpoint into the shared record, and with `claim` takes a
    /// probe slot. Gives up after some lost races; what is pending stays pending.
    pub(crate) fn sync_breaker(
        &mut self,
        name: &Rc<str>,
        index: usize,
        claim: bool,
        now: Now,
    ) -> Option<Ticket> {
        let service = self.services.get_mut(name)?;
        let id = service.balancer.id_of(index)?.to_owned();
        let key = keys::breaker(name, &id);
        let mut bytes = Vec::new();
        for _ in 0..MAX_TRIES {
            let (stored, cas) = match host::shared_data(&key) {
                Ok(read) => read,
                Err(Status::NOT_FOUND) => {
                    // A key that nobody has written takes any CAS: make it first.
                    if host::set_shared_data(&key, b"", None).is_err() {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            let fresh = if stored.is_empty() {
                None
            } else {
                let record = Record::decode(&stored).ok();
                if record.is_none() {
                    self.counters.add(Count::SharedRejected);
                }
                record
            };
            let policy = &service.policy.breaker;
            let random = self.dice.next_u32();
            let mirror = service.mirror(index)?;
            let merged = if claim {
                mirror.claim(fresh, policy, now, random)
            } else {
                mirror.merge(fresh, policy, now, random)
            };
            if merged.changed {
                bytes.clear();
                merged.record.encode(&mut bytes);
                match host::set_shared_data(&key, &bytes, Some(cas)) {
                    Ok(()) => {}
                    Err(Status::CAS_MISMATCH) => continue,
                    Err(_) => break,
                }
            }
            let (wake, ticket) = (merged.wake, merged.ticket);
            let transitions = service.mirror_mut(index)?.commit(merged);
            service.judge(Some(index), now);
            if wake {
                self.tell_others(&Note::Breaker((name.to_string(), id.clone())));
            }
            for transition in transitions {
                self.tell_transition(name, &id, &transition);
            }
            return ticket;
        }
        self.counters.add(Count::HostError);
        None
    }

    fn tell_transition(&mut self, service: &str, id: &str, change: &pintle_breaker::Transition) {
        if change.to == pintle_breaker::State::Open {
            self.counters.add(Count::BreakerOpened);
        }
        let told = Transition {
            service: service.to_owned(),
            endpoint: id.to_owned(),
            from: state(change.from),
            to: state(change.to),
            reason: change.reason.to_string(),
            observed: change.is_for_the_fleet(),
            at: change.at,
            until: change.until.unwrap_or_default(),
            trips: change.trips,
        };
        host::log(
            Level::Warn,
            &format!(
                "pintle: breaker of {service}/{id}: {} -> {}: {}",
                told.from.as_str(),
                told.to.as_str(),
                told.reason
            ),
        );
        self.tell_agent(&Up::Transition(told));
    }

    // === Notes between workers, and words for the agent ===

    pub(crate) fn on_queue(&mut self) {
        self.drain_notes(host::now());
    }

    fn drain_notes(&mut self, now: Now) {
        let Some(queue) = self.place.as_ref().map(|place| place.queue) else { return };
        // A burst names the same table many times; it is loaded once.
        let mut tables = BTreeSet::new();
        for _ in 0..MAX_NOTES {
            match host::dequeue(queue) {
                Ok(Some(bytes)) => match Note::decode(&bytes) {
                    Ok(Note::Table(name)) => {
                        tables.insert(name);
                    }
                    Ok(Note::Breaker((name, id))) => {
                        let name: Rc<str> = name.into();
                        let service = self.services.get(&name);
                        if let Some(index) = service.and_then(|s| s.balancer.index_of(&id)) {
                            self.read_breaker(&name, index, now);
                        }
                    }
                    Ok(Note::Forward(message)) => self.send_up(message),
                    Ok(Note::Index(_)) => self.load_index(now),
                    Err(_) => self.counters.add(Count::SharedRejected),
                },
                Ok(None) => break,
                Err(_) => {
                    self.counters.add(Count::HostError);
                    break;
                }
            }
        }
        for name in tables {
            self.load_table(&name, now);
        }
        self.tell_applied();
    }

    fn tell_others(&mut self, note: &Note) {
        let bytes = note.encode();
        for number in self.others.clone() {
            self.tell(number, &bytes);
        }
    }

    fn tell(&mut self, number: u32, bytes: &[u8]) {
        let queue = match self.queues.get(&number) {
            Some(queue) => *queue,
            None => match host::resolve_queue(&self.vm_id, &keys::queue(number)) {
                Ok(queue) => {
                    self.queues.insert(number, queue);
                    queue
                }
                Err(_) => return,
            },
        };
        if host::enqueue(queue, bytes).is_err() {
            self.queues.remove(&number);
            self.counters.add(Count::HostError);
        }
    }

    /// Tells the agent which version this worker holds, when that is news.
    fn tell_applied(&mut self) {
        if self.version <= self.told_version || self.place.is_none() {
            return;
        }
        self.told_version = self.version;
        let workers = u32::try_from(self.others.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.tell_agent(&Up::Applied(Applied { worker: self.id, workers, version: self.version }));
    }

    /// Sends up the stream if this VM leads, else through the leader's queue.
    fn tell_agent(&mut self, message: &Up) {
        let bytes = message.encode();
        match (self.leader_slot, &self.place) {
            (Some(leader), Some(place)) if leader != place.number => {
                self.tell(leader, &Note::Forward(bytes).encode());
            }
            _ => self.send_up(bytes),
        }
    }

    fn send_up(&mut self, message: Vec<u8>) {
        if self.outbox.len() >= MAX_OUTBOX {
            self.outbox.pop_front();
            self.counters.add(Count::ReportDropped);
        }
        self.outbox.push_back(message);
        self.flush_outbox();
    }

    fn flush_outbox(&mut self) {
        let Some(token) = self.stream.token() else { return };
        while let Some(message) = self.outbox.pop_front() {
            if host::send_grpc_message(token, &message).is_err() {
                self.outbox.push_front(message);
                return;
            }
        }
    }

    fn report(&mut self, now: Now) {
        let all = (self.ticks / SLOW).is_multiple_of(FULL_REPORT);
        let services: Vec<_> = self
            .services
            .iter_mut()
            .filter_map(|(name, service)| service.report(name, all, now))
            .collect();
        let report = Report {
            worker: self.id,
            version: self.version,
            services,
            counters: self.counters.report(),
        };
        self.tell_agent(&Up::Report(report));
    }

    // === Spans ===

    fn export(&mut self, now: Now) {
        let (Some(exporter), Some(trace)) = (&mut self.exporter, &self.config.trace) else {
            return;
        };
        let Some(export) = trace.export() else { return };
        let before = exporter.counts();
        if let Some(batch) = exporter.poll(now) {
            let (service, method) = (pintle_trace::SERVICE, pintle_trace::METHOD);
            match host::grpc_call(&export.cluster, service, method, batch, export.timeout) {
                Ok(token) => self.export_call = Some(token),
                Err(_) => exporter.on_answer(Answer::Retry, now),
            }
        }
        let after = exporter.counts();
        self.count_spans(before, after);
    }

    /// The collector's answer to a batch.
    pub(crate) fn on_call_answer(&mut self, token: u32, status: u32, size: usize) {
        if self.export_call != Some(token) {
            return;
        }
        self.export_call = None;
        let response =
            if status == 0 { host::grpc_message(size).unwrap_or_default() } else { Vec::new() };
        let Some(exporter) = &mut self.exporter else { return };
        let before = exporter.counts();
        let now = host::now();
        exporter.on_answer(Answer::from_grpc(status, &response), now);
        let after = exporter.counts();
        self.count_spans(before, after);
        // The next full batch at once: with one a tick, more than 5,000 spans a second would be lost.
        if status == 0 {
            self.export(now);
        }
    }

    pub(crate) fn count_spans(
        &mut self,
        before: pintle_trace::Counts,
        after: pintle_trace::Counts,
    ) {
        let lost =
            |c: pintle_trace::Counts| c.dropped.saturating_add(c.failed).saturating_add(c.rejected);
        self.counters.add_many(Count::SpanDropped, lost(after).saturating_sub(lost(before)));
        self.counters.add_many(Count::SpanExported, after.exported.saturating_sub(before.exported));
    }
}

const fn state(state: pintle_breaker::State) -> pintle_snapshot::BreakerState {
    match state {
        pintle_breaker::State::Closed => pintle_snapshot::BreakerState::Closed,
        pintle_breaker::State::Open => pintle_snapshot::BreakerState::Open,
        pintle_breaker::State::HalfOpen => pintle_snapshot::BreakerState::HalfOpen,
    }
}
