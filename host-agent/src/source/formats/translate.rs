//! A registry in several formats, told as if it were in our own.
//!
//! The state knows our own form alone: `{services}{name}/{id}` and a value for each. Two keys of
//! the registry may stand for one of those (a framework that registered again under another key, or
//! that registers in two ways), so who stands for what is remembered: the newest counts, and only
//! when the last is gone does the instance go. A value that cannot be read any more leaves the last
//! good one.

use std::collections::{BTreeMap, BTreeSet};

use pintle_contract::{AddressPolicy, is_name};
use pintle_state::entry::Reject;
use pintle_state::{Change, Item, Unread, UnreadKey};
use serde_json::Value;

use super::reader::{Group, Reading};

/// Keys, ours or another's.
type Key = Vec<u8>;

#[derive(Debug)]
pub(crate) struct Translator {
    groups: Vec<Group>,
    services: Key,
    policies: Key,
    allowed: AddressPolicy,
    /// What each key of the registry stands for.
    by_key: BTreeMap<Key, Vec<Key>>,
    /// Who stands for each of ours.
    by_own: BTreeMap<Key, BTreeMap<Key, Item>>,
    refused: BTreeSet<Key>,
    beside: BTreeSet<Key>,
}

/// What to tell the state.
#[derive(Debug)]
pub(crate) struct Translated<T> {
    pub(crate) told: T,
    pub(crate) unread: Unread,
}

/// One key of the registry, and what it is.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) item: Item,
    reading: Option<Reading>,
}

impl Read {
    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        let instances = match &self.reading {
            Some(Reading::Instances(instances, _)) => instances.as_slice(),
            _ => &[],
        };
        let bytes = instances.iter().map(|instance| instance.value.len());
        bytes.fold(self.item.value.len(), usize::saturating_add)
    }

    /// Refuses it: there is no room for all.
    pub(crate) fn refuse(&mut self, budget: usize) {
        self.item.value = Vec::new();
        self.reading = Some(Reading::Refused(Reject::OverBudget(budget).into()));
    }
}

impl Translator {
    pub(crate) fn new(
        groups: Vec<Group>,
        services: &str,
        policies: &[u8],
        allowed: AddressPolicy,
    ) -> Self {
        Self {
            groups,
            services: services.as_bytes().to_vec(),
            policies: policies.to_vec(),
            allowed,
            by_key: BTreeMap::new(),
            by_own: BTreeMap::new(),
            refused: BTreeSet::new(),
            beside: BTreeSet::new(),
        }
    }

    /// Keys that stand beside the instances.
    pub(crate) fn beside(&self) -> usize {
        self.beside.len()
    }

    /// Whether there is any form but our own.
    pub(crate) fn is_foreign(&self) -> bool {
        self.groups.iter().any(Group::is_foreign)
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Option<Reading> {
        let group = self.groups.iter().find(|group| key.starts_with(&group.prefix))?;
        if key.starts_with(&self.policies) && self.policies.len() > group.prefix.len() {
            return None;
        }
        let rest = key.strip_prefix(group.prefix.as_slice())?;
        Some(group.read(rest, value, &self.allowed))
    }

    /// What each of some keys is. Of what is translated the value is not kept.
    pub(crate) fn read_all(&self, items: Vec<Item>) -> Vec<Read> {
        let read = |mut item: Item| {
            let reading = self.read(&item.key, &item.value);
            if !matches!(reading, None | Some(Reading::Own)) {
                item.value = Vec::new();
            }
            Read { item, reading }
        };
        items.into_iter().map(read).collect()
    }

    /// A listing begins.
    pub(crate) fn begin(&mut self) {
        self.refused.clear();
        self.beside.clear();
    }

    /// Some of what the registry holds, where there is no form but our own.
    pub(crate) fn page(&mut self, read: Vec<Read>, unread: &mut Unread) -> Vec<Item> {
        let mut items = Vec::with_capacity(read.len());
        for Read { item, reading } in read {
            if let Taken::AsItIs(item) = self.take(item, reading, unread) {
                items.push(item);
            }
        }
        items
    }

    /// Everything that the registry holds, but for the prefixes that may not be read: of those,
    /// what was there before still is.
    pub(crate) fn listing(&mut self, read: Vec<Read>, denied: &[&[u8]]) -> Translated<Vec<Item>> {
        let before = (std::mem::take(&mut self.by_key), std::mem::take(&mut self.by_own));
        self.begin();
        let mut unread = Unread { whole: true, ..Unread::default() };
        let mut items = Vec::new();
        for Read { item, reading } in read {
            match self.take(item, reading, &mut unread) {
                Taken::AsItIs(item) => items.push(item),
                Taken::Kept => {}
                Taken::Unreadable(key) => {
                    for own in before.0.get(&key).into_iter().flatten() {
                        let last = before.1.get(own).and_then(|by| by.get(&key));
                        if let Some(item) = last {
                            self.keep(key.clone(), item.clone());
                        }
                    }
                }
            }
        }
        let unseen = before.0.iter().filter(|(key, _)| denied.iter().any(|d| key.starts_with(d)));
        for (key, own) in unseen.flat_map(|(key, owns)| owns.iter().map(move |own| (key, own))) {
            if let Some(item) = before.1.get(own).and_then(|by| by.get(key)) {
                self.keep(key.clone(), item.clone());
            }
        }
        items.extend(self.by_own.values().filter_map(newest).cloned());
        Translated { told: items, unread }
    }

    /// What changed, in its order.
    pub(crate) fn changes(&mut self, changes: Vec<Change>) -> Translated<Vec<Change>> {
        let mut unread = Unread::default();
        let mut told = Vec::with_capacity(changes.len());
        for change in changes {
            let key = change.key.clone();
            let was_refused = self.refused.remove(&key);
            self.beside.remove(&key);
            self.change(change, &mut told, &mut unread);
            if was_refused && !self.refused.contains(&key) {
                unread.read.push(key);
            }
        }
        Translated { told, unread }
    }

    fn change(&mut self, change: Change, told: &mut Vec<Change>, unread: &mut Unread) {
        let key = change.key.clone();
        let before = self.by_key.remove(&key).unwrap_or_default();
        if let Some(value) = &change.value {
            let reading = self.read(&key, value);
            let Change { revision, created, lease, .. } = change;
            let item = Item { key: key.clone(), value: value.clone(), revision, created, lease };
            match self.take(item, reading, unread) {
                Taken::AsItIs(_) => {
                    told.push(change);
                    return;
                }
                Taken::Unreadable(key) => {
                    if !before.is_empty() {
                        self.by_key.insert(key, before);
                    }
                    return;
                }
                Taken::Kept => {}
            }
        } else if before.is_empty() {
            // A policy, our own form where there is no other, or a key that was never good.
            told.push(change);
            return;
        }
        let now = self.by_key.get(&key).cloned().unwrap_or_default();
        for own in &now {
            told.extend(self.by_own.get(own).and_then(newest).map(|item| tell(item, &change)));
        }
        for own in before.iter().filter(|own| !now.contains(own)) {
            told.push(match self.leave(own, &key) {
                Some(left) => tell(left, &change),
                None => Change { key: own.clone(), value: None, ..change.clone() },
            });
        }
    }

    fn take(&mut self, item: Item, reading: Option<Reading>, unread: &mut Unread) -> Taken {
        let key = item.key.clone();
        match reading {
            None => return Taken::AsItIs(item),
            Some(Reading::Own) if !self.is_foreign() => return Taken::AsItIs(item),
            Some(Reading::Own) => self.keep(key, item),
            Some(Reading::Beside) => {
                self.beside.insert(key);
            }
            Some(Reading::Refused(refusal)) => {
                self.refuse(&key, &refusal, unread);
                return Taken::Unreadable(key);
            }
            Some(Reading::Instances(instances, refusal)) => {
                let mut owns: Vec<Key> = Vec::new();
                for instance in instances {
                    let own = [&self.services, instance.key.as_bytes()].concat();
                    let mut item = Item { key: own, value: instance.value, ..item.clone() };
                    if owns.contains(&item.key) || self.is_anothers(&key, &item) {
                        item = renamed(item);
                    }
                    owns.push(item.key.clone());
                    self.keep(key.clone(), item);
                }
                if let Some(refusal) = refusal {
                    self.refuse(&key, &refusal, unread);
                }
            }
        }
        Taken::Kept
    }

    /// Whether another key stands for this one of ours with another address: an id that two
    /// frameworks gave to different instances.
    fn is_anothers(&self, key: &[u8], item: &Item) -> bool {
        let others = self.by_own.get(&item.key).into_iter().flatten();
        let mut others = others.filter(|(other, _)| other.as_slice() != key);
        others.any(|(_, other)| address(&other.value) != address(&item.value))
    }

    fn refuse(&mut self, key: &[u8], refusal: &super::Refusal, unread: &mut Unread) {
        self.refused.insert(key.to_vec());
        unread.refused.push(UnreadKey {
            key: key.to_vec(),
            reason: refusal.reason(),
            detail: refusal.to_string(),
        });
    }

    fn keep(&mut self, key: Key, item: Item) {
        let owns = self.by_key.entry(key.clone()).or_default();
        if !owns.contains(&item.key) {
            owns.push(item.key.clone());
        }
        self.by_own.entry(item.key.clone()).or_default().insert(key, item);
    }

    /// `key` does not stand for `own` any more; who else does.
    fn leave(&mut self, own: &[u8], key: &[u8]) -> Option<&Item> {
        let by = self.by_own.get_mut(own)?;
        by.remove(key);
        if by.is_empty() {
            self.by_own.remove(own);
            return None;
        }
        self.by_own.get(own).and_then(newest)
    }
}

/// What became of an item.
enum Taken {
    /// The state's to read.
    AsItIs(Item),
    /// In the maps.
    Kept,
    /// Refused; what it said before still holds.
    Unreadable(Key),
}

/// What stands for one of our keys now, as a change.
fn tell(item: &Item, change: &Change) -> Change {
    Change {
        key: item.key.clone(),
        value: Some(item.value.clone()),
        created: item.created,
        lease: item.lease,
        ..change.clone()
    }
}

fn address(value: &[u8]) -> Option<(Value, Value)> {
    let mut fields: Value = serde_json::from_slice(value).ok()?;
    Some((fields.get_mut("address")?.take(), fields.get_mut("port")?.take()))
}

/// The same instance with its address in its id, as far as a name's length allows.
fn renamed(item: Item) -> Item {
    let other = || {
        let mut fields: Value = serde_json::from_slice(&item.value).ok()?;
        let (address, port) = address(&item.value)?;
        let suffix = format!("-{}:{port}", address.as_str()?);
        let id = format!("{}{suffix}", fields.get("id")?.as_str()?);
        if !is_name(&id) {
            return None;
        }
        *fields.get_mut("id")? = id.into();
        Some(([&item.key, suffix.as_bytes()].concat(), fields.to_string().into_bytes()))
    };
    match other() {
        Some((key, value)) => Item { key, value, ..item },
        None => item,
    }
}

fn newest(by: &BTreeMap<Key, Item>) -> Option<&Item> {
    by.values().max_by_key(|item| (item.created, item.revision))
}
