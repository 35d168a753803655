//! What all proxies of this agent have reported, added up.
//!
//! The proxies report cumulative counts per worker VM, so adding up is a matter of differences: a
//! report that is lost, repeated, late or forwarded twice changes no sum for good, a stream that
//! reconnects goes on where it was, and a reloaded VM is a new worker that starts from zero while
//! what its predecessor counted stays in the sum. Gauges (in flight, latency, breaker state) are
//! different: they hold for workers that still speak, and end with them.
//!
//! [`Ledger`] is the arithmetic, with time as an argument and no channel. [`Fleet`] is the handle
//! that the servers share: the ledger behind a mutex that is never held across an await, plus what
//! a transition sets off (a log line, an [`Activity`], and for own observations the fleet).
//!
//! Only services and endpoints of the current snapshot are counted, so no report can grow anything
//! beyond the registry. Further bounds: [`MAX_PROXIES`], [`MAX_WORKERS`], [`MAX_COUNTERS`].
//!
//! The agent keeps no sum on disk. After its restart a worker's first report counts whole, which is
//! where the sum had been but for workers that went before.

mod breaker;
mod ledger;
mod minute;
mod proxy;
mod sums;
mod views;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use pintle_contract::{Hello, Now, Schema, Transition, Up, Version};
use pintle_state::Snapshot;
use tokio::sync::mpsc::error::TrySendError;

pub(crate) use ledger::{Ledger, PROPAGATION_BUCKETS};
pub(crate) use views::{BreakerView, EndpointView, MinuteView, ProxyView, ServiceView, View};

use crate::link::{Activities, Activity, Outgoing, Reported};

/// One moment on both clocks: the monotonic one decides, the wall clock is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    /// Decides what is old.
    pub mono: Instant,
    /// Shown to people, and compared with what other machines wrote.
    pub wall: SystemTime,
}

impl When {
    /// This moment.
    #[must_use]
    pub(crate) fn now() -> Self {
        Self { mono: Instant::now(), wall: SystemTime::now() }
    }
}

/// The wall-clock time that a proxy stamped.
#[must_use]
pub(crate) fn wall(now: Now) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(std::time::Duration::from_nanos(now.0))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The shared handle on the [`Ledger`].
#[derive(Debug)]
pub(crate) struct Fleet {
    ledger: Mutex<Ledger>,
    activities: Activities,
    outgoing: Outgoing,
}

impl Fleet {
    /// An empty ledger; transitions that proxies observed go to `outgoing`.
    #[must_use]
    pub(crate) fn new(activities: Activities, outgoing: Outgoing) -> Self {
        Self { ledger: Mutex::new(Ledger::default()), activities, outgoing }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic while the lock was held leaves counts that are at worst incomplete; serving them
        // is better than ending with it.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A newer snapshot: what may be counted, and what is on its way to the workers.
    pub(crate) fn published(&self, snapshot: &Arc<Snapshot>, when: When) {
        self.ledger().published(snapshot, when);
    }

    /// A stream has opened. False when there are [`MAX_PROXIES`] already, all of them connected.
    pub(crate) fn connected(&self, hello: &Hello, schema: Schema, peer: &str, when: When) -> bool {
        let (fresh, streams) = {
            let mut ledger = self.ledger();
            (ledger.connected(hello, schema, peer, when), ledger.streams(&hello.proxy))
        };
        if fresh {
            // Another leader's stream opens before the one of the leader before has ended.
            let how = if streams > 1 { "is led by another worker" } else { "connected" };
            self.tell("proxy", None, None, format!("{} {how}", hello.proxy));
        }
        fresh
    }

    /// A stream has closed.
    pub(crate) fn disconnected(&self, proxy: &str, when: When) {
        let streams = {
            let mut ledger = self.ledger();
            ledger.disconnected(proxy, when);
            ledger.streams(proxy)
        };
        if streams == 0 {
            self.tell("proxy", None, None, format!("{proxy} disconnected"));
        }
    }

    /// A proxy that holds everything up to `sent` lacks nothing of `reached`: what changed in
    /// between is of services that it does not want.
    pub(crate) fn spared(&self, proxy: &str, sent: Version, reached: Version, when: When) {
        self.ledger().spared(proxy, sent, reached, when);
    }

    /// One message of a proxy, in whatever order it comes.
    pub(crate) fn received(&self, proxy: &str, up: Up, when: When) {
        match up {
            Up::Hello(_) => self.ledger().refused("unexpected_hello"),
            Up::Applied(applied) => self.ledger().applied(proxy, applied, when),
            Up::Report(report) => self.ledger().report(proxy, &report, when),
            Up::Transition(transition) => self.transition(proxy, transition, when),
            // The stream that it comes on answers it.
            Up::Want(_) => {}
        }
    }

    fn transition(&self, proxy: &str, transition: Transition, when: When) {
        if !self.ledger().transition(proxy, &transition, when) {
            return;
        }
        tracing::info!(
            target: "pintle::transition",
            proxy,
            service = transition.service,
            endpoint = transition.endpoint,
            from = transition.from.as_str(),
            to = transition.to.as_str(),
            reason = transition.reason,
            observed = transition.observed,
            trips = transition.trips,
            "breaker"
        );
        self.tell(
            "breaker",
            Some(transition.service.clone()),
            Some(transition.endpoint.clone()),
            format!(
                "{} -> {} on {proxy}: {}",
                transition.from.as_str(),
                transition.to.as_str(),
                transition.reason
            ),
        );
        if transition.observed {
            let reported = Reported { proxy: proxy.to_owned(), transition };
            if let Err(TrySendError::Full(_)) = self.outgoing.try_send(reported) {
                self.ledger().refused("outgoing_full");
            }
        }
    }

    /// A frame that could not be used; `reason` is one of a fixed set of words.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.ledger().refused(reason);
    }

    /// Once a second: rates move on, what is silent for long is forgotten.
    pub(crate) fn tick(&self, when: When) {
        self.ledger().tick(when);
    }

    /// Everything, added up, as of `when`.
    #[must_use]
    pub(crate) fn view(&self, when: When) -> View {
        self.ledger().view(when)
    }

    /// The Envoys, as of `when`.
    #[must_use]
    pub(crate) fn proxies(&self, when: When) -> Vec<ProxyView> {
        self.ledger().proxies(when)
    }

    fn tell(
        &self,
        kind: &'static str,
        service: Option<String>,
        endpoint: Option<String>,
        text: String,
    ) {
        // No receiver is no error: nobody looks at the page.
        let _ =
            self.activities.send(Activity { at: SystemTime::now(), kind, service, endpoint, text });
    }
}

#[cfg(test)]
mod tests;
