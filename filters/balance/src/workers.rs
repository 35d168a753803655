//! What the other workers of this Envoy have in flight.

use crate::load::LoadEntry;

/// Workers whose load is kept, at most; Envoy runs one per core.
const MAX_WORKERS: usize = 1024;
/// The part of the newest count in the mean; at five a second that is a mean over a second.
const NEWEST: f32 = 0.25;
/// Below this a mean is nothing.
const NOTHING: f32 = 0.05;

/// One worker's requests at one endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    pub(crate) key: u64,
    /// As last told.
    pub(crate) in_flight: u32,
    /// A mean of what was told.
    pub(crate) waiting: f32,
}

/// By worker, sorted by key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workers(Vec<(u32, Vec<Remote>)>);

impl Workers {
    /// Takes what `worker` tells in place of what it told before; `false` when there are too many.
    pub(crate) fn told(&mut self, worker: u32, entries: &[LoadEntry]) -> bool {
        let at = self.0.iter().position(|&(w, _)| w == worker);
        let old = at.map(|at| self.0.swap_remove(at).1).unwrap_or_default();
        if self.0.len() >= MAX_WORKERS {
            return false;
        }
        let mean = |key: u64| {
            let at = old.binary_search_by_key(&key, |remote| remote.key).ok();
            at.and_then(|at| old.get(at)).map_or(0.0, |remote| remote.waiting)
        };
        let mut new: Vec<Remote> = entries
            .iter()
            .map(|entry| {
                let before = mean(entry.key);
                let waiting = before + (entry.waiting as f32 - before) * NEWEST;
                Remote { key: entry.key, in_flight: entry.in_flight, waiting }
            })
            .collect();
        new.sort_unstable_by_key(|remote| remote.key);
        let told = new.len();
        for remote in old {
            let waiting = remote.waiting * (1.0 - NEWEST);
            let named = |new: &[Remote]| new.binary_search_by_key(&remote.key, |r| r.key).is_ok();
            if waiting > NOTHING && !new.get(..told).is_some_and(named) {
                new.push(Remote { in_flight: 0, waiting, ..remote });
            }
        }
        new.sort_unstable_by_key(|remote| remote.key);
        self.0.push((worker, new));
        true
    }

    /// Whether it had told anything.
    pub(crate) fn remove(&mut self, worker: u32) -> bool {
        let at = self.0.iter().position(|&(w, _)| w == worker);
        at.map(|at| self.0.swap_remove(at)).is_some()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Remote> {
        self.0.iter().flat_map(|(_, remotes)| remotes)
    }
}
