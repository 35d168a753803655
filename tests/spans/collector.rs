//! A collector in any state is nothing to a request: no failure, no wait; what is lost is counted.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use pintle_tests::{Load, Manner, Report, assert_eventually};
use prost::Message as _;
use serde_json::{Value, json};

use crate::support::{Rig, SOON, decode, spans_of};

/// A short queue, so that a few seconds of trouble fill it.
fn trace() -> Value {
    json!({"export": {"cluster": "otlp", "service_name": "edge", "interval": "100ms",
        "timeout": "500ms", "queue": 64, "batch": 32, "retries": 1}})
}

/// Over so many connections that both workers have their share.
fn load(rig: &Rig) -> Load {
    Load::to(rig.envoy.addr()).rate(400.0).connections(32)
}

/// Every one of these requests was answered.
fn served(report: Report) -> Report {
    assert_eq!(report.failed(), 0, "{}", report.summary());
    report
}

fn taken(rig: &Rig) -> usize {
    let calls = rig.collector.drain();
    let taken = calls.iter().filter(|call| call.taken);
    taken.flat_map(|call| decode(&call.path, &call.message)).flat_map(spans_of).count()
}

/// How many spans were lost since the test began, once there are none under way.
async fn settled(rig: &Rig, sent: usize) -> (u64, u64) {
    let mut books;
    assert_eventually!(
        Duration::from_secs(30),
        {
            books = (rig.counter("span_exported").await, rig.counter("span_dropped").await);
            books.0 + books.1 == sent as u64
        },
        "{sent} spans, (exported, dropped) {books:?}"
    );
    books
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_silent_refusing_killed_or_down_it_costs_no_request_and_no_latency() {
    let mut rig = Rig::start(trace()).await;
    let good = served(load(&rig).rate(100.0).run_for_secs(1.5).await);
    let mut sent = good.total();
    let (mut exported, mut dropped) = settled(&rig, sent).await;
    assert_eq!(dropped, 0, "nothing is lost at 100 requests/s with a queue of 64 a worker");
    assert_eq!(taken(&rig), sent);

    let manners = [
        ("slow", Some(Manner::Slow(Duration::from_millis(400)))),
        ("silent", Some(Manner::Hang)),
        ("unavailable", Some(Manner::Refuse(14))),
        ("refusing for good", Some(Manner::Refuse(3))),
        ("killed in the middle of a call", Some(Manner::Hang)),
        ("down", None),
    ];
    for (what, manner) in manners {
        match manner {
            Some(manner) => rig.collector.set(manner),
            None => rig.collector.close().await,
        }
        let running = load(&rig).start();
        let beside = Load::to(rig.upstream.addr()).rate(400.0).connections(32).start();
        if what.starts_with("killed") {
            rig.collector.drain();
            assert_eventually!(SOON, !rig.collector.calls().is_empty());
            rig.collector.close().await;
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let report = served(running.stop().await);
        // What the machine did to any request at that time; one that waited for the collector would
        // be late by its 400 ms or more.
        let beside = beside.stop().await;
        let late = report.quantile(0.99).saturating_sub(beside.quantile(0.99));
        assert!(
            late < Duration::from_millis(100),
            "{what}: {} beside {}",
            report.summary(),
            beside.summary()
        );
        sent += report.total();

        rig.collector.set(Manner::Take);
        rig.collector.open().await.unwrap();
        let books = settled(&rig, sent).await;
        assert!(books.1 > dropped, "{what}: what the queue could not hold is counted");
        (exported, dropped) = books;
    }
    // Back to normal: nothing is lost any more.
    sent += served(load(&rig).rate(100.0).run_for_secs(0.5).await).total();
    let books = settled(&rig, sent).await;
    assert!(books.0 > exported && books.1 == dropped, "{books:?} after {exported} and {dropped}");
    rig.end().await;
}

#[tokio::test]
async fn what_a_collector_takes_and_rejects_is_counted_as_lost() {
    let rig = Rig::start(trace()).await;
    let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "no".into() };
    let response = ExportTraceServiceResponse { partial_success: Some(partial) };
    rig.collector.set(Manner::Answer(response.encode_to_vec()));
    rig.send(&[]).await;
    assert_eventually!(SOON, rig.counter("span_dropped").await == 1);
    assert_eq!(rig.counter("span_exported").await, 0);
    rig.end().await;
}

#[tokio::test]
async fn a_cluster_that_does_not_exist_costs_spans_and_nothing_else() {
    let mut trace = trace();
    trace["export"]["cluster"] = json!("nowhere");
    let rig = Rig::start(trace).await;
    for _ in 0..100 {
        rig.send(&[]).await;
    }
    assert_eventually!(SOON, rig.counter("span_dropped").await > 0);
    rig.end().await;
}

#[tokio::test]
async fn what_waited_while_the_collector_was_away_comes_when_it_is_back() {
    let mut rig = Rig::start(json!({"export": {"cluster": "otlp", "service_name": "edge",
        "interval": "100ms", "timeout": "1s"}}))
    .await;
    rig.collector.close().await;
    for _ in 0..20 {
        rig.send(&[]).await;
    }
    // The first batch has failed by now and waits for its second try.
    tokio::time::sleep(Duration::from_millis(400)).await;
    rig.collector.open().await.unwrap();
    rig.spans(20).await;
    assert_eq!(rig.counter("span_dropped").await, 0);
    rig.end().await;
}
