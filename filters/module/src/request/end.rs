//! How a request ended: read what tells, and charge every endpoint of the list with what it did.

use super::*;
use crate::service::Service;

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

impl Exchange {
    pub(super) fn finish(&mut self, worker: &mut Worker) {
        let recorded = self.trace.is_some_and(|trace| trace.is_recorded());
        let now = host::now();
        // It may have got another place since, or be gone.
        let at = self.decided.service.as_ref().and_then(|name| worker.services.get_index_of(name));
        let ended = self.ended(at.and_then(|at| worker.service(at)), worker, now);
        if recorded {
            self.record(worker, at, &ended, now);
        }
        if let (Some(sent), Some(at)) = (self.sent.take(), at) {
            self.settle(worker, at, &sent, &ended, now);
        }
    }

    /// Reads how it went: the code and the flags, and beyond these only what they call for.
    fn ended(&self, service: Option<&Service>, worker: &Worker, now: Now) -> Ended {
        let code = host::property_u64(keys::CODE).ok().and_then(|code| u16::try_from(code).ok());
        let code = code.filter(|code| *code > 0);
        let flags = host::property_u64(keys::FLAGS).unwrap_or_default();
        // None were made when another filter answered, so that nobody is charged with its reply.
        let attempts = host::property_u64(keys::ATTEMPTS)
            .ok()
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(0);
        let sent = self.sent.is_some();
        let head = sent.then(|| host::response_header(SERVICE_TIME).ok()).flatten();
        let mut report = Report {
            code,
            flags,
            head: head.is_some(),
            connect: METHODS.get(usize::from(self.method)) == Some(&"CONNECT"),
            overdue: overdue(self.deadline, now.since(self.started)),
            ..Report::default()
        };
        if self.grpc && report.asks_grpc() {
            report.grpc =
                host::property_u64(keys::GRPC_STATUS).ok().and_then(|s| u32::try_from(s).ok());
        }
        let address = || host::property(keys::UPSTREAM_ADDRESS).ok();
        let mut upstream = report.asks_upstream().then(address).flatten();
        report.upstream = upstream.as_ref().is_some_and(|address| !address.is_empty());
        let details = report.asks_details().then(|| host::property(keys::DETAILS).ok()).flatten();
        report.details = details.as_deref().unwrap_or_default();
        if code == Some(429) || report.grpc == Some(8) {
            let value = host::response_header(b"retry-after").ok();
            report.retry_after = value.and_then(|value| parse_retry_after(&value, now));
        }
        // Of an attempt, for the endpoint's books; a span has the request's own times.
        let latency = sent.then(|| latency(attempts, head.as_deref())).flatten();
        let latency = latency.unwrap_or_else(|| now.since(self.started));
        report.took = Some(latency);
        let policy = service.map_or(&worker.config.default_policy, |service| &service.policy);
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

    /// Charges every endpoint of the list with what it did.
    #[inline(never)]
    fn settle(&self, worker: &mut Worker, at: usize, sent: &Sent, ended: &Ended, now: Now) {
        let breaking = worker.config.breaker;
        let Some((name, service)) = worker.services.get_index_mut(at) else { return };
        service.ended();
        let took = now.since(self.started);
        service.answered(self.method, ended.code.unwrap_or_default(), took);

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
                service.attempted(index, sample.failed);
            }
            let policy = service.policy.clone();
            if breaking
                && let Some(mirror) = service.mirror_mut(index)
                && mirror.observe(entry.breaker, outcome, &policy.breaker, now)
                    == pintle_breaker::Need::Sync
            {
                due.push(index);
            }
        }
        if due.is_empty() {
            return;
        }
        let name = name.clone();
        for index in due {
            worker.sync_breaker(&name, index, false, now);
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

/// What Envoy writes into the head of an endpoint's answer, and into no reply of its own.
const SERVICE_TIME: &[u8] = b"x-envoy-upstream-service-time";

/// Time to the response's head. With one attempt it is in a header that Envoy adds; that header
/// counts from the first attempt, so with more the last one's whole time has to do.
fn latency(attempts: u32, head: Option<&[u8]>) -> Option<Duration> {
    if attempts > 1 {
        return host::property_u64(keys::BACKEND_LATENCY).ok().map(Duration::from_nanos);
    }
    let millis: u64 = std::str::from_utf8(head?).ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}
