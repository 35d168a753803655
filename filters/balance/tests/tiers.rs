//! Tiers by `priority`, and the failover of a whole service.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: what panics here is a failing test"
)]

use std::net::SocketAddr;

use pintle_balance::{
    Balancer, Choice, Dice, Nothing, Picks, Policy, Request, Strategy, Verdict, Want,
};
use pintle_contract::{Endpoint, Health, Now};
use rand::{Rng as _, SeedableRng};

const NOW: Now = Now(1_700_000_000_000_000_000);
fn policy(json: &str) -> Policy {
    pintle_settings::read("select", serde_json::from_str(json).unwrap()).unwrap()
}

/// One endpoint for each digit, which is its priority; with tag and region where it is not 0.
fn tiered(priorities: &str) -> Vec<Endpoint> {
    let endpoint = |(i, priority): (u8, char)| {
        let address = SocketAddr::from(([10, 0, 0, i], 80));
        let mut endpoint = Endpoint::new(format!("e{i}"), address);
        let priority_of = ("priority".into(), priority.to_string());
        endpoint.metadata = [priority_of.clone()].into();
        if priority != '0' {
            endpoint.metadata = [priority_of, ("region".into(), "there".into())].into();
            endpoint.tags = ["dr".into()].into();
        }
        endpoint
    };
    (0..).zip(priorities.chars()).map(endpoint).collect()
}

fn balancer(json: &str, endpoints: &[Endpoint]) -> Balancer {
    Balancer::new("s", &policy(json), endpoints, "", 7, NOW)
}

/// How many of 10,000 picks go first to each, the last choice, and the last list. A hash stands for
/// as many different ones.
fn tally(balancer: &mut Balancer, request: &Request<'_>) -> (Vec<u32>, Choice, Picks) {
    let mut rng = Dice::seed_from_u64(1);
    let mut picks = Picks::new();
    let mut counts = vec![0; balancer.len()];
    let mut last = Choice::None(Nothing::Empty);
    for _ in 0..10_000 {
        let request = Request { hash: request.hash.map(|_| rng.next_u64()), ..*request };
        last = balancer.pick(&request, NOW, &mut rng, &mut picks);
        if let Some(first) = picks.first() {
            counts[first] += 1;
        }
    }
    (counts, last, picks)
}

fn hashed() -> Request<'static> {
    Request { hash: Some(1), ..Request::default() }
}

/// Of the 10,000, in percent.
fn share(counts: &[u32]) -> u32 {
    (counts.iter().sum::<u32>() + 50) / 100
}

fn block(balancer: &mut Balancer, indices: std::ops::Range<usize>) {
    indices.for_each(|index| balancer.set_verdict(index, Verdict::Blocked));
}

#[test]
fn a_tier_takes_all_until_too_few_of_it_are_eligible() {
    for (strategy, _) in Strategy::NAMES {
        let json = format!(r#"{{"strategy": "{strategy}"}}"#);
        let mut balancer = balancer(&json, &tiered("00001111"));
        // Of four eligible ones, times 1.4: all, all (105), 70 %, 35 %, none.
        for (blocked, first) in [100, 100, 70, 35, 0].into_iter().enumerate() {
            block(&mut balancer, 0..blocked);
            let (counts, choice, picks) = tally(&mut balancer, &hashed());
            let got = share(&counts[..4]);
            assert!(got.abs_diff(first) <= 2, "{strategy}, {blocked} blocked: {counts:?}");
            assert!(matches!(choice, Choice::Eligible { .. }), "{strategy}: {choice:?}");
            let tier = |index: &u32| index / 4;
            let list = picks.as_slice();
            assert!(list.iter().all(|i| tier(i) == tier(&list[0])), "retries stay: {picks:?}");
        }
    }
}

#[test]
fn a_tier_that_is_ill_as_a_whole_is_no_panic_while_the_next_takes_all() {
    let mut balancer = balancer("{}", &tiered("00000011"));
    block(&mut balancer, 0..6);
    let (counts, choice, _) = tally(&mut balancer, &Request::default());
    assert_eq!(choice, Choice::Eligible { candidates: 2 });
    assert_eq!(share(&counts[6..]), 100);
    // With one of two left the next tier takes 70 %, and there is nobody for the rest.
    block(&mut balancer, 6..7);
    let (counts, choice, _) = tally(&mut balancer, &Request::default());
    assert_eq!(choice, Choice::Panic { candidates: 8 });
    assert!(counts.iter().all(|&count| count > 900), "{counts:?}");
}

#[test]
fn three_tiers_that_are_short_take_in_proportion_to_what_they_can() {
    let json = r#"{"panic_percent": 0, "strategy": "random"}"#;
    let mut balancer = balancer(json, &tiered("000000000011111111112222222222"));
    for (from, blocked) in [(0, 8), (10, 8), (20, 9)] {
        block(&mut balancer, from..from + blocked);
    }
    let (counts, _, _) = tally(&mut balancer, &Request::default());
    let shares = [share(&counts[..10]), share(&counts[10..20]), share(&counts[20..])];
    let near = |(got, expect): (&u32, u32)| got.abs_diff(expect) <= 2;
    assert!(shares.iter().zip([40, 40, 20]).all(near), "{shares:?}");
}

/// Whoever stands in a lower tier changes no place in the table of the first.
#[test]
fn a_hash_finds_in_a_tier_what_it_finds_without_the_others() {
    for strategy in ["ring_hash", "maglev"] {
        let json = format!(r#"{{"strategy": "{strategy}"}}"#);
        let mut alone = balancer(&json, &tiered("00000"));
        let mut both = balancer(&json, &tiered("00000222"));
        let (mut rng, mut one, mut two) = (Dice::seed_from_u64(5), Picks::new(), Picks::new());
        for hash in 0..2_000 {
            let request = Request { hash: Some(hash * 7919), ..Request::default() };
            alone.pick(&request, NOW, &mut rng, &mut one);
            both.pick(&request, NOW, &mut rng, &mut two);
            assert_eq!(one.as_slice(), two.as_slice(), "{strategy}");
        }
    }
}

#[test]
fn what_is_full_spills_only_when_nobody_of_its_tier_has_room() {
    let mut balancer = balancer(r#"{"max_requests": 1}"#, &tiered("0011"));
    let mut rng = Dice::seed_from_u64(1);
    let mut picks = Picks::new();
    let mut went = Vec::new();
    for _ in 0..4 {
        balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
        went.push(picks.first().unwrap() / 2);
        balancer.started(picks.first().unwrap(), NOW).unwrap();
    }
    assert_eq!(went, [0, 0, 1, 1]);
    let choice = balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
    assert_eq!(choice, Choice::None(Nothing::Full));
}

#[test]
fn tiers_follow_the_table_and_what_is_no_priority_is_the_first() {
    let mut all = tiered("0000");
    all[1].metadata = [("priority".into(), "5".into())].into();
    all[2].metadata = [("priority".into(), "first".into())].into();
    all[3].metadata = [].into();
    let mut balancer = balancer("{}", &all);
    let (counts, ..) = tally(&mut balancer, &Request::default());
    assert!(counts[1] == 0 && counts[2] > 0 && counts[3] > 0, "{counts:?}");
    balancer.update(&policy("{}"), &tiered("1000"), "", NOW);
    let (counts, ..) = tally(&mut balancer, &Request::default());
    assert_eq!(counts[0], 0, "{counts:?}");
    // Nobody of the first tier counts.
    let mut drained = tiered("1000");
    drained[1..].iter_mut().for_each(|endpoint| endpoint.health = Health::Draining);
    balancer.update(&policy("{}"), &drained, "", NOW);
    let (counts, choice, _) = tally(&mut balancer, &Request::default());
    assert_eq!((counts[0], choice), (10_000, Choice::Eligible { candidates: 1 }));
}

#[test]
fn a_failover_moves_everything_while_somebody_eligible_matches() {
    for failover in [r#"{"tag": "dr"}"#, r#"{"region": "there"}"#] {
        for (strategy, _) in Strategy::NAMES {
            let json = format!(r#"{{"strategy": "{strategy}", "failover": {failover}}}"#);
            let mut balancer = balancer(&json, &tiered("000011"));
            let (counts, choice, picks) = tally(&mut balancer, &hashed());
            assert_eq!(share(&counts[4..]), 100, "{strategy}: {counts:?}");
            assert_eq!(choice, Choice::Eligible { candidates: 2 });
            assert!(!picks.failover_missed());
            balancer.set_verdict(4, Verdict::Blocked);
            assert_eq!(tally(&mut balancer, &hashed()).0[5], 10_000, "{strategy}");

            balancer.set_verdict(5, Verdict::Blocked);
            let (counts, _, picks) = tally(&mut balancer, &hashed());
            assert_eq!(share(&counts[..4]), 100, "nobody eligible matches: {counts:?}");
            assert!(picks.failover_missed());
            balancer.set_verdict(5, Verdict::Pass);
            assert_eq!(tally(&mut balancer, &hashed()).0[5], 10_000, "back at once");
            balancer.update(&policy("{}"), &tiered("000011"), "", NOW);
            let (counts, ..) = tally(&mut balancer, &hashed());
            assert_eq!(share(&counts[..4]), 100, "ended: {counts:?}");
        }
    }
}

#[test]
fn a_failover_that_nobody_matches_is_not_applied_and_said() {
    let mut balancer = balancer(r#"{"failover": {"tag": "nobody"}}"#, &tiered("0011"));
    let (counts, choice, picks) = tally(&mut balancer, &Request::default());
    assert_eq!(share(&counts[..2]), 100);
    assert_eq!(choice, Choice::Eligible { candidates: 4 });
    assert!(picks.failover_missed());
}

#[test]
fn a_failover_keeps_subsets_and_moves_sessions() {
    let mut all = tiered("0011");
    for endpoint in all.iter_mut().step_by(2) {
        let version = [("version".into(), "2".into())];
        endpoint.metadata = endpoint.metadata.iter().cloned().chain(version).collect();
    }
    let json = r#"{"failover": {"tag": "dr"}, "sticky": {"header": "x-pin"},
        "subset": [{"header": "x-version", "metadata": "version"}]}"#;
    let mut balancer = balancer(json, &all);
    let wants = [Want { selector: 0, value: b"2" }];
    let second = Request { subset: &wants, ..Request::default() };
    assert_eq!(tally(&mut balancer, &second).0, [0, 0, 10_000, 0]);
    let pinned = Request { pinned: balancer.pin_of(0), ..Request::default() };
    let (counts, _, picks) = tally(&mut balancer, &pinned);
    assert!(counts[0] == 0 && !picks.pinned(), "{counts:?}");
    let pinned = Request { pinned: balancer.pin_of(3), ..Request::default() };
    assert_eq!(tally(&mut balancer, &pinned).0[3], 10_000);
    // The subset has nobody eligible there, and stays.
    balancer.set_verdict(2, Verdict::Blocked);
    let (counts, _, picks) = tally(&mut balancer, &second);
    assert_eq!((counts[0], picks.failover_missed()), (10_000, true), "{counts:?}");
}
