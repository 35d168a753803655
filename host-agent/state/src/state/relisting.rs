//! A listing of the registry, taken page by page and compared with what is held.
//!
//! Whole it may be many times what is accepted of it, so no more than a page of it is ever in
//! memory. What a page puts is taken at once. What goes is known at the end, when all that is there
//! has been named: what moved to another id is there before its old one asks to go. The watch may
//! tell of newer things meanwhile; a page does not undo them. Tables are made at the end, since a
//! service may have a part of its endpoints until then.

use std::collections::{BTreeMap, BTreeSet};

use super::{Named, State, Work};
use crate::update::{Item, Listed, Listing, Moment, Page, Source};

/// The listing that is being taken.
#[derive(Debug)]
pub(super) struct Relisting {
    /// At which revision the registry is listed.
    revision: u64,
    /// The keys that it has named: ids by service, and the services of policies.
    ids: BTreeMap<String, BTreeSet<String>>,
    policies: BTreeSet<String>,
    /// Services whose table is to be made anew.
    dirty: BTreeSet<String>,
    /// Keys that were held before, and how many of them are there.
    known: usize,
    still: usize,
    /// Whether something is older than what is held.
    went_back: bool,
}

impl Relisting {
    /// Whether the registry has come back without what it had: nobody deletes policies by that.
    const fn lost_its_past(&self) -> bool {
        self.went_back || self.still < self.known / 2
    }
}

impl State {
    /// A listing in one piece.
    pub(super) fn take_listing(&mut self, listing: Listing, now: Moment, work: &mut Work) {
        let Listing { revision, items } = listing;
        self.take_page(Page { begins: true, revision, items }, now, work);
        self.end_listing(Listed::default(), now, work);
    }

    pub(super) fn take_page(&mut self, page: Page, now: Moment, work: &mut Work) {
        if page.begins {
            self.begin_listing(page.revision, work);
        }
        for item in page.items {
            self.take_listed(item, now, work);
        }
        if let Some(listing) = &mut self.relisting {
            listing.dirty.append(&mut work.dirty);
        }
    }

    fn begin_listing(&mut self, revision: u64, work: &mut Work) {
        if let Some(broken_off) = self.relisting.take() {
            work.dirty.extend(broken_off.dirty);
        }
        self.refusals.begin();
        let went_back = revision < self.revision;
        let mut known = 0usize;
        for model in self.services.values_mut() {
            let registered = model.registrations.of_mut(Source::Registry);
            known = known.saturating_add(registered.len());
            known = known.saturating_add(usize::from(model.registry_policy.is_some()));
            if went_back {
                // What is kept from before a restore must not outrank what comes after it.
                for entry in registered.values_mut() {
                    entry.revision = entry.revision.min(revision);
                }
                if let Some(policy) = &mut model.registry_policy {
                    policy.revision = policy.revision.min(revision);
                }
            }
        }
        if went_back {
            self.deleted.clear();
        }
        self.relisting = Some(Relisting {
            revision,
            ids: BTreeMap::new(),
            policies: BTreeSet::new(),
            dirty: BTreeSet::new(),
            known,
            still: 0,
            went_back,
        });
    }

    fn take_listed(&mut self, item: Item, now: Moment, work: &mut Work) {
        let Some(listing) = &mut self.relisting else { return };
        let at = listing.revision;
        match Named::by(&self.settings, &item.key) {
            Some(Named::Endpoint(Ok((name, id)))) => {
                let model = self.services.get(&name);
                if let Some(held) =
                    model.and_then(|it| it.registrations.of(Source::Registry).get(&id))
                {
                    let is_newer = held.revision > listing.revision;
                    listing.still = listing.still.saturating_add(1);
                    listing.went_back |= item.revision < held.revision && !is_newer;
                }
                listing.ids.entry(name).or_default().insert(id);
            }
            Some(Named::Policy(Ok(name))) => {
                let model = self.services.get(&name);
                let held = model.is_some_and(|model| model.registry_policy.is_some());
                listing.still = listing.still.saturating_add(usize::from(held));
                listing.policies.insert(name);
            }
            _ => {}
        }
        let newer = self.deleted.get(&item.key).is_some_and(|at| *at > item.revision);
        if !newer {
            self.put_item(item, at, now, work);
        }
    }

    pub(super) fn end_listing(&mut self, listed: Listed, now: Moment, work: &mut Work) {
        let Some(listing) = self.relisting.take() else { return };
        let lost_its_past = listing.lost_its_past();
        let Relisting { revision, ids, policies, dirty, went_back, .. } = listing;
        work.dirty.extend(dirty);
        self.listed = revision;
        self.revision = if went_back { revision } else { self.revision.max(revision) };
        self.deleted.retain(|_, at| *at > revision);
        let mut missing = Vec::new();
        for (name, model) in &mut self.services {
            let there = ids.get(name);
            for (id, entry) in model.registrations.of(Source::Registry) {
                let named = there.is_some_and(|ids| ids.contains(id));
                if !named && entry.revision <= revision {
                    missing.push((name.clone(), id.clone()));
                }
            }
            if policies.contains(name) || listed.without_policies {
                continue;
            }
            match &mut model.registry_policy {
                None => {}
                Some(policy) if policy.revision > revision || policy.missing.is_some() => {}
                Some(policy) if lost_its_past && self.settings.protection.enabled => {
                    policy.missing = Some(now.wall);
                    work.touched.insert(name.clone());
                    let text = "the policy is missing in a registry that lost its past; it is held";
                    work.notice("removal", name, None, text.into(), true);
                    work.changes.held = work.changes.held.saturating_add(1);
                }
                gone => {
                    self.bytes = self.bytes.saturating_sub(gone.as_ref().map_or(0, |it| it.bytes));
                    *gone = None;
                    work.dirty.insert(name.clone());
                }
            }
        }
        for (name, id) in missing {
            self.remove_endpoint(Source::Registry, &name, &id, now, work);
        }
        work.changes.meta |= self.refusals.end(listed.without_policies);
        self.confirm_source(self.settings.decides == Source::Registry, now, work);
    }
}
