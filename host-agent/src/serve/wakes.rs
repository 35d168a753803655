//! Whom a change wakes. Envoy opens a discovery stream for each of its clusters, unless they are
//! aggregated; each of thousands woken by every change would cost what there is, not what changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pintle_state::{Services, Snapshot};
use tokio::sync::watch;

use crate::link::Snapshots;
use crate::serve::sync::is_loaded;

/// Places to wait for a change of one service, by its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakes(Arc<Mutex<HashMap<String, watch::Sender<()>>>>);

/// One such place; without any it is forgotten.
#[derive(Debug)]
pub(crate) struct Wake {
    service: String,
    woken: watch::Receiver<()>,
    wakes: Wakes,
}

impl Wakes {
    /// Wakes until there are no more snapshots.
    pub(crate) async fn follow(self, mut snapshots: Snapshots) {
        let mut seen = None;
        loop {
            let now = Arc::clone(&snapshots.borrow_and_update());
            seen = self.wake(&now, seen);
            drop(now);
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    /// Wakes those whose service differs from what was seen, or all with the first that is loaded.
    fn wake(&self, now: &Snapshot, seen: Option<Services>) -> Option<Services> {
        let waiting = self.lock();
        match &seen {
            Some(seen) => {
                let changed = now.services.differing(seen).into_iter();
                changed.filter_map(|name| waiting.get(name)).for_each(wake);
            }
            None if is_loaded(now) => waiting.values().for_each(wake),
            None => {}
        }
        is_loaded(now).then(|| now.services.clone())
    }

    /// A place to wait for a change of this service from now on.
    pub(crate) fn of(&self, service: &str) -> Wake {
        let mut waiting = self.lock();
        let sender = waiting.entry(service.to_owned()).or_insert_with(|| watch::channel(()).0);
        Wake { service: service.to_owned(), woken: sender.subscribe(), wakes: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(sender: &watch::Sender<()>) {
    sender.send_replace(());
}

impl Wake {
    /// The service.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    /// What has come so far is known: only what comes after this call wakes.
    pub(crate) fn reset(&mut self) {
        self.woken.mark_unchanged();
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// None: its sender is there as long as it is.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.woken.changed().await
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        let mut waiting = self.wakes.lock();
        // Its own receiver is the last one.
        if waiting.get(&self.service).is_some_and(|sender| sender.receiver_count() == 1) {
            waiting.remove(&self.service);
        }
    }
}

#[cfg(test)]
mod tests;
