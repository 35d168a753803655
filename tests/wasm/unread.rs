//! What nobody asks for costs a VM its name; the first request finds what is newest.

use std::time::Duration;

use pintle_contract::{Down, Endpoint, Removed};
use pintle_harness::{Outcome, Thread};

use crate::support::{ALL, Run, endpoint, endpoints, get, list};

/// Whom the list of a request names, which then ends well.
fn ask(run: &mut Run, worker: usize, service: &str) -> Vec<String> {
    let request = run.envoy.worker(worker).request(get(service));
    let mut list = list(&request);
    run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    list.sort_unstable();
    list.dedup();
    list
}

#[test]
fn the_first_request_has_a_list_of_the_newest_table() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(3));
    run.table("ledger", endpoints(3));
    run.complete();
    run.table("orders", vec![endpoint(7)]);
    run.table("gone", endpoints(3));
    run.sequence += 1;
    let version = run.version();
    run.send(&Down::Remove(Removed { service: "gone".into(), version }));
    for worker in [0, 1] {
        assert_eq!(ask(&mut run, worker, "orders"), ["10.0.0.8:80"]);
        assert_eq!(ask(&mut run, worker, "gone"), Vec::<String>::new());
    }
    // The next request to come is its first, long after.
    run.live(Duration::from_secs(3));
    run.table("orders", endpoints(2));
    assert_eq!(ask(&mut run, 0, "ledger").len(), 3);
    assert_eq!(ask(&mut run, 1, "orders").len(), 2);
    assert!(run.envoy.traps().is_empty());
}

/// Of 10,000 services, 100,000 endpoints, one is in use. An eighth of it here: ten seconds of a
/// debug build's time are more than a test may take; `bench churn` does it at full size.
#[test]
fn memory_is_what_is_in_use() {
    let mut run = Run::start(ALL);
    let before = run.envoy.memory_pages(Thread::Worker(0));
    for number in 0..1_250 {
        let id = |i: u8| Endpoint { id: format!("beside-{number}-{i}"), ..endpoint(i) };
        run.table(&format!("beside-{number:05}"), (0..10).map(id).collect());
    }
    run.table("orders", endpoints(10));
    run.complete();
    run.live(Duration::from_secs(2));
    for worker in [0, 1] {
        assert_eq!(ask(&mut run, worker, "orders").len(), 3);
    }
    let pages = run.envoy.memory_pages(Thread::Worker(0)) - before;
    println!("{pages} pages");
    // 2 MiB for 12,500 endpoints; read, they are 12.
    assert!(pages <= 32, "{pages} pages");
}
