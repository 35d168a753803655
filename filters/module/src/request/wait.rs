//! A request that waits for the table of its service: the first for it here, where the agent tells
//! only what is wanted and nobody else could choose in the meantime.

use pintle_contract::Now;
use pintle_policy::{Select, Unknown, Via};
use pintle_sync::{PATIENCE, TICK};

use super::Exchange;
use super::question::Named;
use crate::boundary::Proxy;
use crate::worker::Local;

/// What a request waits for, and how long.
pub(super) struct Wait {
    service: String,
    until: Now,
}

impl<P: Proxy> Exchange<P> {
    /// Asks the agent for the table of a service that has none. Whether this request waits for it:
    /// once, and only where it would be refused or had no address otherwise.
    #[cold]
    #[inline(never)]
    pub(super) fn await_table(
        &mut self,
        local: &mut Local,
        select: Option<&Select>,
        named: Option<&Named>,
    ) -> bool {
        let waited = self.wait.take().is_some();
        let Some(named) = named else { return false };
        let now = local.clock;
        if !local.wants.ask(&named.name, now) || waited {
            return false;
        }
        let needs = |select: &Select| {
            (select.unknown == Unknown::Reject && named.claimed) || select.via == Via::OriginalDst
        };
        let waits = select.is_some_and(needs)
            && self.proxy.cluster().is_some_and(|cluster| !cluster.is_empty());
        if waits {
            let wait = Wait { service: named.name.clone(), until: now.after(PATIENCE) };
            self.wait = Some(Box::new(wait));
        }
        waits
    }

    /// Whether it waits for a table.
    pub(crate) const fn waits(&self) -> bool {
        self.wait.is_some()
    }

    /// Whether it need not wait any longer: a table has come, or none will before its time is over,
    /// as far as one can look at it from tick to tick. Its own root's clock may have stopped.
    pub(crate) fn is_due(&self, now: Now) -> bool {
        let Some(wait) = &self.wait else { return true };
        let Ok(worker) = self.worker.try_borrow() else { return false };
        let local = &worker.local;
        let name = wait.service.as_str();
        let is_there = local.services.get(name).is_some() || local.services.is_unread(name);
        // A time further away than it was set is one of a clock that stepped back.
        let over = now.after(TICK) > wait.until || wait.until > now.after(PATIENCE);
        is_there || over || !local.wants.is_waiting(name)
    }
}
