//! One VM under one plugin configuration: its parts, and the order in which they work.
//!
//! Everything here happens on ticks, queue callbacks and stream messages; requests only use what is
//! left in memory ([`Local`]). Each part owns its fields and says which keys of shared data are its
//! own; values pass between them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

use pintle_balance::Dice;
use pintle_breaker::Ticket;
use pintle_contract::{Applied, Note, Now, Patch, Report, Schema, Slot, Up};
use pintle_hostcalls::{self as host, Level};
use pintle_policy::Config;
use pintle_sync::{Effect, TICK};
use rand::{Rng as _, SeedableRng as _};

mod amendments;
mod breakers;
mod leadership;
mod membership;
mod probes;
mod services;
mod tracer;
mod turn;
mod uplink;
mod wants;

use amendments::Amendments;
use breakers::{Breakers, Outgoing};
use leadership::{Leadership, Role};
use membership::Membership;
pub(crate) use probes::Probe;
use probes::Probes;
use services::Replaced;
pub(crate) use services::Services;
pub(crate) use tracer::Tracer;
use turn::Turn;
use uplink::Uplink;
pub(crate) use wants::Wants;

use crate::counters::{Count, Counters};
use crate::service::Service;
use crate::token::Token;

/// Ticks between reports, and between looks at the index in case a note was lost: one second.
const SLOW: u64 = 10;
/// After so many ticks without a request only every second one is used: what a tick reads has gone
/// cold by then, and ten a second cost a hundredth of a core.
const CALM: u64 = 10;
const REST: u64 = 2;
/// While a ring or table is built ticks come so often; so many in turn, at most, are a slice of it
/// and no more. Ten short ones delay a request less than one that is as long.
const BUILDING: Duration = Duration::from_millis(10);
const SHORT: u32 = 9;
/// Every so many reports, all services are told again, for an agent that has restarted.
const FULL_REPORT: u64 = 10;

/// Notes taken from the queue in one callback: Envoy makes one for each, and requests come between
/// them.
const NOTES: usize = 64;
/// With a tick, should callbacks have been lost.
const MAX_NOTES: usize = 1_024;

pub(crate) type Shared = Rc<RefCell<Worker>>;

/// The state of one root context.
pub(crate) struct Worker {
    pub(crate) local: Local,
    membership: Membership,
    leadership: Leadership,
    amendments: Amendments,
    uplink: Uplink,
    ticks: u64,
    /// Ticks in turn before which no request had come.
    calm: u64,
    /// When the last whole tick was, and short ones since; `None` where all are whole.
    short: Option<(Now, u32)>,
    /// When this VM last looked around.
    looked_at: Now,
    /// Whether there is nothing that the next tick should do at once.
    settled: bool,
}

/// What requests use of their worker.
pub(crate) struct Local {
    pub(crate) config: Rc<Config>,
    pub(crate) services: Services,
    pub(crate) wants: Wants,
    pub(crate) tracer: Tracer,
    pub(crate) counters: Counters,
    pub(crate) rng: Dice,
    pub(crate) probes: Probes,
    /// The endpoints of the last request that got any, in Envoy's form.
    pub(crate) list: String,
    /// The clock, as a request or a tick has last read it: two ticks old at most.
    pub(crate) clock: Now,
    /// What who asks for the debug header must bring.
    pub(crate) token: Option<Token>,
    breakers: Breakers,
}

impl Local {
    fn new(config: Rc<Config>) -> Self {
        Self {
            services: Services::new(&config),
            wants: Wants::default(),
            tracer: Tracer::new(&config),
            counters: Counters::default(),
            rng: Dice::seed_from_u64(RandomState::new().hash_one(2u8)),
            probes: Probes::default(),
            list: String::new(),
            clock: Now(0),
            breakers: Breakers::new(config.breaker),
            token: config.debug.as_ref().and_then(Token::read),
            config,
        }
    }

    /// Brings what this worker saw of an endpoint into its breaker's shared record.
    pub(crate) fn sync_breaker(&mut self, name: &Rc<str>, index: usize, now: Now) {
        let Self { services, breakers, rng, counters, .. } = self;
        breakers.sync(services, name, index, false, &mut Turn { now, rng, counters });
    }

    /// Takes a probe slot of an endpoint's breaker, if one is owed and no other worker was faster.
    pub(crate) fn claim_probe(&mut self, name: &Rc<str>, index: usize, now: Now) -> Option<Ticket> {
        let Self { services, breakers, rng, counters, .. } = self;
        breakers.sync(services, name, index, true, &mut Turn { now, rng, counters })
    }

    /// Where a service is among all, as long as none of them goes, and its name; of one that is
    /// asked for for the first time, the table is read now.
    pub(crate) fn find(&mut self, name: &str) -> Option<(usize, Rc<str>)> {
        let found = self.services.find(name);
        if found.is_none() && self.services.is_unread(name) {
            self.load_table(name, host::now());
            return self.services.find(name);
        }
        found
    }

    /// Whether any service has a table, or could get one when it is asked for.
    pub(crate) fn has_services(&self) -> bool {
        !self.services.is_empty() || self.wants.is_open()
    }

    fn load_index(&mut self, now: Now) {
        let Self { config, services, breakers, rng, counters, .. } = self;
        let turn = &mut Turn { now, rng, counters };
        for replaced in services.load_index(config, turn) {
            breakers.follow_table(services, &replaced, turn);
        }
    }

    fn load_table(&mut self, name: &str, now: Now) {
        let Self { config, services, rng, counters, .. } = self;
        let replaced = services.load(name, config, &mut Turn { now, rng, counters });
        self.follow(replaced, now);
    }

    fn amend(&mut self, patch: &Patch, now: Now) {
        let Self { config, services, rng, counters, .. } = self;
        let replaced = services.amend(patch, config, &mut Turn { now, rng, counters });
        self.follow(replaced, now);
    }

    fn hear_of(&mut self, name: &str, now: Now) {
        let Self { config, services, rng, counters, .. } = self;
        let replaced = services.heard_of(name, config, &mut Turn { now, rng, counters });
        self.follow(replaced, now);
    }

    fn follow(&mut self, replaced: Option<Replaced>, now: Now) {
        let Self { services, breakers, rng, counters, .. } = self;
        if let Some(replaced) = replaced {
            breakers.follow_table(services, &replaced, &mut Turn { now, rng, counters });
        }
    }
}

impl Worker {
    pub(crate) fn new(config: Rc<Config>) -> Self {
        let membership = Membership::new();
        let mut worker = Self {
            leadership: Leadership::new(membership.id()),
            membership,
            amendments: Amendments::default(),
            uplink: Uplink::new(),
            ticks: 0,
            calm: 0,
            short: None,
            looked_at: Now(0),
            settled: false,
            local: Local::new(config),
        };
        if worker.local.config.agent.is_some() {
            // Tables that another VM has left: a reloaded VM and a changed configuration start with
            // them, before the first tick. Only reads, so the canary may do it too.
            worker.local.load_index(host::now());
        }
        worker.local.breakers.start();
        worker
    }

    pub(crate) const fn ticks(&self) -> u64 {
        self.ticks
    }

    // === The tick ===

    /// Whether this tick only goes on with rings and tables, which it then has. Whole ones are as
    /// often as ever: fewer are short where a busy machine has ticks come late, and where the clock
    /// has stepped back they are counted.
    pub(crate) fn is_short_tick(&mut self) -> bool {
        let Some((whole_at, count)) = &mut self.short else { return false };
        let now = host::now();
        if *count == SHORT || now.since(*whole_at).saturating_add(BUILDING / 2) >= TICK {
            self.short = Some((now, 0));
            return false;
        }
        *count += 1;
        self.local.services.build_tables();
        true
    }

    pub(crate) fn tick(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if self.rests() {
            return;
        }
        let now = host::now();
        self.local.clock = now;
        self.looked_at = now;
        self.export(now);
        let Some(cluster) = self.local.config.agent.clone() else { return };
        self.read_notes(MAX_NOTES, now);
        let peers = self.join(now);
        let role = self.leadership.elect(self.membership.slot(), now, &mut self.local.counters);
        let leading = role.fence().is_some();
        if !matches!(role, Role::Leader { new: false, .. }) {
            self.amendments.clear();
        }
        self.run_uplink(&cluster, role, &peers, now);
        if !leading {
            self.hand_over();
        }
        self.look_for_wants(leading);
        if self.local.config.exports() {
            self.local.services.share_confirmation(leading, now);
        }
        self.run_breakers(now);
        self.local.services.find_building();
        self.local.services.build_tables();
        self.set_period(now);
        if self.ticks.is_multiple_of(SLOW) {
            if leading {
                self.amendments.settle(&mut self.local.counters);
            } else {
                self.load_index(now);
            }
            self.report(now);
        }
        self.leadership.write_index(leading, &mut self.local.counters);
        self.settled = !leading || self.uplink.is_open();
    }

    /// Whether this tick is left out, because nobody has asked here for a while.
    fn rests(&mut self) -> bool {
        let asked = self.local.clock != self.looked_at;
        self.looked_at = self.local.clock;
        self.calm = if asked { 0 } else { self.calm.saturating_add(1) };
        self.settled && self.calm > CALM && !self.ticks.is_multiple_of(REST)
    }

    /// Ticks come more often while a ring or table is built.
    fn set_period(&mut self, now: Now) {
        let building = self.local.services.is_building();
        if building != self.short.is_some() {
            let period = if building { BUILDING } else { TICK };
            if host::set_tick_period(period).is_ok() {
                self.short = building.then_some((now, 0));
            }
        }
    }

    fn export(&mut self, now: Now) {
        let Local { tracer, config, counters, .. } = &mut self.local;
        tracer.export(config, now, counters);
    }

    /// Renews this VM's slot, and takes over what the others' say, which it returns.
    fn join(&mut self, now: Now) -> Vec<(u32, Slot)> {
        let Local { services, counters, .. } = &mut self.local;
        let Some(round) = self.membership.renew(now, counters) else {
            return Vec::new();
        };
        if !round.peers.is_empty() {
            let all = self.ticks.is_multiple_of(SLOW);
            let load = |(name, service): (&Rc<str>, &mut Service)| {
                Some((name.to_string(), service.load(now, all)?))
            };
            let load = services.iter_mut().filter_map(load).collect();
            self.membership.tell_load(load, counters);
        }
        for (number, slot) in &round.peers {
            let load = Membership::load_of(*number, slot, &mut self.local.counters);
            for (name, _) in &load {
                // In use there, it may be here with the next request: what is learned there counts
                // then.
                self.local.find(name);
            }
            self.local.services.set_remote_load(*number, &load, now);
        }
        let Local { services, counters, .. } = &mut self.local;
        for number in &round.left {
            services.remove_remote_load(*number);
        }
        if !(round.joined.is_empty() && round.left.is_empty()) {
            // The agent waits for as many workers as were said last: said before all had come, or
            // while one was gone, it would take a part of them for all.
            self.uplink.tell_again();
        }
        let leads = self.leadership.leads(now);
        self.leadership.write_index(leads, counters);
        if !round.joined.is_empty() {
            // They may have looked at the index just before a table came.
            let index = leads.then(|| Note::Index(services.version()));
            let notes: Vec<_> = index.into_iter().chain(Breakers::unquiet(services)).collect();
            for number in &round.joined {
                for note in &notes {
                    self.membership.notify(*number, note, counters);
                }
            }
        }
        if round.registered {
            self.local.load_index(now);
        }
        self.tell_applied();
        round.peers
    }

    fn run_uplink(&mut self, cluster: &str, role: Role, peers: &[(u32, Slot)], now: Now) {
        match role {
            Role::Follower => return self.uplink.stop(now),
            Role::Leader { new: true, .. } => self.uplink.stop(now),
            Role::Leader { .. } => {}
        }
        if !self.leadership.is_alone(peers, now) {
            return;
        }
        let opened = self.uplink.run(cluster, now, self.local.rng.next_u32());
        if let (true, Some(fence)) = (opened, role.fence()) {
            let have = self.leadership.begin_stream();
            self.uplink.greet(self.membership.id(), fence, have);
            self.tell_applied();
        }
        self.uplink.flush();
    }

    fn run_breakers(&mut self, now: Now) {
        self.local.settle_streams(now);
        let Local { services, breakers, rng, counters, .. } = &mut self.local;
        breakers.run(services, &mut Turn { now, rng, counters });
        self.deliver();
    }

    fn load_index(&mut self, now: Now) {
        self.local.load_index(now);
        self.tell_applied();
    }

    fn report(&mut self, now: Now) {
        let all = (self.ticks / SLOW).is_multiple_of(FULL_REPORT);
        let Local { services, counters, .. } = &mut self.local;
        let version = services.version();
        let report = |(name, service): (&Rc<str>, &mut Service)| service.report(name, all, now);
        let services = services.iter_mut().filter_map(report).collect();
        let counters = counters.report();
        let worker = self.membership.id();
        self.tell_agent(&Up::Report(Report { worker, version, services, counters }));
    }

    // === Other callbacks ===

    /// Another worker put a note into this one's queue.
    pub(crate) fn on_queue(&mut self) {
        self.read_notes(NOTES, host::now());
    }

    fn read_notes(&mut self, most: usize, now: Now) {
        // A burst names the same table many times; it is loaded once.
        let mut tables = BTreeSet::new();
        for note in self.membership.notes(most, &mut self.local.counters) {
            match note {
                Note::Table(name) => {
                    tables.insert(name);
                }
                Note::Breaker((name, id)) => self.read_breaker(name.into(), &id, now),
                Note::Forward(message) => self.uplink.send(message, &mut self.local.counters),
                Note::Index(_) => self.load_index(now),
            }
        }
        for name in tables {
            self.local.hear_of(&name, now);
            self.local.wants.answered(&name);
        }
        self.tell_applied();
        self.deliver();
    }

    fn read_breaker(&mut self, name: Rc<str>, id: &str, now: Now) {
        // In use in another worker, it may be here with the next request.
        self.local.find(&name);
        let Local { services, breakers, rng, counters, .. } = &mut self.local;
        let index = services.get(&name).and_then(|service| service.balancer.index_of(id));
        if let Some(index) = index {
            breakers.read(services, &name, index, &mut Turn { now, rng, counters });
        }
    }

    /// A message came on a stream.
    pub(crate) fn on_message(&mut self, token: u32, size: usize) {
        let now = host::now();
        if !self.uplink.heard(token, now) {
            return;
        }
        let Ok(frame) = host::grpc_message(size) else {
            return self.local.counters.add(Count::HostError);
        };
        self.local.services.confirm(now);
        match self.leadership.receive(&frame) {
            Err(refused) => {
                self.local.counters.add(Count::FrameRejected);
                if let Some(count) = self.uplink.refused() {
                    let reason = refused.reason();
                    let text = format!("pintle: frame from the agent refused: {reason} ({count})");
                    host::log(Level::Warn, &text);
                }
            }
            Ok(effects) => {
                if self.uplink.learn(&frame) {
                    self.say_wants();
                }
                for effect in effects {
                    self.apply(effect, &frame, now);
                }
            }
        }
        self.deliver();
    }

    fn apply(&mut self, effect: Effect, frame: &[u8], now: Now) {
        let note = match effect {
            Effect::Store(table) => {
                let name = table.service.clone();
                self.store(&name, frame);
                if table.endpoints.len() >= Patch::LARGE || self.amendments.has(&name) {
                    self.amendments.forget(&name, &mut self.local.counters);
                }
                let Local { config, services, rng, counters, .. } = &mut self.local;
                let replaced = services.came(table, config, &mut Turn { now, rng, counters });
                self.local.follow(replaced, now);
                Some(Note::Table(name))
            }
            Effect::Amend(patch) => {
                if !self.amendments.add(&patch, &mut self.local.counters) {
                    return self.ask_anew(&patch.service, now);
                }
                self.leadership.change_index();
                self.local.amend(&patch, now);
                Some(Note::Table(patch.service))
            }
            Effect::Lost(name) => return self.ask_anew(&name, now),
            Effect::Remove(name) => {
                self.store(&name, b"");
                if self.amendments.has(&name) {
                    self.amendments.forget(&name, &mut self.local.counters);
                }
                self.local.services.remove(&name);
                // No table says so.
                self.local.services.reach(self.leadership.version());
                Some(Note::Table(name))
            }
            Effect::Absent(name) => Some(Note::Table(name)),
            Effect::Complete(version) => {
                let news = self.local.services.reach(version);
                if news {
                    self.leadership.change_index();
                }
                self.leadership.write_index(true, &mut self.local.counters);
                // Without any table this is all that the others hear of.
                news.then(|| Note::Index(self.local.services.version()))
            }
        };
        if let Some(note) = note {
            if let Note::Table(name) = &note {
                self.local.wants.answered(name);
            }
            self.membership.notify_all(&note, &mut self.local.counters);
        }
        self.tell_applied();
    }

    /// The next stream begins as if nothing were held.
    fn ask_anew(&mut self, name: &str, now: Now) {
        self.local.counters.add(Count::FrameRejected);
        self.leadership.forget(name);
        self.uplink.stop(now);
    }

    fn store(&mut self, name: &str, frame: &[u8]) {
        if Services::store(name, frame).is_err() {
            self.local.counters.add(Count::HostError);
        }
        self.leadership.change_index();
    }

    /// A stream has ended.
    pub(crate) fn on_stream_closed(&mut self, token: u32, status: u32) {
        self.uplink.closed(token, status, host::now(), self.local.rng.next_u32());
        if !self.uplink.is_lazy() && !self.leadership.is_lazy(self.membership.slot()) {
            self.local.wants.set_open(false);
        }
    }

    /// The collector answered a batch of spans.
    pub(crate) fn on_call_answer(&mut self, token: u32, status: u32, size: usize) {
        let Local { tracer, config, counters, .. } = &mut self.local;
        tracer.on_answer((token, status, size), config, host::now(), counters);
    }

    // === Out of this VM ===

    /// Sends what the breakers have to tell; at the end of whatever may have changed one.
    pub(crate) fn deliver(&mut self) {
        for message in self.local.breakers.take_outgoing() {
            match message {
                Outgoing::Workers(note) => {
                    self.membership.notify_all(&note, &mut self.local.counters);
                }
                Outgoing::Agent(message) => self.tell_agent(&message),
            }
        }
        if self.local.wants.is_open() {
            self.ask();
        }
    }

    /// Tells the agent which version this worker holds, when that is news.
    fn tell_applied(&mut self) {
        let version = self.local.services.version();
        if self.membership.slot().is_some() && self.uplink.is_news(version) {
            let (worker, workers) = (self.membership.id(), self.membership.workers());
            self.tell_agent(&Up::Applied(Applied { worker, workers, version }));
        }
    }

    /// Sends up the stream if this VM leads, or nobody is known to, else through the leader's
    /// queue.
    fn tell_agent(&mut self, message: &Up) {
        let own = self.membership.slot();
        // A leader of this schema makes of it what the agent reads; one of 0.1 sends it on as it
        // is.
        let schema = if self.leadership.fits(own) { Schema::Two } else { Schema::One };
        let bytes = message.encode_for(schema);
        match self.leadership.other_leader(own).filter(|_| own.is_some()) {
            Some(leader) => {
                let note = Note::Forward(bytes);
                self.membership.notify(leader, &note, &mut self.local.counters);
            }
            None => self.uplink.send(bytes, &mut self.local.counters),
        }
    }

    /// Gives the leader what is left from when this VM led, or was taken for it, or nobody led.
    /// With the tick and not at once, so that two VMs that take each other for it do not play ball.
    fn hand_over(&mut self) {
        let Some(leader) = self.leadership.other_leader(self.membership.slot()) else { return };
        for message in self.uplink.take() {
            self.membership.notify(leader, &Note::Forward(message), &mut self.local.counters);
        }
    }
}
