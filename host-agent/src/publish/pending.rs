//! Services that are to be published, and not before when.

use std::collections::{BTreeSet, HashSet};

use tokio::time::Instant;

/// One time a service, in the order of the times: to ask for the earliest costs the same with one
/// and with all services waiting.
#[derive(Debug, Default)]
pub(super) struct Pending {
    order: BTreeSet<(Instant, String)>,
    names: HashSet<String>,
}

impl Pending {
    /// Lets a service wait, unless it waits already.
    pub(super) fn add(&mut self, name: &str, not_before: impl FnOnce() -> Instant) {
        if !self.names.contains(name) {
            self.names.insert(name.to_owned());
            self.order.insert((not_before(), name.to_owned()));
        }
    }

    /// The earliest time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes out those whose time has come.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            due.extend(self.order.pop_first().map(|(_, name)| name));
        }
        for name in &due {
            self.names.remove(name);
        }
        due
    }
}
