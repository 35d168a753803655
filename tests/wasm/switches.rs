//! What operators order of a service as a whole: bypassed or in shadow it goes where Envoy sends
//! it, failed over to the endpoints of a tag.

use pintle_contract::{BreakerState, Health, Up};
use pintle_harness::{Outcome, Request};

use crate::support::{ALL, Run, builder, endpoints, get, list};

const BYPASS: &str = r#"{"bypass": true, "select": {"sticky": {"header": "x-pin"}}}"#;
const SHADOW: &str = r#"{"mode": "shadow",
    "select": {"strategy": "round_robin", "sticky": {"header": "x-pin"}},
    "breaker": {"open": "1s", "jitter_percent": 0}}"#;
const DEAD: &str = "10.0.0.1:80";

/// A request that nothing on the wire may tell from one without the module, `traceparent` aside.
fn untouched(run: &mut Run, outcome: Outcome) {
    let request = get("orders").header("x-pintle-endpoints", "169.254.169.254:80");
    let request = run.envoy.worker(0).request(request);
    assert!(request.continues());
    assert_eq!(list(&request), Vec::<String>::new(), "a client's copy of it goes");
    assert!(request.header("traceparent").is_some(), "traces stay as they are set");
    for state in ["pintle_pin", "pintle_set_cookie"] {
        assert_eq!(request.filter_state(state), None, "{state}");
    }
    run.envoy.finish(request, outcome);
    run.envoy.settle();
}

/// A request to `orders` with the module's list.
fn chosen(run: &mut Run) -> Request {
    let request = run.envoy.worker(0).request(get("orders"));
    run.envoy.finish(request.clone(), Outcome::ok("10.0.0.2:80"));
    request
}

fn count(run: &Run, name: &str) -> u64 {
    run.envoy.metrics().counter(format!("pintle_{name}_total")).unwrap_or(0)
}

/// Breaker transitions that were told, and whether the fleet may hear of them.
fn told(run: &Run) -> Vec<(BreakerState, bool)> {
    let only =
        |up| if let Up::Transition(told) = up { Some((told.to, told.observed)) } else { None };
    run.received().into_iter().filter_map(only).collect()
}

#[test]
fn a_bypassed_service_is_envoys_and_no_breaker_hears_of_it() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), BYPASS);
    for _ in 0..10 {
        untouched(&mut run, Outcome::refused(DEAD));
    }
    assert_eq!((count(&run, "bypassed"), count(&run, "spoofed_header")), (10, 10));
    assert_eq!(told(&run), []);

    run.table("orders", endpoints(3));
    assert_eq!(list(&chosen(&mut run)).len(), 3, "back with the policy");
    assert_eq!(count(&run, "bypassed"), 10);
}

#[test]
fn a_shadow_decides_and_counts_and_envoy_chooses() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), SHADOW);
    for _ in 0..9 {
        untouched(&mut run, Outcome::ok("10.0.0.2:80"));
    }
    assert_eq!((count(&run, "shadow"), count(&run, "shadow_same")), (9, 3), "in turns of three");

    // Where Envoy sends them is what the breakers learn from.
    for _ in 0..5 {
        untouched(&mut run, Outcome::refused(DEAD));
    }
    assert_eq!(told(&run), [(BreakerState::Open, false)], "and the fleet is told nothing");
    let same = count(&run, "shadow_same");
    for _ in 0..6 {
        untouched(&mut run, Outcome::ok(DEAD));
    }
    assert_eq!(count(&run, "shadow_same"), same, "nobody would have gone there");
    assert_eq!(told(&run), []);

    // What Envoy sends there once a probe is due closes it again.
    run.live(std::time::Duration::from_secs(2));
    for _ in 0..4 {
        untouched(&mut run, Outcome::ok(DEAD));
    }
    let states: Vec<_> = told(&run).into_iter().map(|(to, _)| to).collect();
    assert_eq!(states, [BreakerState::HalfOpen, BreakerState::Closed]);

    // A breaker that opened in the shadow is in force when the shadow ends.
    for _ in 0..5 {
        untouched(&mut run, Outcome::refused(DEAD));
    }
    run.table_with("orders", endpoints(3), &SHADOW.replace("shadow", "active"));
    for _ in 0..6 {
        assert!(!list(&chosen(&mut run)).contains(&DEAD.to_owned()));
    }
}

#[test]
fn a_shadow_says_what_it_would_have_refused_or_spread_in_panic() {
    let mut run = Run::start(ALL);
    let mut all = endpoints(3);
    all.iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
    run.table_with("orders", all.clone(), SHADOW);
    untouched(&mut run, Outcome::ok("10.0.0.2:80"));
    run.table_with("orders", all, r#"{"mode": "shadow", "select": {"panic_percent": 0}}"#);
    untouched(&mut run, Outcome::ok("10.0.0.2:80"));
    untouched(&mut run, Outcome::no_healthy_upstream());
    let counts = ["shadow", "shadow_panic", "shadow_refused", "panic", "no_endpoint"];
    assert_eq!(counts.map(|name| count(&run, name)), [3, 1, 2, 0, 0]);
}

/// An address that is no endpoint of the table's is charged to nobody.
#[test]
fn a_shadow_learns_nothing_from_who_is_not_in_its_table() {
    let mut run = Run::start(ALL);
    run.table_with("orders", endpoints(3), SHADOW);
    for _ in 0..10 {
        untouched(&mut run, Outcome::refused("10.9.9.9:80"));
        untouched(&mut run, Outcome::ok("not an address"));
    }
    assert_eq!(told(&run), []);
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

#[test]
fn under_original_dst_a_switch_is_refused_with_its_reason_and_what_was_in_force_stays() {
    let configuration = ALL.replace("\"select\": {}", "\"select\": {\"via\": \"original_dst\"}");
    let mut run = Run::of(builder(&configuration).build().expect("the module starts"));
    for policy in [BYPASS, SHADOW] {
        run.table_with("orders", endpoints(1), policy);
        let request = run.envoy.worker(0).request(get("orders"));
        let state = request.filter_state("envoy.network.transport_socket.original_dst_address");
        assert_eq!(state.as_deref(), Some(b"10.0.0.1:80".as_slice()), "{policy}");
        run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
    }
    let logs = format!("{:?}", run.envoy.logs());
    for key in ["bypass", "mode"] {
        let says = format!("policy of orders refused: {key} must be left out under select.via");
        assert!(logs.contains(&says), "{logs}");
    }
}

#[test]
fn a_failover_moves_a_service_or_says_that_nobody_matches() {
    let mut run = Run::start(ALL);
    let mut all = endpoints(4);
    all[3].tags = ["dr".to_owned()].into();
    let policy = r#"{"select": {"failover": {"tag": "dr"}}}"#;
    run.table_with("orders", all.clone(), policy);
    for _ in 0..10 {
        assert_eq!(list(&chosen(&mut run)), ["10.0.0.4:80"; 3]);
    }
    assert_eq!(count(&run, "failover_missed"), 0);
    all[3].health = Health::Unhealthy;
    run.table_with("orders", all, policy);
    for _ in 0..10 {
        assert!(!list(&chosen(&mut run)).contains(&"10.0.0.4:80".to_owned()));
    }
    assert_eq!(count(&run, "failover_missed"), 10);
    let says = "failover of orders is not applied: nobody eligible matches";
    let logs = run.envoy.logs();
    let told = logs.iter().filter(|line| format!("{line:?}").contains(says)).count();
    assert_eq!(told, 1, "once for a table: {logs:?}");
}

#[test]
fn a_tier_is_used_when_the_one_before_is_gone() {
    let mut run = Run::start(ALL);
    let mut all = endpoints(5);
    all[4].metadata = [("priority".to_owned(), "1".to_owned())].into();
    run.table("orders", all.clone());
    for _ in 0..20 {
        assert!(!list(&chosen(&mut run)).contains(&"10.0.0.5:80".to_owned()));
    }
    all[..4].iter_mut().for_each(|endpoint| endpoint.health = Health::Unhealthy);
    run.table("orders", all);
    for _ in 0..20 {
        assert_eq!(list(&chosen(&mut run))[0], "10.0.0.5:80");
    }
    assert_eq!(count(&run, "panic"), 0, "one of five is enough where its tier takes all");
}
