//! What a limit leaves of the capacity while more comes than all can take.

use pintle_balance::{MaxRequests, Policy};

use crate::figures::Figures;
use crate::world::{Behaviour, Chooser, SECOND, World};

const ENDPOINTS: usize = 3;
/// What each works on side by side.
const CAPACITY: usize = 8;
const MEDIAN: f64 = 40.0;
const FROM: u64 = 4 * SECOND;

/// The part of the capacity that is used, one and a half times of which is asked for.
fn used(workers: usize, max_requests: MaxRequests, seed: u64) -> f64 {
    let all = (ENDPOINTS * CAPACITY) as f64 * 1e3 / MEDIAN;
    let world = World {
        workers,
        weights: vec![1; ENDPOINTS],
        rate: 1.5 * all,
        median: MEDIAN,
        capacity: CAPACITY,
        length: 14 * SECOND,
        policy: Policy { attempts: 1, max_requests, ..Policy::default() },
        ..World::default()
    };
    let answers = world.run(Chooser::Ours, seed);
    let ended = answers.iter().filter(|a| (FROM..world.length).contains(&(a.due + a.took)));
    ended.count() as f64 / 10.0 / all
}

#[test]
fn workers_that_are_all_short_of_room_share_it() {
    let fixed = MaxRequests::Fixed(CAPACITY as u32);
    let adaptive = MaxRequests::Adaptive { min: 4, max: 1_000 };
    for (workers, limit, least) in
        [(1, fixed, 0.90), (2, fixed, 0.89), (4, fixed, 0.87), (2, adaptive, 0.94)]
    {
        for seed in 1..=3 {
            let used = used(workers, limit, seed);
            println!("{workers} workers, {limit:?}: {used:.3} of the capacity");
            assert!(used >= least, "{workers} workers, {limit:?}: {used:.3}");
        }
    }
}

/// p99 at half of what all serve, while the first has room for two; the mean of eight seeds.
fn p99_beside_a_choked_one(chooser: Chooser, workers: usize, max_requests: MaxRequests) -> f64 {
    let world = World {
        workers,
        weights: vec![1; ENDPOINTS],
        rate: 300.0,
        median: MEDIAN,
        capacity: CAPACITY,
        length: 24 * SECOND,
        changes: vec![(0, 0..1, Behaviour::Choked(1.0, 2))],
        policy: Policy { attempts: 1, max_requests, ..Policy::default() },
        ..World::default()
    };
    let p99 = |seed| Figures::of(&world.run(chooser, seed), FROM, 1).p99;
    (1..=8).map(p99).sum::<f64>() / 8.0
}

/// Two workers, each of which counts its own, do better than one that counts all.
#[test]
fn beside_a_choked_one_requests_wait_less_than_by_a_full_scan() {
    let exact = p99_beside_a_choked_one(Chooser::Scan, 1, MaxRequests::Any);
    let fixed = MaxRequests::Fixed(CAPACITY as u32);
    for limit in [MaxRequests::Any, fixed, MaxRequests::Adaptive { min: 4, max: 1_000 }] {
        let ours = p99_beside_a_choked_one(Chooser::Ours, 2, limit);
        println!("beside a choked one, {limit:?}: {ours:.0} ms, {exact:.0} by a full scan");
        assert!(ours <= exact, "{limit:?}: {ours:.1}, {exact:.1}");
    }
}
