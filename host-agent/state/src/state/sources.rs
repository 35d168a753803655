//! What the registry and the file say of endpoints and policies: taken in, compared, taken away.

use std::collections::{BTreeMap, BTreeSet};

use pintle_contract::MAX_ENDPOINTS;

use super::{FRAME_ROOM, MAX_TOTAL, Model, State, Work, show};
use crate::entry::{self, Reject};
use crate::service::{Context, Policy, Raw, Registration};
use crate::update::{Change, Item, Moment, Settings, Source, Told};

/// What a source holds of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyValue<'a> {
    pub(super) bytes: &'a [u8],
    /// At which revision the registry held it: what is held of a later one stays.
    pub(super) at: u64,
    pub(super) revision: u64,
    pub(super) created: u64,
    pub(super) lease: u64,
}

/// What there is when a further endpoint is refused ([`MAX_ENDPOINTS`], [`MAX_TOTAL`]).
const FULL: &str = "10,000 endpoints of its service, or 100,000 of all,";

/// What a registry's key stands for.
pub(super) enum Named {
    Endpoint(Result<(String, String), Reject>),
    Policy(Result<String, Reject>),
}

impl Named {
    /// A policy's prefix may lie below the services' or the other way round: the longer one has it.
    pub(super) fn by(settings: &Settings, key: &[u8]) -> Option<Self> {
        let in_services = key.starts_with(settings.services.as_bytes());
        let in_policies = key.starts_with(settings.policies.as_bytes());
        if in_policies && (!in_services || settings.policies.len() > settings.services.len()) {
            let name = entry::policy_key(&settings.policies, key);
            return Some(Self::Policy(name.map(ToOwned::to_owned)));
        }
        in_services.then(|| {
            let names = entry::split_key(&settings.services, key);
            Self::Endpoint(names.map(|(name, id)| (name.to_owned(), id.to_owned())))
        })
    }
}

impl State {
    pub(super) fn take_changes(&mut self, changes: Vec<Change>, now: Moment, work: &mut Work) {
        for change in changes {
            if change.revision <= self.listed {
                continue;
            }
            self.revision = self.revision.max(change.revision);
            let known = self.deleted.get(&change.key).is_some_and(|at| *at > change.revision);
            if known {
                continue;
            }
            match change.value {
                Some(value) => {
                    let Change { key, revision, created, lease, .. } = change;
                    let item = Item { key, value, revision, created, lease };
                    self.put_item(item, revision, now, work);
                }
                None => self.delete_key(change.key, change.revision, now, work),
            }
        }
        self.confirmed_at = Some(now.wall);
    }

    fn delete_key(&mut self, key: Vec<u8>, revision: u64, now: Moment, work: &mut Work) {
        self.accept("registry", &key, work);
        self.accept("policy", &key, work);
        match Named::by(&self.settings, &key) {
            Some(Named::Endpoint(Ok((name, id)))) => {
                let newer = self
                    .services
                    .get(&name)
                    .and_then(|model| model.registrations.of(Source::Registry).get(&id))
                    .is_some_and(|entry| entry.revision > revision);
                if newer {
                    return;
                }
                self.remove_endpoint(Source::Registry, &name, &id, now, work);
            }
            Some(Named::Policy(Ok(name))) => {
                let model = self.services.get_mut(&name);
                if let Some(policy) = model.and_then(|model| model.registry_policy.take()) {
                    self.bytes = self.bytes.saturating_sub(policy.bytes);
                    work.touched.insert(name.clone());
                    work.dirty.insert(name);
                }
            }
            _ => {}
        }
        if self.deleted.len() < MAX_TOTAL {
            self.deleted.insert(key, revision);
        }
    }

    /// Takes what the registry held at the revision `at`.
    pub(super) fn put_item(&mut self, item: Item, at: u64, now: Moment, work: &mut Work) {
        let Item { key, value, revision, created, lease } = &item;
        let (revision, created, lease) = (*revision, *created, *lease);
        let held = KeyValue { bytes: value, at, revision, created, lease };
        let (source, put) = match Named::by(&self.settings, key) {
            Some(Named::Policy(name)) => {
                let put = |name: String| self.put_policy(Source::Registry, &name, held, work);
                ("policy", name.and_then(put))
            }
            Some(Named::Endpoint(names)) => {
                let put = |(name, id): (String, String)| {
                    self.put_endpoint(Source::Registry, (&name, &id), held, now, work)
                };
                ("registry", names.and_then(put))
            }
            None => return,
        };
        match put {
            Ok(()) => self.accept(source, key, work),
            Err(reject) => self.reject(source, key, &reject, now, work),
        }
    }

    pub(super) fn take_services(
        &mut self,
        source: Source,
        whole: bool,
        services: Vec<Told>,
        now: Moment,
        work: &mut Work,
    ) {
        let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut policies = BTreeSet::new();
        let mut refused = BTreeSet::new();
        for service in services {
            let ids = named.entry(service.name.clone()).or_default();
            ids.extend(service.endpoints.iter().map(|(id, _)| id.clone()));
            if let Some(policy) = &service.policy {
                policies.insert(service.name.clone());
                let held = KeyValue { bytes: policy, ..KeyValue::default() };
                if let Err(reject) = self.put_policy(source, &service.name, held, work) {
                    refused.insert(show(service.name.as_bytes()));
                    self.reject(source.label(), service.name.as_bytes(), &reject, now, work);
                }
            }
            for (id, value) in &service.endpoints {
                let held = KeyValue { bytes: value, ..KeyValue::default() };
                let names = (service.name.as_str(), id.as_str());
                if let Err(reject) = self.put_endpoint(source, names, held, now, work) {
                    let key = format!("{}/{id}", service.name);
                    refused.insert(show(key.as_bytes()));
                    self.reject(source.label(), key.as_bytes(), &reject, now, work);
                }
            }
        }
        let is_told = |name: &str| whole || named.contains_key(name);
        let mut missing = Vec::new();
        for (name, model) in &mut self.services {
            if !is_told(name) {
                continue;
            }
            let there = named.get(name);
            for id in model.registrations.of(source).keys() {
                if !there.is_some_and(|ids| ids.contains(id)) {
                    missing.push((name.clone(), id.clone()));
                }
            }
            if source == Source::File
                && !policies.contains(name)
                && let Some(policy) = model.file_policy.take()
            {
                self.bytes = self.bytes.saturating_sub(policy.bytes);
                work.dirty.insert(name.clone());
            }
        }
        for (name, id) in missing {
            self.remove_endpoint(source, &name, &id, now, work);
        }
        // What was refused before and is not refused any more is forgotten.
        work.changes.meta |= self.refusals.retain(|of, key| {
            let service = key.split('/').next().unwrap_or_default();
            of != source.label() || refused.contains(key) || !is_told(service)
        });
        self.confirm_source(whole && source == self.settings.decides, now, work);
    }

    pub(super) fn confirm_source(&mut self, decides: bool, now: Moment, work: &mut Work) {
        if decides {
            self.confirmed_at = Some(now.wall);
            work.changes.meta |= self.stale;
            self.stale = false;
        }
    }

    pub(super) fn put_endpoint(
        &mut self,
        source: Source,
        (name, id): (&str, &str),
        held: KeyValue<'_>,
        now: Moment,
        work: &mut Work,
    ) -> Result<(), Reject> {
        if !pintle_contract::is_name(name) || !pintle_contract::is_name(id) {
            return Err(Reject::Key);
        }
        let KeyValue { bytes: value, at, revision, created, lease } = held;
        let model = self.services.get(name);
        let old = model.and_then(|model| model.registrations.of(source).get(id));
        let told = Raw::of(value);
        if let Some(old) = old {
            if old.revision > at {
                return Ok(());
            }
            let same = old.told == told && (old.created, old.lease) == (created, lease);
            if same && old.revision <= revision {
                return Ok(());
            }
        }
        let replaces = old.map(|old| old.size);
        let bytes = old.map_or(0, |old| old.told.bytes);
        self.fits(bytes, value.len())?;
        let endpoint = entry::parse(name, id, value, &self.settings.addresses)?;
        let size = entry::encoded_size(&endpoint);
        let after =
            model.map_or(0, Model::size).saturating_sub(replaces.unwrap_or(0)).saturating_add(size);
        if after > FRAME_ROOM {
            return Err(Reject::FrameTooLarge);
        }
        let before = model.map_or(0, Model::count);
        if replaces.is_none() && (before >= MAX_ENDPOINTS || self.total >= MAX_TOTAL) {
            return Err(Reject::TooMany(FULL));
        }
        let registration = Registration { endpoint, told, revision, created, lease, size };
        let about = Context {
            now,
            rules: &self.settings.protection,
            live: !self.stale,
            answered: self.answered,
        };
        let model = self.services.entry(name.to_owned()).or_default();
        let bytes = model.bytes();
        if model.put(source, registration, about) {
            work.dirty.insert(name.to_owned());
            if replaces.is_none() && !self.stale {
                work.notice("registry", name, Some(id), "registered".into(), false);
            }
        }
        if model.holds() || self.holding.contains(name) {
            work.touched.insert(name.to_owned());
        }
        self.total = self.total.saturating_sub(before).saturating_add(model.count());
        self.bytes = self.bytes.saturating_sub(bytes).saturating_add(model.bytes());
        Ok(())
    }

    /// Whether a value of so many bytes may take the place of another.
    const fn fits(&self, old: usize, new: usize) -> Result<(), Reject> {
        let budget = self.settings.budget;
        let after = self.bytes.saturating_sub(old).saturating_add(new);
        if new > old && after > budget { Err(Reject::OverBudget(budget)) } else { Ok(()) }
    }

    pub(super) fn put_policy(
        &mut self,
        source: Source,
        name: &str,
        held: KeyValue<'_>,
        work: &mut Work,
    ) -> Result<(), Reject> {
        if !pintle_contract::is_name(name) {
            return Err(Reject::Key);
        }
        let (value, revision) = (held.bytes, held.revision);
        if !self.services.contains_key(name) && self.services.len() >= MAX_TOTAL {
            return Err(Reject::TooMany("100,000 services"));
        }
        let place = |model: &Model| model.policy(source).map(|old| (old.revision, old.bytes));
        let (newest, before) = self.services.get(name).and_then(place).unwrap_or_default();
        if newest > held.at {
            return Ok(());
        }
        let parsed = entry::parse_policy(value, self.settings.check_policy)?;
        self.fits(before, value.len())?;
        let endpoints = self.services.get(name).map(|model| model.merged().0).unwrap_or_default();
        let demand = (self.settings.demand)(&parsed, &endpoints);
        self.demands.fits(name, &demand, self.settings.vm_budget)?;
        self.demands.set(name, Some(demand));
        self.bytes = self.bytes.saturating_sub(before).saturating_add(value.len());
        let policy = Policy { value: parsed, bytes: value.len(), revision, missing: None };
        if self.holding.contains(name) {
            work.touched.insert(name.to_owned());
        }
        let model = self.services.entry(name.to_owned()).or_default();
        let place = model.policy_mut(source);
        if place.as_ref().is_none_or(|old| old.value != policy.value) {
            work.dirty.insert(name.to_owned());
        }
        *place = Some(policy);
        Ok(())
    }

    pub(super) fn remove_endpoint(
        &mut self,
        source: Source,
        name: &str,
        id: &str,
        now: Moment,
        work: &mut Work,
    ) {
        let Some(model) = self.services.get_mut(name) else {
            return;
        };
        let (before, bytes) = (model.count(), model.bytes());
        let about =
            Context { now, rules: &self.settings.protection, live: true, answered: self.answered };
        if let Some(lease) = model.remove(source, id, about) {
            work.dirty.insert(name.to_owned());
            work.touched.insert(name.to_owned());
            if lease > 0 && work.changes.leases.last() != Some(&lease) {
                work.changes.leases.push(lease);
            }
            work.notice("registry", name, Some(id), "its key is gone".into(), false);
        }
        self.total = self.total.saturating_sub(before).saturating_add(model.count());
        self.bytes = self.bytes.saturating_sub(bytes).saturating_add(model.bytes());
    }
}
