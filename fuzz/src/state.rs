//! The agent's state: whatever its sources say, in whichever order, with whichever clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use arbitrary::Arbitrary;
use pintle_contract::{
    AddressPolicy, BreakerState, Down, Endpoint, MAX_FRAME, Message as _, Now, Version,
};
use pintle_state::event::{Action, Event, Origin, Target};
use pintle_state::{
    Change, Changes, Item, Listing, Moment, Outcome, Protection, Settings, Snapshot, Source, State,
    Told, Tried, Update, entry,
};
use serde_json::json;

use crate::case;
use crate::registry::check_policy;

const SERVICES: [&str; 3] = ["a", "b", "c.d"];
/// Policies of which each is good and not every two are.
const POLICIES: [&str; 8] = [
    r#"{"select":{"attempts":2}}"#,
    r#"{"select":{"minimum_ring_size":5000}}"#,
    r#"{"select":{"minimum_ring_size":10,"maximum_ring_size":20}}"#,
    r#"{"breaker":{"open":"1h"}}"#,
    r#"{"breaker":{"open_max":"1m","half_open":null}}"#,
    r#"{"trace":{"ratio":0.5}}"#,
    r#"{"select":{"strategy":"no such"}}"#,
    r#"{"#,
];
/// The longest that anything said here may be in force.
const LONG: Duration = Duration::from_secs(26 * 3600);

#[derive(Debug, Arbitrary)]
struct Case {
    /// Which ports answer, and how.
    answers: u8,
    unprotected: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Arbitrary)]
enum Step {
    Wait(u16),
    /// The wall clock is set.
    Clock(i16),
    Put(u8, Value),
    Delete(u8),
    /// Something older than what is known.
    Late(u8, Value, u8),
    List(Vec<(u8, Value)>, Vec<(u8, u8)>, u8),
    Policy(u8, u8),
    File(Vec<(u8, Value)>, Vec<(u8, u8)>),
    Told(Vec<Said>),
    Stream(u8),
    Release(u8),
    Refused(u8),
    Deadline,
    Restart,
}

/// A registry's value, or what was meant to be one.
#[derive(Clone, Copy, Debug, Arbitrary)]
struct Value {
    port: u8,
    health: u8,
    address: u8,
    weight: Option<u8>,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct Said {
    service: u8,
    endpoint: u8,
    action: u8,
    more: u8,
    ttl: u16,
    age: u16,
    sequence: u8,
}

fn key_of(key: u8) -> (&'static str, String) {
    let service = SERVICES[usize::from(key) % SERVICES.len()];
    (service, format!("e{}", key / 3 % 12))
}

impl Value {
    fn spell(self, service: &str, id: &str) -> Vec<u8> {
        let healths = ["healthy", "healthy", "draining", "unhealthy", "ill"];
        let addresses = ["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3", "127.0.0.1", "fd12::1"];
        json!({
            "id": id, "name": service, "port": self.port,
            "health": healths[usize::from(self.health) % healths.len()],
            "address": addresses[usize::from(self.address) % addresses.len()],
            "metadata": self.weight.map(|weight| json!({"weight": weight.to_string()})),
        })
        .to_string()
        .into_bytes()
    }
}

fn event(said: Said, stream: u64, sequence: u64, age: Duration) -> Event {
    let (service, id) = key_of(said.service / 2);
    let states = [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed];
    let action = match said.action % 15 {
        0 => Action::Drain,
        1 => Action::Undrain,
        2 => Action::Eject,
        3 => Action::Restore,
        4 => Action::Weight(said.more.into()),
        5 => {
            let policy = POLICIES[usize::from(said.more % 6)];
            Action::Policy(serde_json::from_str(policy).expect("JSON"))
        }
        6 => Action::Policy(json!({})),
        7 => Action::Trace((said.more > 0).then_some(f64::from(said.more) / 255.0)),
        8 => Action::ForceOpen,
        9 => Action::Clear,
        10 => Action::ForceClose,
        11 => Action::Bypass(said.more.is_multiple_of(2)),
        13 => {
            let to = [Some(json!({"tag": "dr"})), Some(json!({"region": "dr"})), None];
            Action::Failover(to[usize::from(said.more % 3)].clone())
        }
        12 => Action::Shadow(said.more.is_multiple_of(2)),
        _ => Action::Transition {
            proxy: format!("p{}", said.more % 3),
            from: BreakerState::Closed,
            to: states[usize::from(said.more / 3 % 3)],
            reason: String::new(),
            trips: 1,
        },
    };
    let named = matches!(action.kind(), "endpoint" | "breaker");
    let source = ["here", "there", "elsewhere"][usize::from(said.endpoint % 3)];
    Event {
        id: sequence.to_string(),
        source: source.into(),
        target: Target { service: service.into(), endpoint: named.then_some(id) },
        action,
        ttl: Duration::from_secs(u64::from(said.ttl) + 1),
        happened: Now(sequence),
        origin: Origin { stream, sequence, age, published: Now(sequence) },
    }
}

fn settings(epoch: u64, protection: Protection) -> Settings {
    Settings {
        agent: "here".into(),
        epoch,
        services: "/services/".into(),
        policies: "/pintle/policies/".into(),
        addresses: AddressPolicy::default(),
        budget: 128 << 20,
        protection,
        decides: Source::Registry,
        check_policy,
        demand: |_, _| pintle_balance::Demand::default(),
        vm_budget: 256 << 20,
    }
}

/// What one source has, as it will be once every removal has been let go.
type Held = BTreeMap<(&'static str, String), Vec<u8>>;

struct World {
    state: State,
    answers: u8,
    protection: Protection,
    epoch: u64,
    revision: u64,
    stream: u64,
    mono: Duration,
    wall: SystemTime,
    registry: Held,
    file: Held,
    policies: BTreeMap<&'static str, Vec<u8>>,
    file_policies: BTreeMap<&'static str, Vec<u8>>,
    /// Between a start from disk and the registry's first listing.
    unlisted: bool,
    /// The service whose endpoints a person has go, just now.
    released: Option<&'static str>,
}

pub(crate) fn state(data: &[u8]) {
    let Some(case) = case::<Case>(data) else { return };
    let protection = Protection { enabled: !case.unprotected, ..Protection::default() };
    let mut world = World {
        state: State::new(settings(1, protection)),
        answers: case.answers,
        protection,
        epoch: 1,
        revision: 10,
        stream: 0,
        mono: Duration::from_secs(1),
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        registry: Held::new(),
        file: Held::new(),
        policies: BTreeMap::new(),
        file_policies: BTreeMap::new(),
        unlisted: false,
        released: None,
    };
    for step in case.steps.into_iter().take(60) {
        world.run(step);
    }
    world.check_end();
}

impl World {
    fn now(&self) -> Moment {
        Moment { wall: self.wall, mono: self.mono }
    }

    fn good(service: &str, id: &str, value: &[u8]) -> bool {
        entry::parse(service, id, value, &AddressPolicy::default()).is_ok()
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn change(&mut self, key: String, value: Option<Vec<u8>>) {
        let revision = self.next_revision();
        let change = Change { key: key.into_bytes(), value, revision, ..Change::default() };
        self.tell(Update::Changes(vec![change]));
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Wait(seconds) => {
                let later = Duration::from_secs(u64::from(seconds) % 1000);
                self.mono += later;
                self.wall += later;
                self.tell(Update::Tick);
            }
            Step::Clock(minutes) => {
                let by = Duration::from_secs(60 * u64::from(minutes.unsigned_abs()));
                self.wall = if minutes < 0 { self.wall - by } else { self.wall + by };
                self.tell(Update::Tick);
            }
            Step::Put(key, value) => {
                let (service, id) = key_of(key);
                let value = value.spell(service, &id);
                if Self::good(service, &id, &value) {
                    self.registry.insert((service, id.clone()), value.clone());
                }
                self.change(format!("/services/{service}/{id}"), Some(value));
            }
            Step::Delete(key) => {
                let (service, id) = key_of(key);
                self.registry.remove(&(service, id.clone()));
                self.change(format!("/services/{service}/{id}"), None);
            }
            Step::Late(key, value, back) => {
                // Older than all there is, so that nothing may come of it.
                let (service, id) = key_of(key);
                let revision = 10_u64.saturating_sub(back.into());
                let value = (back % 2 == 0).then(|| value.spell(service, &id));
                let key = format!("/services/{service}/{id}").into_bytes();
                if self.registry.contains_key(&(service, id)) && !self.unlisted {
                    self.tell(Update::Changes(vec![Change {
                        key,
                        value,
                        revision,
                        ..Change::default()
                    }]));
                }
            }
            Step::List(items, policies, back) => self.list(&items, &policies, back),
            Step::Policy(service, which) => {
                let service = SERVICES[usize::from(service) % SERVICES.len()];
                let policy = POLICIES.get(usize::from(which) % (POLICIES.len() + 1));
                match policy {
                    None => _ = self.policies.remove(service),
                    Some(policy) if good_policy(policy) => {
                        self.policies.insert(service, policy.as_bytes().to_vec());
                    }
                    Some(_) => {}
                }
                let value = policy.map(|policy| policy.as_bytes().to_vec());
                self.change(format!("/pintle/policies/{service}"), value);
            }
            Step::File(items, policies) => self.read_file(&items, &policies),
            Step::Told(said) => {
                let stream = self.stream;
                let event = |said: &Said| {
                    let age = Duration::from_secs(said.age.into());
                    event(*said, stream, said.sequence.into(), age)
                };
                let events: Vec<Event> = said.iter().take(20).map(event).collect();
                let count = events.len();
                let changes = self.tell(Update::Events(events));
                assert_eq!(changes.outcomes.len(), count);
                assert!(!changes.outcomes.contains(&Outcome::Full));
            }
            Step::Stream(identity) => {
                self.stream = identity.into();
                self.tell(Update::Stream { identity: self.stream });
            }
            Step::Release(service) => {
                let service = SERVICES[usize::from(service) % SERVICES.len()];
                self.release(service);
            }
            Step::Refused(key) => {
                let key = format!("\u{1b}[{key}");
                let detail = "\u{202e}".into();
                self.tell(Update::Refused { source: "event", key, reason: "json", detail });
            }
            Step::Deadline => {
                if let Some(at) = self.state.next_deadline() {
                    let later = at.saturating_sub(self.mono);
                    self.mono += later;
                    self.wall += later;
                    self.tell(Update::Tick);
                    let next = self.state.next_deadline();
                    assert!(next.is_none_or(|next| next > self.mono), "a deadline that stays");
                }
            }
            Step::Restart => self.restart(),
        }
    }

    fn list(&mut self, items: &[(u8, Value)], policies: &[(u8, u8)], back: u8) {
        // A registry that was restored from a backup has a lower revision than it had.
        if back.is_multiple_of(8) {
            self.revision = 10 + u64::from(back);
        }
        let revision = self.next_revision();
        let mut listed: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for (key, value) in items.iter().take(40) {
            let (service, id) = key_of(*key);
            let value = value.spell(service, &id);
            if named.insert((service, id.clone())) {
                listed.insert(format!("/services/{service}/{id}"), value.clone());
                if Self::good(service, &id, &value) {
                    self.registry.insert((service, id), value);
                }
            }
        }
        let gone: Vec<_> =
            self.registry.keys().filter(|key| !named.contains(*key)).cloned().collect();
        for key in gone {
            self.registry.remove(&key);
        }
        let mut said = BTreeMap::new();
        for (service, which) in policies.iter().take(3) {
            let service = SERVICES[usize::from(*service) % SERVICES.len()];
            said.insert(service, POLICIES[usize::from(*which) % POLICIES.len()]);
        }
        self.policies.retain(|service, _| said.contains_key(service));
        for (service, policy) in said {
            if good_policy(policy) {
                self.policies.insert(service, policy.as_bytes().to_vec());
            }
            listed.insert(format!("/pintle/policies/{service}"), policy.as_bytes().to_vec());
        }
        let items = listed
            .into_iter()
            .map(|(key, value)| Item { key: key.into_bytes(), value, revision, ..Item::default() })
            .collect();
        self.tell(Update::Listing(Listing { revision, items }));
        self.unlisted = false;
        assert!(!self.state.snapshot().stale);
    }

    fn read_file(&mut self, items: &[(u8, Value)], policies: &[(u8, u8)]) {
        let mut services: BTreeMap<&str, Told> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for (key, value) in items.iter().take(20) {
            let (service, id) = key_of(*key);
            if named.insert((service, id.clone())) {
                let value = value.spell(service, &id);
                if Self::good(service, &id, &value) {
                    self.file.insert((service, id.clone()), value.clone());
                }
                services.entry(service).or_default().endpoints.push((id, value));
            }
        }
        let gone: Vec<_> = self.file.keys().filter(|key| !named.contains(*key)).cloned().collect();
        for key in gone {
            self.file.remove(&key);
        }
        let mut said = BTreeSet::new();
        for (service, which) in policies.iter().take(3) {
            let service = SERVICES[usize::from(*service) % SERVICES.len()];
            let policy = POLICIES[usize::from(*which) % POLICIES.len()];
            if said.insert(service) {
                if good_policy(policy) {
                    self.file_policies.insert(service, policy.as_bytes().to_vec());
                }
                services.entry(service).or_default().policy = Some(policy.as_bytes().to_vec());
            }
        }
        self.file_policies.retain(|service, _| said.contains(service));
        let services = services
            .into_iter()
            .map(|(name, service)| Told { name: name.into(), ..service })
            .collect();
        self.tell(Update::file(services));
    }

    /// From what is on disk, as the next start reads it.
    fn restart(&mut self) {
        let saved = self.state.save(self.now());
        let text = serde_json::to_string(&saved).expect("JSON");
        let before = self.state.snapshot();
        self.epoch += 1;
        self.state = State::new(settings(self.epoch, self.protection));
        self.state.restore(serde_json::from_str(&text).expect("what was written"), self.now());
        let after = self.state.snapshot();
        check_snapshot(&before, &after);
        assert!(after.stale && after.version.epoch == self.epoch);
        let served = |snapshot: &Snapshot| -> BTreeSet<(String, String)> {
            let tables = snapshot.services.values().map(|service| &service.table);
            let ids = tables.flat_map(|table| {
                table.endpoints.iter().map(|e| (table.service.clone(), e.id.clone()))
            });
            ids.collect()
        };
        assert!(served(&after).is_superset(&served(&before)), "what was saved is served");
        self.unlisted = true;
        self.registry.clear();
        self.file.clear();
        for service in saved.services {
            let name = SERVICES.into_iter().find(|known| *known == service.name);
            let name = name.expect("a service that nobody has named");
            for (held, values) in
                [(&mut self.registry, service.registry), (&mut self.file, service.file)]
            {
                held.extend(
                    values
                        .into_iter()
                        .map(|(id, value)| ((name, id), value.text().into_owned().into())),
                );
            }
        }
    }

    fn release(&mut self, service: &'static str) {
        self.released = Some(service);
        self.tell(Update::Release { service: service.into() });
        self.released = None;
    }

    fn tell(&mut self, update: Update) -> Changes {
        let changes = self.tell_once(update);
        // A silence takes three trials, and whoever comes next is tried after it.
        for _ in 0..4 {
            let trials = self.state.take_trials(self.now(), 1_000);
            let results = trials.into_iter().map(|trial| {
                let tried = self.answer(trial.address.port());
                (trial, tried)
            });
            let results: Vec<_> = results.collect();
            if !results.is_empty() {
                self.tell_once(Update::Trials(results));
            }
        }
        changes
    }

    fn answer(&self, port: u16) -> Tried {
        let all = [Tried::Accepted, Tried::Refused, Tried::Silent, Tried::Failed];
        if self.answers.is_multiple_of(4) { Tried::Accepted } else { all[usize::from(port % 4)] }
    }

    fn tell_once(&mut self, update: Update) -> Changes {
        let now = self.now();
        let before = self.state.snapshot();
        let changes = self.state.apply(update, now);
        self.state.publish(changes.services.iter().map(String::as_str), true, now);
        let after = self.state.snapshot();
        check_snapshot(&before, &after);
        assert!(changes.notices.len() <= 64);
        for service in SERVICES {
            let emptied = before.services.contains_key(service)
                && !after.services.contains_key(service)
                && self.protection.enabled;
            if emptied && self.released != Some(service) {
                let mut there = before.services[service].table.endpoints.iter();
                let answers = there.any(|e| self.answer(e.port) == Tried::Accepted);
                assert!(!answers, "{service} is empty, and one of it answers");
            }
        }
        changes
    }

    /// Once the sources have said it all and time has passed, it is as they said and nothing else.
    fn check_end(&mut self) {
        for service in SERVICES {
            self.release(service);
        }
        self.mono += LONG;
        self.wall += LONG;
        self.tell(Update::Tick);

        let mut expect: BTreeMap<&str, BTreeMap<String, Endpoint>> = BTreeMap::new();
        // The registry's id counts, and of those of one address the registry's and then the last.
        let file = self.file.iter().filter(|(key, _)| !self.registry.contains_key(*key));
        let mut addresses = BTreeMap::new();
        for ((service, id), value) in file.chain(&self.registry) {
            let endpoint = entry::parse(service, id, value, &AddressPolicy::default());
            let endpoint = endpoint.expect("a good value");
            addresses.insert((*service, endpoint.socket_addr()), endpoint);
        }
        for ((service, _), endpoint) in addresses {
            expect.entry(service).or_default().insert(endpoint.id.clone(), endpoint);
        }
        let snapshot = self.state.snapshot();
        for service in SERVICES {
            let there = snapshot.services.get(service).map(|s| s.table.endpoints.clone());
            let expect = expect.remove(service).map(|e| e.into_values().collect::<Vec<_>>());
            assert_eq!(there, expect, "{service}");
        }
        assert_eq!((&snapshot.overlays[..], &snapshot.held[..]), (&[][..], &[][..]));
        assert_eq!(self.state.next_deadline(), None);
    }
}

fn good_policy(policy: &str) -> bool {
    entry::parse_policy(policy.as_bytes(), check_policy).is_ok()
}

/// What every reader of a snapshot relies on.
fn check_snapshot(before: &Snapshot, after: &Snapshot) {
    assert!(after.version >= before.version, "the version went back");
    let mut versions = BTreeSet::<Version>::new();
    for (name, service) in after.services.iter() {
        let table = &service.table;
        assert_eq!(*name, table.service);
        assert!(!table.endpoints.is_empty() && service.frame().len() <= MAX_FRAME);
        // The filters take what the agent sends, as it was meant.
        let read = Down::decode(&service.frame()).expect("a frame that the filters refuse");
        assert_eq!(read, Down::Table(table.clone()));
        if !table.policy.is_empty() {
            let policy = serde_json::from_str(&table.policy).expect("JSON");
            assert!(check_policy(&policy).is_ok(), "{}", table.policy);
        }
        assert!(table.version <= after.version && versions.insert(table.version));
        assert!(!after.gone.contains_key(name));
        match before.services.get(name) {
            Some(old) if old.table.version == table.version => assert_eq!(old.table, *table),
            Some(old) => {
                assert!(old.table.version < table.version);
                let same_epoch = old.table.version.epoch == table.version.epoch;
                let changed =
                    old.table.endpoints != table.endpoints || old.table.policy != table.policy;
                assert!(changed || !same_epoch, "a change that is none");
            }
            None => assert!(before.gone.get(name).is_none_or(|gone| *gone < table.version)),
        }
    }
    for (name, gone) in after.gone.iter() {
        assert!(*gone <= after.version);
        let old = before.services.get(name);
        assert!(old.is_none_or(|old| old.table.version < *gone));
    }
    for rejected in after.rejected.iter() {
        let hidden = |c: char| c.is_control() || c == '\u{202e}';
        assert!(!rejected.key.contains(hidden) && !rejected.detail.contains(hidden));
    }
}

#[derive(Debug, Arbitrary)]
struct Heard {
    said: Vec<Said>,
    /// In which order, and which ones again.
    order: Vec<u8>,
    batches: u8,
}

/// Events seen once and in order, and the same in any order and number, end in the same tables.
pub(crate) fn events(data: &[u8]) {
    let Some(heard) = case::<Heard>(data) else { return };
    let mut said: Vec<Said> = heard.said.into_iter().take(60).collect();
    // What came later is younger.
    let mut ages: Vec<u64> = said.iter().map(|said| u64::from(said.age) * 2).collect();
    ages.sort_unstable_by(|a, b| b.cmp(a));
    let events: Vec<Event> = said
        .drain(..)
        .zip((1..).zip(ages))
        .map(|(said, (sequence, age))| event(said, 1, sequence, Duration::from_secs(age)))
        .collect();
    if events.is_empty() {
        return;
    }
    let mut again: Vec<Event> =
        heard.order.iter().map(|at| events[usize::from(*at) % events.len()].clone()).collect();
    // Each at least once.
    again.extend(events.iter().rev().cloned());

    let in_order = hear(&[&events]);
    let size = usize::from(heard.batches % 10) + 1;
    let batches: Vec<&[Event]> = again.chunks(size).collect();
    let in_any = hear(&batches);
    assert_eq!(in_any.0, in_order.0, "other tables");
    assert_eq!(in_any.1, in_order.1, "other overlays");
}

type Tables = Vec<(Vec<Endpoint>, String)>;

fn hear(batches: &[&[Event]]) -> (Tables, Vec<(String, Option<String>, String)>) {
    let now = Moment {
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        mono: Duration::from_secs(200_000),
    };
    let mut state = State::new(settings(1, Protection::default()));
    let items = (0..12)
        .map(|key| {
            let (service, id) = key_of(key);
            let value = Value { port: 1 + key, health: 0, address: 0, weight: None };
            let value = value.spell(service, &id);
            Item {
                key: format!("/services/{service}/{id}").into_bytes(),
                value,
                revision: 1,
                ..Item::default()
            }
        })
        .collect();
    let mut tell = |update: Update| {
        let changes = state.apply(update, now);
        state.publish(changes.services.iter().map(String::as_str), true, now);
    };
    tell(Update::Listing(Listing { revision: 1, items }));
    tell(Update::Stream { identity: 1 });
    for batch in batches {
        tell(Update::Events(batch.to_vec()));
    }
    let snapshot = state.snapshot();
    let tables = snapshot.services.values().map(|s| &s.table);
    let tables = tables.map(|t| (t.endpoints.clone(), t.policy.clone())).collect();
    let overlays = snapshot.overlays.iter();
    let mut overlays: Vec<_> =
        overlays.map(|o| (o.service.clone(), o.endpoint.clone(), o.action.clone())).collect();
    overlays.sort();
    (tables, overlays)
}
