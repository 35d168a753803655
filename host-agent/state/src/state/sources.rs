//! What the registry and the file say of endpoints and policies: taken in, compared, taken away.

use std::collections::{BTreeMap, BTreeSet};

use pintle_contract::MAX_ENDPOINTS;

use super::{FRAME_ROOM, MAX_TOTAL, Model, State, Work, show};
use crate::entry::{self, Reject};
use crate::service::{Context, Policy, Registration};
use crate::update::{Change, Item, Listing, Moment, Settings, Source, Told};

/// What a source holds of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyValue<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) revision: u64,
    pub(super) created: u64,
    pub(super) lease: u64,
}

/// What a registry's key stands for.
enum Named {
    Endpoint(Result<(String, String), Reject>),
    Policy(Result<String, Reject>),
}

impl Named {
    /// A policy's prefix may lie below the services' or the other way round: the longer one has it.
    fn by(settings: &Settings, key: &[u8]) -> Option<Self> {
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
    pub(super) fn take_listing(&mut self, listing: Listing, now: Moment, work: &mut Work) {
        // What was refused before and is not there any more is forgotten at the end.
        let refused_before: Vec<_> = self.rejected.keys().cloned().collect();
        let mut keys = BTreeSet::new();
        let lost_its_past = self.has_lost_its_past(&listing);
        self.listed = listing.revision;
        self.revision = listing.revision;
        self.deleted.clear();
        let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut policies = BTreeSet::new();
        let items: Vec<Item> = listing.items;
        for item in &items {
            match Named::by(&self.settings, &item.key) {
                Some(Named::Endpoint(Ok((name, id)))) => {
                    named.entry(name).or_default().insert(id);
                }
                Some(Named::Policy(Ok(name))) => {
                    policies.insert(name);
                }
                _ => {}
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
            for (id, entry) in model.registrations.of_mut(Source::Registry) {
                // After a restore, what is kept from before it must not outrank what comes next.
                entry.revision = entry.revision.min(self.listed);
                if !there.is_some_and(|ids| ids.contains(id)) {
                    missing.push((name.clone(), id.clone()));
                }
            }
            if policies.contains(name) {
                continue;
            }
            match &mut model.registry_policy {
                None => {}
                Some(policy) if policy.missing.is_some() => {}
                Some(policy) if lost_its_past && self.settings.protection.enabled => {
                    policy.missing = Some(now.wall);
                    work.touched.insert(name.clone());
                    let text = "the policy is missing in a registry that lost its past; it is held";
                    work.notice("removal", name, None, text.into(), true);
                    work.changes.held = work.changes.held.saturating_add(1);
                }
                gone => {
                    *gone = None;
                    work.dirty.insert(name.clone());
                }
            }
        }
        for (name, id) in missing {
            self.remove_endpoint(Source::Registry, &name, &id, now, work);
        }
        for place in refused_before {
            if matches!(place.0, "registry" | "policy") && !keys.contains(&place.1) {
                self.rejected.remove(&place);
                work.changes.meta = true;
            }
        }
        self.confirm_source(self.settings.decides == Source::Registry, now, work);
    }

    /// Whether the registry has come back without what it had: nobody deletes policies by that.
    fn has_lost_its_past(&self, listing: &Listing) -> bool {
        if listing.revision < self.revision {
            return true;
        }
        let there: BTreeMap<&[u8], u64> =
            listing.items.iter().map(|item| (item.key.as_slice(), item.revision)).collect();
        let (mut known, mut still) = (0usize, 0usize);
        for (name, model) in &self.services {
            for (id, entry) in model.registrations.of(Source::Registry) {
                let key = format!("{}{name}/{id}", self.settings.services);
                known = known.saturating_add(1);
                match there.get(key.as_bytes()) {
                    Some(revision) if *revision < entry.revision => return true,
                    Some(_) => still = still.saturating_add(1),
                    None => {}
                }
            }
            if model.registry_policy.is_some() {
                let key = format!("{}{name}", self.settings.policies);
                known = known.saturating_add(1);
                still = still.saturating_add(usize::from(there.contains_key(key.as_bytes())));
            }
        }
        still < known / 2
    }

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
                    self.put_item(Item { key, value, revision, created, lease }, now, work);
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
                if model.is_some_and(|model| model.registry_policy.take().is_some()) {
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

    fn put_item(&mut self, item: Item, now: Moment, work: &mut Work) {
        let Item { key, value, revision, created, lease } = &item;
        let (source, put) = match Named::by(&self.settings, key) {
            Some(Named::Policy(name)) => {
                let put = |name: String| self.put_policy(Source::Registry, &name, value, work);
                ("policy", name.and_then(put))
            }
            Some(Named::Endpoint(names)) => {
                let held = KeyValue {
                    bytes: value,
                    revision: *revision,
                    created: *created,
                    lease: *lease,
                };
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
                if let Err(reject) = self.put_policy(source, &service.name, policy, work) {
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
            if source == Source::File && model.file_policy.is_some() && !policies.contains(name) {
                model.file_policy = None;
                work.dirty.insert(name.clone());
            }
        }
        for (name, id) in missing {
            self.remove_endpoint(source, &name, &id, now, work);
        }
        // What was refused before and is not refused any more is forgotten.
        let before = self.rejected.len();
        self.rejected.retain(|(of, key), _| {
            let service = key.split('/').next().unwrap_or_default();
            *of != source.label() || refused.contains(key) || !is_told(service)
        });
        work.changes.meta |= self.rejected.len() < before;
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
        let KeyValue { bytes: value, revision, created, lease } = held;
        let model = self.services.get(name);
        let old = model.and_then(|model| model.registrations.of(source).get(id));
        if let Some(old) = old {
            if old.revision > revision && revision > self.listed {
                return Ok(());
            }
            let same = *old.raw == *value && (old.created, old.lease) == (created, lease);
            if same && old.revision <= revision {
                return Ok(());
            }
        }
        let replaces = old.map(|old| old.size);
        let endpoint = entry::parse(name, id, value, &self.settings.addresses)?;
        let size = entry::encoded_size(&endpoint);
        let after =
            model.map_or(0, Model::size).saturating_sub(replaces.unwrap_or(0)).saturating_add(size);
        if after > FRAME_ROOM {
            return Err(Reject::FrameTooLarge);
        }
        let before = model.map_or(0, Model::count);
        if replaces.is_none() && (before >= MAX_ENDPOINTS || self.total >= MAX_TOTAL) {
            return Err(Reject::TooMany);
        }
        let registration =
            Registration { endpoint, raw: value.into(), revision, created, lease, size };
        let about = Context {
            now,
            rules: &self.settings.protection,
            live: !self.stale,
            answered: self.answered,
        };
        let model = self.services.entry(name.to_owned()).or_default();
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
        Ok(())
    }

    pub(super) fn put_policy(
        &mut self,
        source: Source,
        name: &str,
        value: &[u8],
        work: &mut Work,
    ) -> Result<(), Reject> {
        if !pintle_contract::is_name(name) {
            return Err(Reject::Key);
        }
        if !self.services.contains_key(name) && self.services.len() >= MAX_TOTAL {
            return Err(Reject::TooMany);
        }
        let policy = Policy {
            value: entry::parse_policy(value, self.settings.check_policy)?,
            raw: value.into(),
            missing: None,
        };
        if self.holding.contains(name) {
            work.touched.insert(name.to_owned());
        }
        let model = self.services.entry(name.to_owned()).or_default();
        let place = match source {
            Source::Registry => &mut model.registry_policy,
            // EndpointSlices have none; the file's place is theirs.
            Source::File | Source::Kubernetes => &mut model.file_policy,
        };
        if place.as_ref().is_none_or(|old| old.value != policy.value) {
            work.dirty.insert(name.to_owned());
        }
        *place = Some(policy);
        Ok(())
    }

    fn remove_endpoint(
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
        let before = model.count();
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
    }
}
