//! How many host calls a request makes: crossings cost, instructions hardly do.

use std::net::SocketAddr;
use std::time::Duration;

use pintle_artifact::PINTLE;
use pintle_contract::Endpoint;
use pintle_harness::{Calls, HostCall, Module, Outcome};

use crate::support::{ALL, Run, builder_of, endpoints, get, list};

fn calls_of(run: &mut Run, traced: bool) -> Calls {
    let before = run.envoy.calls();
    let mut request = get("orders");
    if traced {
        request = request
            .header("traceparent", "00-1234567890123456789012345678901a-123456789012345b-01");
    }
    let request = run.envoy.worker(0).request(request);
    let first = list(&request).first().cloned().unwrap_or_else(|| "10.0.0.1:80".to_owned());
    run.envoy.finish(request, Outcome::ok(first));
    run.envoy.calls().since(&before)
}

fn warm(configuration: &str, policy: &str) -> Run {
    let mut run = Run::start(configuration);
    run.table_with("orders", endpoints(3), policy);
    // Of the first each is asked where it came from.
    for _ in 0..20 {
        calls_of(&mut run, true);
    }
    run
}

#[test]
fn a_request_that_goes_well_makes_nine_calls_and_none_to_shared_data() {
    // The service comes from the cluster's name here, after its metadata was looked for.
    let mut run = warm(ALL, "");
    let calls = calls_of(&mut run, true);
    let expect = [
        (HostCall::GetCurrentTime, 2),
        (HostCall::GetHeaderMapPairs, 1),
        (HostCall::GetHeaderMapValue, 1),
        (HostCall::GetProperty, 4),
        (HostCall::ReplaceHeaderMapValue, 1),
    ];
    for (call, count) in expect {
        assert_eq!(calls.get(call), count, "{}: {:?}", call.name(), calls.made());
    }
    assert_eq!(calls.total(), 9, "{:?}", calls.made());
}

#[test]
fn one_good_answer_of_64_is_asked_who_gave_it() {
    let mut run = warm(ALL, "");
    let before = run.envoy.calls();
    for _ in 0..640 {
        calls_of(&mut run, true);
    }
    assert_eq!(run.envoy.calls().since(&before).total(), 640 * 9 + 10);
}

#[test]
fn trace_alone_reads_the_headers_only_where_one_of_them_matters_and_nothing_at_the_end() {
    let mut run = Run::start(r#"{"sync": {"cluster": "pintle_agent"}, "trace": {}}"#);
    // Nothing is handed over for an absent header, which makes it the cheapest question there is.
    let begins = |run: &mut Run| {
        let calls = calls_of(run, false);
        assert_eq!(calls.get(HostCall::GetHeaderMapPairs), 0, "{:?}", calls.made());
        assert_eq!(calls.get(HostCall::GetHeaderMapValue), 3, "{:?}", calls.made());
        assert_eq!(calls.total(), 4, "and one to set traceparent: {:?}", calls.made());
    };
    begins(&mut run);
    let calls = calls_of(&mut run, true);
    assert_eq!(calls.get(HostCall::GetHeaderMapPairs), 1, "{:?}", calls.made());
    assert_eq!(calls.total(), 2, "traceparent, then all: {:?}", calls.made());
    // Where the last request brought a context, all headers are asked for at once.
    let calls = calls_of(&mut run, true);
    assert_eq!(calls.get(HostCall::GetHeaderMapPairs), 1, "{:?}", calls.made());
    assert_eq!(calls.total(), 1, "{:?}", calls.made());
    let calls = calls_of(&mut run, false);
    assert_eq!(calls.get(HostCall::GetHeaderMapPairs), 1, "{:?}", calls.made());
    assert_eq!(calls.total(), 2, "and one to set traceparent: {:?}", calls.made());
    begins(&mut run);
}

#[test]
fn a_thousand_services_cost_a_request_what_one_does() {
    let mut run = warm(ALL, "");
    let one = calls_of(&mut run, true).total();
    for number in 0..1_000 {
        run.table(&format!("s-{number}"), endpoints(3));
    }
    run.tick();
    assert_eq!(calls_of(&mut run, true).total(), one);
}

#[test]
fn memory_does_not_grow_with_requests() {
    let mut run = warm(ALL, "");
    for _ in 0..2_000 {
        calls_of(&mut run, true);
    }
    let pages = run.envoy.memory_pages(pintle_harness::Thread::Worker(0));
    for _ in 0..20_000 {
        calls_of(&mut run, true);
    }
    assert_eq!(run.envoy.memory_pages(pintle_harness::Thread::Worker(0)), pages);
}

/// What a module's callbacks run, in instructions of Wasm, which a busy machine does not change.
pub(crate) fn instructions(run: &Run, callbacks: &[&str]) -> u64 {
    let counted = run.envoy.instructions();
    counted.iter().filter(|(name, _)| callbacks.contains(*name)).map(|(_, count)| count).sum()
}

fn counting(bytes: &[u8], configuration: &str) -> Run {
    let module = Module::with_fuel(bytes).expect("the module loads");
    let mut run = Run::of(builder_of(&module, configuration).build().expect("it starts"));
    run.table_with("orders", endpoints(3), "");
    for _ in 0..200 {
        calls_of(&mut run, false);
    }
    run
}

/// 0.1.0 ran 13,100 and took the end of a stream for its answer. A crossing is worth some hundred
/// of these.
#[test]
fn a_request_that_goes_well_runs_few_instructions() {
    const ALL_OF_IT: &[&str] = &[
        "proxy_on_context_create",
        "proxy_on_request_headers",
        "proxy_on_response_headers",
        "proxy_on_log",
        "proxy_on_delete",
    ];
    let mut run = counting(PINTLE, ALL);
    let before = instructions(&run, ALL_OF_IT);
    for _ in 0..1_000 {
        calls_of(&mut run, false);
    }
    let each = (instructions(&run, ALL_OF_IT) - before) / 1_000;
    println!("{each} instructions a request");
    assert!(each > 0 && each <= 11_000, "{each} instructions");
}

/// Where streams live for hours, each update of the listener leaves one behind that is still
/// served.
#[test]
fn configurations_that_were_replaced_cost_nothing_while_their_streams_go_on() {
    let mut run = counting(PINTLE, ALL);
    let ticks = |run: &mut Run| {
        run.live(Duration::from_secs(2));
        let before = instructions(run, &["proxy_on_tick"]);
        run.live(Duration::from_secs(10));
        instructions(run, &["proxy_on_tick"]) - before
    };
    let one = ticks(&mut run);
    let mut streams = Vec::new();
    for _ in 0..40 {
        for worker in 0..2 {
            streams.push(run.envoy.worker(worker).request(get("orders")));
        }
        run.envoy.reconfigure(ALL).expect("the module takes it");
    }
    run.reconnect();
    run.complete();
    let many = ticks(&mut run);
    println!("ten seconds of ticks: {one} instructions, {many} with 40 configurations before");
    assert!(one > 0 && many < 2 * one, "{one} and {many} instructions");
}

/// Ten thousand at full size, where `bench churn` sees what of a thread they cost.
#[test]
fn endpoints_that_do_well_cost_ticks_next_to_nothing() {
    let mut run = counting(PINTLE, ALL);
    let ticks = |run: &mut Run| {
        calls_of(run, false);
        run.live(Duration::from_secs(1));
        let before = instructions(run, &["proxy_on_tick"]);
        run.live(Duration::from_secs(2));
        instructions(run, &["proxy_on_tick"]) - before
    };
    let few = ticks(&mut run);
    let endpoint = |number: u16| {
        let [high, low] = number.to_be_bytes();
        Endpoint::new(format!("o-{number:05}"), SocketAddr::from(([10, 7, high, low], 80)))
    };
    run.table("orders", (0..2_000).map(endpoint).collect());
    let many = ticks(&mut run);
    let each = many.saturating_sub(few) / (2_000 * 20 * 3);
    println!("two seconds of ticks: {few} instructions, {many} with 2,000 endpoints; {each} each");
    assert!(few > 0 && each <= 60, "{few} and {many} instructions, {each} an endpoint and tick");
}

/// All workers tell each other what they know of an endpoint while it is news.
#[test]
fn a_large_service_that_nobody_asks_costs_a_tick_little() {
    let mut run = counting(PINTLE, ALL);
    let number = |i: u16| {
        let [high, low] = i.to_be_bytes();
        Endpoint::new(format!("a-{i:05}"), SocketAddr::from(([10, 1, high, low], 80)))
    };
    run.table("catalogue", (0..10_000).map(number).collect());
    run.tick();
    for worker in 0..2 {
        for _ in 0..300 {
            let request = run.envoy.worker(worker).request(get("catalogue"));
            let first = list(&request).first().cloned().expect("a list");
            run.envoy.finish(request, Outcome::ok(first));
        }
    }
    let ten = |run: &mut Run| {
        let before = instructions(run, &["proxy_on_tick"]);
        run.live(Duration::from_secs(1));
        (instructions(run, &["proxy_on_tick"]) - before) / 10
    };
    let first = ten(&mut run);
    run.live(Duration::from_secs(1));
    let later: Vec<u64> = (0..4).map(|_| ten(&mut run)).collect();
    println!("{first} instructions a tick of all VMs in the first second, {later:?} later");
    assert!(later.iter().all(|tick| (1..=1_500_000).contains(tick)), "{later:?}");
}

/// After an incident everybody has failed once; nobody asks for them any more.
#[test]
fn endpoints_that_failed_cost_ticks_little() {
    const COUNT: u16 = 500;
    let mut run = counting(PINTLE, ALL);
    let number = |i: u16| {
        let [high, low] = i.to_be_bytes();
        Endpoint::new(format!("a-{i:05}"), SocketAddr::from(([10, 1, high, low], 80)))
    };
    run.table("catalogue", (0..COUNT).map(number).collect());
    run.tick();
    for _ in 0..COUNT {
        let request = run.envoy.worker(0).request(get("catalogue"));
        let first = list(&request).first().cloned().expect("a list");
        run.envoy.finish(request, Outcome::refused(first));
    }
    let seconds = |run: &mut Run, seconds: u64| {
        let (calls, before) = (run.envoy.calls(), instructions(run, &["proxy_on_tick"]));
        run.live(Duration::from_secs(seconds));
        let reads = run.envoy.calls().since(&calls).get(HostCall::GetSharedData);
        (reads / seconds, (instructions(run, &["proxy_on_tick"]) - before) / (seconds * 10))
    };
    run.live(Duration::from_secs(1));
    let (watched, _) = seconds(&mut run, 8);
    run.live(Duration::from_secs(11));
    let (later, tick) = seconds(&mut run, 5);
    println!("{watched} reads a second while they are watched; {later} later, {tick} instructions");
    // Three VMs, and what each reads of the others with every tick.
    assert!(watched <= 3 * u64::from(COUNT) + 300, "{watched} reads");
    // Each second tick is left out.
    assert!(later <= 150 && tick <= 100_000, "{later} reads, {tick} instructions");
}

/// Of cookies that the last decides.
#[test]
fn cookies_of_50_kb_cost_a_request_some_instructions_a_byte() {
    let mut run = counting(PINTLE, ALL);
    let key =
        r#"{"select": {"strategy": "ring_hash", "hash_key": [{"cookie": {"name": "user"}}]}}"#;
    run.table_with("orders", endpoints(3), key);
    for (pair, most) in [("a=b; ", 750_000), ("name-0001=value-000001; ", 350_000)] {
        let cookie = format!("{}user=abc", pair.repeat(50_000 / pair.len()));
        let ask = |run: &mut Run| {
            let before = instructions(run, &["proxy_on_request_headers"]);
            let request = run.envoy.worker(0).request(get("orders").header("cookie", &cookie));
            let first = list(&request).first().cloned().expect("a list");
            run.envoy.finish(request, Outcome::ok(first));
            instructions(run, &["proxy_on_request_headers"]) - before
        };
        ask(&mut run);
        let instructions = ask(&mut run);
        println!("{instructions} instructions for {} bytes", cookie.len());
        assert!((1..=most).contains(&instructions), "{instructions}");
    }
}
