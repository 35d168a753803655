//! The keys of a service, and which of them name the same endpoint.
//!
//! An endpoint is an address; the id of a key is a name for it. Where several name one address, the
//! newest says what the endpoint is: that of the greater [`Source`], then the key that was created
//! last. An id that several sources know is the greatest one's alone.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::SocketAddr;

use pintle_contract::Endpoint;

use crate::update::Source;

/// One key, read.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) endpoint: Endpoint,
    /// What the value was that its source told.
    pub(crate) told: Raw,
    /// The revision that wrote it.
    pub(crate) revision: u64,
    /// The revision that created the key; zero when it is not known.
    pub(crate) created: u64,
    /// The lease that it goes with; zero when there is none.
    pub(crate) lease: u64,
    /// Bytes that the endpoint takes in a frame, at most.
    pub(crate) size: usize,
}

/// A value in short: enough to see that it is the same again. Who could make two of one hash would
/// deceive no key but its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Raw {
    pub(crate) bytes: usize,
    hash: u64,
}

impl Raw {
    pub(crate) fn of(value: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(value);
        Self { bytes: value.len(), hash: hasher.finish() }
    }
}

/// What a change of one key did.
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    /// What stood under the key.
    pub(crate) old: Option<Registration>,
    /// The last registration of an address that no key names any more.
    pub(crate) nameless: Option<Registration>,
}

/// Which source, when the key was created, and the id.
type Name = (Source, u64, String);

#[derive(Debug, Default)]
pub(crate) struct Registrations {
    registry: BTreeMap<String, Registration>,
    kubernetes: BTreeMap<String, Registration>,
    file: BTreeMap<String, Registration>,
    /// The keys in force by address, the newest last; none of the sets is empty.
    names: BTreeMap<SocketAddr, BTreeSet<Name>>,
    size: usize,
    bytes: usize,
}

impl Registrations {
    pub(crate) fn of(&self, source: Source) -> &BTreeMap<String, Registration> {
        match source {
            Source::Registry => &self.registry,
            Source::Kubernetes => &self.kubernetes,
            Source::File => &self.file,
        }
    }

    pub(crate) fn of_mut(&mut self, source: Source) -> &mut BTreeMap<String, Registration> {
        match source {
            Source::Registry => &mut self.registry,
            Source::Kubernetes => &mut self.kubernetes,
            Source::File => &mut self.file,
        }
    }

    /// Keys of all sources.
    pub(crate) fn len(&self) -> usize {
        Source::ALL.iter().map(|source| self.of(*source).len()).fold(0, usize::saturating_add)
    }

    /// Bytes that they take in a frame, at most.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// Bytes of the values that they were read from.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many endpoints they make.
    pub(crate) fn endpoints(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.names.keys().copied()
    }

    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.names.contains_key(&address)
    }

    /// The address that an id names.
    pub(crate) fn address_of(&self, id: &str) -> Option<SocketAddr> {
        self.in_force(id).map(|(address, _)| address)
    }

    /// What the newest of an address's names says of it.
    pub(crate) fn newest(&self, address: SocketAddr) -> Option<&Registration> {
        let (source, _, id) = self.names.get(&address)?.last()?;
        self.of(*source).get(id)
    }

    /// The ids of an address.
    pub(crate) fn ids(&self, address: SocketAddr) -> impl Iterator<Item = &str> {
        self.names.get(&address).into_iter().flatten().map(|(_, _, id)| id.as_str())
    }

    /// Puts a key in.
    pub(crate) fn put(&mut self, source: Source, registration: Registration) -> Replaced {
        let id = registration.endpoint.id.clone();
        let address = registration.endpoint.socket_addr();
        let covered = self.is_covered(source, &id);
        let name = (source, registration.created, id.clone());
        let before = if covered { None } else { self.in_force(&id) };
        if let Some((at, name)) = &before {
            self.forget_name(*at, name);
        }
        self.size = self.size.saturating_add(registration.size);
        self.bytes = self.bytes.saturating_add(registration.told.bytes);
        let old = self.of_mut(source).insert(id.clone(), registration);
        if let Some(old) = &old {
            self.size = self.size.saturating_sub(old.size);
            self.bytes = self.bytes.saturating_sub(old.told.bytes);
        }
        if covered {
            return Replaced { old, nameless: None };
        }
        self.names.entry(address).or_default().insert(name);
        let nameless = before.filter(|(at, _)| !self.has(*at)).and_then(|(_, (before, ..))| {
            let covered = || self.of(before).get(&id).cloned();
            if before == source { old.clone() } else { covered() }
        });
        Replaced { old, nameless }
    }

    /// Takes a key out.
    pub(crate) fn remove(&mut self, source: Source, id: &str) -> Replaced {
        let covered = self.is_covered(source, id);
        let Some(old) = self.of_mut(source).remove(id) else {
            return Replaced::default();
        };
        self.size = self.size.saturating_sub(old.size);
        self.bytes = self.bytes.saturating_sub(old.told.bytes);
        if covered {
            return Replaced { old: Some(old), nameless: None };
        }
        let address = old.endpoint.socket_addr();
        self.forget_name(address, &(source, old.created, id.to_owned()));
        if let Some((at, name)) = self.in_force(id) {
            self.names.entry(at).or_default().insert(name);
        }
        let nameless = (!self.has(address)).then(|| old.clone());
        Replaced { old: Some(old), nameless }
    }

    fn in_force(&self, id: &str) -> Option<(SocketAddr, Name)> {
        let of = |source| {
            let registration = self.of(source).get(id)?;
            let name = (source, registration.created, id.to_owned());
            Some((registration.endpoint.socket_addr(), name))
        };
        Source::ALL.into_iter().rev().find_map(of)
    }

    /// Whether a greater source knows the id.
    fn is_covered(&self, source: Source, id: &str) -> bool {
        let greater = Source::ALL.iter().filter(|greater| **greater > source);
        greater.into_iter().any(|greater| self.of(*greater).contains_key(id))
    }

    fn forget_name(&mut self, address: SocketAddr, name: &Name) {
        if let Some(names) = self.names.get_mut(&address) {
            names.remove(name);
            if names.is_empty() {
                self.names.remove(&address);
            }
        }
    }
}
