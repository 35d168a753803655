//! What the span of a request says.

use super::end::Ended;
use super::*;

impl Exchange {
    /// Puts the span into the queue.
    #[inline(never)]
    pub(super) fn record(&self, worker: &mut Worker, at: Option<usize>, ended: &Ended, now: Now) {
        let (Some(context), Some(trace)) = (&self.trace, &worker.config.trace) else { return };
        let kept = &self.kept;
        // A server's peer is the client, a client's the upstream; the other one is not on the span.
        let ingress = trace.direction() == Direction::Ingress;
        let listed = self.sent.is_some();
        let per_attempt = context.spans == Spans::PerAttempt;
        let read = |wanted: bool, path| {
            wanted.then(|| host::property(path).ok()).flatten().unwrap_or_default()
        };
        let client = read(ingress, keys::SOURCE_ADDRESS);
        let upstream = read(!ingress || (per_attempt && !listed), keys::UPSTREAM_ADDRESS);
        let service = at.and_then(|at| worker.services.get_index(at));
        let mut decision = Decision {
            candidates: self.decided.candidates,
            outcome: self.decided.outcome,
            reason: self.decided.reason,
            ..Decision::default()
        };
        let made = usize::try_from(ended.attempts).unwrap_or(usize::MAX);
        let reached = ended.reached();
        let attempt = |position: usize, endpoint| {
            let last = position.saturating_add(1) == reached;
            Attempt {
                endpoint,
                status: ended.code.filter(|_| last),
                error: (!last).then_some(b"retried".as_slice()),
                times: None,
            }
        };
        let mut attempts = Vec::new();
        if let Some((name, service)) = service {
            decision.service = name.as_bytes();
            decision.strategy = service.policy.select.strategy.name();
            decision.version = Some((service.version.epoch, service.version.sequence));
            let confirmed = worker.confirmed_at;
            decision.age = (confirmed > Now(0)).then(|| now.since(confirmed));
            if let Some(sent) = &self.sent {
                let address = |entry: &Entry| {
                    service.balancer.by_key(entry.key).map_or("", |index| service.address(index))
                };
                let first = sent.list.first();
                decision.endpoint = first.map(address).unwrap_or_default().as_bytes();
                decision.breaker = first
                    .and_then(|entry| service.balancer.by_key(entry.key))
                    .map_or("closed", |index| service.breaker_state(index).as_str());
                // Who was skipped, nobody knows where there were more attempts than one.
                let from = if reached > made { reached.saturating_sub(1) } else { 0 };
                let entries = sent.list.iter().take(reached).enumerate().skip(from);
                attempts.extend(entries.map(|(at, entry)| attempt(at, address(entry).as_bytes())));
            }
        }
        if per_attempt && !listed {
            // Envoy chose: of its attempts it tells how many there were, and where the last one went.
            let told = (0..made.min(MAX_ATTEMPTS)).map(|at| {
                attempt(at, if at.saturating_add(1) == reached { upstream.as_slice() } else { b"" })
            });
            attempts.extend(told);
        }
        let error = match ended.outcome {
            Outcome::Failure(kind) => kind.as_str(),
            _ => None,
        };
        let span = Span {
            context,
            start: self.started,
            end: now,
            method: kept.method(),
            path: kept.path(),
            scheme: kept.scheme(),
            authority: kept.authority(),
            client: &client,
            upstream: &upstream,
            status: ended.code,
            grpc_status: ended.grpc_status,
            error: error.map(str::as_bytes),
            user_agent: kept.user_agent(),
            tracestate: kept.tracestate(),
            resend_count: ended.attempts.saturating_sub(1),
            decision,
            attempts: &attempts,
        };
        let Some(exporter) = &mut worker.exporter else { return };
        let before = exporter.counts();
        if !exporter.push(&span, &mut worker.dice, now) {
            let after = exporter.counts();
            worker.count_spans(before, after);
        }
    }
}
