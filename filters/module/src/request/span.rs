//! What the span of a request says.

use pintle_breaker::{Answered, Outcome};
use pintle_contract::Now;
use pintle_trace::{Attempt, Decision, Direction, Span, Spans};

use super::end::Ended;
use super::{Entry, Exchange};
use crate::boundary::Proxy;
use crate::worker::Local;

/// Attempts on a span, at most: those that the exporter would write.
const MAX_ATTEMPTS: usize = 16;

impl<P: Proxy> Exchange<P> {
    /// Puts the span into the queue.
    #[inline(never)]
    pub(super) fn record(&self, local: &mut Local, at: Option<usize>, ended: &Ended, now: Now) {
        let (Some(context), Some(trace)) = (&self.trace, &local.config.trace) else { return };
        let kept = &self.kept;
        // A server's peer is the client, a client's the upstream; the other one is not on the span.
        let ingress = trace.direction() == Direction::Ingress;
        // Where the list was not followed, and in shadow, Envoy chose.
        let position = match ended.answered {
            Answered::Entry(position) if self.shadow.is_none() => Some(position),
            _ => None,
        };
        let listed = self.sent.is_some() && position.is_some();
        let per_attempt = context.spans == Spans::PerAttempt;
        let client = if ingress { self.proxy.source_address() } else { None };
        let client = client.unwrap_or_default();
        let asks_upstream = !ingress || (per_attempt && !listed);
        let upstream = if asks_upstream { self.proxy.upstream_address() } else { None };
        let upstream = upstream.unwrap_or_default();
        let service = self.decided.service.as_ref().zip(at.and_then(|at| local.services.at(at)));
        let mut decision = Decision {
            candidates: self.decided.candidates,
            outcome: self.decided.outcome,
            reason: self.decided.reason,
            ..Decision::default()
        };
        let made = usize::try_from(ended.attempts).unwrap_or(usize::MAX);
        let last = position.unwrap_or_else(|| made.saturating_sub(1));
        let reached = made.max(last.saturating_add(1));
        let attempt = |position: usize, endpoint| Attempt {
            endpoint,
            status: ended.code.filter(|_| position == last),
            error: (position < last).then_some(b"retried".as_slice()),
            times: None,
        };
        let mut attempts = Vec::new();
        if let Some((known, service)) = service {
            decision.service = known.name.as_bytes();
            let strategy = service.policy.select.strategy.name();
            decision.strategy = self.decided.candidates.map_or("", |_| strategy);
            decision.version = Some((service.version.epoch, service.version.sequence));
            decision.age = local.services.age(now);
            if let Some(shadow) = &self.shadow {
                let index = shadow.first.and_then(|key| service.balancer.by_key(key));
                decision.endpoint = index.map_or("", |index| service.address(index)).as_bytes();
                decision.breaker = index.map_or("", |at| service.breaker_state(at).as_str());
            } else if let Some(sent) = &self.sent {
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
                let entries = sent.list.iter().take(reached).enumerate();
                let entries = entries.skip(from).filter(|_| listed);
                attempts.extend(entries.map(|(at, entry)| attempt(at, address(entry).as_bytes())));
            }
        }
        if per_attempt && !listed {
            // Envoy chose: of its attempts it tells how many there were, and where the last one
            // went.
            let told = (0..made.min(MAX_ATTEMPTS))
                .map(|at| attempt(at, if at == last { upstream.as_slice() } else { b"" }));
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
        let Local { tracer, rng, counters, .. } = local;
        tracer.push(&span, rng, now, counters);
    }
}
