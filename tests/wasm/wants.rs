//! An agent of many services tells only what is wanted: what is asked for, and which requests wait.

use std::time::Duration;

use pintle_contract::{Down, Initial, Removed, Schema, Up, Want};
use pintle_harness::{Outcome, Request, RequestBuilder, Thread};

use crate::support::{ALL, Run, TICK, endpoints, get, list};

const NAMED: [&str; 5] = ["xds", "cluster_metadata", "filter_metadata", "pintle", "service"];

/// A configuration by which a service without a table is refused.
fn reject() -> String {
    ALL.replace("\"select\": {}", "\"select\": {\"unknown_service\": \"reject\"}")
}

fn of(service: &str) -> RequestBuilder {
    get("a-cluster").property(&NAMED, service)
}

impl Run {
    /// The agent says that it tells only what is wanted, and every worker has heard of it.
    fn lazy(&mut self) {
        let end = Initial { version: self.version(), full: false };
        for down in [Down::Heartbeat(self.version()), Down::InitialEnd(end)] {
            assert!(self.stream.send(down.encode_for(Schema::Three)));
        }
        self.envoy.settle();
        self.tick();
        self.tick();
    }

    /// What has been asked for since the last time.
    fn wanted(&self) -> Vec<Want> {
        let only = |up| if let Up::Want(want) = up { Some(want) } else { None };
        self.received().into_iter().filter_map(only).collect()
    }

    fn absent(&mut self, service: &str) {
        let version = self.version();
        self.send(&Down::Remove(Removed { service: service.to_owned(), version }));
    }

    fn ask(&mut self, worker: usize, service: &str) -> Request {
        let request = self.envoy.worker(worker).request(of(service));
        self.envoy.settle();
        request
    }
}

fn asked(services: &[&str]) -> Want {
    let services = services.iter().map(|name| (*name).to_owned()).collect();
    Want { held: Vec::new(), services }
}

fn is_held(request: &Request) -> bool {
    !request.continues() && request.local_reply().is_none()
}

#[test]
fn it_says_what_it_holds_and_what_its_configuration_names_and_only_to_an_agent_that_asks() {
    let services = "\"breaker\": {}, \"services\": {\"users\": {\"breaker\": {}}}";
    let mut run = Run::start(&ALL.replace("\"breaker\": {}", services));
    run.table("orders", endpoints(3));
    run.complete();
    let request = run.ask(0, "nobody");
    assert!(request.continues());
    run.live(Duration::from_secs(2));
    assert_eq!(run.wanted(), [], "an agent that tells everything is asked for nothing");
    run.lazy();
    let want = Want { held: vec!["orders".to_owned()], ..asked(&["users"]) };
    assert_eq!(run.wanted(), [want]);
    // The next leader says it again.
    run.envoy.kill_vm(run.stream.thread());
    run.reconnect();
    run.lazy();
    let again = run.wanted();
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(again[0].held, ["orders"]);
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

#[test]
fn a_first_request_is_envoys_and_asks_for_its_table_once() {
    let mut run = Run::start(ALL);
    run.lazy();
    run.wanted();
    for worker in [0, 1, 0, 1] {
        let request = run.ask(worker, "orders");
        assert!(request.continues(), "the fallback serves it");
        run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    }
    let wanted = run.wanted();
    assert!((1..=2).contains(&wanted.len()), "one for each worker at most: {wanted:?}");
    run.table("orders", endpoints(3));
    let request = run.ask(0, "orders");
    assert_eq!(list(&request).len(), 3);
    // Of what is not there it is asked once a second.
    for _ in 0..20 {
        run.ask(0, "nobody");
        run.absent("nobody");
        run.tick();
    }
    let wanted = run.wanted();
    assert!((2..=3).contains(&wanted.len()), "in two seconds: {wanted:?}");
}

#[test]
fn where_it_would_be_refused_it_waits_for_the_table() {
    for worker in [0, 1] {
        let mut run = Run::start(&reject());
        run.lazy();
        run.wanted();
        let requests = [run.ask(worker, "orders"), run.ask(worker, "orders")];
        assert!(requests.iter().all(is_held));
        assert_eq!(run.wanted(), [asked(&["orders"])]);
        run.table("orders", endpoints(3));
        for request in requests {
            assert!(request.continues(), "it goes on with the table, in whichever worker");
            let first = list(&request)[0].clone();
            assert!(request.header("traceparent").is_some(), "as any other does");
            run.envoy.finish(request, Outcome::ok(first));
        }
        assert_eq!(run.envoy.violations(), Vec::<String>::new());
        assert_eq!(run.envoy.traps().len(), 0);
    }
}

#[test]
fn it_waits_a_quarter_of_a_second_at_most_and_not_for_what_is_not_there() {
    let mut run = Run::start(&reject());
    run.lazy();
    let began = run.envoy.elapsed();
    let request = run.ask(0, "orders");
    while is_held(&request) {
        run.envoy.advance(TICK / 10);
    }
    let waited = run.envoy.elapsed() - began;
    assert!((TICK..=Duration::from_millis(250)).contains(&waited), "{waited:?}");
    assert_eq!(request.local_reply().expect("a reply").status, 503);
    let request = run.ask(0, "nobody");
    assert!(is_held(&request));
    run.absent("nobody");
    assert_eq!(request.local_reply().expect("at once").status, 503);
    let again = run.ask(0, "nobody");
    assert_eq!(again.local_reply().expect("without waiting").status, 503);
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

#[test]
fn without_a_stream_nothing_waits() {
    let mut run = Run::start(&reject());
    run.lazy();
    let held = run.ask(0, "orders");
    assert!(is_held(&held));
    run.agent.down();
    run.envoy.settle();
    run.tick();
    run.tick();
    assert!(!is_held(&held), "its agent is gone");
    for worker in [0, 1] {
        let request = run.ask(worker, "others");
        assert_eq!(request.local_reply().expect("at once").status, 503);
    }
    run.agent.up();
    run.reconnect();
    assert!(!is_held(&run.ask(0, "users")), "an agent that has not said that it can be asked");
    run.lazy();
    assert!(is_held(&run.ask(0, "still-others")));
}

#[test]
fn whoever_leaves_while_it_waits_leaves_nothing_behind() {
    let mut run = Run::start(&reject());
    run.lazy();
    let (gone, stays) = (run.ask(0, "orders"), run.ask(0, "orders"));
    run.envoy.finish(gone, Outcome::ok("10.0.0.1:80"));
    run.table("orders", endpoints(3));
    let first = list(&stays)[0].clone();
    run.envoy.finish(stays, Outcome::ok(first));
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
    assert_eq!(run.envoy.traps().len(), 0);
    assert_eq!(run.envoy.open_contexts(Thread::Worker(0)), 0, "no stream");
}

/// The root of the configuration before ticks no more.
#[test]
fn a_request_that_waits_while_the_configuration_changes_goes_on_in_time() {
    let mut run = Run::start(&reject());
    run.lazy();
    let held = run.ask(0, "orders");
    let began = run.envoy.elapsed();
    run.envoy.reconfigure(reject()).expect("the same again");
    while is_held(&held) {
        run.envoy.advance(TICK / 10);
    }
    let waited = run.envoy.elapsed() - began;
    assert!(waited <= Duration::from_millis(250), "{waited:?}");
    run.envoy.finish(held, Outcome::ok("10.0.0.1:80"));
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
    assert_eq!(run.envoy.traps().len(), 0);
}

#[test]
fn so_many_wait_and_no_more() {
    let mut run = Run::start(&reject());
    run.lazy();
    let requests: Vec<Request> = (0..1_100).map(|_| run.ask(0, "orders")).collect();
    assert_eq!(requests.iter().filter(|request| is_held(request)).count(), 1_024);
    run.table("orders", endpoints(3));
    assert!(!requests.iter().any(is_held));
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

/// Names that clients make up reach the agent at a bounded rate, and those that are none not at
/// all.
#[test]
fn made_up_names_cost_a_bounded_number_of_questions() {
    let mut run = Run::start(ALL);
    run.lazy();
    run.wanted();
    for number in 0..1_000 {
        run.ask(0, &format!("made-up-{number}"));
        run.ask(0, &format!("no name {number}"));
    }
    let asked: usize = run.wanted().iter().map(|want| want.services.len()).sum();
    assert_eq!(asked, 128);
}

/// An agent of the release before could not read the question.
#[test]
fn an_agent_that_tells_everything_is_asked_for_nothing_whatever_the_one_before_said() {
    let mut run = Run::start(&reject());
    let shared = run.envoy.shared_data();
    run.lazy();
    assert_eq!(shared.get("pintle/lazy").map(|(value, _)| value.len()), Some(8));
    run.agent.down();
    run.tick();
    run.tick();
    assert_eq!(shared.get("pintle/lazy").map(|(value, _)| value.len()), Some(0));
    run.agent.up();
    run.reconnect();
    let end = Initial { version: run.version(), full: true };
    assert!(run.stream.send(Down::InitialEnd(end).encode_for(Schema::Two)));
    run.envoy.settle();
    assert_eq!(run.ask(0, "orders").local_reply().expect("at once").status, 503);
    run.tick();
    assert_eq!(run.wanted(), []);
}
