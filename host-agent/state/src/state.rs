//! The state: what every source said, merged, protected, overlaid, and made into a [`Snapshot`].
//!
//! ```text
//!   Listing, Changes, File ─▶ Service ─┐ who may not go yet is tried (take_trials ─▶ Trials)
//!   Events ─────────────────▶ Overlays ┴─▶ publish(names) ─▶ Table, versioned ─▶ Arc<Snapshot>
//! ```
//! Precedence, weakest first: the file; the registry (per id; per key of a policy); events,
//! until they expire. One writer owns the state by value, passes time in, and decides when the
//! services that changed are published: applying is cheap and happens for every update, building
//! tables is not and happens at the publisher's pace. A table equal to the published one is dropped
//! here, so nothing downstream ever sees a change that is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pintle_contract::{MAX_FRAME, MAX_POLICY, Version};

use crate::agenda::Agenda;
use crate::demands::Demands;
use crate::entry::Reject;
use crate::event::Event;
use crate::overlay::{Overlays, Place};
use crate::saved::SavedStream;
use crate::service::{Context, Service as Model};
use crate::snapshot::Snapshot;
use crate::update::{Changes, Moment, Outcome, Settings, Trial, Tried, Update};

mod lists;
mod publishing;
mod refusals;
mod relisting;
mod restoring;
mod sources;
mod work;

use refusals::Refusals;
use relisting::Relisting;
use sources::Named;
use work::Work;

pub use lists::show;

/// Endpoints of both sources together, at most.
pub const MAX_TOTAL: usize = 100_000;
/// Entries of the lists for people in a snapshot; they are copied with every change.
const MAX_LISTED: usize = 1_000;
/// How an opinion that gave way to a newer one is counted: source and reason.
pub const GAVE_WAY: (&str, &str) = ("event", "opinion_gave_way");

/// What a frame holds beside endpoints: header, checksum, names, versions and the largest policy.
const FRAME_ROOM: usize = MAX_FRAME - MAX_POLICY - 4096;

/// The head of this file says how they come together.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    services: BTreeMap<String, Model>,
    total: usize,
    /// Of all values that are held.
    bytes: usize,
    overlays: Overlays,
    stream: SavedStream,
    /// The revision of the last listing; changes up to it are old news.
    listed: u64,
    /// The one that is being taken.
    relisting: Option<Relisting>,
    /// Keys deleted since the last listing, so that a change repeated late does not bring them
    /// back.
    deleted: HashMap<Vec<u8>, u64>,
    /// The highest revision seen in this history of the registry.
    revision: u64,
    /// Services of which somebody is held or about to go.
    holding: BTreeSet<String>,
    /// When time alone may let somebody go.
    deadlines: Agenda,
    /// When somebody is to be tried.
    trials: Agenda,
    /// When anybody last answered a trial, be it by a refusal.
    answered: Option<Duration>,
    refusals: Refusals,
    /// As the tables were published.
    demands: Demands,
    version: Version,
    stale: bool,
    seen: BTreeMap<String, std::time::SystemTime>,
    published: Arc<Snapshot>,
    confirmed_at: Option<std::time::SystemTime>,
    meta_changed: bool,
}

impl State {
    /// An empty state of a new epoch; stale until a source has spoken.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let version = Version { epoch: settings.epoch, sequence: 0 };
        let published =
            Snapshot { version, complete_since: version, stale: true, ..Snapshot::default() };
        Self {
            settings,
            services: BTreeMap::new(),
            total: 0,
            bytes: 0,
            overlays: Overlays::default(),
            stream: SavedStream::default(),
            listed: 0,
            relisting: None,
            deleted: HashMap::new(),
            revision: 0,
            holding: BTreeSet::new(),
            deadlines: Agenda::default(),
            trials: Agenda::default(),
            answered: None,
            refusals: Refusals::default(),
            demands: Demands::default(),
            version,
            stale: true,
            seen: BTreeMap::new(),
            published: Arc::new(published),
            confirmed_at: None,
            meta_changed: true,
        }
    }

    /// Takes an update over. Nothing is published by this; see [`State::publish`].
    pub fn apply(&mut self, update: Update, now: Moment) -> Changes {
        let mut work = Work::default();
        match update {
            Update::Listing(listing) => self.take_listing(listing, now, &mut work),
            Update::Page(page) => self.take_page(page, now, &mut work),
            Update::Listed(listed) => self.end_listing(listed, now, &mut work),
            Update::Changes(changes) => self.take_changes(changes, now, &mut work),
            Update::Progress { .. } => self.confirmed_at = Some(now.wall),
            Update::Unread(unread) => self.take_unread(unread, now, &mut work),
            Update::Services { source, whole, services } => {
                self.take_services(source, whole, services, now, &mut work);
            }
            Update::Events(events) => {
                for event in events {
                    let outcome = self.take_event(event, now, &mut work);
                    work.changes.outcomes.push(outcome);
                }
            }
            Update::Reported(event) => {
                let service = event.target.service.clone();
                // Its place is the time on the proxy's clock.
                let outcome = self.overlays.take(event, Place::default(), now);
                if matches!(outcome, Outcome::Applied | Outcome::Expired) {
                    work.dirty.insert(service);
                    work.changes.meta = true;
                }
            }
            Update::Stream { identity } => {
                if self.stream.identity != identity {
                    self.stream = SavedStream {
                        identity,
                        generation: self.stream.generation.saturating_add(1),
                        highest: 0,
                    };
                }
            }
            Update::Refused { source, key, reason, detail } => {
                self.refuse(source, key.as_bytes(), reason, detail, now, &mut work)
            }
            Update::Release { service } => self.release(&service, now, &mut work),
            Update::Trials(results) => self.take_results(results, now, &mut work),
            Update::LeasesLive(leases) => self.take_leases(&leases, &mut work),
            Update::Outrun { epoch } => self.outrun(epoch),
            Update::Tick => {}
        }
        self.pass_time(now, &mut work);
        self.settle(now, &mut work);
        for name in &work.dirty {
            self.seen.entry(name.clone()).or_insert(now.wall);
            self.forget_if_empty(name);
        }
        self.meta_changed |= work.changes.meta;
        work.changes.services = work.dirty.into_iter().collect();
        work.changes
    }

    /// When time alone will change something, on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.next().into_iter().chain(self.overlays.next()).min()
    }

    /// When [`State::take_trials`] has something.
    #[must_use]
    pub fn next_trial(&self) -> Option<Duration> {
        self.trials.next()
    }

    /// The endpoints to try now, at most `limit`; the results come back as [`Update::Trials`].
    /// Those beyond the limit stay due.
    pub fn take_trials(&mut self, now: Moment, limit: usize) -> Vec<Trial> {
        let mut taken = Vec::new();
        let due: Vec<String> =
            self.trials.due(now.mono).take(limit).map(ToOwned::to_owned).collect();
        for service in due {
            let Some(model) = self.services.get_mut(&service) else {
                self.trials.set(&service, None);
                continue;
            };
            let addresses = model.take_trials(now.mono, limit.saturating_sub(taken.len()));
            self.trials.set(&service, model.next_trial());
            taken.extend(
                addresses.into_iter().map(|address| Trial { service: service.clone(), address }),
            );
        }
        taken
    }

    /// What was published last.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    /// The stream and the highest sequence applied.
    #[must_use]
    pub const fn stream(&self) -> SavedStream {
        self.stream
    }

    // === people, events, time ===

    fn release(&mut self, name: &str, now: Moment, work: &mut Work) {
        let Some(model) = self.services.get_mut(name) else {
            return;
        };
        let bytes = model.bytes();
        let (went, others) = model.release();
        self.total = self.total.saturating_sub(went.len());
        self.bytes = self.bytes.saturating_sub(bytes).saturating_add(model.bytes());
        work.touched.insert(name.to_owned());
        work.changes.released = went.len().saturating_add(others);
        if work.changes.released > 0 {
            work.changes.meta = true;
            work.dirty.insert(name.to_owned());
            let count = work.changes.released;
            let removals = if count == 1 { "removal" } else { "removals" };
            let text = format!("{count} {removals} released by a person");
            work.notice("removal", name, None, text, false);
        }
        self.confirmed_at = self.confirmed_at.or(Some(now.wall));
    }

    fn take_results(&mut self, results: Vec<(Trial, Tried)>, now: Moment, work: &mut Work) {
        for (trial, tried) in results {
            if matches!(tried, Tried::Accepted | Tried::Refused) {
                self.answered = Some(now.mono);
            }
            if let Some(model) = self.services.get_mut(&trial.service)
                && model.note_trial(trial.address, tried, now.mono)
            {
                work.touched.insert(trial.service);
            }
        }
    }

    fn take_leases(&mut self, leases: &[u64], work: &mut Work) {
        for name in &self.holding {
            // To decide costs what is held, so of a service that they say nothing of nothing is
            // decided.
            if self.services.get_mut(name).is_some_and(|model| model.leases_live(leases)) {
                work.touched.insert(name.clone());
            }
        }
    }

    fn take_event(&mut self, event: Event, now: Moment, work: &mut Work) -> Outcome {
        if event.origin.stream != self.stream.identity {
            return Outcome::Stale;
        }
        self.stream.highest = self.stream.highest.max(event.origin.sequence);
        let place: Place = (self.stream.generation, event.origin.sequence);
        let transition = event.action.name() == "transition";
        if transition && event.source == self.settings.agent {
            return Outcome::Own;
        }
        let target = event.target.clone();
        let text = format!("{} by {}", event.action.name(), event.source);
        let outcome = self.overlays.take(event, place, now);
        match outcome {
            Outcome::Applied | Outcome::Expired => {
                work.dirty.insert(target.service.clone());
                work.changes.meta = true;
                if outcome == Outcome::Applied {
                    let kind = if transition { "breaker" } else { "event" };
                    let endpoint = target.endpoint.as_deref();
                    work.notice(kind, &target.service, endpoint, text, false);
                }
            }
            Outcome::Full => {
                let key = target.subject();
                self.reject(
                    "event",
                    key.as_bytes(),
                    &Reject::TooMany("100,000 orders in force, or 32 MiB of them,"),
                    now,
                    work,
                );
            }
            Outcome::Duplicate | Outcome::Stale | Outcome::Own => {}
        }
        outcome
    }

    /// Overlays that have ended, services of which somebody may go by now.
    fn pass_time(&mut self, now: Moment, work: &mut Work) {
        for name in self.overlays.expire(now.mono) {
            work.dirty.insert(name);
            work.changes.meta = true;
        }
        for _ in 0..self.overlays.gave_way() {
            work.changes.refused.push(GAVE_WAY);
        }
        work.touched.extend(self.deadlines.due(now.mono).map(ToOwned::to_owned));
    }

    /// Decides, in every service that was touched, about those who are about to go.
    fn settle(&mut self, now: Moment, work: &mut Work) {
        let rules = self.settings.protection;
        for name in std::mem::take(&mut work.touched) {
            let Some(model) = self.services.get_mut(&name) else {
                self.holding.remove(&name);
                self.deadlines.set(&name, None);
                self.trials.set(&name, None);
                continue;
            };
            let about = Context { now, rules: &rules, live: true, answered: self.answered };
            let held_before = self.holding.contains(&name);
            let bytes = model.bytes();
            let settled = model.settle(about);
            self.total = self.total.saturating_sub(settled.went.len());
            self.bytes = self.bytes.saturating_sub(bytes).saturating_add(model.bytes());
            if settled.changed {
                work.dirty.insert(name.clone());
            }
            let holds = model.holds();
            work.changes.meta |= holds || held_before;
            self.deadlines.set(&name, model.next(&rules));
            self.trials.set(&name, model.next_trial());
            for (id, why) in settled.went {
                work.notice("registry", &name, Some(&id), format!("gone: {why}"), false);
            }
            if settled.held > 0 {
                let held = u64::try_from(settled.held).unwrap_or(u64::MAX);
                work.changes.held = work.changes.held.saturating_add(held);
                let text = match held {
                    1 => "a removal is held: the endpoint still answers".to_owned(),
                    _ => format!("{held} removals are held: the endpoints still answer"),
                };
                work.notice("removal", &name, None, text, true);
            }
            if holds {
                self.holding.insert(name);
            } else {
                self.holding.remove(&name);
            }
        }
    }

    /// Whatever is kept by the name of a service or a key, counted.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> [usize; 8] {
        [
            self.services.len(),
            self.deleted.len(),
            self.holding.len(),
            self.deadlines.len(),
            self.trials.len(),
            self.demands.len(),
            self.seen.len(),
            self.published.services.len(),
        ]
    }

    fn forget_if_empty(&mut self, name: &str) {
        if self.services.get(name).is_some_and(Model::is_empty) {
            self.services.remove(name);
        }
    }

    // === tables ===

    pub(crate) const fn parts(&self) -> (&BTreeMap<String, Model>, &Overlays, &Settings, u64) {
        (&self.services, &self.overlays, &self.settings, self.revision)
    }

    pub(crate) const fn restore_parts(&mut self) -> (&mut Overlays, &mut SavedStream, &mut u64) {
        (&mut self.overlays, &mut self.stream, &mut self.revision)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.services.keys().cloned().collect()
    }
}
