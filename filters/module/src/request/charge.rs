//! Who is charged with what: every endpoint of the list with what it did, in its breaker, at the
//! balancer and in the counts. Once a request: with the head of its response, or with its end.

use std::net::SocketAddr;
use std::time::Duration;

use pintle_balance::Sample;
use pintle_breaker::{Answered, Attempts, Logged, Need, Outcome};
use pintle_contract::Now;

use super::{Entry, Exchange, Sent};
use crate::boundary::Proxy;
use crate::service::Service;
use crate::worker::Local;

/// What is known of a request's attempts.
pub(super) struct Charge {
    pub(super) attempts: u32,
    /// Of the last attempt.
    pub(super) outcome: Outcome,
    /// Where the last attempt went.
    pub(super) answered: Answered,
    /// Of the last attempt.
    pub(super) latency: Option<Duration>,
    /// How long the client waited in vain.
    pub(super) waited: Option<Duration>,
}

impl Charge {
    /// Whether this is what nearly every request comes to: its only attempt went to the first of
    /// the list, which answered well and was told so to the balancer.
    fn is_of_first(&self, sent: &Sent) -> bool {
        self.attempts == 1
            && self.answered == Answered::Entry(0)
            && matches!(self.outcome, Outcome::Success { .. })
            && sent.logged.is_empty()
    }
}

impl<P: Proxy> Exchange<P> {
    /// Charges whoever was asked with what it did.
    #[inline(never)]
    pub(super) fn charge(&mut self, local: &mut Local, at: usize, charge: &Charge, now: Now) {
        let breaking = local.config.breaker;
        let Some(service) = local.services.at_mut(at) else { return };
        let Some(sent) = &mut self.sent else { return };
        let told = sent.head.is_some_and(|head| !head.booked && sent.is_answered());
        if told && self.shadow.is_none() && charge.is_of_first(sent) {
            let Some(first) = sent.list.first() else { return };
            let (ticket, at) = (first.breaker, service.balancer.by_key_near(first.key, first.at));
            service.looks.saw(true);
            let Some(index) = at else { return };
            service.count_attempt(index, false);
            if breaking
                && observe(service, index, ticket, charge.outcome, now) == Need::Sync
                && let Some(known) = &self.decided.service
            {
                local.sync_breaker(&known.name, index, now);
            }
            return;
        }
        let logged = earlier(std::mem::take(&mut sent.logged), charge);
        // Of a shadow's list there is nothing but the one that answered.
        let shadow = self.shadow.is_some();
        let attempts = Attempts {
            made: if shadow { charge.attempts.min(1) } else { charge.attempts },
            listed: sent.list.len(),
            answered: charge.answered,
            last: charge.outcome,
            retries: service.policy.breaker.retries,
            logged: &logged,
        };
        let mut due = Vec::new();
        for (position, entry) in sent.list.iter().enumerate() {
            let asked = attempts.was_asked(position);
            // Nobody asked it, and it holds no probe's place that would have to be given back.
            if position > 0 && !asked && !entry.breaker.is_probe() {
                continue;
            }
            let outcome = attempts.entry(position);
            let last = charge.answered == Answered::Entry(position) && charge.attempts > 0;
            let sample = sample(outcome, charge.latency.filter(|_| last));
            let index = service.balancer.by_key_near(entry.key, entry.at);
            match (sent.ticket.filter(|_| position == 0), outcome) {
                // With its head it had answered.
                (Some(_), _) if told => {
                    if let (true, Some(index)) = (sample.failed, index) {
                        let sample = Sample { latency: None, ..sample };
                        service.balancer.observed(index, now, sample);
                    }
                }
                (Some(ticket), Outcome::Ignored) => {
                    service.balancer.abandoned(ticket, now, charge.waited.filter(|_| last));
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
            // Also where nobody waited for what it would have said.
            if asked {
                service.count_attempt(index, sample.failed);
            }
            if breaking && observe(service, index, entry.breaker, outcome, now) == Need::Sync {
                due.push(index);
            }
        }
        let other = Logged { to: charge.answered, outcome: attempts.other() };
        let other = matches!(other.to, Answered::Other(_)).then_some((&other, charge.latency));
        for (Logged { to, outcome }, latency) in
            other.into_iter().chain(attempts.others().map(|logged| (logged, None)))
        {
            let index = key(sent, *to).and_then(|key| service.balancer.by_key(key));
            let Some(index) = index else { continue };
            let sample = sample(*outcome, latency);
            service.count_attempt(index, sample.failed);
            if *outcome != Outcome::Ignored {
                service.balancer.observed(index, now, sample);
            }
            if breaking && observe_late(service, index, *outcome, now) == Need::Sync {
                due.push(index);
            }
        }
        if let Some(turn) = charge.attempts.checked_sub(1).filter(|_| !shadow) {
            service.counts.stray(attempts.unknown());
            service.looks.saw(charge.answered == entry_at(turn));
        }
        let Some(known) = &self.decided.service else { return };
        for index in due {
            local.sync_breaker(&known.name, index, now);
        }
    }

    /// Charges the endpoint that answered with a failure after its head, which was booked as good.
    pub(super) fn charge_late(&self, local: &mut Local, at: usize, charge: &Charge, now: Now) {
        let breaking = local.config.breaker;
        let (Some(service), Some(sent)) = (local.services.at_mut(at), &self.sent) else { return };
        let index = key(sent, charge.answered).and_then(|key| service.balancer.by_key(key));
        let Some(index) = index else { return };
        service.count_failure(index);
        service.balancer.observed(index, now, sample(charge.outcome, None));
        if breaking
            && observe_late(service, index, charge.outcome, now) == Need::Sync
            && let Some(known) = &self.decided.service
        {
            local.sync_breaker(&known.name, index, now);
        }
    }
}

/// Of the attempts that the router has logged, those before the last. Where no head came, the last
/// is among them, unless it was a client or a time-out of the whole stream that ended it.
fn earlier(mut logged: Vec<Logged>, charge: &Charge) -> Vec<Logged> {
    let all = usize::try_from(charge.attempts).is_ok_and(|made| logged.len() >= made);
    let last = logged.iter().rposition(|it| it.to == charge.answered);
    if let Some(last) = last.or(logged.len().checked_sub(1)).filter(|_| all) {
        logged.remove(last);
    }
    logged
}

/// Names the endpoint that an attempt went to.
fn key(sent: &Sent, to: Answered) -> Option<u64> {
    match to {
        Answered::Entry(position) => sent.list.get(position).map(|entry| entry.key),
        Answered::Other(key) => Some(key),
        Answered::Stranger | Answered::Nowhere => None,
    }
}

/// Where the last of so many attempts went, by its address.
pub(super) fn find(
    sent: &Sent,
    service: &Service,
    attempts: u32,
    address: Option<&[u8]>,
) -> Answered {
    let Some(address) = address.filter(|address| !address.is_empty() && attempts > 0) else {
        return Answered::Nowhere;
    };
    let index = |entry: &Entry| service.balancer.by_key_near(entry.key, entry.at);
    let is =
        |entry: &Entry| index(entry).is_some_and(|at| service.address(at).as_bytes() == address);
    // By filter state all entries are the same.
    let turn = usize::try_from(attempts).ok().and_then(|made| made.checked_sub(1));
    let turn = turn.filter(|turn| sent.list.get(*turn).is_some_and(is));
    if let Some(position) = turn.or_else(|| sent.list.iter().position(is)) {
        return Answered::Entry(position);
    }
    let parsed: Option<SocketAddr> =
        std::str::from_utf8(address).ok().and_then(|text| text.parse().ok());
    let other = parsed.and_then(|address| service.balancer.by_address(address));
    if let Some(key) = other.and_then(|other| service.balancer.key_of(other)) {
        return Answered::Other(key);
    }
    // One that has left the table since is nobody's address any more.
    let gone = sent.list.iter().position(|entry| index(entry).is_none());
    gone.map_or(Answered::Stranger, Answered::Entry)
}

/// The entry that this attempt takes, counted from zero, where nothing is skipped.
pub(super) fn entry_at(attempt: u32) -> Answered {
    usize::try_from(attempt).map_or(Answered::Nowhere, Answered::Entry)
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

/// The same of an endpoint that the request had no ticket of, or whose ticket is used up.
fn observe_late(service: &mut Service, index: usize, outcome: Outcome, now: Now) -> Need {
    let ticket = service.ticket(index);
    ticket.map_or(Need::Nothing, |ticket| observe(service, index, ticket, outcome, now))
}

fn sample(outcome: Outcome, latency: Option<Duration>) -> Sample {
    let (failed, retry_after) = match outcome {
        Outcome::Failure(_) => (true, None),
        Outcome::Soft { retry_after } => (false, retry_after),
        Outcome::Success { .. } | Outcome::Ignored => (false, None),
    };
    Sample { latency, failed, retry_after }
}
