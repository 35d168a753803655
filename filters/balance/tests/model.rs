//! The promises of a pick, for every strategy, over tables, verdicts and seeds chosen by chance.
//!
//! Domains are tiny on purpose: two zones, two versions, weights of 0 to 3, so that every
//! combination meets every other within a few hundred cases.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: what panics here is a failing test"
)]

use std::net::SocketAddr;

use pintle_balance::{
    Balancer, Choice, Dice, Nothing, Picks, Policy, Request, Sample, Verdict, Want,
};
use pintle_contract::{Endpoint, Health, Now};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};

const NOW: Now = Now(1_700_000_000_000_000_000);

fn policy(json: &str) -> Policy {
    pintle_settings::read("select", serde_json::from_str(json).unwrap()).unwrap()
}

fn endpoint(i: usize, weight: u32) -> Endpoint {
    let at = SocketAddr::from(([10, 0, (i / 200) as u8, (i % 200) as u8], 80));
    Endpoint { weight, ..Endpoint::new(format!("e{i:05}"), at) }
}

#[derive(Clone, Debug)]
struct Given {
    weight: u32,
    health: Health,
    verdict: Verdict,
    local: bool,
    version: bool,
}

fn given() -> impl Strategy<Value = Given> {
    let health = prop_oneof![
        4 => Just(Health::Healthy), 1 => Just(Health::Unhealthy), 1 => Just(Health::Draining)
    ];
    let verdict = prop_oneof![
        4 => Just(Verdict::Pass), 2 => Just(Verdict::Blocked), 1 => Just(Verdict::Probe)
    ];
    (0_u32..4, health, verdict, any::<bool>(), any::<bool>()).prop_map(
        |(weight, health, verdict, local, version)| Given {
            weight,
            health,
            verdict,
            local,
            version,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// The one property that everything else hangs on.
    #[test]
    fn only_the_eligible_are_chosen_while_there_are_any(
        given in prop::collection::vec(given(), 0..12),
        strategy in 0_usize..7,
        panic_percent in prop_oneof![Just(0_u32), Just(50), Just(100)],
        attempts in 1_usize..=16,
        subset: bool,
        hash: Option<u64>,
        balance in prop_oneof![Just(0), Just(120)],
        seed: u64,
    ) {
        let policy = policy(&format!(
            r#"{{"strategy":"{}","panic_percent":{panic_percent},"attempts":{attempts},
                "table_size":101,"minimum_ring_size":64,"hash_balance_factor":{balance},
                "subset":[{{"header":"x-version","metadata":"version"}}]}}"#,
            pintle_balance::Strategy::NAMES[strategy].0
        ));
        let endpoints: Vec<Endpoint> = given.iter().enumerate().map(|(i, g)| Endpoint {
            health: g.health,
            zone: if g.local { "a" } else { "b" }.into(),
            metadata: [("version".into(), if g.version { "1" } else { "2" }.into())].into(),
            ..endpoint(i, g.weight)
        }).collect();
        let mut balancer = Balancer::new("s", &policy, &endpoints, "a", seed, NOW);
        for (i, g) in given.iter().enumerate() {
            balancer.set_verdict(i, g.verdict);
        }
        let weightless = given.iter().all(|g| g.weight == 0);
        let weighs = |g: &Given| weightless || g.weight > 0;
        let asked = |g: &&Given| !subset || g.version;
        let pool: Vec<&Given> = given.iter().filter(asked).collect();
        let counted = pool.iter().filter(|g| weighs(g) && g.health != Health::Draining).count();
        let fit = |g: &Given| weighs(g) && g.health == Health::Healthy;
        let eligible = pool.iter().filter(|g| fit(g) && g.verdict != Verdict::Blocked).count();
        let open = pool.iter().filter(|g| fit(g) && g.verdict == Verdict::Pass).count();
        let awake = pool.iter().filter(|g| g.health != Health::Draining).count();
        // Nobody but draining ones: plain Envoy would ask these, too.
        let panicked = if awake > 0 { awake } else { pool.len() };
        let panics = panic_percent > 0
            && !pool.is_empty()
            && (eligible == 0 || eligible * 100 < panic_percent as usize * counted);

        let wants = [Want { selector: 0, value: b"1" }];
        let request = Request {
            hash,
            subset: if subset { &wants } else { &[] },
            ..Request::default()
        };
        let mut rng = Dice::seed_from_u64(seed);
        let mut picks = Picks::new();
        for _ in 0..20 {
            let choice = balancer.pick(&request, NOW, &mut rng, &mut picks);
            let list: Vec<usize> = picks.as_slice().iter().map(|&i| i as usize).collect();
            if given.is_empty() {
                prop_assert_eq!(choice, Choice::None(Nothing::Empty));
                continue;
            }
            if pool.is_empty() {
                prop_assert_eq!(choice, Choice::None(Nothing::Subset));
                continue;
            }
            if panics {
                prop_assert_eq!(choice, Choice::Panic { candidates: panicked as u32 });
                prop_assert_eq!(list.len(), attempts);
                let good = |&i: &usize| awake == 0 || given[i].health != Health::Draining;
                prop_assert!(list.iter().all(good));
            } else if eligible == 0 {
                prop_assert_eq!(choice, Choice::None(Nothing::Ineligible));
                prop_assert!(list.is_empty());
                continue;
            } else {
                prop_assert_eq!(choice, Choice::Eligible { candidates: eligible as u32 });
                let probes = usize::from(picks.probe());
                prop_assert_eq!(list.len(), attempts + probes);
                for (place, &i) in list.iter().enumerate() {
                    let verdict = if place < probes || open == 0 { Verdict::Probe } else { Verdict::Pass };
                    prop_assert!(fit(&given[i]) && given[i].verdict == verdict, "{:?} of {:?}", i, list);
                }
            }
            if subset {
                prop_assert!(list.iter().all(|&i| given[i].version));
            }
            // Distinct as far as it goes.
            let available = if panics { panicked } else { open + usize::from(picks.probe()) };
            let mut distinct = list.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), available.min(list.len()));
            if picks.probe() {
                let left = picks.lose_probe();
                prop_assert_eq!(left, open > 0);
                prop_assert!(picks.as_slice().iter().all(|&i| given[i as usize].verdict == Verdict::Pass));
                prop_assert!(!left || picks.as_slice().len() == attempts);
                if !left {
                    let request = Request { may_probe: false, ..request };
                    let choice = balancer.pick(&request, NOW, &mut rng, &mut picks);
                    prop_assert_eq!(matches!(choice, Choice::Panic { .. }), panic_percent > 0);
                    prop_assert_eq!(picks.first().is_some(), panic_percent > 0);
                }
            }
        }
    }

    /// Counting as things change must come to the same as counting anew.
    #[test]
    fn verdicts_in_any_order_end_where_a_new_balancer_begins(
        given in prop::collection::vec(given(), 1..8),
        turns in prop::collection::vec((0_usize..8, 0_u8..3), 0..60),
        strategy in 0_usize..7,
        panic_percent in prop_oneof![Just(0_u32), Just(50)],
        seed: u64,
    ) {
        let policy = policy(&format!(
            r#"{{"strategy":"{}","panic_percent":{panic_percent}}}"#,
            pintle_balance::Strategy::NAMES[strategy].0
        ));
        let endpoints: Vec<Endpoint> = given.iter().enumerate().map(|(i, g)| Endpoint {
            health: g.health,
            zone: if g.local { "a" } else { "b" }.into(),
            ..endpoint(i, g.weight)
        }).collect();
        let mut moved = Balancer::new("s", &policy, &endpoints, "a", seed, NOW);
        let mut last = vec![Verdict::Pass; given.len()];
        let mut rng = Dice::seed_from_u64(seed);
        let mut picks = Picks::new();
        for (i, verdict) in turns {
            let verdict = [Verdict::Pass, Verdict::Blocked, Verdict::Probe][usize::from(verdict)];
            moved.set_verdict(i, verdict);
            if let Some(place) = last.get_mut(i) {
                *place = verdict;
            }
            moved.pick(&Request::default(), NOW, &mut rng, &mut picks);
        }
        let mut fresh = Balancer::new("s", &policy, &endpoints, "a", seed, NOW);
        for (i, &verdict) in last.iter().enumerate() {
            fresh.set_verdict(i, verdict);
        }
        let a = moved.pick(&Request::default(), NOW, &mut rng, &mut picks);
        let b = fresh.pick(&Request::default(), NOW, &mut rng, &mut picks);
        prop_assert_eq!(a, b);
        moved.update(&policy, &endpoints, "a", NOW);
        prop_assert_eq!(moved.pick(&Request::default(), NOW, &mut rng, &mut picks), b);
    }

    /// Weighted strategies keep to the weights, 1 to 1000, whatever the seed.
    #[test]
    fn shares_follow_the_weights(
        weights in prop::collection::vec(1_u32..=1000, 1..10),
        by_turns: bool,
        seed: u64,
    ) {
        let strategy = if by_turns { "weighted_round_robin" } else { "random" };
        let policy = policy(&format!(r#"{{"strategy":"{strategy}","attempts":1}}"#));
        let endpoints: Vec<_> = weights.iter().enumerate().map(|(i, &w)| endpoint(i, w)).collect();
        let counts = tally(&policy, &endpoints, seed, 5000);
        let sum: u32 = weights.iter().sum();
        for (i, &w) in weights.iter().enumerate() {
            let p = f64::from(w) / f64::from(sum);
            let (got, expect) = (f64::from(counts[i]), p * 5000.0);
            let slack = if by_turns { 2.0 } else { 6.0 * (expect * (1.0 - p)).sqrt() + 6.0 };
            prop_assert!((got - expect).abs() <= slack, "{}: {} for {}", i, got, expect);
        }
    }

    /// With requests that stay a while, what waits evens out by weight.
    #[test]
    fn p2c_evens_out_requests_per_weight(weights in prop::collection::vec(1_u32..=10, 2..10), seed: u64) {
        let policy = policy(r#"{"attempts":1}"#);
        let endpoints: Vec<_> = weights.iter().enumerate().map(|(i, &w)| endpoint(i, w)).collect();
        let mut balancer = Balancer::new("s", &policy, &endpoints, "", seed, NOW);
        let mut rng = Dice::seed_from_u64(seed);
        let mut picks = Picks::new();
        let sum: u32 = weights.iter().sum();
        for _ in 0..sum * 40 {
            balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
            balancer.started(picks.first().unwrap(), NOW);
        }
        for (i, &w) in weights.iter().enumerate() {
            let per_weight = f64::from(balancer.in_flight(i).0) / f64::from(w);
            prop_assert!((34.0..46.0).contains(&per_weight), "{} of {}: {}", w, sum, per_weight);
        }
    }
}

fn tally(policy: &Policy, endpoints: &[Endpoint], seed: u64, picks_made: u32) -> Vec<u32> {
    let mut balancer = Balancer::new("s", policy, endpoints, "", seed, NOW);
    let mut rng = Dice::seed_from_u64(seed);
    let mut counts = vec![0; endpoints.len()];
    let mut picks = Picks::new();
    for _ in 0..picks_made {
        balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
        counts[picks.first().unwrap()] += 1;
    }
    counts
}

#[test]
fn round_robin_gives_equal_turns_whatever_the_weights() {
    let endpoints: Vec<_> =
        [1, 1000, 7].into_iter().enumerate().map(|(i, w)| endpoint(i, w)).collect();
    for seed in 0..5 {
        let counts = tally(&policy(r#"{"strategy":"round_robin"}"#), &endpoints, seed, 300);
        assert_eq!(counts, [100, 100, 100]);
    }
}

#[test]
fn weighted_turns_come_without_bursts() {
    let policy = policy(r#"{"strategy":"weighted_round_robin","attempts":1}"#);
    let endpoints: Vec<_> =
        [5, 1, 1].into_iter().enumerate().map(|(i, w)| endpoint(i, w)).collect();
    let mut balancer = Balancer::new("s", &policy, &endpoints, "", 3, NOW);
    let mut rng = Dice::seed_from_u64(3);
    let mut picks = Picks::new();
    let mut order = String::new();
    for _ in 0..70 {
        balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
        order.push(['a', 'b', 'c'][picks.first().unwrap()]);
    }
    assert!(!order.contains("aaaaaa"), "{order}");
    assert_eq!(order.matches('a').count(), 50, "{order}");
}

#[test]
fn least_request_with_as_many_choices_as_endpoints_finds_the_least() {
    let policy = policy(r#"{"strategy":"least_request","choice_count":10,"attempts":3}"#);
    let endpoints: Vec<_> = (0..8).map(|i| endpoint(i, 1)).collect();
    let mut balancer = Balancer::new("s", &policy, &endpoints, "", 3, NOW);
    for i in 0..8 {
        for _ in 0..(i + 3) % 8 {
            balancer.started(i, NOW);
        }
    }
    let mut picks = Picks::new();
    balancer.pick(&Request::default(), NOW, &mut Dice::seed_from_u64(1), &mut picks);
    assert_eq!(picks.as_slice(), [5, 6, 7]);
}

#[test]
fn least_request_draws_the_less_loaded_of_two() {
    let endpoints: Vec<_> = (0..10).map(|i| endpoint(i, 1)).collect();
    let policy = policy(r#"{"strategy":"least_request","attempts":1}"#);
    let mut balancer = Balancer::new("s", &policy, &endpoints, "", 3, NOW);
    balancer.started(4, NOW);
    let mut rng = Dice::seed_from_u64(9);
    let mut picks = Picks::new();
    let mut counts = [0; 10];
    for _ in 0..10_000 {
        balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
        counts[picks.first().unwrap()] += 1;
    }
    assert_eq!(counts[4], 0);
    assert!(counts.iter().enumerate().all(|(i, &n)| i == 4 || n > 900), "{counts:?}");
}

#[test]
fn ten_thousand_endpoints_with_one_eligible_are_searched_exactly() {
    for (strategy, _) in pintle_balance::Strategy::NAMES {
        let policy = policy(&format!(
            r#"{{"strategy":"{strategy}","panic_percent":0,"maximum_ring_size":20000}}"#
        ));
        let endpoints: Vec<_> = (0..10_000).map(|i| endpoint(i, 1 + i as u32 % 3)).collect();
        let mut balancer = Balancer::new("s", &policy, &endpoints, "", 5, NOW);
        for i in (0..10_000).filter(|&i| i != 7654) {
            balancer.set_verdict(i, Verdict::Blocked);
        }
        let mut rng = Dice::seed_from_u64(5);
        let mut picks = Picks::new();
        for later in [0_u64, 50_000_000, 200_000_000] {
            let request = Request { hash: Some(rng.random()), ..Request::default() };
            let choice = balancer.pick(&request, Now(NOW.0 + later), &mut rng, &mut picks);
            assert_eq!(choice, Choice::Eligible { candidates: 1 }, "{strategy}");
            assert_eq!(picks.as_slice(), [7654; 3], "{strategy}");
        }
    }
}

#[test]
fn one_endpoint_is_always_the_answer() {
    for (strategy, _) in pintle_balance::Strategy::NAMES {
        let policy = policy(&format!(r#"{{"strategy":"{strategy}"}}"#));
        let mut balancer = Balancer::new("s", &policy, &[endpoint(0, 0)], "", 5, NOW);
        let mut picks = Picks::new();
        let mut rng = Dice::seed_from_u64(5);
        let request = Request { hash: Some(5), ..Request::default() };
        assert_eq!(
            balancer.pick(&request, NOW, &mut rng, &mut picks),
            Choice::Eligible { candidates: 1 },
            "all weights are zero, so they count as equal"
        );
        assert_eq!(picks.as_slice(), [0, 0, 0]);
        balancer.update(&policy, &[], "", NOW);
        let nothing = balancer.pick(&request, NOW, &mut rng, &mut picks);
        assert_eq!(nothing, Choice::None(Nothing::Empty));
        assert_eq!(picks.first(), None);
    }
}

#[test]
fn the_same_seed_makes_the_same_choices() {
    let endpoints: Vec<_> = (0..20).map(|i| endpoint(i, 1 + i as u32)).collect();
    for (strategy, _) in pintle_balance::Strategy::NAMES {
        let policy = policy(&format!(r#"{{"strategy":"{strategy}"}}"#));
        let run = || {
            let mut balancer = Balancer::new("s", &policy, &endpoints, "", 11, NOW);
            let mut rng = Dice::seed_from_u64(11);
            let mut picks = Picks::new();
            let mut all = Vec::new();
            for _ in 0..100 {
                balancer.pick(&Request::default(), NOW, &mut rng, &mut picks);
                all.extend_from_slice(picks.as_slice());
                let ticket = balancer.started(picks.first().unwrap(), NOW).unwrap();
                balancer.finished(ticket, NOW, Sample::default());
            }
            all
        };
        assert_eq!(run(), run(), "{strategy}");
    }
}
