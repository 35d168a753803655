//! What a policy, a weight or a client's choice of a subset may cost a VM: bytes and time are
//! bounded, whatever they ask for, and nothing traps.

use std::time::Duration;

use pintle_artifact::PINTLE;
use pintle_contract::{Endpoint, Up};
use pintle_harness::{HostCall, LogLevel, Module, Outcome, Thread};

use crate::support::{ALL, Run, builder, builder_of, endpoint, endpoints, get, list};

/// `memory.budget` of these tests, an eighth of what it is where nothing is said, in MiB; what is
/// asked for is an eighth of the largest. `cargo xtask bench hostile` does it at full size.
const BUDGET: u64 = 32;
/// Pages of it, and of what the module has beside it.
const PAGES: u64 = (BUDGET + 16) << 4;

/// Time passes within a callback, so that slices end.
fn start(budget: u64) -> Run {
    start_with(budget, Duration::from_micros(2))
}

fn start_with(budget: u64, look: Duration) -> Run {
    let memory = format!("\"memory\": {{\"budget\": \"{budget}MiB\"}}");
    let configuration = ALL.replace("\"trace\": {}", &memory);
    let builder = builder(&configuration).workers(1).clock_step(look);
    Run::of(builder.build().expect("the module starts"))
}

/// Asks so many times, each with another key and value; every request has to have a list.
fn ask(run: &mut Run, service: &str, requests: u32, values: u32) {
    for i in 0..requests {
        let request = get(service)
            .header("x-user", format!("user-{i}"))
            .header("x-version", format!("v{}", i % values));
        let request = run.envoy.worker(0).request(request);
        assert!(!list(&request).is_empty(), "{service}: {i}");
        run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    }
}

/// Until no ring or table is on its way any more.
fn build(run: &mut Run) {
    run.live(Duration::from_secs(20));
}

#[track_caller]
fn assert_within_budget(run: &Run) {
    let (worker, main) = (Thread::Worker(0), Thread::Main);
    let pages = run.envoy.memory_pages(worker).max(run.envoy.memory_pages(main));
    println!("{pages} pages of at most {PAGES}");
    assert!(pages <= PAGES, "{pages} pages");
    assert!(run.envoy.traps().is_empty(), "{:?}", run.envoy.traps());
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

#[test]
fn the_largest_rings_of_twelve_services_fit_or_are_refused() {
    let mut run = start(BUDGET);
    let policy = r#"{"select": {"strategy": "ring_hash", "minimum_ring_size": 1048576,
        "hash_key": [{"header": "x-user"}]}}"#;
    for service in 0..12 {
        run.table_with(&format!("s{service}"), endpoints(10), policy);
    }
    let small = policy.replace("1048576", "16384");
    run.table_with("small", endpoints(10), &small);
    run.complete();
    // A small one does not wait for the large ones.
    for service in ["s0", "small"] {
        ask(&mut run, service, 5, 1);
    }
    run.live(Duration::from_secs(1));
    let unplaced = run.envoy.metrics().counter("pintle_unplaced_total");
    ask(&mut run, "small", 5, 1);
    assert_eq!(run.envoy.metrics().counter("pintle_unplaced_total"), unplaced);
    for round in 0..3 {
        (0..12).for_each(|service| ask(&mut run, &format!("s{service}"), 5, 1));
        // Two rings, one after the other.
        if round < 2 {
            build(&mut run);
        }
    }
    assert_within_budget(&run);
    // With two rings there is room to build one of them anew, and for no third.
    assert_eq!(run.envoy.logged(LogLevel::Warn, "pintle: ring_hash of s"), 10);
    assert_eq!(run.envoy.logged(LogLevel::Warn, "refused: 110"), 10);
    assert!(run.envoy.metrics().counter("pintle_unplaced_total") >= Some(150));
    run.live(Duration::from_secs(11));
    let mut reports = run.received().into_iter().filter_map(|up| match up {
        Up::Report(report) => report.counters.into_iter().find(|(name, _)| name == "over_budget"),
        _ => None,
    });
    assert!(reports.next_back().is_some_and(|(_, count)| count >= 10));
}

#[test]
fn one_light_endpoint_beside_a_heavy_one_costs_what_is_known() {
    let mut run = start(BUDGET);
    let light = Endpoint { weight: 1, ..endpoint(0) };
    let heavy = Endpoint { weight: 250_000, ..endpoint(1) };
    let policy = r#"{"select": {"strategy": "ring_hash", "hash_key": [{"header": "x-user"}]}}"#;
    run.table_with("even", endpoints(2), policy);
    run.table_with("orders", vec![light, heavy], policy);
    run.complete();
    // By p2c until the ring is there, and nobody waits for it.
    ask(&mut run, "orders", 48, 1);
    ask(&mut run, "even", 48, 1);
    assert_eq!(run.envoy.metrics().counter("pintle_unplaced_total"), Some(48));
    build(&mut run);
    ask(&mut run, "orders", 48, 1);
    assert_eq!(run.envoy.metrics().counter("pintle_unplaced_total"), Some(48));
    assert_within_budget(&run);
}

/// Ten short ticks in the place of one delay a request less than a long one; what a whole tick does
/// is done as often as ever.
#[test]
fn a_large_ring_is_built_in_short_ticks_as_long_as_it_is_asked_for() {
    let mut run = start_with(BUDGET, Duration::from_micros(25));
    let policy = r#"{"select": {"strategy": "ring_hash", "minimum_ring_size": 1048576,
        "hash_key": [{"header": "x-user"}]}}"#;
    run.table_with("orders", endpoints(10), policy);
    run.complete();
    run.live(Duration::from_secs(2));
    let second = |run: &mut Run| {
        let before = run.envoy.calls();
        run.live(Duration::from_secs(1));
        let calls = run.envoy.calls().since(&before);
        [HostCall::SetTickPeriod, HostCall::GetCurrentTime, HostCall::GetSharedData]
            .map(|call| calls.get(call))
    };
    let [_, at_rest, _] = second(&mut run);
    ask(&mut run, "orders", 1, 1);
    let [set, looks, reads] = second(&mut run);
    assert_eq!(set, 1);
    assert!(looks > at_rest + 300, "{looks} looks at the clock, {at_rest} at rest");
    assert!(reads < 150, "{reads} reads of shared data");
    run.live(Duration::from_secs(3));
    let unplaced = |run: &Run| run.envoy.metrics().counter("pintle_unplaced_total");
    ask(&mut run, "orders", 1, 1);
    assert_eq!(unplaced(&run), Some(2));
    run.live(Duration::from_secs(11));
    let [_, looks, _] = second(&mut run);
    assert!(looks <= at_rest, "{looks} looks at the clock, {at_rest} at rest");
    ask(&mut run, "orders", 1, 1);
    assert_eq!(unplaced(&run), Some(2));
    assert_within_budget(&run);
}

/// On a busy machine ticks come late; what a whole one does must not wait for ten of them.
#[test]
fn whole_ticks_are_as_often_as_ever_where_ticks_come_late() {
    let mut run = start_with(BUDGET, Duration::from_micros(25));
    let policy = r#"{"select": {"strategy": "ring_hash", "minimum_ring_size": 1048576,
        "hash_key": [{"header": "x-user"}]}}"#;
    run.table_with("orders", endpoints(10), policy);
    run.complete();
    run.live(Duration::from_secs(1));
    ask(&mut run, "orders", 1, 1);
    run.tick();
    let before = run.envoy.calls();
    for _ in 0..20 {
        run.envoy.stall(Thread::Worker(0));
        run.live(Duration::from_millis(90));
        run.envoy.resume(Thread::Worker(0));
        run.live(Duration::from_millis(10));
    }
    let calls = run.envoy.calls().since(&before);
    assert_eq!(calls.get(HostCall::SetTickPeriod), 0, "it is still being built");
    // Each of both VMs renews its slot with every whole tick.
    let written = calls.get(HostCall::SetSharedData);
    println!("{written} writes of shared data in two seconds");
    assert!(written >= 40, "{written} writes of shared data");
    assert_within_budget(&run);
}

/// A client chooses the values; 200 are in use, with the largest of Maglev's tables for each.
#[test]
fn values_that_clients_choose_are_bounded_by_their_requests_and_by_the_budget() {
    let mut run = start(BUDGET);
    let endpoint = |i: u8| {
        let metadata = [("version".to_owned(), format!("v{i}"))].into();
        Endpoint { id: format!("a-{i:03}"), metadata, ..endpoint(i) }
    };
    let endpoints = (0..200).map(endpoint).collect();
    let policy = r#"{"select": {"strategy": "maglev", "table_size": 600011,
        "hash_key": [{"header": "x-user"}],
        "subset": [{"header": "x-version", "metadata": "version"}]}}"#;
    run.table_with("orders", endpoints, policy);
    run.complete();
    for _ in 0..5 {
        ask(&mut run, "orders", 1_000, 200);
        run.live(Duration::from_secs(5));
    }
    assert_within_budget(&run);
}

/// In instructions of Wasm, which a busy machine does not change: of a thousand requests and of the
/// ticks meanwhile, in which rings and tables are built.
#[test]
fn a_request_costs_with_many_values_at_most_twice_what_it_does_with_ten() {
    let module = Module::with_fuel(PINTLE).expect("the module loads");
    let endpoint = |i: u8| {
        let metadata = [("version".to_owned(), format!("v{i}"))].into();
        Endpoint { id: format!("a-{i:03}"), metadata, ..endpoint(i) }
    };
    for strategy in [
        r#""strategy": "maglev", "table_size": 5003"#,
        r#""strategy": "ring_hash", "minimum_ring_size": 4096"#,
    ] {
        let spent = |values: u32| {
            let builder = builder_of(&module, ALL).workers(1);
            let builder = builder.clock_step(Duration::from_micros(2));
            let mut run = Run::of(builder.build().expect("the module starts"));
            let policy = format!(
                r#"{{"select": {{{strategy}, "hash_key": [{{"header": "x-user"}}],
                    "subset": [{{"header": "x-version", "metadata": "version"}}]}}}}"#
            );
            run.table_with("orders", (0..100).map(endpoint).collect(), &policy);
            run.complete();
            run.live(Duration::from_secs(1));
            let total = |run: &Run| run.envoy.instructions().values().sum::<u64>();
            let before = total(&run);
            for i in 0..1_000 {
                let request = get("orders")
                    .header("x-user", format!("user-{i}"))
                    .header("x-version", format!("v{}", i % values));
                let request = run.envoy.worker(0).request(request);
                assert!(!list(&request).is_empty(), "{i}");
                run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
                if i % 40 == 0 {
                    run.live(Duration::from_millis(100));
                }
            }
            run.live(Duration::from_secs(1));
            (total(&run) - before) / 1_000
        };
        let [ten, many] = [10, 100].map(spent);
        println!("{strategy}: {ten} instructions a request with ten values, {many} with 100");
        assert!(many <= 2 * ten, "{strategy}: {ten} and {many}");
    }
}

#[test]
fn a_budget_of_its_own_is_kept_and_a_table_beyond_it_leaves_the_one_before() {
    let mut run = start(1);
    run.table("orders", endpoints(2));
    ask(&mut run, "orders", 1, 1);
    let many = |i: u16| {
        let [high, low] = i.to_be_bytes();
        let address = std::net::SocketAddr::from(([10, 1, high, low], 80));
        Endpoint::new(format!("b-{i:05}"), address)
    };
    run.table("orders", (0..2_000).map(many).collect());
    run.complete();
    let request = run.envoy.worker(0).request(get("orders"));
    let list = list(&request);
    assert!(!list.is_empty() && list.iter().all(|entry| entry.starts_with("10.0.0.")));
    run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    assert!(run.envoy.logged(LogLevel::Warn, "pintle: table of orders refused: ") >= 1);
    assert!(run.envoy.metrics().counter("pintle_over_budget_total") >= Some(1));
    assert!(run.envoy.traps().is_empty());
}
