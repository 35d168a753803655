//! The exporter's machine: when a batch goes, what a failure costs, what is counted.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::time::Duration;

use common::{PARTICIPATING, config, policy};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use pintle_contract::Now;
use pintle_trace::{Answer, Context, Counts, Decision, Edits, Exporter, Span, propagate};
use proptest::prelude::*;
use prost::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;

const JSON: &str = r#"{"export": {"cluster": "otel", "service_name": "s", "batch": 4, "queue": 8,
    "interval": "1s", "timeout": "5s", "retries": 2}}"#;

const TAKEN: Answer = Answer::Accepted { rejected: 0 };

fn at(millis: u64) -> Now {
    Now::from_millis(1_000_000 + millis)
}

fn exporter() -> Exporter {
    Exporter::new(&config(JSON), 42).unwrap()
}

fn context() -> Context {
    let mut rng = StdRng::seed_from_u64(1);
    propagate(&config(PARTICIPATING), &policy("{}"), [], &mut rng, &mut Edits::new())
}

/// Pushes `n` spans whose start is their number, and says how many were taken.
fn push(exporter: &mut Exporter, n: u64, now: Now) -> u64 {
    let context = context();
    let mut taken = 0;
    for number in 0..n {
        let span = Span {
            context: &context,
            start: Now(number),
            end: Now(number),
            method: b"GET",
            path: b"/",
            scheme: b"http",
            authority: b"a",
            client: b"",
            upstream: b"",
            status: Some(200),
            grpc_status: None,
            error: None,
            user_agent: b"",
            tracestate: b"",
            resend_count: 0,
            decision: Decision::default(),
            attempts: &[],
        };
        taken += u64::from(exporter.push(&span, &mut StdRng::seed_from_u64(1), now));
    }
    taken
}

/// The start of each span in the batch.
fn numbers(batch: Option<&[u8]>) -> Vec<u64> {
    let request = ExportTraceServiceRequest::decode(batch.unwrap_or_default()).unwrap();
    let spans = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans);
    spans.map(|s| s.start_time_unix_nano).collect()
}

#[test]
fn a_batch_goes_when_it_is_full_or_its_oldest_span_has_waited() {
    let mut exporter = exporter();
    assert_eq!(exporter.poll(at(5000)), None, "nothing waits");
    push(&mut exporter, 3, at(0));
    assert_eq!(exporter.poll(at(999)), None);
    assert_eq!(numbers(exporter.poll(at(1000))), [0, 1, 2]);
    exporter.on_answer(TAKEN, at(1001));
    push(&mut exporter, 6, at(1002));
    assert_eq!(numbers(exporter.poll(at(1002))), [0, 1, 2, 3], "full, and no more than that");
    exporter.on_answer(TAKEN, at(1003));
    assert_eq!(exporter.poll(at(1003)), None);
    assert_eq!(numbers(exporter.poll(at(2003))), [4, 5]);
}

#[test]
fn one_call_at_a_time() {
    let mut exporter = exporter();
    push(&mut exporter, 8, at(0));
    assert!(exporter.poll(at(0)).is_some());
    assert_eq!(exporter.poll(at(4000)), None);
    exporter.on_answer(TAKEN, at(4001));
    assert!(exporter.poll(at(4001)).is_some());
}

#[test]
fn the_newest_spans_are_dropped_and_counted_when_the_queue_is_full() {
    let mut exporter = exporter();
    assert_eq!(push(&mut exporter, 20, at(0)), 8);
    assert_eq!((exporter.waiting(), exporter.counts().dropped), (8, 12));
    assert_eq!(numbers(exporter.poll(at(0))), [0, 1, 2, 3]);
    assert_eq!(push(&mut exporter, 20, at(0)), 4, "what is under way does not count");
}

#[test]
fn a_failure_that_may_pass_is_tried_again_with_growing_pauses_and_then_given_up() {
    let mut exporter = exporter();
    push(&mut exporter, 8, at(0));
    let first = exporter.poll(at(0)).unwrap().to_vec();
    exporter.on_answer(Answer::Retry, at(0));
    // Between a half and the whole of one second, then of two.
    assert_eq!(exporter.poll(at(499)), None);
    assert_eq!(exporter.poll(at(1000)), Some(&*first), "the same batch");
    exporter.on_answer(Answer::Retry, at(1000));
    assert_eq!(exporter.poll(at(1999)), None);
    assert_eq!(exporter.poll(at(3000)), Some(&*first));
    exporter.on_answer(Answer::Retry, at(3000));
    assert_eq!(exporter.counts(), Counts { failed: 4, retries: 2, ..Counts::default() });
    assert_eq!(numbers(exporter.poll(at(3000))), [4, 5, 6, 7], "the next one gets its chance");
}

#[test]
fn a_refusal_is_final() {
    let mut exporter = exporter();
    push(&mut exporter, 4, at(0));
    assert!(exporter.poll(at(0)).is_some());
    exporter.on_answer(Answer::Refused, at(1));
    assert_eq!(exporter.counts(), Counts { failed: 4, ..Counts::default() });
    assert_eq!(exporter.poll(at(60_000)), None);
}

#[test]
fn rejected_spans_are_counted_apart_and_never_more_than_were_sent() {
    let mut exporter = exporter();
    for (rejected, exported_so_far, rejected_so_far) in [(1, 3, 1), (u64::MAX, 3, 5)] {
        push(&mut exporter, 4, at(0));
        assert!(exporter.poll(at(0)).is_some());
        exporter.on_answer(Answer::Accepted { rejected }, at(1));
        let Counts { exported, rejected, .. } = exporter.counts();
        assert_eq!((exported, rejected), (exported_so_far, rejected_so_far));
    }
}

#[test]
fn a_call_that_is_never_answered_counts_as_failed_after_its_timeout() {
    let mut exporter = exporter();
    push(&mut exporter, 4, at(0));
    assert!(exporter.poll(at(0)).is_some());
    assert_eq!(exporter.timeout(), Duration::from_secs(5));
    assert_eq!(exporter.poll(at(6000)), None);
    assert_eq!(exporter.poll(at(6001)), None, "noticed; the pause begins");
    // The answer comes after all: too late to mean anything.
    exporter.on_answer(TAKEN, at(6002));
    assert_eq!(exporter.counts().exported, 0);
    assert!(exporter.poll(at(7001)).is_some());
}

#[test]
fn a_clock_that_steps_back_an_hour_delays_nothing_by_an_hour() {
    let back = |millis: u64| Now::from_millis(500_000 + millis);
    let mut exporter = exporter();
    push(&mut exporter, 3, at(0));
    assert_eq!(exporter.poll(back(0)), None);
    assert!(exporter.poll(back(1000)).is_some(), "waiting to be full");
    exporter.on_answer(Answer::Retry, at(0));
    assert_eq!(exporter.poll(back(0)), None);
    assert!(exporter.poll(back(1000)).is_some(), "waiting to try again");
    // Sent at back(1000); the clock steps back once more.
    assert_eq!(exporter.poll(Now(0)), None);
    assert_eq!(exporter.poll(Now::from_millis(6001)), None, "noticed as lost");
    assert!(exporter.poll(Now::from_millis(8001)).is_some());
}

#[test]
fn the_codes_that_may_pass_are_those_of_otlp() {
    for code in 0..=17 {
        let expect = match code {
            0 => TAKEN,
            1 | 4 | 10 | 11 | 14 | 15 => Answer::Retry,
            _ => Answer::Refused,
        };
        assert_eq!(Answer::from_grpc(code, b""), expect, "{code}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Push(u64),
    Poll,
    Answer(Answer),
    Wait(u64),
}

proptest! {
    // Small numbers, so that the queue is often full and calls often fail.
    #[test]
    fn every_span_is_waiting_under_way_or_counted_once(
        steps in proptest::collection::vec(
            prop_oneof![
                (0_u64..6).prop_map(Step::Push),
                Just(Step::Poll),
                Just(Step::Answer(TAKEN)),
                Just(Step::Answer(Answer::Accepted { rejected: 2 })),
                Just(Step::Answer(Answer::Retry)),
                Just(Step::Answer(Answer::Refused)),
                (0_u64..8000).prop_map(Step::Wait),
            ],
            0..80,
        )
    ) {
        let mut exporter = exporter();
        let (mut pushed, mut now, mut largest) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Push(n) => {
                    push(&mut exporter, n, at(now));
                    pushed += n;
                }
                Step::Poll => {
                    let batch = exporter.poll(at(now)).map(<[u8]>::to_vec);
                    largest = largest.max(numbers(batch.as_deref()).len());
                }
                Step::Answer(answer) => exporter.on_answer(answer, at(now)),
                Step::Wait(millis) => now += millis,
            }
            let counts = exporter.counts();
            let done = counts.exported + counts.dropped + counts.failed + counts.rejected;
            let open = pushed - done - exporter.waiting() as u64;
            prop_assert!(open <= 4, "{open} under way");
            prop_assert!(exporter.waiting() <= 8 && largest <= 4);
        }
        // Whatever happened, a collector that is well again gets all that is left.
        for _ in 0..8 {
            now += 60_000;
            exporter.poll(at(now));
            exporter.on_answer(TAKEN, at(now));
            now += 60_000;
            exporter.poll(at(now));
            exporter.on_answer(TAKEN, at(now));
        }
        let counts = exporter.counts();
        let done = counts.exported + counts.dropped + counts.failed + counts.rejected;
        prop_assert_eq!((done, exporter.waiting()), (pushed, 0));
    }
}
