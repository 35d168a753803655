//! What a scrape says, and what promtool says of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pintle_contract::{
    BreakerState, Endpoint, EndpointReport, Hello, Now, Opinion, Report, RequestCount,
    ServiceReport, Table, Transition, Up, Version,
};
use pintle_state::{Held, Rejected, Service, Snapshot};
use tokio::sync::{broadcast, mpsc, watch};

use super::*;
use crate::link::Sources;

fn version(sequence: u64) -> Version {
    Version { epoch: 1, sequence }
}

fn snapshot(sequence: u64, endpoints: u16) -> Snapshot {
    let mut endpoints: Vec<Endpoint> =
        (1..=endpoints).map(|i| Endpoint::new(format!("{i}"), ([10, 0, 0, 1], i).into())).collect();
    if let Some(first) = endpoints.first_mut() {
        first.opinion = Some(Opinion { expires_at: Now(u64::MAX), reporters: 2 });
    }
    let service = Service::of(Table {
        service: "orders".to_owned(),
        version: version(sequence),
        endpoints,
        policy: String::new(),
    });
    Snapshot {
        version: version(sequence),
        services: [Arc::new(service)].into_iter().collect(),
        confirmed_at: Some(SystemTime::now()),
        held: [Held {
            service: "orders".to_owned(),
            endpoint: "9".to_owned(),
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
            reason: "over \"15 %\"\nof 60 s \\".to_owned(),
            until: None,
        }]
        .into(),
        rejected: [Rejected {
            source: "registry",
            key: "/services/x".to_owned(),
            reason: "json",
            detail: String::new(),
            at: SystemTime::now(),
        }]
        .into(),
        ..Snapshot::default()
    }
}

struct Made {
    metrics: Metrics,
    snapshots: watch::Sender<Arc<Snapshot>>,
    fleet: Arc<Fleet>,
    _reported: mpsc::Receiver<crate::link::Reported>,
    _sources: watch::Sender<Sources>,
}

fn made(max_endpoints: usize) -> Made {
    let (outgoing, reported) = mpsc::channel(8);
    let fleet = Arc::new(Fleet::new(broadcast::channel(8).0, outgoing));
    let (snapshots, rx) = watch::channel(Arc::new(snapshot(7, 4)));
    let mut sources = Sources::default();
    sources.etcd.enabled = true;
    sources.etcd.last_seen = Some(SystemTime::now());
    sources.refused.insert(("registry", "json"), 9);
    let (sources, sources_rx) = watch::channel(sources);
    fleet.published(&rx.borrow(), When::now());
    let hello = Hello { proxy: "p".to_owned(), worker: 1, fence: 1, have: Version::default() };
    fleet.connected(&hello, pintle_contract::Schema::Two, "", When::now());
    let report = Report {
        worker: 1,
        version: version(7),
        services: vec![ServiceReport {
            service: "orders".to_owned(),
            requests: vec![
                RequestCount { method: 0, code: 200, count: 40 },
                RequestCount { method: 9, code: 0, count: 2 },
            ],
            latency: vec![10, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12],
            latency_sum_us: 1_500_000,
            in_flight: 3,
            panics: 1,
            no_endpoint: 2,
            not_followed: 3,
            unplaced: 0,
            endpoints: vec![EndpointReport {
                id: "2".to_owned(),
                requests: 41,
                failures: 5,
                in_flight: 3,
                latency_us: 2_500,
                state: BreakerState::Closed,
            }],
        }],
        counters: vec![("table_rejected".to_owned(), 4)],
    };
    fleet.received("p", Up::Report(report), When::now());
    let transition = Transition {
        service: "orders".to_owned(),
        endpoint: "2".to_owned(),
        from: BreakerState::Closed,
        to: BreakerState::Open,
        reason: "5 consecutive failures".to_owned(),
        observed: true,
        at: Now(1),
        until: Now(2),
        trips: 1,
    };
    fleet.received("p", Up::Transition(transition), When::now());
    fleet.refused("checksum");
    Made {
        metrics: Metrics::new(
            rx,
            sources_rx,
            Arc::clone(&fleet),
            None,
            max_endpoints,
            Names::default(),
        ),
        snapshots,
        fleet,
        _reported: reported,
        _sources: sources,
    }
}

#[test]
fn names_labels_and_values_are_those_of_the_semantics() {
    let made = made(100);
    let (kind, text) = made.metrics.expose("text/plain");
    assert_eq!(kind, TEXT);
    for line in [
        "# TYPE http_requests_total counter",
        r#"http_requests_total{service="orders",method="GET",code="200"} 40"#,
        r#"http_requests_total{service="orders",method="_OTHER",code="0"} 2"#,
        "# TYPE http_request_duration_seconds histogram",
        r#"http_request_duration_seconds_bucket{le="0.001",service="orders"} 10"#,
        r#"http_request_duration_seconds_bucket{le="10.0",service="orders"} 30"#,
        r#"http_request_duration_seconds_bucket{le="+Inf",service="orders"} 42"#,
        r#"http_request_duration_seconds_count{service="orders"} 42"#,
        r#"http_request_duration_seconds_sum{service="orders"} 1.5"#,
        r#"http_requests_in_flight{service="orders"} 3.0"#,
        r#"circuit_breaker_state{service="orders",endpoint="1"} 0.0"#,
        r#"circuit_breaker_state{service="orders",endpoint="2"} 1.0"#,
        r#"circuit_breaker_trips_total{service="orders",endpoint="2"} 1"#,
        r#"pintle_endpoint_latency_seconds{service="orders",endpoint="2"} 0.0025"#,
        r#"pintle_endpoint_in_flight{service="orders",endpoint="2"} 3.0"#,
        r#"pintle_ejected_ratio{service="orders"} 0.25"#,
        r#"pintle_fleet_opinions{service="orders"} 1.0"#,
        r#"pintle_panic_requests_total{service="orders"} 1"#,
        r#"pintle_no_endpoint_requests_total{service="orders"} 2"#,
        r#"pintle_not_followed_total{service="orders"} 3"#,
        "pintle_snapshot_sequence 7.0",
        "pintle_snapshot_stale 0.0",
        "pintle_events_applied_total 0",
        "pintle_removals_held_total 0",
        r#"pintle_rejected_entries{source="registry",reason="json"} 1.0"#,
        "pintle_state_unwritable 0.0",
        r#"pintle_rejected_total{source="registry",reason="json"} 9"#,
        r#"pintle_source_connected{source="etcd"} 0.0"#,
        r#"pintle_frames_refused_total{reason="checksum"} 1"#,
        r#"pintle_module_events_total{event="table_rejected"} 4"#,
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n\n{text}");
    }
}

#[test]
fn openmetrics_is_served_to_those_who_accept_it() {
    let made = made(100);
    let (kind, text) =
        made.metrics.expose("application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert_eq!(kind, OPENMETRICS);
    assert!(text.contains("# TYPE http_requests counter\n"));
    assert!(text.contains("\nhttp_requests_total{"));
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn promtool_finds_nothing_to_say() {
    let (_, text) = made(100).metrics.expose("");
    pintle_tests::tools::check_metrics(&text).unwrap();
}

#[test]
fn series_end_with_their_endpoint_and_service() {
    let made = made(100);
    let publish = |snapshot: Snapshot| {
        let snapshot = Arc::new(snapshot);
        made.fleet.published(&snapshot, When::now());
        made.snapshots.send_replace(snapshot);
    };
    publish(snapshot(8, 1));
    let (_, text) = made.metrics.expose("");
    assert!(!text.contains(r#"endpoint="2""#), "{text}");
    assert!(text.contains(r#"http_requests_total{service="orders""#));
    publish(Snapshot { version: version(9), ..Snapshot::default() });
    let (_, text) = made.metrics.expose("");
    assert!(!text.contains("orders"), "{text}");
}

#[test]
fn endpoints_beyond_the_bound_have_no_series_and_are_counted() {
    let (_, text) = made(3).metrics.expose("");
    assert!(text.contains("pintle_endpoints_without_series 1.0"));
    assert!(!text.contains(r#"endpoint="4""#));
}
