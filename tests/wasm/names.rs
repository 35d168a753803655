//! Names of services that come and go: a VM keeps nothing of them.
//!
//! Envoy's shared data does: no host call of proxy-wasm 0.2.1 removes a key, so that every table
//! which was ever told leaves its key there. Where the agent tells only what is wanted, that is
//! bounded by what is.

use pintle_contract::{Down, Removed};
use pintle_harness::{Outcome, Thread};

use crate::support::{ALL, Run, endpoints, get};

/// How many come and go; a hundred thousand are for the long form.
fn names() -> u64 {
    let asked = std::env::var("PINTLE_NAMES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(6_000)
}

#[test]
fn names_that_come_and_go_leave_nothing_in_a_vm() {
    let mut run = Run::start(ALL);
    run.complete();
    let pages = |run: &Run| {
        let all = [Thread::Main, Thread::Worker(0), Thread::Worker(1)];
        all.map(|thread| run.envoy.memory_pages(thread))
    };
    let mut after_a_part = None;
    for number in 0..names() {
        let name = format!("comes-and-goes-{number}");
        run.table(&name, endpoints(2));
        if number % 4 == 0 {
            let request = run.envoy.worker(0).request(get(&name));
            run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
        }
        run.sequence += 1;
        let version = run.version();
        run.send(&Down::Remove(Removed { service: name, version }));
        if number % 50 == 0 {
            run.tick();
        }
        if number == names() / 4 {
            after_a_part = Some(pages(&run));
        }
    }
    assert_eq!(Some(pages(&run)), after_a_part, "three quarters of them took no page more");
    assert_eq!(run.envoy.traps().len(), 0);
}
