use std::time::Duration;

use proptest::prelude::{Strategy as _, any, prop, prop_assert_eq, prop_oneof, proptest};
use rand::SeedableRng;

use super::*;
use crate::policy::{SlowStart, Strategy, SubsetFallback};
use crate::{Dice, Picks, Request, Sample};

const STRATEGIES: [Strategy; 7] = [
    Strategy::P2c,
    Strategy::LeastRequest,
    Strategy::RoundRobin,
    Strategy::WeightedRoundRobin,
    Strategy::Random,
    Strategy::RingHash,
    Strategy::Maglev,
];

fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
    let endpoint = |(i, &weight): (usize, &u32)| {
        let address = SocketAddr::from(([10, 0, 0, i as u8], 80));
        let mut endpoint = Endpoint::new(format!("e{i}"), address);
        endpoint.weight = weight;
        endpoint.health = if weight % 7 == 6 { Health::Draining } else { Health::Healthy };
        endpoint.zone = if weight % 2 == 0 { "here" } else { "there" }.to_owned();
        endpoint
    };
    weights.iter().enumerate().map(endpoint).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Pick { hash: u64, pinned: bool, may_probe: bool },
    Verdict(usize, u8),
    Answer { index: usize, ms: u64, failed: bool },
    Wait(u64),
    Table(Vec<u32>),
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    prop_oneof![
        8 => (any::<u64>(), prop::bool::weighted(0.1), prop::bool::weighted(0.9))
            .prop_map(|(hash, pinned, may_probe)| Step::Pick { hash, pinned, may_probe }),
        2 => (0..12_usize, 0..3_u8).prop_map(|(index, verdict)| Step::Verdict(index, verdict)),
        2 => (0..12_usize, 1..500_u64, any::<bool>())
            .prop_map(|(index, ms, failed)| Step::Answer { index, ms, failed }),
        1 => (0..5_000_u64).prop_map(Step::Wait),
        1 => prop::collection::vec(0..20_u32, 0..12).prop_map(Step::Table),
    ]
}

proptest! {
    /// What is settled picks as what is narrowed each time.
    #[test]
    fn settling_changes_no_pick(
        strategy in prop::sample::select(STRATEGIES.to_vec()),
        attempts in 1..5_usize,
        slow_start: bool,
        steps in prop::collection::vec(step(), 1..120),
        seed: u64,
    ) {
        let mut policy = Policy { strategy, attempts, ..Policy::default() };
        policy.subset_fallback = SubsetFallback::Any;
        if slow_start {
            let window = Duration::from_secs(2);
            policy.slow_start = Some(SlowStart { window, aggression: 1.0, min_fraction: 0.1 });
        }
        let mut now = Now::from_millis(1_000_000);
        let new = || Balancer::new("s", &policy, &endpoints(&[1, 2, 3]), "here", seed, now);
        let (mut quick, mut careful) = (new(), new());
        let (mut dice, mut same) = (Dice::seed_from_u64(seed), Dice::seed_from_u64(seed));
        let (mut picks, mut others) = (Picks::new(), Picks::new());
        for step in steps {
            match step {
                Step::Pick { hash, pinned, may_probe } => {
                    let pinned = if pinned { quick.pin_of(0) } else { None };
                    let request = Request { hash: Some(hash), pinned, may_probe, ..Request::default() };
                    careful.settled = false;
                    let choice = quick.pick(&request, now, &mut dice, &mut picks);
                    let other = careful.pick(&request, now, &mut same, &mut others);
                    prop_assert_eq!(choice, other);
                    prop_assert_eq!(picks.as_slice(), others.as_slice());
                    prop_assert_eq!((picks.probe(), picks.pinned()), (others.probe(), others.pinned()));
                    if let Some(index) = picks.first() {
                        quick.started(index, now);
                        careful.started(index, now);
                    }
                }
                Step::Verdict(index, verdict) => {
                    let verdict = match verdict {
                        0 => Verdict::Pass,
                        1 => Verdict::Probe,
                        _ => Verdict::Blocked,
                    };
                    quick.set_verdict(index, verdict);
                    careful.set_verdict(index, verdict);
                }
                Step::Answer { index, ms, failed } => {
                    let latency = Some(Duration::from_millis(ms));
                    let sample = Sample { latency, failed, ..Sample::default() };
                    quick.observed(index, now, sample);
                    careful.observed(index, now, sample);
                }
                Step::Wait(ms) => now = now.after(Duration::from_millis(ms)),
                Step::Table(weights) => {
                    quick.update(&policy, &endpoints(&weights), "here", now);
                    careful.update(&policy, &endpoints(&weights), "here", now);
                }
            }
        }
    }
}

#[test]
fn settled_until_a_verdict_or_a_table_says_otherwise() {
    let policy = Policy { strategy: Strategy::Random, ..Policy::default() };
    let now = Now::from_millis(1_000_000);
    let mut balancer = Balancer::new("s", &policy, &endpoints(&[1, 1, 1, 1]), "", 1, now);
    let (mut dice, mut picks) = (Dice::seed_from_u64(1), Picks::new());
    let mut settles = |balancer: &mut Balancer| {
        let before = balancer.settled;
        balancer.pick(&Request::default(), now, &mut dice, &mut picks);
        (before, balancer.settled)
    };
    assert_eq!(settles(&mut balancer), (false, true));
    assert_eq!(settles(&mut balancer), (true, true));
    balancer.set_verdict(0, Verdict::Blocked);
    assert_eq!(settles(&mut balancer), (false, true), "one of four is no panic");
    balancer.set_verdict(0, Verdict::Probe);
    assert_eq!(settles(&mut balancer), (false, false), "somebody is owed a probe");
    balancer.set_verdict(0, Verdict::Pass);
    assert_eq!(settles(&mut balancer), (false, true));
    balancer.update(&policy, &endpoints(&[1]), "", now);
    assert_eq!(settles(&mut balancer), (false, true));
    balancer.set_verdict(0, Verdict::Blocked);
    assert_eq!(settles(&mut balancer), (false, false), "a panic");
}

/// Who is chosen, and among how many, over many requests.
fn chosen(balancer: &mut Balancer, now: Now) -> (Vec<crate::Choice>, Vec<usize>) {
    let (mut dice, mut picks) = (Dice::seed_from_u64(7), Picks::new());
    let (mut choices, mut firsts) = (Vec::new(), Vec::new());
    for hash in 0..400_u64 {
        let request = Request { hash: Some(hash << 40), ..Request::default() };
        choices.push(balancer.pick(&request, now, &mut dice, &mut picks));
        firsts.extend(picks.first());
    }
    firsts.sort_unstable();
    firsts.dedup();
    (choices, firsts)
}

#[test]
fn a_table_of_the_same_endpoints_comes_to_what_a_new_one_does() {
    let now = Now::from_millis(1_000_000);
    let tables: [&[u32]; 6] =
        [&[1, 3, 5, 8], &[6, 3, 5, 8], &[6, 6, 5, 8], &[0, 0, 0, 0], &[2, 4, 8, 10], &[1, 0, 0, 3]];
    for strategy in [Strategy::P2c, Strategy::RoundRobin, Strategy::WeightedRoundRobin] {
        let policy = Policy { strategy, zone_aware: true, ..Policy::default() };
        let mut amended = Balancer::new("s", &policy, &endpoints(&[1; 4]), "here", 1, now);
        for table in tables {
            let table = endpoints(table);
            assert!(amended.amend(&policy, &table, "here", now), "the same endpoints");
            let mut new = Balancer::new("s", &policy, &table, "here", 1, now);
            assert_eq!(chosen(&mut amended, now), chosen(&mut new, now), "{strategy:?} {table:?}");
            let stand = |it: &Balancer| (it.field.states.clone(), it.field.grains.clone());
            assert_eq!(stand(&amended), stand(&new));
        }
    }
}

#[test]
fn a_table_that_says_the_same_of_all_builds_nothing() {
    let now = Now::from_millis(1_000_000);
    let policy = Policy::default();
    let mut table = endpoints(&[1, 2, 3]);
    let mut balancer = Balancer::new("s", &policy, &table, "", 1, now);
    let before = balancer.weighed;
    table[1].tags = ["canary".to_owned()].into();
    balancer.update(&policy, &table, "", now);
    assert_eq!(balancer.weighed, before);
    table[1].weight = 9;
    balancer.update(&policy, &table, "", now);
    assert_eq!(balancer.weighed, before + 1);
    // Another address, and another endpoint.
    table[1].port += 1;
    balancer.update(&policy, &table, "", now);
    assert_eq!(balancer.by_address(table[1].socket_addr()), Some(1));
    table.remove(1);
    balancer.update(&policy, &table, "", now);
    assert_eq!((balancer.index_of("e2"), balancer.index_of("e1")), (Some(1), None));
}
