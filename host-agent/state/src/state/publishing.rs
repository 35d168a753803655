//! Tables of what the state holds, each under a version of its own, and the snapshot of all of
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pintle_contract::{Down, MAX_ENDPOINTS, MAX_POLICY, Message as _, Patch, Table, Version};
use serde_json::Value;

use super::State;
use crate::published::{Frame, Patched, PolicyLayer, Service};
use crate::service::Service as Model;
use crate::snapshot::Snapshot;
use crate::update::Moment;

/// Services that went and are remembered; beyond it the oldest readers get everything.
const MAX_GONE: usize = 1_000;
/// A table, the further ids of its endpoints, and what its policy is made of.
type Built = (Table, BTreeMap<String, Vec<String>>, Vec<PolicyLayer>);

impl State {
    /// Builds the tables of these services and publishes those that differ from what was published,
    /// each under a version of its own; with `lists`, what stands beside the tables as well.
    /// Whether there is a new snapshot at all.
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
                (None, None) => {
                    // A policy came and went before it was published.
                    self.demands.set(name, None);
                    continue;
                }
                (Some(old), Some((built, names, layers)))
                    if old.table.endpoints == built.endpoints
                        && old.table.policy == built.policy =>
                {
                    if old.names != names || old.layers != layers {
                        let next = next.get_or_insert_with(|| Snapshot::clone(&published));
                        let service = Service { names, layers, ..Service::clone(old) };
                        next.services.insert(Arc::new(service));
                    }
                    continue;
                }
                (_, built) => {
                    let next = next.get_or_insert_with(|| Snapshot::clone(&published));
                    self.version.sequence = self.version.sequence.saturating_add(1);
                    (next, built)
                }
            };
            let (next, built) = next;
            let demand = built.as_ref().map(|(table, ..)| {
                let policy = serde_json::from_str(&table.policy).unwrap_or_default();
                (self.settings.demand)(&policy, &table.endpoints)
            });
            self.demands.set(name, demand);
            if let Some((mut table, names, layers)) = built {
                table.version = self.version;
                if next.gone.contains_key(name) {
                    Arc::make_mut(&mut next.gone).remove(name);
                }
                let frame = Frame::default();
                let patch = old.and_then(|old| Patch::between(&old.table, &table));
                let patch = patch
                    .map(|patch| Patched { from: patch.from, frame: Down::Patch(patch).encode() });
                let service = Service { table, frame, patch, names, layers, seen_at };
                next.services.insert(Arc::new(service));
            } else {
                next.services.remove(name);
                Arc::make_mut(&mut next.gone).insert(name.to_owned(), self.version);
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
            next.held = self.list_held(now).into();
            next.rejected = self.list_rejected().into();
            next.overlays = self.list_overlays().into();
        }
        self.published = Arc::new(next);
        true
    }

    /// The published snapshot with the time of the registry's last word in it: for readers that
    /// ask, not for those that are told.
    pub fn confirm(&mut self) -> Arc<Snapshot> {
        if self.published.confirmed_at != self.confirmed_at {
            let mut next = Snapshot::clone(&self.published);
            next.confirmed_at = self.confirmed_at;
            self.published = Arc::new(next);
        }
        self.snapshot()
    }

    /// Publishes everything anew under an epoch above this one, which a proxy holds: it was told by
    /// an agent whose clock was ahead, and refuses what is older.
    pub(super) fn outrun(&mut self, epoch: u64) {
        if epoch < self.version.epoch {
            return;
        }
        self.version = Version { epoch: epoch.saturating_add(1), sequence: 0 };
        let mut next = Snapshot::clone(&self.published);
        let anew = |service: &Arc<Service>| {
            self.version.sequence = self.version.sequence.saturating_add(1);
            let mut anew = Service::clone(service);
            anew.table.version = self.version;
            anew.patch = None;
            Arc::new(anew)
        };
        next.services = self.published.services.values().map(anew).collect();
        // Nobody goes on from a version of this epoch, so nobody has to hear what went before.
        next.gone = Arc::default();
        next.version = self.version;
        next.complete_since = self.version;
        self.published = Arc::new(next);
    }

    fn build(&self, name: &str) -> Option<Built> {
        let model = self.services.get(name)?;
        let (mut endpoints, names) = model.merged();
        if endpoints.is_empty() {
            return None;
        }
        endpoints.truncate(MAX_ENDPOINTS);
        self.overlays.lay_over(name, &mut endpoints, |id| model.address_of(id));
        let (policy, layers) = self.policy(name, model);
        let service = name.to_owned();
        let table = Table { service, version: Version::default(), endpoints, policy };
        Some((table, names, layers))
    }

    /// The sources' patches and the events', composed; an event's that would break the whole is
    /// left out.
    fn policy(&self, name: &str, model: &Model) -> (String, Vec<PolicyLayer>) {
        let mut whole = Value::Null;
        let mut layers: Vec<PolicyLayer> = Vec::new();
        let sources = [("file", &model.file_policy), ("registry", &model.registry_policy)];
        for (source, policy) in sources {
            let Some(policy) = policy else { continue };
            let mut tried = whole;
            crate::json::compose(&mut tried, policy.value.clone());
            // Each is good by itself. Where both together are not, the registry's stands alone.
            let good = (self.settings.check_policy)(&tried).is_ok();
            whole = if good { tried } else { policy.value.clone() };
            for below in layers.iter_mut().filter(|_| !good) {
                below.in_force = false;
            }
            layers.push(PolicyLayer { source, patch: policy.value.clone(), in_force: true });
        }
        for patch in self.overlays.patches(name) {
            let mut tried = whole.clone();
            crate::json::compose(&mut tried, patch.clone());
            let in_force = (self.settings.check_policy)(&tried).is_ok();
            if in_force {
                whole = tried;
            }
            layers.push(PolicyLayer { source: "event", patch, in_force });
        }
        if whole.is_null() {
            return (String::new(), layers);
        }
        whole.sort_all_objects();
        let text = whole.to_string();
        (if text.len() > MAX_POLICY { String::new() } else { text }, layers)
    }
}

fn forget_gone(next: &mut Snapshot) {
    while next.gone.len() > MAX_GONE {
        let oldest = next.gone.iter().min_by_key(|(_, version)| **version);
        let Some((name, version)) = oldest.map(|(name, version)| (name.clone(), *version)) else {
            return;
        };
        Arc::make_mut(&mut next.gone).remove(&name);
        next.complete_since = next.complete_since.max(version);
    }
}
