//! Who is charged with what: every endpoint of the list with what it did, in its breaker, at the balancer
//! and in the counts. Once a request: with the head of its response, or with its end.

use std::time::Duration;

use pintle_balance::Sample;
use pintle_breaker::{Need, Outcome};
use pintle_contract::Now;

use super::Exchange;
use crate::boundary::Proxy;
use crate::service::Service;
use crate::worker::Local;

/// What is known of a request's attempts.
pub(super) struct Charge {
    pub(super) attempts: u32,
    /// Of the last attempt.
    pub(super) outcome: Outcome,
    /// The entry of the list that the last attempt went to, where that is known.
    pub(super) answered: Option<usize>,
    /// Of the last attempt.
    pub(super) latency: Option<Duration>,
    /// How long the client waited in vain.
    pub(super) waited: Option<Duration>,
}

impl Charge {
    /// How many entries of the list the attempts came through, those included that Envoy skipped because they
    /// are no hosts of its cluster.
    pub(super) fn reached(&self) -> usize {
        reached(self.attempts, self.answered)
    }
}

/// As [`Charge::reached`].
pub(super) fn reached(attempts: u32, answered: Option<usize>) -> usize {
    let made = usize::try_from(attempts).unwrap_or(usize::MAX);
    answered.map_or(made, |at| made.max(at.saturating_add(1)))
}

impl<P: Proxy> Exchange<P> {
    /// Charges every endpoint of the list with what it did.
    #[inline(never)]
    pub(super) fn charge(&mut self, local: &mut Local, at: usize, charge: &Charge, now: Now) {
        let breaking = local.config.breaker;
        let Some(service) = local.services.at_mut(at) else { return };
        let Some(sent) = &mut self.sent else { return };
        // Of a shadow's list there is nothing but the one that answered.
        let shadow = self.shadow.is_some();
        let attempts = if shadow { charge.attempts.min(1) } else { charge.attempts };
        let told = sent.head.is_some_and(|head| !head.booked && sent.is_answered());
        let mut due = Vec::new();
        let (list, end) = (&sent.list, reached(attempts, charge.answered));
        let outcomes =
            pintle_breaker::charges(attempts, list.len(), charge.answered, charge.outcome);
        for ((position, outcome), entry) in outcomes.zip(list) {
            let last = position.saturating_add(1) == end;
            let latency = charge.latency.filter(|_| last || charge.attempts <= 1);
            let sample = sample(outcome, latency);
            let index = service.balancer.by_key(entry.key);
            match (sent.ticket.filter(|_| position == 0), outcome) {
                // With its head it had answered.
                (Some(_), _) if told => {
                    if let (true, Some(index)) = (sample.failed, index) {
                        let sample = Sample { latency: None, ..sample };
                        service.balancer.observed(index, now, sample);
                    }
                }
                (Some(ticket), Outcome::Ignored) => {
                    service.balancer.abandoned(ticket, now, charge.waited);
                    sent.ticket = None;
                }
                (Some(ticket), _) => service.balancer.answered(ticket, now, sample),
                (None, Outcome::Ignored) => {}
                (None, _) => {
                    if let Some(index) = index {
                        service.balancer.observed(index, now, sample);
                    }
                }
            }
            let Some(index) = index else { continue };
            // It was asked, and nobody waited for what it would have said.
            let asked = outcome == Outcome::Ignored && charge.answered == Some(position);
            if outcome != Outcome::Ignored || asked {
                service.count_attempt(index, sample.failed);
            }
            if breaking && observe(service, index, entry.breaker, outcome, now) == Need::Sync {
                due.push(index);
            }
        }
        let Some(name) = &self.decided.service else { return };
        for index in due {
            local.sync_breaker(name, index, now);
        }
    }

    /// Charges the endpoint that answered with a failure after its head, which was booked as good.
    pub(super) fn charge_late(&self, local: &mut Local, at: usize, charge: &Charge, now: Now) {
        let breaking = local.config.breaker;
        let (Some(service), Some(sent)) = (local.services.at_mut(at), &self.sent) else { return };
        let entry = charge.reached().checked_sub(1).and_then(|last| sent.list.get(last));
        let Some(index) = entry.and_then(|entry| service.balancer.by_key(entry.key)) else {
            return;
        };
        service.count_failure(index);
        service.balancer.observed(index, now, sample(charge.outcome, None));
        let Some(ticket) = service.breaker(index).map(|breaker| breaker.record().ticket()) else {
            return;
        };
        if breaking
            && observe(service, index, ticket, charge.outcome, now) == Need::Sync
            && let Some(name) = &self.decided.service
        {
            local.sync_breaker(name, index, now);
        }
    }

    /// Where in the list an address is.
    pub(super) fn entry_of(&self, service: &Service, address: Option<Vec<u8>>) -> Option<usize> {
        let (address, sent) = (address?, self.sent.as_ref()?);
        let is = |index| service.address(index).as_bytes() == address;
        sent.list.iter().position(|entry| service.balancer.by_key(entry.key).is_some_and(is))
    }
}

fn observe(
    service: &mut Service,
    index: usize,
    ticket: pintle_breaker::Ticket,
    outcome: Outcome,
    now: Now,
) -> Need {
    let policy = service.policy.clone();
    let breaker = service.breaker_mut(index);
    breaker.map_or(Need::Nothing, |b| b.observe(ticket, outcome, &policy.breaker, now))
}

fn sample(outcome: Outcome, latency: Option<Duration>) -> Sample {
    let (failed, retry_after) = match outcome {
        Outcome::Failure(_) => (true, None),
        Outcome::Soft { retry_after } => (false, retry_after),
        Outcome::Success { .. } | Outcome::Ignored => (false, None),
    };
    Sample { latency, failed, retry_after }
}
