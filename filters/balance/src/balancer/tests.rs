use std::time::Duration;

use pintle_contract::{Patch, Version};
use proptest::prelude::{
    Strategy as _, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use rand::SeedableRng;

use super::*;
use crate::policy::{SlowStart, Strategy, SubsetFallback};
use crate::{Dice, Picks, Request, Sample, Want};

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
fn a_table_that_says_the_same_of_all_builds_nothing_and_others_only_for_requests() {
    let now = Now::from_millis(1_000_000);
    let policy = Policy::default();
    let mut table = endpoints(&[1, 2, 3]);
    let mut balancer = Balancer::new("s", &policy, &table, "", 1, now);
    chosen(&mut balancer, now);
    assert_eq!(balancer.weighed, 1);
    table[1].tags = ["canary".to_owned()].into();
    balancer.update(&policy, &table, "", now);
    chosen(&mut balancer, now);
    assert_eq!(balancer.weighed, 1);
    for weight in [7, 8, 9] {
        table[1].weight = weight;
        balancer.update(&policy, &table, "", now);
    }
    assert_eq!((balancer.weighed, balancer.has_open()), (1, true));
    chosen(&mut balancer, now);
    chosen(&mut balancer, now);
    assert_eq!(balancer.weighed, 2);
    // Another address, and another endpoint.
    table[1].port += 1;
    balancer.update(&policy, &table, "", now);
    assert_eq!(balancer.by_address(table[1].socket_addr()), Some(1));
    table.remove(1);
    balancer.update(&policy, &table, "", now);
    assert_eq!((balancer.index_of("e2"), balancer.index_of("e1")), (Some(1), None));
}

#[test]
fn limits_adapt_where_the_policy_says_so_of_the_same_endpoints() {
    let now = Now::from_millis(1_000_000);
    let table = endpoints(&[1, 2, 3]);
    let adaptive = serde_json::json!({"max_requests": {"adaptive": {"min": 2, "max": 8}}});
    let adaptive: Policy = pintle_settings::read("select", adaptive).unwrap();
    let mut balancer = Balancer::new("s", &Policy::default(), &table, "", 1, now);
    assert_eq!(balancer.limits.len(), 0);
    balancer.update(&adaptive, &table, "", now);
    assert_eq!(balancer.limits.len(), 3);
    balancer.update(&adaptive, &endpoints(&[1, 2, 3, 4]), "", now);
    assert_eq!(balancer.limits.len(), 4);
    balancer.update(&Policy::default(), &table, "", now);
    assert_eq!(balancer.limits.len(), 0);
}

/// An endpoint of a table that patches lead to.
fn listed(id: u8, kind: u8) -> Endpoint {
    let address = SocketAddr::from(([10, 0, kind % 2, id % 16], 80));
    let label = |at: u8| format!("v{}", at % 3);
    Endpoint {
        weight: u32::from(kind % 4),
        zone: if kind & 4 == 0 { "here" } else { "there" }.to_owned(),
        tags: [label(kind), label(id)].into(),
        metadata: [("version".to_owned(), label(kind >> 3))].into(),
        ..Endpoint::new(format!("e{id:03}"), address)
    }
}

fn table_of(kinds: &BTreeMap<u8, u8>) -> Vec<Endpoint> {
    kinds.iter().map(|(id, kind)| listed(*id, *kind)).collect()
}

proptest! {
    /// Whoever comes, goes, moves or changes, and whatever was learned before: a balancer that is
    /// told what changed is one that was told the whole table.
    #[test]
    fn a_patch_comes_to_what_the_whole_table_does(
        first in prop::collection::btree_map(0_u8..40, 0_u8..64, 1..30),
        changes in prop::collection::vec(
            (prop::collection::btree_map(0_u8..40, prop::option::of(0_u8..64), 0..6), 0_usize..30), 1..8),
        strategy in prop::sample::select(vec![Strategy::P2c, Strategy::RingHash, Strategy::RoundRobin]),
    ) {
        let policy = serde_json::json!({"zone_aware": true, "subset": [
            {"header": "x-version", "metadata": "version"}, {"header": "x-tag", "tag": true}],
            "subset_default": {"tags": ["v1"]}, "failover": {"tag": "v2"}});
        let mut policy: Policy = pintle_settings::read("select", policy).unwrap();
        policy.strategy = strategy;
        let mut now = Now::from_millis(1_000_000);
        let new = || Balancer::new("s", &policy, &table_of(&first), "here", 1, now);
        let (mut patched, mut whole) = (new(), new());
        let mut kinds = first.clone();
        for (change, asked) in changes {
            for balancer in [&mut patched, &mut whole] {
                let index = asked % balancer.len().max(1);
                balancer.started(index, now);
                let sample = Sample { latency: Some(Duration::from_millis(7)), ..Sample::default() };
                balancer.observed(index, now, sample);
                balancer.set_verdict(index, Verdict::Blocked);
            }
            now = now.after(Duration::from_millis(100));
            let before = table_of(&kinds);
            for (id, kind) in change {
                match kind {
                    Some(kind) => drop(kinds.insert(id, kind)),
                    None => drop(kinds.remove(&id)),
                }
            }
            let table = table_of(&kinds);
            let known = |it: &Endpoint| table.iter().any(|now| now.id == it.id);
            let patch = Patch {
                service: "s".to_owned(),
                from: Version::default(),
                version: Version::default(),
                endpoints: table.iter().filter(|it| !before.contains(it)).cloned().collect(),
                gone: before.iter().filter(|it| !known(it)).map(|it| it.id.clone()).collect(),
            };
            whole.update(&policy, &table, "here", now);
            if let Some(moves) = patched.moves_by(&patch) {
                patched.amend_by(&patch, &moves, "here", now);
            } else {
                let weightless = |table: &[Endpoint]| table.iter().all(|it| it.weight == 0);
                prop_assert!(weightless(&before) != weightless(&table), "{:?}", patch);
                patched.update(&policy, &table, "here", now);
            }
            let known = |it: &Balancer| {
                let site = |site: &Site| (site.id.clone(), site.address, site.weight, site.local, site.verdict, site.key);
                (it.sites.iter().map(site).collect::<Vec<_>>(), it.field.grains.clone(), it.field.states.clone())
            };
            prop_assert_eq!(known(&patched), known(&whole));
            let orders = |it: &Balancer| {
                (it.by_id.clone(), it.by_address.clone(), it.by_key.clone(), it.by_pin.clone(), it.index.clone())
            };
            prop_assert_eq!(orders(&patched), orders(&whole));
            let loads = |it: &Balancer| format!("{:?} {:?} {}", it.field.loads, it.field.histories, it.active);
            prop_assert_eq!(loads(&patched), loads(&whole));
            prop_assert_eq!(chosen(&mut patched, now), chosen(&mut whole, now));
            for hash in 0..20_u64 {
                let version = format!("v{}", hash % 4);
                let wants = [Want { selector: (hash % 2) as usize, value: version.as_bytes() }];
                let request = Request { hash: Some(hash << 50), subset: &wants, ..Request::default() };
                let pick = |it: &mut Balancer| {
                    let mut picks = Picks::new();
                    let choice = it.pick(&request, now, &mut Dice::seed_from_u64(hash), &mut picks);
                    (choice, picks.as_slice().to_vec())
                };
                prop_assert_eq!(pick(&mut patched), pick(&mut whole));
            }
        }
    }
}
