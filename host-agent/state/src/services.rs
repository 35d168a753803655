//! The services of a snapshot, by name: a map whose copies share what is equal in both.
//!
//! Every change is published as a whole new snapshot, and every reader compares the one that it has
//! told with the newest. With a map of its own in each, both cost what there is; here they cost
//! what changed. Names lie sorted in chunks, a copy has the same chunks, and a change makes its own
//! chunk anew:
//!
//! ```text
//!   old ─▶ [a b c] [d e f] [g h i]
//!             │       │
//!   new ─▶ [a b c] [d e f] [g H i]      changed since old: H; the shared chunks are not looked into
//! ```

use std::cmp::Ordering;
use std::ops::{Bound, Index};
use std::sync::Arc;

use crate::published::Service;

/// Services of a chunk, at most: the square root of 10,000 makes copies and changes alike.
const CHUNK: usize = 128;

/// Sorted by name, never empty.
type Chunk = Arc<Vec<Arc<Service>>>;

/// Services by the names of their tables. To copy one costs a hundredth of its length.
#[derive(Clone, Debug, Default)]
pub struct Services {
    chunks: Vec<Chunk>,
    len: usize,
}

impl Services {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The service of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Service>> {
        let chunk = self.chunks.get(self.chunk_of(name))?;
        chunk.get(place_in(chunk, name).ok()?)
    }

    /// Whether there is a service of this name.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Puts a service in, in the place of one of the same name.
    pub fn insert(&mut self, service: Arc<Service>) {
        let name = service.name().to_owned();
        let at = self.chunk_of(&name);
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![service]));
            self.len = self.len.saturating_add(1);
            return;
        };
        let entries = Arc::make_mut(chunk);
        match place_in(entries, &name) {
            Ok(place) => {
                if let Some(held) = entries.get_mut(place) {
                    *held = service;
                }
            }
            Err(place) => {
                entries.insert(place, service);
                self.len = self.len.saturating_add(1);
                if entries.len() > CHUNK {
                    let rest = entries.split_off(CHUNK / 2);
                    self.chunks.insert(at.saturating_add(1), Arc::new(rest));
                }
            }
        }
    }

    /// Takes a service out; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let at = self.chunk_of(name);
        let Some(chunk) = self.chunks.get_mut(at) else { return false };
        let Ok(place) = place_in(chunk, name) else { return false };
        let entries = Arc::make_mut(chunk);
        entries.remove(place);
        if entries.is_empty() {
            self.chunks.remove(at);
        }
        self.len = self.len.saturating_sub(1);
        true
    }

    /// All of them by name, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Service>)> + Clone {
        self.values().map(|service| (&service.table.service, service))
    }

    /// All of them, in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Service>> + Clone {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// All names, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &String> + Clone {
        self.iter().map(|(name, _)| name)
    }

    /// Those after the name `after`, or all.
    pub fn after(&self, after: Option<&str>) -> impl Iterator<Item = &Arc<Service>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let chunks = self.chunks.get(after.map_or(0, |name| self.chunk_of(name))..);
        let all = chunks.into_iter().flatten().flat_map(|chunk| chunk.iter());
        all.skip_while(move |it| matches!(from, Bound::Excluded(after) if it.name() <= after))
    }

    /// The names of those that `other` has not, or has otherwise, and of those that it alone has,
    /// in their order. What both share is not looked at.
    #[must_use]
    pub fn differing<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let (mut these, mut those) = (Walk::new(&self.chunks), Walk::new(&other.chunks));
        let mut names = Vec::new();
        loop {
            if let (Some(this), Some(that)) = (these.whole_chunk(), those.whole_chunk())
                && Arc::ptr_eq(this, that)
            {
                these.skip_chunk();
                those.skip_chunk();
                continue;
            }
            let order = match (these.entry(), those.entry()) {
                (None, None) => return names,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(this), Some(that)) => this.name().cmp(that.name()),
            };
            let this = (order != Ordering::Greater).then(|| these.step()).flatten();
            let that = (order != Ordering::Less).then(|| those.step()).flatten();
            match (this, that) {
                (Some(this), Some(that)) if Arc::ptr_eq(this, that) => {}
                (this, that) => names.extend(this.or(that).map(|service| service.name())),
            }
        }
    }

    /// Whether `other` has services of the same names.
    #[must_use]
    pub fn has_names_of(&self, other: &Self) -> bool {
        let both = |name: &str| self.contains_key(name) && other.contains_key(name);
        self.differing(other).into_iter().all(both)
    }

    /// The chunk that has the name, or would.
    fn chunk_of(&self, name: &str) -> usize {
        let later = self
            .chunks
            .partition_point(|chunk| chunk.first().is_some_and(|first| first.name() <= name));
        later.saturating_sub(1)
    }
}

fn place_in(chunk: &[Arc<Service>], name: &str) -> Result<usize, usize> {
    chunk.binary_search_by(|service| service.name().cmp(name))
}

impl FromIterator<Arc<Service>> for Services {
    fn from_iter<I: IntoIterator<Item = Arc<Service>>>(services: I) -> Self {
        let mut all = Self::default();
        services.into_iter().for_each(|service| all.insert(service));
        all
    }
}

impl Index<&str> for Services {
    type Output = Arc<Service>;

    /// # Panics
    /// Without a service of this name; for tests.
    #[expect(clippy::expect_used, reason = "as of every map")]
    fn index(&self, name: &str) -> &Arc<Service> {
        self.get(name).expect("a service of this name")
    }
}

/// A place between the services of a map.
struct Walk<'a> {
    chunks: &'a [Chunk],
    /// How many of the first chunk lie behind.
    within: usize,
}

impl<'a> Walk<'a> {
    const fn new(chunks: &'a [Chunk]) -> Self {
        Self { chunks, within: 0 }
    }

    /// The chunk ahead, where none of it lies behind.
    fn whole_chunk(&self) -> Option<&'a Chunk> {
        self.chunks.first().filter(|_| self.within == 0)
    }

    fn skip_chunk(&mut self) {
        self.chunks = self.chunks.get(1..).unwrap_or_default();
        self.within = 0;
    }

    fn entry(&self) -> Option<&'a Arc<Service>> {
        self.chunks.first()?.get(self.within)
    }

    fn step(&mut self) -> Option<&'a Arc<Service>> {
        let entry = self.entry()?;
        self.within = self.within.saturating_add(1);
        if self.chunks.first().is_some_and(|chunk| self.within >= chunk.len()) {
            self.skip_chunk();
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::SystemTime;

    use pintle_contract::{Table, Version};

    use super::*;

    fn service(number: u32, sequence: u64) -> Arc<Service> {
        let table = Table {
            service: format!("s{number:05}"),
            version: Version { epoch: 1, sequence },
            endpoints: Vec::new(),
            policy: String::new(),
        };
        Arc::new(Service { seen_at: SystemTime::UNIX_EPOCH, ..Service::of(table) })
    }

    /// A map of the standard library, and what is compared with it after each step.
    #[test]
    fn it_is_a_sorted_map_and_tells_what_differs() {
        let mut random = 1u32;
        let mut next = move |bound: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % bound
        };
        let mut model: BTreeMap<String, Arc<Service>> = BTreeMap::new();
        let mut services = Services::default();
        for round in 0..200u64 {
            let (old, before) = (services.clone(), model.clone());
            let mut touched = BTreeSet::new();
            for _ in 0..next(40) {
                let number = next(700);
                let service = service(number, round);
                let name = service.name().to_owned();
                touched.insert(name.clone());
                if next(3) == 0 {
                    assert_eq!(services.remove(&name), model.remove(&name).is_some());
                } else {
                    services.insert(Arc::clone(&service));
                    model.insert(name, service);
                }
            }
            assert_eq!(services.len(), model.len());
            assert!(services.iter().map(|(name, _)| name).eq(model.keys()));
            let differs = |name: &String| match (before.get(name), model.get(name)) {
                (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
                (old, new) => old.is_some() || new.is_some(),
            };
            let expected: Vec<&str> =
                touched.iter().filter(|name| differs(name)).map(String::as_str).collect();
            assert_eq!(services.differing(&old), expected, "round {round}");
            assert_eq!(old.differing(&services), expected, "round {round}");
            let after = format!("s{:05}", next(800));
            let rest = services.after(Some(&after)).map(|it| it.name());
            assert!(rest.eq(model.keys().map(String::as_str).filter(|name| **name > *after)));
        }
        assert!(services.len() > CHUNK && services.after(None).count() == services.len());
    }

    #[test]
    fn a_copy_shares_all_but_what_is_changed_in_it() {
        let services: Services = (0..10_000).map(|number| service(number, 1)).collect();
        let mut copy = services.clone();
        copy.insert(service(5_000, 2));
        let own = copy.chunks.iter().zip(&services.chunks).filter(|(a, b)| !Arc::ptr_eq(a, b));
        assert_eq!((own.count(), copy.differing(&services)), (1, vec!["s05000"]));
    }
}
