//! The head of a response, which is the answer: what it says is booked when it passes, and how long
//! its body streams afterwards is nobody's latency.
//!
//! What a good head says of an endpoint is booked with the end of the stream, because the endpoint
//! may yet cut its answer short; but a probe does not wait for that, and a failure has nothing to
//! wait for. A gRPC call has its status behind the head: one that is a probe is settled by its end,
//! or, when it turns out to be a stream, by the next tick (`worker/probes.rs`).

use std::time::Duration;

use pintle_balance::Sample;
use pintle_breaker::classify::{is_good, overdue, parse_retry_after};
use pintle_breaker::{Answered, Outcome, Report};
use pintle_contract::Now;

use super::charge::{Charge, entry_at, find};
use super::{Exchange, Sent};
use crate::boundary::Proxy;
use crate::worker::{Local, Probe};

/// What Envoy says in `response.code_details` of an endpoint's response, and of no reply of its
/// own.
const VIA_UPSTREAM: &[u8] = b"via_upstream";

/// The same where no attempt was made: a cache behind the module asked an endpoint by a request of
/// its own, and kept the answer or not (seen on 1.36.4 and 1.40.0).
const SENT_BY_CACHE: [&[u8]; 2] = [VIA_UPSTREAM, b"cache.insert_via_upstream"];

/// The head of an endpoint's response.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) at: Now,
    pub(super) code: u16,
    pub(super) attempts: u32,
    /// Where the last attempt went, where that was asked for.
    pub(super) answered: Option<Answered>,
    pub(super) retry_after: Option<Duration>,
    pub(super) outcome: Outcome,
    /// Whether the outcome is in the breakers and the counts already.
    pub(super) booked: bool,
    /// Whether a tick may book it (`worker/probes.rs`).
    pub(super) left_to_tick: bool,
}

impl<P: Proxy> Exchange<P> {
    /// Takes the head for the answer, if it is an endpoint's.
    pub(super) fn answered(&mut self, local: &mut Local) {
        let now = self.proxy.now();
        local.clock = now;
        self.follow_envoy(local, now);
        let Some(at) = self.service_at(local) else { return };
        let Some(mut head) = self.read_head(local, at, now) else { return };
        let waits = self.said.grpc && self.grpc_status.is_none();
        let Some(sent) = &mut self.sent else { return };
        let first = sent.list.first().copied();
        let probe = first.filter(|first| first.breaker.is_probe());
        let good = matches!(head.outcome, Outcome::Success { .. });
        let elsewhere = head.answered.is_some_and(|answered| answered != Answered::Entry(0));
        head.booked = head.outcome != Outcome::Ignored
            && (!good || head.attempts > 1 || elsewhere || (probe.is_some() && !waits));
        let latency = (head.attempts <= 1).then(|| now.since(self.started));
        sent.head = Some(head);
        if head.booked {
            let (attempts, outcome) = (head.attempts, head.outcome);
            let answered = head.answered.unwrap_or_else(|| entry_at(attempts.saturating_sub(1)));
            let charge = Charge { attempts, outcome, answered, latency, waited: None };
            self.charge(local, at, &charge, now);
        } else if good {
            tell(sent, local, at, latency, now);
            if let (Some(first), Some(known)) = (probe, &self.decided.service) {
                let probe = Probe::new(&known.name, first.key, first.breaker);
                head.left_to_tick = local.probes.answered(probe, now);
                sent.head = Some(head);
            }
        }
    }

    /// Reads the head; `None` where it is none of an endpoint's.
    fn read_head(&self, local: &mut Local, at: usize, now: Now) -> Option<Head> {
        let proxy = &self.proxy;
        let code = code(&proxy.response_header(":status")?)?;
        let good = is_good(code, self.grpc_status);
        // None were made when another filter answered, so that nobody is charged with its reply.
        let attempts = proxy.attempts();
        if attempts == 0 {
            if proxy.response_details().is_some_and(|it| SENT_BY_CACHE.contains(&&*it)) {
                local.services.at_mut(at)?.counts.stray(1);
            }
            return None;
        }
        let sent = self.sent.as_ref()?;
        let probes = sent.list.first().is_some_and(|first| first.breaker.is_probe());
        // A good one is taken for the endpoint's without asking, which would cost every request.
        // What is booked at once must not be a page that a `local_reply_config` shows.
        let asks = !good || probes || attempts > 1;
        if asks && proxy.response_details().as_deref() != Some(VIA_UPSTREAM) {
            return None;
        }
        let wishes = self.said.grpc || code == 429;
        let wish = if wishes { proxy.response_header("retry-after") } else { None };
        let retry_after = wish.and_then(|value| parse_retry_after(&value, now));
        let took = now.since(self.started);
        let report = Report {
            code: Some(code),
            head: true,
            connect: self.said.is_connect(),
            overdue: overdue(self.said.deadline, took),
            grpc: self.grpc_status,
            took: Some(took),
            retry_after,
            ..Report::default()
        };
        let service = local.services.at_mut(at)?;
        let outcome = pintle_breaker::classify(&report, &service.policy.breaker);
        let good = matches!(outcome, Outcome::Success { .. });
        let asks = attempts > 1 || !good || probes || service.looks.due();
        let address = if asks { proxy.upstream_address() } else { None };
        let answered = asks.then(|| find(sent, service, attempts, address.as_deref()));
        Some(Head {
            at: now,
            code,
            attempts,
            answered,
            retry_after,
            outcome,
            booked: false,
            left_to_tick: false,
        })
    }
}

/// Tells the balancer that the first in the list has answered.
fn tell(sent: &Sent, local: &mut Local, at: usize, latency: Option<Duration>, now: Now) {
    if let (Some(ticket), Some(service)) = (sent.ticket, local.services.at_mut(at)) {
        service.balancer.answered(ticket, now, Sample { latency, ..Sample::default() });
    }
}

/// A status of three digits, as every HTTP status is.
fn code(status: &[u8]) -> Option<u16> {
    let digit = |digit: u8| digit.is_ascii_digit().then(|| u16::from(digit & 15));
    let [hundreds, tens, ones] = *status else { return None };
    Some(digit(hundreds)? * 100 + digit(tens)? * 10 + digit(ones)?)
}
