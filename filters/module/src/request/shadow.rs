//! A service in shadow: what would have been done with a request is decided, counted and told, and
//! where it goes is Envoy's choice.
//!
//! Breakers and loads learn from where requests really went, so that the decisions are those that
//! would be made. Two things differ: how many requests Envoy has in flight at an endpoint is not
//! known before they are answered, and a breaker that owes a probe takes any request that Envoy
//! sends there for one.

use pintle_balance::{Choice, Nothing, Picks};
use pintle_breaker::Verdict;
use pintle_contract::Now;
use pintle_trace::Outcome;

use super::{Entry, Exchange, Known, Sent};
use crate::boundary::Proxy;
use crate::counters::Count;
use crate::worker::Local;

/// What would have been done with a request.
pub(super) struct Shadow {
    /// The key of the endpoint at the head of the list; `None` where there would have been no list.
    pub(super) first: Option<u64>,
}

impl<P: Proxy> Exchange<P> {
    /// Keeps what would have been done.
    pub(super) fn shadow(
        &mut self,
        local: &mut Local,
        known: &Known,
        choice: Choice,
        picks: &Picks,
    ) {
        let Some(service) = local.services.at_mut(known.at) else { return };
        service.counts.start();
        let first = picks.first().and_then(|index| service.balancer.key_of(index));
        self.shadow = Some(Shadow { first });
        self.sent = Some(Sent { ticket: None, list: Vec::new(), head: None, logged: Vec::new() });
        let (candidates, reason, count) = match choice {
            Choice::Eligible { candidates } => (candidates, "it would have been chosen", None),
            Choice::Panic { candidates } => {
                let reason = "it would have been chosen in panic";
                (candidates, reason, Some(Count::ShadowPanic))
            }
            Choice::None(Nothing::Full) => {
                (0, "the request would have been refused: all are full", Some(Count::ShadowRefused))
            }
            Choice::None(_) => {
                (0, "the request would have been refused", Some(Count::ShadowRefused))
            }
        };
        self.decided.candidates = Some(candidates);
        self.decided.outcome = Outcome::Shadow;
        self.decided.reason = reason;
        local.counters.add(Count::Shadow);
        if let Some(count) = count {
            local.counters.add(count);
        }
    }

    /// Learns where Envoy sent a request of a shadow's, once that is known.
    pub(super) fn follow_envoy(&mut self, local: &mut Local, now: Now) {
        if let Some(shadow) = &self.shadow
            && self.sent.as_ref().is_some_and(|sent| sent.list.is_empty())
            && let Some(at) = self.service_at(local)
            && let Some(entry) = self.envoys_choice(local, at, now)
        {
            if shadow.first == Some(entry.key) {
                local.counters.add(Count::ShadowSame);
            }
            self.sent.iter_mut().for_each(|sent| sent.list.push(entry));
        }
    }

    /// The endpoint that Envoy chose, if it is one of the table's.
    fn envoys_choice(&self, local: &mut Local, at: usize, now: Now) -> Option<Entry> {
        let address = self.proxy.upstream_address()?;
        let address = std::str::from_utf8(&address).ok()?.parse().ok()?;
        let service = local.services.at(at)?;
        let index = service.balancer.by_address(address)?;
        let key = service.balancer.key_of(index)?;
        let record = service.breaker(index)?.record();
        let owed = record.verdict(&service.policy.breaker, now) == Verdict::ProbeOwed;
        let ordinary = record.ticket();
        let probe = match &self.decided.service {
            Some(known) if owed && local.config.breaker => {
                local.claim_probe(&known.name, index, now)
            }
            _ => None,
        };
        Some(Entry { key, at: index, breaker: probe.unwrap_or(ordinary) })
    }
}
