//! What proxies still know of the registry, for an agent that starts without its last good state.
//!
//! Such an agent believes the first listing. Where the registry has lost everything and one of ten
//! instances has come back so far, that one would get all the traffic at once. A proxy that holds
//! tables or hosts goes on with them meanwhile: its stream is told nothing but that the agent
//! lives, until each service has half of the endpoints that proxies send requests to, for
//! [`AT_MOST`] from the first listing on. Where nothing is short it waits for [`LISTEN`]; a proxy
//! that holds nothing does not wait, nor one that was told by this agent itself, nor any that comes
//! later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pintle_contract::Report;
use pintle_state::Snapshot;
use tokio::time::Instant;

/// Workers report once a second; what they use is known by then.
pub(crate) const LISTEN: Duration = Duration::from_secs(2);
/// Instances that are alive have registered again by then: clients of etcd keep leases of 10 s or
/// less by default (REGISTRIES), and notice one that is gone with its next renewal.
pub(crate) const AT_MOST: Duration = Duration::from_secs(15);
/// How often a stream that is held looks again.
pub(crate) const AGAIN: Duration = Duration::from_millis(100);
/// Endpoints that are kept; of what comes after, nothing is known.
const MAX_USED: usize = 100_000;

/// Shared by all streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recall(Option<Arc<Mutex<Memory>>>);

#[derive(Debug, Default)]
struct Memory {
    /// When nothing is held any more; `None` before the first listing.
    until: Option<Instant>,
    /// By service, the endpoints that requests were sent to.
    used: BTreeMap<String, BTreeSet<String>>,
    count: usize,
    said: bool,
}

impl Recall {
    /// Of an agent that remembers what it served itself: nothing is ever held.
    #[must_use]
    pub(crate) const fn needless() -> Self {
        Self(None)
    }

    /// Of an agent that remembers nothing.
    #[must_use]
    pub(crate) fn needed() -> Self {
        Self(Some(Arc::default()))
    }

    /// The registry has been listed.
    pub(crate) fn listed(&self, now: Instant) {
        if let Some(mut memory) = self.memory() {
            memory.until.get_or_insert(now + AT_MOST);
        }
    }

    /// What a worker has counted.
    pub(crate) fn heard(&self, report: &Report, now: Instant) {
        let Some(mut memory) = self.memory() else { return };
        if memory.until.is_some_and(|until| now >= until) {
            memory.used = BTreeMap::new();
            return;
        }
        for service in &report.services {
            for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.requests > 0) {
                if memory.count < MAX_USED {
                    let used = memory.used.entry(service.service.clone()).or_default();
                    let new = used.insert(endpoint.id.clone());
                    memory.count = memory.count.saturating_add(usize::from(new));
                }
            }
        }
    }

    /// Whether a stream that `began` then, of a proxy that holds something, is to wait. `snapshot`
    /// is the newest, and somebody has confirmed it.
    pub(crate) fn holds(&self, began: Instant, snapshot: &Snapshot, now: Instant) -> bool {
        let Some(mut memory) = self.memory() else { return false };
        if memory.until.is_some_and(|until| now >= until) {
            return false;
        }
        let Some((service, used, there)) = memory.short(snapshot) else {
            return now < began + LISTEN;
        };
        if !memory.said {
            tracing::warn!(
                service, used, registered = there, at_most = ?AT_MOST,
                "there is no last good state, and the registry has fewer than half of the endpoints \
                 that proxies use: they keep what they hold until it has half"
            );
            memory.said = true;
        }
        true
    }

    fn memory(&self) -> Option<MutexGuard<'_, Memory>> {
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Memory {
    /// A service with fewer than half of the endpoints in use: how many are, and how many there
    /// are.
    fn short(&self, snapshot: &Snapshot) -> Option<(String, usize, usize)> {
        let there = |service: &str| {
            let service = snapshot.services.get(service);
            service.map_or(0, |service| service.table.endpoints.len())
        };
        let mut all = self.used.iter().map(|(name, used)| (name, used.len(), there(name)));
        let short = all.find(|(_, used, there)| there.saturating_mul(2) < *used);
        short.map(|(name, used, there)| (name.clone(), used, there))
    }
}

#[cfg(test)]
mod tests;
