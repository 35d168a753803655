//! What the sums hold whatever becomes of the reports on their way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pintle_contract::{
    Applied, BreakerState, Endpoint, EndpointReport, Hello, Now, Report, RequestCount,
    ServiceReport, Table, Transition, Up, Version,
};
use pintle_state::{Service, Snapshot};
use proptest::prelude::*;
use tokio::sync::{broadcast, mpsc};

use super::ledger::{MAX_PROXIES, MAX_WORKERS};
use super::*;

fn version(sequence: u64) -> Version {
    Version { epoch: 1, sequence }
}

/// Services `a` and `b` with endpoints `1` to `n` each.
fn snapshot(sequence: u64, endpoints: u16) -> Arc<Snapshot> {
    let service = |name: &str| {
        let table = Table {
            service: name.to_owned(),
            version: version(sequence),
            endpoints: (1..=endpoints)
                .map(|i| Endpoint::new(i.to_string(), ([10, 0, 0, 1], i).into()))
                .collect(),
            policy: String::new(),
        };
        Arc::new(Service {
            seen_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
            ..Service::of(table)
        })
    };
    Arc::new(Snapshot {
        version: version(sequence),
        services: ["a", "b"].map(service).into_iter().collect(),
        ..Snapshot::default()
    })
}

#[derive(Clone, Copy)]
struct Time {
    start: Instant,
}

impl Time {
    fn new() -> Self {
        Self { start: Instant::now() }
    }

    fn at(self, seconds: f64) -> When {
        let passed = Duration::from_secs_f64(seconds);
        When {
            mono: self.start + passed,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000) + passed,
        }
    }
}

fn hello(proxy: &str) -> Hello {
    Hello { proxy: proxy.to_owned(), worker: 1, fence: 1, have: Version::default() }
}

fn ledger(time: Time) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.published(&snapshot(1, 3), time.at(0.0));
    for proxy in ["p", "q"] {
        assert!(ledger.connected(&hello(proxy), Schema::Two, "uid 0", time.at(0.0)));
    }
    ledger
}

/// The worker's `n`-th report: everything it counts is a multiple of `n`.
fn report(worker: u64, n: u64) -> Report {
    Report {
        worker,
        version: version(1),
        services: vec![ServiceReport {
            service: "a".to_owned(),
            requests: vec![RequestCount { method: 0, code: 200, count: n * 3 }],
            latency: vec![n; 14],
            latency_sum_us: n * 100,
            in_flight: u32::try_from(n).unwrap(),
            panics: n,
            no_endpoint: 2 * n,
            not_followed: 3 * n,
            unplaced: n,
            endpoints: vec![EndpointReport {
                id: "1".to_owned(),
                requests: 4 * n,
                failures: n,
                in_flight: 1,
                latency_us: 1_000 * n,
                state: BreakerState::Closed,
            }],
        }],
        counters: vec![("table_rejected".to_owned(), n)],
    }
}

fn total(ledger: &Ledger, time: Time) -> u64 {
    let view = ledger.view(time.at(1.0));
    view.services.get("a").map_or(0, |a| a.requests.values().sum())
}

#[test]
fn a_repeated_report_counts_once_and_a_new_worker_counts_from_zero() {
    let time = Time::new();
    let mut ledger = ledger(time);
    for _ in 0..3 {
        ledger.report("p", &report(7, 10), time.at(0.5));
    }
    assert_eq!(total(&ledger, time), 30);
    ledger.report("p", &report(8, 2), time.at(0.5));
    assert_eq!(total(&ledger, time), 36, "what the old VM counted stays");
    ledger.report("q", &report(7, 1), time.at(0.5));
    assert_eq!(total(&ledger, time), 39, "worker ids are the proxy's own");
    let view = ledger.view(time.at(0.5));
    assert_eq!(view.counters["table_rejected"], 13);
    let a = &view.services["a"];
    assert_eq!((a.panics, a.no_endpoint, a.not_followed), (13, 26, 39));
    assert_eq!(a.latency_sum_us, 1_300);
    assert_eq!(a.endpoints["1"].requests, 52);
    assert_eq!(a.endpoints["1"].failures, 13);
}

#[test]
fn an_overtaken_report_changes_neither_sums_nor_gauges() {
    let time = Time::new();
    let mut ledger = ledger(time);
    ledger.report("p", &report(7, 10), time.at(0.5));
    ledger.report("p", &report(7, 4), time.at(0.6));
    let view = ledger.view(time.at(0.6));
    assert_eq!(view.services["a"].in_flight, 10);
    assert_eq!(view.services["a"].requests[&(0, 200)], 30);
    assert_eq!(view.services["a"].endpoints["1"].latency_us, 10_000);
}

#[test]
fn gauges_end_with_a_silent_worker_and_counts_do_not() {
    let time = Time::new();
    let mut ledger = ledger(time);
    ledger.report("p", &report(7, 10), time.at(0.0));
    ledger.report("p", &report(8, 5), time.at(7.0));
    assert_eq!(ledger.view(time.at(9.0)).services["a"].in_flight, 15);
    ledger.tick(time.at(14.0));
    let later = ledger.view(time.at(14.0));
    assert_eq!(later.services["a"].in_flight, 5);
    assert_eq!(later.services["a"].requests[&(0, 200)], 45);
    ledger.report("p", &report(7, 11), time.at(41.0));
    let back = ledger.view(time.at(41.0));
    assert_eq!(back.services["a"].requests[&(0, 200)], 48);
}

#[test]
fn what_the_registry_does_not_know_is_not_counted() {
    let time = Time::new();
    let mut ledger = ledger(time);
    let mut odd = report(7, 1);
    odd.services[0].service = "nobody".to_owned();
    ledger.report("p", &odd, time.at(0.0));
    let mut odd = report(7, 1);
    odd.services[0].endpoints[0].id = "99".to_owned();
    odd.counters[0].0 = "Not A Name".to_owned();
    ledger.report("p", &odd, time.at(0.0));
    ledger.report("stranger", &report(7, 1), time.at(0.0));
    let view = ledger.view(time.at(0.0));
    assert_eq!(view.services.keys().collect::<Vec<_>>(), ["a"]);
    assert!(view.services["a"].endpoints.is_empty());
    assert_eq!(view.counters.keys().collect::<Vec<_>>(), ["table_rejected"]);
    let expect = BTreeMap::from([
        ("counter_name", 1),
        ("unknown_endpoint", 1),
        ("unknown_proxy", 1),
        ("unknown_service", 1),
    ]);
    assert_eq!(view.refused, expect);
}

#[test]
fn series_end_with_their_endpoint_and_a_flapping_one_goes_on() {
    let time = Time::new();
    let mut ledger = ledger(time);
    ledger.report("p", &report(7, 10), time.at(0.0));
    ledger.published(&snapshot(2, 0), time.at(1.0));
    assert!(ledger.view(time.at(1.0)).services["a"].endpoints.is_empty());
    ledger.published(&snapshot(3, 3), time.at(2.0));
    let back = ledger.view(time.at(2.0));
    assert_eq!(back.services["a"].endpoints["1"].requests, 40);
    ledger.published(&snapshot(4, 0), time.at(3.0));
    ledger.tick(time.at(400.0));
    ledger.published(&snapshot(5, 3), time.at(401.0));
    assert!(ledger.view(time.at(401.0)).services["a"].endpoints.is_empty());
}

#[test]
fn proxies_are_bounded_and_the_longest_gone_makes_room() {
    let time = Time::new();
    let mut ledger = Ledger::default();
    for i in 0..MAX_PROXIES {
        assert!(ledger.connected(&hello(&format!("p{i}")), Schema::Two, "", time.at(0.0)));
    }
    assert!(!ledger.connected(&hello("late"), Schema::Two, "", time.at(1.0)));
    ledger.disconnected("p7", time.at(2.0));
    assert!(ledger.connected(&hello("late"), Schema::Two, "", time.at(3.0)));
    let names: Vec<_> = ledger.view(time.at(3.0)).proxies;
    assert_eq!(names.len(), MAX_PROXIES);
    assert!(!names.iter().any(|proxy| proxy.proxy == "p7"));
}

#[test]
fn workers_are_bounded() {
    let time = Time::new();
    let mut ledger = ledger(time);
    for worker in 0..2_000 {
        ledger.report("p", &report(worker, 1), time.at(0.0));
    }
    let proxy = ledger.view(time.at(0.0)).proxies.remove(0);
    assert_eq!(proxy.workers.len(), MAX_WORKERS);
}

fn transition(at: u64, from: BreakerState, to: BreakerState) -> Transition {
    Transition {
        service: "a".to_owned(),
        endpoint: "1".to_owned(),
        from,
        to,
        reason: "5 consecutive failures".to_owned(),
        observed: true,
        at: Now(at),
        until: Now(at + 30),
        trips: 1,
    }
}

#[test]
fn a_transition_counts_once_whatever_the_order_and_the_newest_is_the_state() {
    use BreakerState::{Closed, HalfOpen, Open};
    let time = Time::new();
    let mut ledger = ledger(time);
    let half = transition(20, Open, HalfOpen);
    let open = transition(10, Closed, Open);
    assert!(ledger.transition("p", &half, time.at(0.0)));
    assert!(ledger.transition("p", &open, time.at(0.0)), "late, but new");
    assert!(!ledger.transition("p", &open, time.at(0.0)));
    assert!(!ledger.transition("p", &half, time.at(0.0)));
    let endpoint = ledger.view(time.at(0.0)).services["a"].endpoints["1"].clone();
    assert_eq!((endpoint.state, endpoint.trips), (HalfOpen, 1));
    ledger.transition("q", &open, time.at(0.0));
    let endpoint = ledger.view(time.at(0.0)).services["a"].endpoints["1"].clone();
    assert_eq!((endpoint.state, endpoint.trips), (Open, 2), "the most severe");
    assert_eq!(endpoint.breakers.len(), 2);
}

#[test]
fn what_another_word_opened_is_over_when_the_word_is_though_no_traffic_tells() {
    use BreakerState::{Closed, Open};
    let time = Time::new();
    let mut ledger = ledger(time);
    let second = |n: u64| Now((1_000 + n) * 1_000_000_000);
    let forced = Transition {
        reason: "forced by an operator".to_owned(),
        observed: false,
        until: second(10),
        ..transition(second(0).0, Closed, Open)
    };
    assert!(ledger.transition("p", &forced, time.at(0.0)));
    let state =
        |ledger: &Ledger, seconds| ledger.view(time.at(seconds)).services["a"].endpoints["1"].state;
    assert_eq!(state(&ledger, 9.0), Open);
    assert_eq!(state(&ledger, 10.0), Closed);
    let observed = Transition { observed: true, ..forced };
    assert!(ledger.transition("q", &observed, time.at(0.0)));
    assert_eq!(state(&ledger, 60.0), Open, "a probe is owed");
}

#[test]
fn a_report_corrects_a_lost_transition_but_not_a_fresh_one() {
    use BreakerState::{Closed, Open};
    let time = Time::new();
    let mut ledger = ledger(time);
    let state = |ledger: &Ledger, at| ledger.view(time.at(at)).services["a"].endpoints["1"].state;
    ledger.transition("p", &transition(10, Closed, Open), time.at(0.0));
    ledger.report("p", &report(7, 1), time.at(1.0));
    assert_eq!(state(&ledger, 1.0), Open, "the report may be older");
    ledger.report("p", &report(7, 2), time.at(3.0));
    assert_eq!(state(&ledger, 3.0), Closed);
    let mut open = report(7, 3);
    open.services[0].endpoints[0].state = Open;
    ledger.report("q", &open, time.at(3.0));
    assert_eq!(state(&ledger, 3.0), Open, "known from a report alone");
    ledger.disconnected("q", time.at(4.0));
    ledger.tick(time.at(60.0));
    assert_eq!(state(&ledger, 60.0), Closed, "its proxy is gone");
}

fn applied(worker: u64, workers: u32, sequence: u64) -> Applied {
    Applied { worker, workers, version: version(sequence) }
}

#[test]
fn a_version_has_arrived_when_every_worker_holds_it() {
    let time = Time::new();
    let mut ledger = ledger(time);
    ledger.disconnected("q", time.at(0.0));
    ledger.published(&snapshot(2, 3), time.at(0.0));
    ledger.applied("p", applied(1, 2, 2), time.at(0.010));
    let count = |ledger: &Ledger| ledger.view(time.at(1.0)).propagation.iter().sum::<u64>();
    assert_eq!(count(&ledger), 0);
    assert!(!ledger.view(time.at(0.0)).proxies[0].current);
    ledger.applied("p", applied(2, 2, 2), time.at(0.040));
    let view = ledger.view(time.at(1.0));
    assert_eq!(view.propagation[5], 2, "two services, 25 to 50 ms: {view:?}");
    assert!((view.propagation_sum - 0.080).abs() < 1e-9);
    assert!(view.proxies[0].current);
    ledger.applied("p", applied(2, 2, 2), time.at(9.0));
    assert_eq!(count(&ledger), 2, "timed once");
}

#[test]
fn what_was_published_before_a_proxy_came_is_not_timed() {
    let time = Time::new();
    let mut ledger = Ledger::default();
    ledger.published(&snapshot(9, 3), time.at(0.0));
    ledger.connected(&hello("p"), Schema::Two, "", time.at(60.0));
    ledger.applied("p", applied(1, 1, 9), time.at(60.0));
    assert_eq!(ledger.view(time.at(60.0)).propagation.iter().sum::<u64>(), 0);
}

#[tokio::test]
async fn own_observations_go_to_the_fleet_and_orders_do_not() {
    let (activities, mut seen) = broadcast::channel(16);
    let (outgoing, mut sent) = mpsc::channel(1);
    let fleet = Fleet::new(activities, outgoing);
    let now = When::now();
    fleet.published(&snapshot(1, 3), now);
    fleet.connected(&hello("p"), Schema::Two, "", now);
    let open = |at| transition(at, BreakerState::Closed, BreakerState::Open);
    let ordered = Transition { observed: false, ..open(5) };
    fleet.received("p", Up::Transition(ordered), now);
    fleet.received("p", Up::Transition(open(10)), now);
    fleet.received("p", Up::Transition(open(10)), now);
    fleet.received("p", Up::Transition(open(11)), now);
    assert_eq!(sent.recv().await.unwrap().transition.at, Now(10));
    assert!(sent.try_recv().is_err(), "the second found the queue full");
    assert_eq!(fleet.view(now).refused["outgoing_full"], 1);
    let mut kinds = Vec::new();
    while let Ok(activity) = seen.try_recv() {
        kinds.push(activity.kind);
    }
    assert_eq!(kinds, ["proxy", "breaker", "breaker", "breaker"]);
}

proptest! {
    /// Three workers count up; their reports are dropped, repeated, shuffled within reach and sent
    /// by two streams. In the end each worker's last report has arrived, and the sum is exact.
    #[test]
    fn the_sum_is_that_of_the_last_reports(
        sends in prop::collection::vec((0u64..3, 1u64..50), 0..200),
        last in prop::collection::vec(50u64..60, 3),
    ) {
        let time = Time::new();
        let mut ledger = ledger(time);
        for (worker, n) in sends {
            ledger.report("p", &report(worker, n), time.at(0.1));
        }
        for (worker, n) in last.iter().enumerate() {
            ledger.report("p", &report(worker as u64, *n), time.at(0.2));
        }
        let sum: u64 = last.iter().sum();
        let view = ledger.view(time.at(0.2));
        let a = &view.services["a"];
        prop_assert_eq!(a.requests[&(0, 200)], sum * 3);
        prop_assert!(a.latency.iter().all(|count| *count == sum));
        prop_assert_eq!(a.endpoints["1"].requests, sum * 4);
        prop_assert_eq!(a.in_flight, sum);
        prop_assert_eq!(view.counters["table_rejected"], sum);
    }

    /// Sums never go down, whatever comes.
    #[test]
    fn no_report_lowers_a_sum(
        sends in prop::collection::vec((0u64..4, 0u64..50), 0..100),
    ) {
        let time = Time::new();
        let mut ledger = ledger(time);
        let mut before = 0;
        for (worker, n) in sends {
            ledger.report("p", &report(worker, n), time.at(0.1));
            let now = total(&ledger, time);
            prop_assert!(now >= before);
            before = now;
        }
    }
}

#[test]
fn made_up_statuses_are_counted_by_class_and_add_no_series() {
    let time = Time::new();
    let mut ledger = Ledger::default();
    ledger.published(&snapshot(1, 1), time.at(0.0));
    let hello = Hello { proxy: "p".to_owned(), worker: 1, fence: 1, have: Version::default() };
    ledger.connected(&hello, Schema::Two, "", time.at(0.0));
    let report = |times: u64| Report {
        worker: 1,
        version: version(1),
        services: vec![ServiceReport {
            service: "a".to_owned(),
            requests: (0..10)
                .flat_map(|method| (0..1_100).map(move |code| (method, code)))
                .map(|(method, code)| RequestCount { method, code, count: times })
                .collect(),
            ..ServiceReport::default()
        }],
        counters: Vec::new(),
    };
    for times in [1, 1, 3] {
        ledger.report("p", &report(times), time.at(1.0));
    }
    let requests = &ledger.view(time.at(1.0)).services["a"].requests;
    assert!(requests.len() <= 140, "{} series", requests.len());
    assert_eq!(requests.values().sum::<u64>(), 3 * 10 * 1_100, "and none is lost");
}

#[test]
fn a_change_of_leader_does_not_read_as_a_proxy_that_comes_and_goes() {
    let (activities, mut heard) = broadcast::channel(16);
    let (outgoing, _reported) = mpsc::channel(1);
    let fleet = Fleet::new(activities, outgoing);
    let now = When::now();
    fleet.connected(&hello("p"), Schema::Two, "", now);
    fleet.connected(&hello("p"), Schema::Two, "", now);
    fleet.disconnected("p", now);
    fleet.disconnected("p", now);
    let said: Vec<_> = std::iter::from_fn(|| Some(heard.try_recv().ok()?.text)).collect();
    assert_eq!(said, ["p connected", "p is led by another worker", "p disconnected"]);
}

/// Of a thousand services that a proxy makes statuses up for, none takes what others have.
#[test]
fn made_up_statuses_of_many_services_leave_each_its_own() {
    let mut shared = 0;
    let mut services: Vec<sums::Service> = (0..1_000).map(|_| sums::Service::default()).collect();
    for service in &mut services {
        for code in 100..600 {
            let pair = service.pair(1, code, &mut shared);
            *service.requests.entry(pair).or_default() += 1;
        }
    }
    let pairs: usize = services.iter().map(|service| service.requests.len()).sum();
    assert!(pairs <= 1_000 * 26 + 8_192, "{pairs} series");
    assert!(services.iter().all(|it| it.requests.values().sum::<u64>() == 500), "none is lost");
    let mut last = sums::Service::default();
    assert_eq!(last.pair(0, 201, &mut shared), (0, 201), "who comes later has its own");
    // Room that comes free makes nothing count twice.
    let crowded = services.last_mut().unwrap();
    assert_ne!(crowded.pair(1, 599, &mut 0), (1, 599));
}
