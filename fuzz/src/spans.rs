//! Spans of whatever a request says, the way of their batches, and what a collector answers.

use std::collections::BTreeSet;
use std::time::Duration;

use arbitrary::Arbitrary;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use pintle_contract::Now;
use pintle_trace::{
    Answer, Attempt, Config, Context, Decision, Exporter, Link, Outcome, Span, Spans,
};
use prost::Message as _;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use crate::{Text, case};

/// Bytes of one span, at most, however long what the client sent.
const MAX_SPAN: usize = 16 * 1024;
/// Attempts that are told of.
const MAX_ATTEMPTS: usize = 16;

#[derive(Debug, Arbitrary)]
struct Case<'a> {
    egress: bool,
    query: bool,
    batch: u8,
    queue: u8,
    retries: u8,
    steps: Vec<Step<'a>>,
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Push(Box<Request<'a>>),
    Wait(i32),
    Poll,
    Answer(u32, &'a [u8]),
    Partial(i64),
}

#[derive(Debug, Arbitrary)]
struct Request<'a> {
    ids: Ids,
    flags: [bool; 6],
    spans: u8,
    texts: [Text<'a>; 9],
    times: (u64, u64),
    status: Option<u16>,
    grpc_status: Option<u32>,
    error: Option<Text<'a>>,
    resend_count: u32,
    decision: Option<Decided<'a>>,
    attempts: Vec<Tried<'a>>,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
struct Ids {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent: Option<[u8; 8]>,
    link: Option<([u8; 16], [u8; 8], bool)>,
}

#[derive(Debug, Arbitrary)]
struct Decided<'a> {
    outcome: u8,
    service: Text<'a>,
    endpoint: Text<'a>,
    candidates: Option<u32>,
    version: Option<(u64, u64)>,
    age: Option<u64>,
}

#[derive(Debug, Arbitrary)]
struct Tried<'a> {
    endpoint: Text<'a>,
    status: Option<u16>,
    error: Option<Text<'a>>,
    times: Option<(u64, u64)>,
}

/// What went in and has not come out.
struct Books {
    exporter: Exporter,
    batch: usize,
    queue: usize,
    pushed: u64,
    /// Spans of the batch that is under way, and its bytes.
    out: u64,
    sent: Vec<u8>,
    now: Now,
    rng: StdRng,
}

pub(crate) fn spans(data: &[u8]) {
    let Some(case) = case::<Case<'_>>(data) else { return };
    let queue = usize::from(case.queue % 40) + 1;
    let batch = usize::from(case.batch) % queue + 1;
    let config: Config = pintle_settings::read(
        "trace",
        json!({
            "direction": if case.egress { "egress" } else { "ingress" },
            "export": {
                "cluster": "otel", "service_name": "cart", "query": case.query, "batch": batch,
                "queue": queue, "retries": case.retries % 4,
            },
        }),
    )
    .expect("a configuration");
    let mut books = Books {
        exporter: Exporter::new(&config, 1).expect("an exporter"),
        batch,
        queue,
        pushed: 0,
        out: 0,
        sent: Vec::new(),
        now: Now(1_700_000_000_000_000_000),
        rng: StdRng::seed_from_u64(1),
    };
    for step in case.steps.iter().take(60) {
        match step {
            Step::Push(request) => books.push(request),
            Step::Wait(micros) => {
                books.now = Now(books.now.0.saturating_add_signed(i64::from(*micros) * 10_000));
            }
            Step::Poll => books.poll(),
            Step::Answer(status, response) => {
                let answer = Answer::from_grpc(*status, response);
                assert_eq!(matches!(answer, Answer::Accepted { .. }), *status == 0);
                books.answer(answer);
            }
            Step::Partial(rejected) => {
                let partial_success = Some(ExportTracePartialSuccess {
                    rejected_spans: *rejected,
                    error_message: "late".into(),
                });
                let bytes = ExportTraceServiceResponse { partial_success }.encode_to_vec();
                let rejected = u64::try_from(*rejected).unwrap_or(0);
                let answer = Answer::from_grpc(0, &bytes);
                assert_eq!(answer, Answer::Accepted { rejected });
                books.answer(answer);
            }
        }
        books.check();
    }
}

impl Books {
    fn settled(&self) -> u64 {
        let counts = self.exporter.counts();
        counts.exported + counts.failed + counts.rejected
    }

    /// Every span is somewhere, and nowhere twice.
    fn check(&self) {
        let waiting = self.exporter.waiting();
        assert!(waiting <= self.queue);
        let dropped = self.exporter.counts().dropped;
        assert_eq!(self.settled() + dropped + waiting as u64 + self.out, self.pushed);
    }

    fn answer(&mut self, answer: Answer) {
        let before = self.settled();
        self.exporter.on_answer(answer, self.now);
        self.notice(before);
    }

    fn notice(&mut self, before: u64) {
        let settled = self.settled() - before;
        if settled > 0 {
            assert_eq!(settled, self.out, "a batch is settled as a whole");
            self.out = 0;
        }
    }

    fn poll(&mut self) {
        let before = self.settled();
        let bytes = self.exporter.poll(self.now).map(<[u8]>::to_vec);
        self.notice(before);
        let Some(bytes) = bytes else { return };
        if self.out > 0 {
            assert_eq!(bytes, self.sent, "what is sent again is the same");
            return;
        }
        let request = ExportTraceServiceRequest::decode(bytes.as_slice()).expect("OTLP");
        let [resource] = &request.resource_spans[..] else { panic!("one resource") };
        let [scope] = &resource.scope_spans[..] else { panic!("one scope") };
        assert!((1..=self.batch).contains(&scope.spans.len()));
        for span in &scope.spans {
            let size = span.encoded_len();
            assert!(size <= MAX_SPAN, "{size} bytes");
            assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
            assert!(matches!(span.parent_span_id.len(), 0 | 8));
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
            let keys: BTreeSet<&str> = span.attributes.iter().map(|a| a.key.as_str()).collect();
            assert_eq!(keys.len(), span.attributes.len(), "an attribute twice: {span:?}");
            let values = || span.attributes.iter().map(|a| a.value.as_ref());
            assert!(values().all(|value| value.is_some_and(|value| value.value.is_some())));
        }
        self.out = scope.spans.len() as u64;
        self.sent = bytes;
    }

    fn push(&mut self, request: &Request<'_>) {
        let ids = request.ids;
        let [sampled, debug, random, new_root, own_span, participates] = request.flags;
        let spans = [Spans::PerRequest, Spans::PerAttempt, Spans::Off];
        let context = Context {
            trace_id: ids.trace_id,
            span_id: ids.span_id,
            parent_span_id: ids.parent,
            sampled,
            debug,
            rejected: false,
            random,
            new_root,
            participates,
            forwarded: false,
            own_span,
            link: ids.link.map(|(trace_id, span_id, sampled)| Link { trace_id, span_id, sampled }),
            spans: spans[usize::from(request.spans) % spans.len()],
        };
        let texts = request.texts.map(Text::spell);
        let [method, path, scheme, authority, client, upstream, agent, tracestate, query] = &texts;
        let method: &[u8] = if request.spans & 4 == 0 { b"GET" } else { method };
        let path = [path.as_slice(), b"?", query].concat();
        let error = request.error.map(Text::spell);
        let tried: Vec<_> = request
            .attempts
            .iter()
            .take(40)
            .map(|tried| (tried.endpoint.spell(), tried.error.map(Text::spell), tried))
            .collect();
        let attempts: Vec<_> = tried
            .iter()
            .map(|(endpoint, error, tried)| Attempt {
                endpoint,
                status: tried.status,
                error: error.as_deref(),
                times: tried.times.map(|(start, end)| (Now(start), Now(end))),
            })
            .collect();
        let outcomes = [
            Outcome::None,
            Outcome::Chosen,
            Outcome::Panic,
            Outcome::Fallback,
            Outcome::LocalReply,
            Outcome::Shadow,
        ];
        let words = request.decision.as_ref().map(|d| (d.service.spell(), d.endpoint.spell(), d));
        let decision = match &words {
            None => Decision::default(),
            Some((service, endpoint, decided)) => Decision {
                service,
                strategy: "weighted_round_robin",
                candidates: decided.candidates,
                endpoint,
                breaker: "half-open",
                version: decided.version,
                age: decided.age.map(Duration::from_millis),
                outcome: outcomes[usize::from(decided.outcome) % outcomes.len()],
                reason: "no_endpoints",
            },
        };
        let span = Span {
            context: &context,
            start: Now(request.times.0),
            end: Now(request.times.1),
            method,
            path: &path,
            scheme,
            authority,
            client,
            upstream,
            status: request.status,
            grpc_status: request.grpc_status,
            error: error.as_deref(),
            user_agent: agent,
            tracestate,
            resend_count: request.resend_count,
            decision,
            attempts: &attempts,
        };
        let dropped = self.exporter.counts().dropped;
        let all = self.exporter.push(&span, &mut self.rng, self.now);
        assert_eq!(all, self.exporter.counts().dropped == dropped);
        if context.is_recorded() {
            let each = context.spans == Spans::PerAttempt;
            let below = if each { attempts.len().min(MAX_ATTEMPTS) } else { 0 };
            self.pushed += 1 + below as u64;
        }
    }
}
