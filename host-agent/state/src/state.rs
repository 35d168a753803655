//! The state: what every source said, merged, protected, overlaid, and made into a [`Snapshot`].
//!
//! ```text
//!   Listing, Changes ──▶ Service.registry ─┐ removals wait in line
//!   File ──────────────▶ Service.file ─────┤
//!   Events ────────────▶ Overlays ─────────┴─▶ publish(names) ─▶ Table, versioned ─▶ Arc<Snapshot>
//! ```
//! Precedence, weakest first: the file; the registry (per endpoint id; per key of a policy); events,
//! until they expire. One writer owns the state by value, passes time in, and decides when the
//! services that changed are published: applying is cheap and happens for every update, building
//! tables is not and happens at the publisher's pace. A table equal to the published one is dropped
//! here, so nothing downstream ever sees a change that is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pintle_snapshot::{Down, MAX_ENDPOINTS, MAX_FRAME, MAX_POLICY, Message, Table, Version};
use serde_json::Value;

use crate::entry::{self, Reject};
use crate::event::Event;
use crate::overlay::{Overlays, Place};
use crate::saved::SavedStream;
use crate::service::{Entry, Origin, Policy, Removal, Service as Model};
use crate::snapshot::{Rejected, Service, Snapshot};
use crate::update::{
    Change, Changes, FileService, Item, Listing, Moment, Notice, Outcome, Settings, Update,
};

mod lists;

pub use lists::show;

/// Endpoints of both sources together, at most.
pub const MAX_TOTAL: usize = 100_000;
/// Services that went and are remembered; beyond it the oldest readers get everything.
const MAX_GONE: usize = 1_000;
/// Entries of the lists for people in a snapshot; they are copied with every change.
const MAX_LISTED: usize = 1_000;
/// Notices of one update: a listing of broken values must not become a flood of lines.
const MAX_NOTICES: usize = 32;
/// What a frame holds beside endpoints: header, checksum, names, versions and the largest policy.
const FRAME_ROOM: usize = MAX_FRAME - MAX_POLICY - 4096;

/// The head of this file says how they come together.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    services: BTreeMap<String, Model>,
    total: usize,
    overlays: Overlays,
    stream: SavedStream,
    /// The revision of the last listing; changes up to it are old news.
    listed: u64,
    /// Keys deleted since the last listing, so that a change repeated late does not bring them back.
    deleted: HashMap<Vec<u8>, u64>,
    /// Services with removals in line.
    lines: BTreeSet<String>,
    rejected: BTreeMap<(&'static str, String), (u64, Rejected)>,
    rejections: u64,
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
            overlays: Overlays::default(),
            stream: SavedStream::default(),
            listed: 0,
            deleted: HashMap::new(),
            lines: BTreeSet::new(),
            rejected: BTreeMap::new(),
            rejections: 0,
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
            Update::Changes(changes) => self.take_changes(changes, now, &mut work),
            Update::Progress { .. } => self.confirmed_at = Some(now.wall),
            Update::File(services) => self.take_file(services, now, &mut work),
            Update::Events(events) => {
                for event in events {
                    let outcome = self.take_event(event, now, &mut work);
                    work.changes.outcomes.push(outcome);
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
            Update::Release { service } => self.release(&service, &mut work),
            Update::Tick => {}
        }
        self.pass_time(now, &mut work);
        for name in &work.dirty {
            self.seen.entry(name.clone()).or_insert(now.wall);
        }
        self.meta_changed |= work.changes.meta;
        work.changes.services = work.dirty.into_iter().collect();
        work.changes
    }

    /// When time alone will change something, on the monotonic clock.
    pub fn next_deadline(&mut self) -> Option<Duration> {
        let rules = self.settings.protection;
        let services = &mut self.services;
        let lines = self.lines.iter().filter_map(|name| services.get_mut(name)?.due(&rules));
        lines.chain(self.overlays.next()).min()
    }

    /// What was published last.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.published)
    }

    /// Builds the tables of these services and publishes those that differ from what was published,
    /// each under a version of its own; with `lists`, what stands beside the tables as well. Whether
    /// there is a new snapshot at all.
    pub fn publish<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
        lists: bool,
        now: Moment,
    ) -> bool {
        let mut next: Option<Snapshot> = None;
        let published = Arc::clone(&self.published);
        for name in names {
            let seen_at = self.seen.remove(name).unwrap_or(now.wall);
            let old = published.services.get(name);
            let built = self.build(name);
            let next = match (old, built) {
                (None, None) => continue,
                (Some(old), Some(built))
                    if old.table.endpoints == built.endpoints
                        && old.table.policy == built.policy =>
                {
                    continue;
                }
                (_, built) => {
                    let next = next.get_or_insert_with(|| Snapshot::clone(&published));
                    self.version.sequence = self.version.sequence.saturating_add(1);
                    (next, built)
                }
            };
            let (next, built) = next;
            if let Some(mut table) = built {
                table.version = self.version;
                next.gone.remove(name);
                let frame = Down::Table(table.clone()).encode();
                let service = Service { table, frame, seen_at };
                next.services.insert(name.to_owned(), Arc::new(service));
            } else {
                next.services.remove(name);
                next.gone.insert(name.to_owned(), self.version);
                forget_gone(next);
            }
        }
        let lists = lists && self.meta_changed;
        if next.is_none() && !lists {
            return false;
        }
        let mut next = next.unwrap_or_else(|| Snapshot::clone(&published));
        next.version = self.version;
        next.stale = self.stale;
        next.confirmed_at = self.confirmed_at;
        if lists {
            self.meta_changed = false;
            next.held = self.list_held(now);
            next.rejected = self.list_rejected();
            next.overlays = self.list_overlays();
        }
        self.published = Arc::new(next);
        true
    }

    /// The published snapshot with the time of the registry's last word in it: for readers that ask,
    /// not for those that are told.
    pub fn confirm(&mut self) -> Arc<Snapshot> {
        if self.published.confirmed_at != self.confirmed_at {
            let mut next = Snapshot::clone(&self.published);
            next.confirmed_at = self.confirmed_at;
            self.published = Arc::new(next);
        }
        self.snapshot()
    }

    /// The stream and the highest sequence applied.
    #[must_use]
    pub const fn stream(&self) -> SavedStream {
        self.stream
    }

    // === sources ===

    fn take_listing(&mut self, listing: Listing, now: Moment, work: &mut Work) {
        // What was refused before and is not there any more is forgotten at the end.
        let refused_before: Vec<_> = self.rejected.keys().cloned().collect();
        let mut keys = BTreeSet::new();
        self.listed = listing.revision;
        self.deleted.clear();
        let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut policies = BTreeSet::new();
        let items: Vec<Item> = listing.items;
        for item in &items {
            if let Ok((name, id)) = entry::split_key(&self.settings.services, &item.key) {
                named.entry(name.into()).or_default().insert(id.into());
            } else if let Ok(name) = entry::policy_key(&self.settings.policies, &item.key) {
                policies.insert(name.to_owned());
            }
            if !refused_before.is_empty() {
                keys.insert(show(&item.key));
            }
        }
        // Puts come first: what moved to another id is there before its old one asks to go.
        for item in items {
            self.put_item(item, now, work);
        }
        let mut missing = Vec::new();
        for (name, model) in &mut self.services {
            let there = named.get(name);
            for (id, entry) in &mut model.registry {
                // After a restore, what is kept from before it must not outrank what comes next.
                entry.revision = entry.revision.min(self.listed);
                if !there.is_some_and(|ids| ids.contains(id)) {
                    missing.push((name.clone(), id.clone()));
                }
            }
            if model.registry_policy.is_some() && !policies.contains(name) {
                model.registry_policy = None;
                work.dirty.insert(name.clone());
            }
        }
        for (name, id) in missing {
            self.remove_endpoint(Origin::Registry, &name, &id, now, work);
        }
        for place in refused_before {
            if matches!(place.0, "registry" | "policy") && !keys.contains(&place.1) {
                self.rejected.remove(&place);
                work.changes.meta = true;
            }
        }
        self.confirm_source(self.settings.registry, now, work);
    }

    fn take_changes(&mut self, changes: Vec<Change>, now: Moment, work: &mut Work) {
        for change in changes {
            if change.revision <= self.listed {
                continue;
            }
            let known = self.deleted.get(&change.key).is_some_and(|at| *at > change.revision);
            if known {
                continue;
            }
            match change.value {
                Some(value) => self.put_item(
                    Item { key: change.key, value, revision: change.revision },
                    now,
                    work,
                ),
                None => self.delete_key(change.key, change.revision, now, work),
            }
        }
        self.confirmed_at = Some(now.wall);
    }

    fn delete_key(&mut self, key: Vec<u8>, revision: u64, now: Moment, work: &mut Work) {
        self.accept("registry", &key, work);
        self.accept("policy", &key, work);
        if let Ok((name, id)) = entry::split_key(&self.settings.services, &key) {
            let (name, id) = (name.to_owned(), id.to_owned());
            let newer = self
                .services
                .get(&name)
                .and_then(|model| model.registry.get(&id))
                .is_some_and(|entry| entry.revision > revision);
            if newer {
                return;
            }
            self.remove_endpoint(Origin::Registry, &name, &id, now, work);
        } else if let Ok(name) = entry::policy_key(&self.settings.policies, &key)
            && let Some(model) = self.services.get_mut(name)
            && model.registry_policy.take().is_some()
        {
            work.dirty.insert(name.to_owned());
        }
        if self.deleted.len() < MAX_TOTAL {
            self.deleted.insert(key, revision);
        }
    }

    fn put_item(&mut self, item: Item, now: Moment, work: &mut Work) {
        let key = &item.key;
        let in_services = key.starts_with(self.settings.services.as_bytes());
        let in_policies = key.starts_with(self.settings.policies.as_bytes());
        // A policy's prefix may lie below the services' or the other way round: the longer one has it.
        let is_policy = in_policies
            && (!in_services || self.settings.policies.len() > self.settings.services.len());
        if is_policy {
            let read = entry::policy_key(&self.settings.policies, key)
                .map(ToOwned::to_owned)
                .and_then(|name| self.put_policy(Origin::Registry, &name, &item.value, work));
            match read {
                Ok(()) => self.accept("policy", key, work),
                Err(reject) => self.reject("policy", key, &reject, now, work),
            }
        } else if in_services {
            let read = entry::split_key(&self.settings.services, key)
                .map(|(name, id)| (name.to_owned(), id.to_owned()))
                .and_then(|(name, id)| {
                    let value = &item.value;
                    self.put_endpoint(Origin::Registry, &name, &id, value, item.revision, work)
                });
            match read {
                Ok(()) => self.accept("registry", key, work),
                Err(reject) => self.reject("registry", key, &reject, now, work),
            }
        }
    }

    fn take_file(&mut self, services: Vec<FileService>, now: Moment, work: &mut Work) {
        let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut policies = BTreeSet::new();
        self.rejected.retain(|(source, _), _| *source != "file");
        for service in services {
            let ids = named.entry(service.name.clone()).or_default();
            ids.extend(service.endpoints.iter().map(|(id, _)| id.clone()));
            if let Some(policy) = &service.policy {
                policies.insert(service.name.clone());
                if let Err(reject) = self.put_policy(Origin::File, &service.name, policy, work) {
                    self.reject("file", service.name.as_bytes(), &reject, now, work);
                }
            }
            for (id, value) in &service.endpoints {
                if let Err(reject) =
                    self.put_endpoint(Origin::File, &service.name, id, value, 0, work)
                {
                    let key = format!("{}/{id}", service.name);
                    self.reject("file", key.as_bytes(), &reject, now, work);
                }
            }
        }
        let mut missing = Vec::new();
        for (name, model) in &mut self.services {
            let there = named.get(name);
            for id in model.file.keys() {
                if !there.is_some_and(|ids| ids.contains(id)) {
                    missing.push((name.clone(), id.clone()));
                }
            }
            if model.file_policy.is_some() && !policies.contains(name) {
                model.file_policy = None;
                work.dirty.insert(name.clone());
            }
        }
        for (name, id) in missing {
            self.remove_endpoint(Origin::File, &name, &id, now, work);
        }
        self.confirm_source(!self.settings.registry, now, work);
    }

    fn confirm_source(&mut self, decides: bool, now: Moment, work: &mut Work) {
        if decides {
            self.confirmed_at = Some(now.wall);
            work.changes.meta |= self.stale;
            self.stale = false;
        }
    }

    fn put_endpoint(
        &mut self,
        origin: Origin,
        name: &str,
        id: &str,
        value: &[u8],
        revision: u64,
        work: &mut Work,
    ) -> Result<(), Reject> {
        if !pintle_snapshot::is_name(name) || !pintle_snapshot::is_name(id) {
            return Err(Reject::Key);
        }
        let old = self.services.get(name).and_then(|model| model.entries(origin).get(id));
        if let Some(old) = old {
            if old.revision > revision && revision > self.listed {
                return Ok(());
            }
            if old.gone.is_none() && *old.raw == *value && old.revision <= revision {
                return Ok(());
            }
        }
        let replaces = old.map(|old| old.size);
        let endpoint = entry::parse(name, id, value, &self.settings.addresses)?;
        let size = entry::encoded_size(&endpoint);
        let model = self.services.get(name);
        let after = model
            .map_or(0, |model| model.size)
            .saturating_sub(replaces.unwrap_or(0))
            .saturating_add(size);
        if after > FRAME_ROOM {
            return Err(Reject::FrameTooLarge);
        }
        if replaces.is_none() {
            let here = model.map_or(0, Model::present);
            if here >= MAX_ENDPOINTS || self.total >= MAX_TOTAL {
                return Err(Reject::TooMany);
            }
            self.total = self.total.saturating_add(1);
        }
        let address = endpoint.socket_addr();
        let entry = Entry { endpoint, raw: value.into(), revision, size, gone: None };
        let model = self.services.entry(name.to_owned()).or_default();
        if model.put(origin, entry) {
            work.dirty.insert(name.to_owned());
            if replaces.is_none() && !self.stale {
                work.notice("registry", name, Some(id), "registered".into(), false);
            }
        }
        let went = model.succeed(address);
        if went > 0 {
            self.total = self.total.saturating_sub(went);
            work.changes.meta = true;
            work.dirty.insert(name.to_owned());
            let text = "its held removal took effect: registered under another id".into();
            work.notice("removal", name, Some(id), text, false);
        }
        Ok(())
    }

    fn put_policy(
        &mut self,
        origin: Origin,
        name: &str,
        value: &[u8],
        work: &mut Work,
    ) -> Result<(), Reject> {
        if !pintle_snapshot::is_name(name) {
            return Err(Reject::Key);
        }
        if !self.services.contains_key(name) && self.services.len() >= MAX_TOTAL {
            return Err(Reject::TooMany);
        }
        let policy = Policy {
            value: entry::parse_policy(value, self.settings.check_policy)?,
            raw: value.into(),
        };
        let model = self.services.entry(name.to_owned()).or_default();
        let place = match origin {
            Origin::Registry => &mut model.registry_policy,
            Origin::File => &mut model.file_policy,
        };
        if place.as_ref().is_none_or(|old| old.value != policy.value) {
            work.dirty.insert(name.to_owned());
        }
        *place = Some(policy);
        Ok(())
    }

    fn remove_endpoint(
        &mut self,
        origin: Origin,
        name: &str,
        id: &str,
        now: Moment,
        work: &mut Work,
    ) {
        let Some(model) = self.services.get_mut(name) else {
            return;
        };
        match model.remove(origin, id, now, &self.settings.protection) {
            Removal::Nothing => {}
            Removal::Done => {
                self.total = self.total.saturating_sub(1);
                work.dirty.insert(name.to_owned());
                work.notice("registry", name, Some(id), "removed".into(), false);
            }
            Removal::Held => {
                let first = self.lines.insert(name.to_owned());
                work.changes.meta = true;
                work.changes.held = work.changes.held.saturating_add(1);
                let text = "removal held: too many at once, or the last one".into();
                work.notice("removal", name, Some(id), text, first);
            }
        }
        self.forget_if_empty(name);
    }

    fn release(&mut self, name: &str, work: &mut Work) {
        if let Some(model) = self.services.get_mut(name) {
            let went = model.release();
            self.total = self.total.saturating_sub(went);
            self.lines.remove(name);
            work.changes.released = went;
            if went > 0 {
                work.changes.meta = true;
                work.dirty.insert(name.to_owned());
                let text = format!("{went} removals released by a person");
                work.notice("removal", name, None, text, false);
            }
        }
        self.forget_if_empty(name);
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
                self.reject("event", key.as_bytes(), &Reject::TooMany, now, work);
            }
            Outcome::Duplicate | Outcome::Stale | Outcome::Own => {}
        }
        outcome
    }

    /// Removals whose turn has come, overlays that have ended.
    fn pass_time(&mut self, now: Moment, work: &mut Work) {
        for name in self.overlays.expire(now.mono) {
            work.dirty.insert(name);
            work.changes.meta = true;
        }
        let rules = self.settings.protection;
        let mut settled = Vec::new();
        for name in &self.lines {
            let Some(model) = self.services.get_mut(name) else {
                settled.push(name.clone());
                continue;
            };
            let went = model.settle(now, &rules);
            if went > 0 {
                self.total = self.total.saturating_sub(went);
                work.changes.meta = true;
                work.dirty.insert(name.clone());
                let text = format!("{went} held removals took effect");
                work.notice("removal", name, None, text, false);
            }
            if model.waiting() == 0 {
                settled.push(name.clone());
                work.changes.meta = true;
            }
        }
        for name in settled {
            self.lines.remove(&name);
            self.forget_if_empty(&name);
        }
    }

    fn forget_if_empty(&mut self, name: &str) {
        if self.services.get(name).is_some_and(Model::is_empty) {
            self.services.remove(name);
        }
    }

    // === tables ===

    fn build(&self, name: &str) -> Option<Table> {
        let model = self.services.get(name)?;
        let mut endpoints = model.merged();
        if endpoints.is_empty() {
            return None;
        }
        endpoints.truncate(MAX_ENDPOINTS);
        self.overlays.lay_over(name, &mut endpoints);
        Some(Table {
            service: name.to_owned(),
            version: Version::default(),
            endpoints,
            policy: self.policy(name, model),
        })
    }

    /// The sources' patches and the events', composed; an event's that would break the whole is left out.
    fn policy(&self, name: &str, model: &Model) -> String {
        let mut whole = Value::Null;
        for policy in [&model.file_policy, &model.registry_policy].into_iter().flatten() {
            let mut tried = whole;
            crate::json::compose(&mut tried, policy.value.clone());
            // Each is good by itself. Where both together are not, the registry's stands alone.
            let good = (self.settings.check_policy)(&tried).is_ok();
            whole = if good { tried } else { policy.value.clone() };
        }
        for patch in self.overlays.patches(name) {
            let mut tried = whole.clone();
            crate::json::compose(&mut tried, patch);
            if (self.settings.check_policy)(&tried).is_ok() {
                whole = tried;
            }
        }
        if whole.is_null() {
            return String::new();
        }
        whole.sort_all_objects();
        let text = whole.to_string();
        if text.len() > MAX_POLICY { String::new() } else { text }
    }

    pub(crate) const fn parts(&self) -> (&BTreeMap<String, Model>, &Overlays, &Settings) {
        (&self.services, &self.overlays, &self.settings)
    }

    pub(crate) const fn restore_parts(&mut self) -> (&mut Overlays, &mut SavedStream) {
        (&mut self.overlays, &mut self.stream)
    }

    /// One value from disk, as if its source had just said it.
    pub(crate) fn restore_endpoint(&mut self, origin: Origin, name: &str, id: &str, value: &str) {
        let mut work = Work::default();
        // What is not good under today's configuration is not served from yesterday's disk.
        let _ = self.put_endpoint(origin, name, id, value.as_bytes(), 0, &mut work);
    }

    pub(crate) fn restore_policy(&mut self, origin: Origin, name: &str, value: &str) {
        let mut work = Work::default();
        let _ = self.put_policy(origin, name, value.as_bytes(), &mut work);
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.services.keys().cloned().collect()
    }
}

/// What one update collects.
#[derive(Debug, Default)]
struct Work {
    changes: Changes,
    dirty: BTreeSet<String>,
}

impl Work {
    fn notice(
        &mut self,
        kind: &'static str,
        service: &str,
        endpoint: Option<&str>,
        text: String,
        alarm: bool,
    ) {
        self.push(Notice {
            kind,
            service: Some(service.to_owned()),
            endpoint: endpoint.map(ToOwned::to_owned),
            text,
            alarm,
        });
    }

    fn push(&mut self, notice: Notice) {
        if notice.alarm || self.changes.notices.len() < MAX_NOTICES {
            self.changes.notices.push(notice);
            self.changes.notices.truncate(MAX_NOTICES.saturating_mul(2));
        }
    }
}

fn forget_gone(next: &mut Snapshot) {
    while next.gone.len() > MAX_GONE {
        let oldest = next.gone.iter().min_by_key(|(_, version)| **version);
        let Some((name, version)) = oldest.map(|(name, version)| (name.clone(), *version)) else {
            return;
        };
        next.gone.remove(&name);
        next.complete_since = next.complete_since.max(version);
    }
}
