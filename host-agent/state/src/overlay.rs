//! What events have laid over the registry, and the order they came in.
//!
//! Delivery is at least once and in no order, and a stream may be replayed from its start or made
//! anew. So every thing that an event can set is a *slot* (an endpoint's drain, its weight, one
//! proxy's opinion of its breaker, ...), and a slot remembers the place in the stream of the event
//! that set it last: what is not newer changes nothing. Ending is setting, too: an `undrain` leaves
//! an empty slot that keeps an older `drain` out. What expires leaves its place behind likewise,
//! until nothing older could still be in force. Then the result depends on which events were seen,
//! and not on how often or in which order; the property test compares it with a model that saw them
//! once. A proxy's opinion has one author, so its place is the time on that proxy's clock: also a
//! transition that is published once more, as a new entry, says nothing new.
//!
//! Orders and opinions are bounded apart, so that no flood of opinions keeps an order out: of
//! opinions the oldest give way; an order beyond the bounds of orders is refused, by count and by
//! bytes.
//!
//! Slots are keyed by names, not by what is registered: an event for an endpoint that is not there
//! waits for it until the ttl, and cannot bring back what the registry has deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use pintle_contract::{BreakerState, Endpoint, Force, ForceAction, Health, Now, Opinion};
use serde_json::{Value, json};

use crate::event::{self, Action, Event, MAX_TTL};
use crate::update::{Moment, Outcome, now_of};

mod opinions;

pub use opinions::MAX_OPINIONS;
use opinions::Opinions;

/// Orders in all: one for every endpoint that there may be.
pub(crate) const MAX_ORDERS: usize = 100_000;
/// Bytes of their policies together; the next start has to read them at once.
pub(crate) const MAX_ORDER_BYTES: usize = 32 << 20;
/// A fleet's opinion is worth nothing after the longest time a breaker stays open (300 s and half
/// of that as jitter, rounded up); keeping its place no longer than this bounds proxies x
/// endpoints.
const MAX_OPINION: Duration = Duration::from_secs(600);

/// What can be set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Drain(String),
    Eject(String),
    Weight(String),
    Force(String),
    Policy,
    Bypass,
    Shadow,
    Failover,
    Trace,
    Reporter { endpoint: String, agent: String, proxy: String },
}

/// What it is set to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Drain,
    Eject,
    Weight(u32),
    Force { action: ForceAction, stamp: u64 },
    Open,
    Policy(Value),
    Trace(f64),
}

/// Which life of the stream, and where in it; for a proxy's opinion, when by its own clock, and
/// whether it opened.
pub(crate) type Place = (u64, u64);

#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) place: Place,
    pub(crate) effect: Option<Effect>,
    pub(crate) source: String,
    /// While there is an effect: when it ends. Else: when the slot is forgotten.
    pub(crate) until: Duration,
    pub(crate) until_wall: SystemTime,
    /// When the slot is forgotten, whatever it holds.
    pub(crate) forget: Duration,
    /// A later slot has a higher number.
    number: u64,
}

impl Slot {
    /// `until` on both clocks; `forget` not before it.
    pub(crate) fn new(
        place: Place,
        effect: Option<Effect>,
        source: String,
        (until, until_wall): (Duration, SystemTime),
        forget: Duration,
    ) -> Self {
        Self {
            place,
            until: if effect.is_some() { until } else { forget },
            effect,
            source,
            until_wall,
            forget,
            number: 0,
        }
    }

    /// Bytes of its policy, if it is one.
    fn bytes(&self) -> usize {
        match &self.effect {
            Some(Effect::Policy(patch)) => patch.to_string().len(),
            _ => 0,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Overlays {
    slots: BTreeMap<String, BTreeMap<Key, Slot>>,
    timers: BTreeMap<(Duration, u64), (String, Key)>,
    last_number: u64,
    orders: usize,
    /// Of the orders' policies.
    bytes: usize,
    opinions: Opinions,
    /// Services of which opinions in force gave way, until [`Overlays::expire`] tells them.
    changed: BTreeSet<String>,
    gave_way: u64,
}

impl Overlays {
    /// Takes an event at `place`; whether it changed a table's service is in the outcome.
    pub(crate) fn take(&mut self, event: Event, place: Place, now: Moment) -> Outcome {
        let (horizon, place) = match event.action {
            Action::Transition { to, .. } => {
                (MAX_OPINION, (event.happened.0, u64::from(to == BreakerState::Open)))
            }
            _ => (MAX_TTL, place),
        };
        let ttl = event.ttl.min(horizon);
        let age = event.origin.age;
        let left = ttl.saturating_sub(age);
        let remembered = horizon.saturating_sub(age);
        if remembered.is_zero() && !self.slots.contains_key(&event.target.service) {
            return Outcome::Expired;
        }
        let stamp = event.origin.published.0;
        let endpoint = event.target.endpoint.unwrap_or_default();
        let sets: Vec<(Key, Option<Effect>)> = match event.action {
            Action::Drain => vec![(Key::Drain(endpoint), Some(Effect::Drain))],
            Action::Undrain => vec![(Key::Drain(endpoint), None)],
            Action::Eject => vec![(Key::Eject(endpoint), Some(Effect::Eject))],
            Action::Restore => vec![
                (Key::Drain(endpoint.clone()), None),
                (Key::Eject(endpoint.clone()), None),
                (Key::Weight(endpoint), None),
            ],
            Action::Weight(weight) => {
                vec![(Key::Weight(endpoint), Some(Effect::Weight(weight)))]
            }
            Action::Policy(patch) => {
                let ends = patch.as_object().is_some_and(serde_json::Map::is_empty);
                vec![(Key::Policy, (!ends).then_some(Effect::Policy(patch)))]
            }
            Action::Bypass(on) => patch(Key::Bypass, on.then(|| json!({"bypass": true}))),
            Action::Shadow(on) => patch(Key::Shadow, on.then(|| json!({"mode": "shadow"}))),
            Action::Failover(to) => patch(Key::Failover, to.as_ref().map(event::failover)),
            Action::Trace(ratio) => vec![(Key::Trace, ratio.map(Effect::Trace))],
            Action::Transition { proxy, to, .. } => {
                let key = Key::Reporter { endpoint, agent: event.source.clone(), proxy };
                vec![(key, (to == BreakerState::Open).then_some(Effect::Open))]
            }
            Action::ForceOpen => force(endpoint, ForceAction::Open, stamp),
            Action::ForceClose => force(endpoint, ForceAction::Close, stamp),
            Action::Clear => force(endpoint, ForceAction::Clear, stamp),
        };
        let mut outcome = Outcome::Duplicate;
        for (key, effect) in sets {
            let effect = effect.filter(|_| !left.is_zero());
            let slot = Slot::new(
                place,
                effect,
                event.source.clone(),
                (now.mono.saturating_add(left), now.wall_after(left)),
                now.mono.saturating_add(remembered),
            );
            match self.set(&event.target.service, key, slot) {
                Outcome::Duplicate => {}
                Outcome::Applied if left.is_zero() => outcome = Outcome::Expired,
                other => outcome = other,
            }
        }
        outcome
    }

    pub(crate) fn set(&mut self, service: &str, key: Key, mut slot: Slot) -> Outcome {
        let old = self.slots.get(service).and_then(|slots| slots.get(&key));
        if old.is_some_and(|old| old.place >= slot.place) {
            return Outcome::Duplicate;
        }
        let (is_there, old_bytes) = (old.is_some(), old.map_or(0, Slot::bytes));
        if let Key::Reporter { agent, .. } = &key {
            let agent = agent.clone();
            self.remove(service, &key);
            if let Some((service, key)) = self.opinions.in_the_way(&agent) {
                self.give_way(service, &key);
            }
        } else {
            let orders = self.orders.saturating_sub(usize::from(is_there));
            let bytes = self.bytes.saturating_sub(old_bytes).saturating_add(slot.bytes());
            if orders >= MAX_ORDERS || bytes > MAX_ORDER_BYTES {
                return Outcome::Full;
            }
            self.remove(service, &key);
        }
        self.last_number = self.last_number.wrapping_add(1);
        slot.number = self.last_number;
        match &key {
            Key::Reporter { agent, .. } => self.opinions.add(slot.number, service, &key, agent),
            _ => {
                self.orders = self.orders.saturating_add(1);
                self.bytes = self.bytes.saturating_add(slot.bytes());
            }
        }
        self.timers.insert((slot.until, slot.number), (service.to_owned(), key.clone()));
        self.slots.entry(service.to_owned()).or_default().insert(key, slot);
        Outcome::Applied
    }

    fn remove(&mut self, service: &str, key: &Key) -> Option<Slot> {
        let slots = self.slots.get_mut(service)?;
        let slot = slots.remove(key)?;
        if slots.is_empty() {
            self.slots.remove(service);
        }
        self.timers.remove(&(slot.until, slot.number));
        match key {
            Key::Reporter { agent, .. } => self.opinions.remove(slot.number, agent),
            _ => {
                self.orders = self.orders.saturating_sub(1);
                self.bytes = self.bytes.saturating_sub(slot.bytes());
            }
        }
        Some(slot)
    }

    fn give_way(&mut self, service: String, key: &Key) {
        self.gave_way = self.gave_way.saturating_add(1);
        if self.remove(&service, key).is_some_and(|slot| slot.effect.is_some()) {
            self.changed.insert(service);
        }
    }

    /// How many opinions gave way since this was asked last.
    pub(crate) const fn gave_way(&mut self) -> u64 {
        std::mem::replace(&mut self.gave_way, 0)
    }

    /// Ends what is due; the services that changed since the last time.
    pub(crate) fn expire(&mut self, now: Duration) -> BTreeSet<String> {
        let mut changed = std::mem::take(&mut self.changed);
        while let Some(due) = self.timers.first_entry()
            && due.key().0 <= now
        {
            let (at, number) = *due.key();
            let (service, key) = due.remove();
            let slot = self.slots.get_mut(&service).and_then(|slots| slots.get_mut(&key));
            if let Some(slot) = slot
                && slot.effect.is_some()
                && slot.forget > at
            {
                if !matches!(key, Key::Reporter { .. }) {
                    self.bytes = self.bytes.saturating_sub(slot.bytes());
                }
                slot.effect = None;
                slot.until = slot.forget;
                self.timers.insert((slot.until, number), (service.clone(), key));
                changed.insert(service);
                continue;
            }
            if self.remove(&service, &key).is_some_and(|slot| slot.effect.is_some()) {
                changed.insert(service);
            }
        }
        changed
    }

    /// When [`Overlays::expire`] has something to do.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// All slots, by service; within one orders first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Key, &Slot)> {
        self.slots
            .iter()
            .flat_map(|(service, slots)| slots.iter().map(move |(k, s)| (service.as_str(), k, s)))
    }

    /// The policy patches in force for a service, first to last.
    pub(crate) fn patches(&self, service: &str) -> Vec<Value> {
        let effect = |key| self.slots.get(service)?.get(&key)?.effect.as_ref();
        let mut patches = Vec::new();
        for key in [Key::Policy, Key::Bypass, Key::Shadow, Key::Failover] {
            if let Some(Effect::Policy(patch)) = effect(key) {
                patches.push(patch.clone());
            }
        }
        if let Some(Effect::Trace(ratio)) = effect(Key::Trace) {
            patches.push(json!({"trace": {"ratio": ratio}}));
        }
        patches
    }

    /// Lays what is in force over a service's endpoints. `address_of` says which endpoint an id
    /// names; of what was ordered by several names of one endpoint, the last order counts.
    pub(crate) fn lay_over(
        &self,
        service: &str,
        endpoints: &mut [Endpoint],
        address_of: impl Fn(&str) -> Option<SocketAddr>,
    ) {
        let Some(slots) = self.slots.get(service) else {
            return;
        };
        let places: BTreeMap<SocketAddr, usize> =
            endpoints.iter().enumerate().map(|(at, e)| (e.socket_addr(), at)).collect();
        let mut last: BTreeMap<(usize, Key), &Slot> = BTreeMap::new();
        for (key, slot) in slots {
            let address = key.endpoint().and_then(&address_of);
            let Some(at) = address.and_then(|address| places.get(&address)) else { continue };
            let newest = last.entry((*at, key.of_any_endpoint())).or_insert(slot);
            if newest.place < slot.place {
                *newest = slot;
            }
        }
        for ((at, _), slot) in last {
            let (Some(effect), Some(endpoint)) = (&slot.effect, endpoints.get_mut(at)) else {
                continue;
            };
            let until = now_of(slot.until_wall);
            match effect {
                // Keys are sorted with drains first, so an ejection has the last word.
                Effect::Drain if endpoint.health == Health::Healthy => {
                    endpoint.health = Health::Draining;
                }
                Effect::Drain => {}
                Effect::Eject => endpoint.health = Health::Unhealthy,
                Effect::Weight(weight) => endpoint.weight = *weight,
                Effect::Force { action, stamp } => {
                    endpoint.force = Some(Force { action: *action, until, stamp: *stamp });
                }
                Effect::Open => add_reporter(endpoint, until),
                Effect::Policy(_) | Effect::Trace(_) => {}
            }
        }
    }
}

fn patch(key: Key, patch: Option<Value>) -> Vec<(Key, Option<Effect>)> {
    vec![(key, patch.map(Effect::Policy))]
}

fn force(endpoint: String, action: ForceAction, stamp: u64) -> Vec<(Key, Option<Effect>)> {
    vec![(Key::Force(endpoint), Some(Effect::Force { action, stamp }))]
}

fn add_reporter(endpoint: &mut Endpoint, until: Now) {
    let opinion = endpoint.opinion.get_or_insert(Opinion { expires_at: until, reporters: 0 });
    opinion.reporters = opinion.reporters.saturating_add(1);
    opinion.expires_at = opinion.expires_at.max(until);
}

impl Key {
    pub(crate) fn endpoint(&self) -> Option<&str> {
        match self {
            Self::Drain(id) | Self::Eject(id) | Self::Weight(id) | Self::Force(id) => Some(id),
            Self::Reporter { endpoint, .. } => Some(endpoint),
            Self::Policy | Self::Bypass | Self::Shadow | Self::Failover | Self::Trace => None,
        }
    }

    /// The same, whichever endpoint it is about.
    fn of_any_endpoint(&self) -> Self {
        let any = String::new();
        match self.clone() {
            Self::Drain(_) => Self::Drain(any),
            Self::Eject(_) => Self::Eject(any),
            Self::Weight(_) => Self::Weight(any),
            Self::Force(_) => Self::Force(any),
            Self::Reporter { agent, proxy, .. } => Self::Reporter { endpoint: any, agent, proxy },
            Self::Policy => Self::Policy,
            Self::Bypass => Self::Bypass,
            Self::Shadow => Self::Shadow,
            Self::Failover => Self::Failover,
            Self::Trace => Self::Trace,
        }
    }
}

impl Effect {
    /// The kind of event behind it, and what it does, for people.
    pub(crate) fn describe(&self, key: &Key) -> (&'static str, String) {
        match self {
            Self::Drain => ("endpoint", "drain".into()),
            Self::Eject => ("endpoint", "eject".into()),
            Self::Weight(weight) => ("endpoint", format!("weight {weight}")),
            Self::Force { action, .. } => (
                "breaker",
                match action {
                    ForceAction::Open => "force-open",
                    ForceAction::Close => "force-close",
                    ForceAction::Clear => "clear",
                }
                .into(),
            ),
            Self::Open => ("breaker", "open".into()),
            Self::Policy(_) => (
                "service",
                match key {
                    Key::Bypass => "bypass",
                    Key::Shadow => "shadow",
                    Key::Failover => "failover",
                    _ => "policy",
                }
                .into(),
            ),
            Self::Trace(ratio) => ("trace", format!("ratio {ratio}")),
        }
    }
}
