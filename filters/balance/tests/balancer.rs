//! What narrows a pick, and what survives a change of the table.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: what panics here is a failing test"
)]

use std::net::SocketAddr;
use std::time::Duration;

use pintle_balance::{
    Balancer, Choice, Dice, LoadEntry, Nothing, Picks, Pin, Policy, Request, RequestView, Sample,
    Verdict, Want, Wants,
};
use pintle_contract::{Endpoint, Health, Now};
use rand::SeedableRng;

const NOW: Now = Now(1_700_000_000_000_000_000);

fn policy(json: &str) -> Policy {
    pintle_settings::read("select", serde_json::from_str(json).unwrap()).unwrap()
}

fn endpoint(i: u8) -> Endpoint {
    Endpoint::new(format!("e{i}"), SocketAddr::from(([10, 0, 0, i], 80)))
}

fn endpoints(n: u8) -> Vec<Endpoint> {
    (0..n).map(endpoint).collect()
}

fn balancer(json: &str, endpoints: &[Endpoint]) -> Balancer {
    Balancer::new("s", &policy(json), endpoints, "a", 7, NOW)
}

/// How often each is first in 10,000 picks at one moment, and the last choice.
fn tally(balancer: &mut Balancer, request: &Request<'_>, now: Now) -> (Vec<u32>, Choice) {
    let mut rng = Dice::seed_from_u64(1);
    let mut picks = Picks::new();
    let mut counts = vec![0; balancer.len()];
    let mut last = Choice::None(Nothing::Empty);
    for _ in 0..10_000 {
        last = balancer.pick(request, now, &mut rng, &mut picks);
        if let Some(first) = picks.first() {
            counts[first] += 1;
        }
    }
    (counts, last)
}

fn one(balancer: &mut Balancer, request: &Request<'_>) -> (Option<usize>, Picks) {
    let mut picks = Picks::new();
    balancer.pick(request, NOW, &mut Dice::seed_from_u64(3), &mut picks);
    (picks.first(), picks)
}

fn near(got: u32, expect: u32) -> bool {
    got.abs_diff(expect) <= 250
}

// === zone ===

fn in_zones(zones: &str) -> Vec<Endpoint> {
    let zoned = |(i, z): (u8, char)| Endpoint { zone: z.to_string(), ..endpoint(i) };
    (0..).zip(zones.chars()).map(zoned).collect()
}

#[test]
fn the_own_zone_comes_first() {
    let mut balancer = balancer(r#"{"strategy":"random"}"#, &in_zones("aabbb"));
    let (counts, _) = tally(&mut balancer, &Request::default(), NOW);
    assert_eq!(counts[2..], [0, 0, 0]);
    let (_, picks) = one(&mut balancer, &Request::default());
    assert!(picks.as_slice()[2] >= 2, "the third place leaves the zone: {picks:?}");
}

#[test]
fn what_the_own_zone_lacks_spills_over_in_proportion() {
    let mut zoned = in_zones("aaaabb");
    zoned[4].weight = 3;
    let mut balancer = balancer(r#"{"strategy":"random","panic_percent":0}"#, &zoned);
    balancer.set_verdict(0, Verdict::Blocked);
    balancer.set_verdict(1, Verdict::Blocked);
    let (counts, _) = tally(&mut balancer, &Request::default(), NOW);
    // Half of the zone, times 1.4, stays; the rest goes three to one.
    assert!(near(counts[2] + counts[3], 7000), "{counts:?}");
    assert!(near(counts[4], 2250) && near(counts[5], 750), "{counts:?}");
    balancer.set_verdict(2, Verdict::Blocked);
    balancer.set_verdict(3, Verdict::Blocked);
    let (counts, _) = tally(&mut balancer, &Request::default(), NOW);
    assert_eq!(counts[4] + counts[5], 10_000);
    balancer.set_verdict(0, Verdict::Pass);
    balancer.set_verdict(1, Verdict::Pass);
    balancer.set_verdict(2, Verdict::Pass);
    let (counts, _) = tally(&mut balancer, &Request::default(), Now(NOW.0 + 1_000_000_000));
    assert_eq!(counts[4] + counts[5], 0, "{counts:?}");
}

#[test]
fn zones_can_be_ignored() {
    let mut balancer = balancer(r#"{"strategy":"random","zone_aware":false}"#, &in_zones("aabb"));
    let (counts, _) = tally(&mut balancer, &Request::default(), NOW);
    assert!(counts.iter().all(|&n| near(n, 2500)), "{counts:?}");
}

// === weight, slow start, panic ===

#[test]
fn weight_zero_takes_nothing_outside_panic() {
    for strategy in ["p2c", "least_request", "round_robin", "weighted_round_robin", "random"] {
        let mut three = endpoints(3);
        three[1].weight = 0;
        let mut balancer =
            balancer(&format!(r#"{{"strategy":"{strategy}","attempts":5}}"#), &three);
        let (_, picks) = one(&mut balancer, &Request::default());
        assert!(!picks.as_slice().contains(&1), "{strategy}");
        balancer.set_verdict(0, Verdict::Blocked);
        balancer.set_verdict(2, Verdict::Blocked);
        let (counts, choice) = tally(&mut balancer, &Request::default(), NOW);
        assert_eq!(choice, Choice::Panic { candidates: 3 });
        assert!(counts[1] > 2000, "{strategy}: {counts:?}");
    }
}

#[test]
fn a_newcomer_grows_into_its_share_and_turns_keep_going() {
    for strategy in ["random", "weighted_round_robin"] {
        let mut four = endpoints(4);
        four[3].registered_at = NOW;
        let json = format!(r#"{{"strategy":"{strategy}","slow_start":{{"window":"100s"}}}}"#);
        let mut balancer = balancer(&json, &four);
        for (age_s, share) in [(0_u64, 323_u32), (50, 1429), (100, 2500), (1000, 2500)] {
            let now = NOW.after(Duration::from_secs(age_s));
            let (counts, _) = tally(&mut balancer, &Request::default(), now);
            assert!(near(counts[3], share), "{strategy} after {age_s} s: {counts:?}");
        }
    }
}

#[test]
fn slow_start_does_not_restart_the_turns() {
    let mut four = endpoints(4);
    four[3].registered_at = NOW;
    for strategy in ["round_robin", "weighted_round_robin"] {
        let json = format!(
            r#"{{"strategy":"{strategy}","slow_start":{{"window":"1000s","min_weight_percent":100}}}}"#
        );
        let mut balancer = balancer(&json, &four);
        let mut rng = Dice::seed_from_u64(1);
        let mut picks = Picks::new();
        let mut counts = [0; 4];
        for step in 0..400 {
            let now = NOW.after(Duration::from_millis(110 * step));
            balancer.pick(&Request::default(), now, &mut rng, &mut picks);
            counts[picks.first().unwrap()] += 1;
        }
        assert_eq!(counts, [100; 4], "{strategy}");
    }
}

#[test]
fn below_half_eligible_is_panic_and_draining_ones_count_neither_way() {
    let mut six = endpoints(6);
    six[4].health = Health::Draining;
    six[5].health = Health::Draining;
    let mut balancer = balancer(r#"{"strategy":"random"}"#, &six);
    balancer.set_verdict(0, Verdict::Blocked);
    balancer.set_verdict(1, Verdict::Blocked);
    let (counts, choice) = tally(&mut balancer, &Request::default(), NOW);
    assert_eq!((choice, counts[0]), (Choice::Eligible { candidates: 2 }, 0));
    balancer.set_verdict(2, Verdict::Blocked);
    let (counts, choice) = tally(&mut balancer, &Request::default(), NOW);
    assert_eq!(choice, Choice::Panic { candidates: 4 });
    assert!(counts[..4].iter().all(|&n| near(n, 2500)) && counts[4] == 0, "{counts:?}");
}

#[test]
fn without_panic_nothing_eligible_is_nothing() {
    let mut balancer = balancer(r#"{"panic_percent":0}"#, &endpoints(2));
    balancer.set_verdict(0, Verdict::Blocked);
    assert_eq!(one(&mut balancer, &Request::default()).0, Some(1));
    balancer.set_verdict(1, Verdict::Blocked);
    let (_, choice) = tally(&mut balancer, &Request::default(), NOW);
    assert_eq!(choice, Choice::None(Nothing::Ineligible));
}

// === probe ===

#[test]
fn a_probe_comes_first_until_it_is_lost() {
    let mut balancer = balancer("{}", &endpoints(4));
    balancer.set_verdict(2, Verdict::Probe);
    let (first, mut picks) = one(&mut balancer, &Request::default());
    assert_eq!((first, picks.probe(), picks.as_slice().len()), (Some(2), true, 4));
    assert!(picks.lose_probe());
    assert_eq!(picks.as_slice().len(), 3);
    assert!(!picks.as_slice().contains(&2) && !picks.probe());
    balancer.set_verdict(2, Verdict::Blocked);
    assert!(!one(&mut balancer, &Request::default()).1.probe());
}

#[test]
fn a_key_probes_its_own_endpoint_only() {
    let mut balancer = balancer(r#"{"strategy":"maglev","table_size":101}"#, &endpoints(4));
    let owner =
        |b: &mut Balancer, hash| one(b, &Request { hash: Some(hash), ..Request::default() });
    let owners: Vec<_> = (0..50).map(|h| owner(&mut balancer, h).0).collect();
    balancer.set_verdict(2, Verdict::Probe);
    for (hash, before) in (0..50).zip(owners) {
        let (first, picks) = owner(&mut balancer, hash);
        assert_eq!((first, picks.probe()), (before, before == Some(2)));
        assert_eq!(picks.as_slice().len(), 3 + usize::from(picks.probe()));
    }
}

// === sticky ===

#[test]
fn a_draining_endpoint_keeps_its_sessions_and_gets_nothing_new() {
    let mut three = endpoints(3);
    three[1].health = Health::Draining;
    let mut balancer = balancer("{}", &three);
    let pinned = Request { pinned: balancer.pin_of(1), ..Request::default() };
    let (first, picks) = one(&mut balancer, &pinned);
    assert_eq!((first, picks.pinned()), (Some(1), true));
    assert!(!picks.as_slice()[1..].contains(&1));
    assert_eq!(tally(&mut balancer, &Request::default(), NOW).0[1], 0);
}

#[test]
fn a_session_with_a_draining_endpoint_is_retried_everywhere_else() {
    let strategies = ["p2c", "least_request", "round_robin", "random", "ring_hash", "maglev"];
    for (n, strategy) in [2, 3].into_iter().flat_map(|n| strategies.map(|s| (n, s))) {
        let mut some = endpoints(n);
        some[1].health = Health::Draining;
        let mut balancer = balancer(&format!(r#"{{"strategy":"{strategy}"}}"#), &some);
        let pinned = Request { pinned: balancer.pin_of(1), hash: Some(7), ..Request::default() };
        let (first, picks) = one(&mut balancer, &pinned);
        assert_eq!(first, Some(1));
        let others = (0..u32::from(n)).filter(|i| picks.as_slice().contains(i)).count();
        assert_eq!(others, usize::from(n), "{strategy} of {n}: {:?}", picks.as_slice());
    }
}

#[test]
fn a_session_leaves_an_open_breaker_and_an_unhealthy_endpoint() {
    let mut three = endpoints(3);
    let mut balancer = balancer("{}", &three);
    let pinned = Request { pinned: balancer.pin_of(1), ..Request::default() };
    balancer.set_verdict(1, Verdict::Blocked);
    let (first, picks) = one(&mut balancer, &pinned);
    assert!(first != Some(1) && !picks.pinned());
    balancer.set_verdict(1, Verdict::Pass);
    assert_eq!(one(&mut balancer, &pinned).0, Some(1));
    three[1].health = Health::Unhealthy;
    balancer.update(&policy("{}"), &three, "a", NOW);
    assert_ne!(one(&mut balancer, &pinned).0, Some(1));
}

#[test]
fn a_forged_pin_selects_nobody() {
    let mut balancer = balancer("{}", &endpoints(3));
    let forged = Request { pinned: Pin::parse(b"0123456789abcdef"), ..Request::default() };
    let (first, picks) = one(&mut balancer, &forged);
    assert!(first.is_some() && !picks.pinned());
    let shown = balancer.pin_of(0).unwrap().to_string();
    assert!(shown.len() == 16 && !shown.contains("10.0.0"), "{shown}");
}

#[test]
fn a_pin_is_read_where_the_policy_keeps_it() {
    let balancer = balancer("{}", &endpoints(1));
    let pin = Pin::parse(b"0123456789abcdef");
    let cookie = policy(r#"{"sticky":{"cookie":{"name":"p"}}}"#);
    let header = policy(r#"{"sticky":{"header":"X-Pin"}}"#);
    let seen = Headers(&[("cookie", "a=b; p=\"0123456789abcdef\""), ("x-pin", "0123456789abcdef")]);
    assert_eq!((Pin::read(&cookie, &seen), Pin::read(&header, &seen)), (pin, pin));
    assert_eq!(Pin::read(&cookie, &Headers(&[])), None);
    assert_eq!(Pin::read(balancer.policy(), &seen), None);
}

// === subset ===

struct Headers(&'static [(&'static str, &'static str)]);

impl RequestView for Headers {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes())
    }

    fn source_address(&self) -> Option<&[u8]> {
        None
    }
}

fn tagged(i: u8, version: &str, tags: &[&str]) -> Endpoint {
    Endpoint {
        metadata: [("version".into(), version.into())].into(),
        tags: tags.iter().map(|t| (*t).into()).collect(),
        ..endpoint(i)
    }
}

const SUBSET: &str = r#""strategy":"random","subset":[{"header":"x-version","metadata":"version"},
    {"header":"x-tag","tag":true},{"metadata":"zone"}]"#;

fn tagged_four() -> Vec<Endpoint> {
    vec![
        tagged(0, "v1", &["canary", "eu"]),
        tagged(1, "v1", &["eu"]),
        tagged(2, "v2", &["canary"]),
        tagged(3, "v2", &[]),
    ]
}

#[track_caller]
fn check_subset(extra: &str, headers: &'static [(&'static str, &'static str)], expect: &[usize]) {
    let policy = policy(&format!("{{{SUBSET}{extra}}}"));
    let mut balancer = Balancer::new("s", &policy, &tagged_four(), "", 7, NOW);
    let view = Headers(headers);
    let wants = Wants::read(&policy, &view);
    let request = Request { subset: wants.as_slice(), ..Request::default() };
    let (counts, choice) = tally(&mut balancer, &request, NOW);
    let got: Vec<usize> = (0..4).filter(|&i| counts[i] > 0).collect();
    assert_eq!(got, expect, "{headers:?} {choice:?}");
    if expect.is_empty() {
        assert_eq!(choice, Choice::None(Nothing::Subset));
    }
}

#[test]
fn a_request_gets_what_it_asks_for() {
    check_subset("", &[], &[0, 1, 2, 3]);
    check_subset("", &[("x-version", "v1")], &[0, 1]);
    check_subset("", &[("x-version", "")], &[0, 1, 2, 3]);
    check_subset("", &[("x-tag", "canary")], &[0, 2]);
    check_subset("", &[("x-tag", "canary"), ("x-version", "v2")], &[2]);
}

#[test]
fn what_nobody_has_leads_to_the_fallback() {
    const BOTH: &[(&str, &str)] = &[("x-tag", "eu"), ("x-version", "v2")];
    const ODD: &[(&str, &str)] = &[("x-version", "v3")];
    for headers in [ODD, BOTH] {
        check_subset("", headers, &[]);
        check_subset(r#","subset_fallback":"any""#, headers, &[0, 1, 2, 3]);
        let default = r#","subset_fallback":"default","subset_default":{"metadata":{"version":"v1"},"tags":["canary"]}"#;
        check_subset(default, headers, &[0]);
        let nobody = r#","subset_fallback":"default","subset_default":{"tags":["none"]}"#;
        check_subset(nobody, headers, &[]);
    }
}

#[test]
fn more_combinations_than_pools_are_still_served() {
    let many: Vec<Endpoint> = (0..200).map(|i| tagged(i, &format!("v{i}"), &[])).collect();
    let mut balancer = balancer(&format!("{{{SUBSET}}}"), &many);
    for round in 0..2 {
        for i in 0..200 {
            let value = format!("v{i}");
            let want = [Want { selector: 0, value: value.as_bytes() }];
            let request = Request { subset: &want, ..Request::default() };
            assert_eq!(one(&mut balancer, &request).0, Some(i), "round {round}");
        }
    }
    balancer.set_verdict(199, Verdict::Blocked);
    let want = [Want { selector: 0, value: b"v199" }];
    let request = Request { subset: &want, ..Request::default() };
    let (_, choice) = tally(&mut balancer, &request, NOW);
    assert_eq!(choice, Choice::Panic { candidates: 1 }, "a subset panics by itself");
}

// === load ===

/// All answer within 10 ms.
fn answered(balancer: &mut Balancer) {
    for _ in 0..20 {
        for index in 0..balancer.len() {
            let latency = Some(Duration::from_millis(10));
            balancer.observed(index, NOW, Sample { latency, ..Sample::default() });
        }
    }
}

/// Answers after 100 ms, so often that it is ill.
fn fall_ill(balancer: &mut Balancer, index: usize) {
    for answer in 1..4 {
        let latency = Some(Duration::from_millis(100));
        let now = NOW.after(Duration::from_millis(answer * 200));
        balancer.observed(index, now, Sample { latency, ..Sample::default() });
    }
}

#[test]
fn an_ill_endpoint_gets_nothing_but_looks() {
    let failed = Sample { failed: true, ..Sample::default() };
    let busy = Sample { retry_after: Some(Duration::from_secs(5)), ..Sample::default() };
    let ways: [&dyn Fn(&mut Balancer); 3] = [
        &|balancer| fall_ill(balancer, 2),
        &|balancer| balancer.observed(2, NOW, failed),
        &|balancer| balancer.observed(2, NOW, busy),
    ];
    for (number, falls_ill) in ways.into_iter().enumerate() {
        let mut balancer = balancer("{}", &endpoints(4));
        answered(&mut balancer);
        falls_ill(&mut balancer);
        assert_eq!(tally(&mut balancer, &Request::default(), NOW).0[2], 0, "{number}");
        // Later one request looks, and has no answer yet; who asked for 5 s is back.
        let later = NOW.after(Duration::from_secs(6));
        let (counts, _) = tally(&mut balancer, &Request::default(), later);
        assert_eq!(counts[2] == 1, number < 2, "{number}: {counts:?}");
    }
}

#[test]
fn where_all_are_ill_the_cheapest_are_used() {
    let mut balancer = balancer("{}", &endpoints(4));
    answered(&mut balancer);
    let busy = |s| Sample { retry_after: Some(Duration::from_secs(s)), ..Sample::default() };
    for (index, seconds) in [(0, 30), (1, 5), (2, 40), (3, 60)] {
        balancer.observed(index, NOW, busy(seconds));
    }
    assert_eq!(tally(&mut balancer, &Request::default(), NOW).0[1], 10_000);
}

#[test]
fn a_stream_whose_head_came_costs_p2c_nothing_and_counts_as_active() {
    let mut two = balancer("{}", &endpoints(2));
    answered(&mut two);
    let tickets: Vec<_> = (0..8).map(|_| two.started(0, NOW).unwrap()).collect();
    assert_eq!(tally(&mut two, &Request::default(), NOW).0[0], 0);
    for &ticket in &tickets {
        two.answered(ticket, NOW, Sample::default());
    }
    assert_eq!(two.in_flight(0), (8, 0));
    let later = NOW.after(Duration::from_secs(30));
    assert_eq!(tally(&mut two, &Request::default(), later).0, [5_000, 5_000]);
    two.update(&policy(r#"{"strategy":"least_request"}"#), &endpoints(2), "a", NOW);
    assert_eq!(tally(&mut two, &Request::default(), NOW).0[0], 0);
    for ticket in tickets {
        two.ended(ticket);
    }
    assert_eq!(two.in_flight(0), (0, 0));
}

#[test]
fn what_another_worker_has_in_flight_counts_and_vanishes_with_it() {
    let least_request = r#"{"strategy":"least_request"}"#;
    let mut balancer = balancer(least_request, &endpoints(3));
    let entry = LoadEntry {
        key: balancer.key_of(1).unwrap(),
        in_flight: 5,
        waiting: 5,
        ..LoadEntry::default()
    };
    balancer.set_remote_load(1, &[entry], NOW);
    balancer.set_remote_load(2, &[entry, LoadEntry { key: 99, ..entry }], NOW);
    assert_eq!(balancer.in_flight(1), (0, 10));
    assert_eq!(tally(&mut balancer, &Request::default(), NOW).0[1], 0);
    // Not by `p2c`, whose workers would all avoid it until the next tick.
    balancer.update(&policy("{}"), &endpoints(4), "a", NOW);
    assert!(tally(&mut balancer, &Request::default(), NOW).0[1] > 0);
    assert_eq!(balancer.in_flight(1), (0, 10));
    balancer.set_remote_load(1, &[], NOW);
    assert_eq!(balancer.in_flight(1), (0, 5));
    balancer.remove_worker(2);
    assert_eq!(balancer.in_flight(1), (0, 0));
}

#[test]
fn a_request_finds_its_endpoint_again_across_updates() {
    let mut balancer = balancer("{}", &endpoints(3));
    let first = balancer.started(0, NOW).unwrap();
    let last = balancer.started(2, NOW).unwrap();
    let mut without_first = endpoints(3);
    without_first.remove(0);
    without_first[1].weight = 9;
    balancer.update(&policy("{}"), &without_first, "a", NOW);
    assert_eq!((balancer.resolve(first), balancer.resolve(last)), (None, Some(1)));
    assert_eq!(balancer.in_flight(1), (1, 0));
    balancer.finished(first, NOW, Sample::default());
    balancer.abandoned(last, NOW, Some(Duration::from_secs(3)));
    assert_eq!(balancer.in_flight(1), (0, 0));
    assert!(balancer.local_load(NOW, true).next().is_none(), "an abandoned request is no sample");
}

/// Whatever the decay time is.
#[test]
fn what_is_told_names_each_endpoint_once() {
    for decay in ["100ms", "10s"] {
        let mut balancer = balancer(&format!(r#"{{"ewma_decay": "{decay}"}}"#), &endpoints(3));
        for second in 0..6 {
            // All are looked through in the middle between two requests.
            let [now, then] =
                [0, 500].map(|ms| NOW.after(Duration::from_millis(second * 1000 + ms)));
            let ticket = balancer.started(1, now).unwrap();
            balancer.finished(ticket, now, Sample::default());
            let told: Vec<usize> = balancer.local_load(now, false).map(|(at, _)| at).collect();
            assert_eq!(told, [1], "{decay}, second {second}");
            assert!(balancer.local_load(then, true).count() <= 1);
        }
        let later = NOW.after(Duration::from_secs(20));
        assert_eq!(balancer.local_load(later, true).count(), 0, "{decay}");
    }
}

#[test]
fn one_that_left_and_came_back_is_not_charged_for_its_former_life() {
    let mut balancer = balancer("{}", &endpoints(2));
    let old = balancer.started(1, NOW).unwrap();
    balancer.update(&policy("{}"), &endpoints(1), "a", NOW);
    balancer.update(&policy("{}"), &endpoints(2), "a", NOW);
    let new = balancer.started(1, NOW).unwrap();
    balancer.finished(old, NOW, Sample::default());
    assert_eq!(balancer.in_flight(1), (1, 0));
    balancer.finished(new, NOW, Sample::default());
    assert_eq!(balancer.in_flight(1), (0, 0));
}

#[test]
fn history_and_verdict_stay_with_the_id() {
    let mut balancer = balancer("{}", &endpoints(3));
    balancer.set_verdict(1, Verdict::Blocked);
    answered(&mut balancer);
    fall_ill(&mut balancer, 2);
    let mut changed = endpoints(4);
    changed.remove(0);
    changed[1].weight = 3;
    changed[1].port = 8080;
    balancer.update(&policy("{}"), &changed, "a", NOW);
    assert_eq!(balancer.index_of("e1"), Some(0));
    assert_eq!(balancer.by_address(SocketAddr::from(([10, 0, 0, 2], 8080))), Some(1));
    assert_eq!(balancer.by_address(SocketAddr::from(([10, 0, 0, 2], 80))), None);
    let (counts, _) = tally(&mut balancer, &Request::default(), NOW);
    assert_eq!(counts, [0, 0, 10_000]);
}

// === hash ===

#[test]
fn without_a_key_a_hashing_strategy_chooses_by_load() {
    for strategy in ["ring_hash", "maglev"] {
        let mut balancer = balancer(&format!(r#"{{"strategy":"{strategy}"}}"#), &endpoints(4));
        answered(&mut balancer);
        fall_ill(&mut balancer, 2);
        let (counts, _) = tally(&mut balancer, &Request::default(), NOW);
        assert!(counts[2] == 0 && counts[0] > 2000, "{counts:?}");
        let request = Request { hash: Some(77), ..Request::default() };
        let (counts, _) = tally(&mut balancer, &request, NOW);
        assert!(counts.contains(&10_000), "{counts:?}");
    }
}

#[test]
fn a_ring_survives_an_update_that_does_not_touch_it() {
    let mut many = endpoints(9);
    let mut balancer = balancer(r#"{"strategy":"ring_hash"}"#, &many);
    let owners = |b: &mut Balancer| -> Vec<String> {
        (0..300_u64)
            .map(|k| {
                let hash = Some(k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let first = one(b, &Request { hash, ..Request::default() }).0.unwrap();
                b.id_of(first).unwrap().to_owned()
            })
            .collect()
    };
    let before = owners(&mut balancer);
    many[0].tags = ["new".into()].into();
    balancer.update(&policy(r#"{"strategy":"ring_hash"}"#), &many, "a", NOW);
    assert_eq!(owners(&mut balancer), before);
    many.remove(0);
    balancer.update(&policy(r#"{"strategy":"ring_hash"}"#), &many, "a", NOW);
    let after = owners(&mut balancer);
    let moved = before.iter().zip(&after).filter(|(b, a)| b != a).count();
    let had_to = before.iter().filter(|b| *b == "e0").count();
    assert!(moved >= had_to && moved <= 2 * had_to + 15, "{moved}, {had_to}");
    balancer.update(&policy(r#"{"strategy":"maglev"}"#), &many, "a", NOW);
    assert_ne!(owners(&mut balancer), after);
}
