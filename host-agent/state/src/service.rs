//! One service as the sources tell it, and what of that is believed.
//!
//! ```text
//!   put, remove ──▶ Registrations ── an address without a key ──▶ Departures ─┐
//!                        │        └─ healthy no more ───────────▶ Illnesses ──┼─▶ settle
//!                        ▼                                        Trials ─────┘
//!                     merged() = what is registered, and who is held
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use pintle_contract::{Endpoint, Health};
use serde_json::Value;

use crate::update::{Moment, Protection, Source, Tried};

mod departures;
mod illness;
mod registrations;
mod trials;

pub(crate) use departures::{Cause, Departure};
use departures::{Circumstances, Departures};
use illness::Illnesses;
use registrations::Replaced;
pub(crate) use registrations::{Raw, Registration, Registrations};
use trials::Trials;

#[derive(Debug, Default)]
pub(crate) struct Service {
    pub(crate) registrations: Registrations,
    departures: Departures,
    illnesses: Illnesses,
    trials: Trials,
    /// Somebody who is tried only to learn whether anybody answers this agent.
    control: Option<SocketAddr>,
    pub(crate) registry_policy: Option<Policy>,
    pub(crate) file_policy: Option<Policy>,
}

#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) value: Value,
    /// Bytes of the value that it was read from.
    pub(crate) bytes: usize,
    /// The revision that wrote it; zero where there is none.
    pub(crate) revision: u64,
    /// Since when it is missing in a registry that may have lost it.
    pub(crate) missing: Option<SystemTime>,
}

/// How a key was told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: Moment,
    pub(crate) rules: &'a Protection,
    /// Whether what is new is new to the registry as well, and not only to this agent.
    pub(crate) live: bool,
    /// When anybody last answered a trial.
    pub(crate) answered: Option<Duration>,
}

/// What [`Service::settle`] did.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// The ids of those that went, and why.
    pub(crate) went: Vec<(String, &'static str)>,
    /// How many are held from now on.
    pub(crate) held: usize,
    /// Whether the table may be another.
    pub(crate) changed: bool,
}

/// One that is held, for people.
#[derive(Debug)]
pub(crate) struct HeldBack {
    /// Empty for the policy.
    pub(crate) endpoint: String,
    pub(crate) since: SystemTime,
    pub(crate) reason: &'static str,
    /// When it goes by itself.
    pub(crate) until: Option<Duration>,
}

/// A silence means something for as long as this after somebody else's answer.
const ANSWER_COUNTS: Duration = Duration::from_secs(60);

impl Service {
    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0 && self.registry_policy.is_none() && self.file_policy.is_none()
    }

    /// Keys and departures: what is kept in memory.
    pub(crate) fn count(&self) -> usize {
        self.registrations.len().saturating_add(self.departures.len())
    }

    /// Bytes that the endpoints take in a frame, at most.
    pub(crate) fn size(&self) -> usize {
        self.registrations.size().saturating_add(self.departures.size())
    }

    /// Bytes of all values that it was read from.
    pub(crate) fn bytes(&self) -> usize {
        let policies = self.registry_policy.iter().chain(&self.file_policy).map(|it| it.bytes);
        let endpoints = self.registrations.bytes().saturating_add(self.departures.bytes());
        policies.fold(endpoints, usize::saturating_add)
    }

    pub(crate) const fn policy(&self, source: Source) -> Option<&Policy> {
        match source {
            Source::Registry => self.registry_policy.as_ref(),
            // EndpointSlices have none; the file's place is theirs.
            Source::File | Source::Kubernetes => self.file_policy.as_ref(),
        }
    }

    pub(crate) const fn policy_mut(&mut self, source: Source) -> &mut Option<Policy> {
        match source {
            Source::Registry => &mut self.registry_policy,
            Source::File | Source::Kubernetes => &mut self.file_policy,
        }
    }

    /// The address that an id names.
    pub(crate) fn address_of(&self, id: &str) -> Option<SocketAddr> {
        self.registrations.address_of(id).or_else(|| self.departures.address_of(id))
    }

    pub(crate) fn departures(&self) -> impl Iterator<Item = &Departure> {
        self.departures.iter().map(|(_, departure)| departure)
    }

    /// Puts a key in; whether anything but its revision or bytes changed.
    pub(crate) fn put(
        &mut self,
        source: Source,
        registration: Registration,
        about: Context<'_>,
    ) -> bool {
        let (id, address) = (registration.endpoint.id.clone(), registration.endpoint.socket_addr());
        let endpoint = registration.endpoint.clone();
        let known = self.registrations.has(address);
        let was_healthy = self.is_healthy(address);
        let Replaced { old, nameless } = self.registrations.put(source, registration);
        if !known && self.registrations.has(address) {
            if about.live {
                self.departures.arrive(address, about.now);
            } else {
                self.departures.back(address);
            }
            self.departures.follow(&id, address);
        }
        if let Some(nameless) = nameless {
            self.leave(nameless, Cause::Moved(address), about);
        }
        if self.is_healthy(address) {
            self.illnesses.end(address);
        } else if was_healthy && about.live && self.health(address) == Some(Health::Unhealthy) {
            self.illnesses.begin(address, about.now);
        }
        !known || old.is_none_or(|old| old.endpoint != endpoint)
    }

    /// Takes a key out. `None` where there was none, else the lease that may say why it went; zero
    /// where there is none, or nothing to ask.
    pub(crate) fn remove(&mut self, source: Source, id: &str, about: Context<'_>) -> Option<u64> {
        let Replaced { old, nameless } = self.registrations.remove(source, id);
        // Where the other source knows the id, its address counts from now on.
        if let Some(address) = self.registrations.address_of(id) {
            self.departures.back(address);
        }
        let mut lease = 0;
        if let Some(nameless) = nameless {
            lease = nameless.lease;
            let cause = if lease == 0 { Cause::Unleased } else { Cause::Leased(lease) };
            self.leave(nameless, cause, about);
        }
        old.map(|_| lease)
    }

    fn leave(&mut self, nameless: Registration, cause: Cause, about: Context<'_>) {
        self.illnesses.end(nameless.endpoint.socket_addr());
        self.departures.leave(nameless, cause, about.now);
    }

    fn health(&self, address: SocketAddr) -> Option<Health> {
        self.registrations.newest(address).map(|newest| newest.endpoint.health)
    }

    fn is_healthy(&self, address: SocketAddr) -> bool {
        self.health(address) == Some(Health::Healthy)
    }

    /// These leases live: what went with them was deleted by somebody. Whether anything did.
    pub(crate) fn leases_live(&mut self, leases: &[u64]) -> bool {
        self.departures.leases_live(leases)
    }

    /// When an endpoint last went untested.
    pub(crate) const fn untested(&self) -> Option<Duration> {
        self.departures.untested()
    }

    /// Takes over one who was held before a restart.
    pub(crate) fn restore_departure(&mut self, endpoint: Endpoint, told: Raw, now: Moment) {
        if self.registrations.has(endpoint.socket_addr()) {
            return;
        }
        let size = crate::entry::encoded_size(&endpoint);
        let registration = Registration { endpoint, told, revision: 0, created: 0, lease: 0, size };
        self.departures.leave(registration, Cause::Joined, now);
    }

    /// Takes over when that was, from before a restart.
    pub(crate) const fn remember_untested(&mut self, at: Duration) {
        self.departures.remember_untested(at);
    }

    // === who stays ===

    /// Decides about everybody who is about to go, as far as it can be decided now.
    pub(crate) fn settle(&mut self, about: Context<'_>) -> Settled {
        let Context { now, rules, answered, .. } = about;
        let recent = |at| now.mono.saturating_sub(at) < ANSWER_COUNTS;
        let anybody_answers = answered.is_some_and(recent);
        let registered = self.registrations.endpoints();
        let circumstances = Circumstances { now, rules, anybody_answers, registered };
        let waited = self.waiting();
        let went = self.departures.settle(&self.trials, &circumstances);
        let mut settled = Settled {
            changed: !went.is_empty() || self.waiting() != waited,
            held: self.departures.hold(&self.trials),
            ..Settled::default()
        };
        settled.went.extend(went.into_iter().map(|(it, why)| (it.registration.endpoint.id, why)));
        if !self.illnesses.is_empty() {
            let healthy = self.registrations.addresses().filter(|at| self.is_healthy(*at)).count();
            let trials = &self.trials;
            let (changed, held) =
                self.illnesses.settle(trials, now, healthy, rules, anybody_answers);
            settled.changed |= changed;
            settled.held = settled.held.saturating_add(held);
        }
        self.update_trials(now.mono, anybody_answers);
        settled
    }

    /// How many are not served yet, because those whose place they are to take still are.
    fn waiting(&self) -> usize {
        self.departures.unproven().filter(|at| self.departures.waits(*at)).count()
    }

    fn update_trials(&mut self, now: Duration, anybody_answers: bool) {
        if self.departures.is_empty() && self.illnesses.is_empty() {
            self.control = None;
            self.trials = Trials::default();
            return;
        }
        let departs = self.departures.iter().map(|(address, _)| address);
        let doubted = self.illnesses.iter().map(|(address, _)| address);
        for address in departs.chain(doubted).chain(self.departures.unproven()) {
            self.trials.start(address, now);
        }
        if anybody_answers {
            self.control = None;
        } else if self.control.is_none() {
            self.control = self.registrations.addresses().next();
        }
        let (departures, illnesses) = (&self.departures, &self.illnesses);
        let unproven: std::collections::BTreeSet<_> = departures.unproven().collect();
        let control = self.control;
        self.trials.retain(|at| {
            departures.has(*at)
                || illnesses.is_doubted(*at)
                || unproven.contains(at)
                || control == Some(*at)
        });
        if let Some(control) = self.control {
            self.trials.start(control, now);
        }
    }

    /// The addresses to try now, at most `limit`.
    pub(crate) fn take_trials(&mut self, now: Duration, limit: usize) -> Vec<SocketAddr> {
        self.trials.take(now, limit)
    }

    /// When there is one to try.
    pub(crate) fn next_trial(&self) -> Option<Duration> {
        self.trials.next()
    }

    /// Notes what came of a trial; whether anybody waits for it.
    pub(crate) fn note_trial(&mut self, address: SocketAddr, tried: Tried, now: Duration) -> bool {
        self.trials.note(address, tried, now)
    }

    /// When [`Service::settle`] has something to do.
    pub(crate) fn next(&self, rules: &Protection) -> Option<Duration> {
        self.departures.next(rules)
    }

    /// Everybody who is held goes, and what is doubted is believed: a person has confirmed it. The
    /// ids of those that went, and how many other things changed.
    pub(crate) fn release(&mut self) -> (Vec<String>, usize) {
        let went = self.departures.release().into_iter();
        let went = went.map(|departure| departure.registration.endpoint.id).collect();
        let mut others = self.illnesses.release();
        if self.registry_policy.as_ref().is_some_and(|policy| policy.missing.is_some()) {
            self.registry_policy = None;
            others = others.saturating_add(1);
        }
        self.trials = Trials::default();
        (went, others)
    }

    /// Who is held, at most `limit` of them.
    pub(crate) fn held_back(&self, limit: usize) -> Vec<HeldBack> {
        let until = self.departures.alone_until();
        let registered = self.registrations.endpoints();
        let held = self.departures.iter().filter(|(_, departure)| departure.held);
        let gone = held.map(|(address, departure)| HeldBack {
            endpoint: departure.registration.endpoint.id.clone(),
            since: departure.since_wall,
            reason: if !self.trials.accepts(address) {
                "nobody answers this agent"
            } else if registered == 0 && self.departures.len() == 1 {
                "the last endpoint of the service, and it still answers"
            } else if matches!(departure.cause, Cause::Moved(_)) {
                "it still answers, and where it moved to nobody does"
            } else {
                "it still answers"
            },
            until,
        });
        let ill = self.illnesses.iter().filter_map(|(address, doubted)| {
            Some(HeldBack {
                endpoint: self.registrations.newest(address)?.endpoint.id.clone(),
                since: doubted.since_wall,
                reason: "called unhealthy with most of the service, and it still answers",
                until: None,
            })
        });
        let missing = self.registry_policy.as_ref().and_then(|policy| policy.missing);
        let policy = missing.map(|since| HeldBack {
            endpoint: String::new(),
            since,
            reason: "the policy is missing in a registry that lost its past",
            until: None,
        });
        gone.chain(ill).chain(policy).take(limit).collect()
    }

    /// Whether anything is held or about to go.
    pub(crate) fn holds(&self) -> bool {
        let missing = |policy: &Policy| policy.missing.is_some();
        !self.departures.is_empty()
            || !self.illnesses.is_empty()
            || self.registry_policy.as_ref().is_some_and(missing)
    }

    // === what is served ===

    /// The endpoints, sorted by id, and the other ids of those that have several.
    pub(crate) fn merged(&self) -> (Vec<Endpoint>, BTreeMap<String, Vec<String>>) {
        let mut all: BTreeMap<&str, Endpoint> = BTreeMap::new();
        let mut others = BTreeMap::new();
        for (_, departure) in self.departures.iter() {
            let endpoint = &departure.registration.endpoint;
            all.insert(&endpoint.id, endpoint.clone());
        }
        for address in self.registrations.addresses() {
            let Some(newest) = self.registrations.newest(address) else { continue };
            if self.departures.waits(address) {
                continue;
            }
            let id = newest.endpoint.id.as_str();
            let mut endpoint = newest.endpoint.clone();
            if self.illnesses.is_doubted(address) {
                endpoint.health = Health::Healthy;
            }
            all.insert(id, endpoint);
            let mut names: Vec<String> = self
                .registrations
                .ids(address)
                .filter(|name| *name != id)
                .map(Into::into)
                .collect();
            if !names.is_empty() {
                names.sort_unstable();
                others.insert(id.to_owned(), names);
            }
        }
        (all.into_values().collect(), others)
    }
}
