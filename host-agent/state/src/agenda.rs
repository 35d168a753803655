//! When something is to be done about which service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One time a service, and the services in the order of their times.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    times: BTreeMap<String, Duration>,
    order: BTreeSet<(Duration, String)>,
}

impl Agenda {
    /// Sets a service's time, or strikes it off.
    pub(crate) fn set(&mut self, name: &str, at: Option<Duration>) {
        let old = self.times.get(name).copied();
        if old == at {
            return;
        }
        if let Some(old) = old {
            self.order.remove(&(old, name.to_owned()));
            self.times.remove(name);
        }
        if let Some(at) = at {
            self.order.insert((at, name.to_owned()));
            self.times.insert(name.to_owned(), at);
        }
    }

    /// How many services have a time.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.times.len().max(self.order.len())
    }

    /// The earliest time.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(at, _)| *at)
    }

    /// The services whose time has come, the earliest first.
    pub(crate) fn due(&self, now: Duration) -> impl Iterator<Item = &str> {
        self.order.iter().take_while(move |(at, _)| *at <= now).map(|(_, name)| name.as_str())
    }
}
