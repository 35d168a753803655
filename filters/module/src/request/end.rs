//! How a request ended: read what tells, and charge every endpoint of the list with what it did.

use std::time::Duration;

use pintle_balance::Sample;
use pintle_breaker::classify::{flag, overdue, parse_retry_after};
use pintle_breaker::{Need, Outcome, Report};
use pintle_contract::{METHODS, Now};

use super::{Exchange, Sent};
use crate::boundary::Proxy;
use crate::service::Service;
use crate::worker::Local;

/// What Envoy writes into the head of an endpoint's answer, and into no reply of its own.
const SERVICE_TIME: &str = "x-envoy-upstream-service-time";

/// How a request ended, as far as it had to be read.
pub(super) struct Ended {
    pub(super) code: Option<u16>,
    /// The call's status, where the request was a gRPC call.
    pub(super) grpc_status: Option<u32>,
    pub(super) flags: u64,
    pub(super) attempts: u32,
    /// Past its client's own deadline.
    overdue: bool,
    pub(super) outcome: Outcome,
    /// The entry of the list that the last attempt went to; asked for where something went wrong.
    pub(super) answered: Option<usize>,
    /// Of the last attempt.
    pub(super) latency: Option<Duration>,
}

impl Ended {
    /// How many entries of the list the attempts came through, those included that Envoy skipped because they
    /// are no hosts of its cluster.
    pub(super) fn reached(&self) -> usize {
        let made = usize::try_from(self.attempts).unwrap_or(usize::MAX);
        self.answered.map_or(made, |at| made.max(at.saturating_add(1)))
    }
}

impl<P: Proxy> Exchange<P> {
    pub(super) fn finish(&mut self, local: &mut Local) {
        let now = self.proxy.now();
        // It may have got another place since, or be gone.
        let name = self.decided.service.as_ref();
        let at = name.and_then(|name| local.services.find(name)).map(|(at, _)| at);
        let ended = self.ended(at.and_then(|at| local.services.at(at)), local, now);
        if self.is_recorded() {
            self.record(local, at, &ended, now);
        }
        if let (Some(sent), Some(at)) = (self.sent.take(), at) {
            self.settle(local, at, &sent, &ended, now);
        }
    }

    /// Reads how it went: the code and the flags, and beyond these only what they call for.
    fn ended(&self, service: Option<&Service>, local: &Local, now: Now) -> Ended {
        let proxy = &self.proxy;
        let code = proxy.response_code();
        let flags = proxy.response_flags();
        // None were made when another filter answered, so that nobody is charged with its reply.
        let attempts = proxy.attempts();
        let sent = self.sent.is_some();
        let head = if sent { proxy.response_header(SERVICE_TIME) } else { None };
        let mut report = Report {
            code,
            flags,
            head: head.is_some(),
            connect: METHODS.get(usize::from(self.method)) == Some(&"CONNECT"),
            overdue: overdue(self.deadline, now.since(self.started)),
            ..Report::default()
        };
        if self.grpc && report.asks_grpc() {
            report.grpc = proxy.grpc_status();
        }
        let address = || proxy.upstream_address();
        let mut upstream = report.asks_upstream().then(address).flatten();
        report.upstream = upstream.as_ref().is_some_and(|address| !address.is_empty());
        let details = report.asks_details().then(|| proxy.response_details()).flatten();
        report.details = details.as_deref().unwrap_or_default();
        if code == Some(429) || report.grpc == Some(8) {
            let value = proxy.response_header("retry-after");
            report.retry_after = value.and_then(|value| parse_retry_after(&value, now));
        }
        // Of an attempt, for the endpoint's books; a span has the request's own times.
        let latency = if sent { self.latency(attempts, head.as_deref()) } else { None };
        let latency = latency.unwrap_or_else(|| now.since(self.started));
        report.took = Some(latency);
        let policy = service.map_or(&local.config.default_policy, |service| &service.policy);
        let outcome = pintle_breaker::classify(&report, &policy.breaker);
        if upstream.is_none() && (attempts > 1 || matches!(outcome, Outcome::Failure(_))) {
            upstream = address();
        }
        let answered = upstream.filter(|_| attempts > 0).zip(service).zip(self.sent.as_ref());
        let answered = answered.and_then(|((address, service), sent)| {
            let is = |index| service.address(index).as_bytes() == address;
            sent.list.iter().position(|entry| service.balancer.by_key(entry.key).is_some_and(is))
        });
        Ended {
            code,
            grpc_status: report.grpc,
            flags,
            attempts,
            overdue: report.overdue,
            outcome,
            answered,
            latency: Some(latency),
        }
    }

    /// Time to the response's head. With one attempt it is in a header that Envoy adds; that header
    /// counts from the first attempt, so with more the last one's whole time has to do.
    fn latency(&self, attempts: u32, head: Option<&[u8]>) -> Option<Duration> {
        if attempts > 1 {
            return self.proxy.backend_latency().map(Duration::from_nanos);
        }
        let millis: u64 = std::str::from_utf8(head?).ok()?.parse().ok()?;
        Some(Duration::from_millis(millis))
    }

    /// Charges every endpoint of the list with what it did.
    #[inline(never)]
    fn settle(&self, local: &mut Local, at: usize, sent: &Sent, ended: &Ended, now: Now) {
        let breaking = local.config.breaker;
        let Some(service) = local.services.at_mut(at) else { return };
        service.counts.end();
        let took = now.since(self.started);
        service.counts.answer(self.method, ended.code.unwrap_or_default(), took);

        let mut due = Vec::new();
        let charges =
            pintle_breaker::charges(ended.attempts, sent.list.len(), ended.answered, ended.outcome);
        let end = ended.reached();
        for ((position, outcome), entry) in charges.zip(&sent.list) {
            let ticket = sent.ticket.filter(|_| position == 0);
            let last = position.saturating_add(1) == end;
            let sample = sample(outcome, ended.latency.filter(|_| last || ended.attempts <= 1));
            match (ticket, outcome) {
                (Some(ticket), Outcome::Ignored) => {
                    let left = ended.flags & flag::CLIENT != 0 || ended.overdue;
                    let waited = left.then_some(took);
                    service.balancer.abandoned(ticket, now, waited);
                }
                (Some(ticket), _) => service.balancer.finished(ticket, now, sample),
                (None, Outcome::Ignored) => {}
                (None, _) => {
                    if let Some(index) = service.balancer.by_key(entry.key) {
                        service.balancer.observed(index, now, sample);
                    }
                }
            }
            let Some(index) = service.balancer.by_key(entry.key) else { continue };
            if outcome != Outcome::Ignored {
                service.count_attempt(index, sample.failed);
            }
            let policy = service.policy.clone();
            if breaking
                && let Some(breaker) = service.breaker_mut(index)
                && breaker.observe(entry.breaker, outcome, &policy.breaker, now) == Need::Sync
            {
                due.push(index);
            }
        }
        let Some(name) = &self.decided.service else { return };
        for index in due {
            local.sync_breaker(name, index, now);
        }
    }
}

fn sample(outcome: Outcome, latency: Option<Duration>) -> Sample {
    let (failed, retry_after) = match outcome {
        Outcome::Failure(_) => (true, None),
        Outcome::Soft { retry_after } => (false, retry_after),
        Outcome::Success { .. } | Outcome::Ignored => (false, None),
    };
    Sample { latency, failed, retry_after }
}
