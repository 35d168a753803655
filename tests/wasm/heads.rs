//! The head is the answer: what it says counts when it passes, and the life of a stream is nobody's
//! latency.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_contract::{BreakerState, EndpointReport, Up};
use pintle_harness::{Outcome, Request, RequestBuilder};

use crate::support::{ALL, Run, endpoints, get, list};

const ONE: &str = "10.0.0.1:80";
/// One endpoint whose breaker opens for a second and closes with one success.
const PROBED: &str = r#"{"select": {"panic_percent": 0},
    "breaker": {"open": "1s", "open_max": "1s", "jitter_percent": 0, "max_ejection_percent": 100,
        "half_open": {"successes": 1, "timeout": "2s"}}}"#;
/// Of Envoy's response flags: the client closed the connection, the endpoint broke the protocol.
const CLIENT_GONE: u64 = 1 << 14;
const UPSTREAM_PROTOCOL: u64 = 1 << 23;

fn grpc() -> RequestBuilder {
    RequestBuilder::grpc("shop", "/pkg.Svc/Watch").cluster("orders")
}

fn began(run: &mut Run, request: RequestBuilder) -> Request {
    let request = run.envoy.worker(0).request(request);
    assert!(!list(&request).is_empty(), "{:?}", request.local_reply());
    request
}

/// What was last reported of each endpoint, by id, by the worker that sent to it.
fn reported(run: &mut Run) -> BTreeMap<String, EndpointReport> {
    run.live(Duration::from_secs(2));
    let reports = run.received().into_iter();
    let reports = reports.filter_map(|up| if let Up::Report(r) = up { Some(r) } else { None });
    let endpoints = reports.flat_map(|r| r.services).flat_map(|service| service.endpoints);
    let busy = endpoints.filter(|endpoint| endpoint.requests > 0);
    busy.map(|endpoint| (endpoint.id.clone(), endpoint)).collect()
}

/// The last state that a breaker went to.
fn state(run: &Run) -> Option<BreakerState> {
    let told = run.received().into_iter();
    told.filter_map(|up| if let Up::Transition(t) = up { Some(t.to) } else { None }).next_back()
}

/// Opens the only endpoint's breaker and waits until a probe is due.
fn opened() -> Run {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(1), PROBED);
    for _ in 0..5 {
        let request = began(&mut run, get("orders"));
        run.envoy.finish(request, Outcome::status(503, ONE));
    }
    assert_eq!(state(&run), Some(BreakerState::Open));
    run.live(Duration::from_millis(1_200));
    run
}

#[test]
fn a_stream_settles_its_probe_with_its_head() {
    let mut run = opened();
    let stream = began(&mut run, get("orders"));
    run.envoy.head(&stream, Outcome::ok(ONE));
    run.envoy.settle();
    assert_eq!(state(&run), Some(BreakerState::Closed));
    run.live(Duration::from_secs(5));
    run.envoy.finish(stream, Outcome::ok(ONE).flags(CLIENT_GONE));
    run.tick();
    assert_eq!(state(&run), None, "its end changes nothing");
}

#[test]
fn a_grpc_probe_is_settled_by_its_status_or_by_being_a_stream() {
    for (status, then) in [(0, BreakerState::Closed), (14, BreakerState::Open)] {
        let mut run = opened();
        let call = began(&mut run, grpc());
        run.envoy.head(&call, Outcome::grpc(status, ONE));
        run.envoy.settle();
        assert_eq!(state(&run), Some(BreakerState::HalfOpen), "{status} comes behind the head");
        run.envoy.finish(call, Outcome::grpc(status, ONE));
        run.envoy.settle();
        assert_eq!(state(&run), Some(then), "{status}");
    }
    let mut run = opened();
    let stream = began(&mut run, grpc());
    run.envoy.head(&stream, Outcome::grpc(0, ONE));
    run.live(Duration::from_millis(500));
    assert_eq!(state(&run), Some(BreakerState::Closed));
    run.envoy.finish(stream, Outcome::grpc(0, ONE));
    let counted = reported(&mut run).remove("a-0").expect("a report");
    assert_eq!((counted.requests, counted.failures, counted.in_flight), (6, 5, 0), "once each");
}

#[test]
fn a_failing_head_opens_the_breaker_while_its_body_still_streams() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(1), PROBED);
    let streams: Vec<Request> = (0..5).map(|_| began(&mut run, get("orders"))).collect();
    for stream in &streams {
        run.envoy.head(stream, Outcome::status(500, ONE));
    }
    run.envoy.settle();
    assert_eq!(state(&run), Some(BreakerState::Open));
    for stream in streams {
        run.envoy.finish(stream, Outcome::status(500, ONE).flags(CLIENT_GONE));
    }
    let counted = reported(&mut run).remove("a-0").expect("a report");
    assert_eq!((counted.requests, counted.failures, counted.in_flight), (5, 5, 0), "once each");
}

#[test]
fn an_answer_that_the_endpoint_cuts_short_is_one_failure_after_whatever_head() {
    // As a request, as a probe that its head had settled, and after an attempt that failed.
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(1), PROBED);
    for _ in 0..5 {
        let request = began(&mut run, get("orders"));
        run.envoy.head(&request, Outcome::ok(ONE));
        run.envoy.finish(request, Outcome::ok(ONE).flags(UPSTREAM_PROTOCOL));
    }
    assert_eq!(state(&run), Some(BreakerState::Open));
    run.live(Duration::from_millis(1_200));
    let probe = began(&mut run, get("orders"));
    run.envoy.head(&probe, Outcome::ok(ONE));
    run.envoy.finish(probe, Outcome::ok(ONE).flags(UPSTREAM_PROTOCOL));
    let counted = reported(&mut run).remove("a-0").expect("a report");
    assert_eq!((counted.requests, counted.failures, counted.in_flight), (6, 6, 0));
}

#[test]
fn latency_is_the_time_to_the_head_and_streams_keep_nobody_away() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(3));
    let mut shares = BTreeMap::new();
    let mut streams = Vec::new();
    for turn in 0..600 {
        let request = began(&mut run, get("orders"));
        let first = list(&request)[0].clone();
        run.envoy.advance(Duration::from_millis(3));
        run.envoy.head(&request, Outcome::ok(&first));
        *shares.entry(first.clone()).or_insert(0) += 1;
        if first == ONE && streams.len() < 20 {
            streams.push(request);
        } else {
            run.envoy.finish(request, Outcome::ok(first));
        }
        if turn % 100 == 0 {
            run.live(Duration::from_millis(100));
        }
    }
    assert!(shares.values().all(|share| (150..=250).contains(share)), "{shares:?}");
    run.live(Duration::from_secs(20));
    for stream in streams {
        run.envoy.finish(stream, Outcome::ok(ONE).flags(CLIENT_GONE));
    }
    // Asked once more, so that something is reported of each.
    for _ in 0..30 {
        let request = began(&mut run, get("orders"));
        let first = list(&request)[0].clone();
        run.envoy.advance(Duration::from_micros(2_750));
        run.envoy.finish(request, Outcome::ok(first));
    }
    for (id, counted) in reported(&mut run) {
        // What was not asked for a while decays; whole milliseconds would be 2,000 at most.
        assert!((2_200..=2_800).contains(&counted.latency_us), "{id}: {} us", counted.latency_us);
        assert_eq!(counted.in_flight, 0, "{id}");
    }
}

#[test]
fn whoever_was_asked_is_counted_though_nobody_waited_for_the_answer() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(1));
    let overflow = || Outcome { upstream_address: Some(ONE.into()), ..Outcome::overflow() };
    for outcome in [
        Outcome::client_gone(ONE),
        Outcome::client_reset(ONE),
        // Envoy 1.40 names the host that an attempt found no room at, or none: nobody was asked.
        Outcome::overflow(),
        overflow(),
        // The first attempt failed, or there would be no second.
        Outcome { attempt_count: 2, ..overflow() },
    ] {
        let request = began(&mut run, get("orders"));
        run.envoy.finish(request, outcome);
    }
    let counted = reported(&mut run).remove("a-0").expect("a report");
    assert_eq!((counted.requests, counted.failures), (3, 1));
}

#[test]
fn a_reply_of_envoys_own_is_nobodys_head() {
    let mut run = opened();
    let request = began(&mut run, get("orders"));
    let local =
        Outcome::status(503, ONE).details("upstream_reset_before_response_started{overflow}");
    run.envoy.head(&request, local.clone());
    assert_eq!(state(&run), Some(BreakerState::HalfOpen), "undecided");
    run.envoy.finish(request, Outcome { upstream_address: None, ..local.flags(1 << 7) });
    run.tick();
    assert_eq!(state(&run), None, "the probe's place is free, and it says nothing");
    let probe = began(&mut run, get("orders"));
    run.envoy.finish(probe, Outcome::ok(ONE));
    run.envoy.settle();
    assert_eq!(state(&run), Some(BreakerState::Closed));
}
