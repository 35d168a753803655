//! Probes whose response's head has come and whose verdict has not: gRPC calls, whose status comes
//! behind it. One that is still open after [`STREAMS`] is a stream, and its head says that the
//! endpoint works.

use std::rc::Rc;
use std::time::Duration;

use pintle_breaker::{Outcome, Ticket};
use pintle_contract::Now;

use super::Local;

/// So long after its head a call has not failed at once.
const STREAMS: Duration = Duration::from_millis(100);
/// Kept at most; one more waits for its end.
const MAX_PROBES: usize = 1_024;

/// One of them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    service: Rc<str>,
    /// Of its endpoint.
    key: u64,
    ticket: Ticket,
}

impl Probe {
    pub(crate) fn new(service: &Rc<str>, key: u64, ticket: Ticket) -> Self {
        Self { service: Rc::clone(service), key, ticket }
    }
}

/// Those of one worker, the oldest first.
#[derive(Default)]
pub(crate) struct Probes {
    open: Vec<(Probe, Now)>,
}

impl Probes {
    /// A probe's head has come. Whether it is kept.
    pub(crate) fn answered(&mut self, probe: Probe, now: Now) -> bool {
        let room = self.open.len() < MAX_PROBES;
        if room {
            self.open.push((probe, now));
        }
        room
    }

    /// A probe has ended. Whether its verdict is still owed.
    pub(crate) fn ended(&mut self, probe: &Probe) -> bool {
        let at = self.open.iter().position(|(open, _)| open == probe);
        at.map(|at| self.open.remove(at)).is_some()
    }

    fn streams(&mut self, now: Now) -> Vec<Probe> {
        let streams = |(_, since): &mut (Probe, Now)| now.since(*since) >= STREAMS;
        self.open.extract_if(.., streams).map(|(probe, _)| probe).collect()
    }
}

impl Local {
    /// Settles the probes that have turned out to be streams.
    pub(super) fn settle_streams(&mut self, now: Now) {
        for Probe { service: name, key, ticket } in self.probes.streams(now) {
            let Some(service) = self.services.get_mut(&name) else { continue };
            let Some(index) = service.balancer.by_key(key) else { continue };
            service.count_attempt(index, false);
            let policy = service.policy.clone();
            let outcome = Outcome::Success { slow: false };
            if let Some(breaker) = service.breaker_mut(index) {
                let _ = breaker.observe(ticket, outcome, &policy.breaker, now);
                self.sync_breaker(&name, index, now);
            }
        }
    }
}
