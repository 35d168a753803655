//! What the other workers of this Envoy have in flight.

use crate::told::LoadEntry;

/// Workers whose load is kept, at most; Envoy runs one per core.
const MAX_WORKERS: usize = 1024;

/// One worker's requests at one endpoint, as last told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote {
    pub(crate) key: u64,
    pub(crate) in_flight: u32,
}

/// By worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Workers(Vec<(u32, Vec<Remote>)>);

impl Workers {
    /// Takes what `worker` tells in place of what it told before; `false` when there are too many.
    pub(crate) fn told(&mut self, worker: u32, entries: &[LoadEntry]) -> bool {
        self.remove(worker);
        if self.0.len() >= MAX_WORKERS {
            return false;
        }
        let busy = entries.iter().filter(|entry| entry.in_flight > 0);
        let remote = |entry: &LoadEntry| Remote { key: entry.key, in_flight: entry.in_flight };
        self.0.push((worker, busy.map(remote).collect()));
        true
    }

    /// Those that told anything.
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
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
