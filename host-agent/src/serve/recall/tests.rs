use pintle_contract::{BreakerState, Endpoint, EndpointReport, ServiceReport, Table, Version};
use pintle_state::Service;

use super::*;

fn snapshot_of(service: &str, endpoints: u8) -> Snapshot {
    let endpoint = |number: u8| Endpoint::new(number.to_string(), ([10, 0, 0, number], 80).into());
    let table = Table {
        service: service.to_owned(),
        version: Version { epoch: 1, sequence: 1 },
        endpoints: (1..=endpoints).map(endpoint).collect(),
        policy: String::new(),
    };
    let service = Service::of(table);
    Snapshot { services: std::iter::once(Arc::new(service)).collect(), ..Snapshot::default() }
}

fn report(service: &str, used: usize) -> Report {
    let endpoint = |number| EndpointReport {
        id: format!("{service}-{number}"),
        requests: 1,
        failures: 0,
        in_flight: 0,
        latency_us: 0,
        state: BreakerState::Closed,
    };
    let endpoints = (0..used).map(endpoint).collect();
    let service = ServiceReport { service: service.into(), endpoints, ..Default::default() };
    Report { worker: 1, services: vec![service], ..Default::default() }
}

#[test]
fn a_proxy_waits_for_half_of_what_it_uses_and_no_longer_than_said() {
    let began = Instant::now();
    let recall = Recall::needed();
    let at = |seconds: f64| began + Duration::from_secs_f64(seconds);
    recall.listed(began);
    let (one, five) = (snapshot_of("orders", 1), snapshot_of("orders", 5));
    assert!(recall.holds(began, &one, at(0.0)), "nobody has said yet what is used");
    recall.heard(&report("orders", 10), at(1.0));
    assert!(recall.holds(began, &one, at(14.9)));
    assert!(!recall.holds(began, &five, at(3.0)), "half");
    assert!(recall.holds(began, &five, at(1.9)), "others may be heard of");
    recall.heard(&report("gone", 1), at(3.0));
    assert!(recall.holds(began, &five, at(3.0)), "a service that is not there at all");
    assert!(!recall.holds(began, &one, at(15.0)), "what the registry says holds in the end");
    assert!(!recall.holds(at(20.0), &one, at(20.0)), "for whoever comes later, too");
    recall.listed(at(30.0));
    assert!(!recall.holds(at(30.0), &one, at(30.0)), "the first listing counts");
}

#[test]
fn an_agent_that_remembers_holds_nobody() {
    let recall = Recall::needless();
    let now = Instant::now();
    recall.listed(now);
    recall.heard(&report("orders", 10), now);
    assert!(!recall.holds(now, &snapshot_of("orders", 1), now));
}
