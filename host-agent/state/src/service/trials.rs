//! Whom to try to connect to, and what came of it.
//!
//! A trial is one TCP connection, opened and closed by a task of the agent. Everybody on this list
//! is tried at once and then each second, for as long as the list has them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::update::Tried;

/// From one trial of an address to the next.
const EVERY: Duration = Duration::from_secs(1);
/// A result that has not come by then is waited for no longer. A trial takes a second at most.
const OVERDUE: Duration = Duration::from_secs(3);
/// So many silent trials in a row are taken for a dead endpoint.
pub(crate) const SILENT: u8 = 3;

#[derive(Debug, Default)]
pub(crate) struct Trials {
    known: BTreeMap<SocketAddr, Trial>,
    order: BTreeSet<(Duration, SocketAddr)>,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    due: Duration,
    began: Duration,
    last: Option<Tried>,
    silent: u8,
}

impl Trials {
    /// Tries an address from now on.
    pub(crate) fn start(&mut self, address: SocketAddr, now: Duration) {
        if let std::collections::btree_map::Entry::Vacant(place) = self.known.entry(address) {
            place.insert(Trial { due: now, began: now, last: None, silent: 0 });
            self.order.insert((now, address));
        }
    }

    /// Ends the trials of all others.
    pub(crate) fn retain(&mut self, keep: impl Fn(&SocketAddr) -> bool) {
        let order = &mut self.order;
        self.known.retain(|address, trial| {
            let keeps = keep(address);
            if !keeps {
                order.remove(&(trial.due, *address));
            }
            keeps
        });
    }

    /// When [`Trials::take`] has something.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(due, _)| *due)
    }

    /// The addresses to try now, at most `limit`.
    pub(crate) fn take(&mut self, now: Duration, limit: usize) -> Vec<SocketAddr> {
        let due: Vec<_> =
            self.order.iter().take_while(|(due, _)| *due <= now).take(limit).copied().collect();
        for (due, address) in &due {
            self.order.remove(&(*due, *address));
            if let Some(trial) = self.known.get_mut(address) {
                trial.began = now;
                trial.due = now.saturating_add(OVERDUE);
                self.order.insert((trial.due, *address));
            }
        }
        due.into_iter().map(|(_, address)| address).collect()
    }

    /// Notes a result; whether the address is on the list.
    pub(crate) fn note(&mut self, address: SocketAddr, tried: Tried, now: Duration) -> bool {
        let Some(trial) = self.known.get_mut(&address) else {
            return false;
        };
        self.order.remove(&(trial.due, address));
        trial.due = trial.began.saturating_add(EVERY).max(now);
        self.order.insert((trial.due, address));
        trial.silent = match tried {
            Tried::Silent => trial.silent.saturating_add(1),
            Tried::Failed => trial.silent,
            Tried::Accepted | Tried::Refused => 0,
        };
        trial.last = Some(tried);
        true
    }

    /// Whether the address accepted the last connection.
    pub(crate) fn accepts(&self, address: SocketAddr) -> bool {
        self.known.get(&address).is_some_and(|trial| trial.last == Some(Tried::Accepted))
    }

    /// Whether it refused the last connection.
    pub(crate) fn refuses(&self, address: SocketAddr) -> bool {
        self.known.get(&address).is_some_and(|trial| trial.last == Some(Tried::Refused))
    }

    /// Whether it is known by now that its word is not to be had: it was silent often enough, or it
    /// could not be tried.
    pub(crate) fn gives_no_word(&self, address: SocketAddr) -> bool {
        let failed = |trial: &Trial| trial.last == Some(Tried::Failed);
        self.is_silent(address) || self.known.get(&address).is_some_and(failed)
    }

    /// Whether it is being tried and has given no word yet.
    pub(crate) fn is_open(&self, address: SocketAddr) -> bool {
        let word = |trial: &Trial| !matches!(trial.last, None | Some(Tried::Silent));
        let known = self.known.get(&address);
        known.is_some_and(|trial| !word(trial)) && !self.gives_no_word(address)
    }

    /// Whether it was silent as often as it takes to be believed.
    pub(crate) fn is_silent(&self, address: SocketAddr) -> bool {
        self.known.get(&address).is_some_and(|trial| trial.silent >= SILENT)
    }
}
