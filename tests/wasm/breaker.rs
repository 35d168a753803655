//! One breaker per endpoint for all workers of an Envoy.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_contract::{BreakerState, Force, ForceAction, Now, Opinion, Transition, Up};
use pintle_harness::{Outcome, Thread};

use crate::support::{ALL, Run, TICK, builder, endpoints, get, list};

const DEAD: &str = "10.0.0.1:80";
/// Round robin, so that the cost of a failure does not keep traffic away before the breaker does.
const TURNS: &str = r#"{"select": {"strategy": "round_robin"}}"#;
const QUICK: &str = r#"{"select": {"strategy": "round_robin"},
    "breaker": {"open": "1s", "jitter_percent": 0}}"#;

/// Breakers may take every endpoint, and then the answer is a local one.
const STRICT: &str = r#"{"select": {"strategy": "round_robin", "panic_percent": 0},
    "breaker": {"max_ejection_percent": 100}}"#;

fn transitions(run: &Run) -> Vec<Transition> {
    let only = |up| if let Up::Transition(transition) = up { Some(transition) } else { None };
    run.received().into_iter().filter_map(only).collect()
}

/// One request on a worker; the dead endpoint refuses. Whether it went to the dead one.
fn request(run: &mut Run, worker: usize) -> bool {
    let request = run.envoy.worker(worker).request(get("orders"));
    let first = list(&request).first().cloned().unwrap_or_default();
    let dead = first == DEAD;
    let outcome = if dead { Outcome::refused(first) } else { Outcome::ok(first) };
    run.envoy.finish(request, outcome);
    run.envoy.settle();
    dead
}

/// Sends until five requests have failed; how many it took.
fn trip(run: &mut Run) -> u32 {
    let mut failed = 0;
    for turn in 0..200 {
        failed += u32::from(request(run, turn % 2));
        if failed == 5 {
            break;
        }
    }
    failed
}

#[test]
fn five_failures_over_all_workers_open_it_for_all_workers() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), TURNS);
    let mut failed = 0;
    let mut after = 0;
    for turn in 0..200 {
        if failed < 5 {
            failed += u32::from(request(&mut run, turn % 2));
        } else {
            after += u32::from(request(&mut run, turn % 2));
        }
    }
    assert_eq!((failed, after), (5, 0));
    let told = transitions(&run);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].from, told[0].to), (BreakerState::Closed, BreakerState::Open));
    assert_eq!(told[0].reason, "5 consecutive failures");
    assert!(told[0].observed);
    assert_eq!(run.envoy.metrics().counter("pintle_breaker_opened_total"), Some(1));
}

/// In Istio the registry may name what is no host of the cluster. Envoy skips it, and the next of
/// the list answers: five failures open the breaker of that one, and the skipped one is charged
/// with nothing.
#[test]
fn who_is_skipped_is_not_charged_with_what_the_next_one_did() {
    // Before the dead one in turn.
    const STRAY: &str = "10.0.0.4:80";
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(4), TURNS);
    let (mut failed, mut through_the_stray) = (0, 0);
    for turn in 0..200 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let sent = list(&request);
        let skips = sent[0] == STRAY;
        let answered = sent[usize::from(skips)].clone();
        let dead = answered == DEAD;
        through_the_stray += usize::from(dead && skips);
        failed += usize::from(dead);
        let outcome = if dead { Outcome::status(500, answered) } else { Outcome::ok(answered) };
        run.envoy.finish(request, outcome);
        run.envoy.settle();
    }
    assert_eq!(failed, 5, "{through_the_stray} through the stray one's turn");
    assert!(through_the_stray > 0);
    let told = transitions(&run);
    assert_eq!(told.len(), 1, "{told:?}");
}

/// By filter state Envoy knows one address, and every attempt goes there.
#[test]
fn by_original_dst_every_attempt_is_charged_to_the_one_endpoint() {
    let configuration = ALL.replace("\"select\": {}", "\"select\": {\"via\": \"original_dst\"}");
    let mut run = Run::of(builder(&configuration).build().expect("the module starts"));
    run.table_with("orders", endpoints(3), TURNS);
    let mut failed = 0;
    for turn in 0..60 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let state = request.filter_state("envoy.network.transport_socket.original_dst_address");
        let address = String::from_utf8(state.expect("an address")).expect("text");
        let outcome = if address == DEAD {
            failed += 1;
            Outcome { attempt_count: 3, ..Outcome::refused(address) }
        } else {
            Outcome::ok(address)
        };
        run.envoy.finish(request, outcome);
        run.envoy.settle();
    }
    assert_eq!(failed, 2, "of three attempts each");
    let told = transitions(&run);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].endpoint, "a-0");
}

/// What is reported is counted since the VM started: a lower number would be an older report.
#[test]
fn an_endpoint_that_comes_back_goes_on_counting_where_it_was() {
    let mut run = Run::start(ALL);
    let counted = |run: &mut Run| {
        run.live(Duration::from_secs(2));
        let reports = run.received().into_iter();
        let reports = reports.filter_map(|up| if let Up::Report(r) = up { Some(r) } else { None });
        let endpoints = reports.flat_map(|r| r.services).flat_map(|service| service.endpoints);
        endpoints.filter(|e| e.id == "a-0").map(|e| (e.requests, e.failures)).next_back()
    };
    let ask = |run: &mut Run, times| {
        for _ in 0..times {
            let request = run.envoy.worker(0).request(get("orders"));
            run.envoy.finish(request, Outcome::status(500, DEAD));
        }
    };
    run.table("orders", endpoints(1));
    ask(&mut run, 3);
    assert_eq!(counted(&mut run), Some((3, 3)));
    run.table("orders", Vec::new());
    run.table("orders", endpoints(1));
    ask(&mut run, 1);
    assert_eq!(counted(&mut run), Some((4, 4)));
}

#[test]
fn one_probe_at_a_time_and_two_successes_close_it() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), QUICK);
    assert_eq!(trip(&mut run), 5);
    run.envoy.advance(Duration::from_millis(1_200));
    let mut probes = Vec::new();
    for turn in 0..100 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        if list(&request)[0] == DEAD {
            probes.push(request);
        } else {
            let first = list(&request)[0].clone();
            run.envoy.finish(request, Outcome::ok(first));
        }
        run.envoy.settle();
    }
    assert_eq!(probes.len(), 1, "one probe is out, whoever asks");
    let probe = probes.remove(0);
    run.envoy.finish(probe, Outcome::ok(DEAD));
    run.envoy.settle();
    run.tick();
    let second = (0..50).find_map(|turn| {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        if list(&request)[0] == DEAD {
            return Some(request);
        }
        let first = list(&request)[0].clone();
        run.envoy.finish(request, Outcome::ok(first));
        None
    });
    run.envoy.finish(second.expect("a second probe"), Outcome::ok(DEAD));
    run.envoy.settle();
    let last = transitions(&run).pop().expect("transitions");
    assert_eq!((last.from, last.to), (BreakerState::HalfOpen, BreakerState::Closed));
}

#[test]
fn it_survives_the_death_of_every_vm_that_saw_it_open() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), TURNS);
    assert_eq!(trip(&mut run), 5);
    for worker in 0..2 {
        run.envoy.kill_vm(Thread::Worker(worker));
    }
    run.envoy.advance(Duration::from_secs(2));
    for turn in 0..100 {
        assert!(!request(&mut run, turn % 2), "still open after the reload");
    }
}

#[test]
fn a_vm_that_comes_back_hears_of_what_happened_before_it_had_a_queue() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), TURNS);
    run.tick();
    run.envoy.kill_vm(Thread::Worker(1));
    run.envoy.advance(Duration::from_millis(50));
    // Rebuilt by this request, and no worker has looked around since.
    let failed = usize::from(request(&mut run, 1));
    let failed = failed + (0..60).filter(|_| request(&mut run, 0)).count();
    assert_eq!(failed, 5);
    run.tick();
    run.tick();
    for _ in 0..60 {
        assert!(!request(&mut run, 1), "it is open, whoever asks");
    }
    assert_eq!(run.envoy.traps().len(), 0);
}

#[test]
fn a_retried_success_still_charges_the_endpoint_that_failed() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), TURNS);
    let mut on_dead = 0;
    for turn in 0..60 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let entries = list(&request);
        let outcome = if entries[0] == DEAD {
            on_dead += 1;
            Outcome::ok(&entries[1]).attempts(2)
        } else {
            Outcome::ok(&entries[0])
        };
        run.envoy.finish(request, outcome);
        run.envoy.settle();
    }
    assert_eq!(on_dead, 5, "every client saw 200, and it opened all the same");
}

#[test]
fn what_says_nothing_of_the_endpoint_opens_nothing() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(1));
    let innocent = [
        Outcome::client_gone(DEAD),
        Outcome::client_reset(DEAD),
        Outcome::overflow(),
        Outcome::no_healthy_upstream(),
        Outcome::no_route(),
        Outcome::local_reply(503),
        Outcome::status(404, DEAD),
        Outcome::status(499, DEAD),
    ];
    for outcome in innocent {
        for turn in 0..10 {
            let request = run.envoy.worker(turn % 2).request(get("orders"));
            run.envoy.finish(request, outcome.clone());
        }
    }
    run.tick();
    assert_eq!(transitions(&run), Vec::new());
}

#[test]
fn half_of_a_service_stays_whatever_the_fleet_says() {
    let mut run = Run::start(ALL);
    let mut all = endpoints(4);
    let far = Now(u64::MAX);
    for endpoint in &mut all {
        endpoint.opinion = Some(Opinion { expires_at: far, reporters: 1_000 });
    }
    run.table_with("orders", all, r#"{"breaker": {"fleet": "enforce"}}"#);
    run.tick();
    let mut seen = std::collections::BTreeSet::new();
    for turn in 0..100 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let first = list(&request)[0].clone();
        run.envoy.finish(request, Outcome::ok(&first));
        seen.insert(first);
    }
    assert_eq!(seen.len(), 2, "two of four: {seen:?}");
    assert_eq!(run.envoy.metrics().counter("pintle_panic_total"), None, "half is not panic");
}

#[test]
fn an_operator_opens_and_closes_it() {
    let mut run = Run::start(ALL);
    let mut all = endpoints(3);
    let until = Now(u64::try_from(run.envoy.now().as_nanos()).expect("now") + 60_000_000_000);
    all[0].force = Some(Force { action: ForceAction::Open, until, stamp: 1 });
    run.table("orders", all.clone());
    run.tick();
    for turn in 0..50 {
        assert!(!request(&mut run, turn % 2), "held open");
    }
    all[0].force = Some(Force { action: ForceAction::Close, until, stamp: 2 });
    run.table("orders", all);
    run.tick();
    let mut reached = 0;
    for turn in 0..200 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let first = list(&request)[0].clone();
        reached += u32::from(first == DEAD);
        run.envoy.finish(request, Outcome::ok(first));
    }
    assert!(reached > 0, "held closed");
}

/// One request while only these endpoints answer: where it went first, or what the local answer
/// says in `retry-after`.
fn send(run: &mut Run, worker: usize, well: &[&str]) -> Result<String, String> {
    let request = run.envoy.worker(worker).request(get("orders"));
    let first = list(&request).first().cloned();
    let outcome = match &first {
        Some(first) if well.contains(&first.as_str()) => Outcome::ok(first),
        Some(first) => Outcome::refused(first),
        None => Outcome::local_reply(503),
    };
    let wait = request.local_reply().and_then(|reply| reply.headers.text("retry-after"));
    run.envoy.finish(request, outcome);
    run.envoy.settle();
    first.ok_or(wait.unwrap_or_default())
}

/// Requests to both workers in turn, twenty a second; where each went.
fn drive(run: &mut Run, time: Duration, well: &[&str]) -> Vec<Result<String, String>> {
    const PACE: Duration = Duration::from_millis(50);
    let end = run.envoy.elapsed() + time;
    let mut sent = Vec::new();
    while run.envoy.elapsed() < end {
        sent.push(send(run, sent.len() % 2, well));
        run.live(PACE);
    }
    sent
}

#[test]
fn with_nobody_else_the_open_ones_are_tried_twice_a_second_and_are_no_worse_for_it() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), STRICT);
    for turn in 0..15 {
        assert!(send(&mut run, turn % 2, &[]).is_ok());
    }
    let opened = transitions(&run);
    assert_eq!(opened.len(), 3, "{opened:?}");

    let sent = drive(&mut run, Duration::from_secs(5), &[]);
    let waits: Vec<&String> = sent.iter().filter_map(|sent| sent.as_ref().err()).collect();
    assert!(waits.iter().all(|wait| *wait == "1"), "{waits:?}");
    let told = transitions(&run);
    for before in &opened {
        let of = told.iter().filter(|told| told.endpoint == before.endpoint);
        let again: Vec<_> = of.filter(|told| told.to == BreakerState::Open).collect();
        assert!((8..=10).contains(&again.len()), "{} in 5 s: {told:?}", again.len());
        for again in again {
            assert_eq!((again.trips, again.until), (1, before.until));
        }
    }

    let back = drive(&mut run, Duration::from_secs(1), &[DEAD]);
    assert!(back.iter().any(|sent| sent.as_ref().is_ok_and(|to| to == DEAD)), "{back:?}");
    let closed = transitions(&run).pop().expect("transitions");
    assert_eq!((closed.endpoint.as_str(), closed.to), ("a-0", BreakerState::Closed));
    let after = drive(&mut run, Duration::from_secs(20), &[DEAD]);
    assert!(after.iter().all(|sent| sent.as_ref().is_ok_and(|to| to == DEAD)), "{after:?}");
    // Thirty seconds and half as much jitter after they opened, and not 30 * 2^10.
    let due = drive(&mut run, Duration::from_secs(25), &[DEAD]);
    let probes = due.iter().filter(|sent| sent.as_ref().is_ok_and(|to| to != DEAD)).count();
    assert_eq!(probes, 2, "one probe each, by their own time");
    assert_eq!(run.envoy.traps().len(), 0);
}

#[test]
fn neither_in_a_panic_nor_against_an_operator_is_there_a_last_resort() {
    let panic = STRICT.replace("\"panic_percent\": 0", "\"panic_percent\": 50");
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), &panic);
    let spread = drive(&mut run, Duration::from_secs(5), &[]);
    assert!(spread.iter().all(Result::is_ok), "{spread:?}");
    let told = transitions(&run);
    assert!(told.iter().all(|told| told.to == BreakerState::Open), "{told:?}");

    let mut run = Run::start(ALL);
    let mut all = endpoints(3);
    let until = Now(u64::try_from(run.envoy.now().as_nanos()).expect("now") + 20_000_000_000);
    for endpoint in &mut all {
        endpoint.force = Some(Force { action: ForceAction::Open, until, stamp: 1 });
    }
    run.table_with("orders", all, STRICT);
    run.tick();
    for sent in drive(&mut run, Duration::from_secs(10), &[]) {
        let wait: u64 = sent.expect_err("held open").parse().expect("seconds");
        assert!((10..=20).contains(&wait), "{wait} s");
    }
}

#[test]
fn a_limit_that_leaves_somebody_ends_the_last_resort() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), STRICT);
    drive(&mut run, Duration::from_secs(5), &[]);
    // Each of them could be tried now.
    run.live(Duration::from_millis(700));
    let policy = STRICT.replace("100", "50");
    run.table_with("orders", endpoints(3), &policy);
    run.tick();
    transitions(&run);
    // One of three may be taken, so two pass, and nobody is tried.
    let sent = drive(&mut run, Duration::from_secs(5), &[]);
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    assert_eq!(transitions(&run), Vec::new());
}

/// An endpoint that the fleet holds open, for a minute from now.
fn advised(run: &Run) -> Vec<pintle_contract::Endpoint> {
    let mut all = endpoints(3);
    let expires_at = Now(u64::try_from(run.envoy.now().as_nanos()).expect("now") + 60_000_000_000);
    all[0].opinion = Some(Opinion { expires_at, reporters: 1 });
    all
}

#[test]
fn advice_raises_the_cost() {
    let mut run = Run::start(ALL);
    let all = advised(&run);
    run.table("orders", all);
    run.tick();
    let mut reached = 0;
    for turn in 0..300 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let first = list(&request)[0].clone();
        reached += u32::from(first == DEAD);
        run.envoy.finish(request, Outcome::ok(first));
    }
    assert!(reached < 50, "{reached} of 300, of 100 without advice");
}

#[test]
fn advice_that_is_taken_back_counts_no_more() {
    for (withdrawn, opens_after) in [(false, 1), (true, 5)] {
        let mut run = Run::start(ALL);
        let all = advised(&run);
        run.table_with("orders", all, TURNS);
        run.tick();
        if withdrawn {
            run.table_with("orders", endpoints(3), TURNS);
            run.tick();
        }
        let failed = (0..60).filter(|turn| request(&mut run, turn % 2)).count();
        assert_eq!(failed, opens_after, "withdrawn: {withdrawn}");
    }
}

/// A stream that ends in phase `number`.
fn abort(run: &mut Run, worker: usize, number: usize) {
    /// Of Envoy's response flags: the client closed the connection, the endpoint broke the
    /// protocol.
    const CLIENT_GONE: u64 = 1 << 14;
    const UPSTREAM_PROTOCOL: u64 = 1 << 23;
    if number.is_multiple_of(14) {
        // Its head was too large: no filter saw it begin.
        run.envoy.worker(worker).reject(Outcome::headers_too_large());
        return;
    }
    let request = run.envoy.worker(worker).request(get("orders"));
    let list = list(&request);
    let attempt = |number: usize| list[number.min(list.len()) - 1].as_str();
    let end = match number % 14 {
        // Before an endpoint was asked.
        1 => Outcome::client_gone(attempt(1)).attempts(0),
        2 => Outcome::local_reply(413),
        3 => Outcome::overflow(),
        4 => Outcome::no_healthy_upstream(),
        // Before the answer.
        5 => Outcome::refused(attempt(1)),
        6 => Outcome::timeout(attempt(1)),
        7 => Outcome::reset(attempt(1)),
        8 => Outcome::client_gone(attempt(1)),
        9 => Outcome::client_reset(attempt(1)),
        // Between two attempts, and after them.
        10 => Outcome::client_gone(attempt(2)).attempts(2),
        11 => Outcome::refused(attempt(3)).attempts(3),
        // During the answer.
        12 => Outcome::ok(attempt(1)).flags(CLIENT_GONE),
        _ => Outcome::ok(attempt(1)).flags(UPSTREAM_PROTOCOL),
    };
    run.envoy.finish(request, end);
}

#[test]
fn a_million_aborted_streams_leave_nothing_behind() {
    const STREAMS: usize = 1_000_000;
    let mut run = Run::start(ALL);
    // Without back-off: at the end the breaker is to be asked for its slot, and not for its
    // patience.
    let policy = QUICK.replace("\"1s\"", "\"1s\", \"open_max\": \"1s\"");
    run.table_with("orders", endpoints(3), &policy);
    let workers = [Thread::Worker(0), Thread::Worker(1)];
    let pages = |run: &Run| workers.map(|worker| run.envoy.memory_pages(worker));
    let mut probes = 0;
    let mut halfway = [0; 2];
    for turn in 0..STREAMS {
        // A phase's turns go to both workers.
        abort(&mut run, turn / 14 % 2, turn);
        if turn % 1_000 == 0 {
            run.live(TICK);
            let told = transitions(&run);
            probes += told.iter().filter(|t| t.to == BreakerState::HalfOpen).count();
            run.envoy.clear_logs();
        }
        if turn == STREAMS / 2 {
            halfway = pages(&run);
        }
    }
    println!("{probes} probes among them; pages {halfway:?}, {:?}", pages(&run));
    assert!(probes >= 50, "probes were among them: {probes}");
    assert_eq!(pages(&run), halfway, "the second half needed no memory");
    assert_eq!(workers.map(|worker| run.envoy.open_contexts(worker)), [0, 0]);
    // A full report comes every ten seconds.
    run.received();
    run.live(Duration::from_secs(12));
    let in_flight: Vec<u32> = run
        .received()
        .into_iter()
        .filter_map(|up| if let Up::Report(report) = up { Some(report) } else { None })
        .flat_map(|report| report.services)
        .map(|service| {
            service.in_flight + service.endpoints.iter().map(|e| e.in_flight).sum::<u32>()
        })
        .collect();
    assert!(in_flight.len() >= 2, "both workers have told");
    assert_eq!(in_flight.iter().sum::<u32>(), 0);
    // Every probe slot is free again: with the endpoints well, all of them come back.
    let mut last = BTreeMap::new();
    for turn in 0..2_000 {
        let request = run.envoy.worker(turn % 2).request(get("orders"));
        let first = list(&request)[0].clone();
        run.envoy.finish(request, Outcome::ok(first));
        if turn % 5 == 0 {
            run.live(TICK);
        }
        last.extend(transitions(&run).into_iter().map(|t| (t.endpoint, t.to)));
    }
    assert_eq!(last.len(), 3, "each was open: {last:?}");
    assert!(last.values().all(|state| *state == BreakerState::Closed), "{last:?}");
}
