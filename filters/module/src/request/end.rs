//! How a request ended: read what tells, and charge what the head of its response has not settled.

use std::time::Duration;

use pintle_breaker::classify::{flag, overdue};
use pintle_breaker::{Answered, FailureKind, Outcome, Report, Retries};
use pintle_contract::Now;

use super::Exchange;
use super::charge::{Charge, entry_at, find};
use super::head::Head;
use crate::boundary::Proxy;
use crate::service::Service;
use crate::worker::{Local, Probe};

/// What a gRPC call has come to whose response names no status.
const UNKNOWN: u32 = 2;

/// What Envoy says in `response.code_details` of an answer that an endpoint did not end.
const CUT: &[u8] = b"upstream_reset_after_response_started";
/// The same of a 504 for `max_stream_duration`, which has no flag (seen on 1.40.0).
const TOO_LONG: &[u8] = b"max_duration_timeout";
/// How long Envoy takes to send a reply of its own, at most.
const AT_ONCE: Duration = Duration::from_millis(20);

/// How a request ended, as far as it had to be read.
pub(super) struct Ended {
    pub(super) code: Option<u16>,
    /// The call's status, where the request was a gRPC call.
    pub(super) grpc_status: Option<u32>,
    flags: u64,
    pub(super) attempts: u32,
    /// Past its client's own deadline.
    overdue: bool,
    pub(super) outcome: Outcome,
    /// Where the last attempt went; a good one is taken for the list's first without asking.
    pub(super) answered: Answered,
}

impl Ended {
    /// As the head of a response has it.
    fn of(head: &Head) -> Self {
        Self {
            code: Some(head.code),
            grpc_status: None,
            flags: 0,
            attempts: head.attempts,
            overdue: false,
            outcome: head.outcome,
            answered: head.answered.unwrap_or_else(|| entry_at(head.attempts.saturating_sub(1))),
        }
    }

    /// The same where the cluster's own limits left no room for the last attempt: nobody was asked
    /// by it. Envoy 1.40 counts it, and names the host that it was meant for. The one before was
    /// followed by it.
    fn without_last(self, retries: Retries) -> Self {
        let attempts = self.attempts.saturating_sub(1);
        let Some(before) = attempts.checked_sub(1) else {
            return Self { attempts, answered: Answered::Nowhere, ..self };
        };
        let outcome = match retries {
            Retries::Failures => Outcome::Failure(FailureKind::Attempt),
            Retries::Any | Retries::Logged => Outcome::Ignored,
        };
        Self { attempts, answered: entry_at(before), outcome, ..self }
    }
}

impl<P: Proxy> Exchange<P> {
    pub(super) fn finish(&mut self, local: &mut Local) {
        let flags = self.proxy.response_flags();
        let head = self.sent.as_ref().and_then(|sent| sent.head);
        let good = head.filter(|head| flags == 0 && self.is_final(head));
        // Nothing is timed by the end of what went well, unless there is a span.
        let untimed = good.is_some() && !self.is_recorded();
        let now = if untimed { local.clock } else { self.proxy.now() };
        self.follow_envoy(local, now);
        let at = self.service_at(local);
        let ended = match good {
            Some(head) => Ended::of(&head),
            None => self.ended(flags, at.and_then(|at| local.services.at(at)), local, now),
        };
        if self.is_recorded() {
            self.record(local, at, &ended, now);
        }
        if let Some(at) = at {
            self.settle(local, at, &ended, now);
        }
        self.sent = None;
    }

    /// Where the request's service is now: it may have got another place since, or be gone.
    pub(super) fn service_at(&self, local: &Local) -> Option<usize> {
        let known = self.decided.service.as_ref()?;
        local.services.find_near(&known.name, known.at)
    }

    /// Reads how it went: the code where there was no head, and beyond it only what that and the
    /// flags call for.
    fn ended(&self, flags: u64, service: Option<&Service>, local: &Local, now: Now) -> Ended {
        let proxy = &self.proxy;
        let head = self.sent.as_ref().and_then(|sent| sent.head);
        let head = head.filter(|head| !self.is_own_reply(head, flags, now));
        let code = head.map_or_else(|| proxy.response_code(), |head| Some(head.code));
        let attempts = head.map_or_else(|| proxy.attempts(), |head| head.attempts);
        let mut report = Report {
            code,
            flags,
            head: head.is_some(),
            connect: self.said.is_connect(),
            overdue: overdue(self.said.deadline, now.since(self.started)),
            took: Some(self.took(head, now)),
            retry_after: head.and_then(|head| head.retry_after),
            ..Report::default()
        };
        if self.said.grpc && report.asks_grpc() {
            report.grpc = self.grpc_status.or((code == Some(200)).then_some(UNKNOWN));
        }
        let address = || proxy.upstream_address();
        let mut upstream = report.asks_upstream().then(address).flatten();
        // Without a reason among the flags, an answer that had no endpoint's head is another
        // filter's.
        let waited = || proxy.response_details().as_deref() == Some(TOO_LONG);
        let asked = || head.is_some() || flags & flag::DECIDES != 0 || waited();
        report.upstream = upstream.as_ref().is_some_and(|it| !it.is_empty()) && asked();
        let details = report.asks_details().then(|| proxy.response_details()).flatten();
        report.details = details.as_deref().unwrap_or_default();
        let policy = service.map_or(&local.config.default_policy, |service| &service.policy);
        let outcome = pintle_breaker::classify(&report, &policy.breaker);
        let known = head.and_then(|head| head.answered);
        let good = matches!(outcome, Outcome::Success { .. }) && head.is_some();
        let asks = attempts > 1 || !good;
        if known.is_none() && upstream.is_none() && attempts > 0 && asks {
            upstream = address();
        }
        let looked = || {
            let (sent, service) = self.sent.as_ref().zip(service).filter(|_| asks)?;
            Some(find(sent, service, attempts, upstream.as_deref()))
        };
        let answered = known.or_else(looked);
        let answered = answered.unwrap_or_else(|| entry_at(attempts.saturating_sub(1)));
        let ended = Ended {
            code,
            grpc_status: report.grpc,
            flags,
            attempts,
            overdue: report.overdue,
            outcome,
            answered,
        };
        let overflown = head.is_none() && flags & flag::OVERFLOW != 0;
        if overflown { ended.without_last(policy.breaker.retries) } else { ended }
    }

    /// Whether a good head says all there is to say, where Envoy raises no flag at the end.
    fn is_final(&self, head: &Head) -> bool {
        let good = matches!(head.outcome, Outcome::Success { .. });
        good && !self.said.grpc && self.said.deadline.is_none()
    }

    /// Whether what was taken for an endpoint's good head was this Envoy's own reply, to which a
    /// `local_reply_config` gives any status: its reason is among the flags, and it ends with its
    /// head, where a stream that is cut ends later. Seen on 1.36.4 and 1.40.0: 504 and 503 made a
    /// 200.
    fn is_own_reply(&self, head: &Head, flags: u64, now: Now) -> bool {
        flags & (flag::WAITED | flag::LOCAL | flag::TRANSPORT) != 0
            && now.since(head.at) < AT_ONCE
            && head.code < 400
            && !self.proxy.response_details().is_some_and(|it| it.starts_with(CUT))
    }

    /// How long the answer took: to its head, where one came.
    fn took(&self, head: Option<Head>, now: Now) -> Duration {
        head.map_or(now, |head| head.at).since(self.started)
    }

    #[inline(never)]
    fn settle(&mut self, local: &mut Local, at: usize, ended: &Ended, now: Now) {
        let Some(sent) = &self.sent else { return };
        let head = sent.head;
        let first = sent.list.first().copied();
        let took = self.took(head, now);
        let Some(service) = local.services.at_mut(at) else { return };
        service.counts.end();
        service.counts.answer(self.said.method, ended.code.unwrap_or_default(), took);

        let left = ended.flags & flag::CLIENT != 0 || ended.overdue;
        let charge = Charge {
            attempts: ended.attempts,
            outcome: ended.outcome,
            answered: ended.answered,
            latency: (ended.attempts <= 1).then_some(took),
            waited: left.then_some(took),
        };
        let ticked = head.is_some_and(|head| head.left_to_tick) && {
            let probe = first.zip(self.decided.service.as_ref());
            let probe =
                probe.map(|(first, known)| Probe::new(&known.name, first.key, first.breaker));
            probe.is_some_and(|probe| !local.probes.ended(&probe))
        };
        let booked = head.filter(|head| head.booked || ticked);
        match (booked.map(|head| head.outcome), ended.outcome) {
            (None, _) => self.charge(local, at, &charge, now),
            (Some(Outcome::Success { .. }), Outcome::Failure(_)) => {
                self.charge_late(local, at, &charge, now);
            }
            (Some(_), _) => {}
        }
        let ticket = self.sent.as_mut().and_then(|sent| sent.ticket.take());
        if let (Some(ticket), Some(service)) = (ticket, local.services.at_mut(at)) {
            service.balancer.ended(ticket);
        }
    }
}
