//! Equal endpoints get equal shares, and what was kept out comes back.

use crate::figures::{longest_wait, shares};
use crate::world::{Behaviour, Chooser, MS, SECOND, Stall, World};

/// Ten equal endpoints: the rate, the median in ms, and sigma.
const EQUAL: [(f64, f64, f64); 13] = [
    (400.0, 2.0, 0.2),
    (400.0, 10.0, 0.2),
    (400.0, 10.0, 1.0),
    (1.0, 0.2, 0.2),
    (1.0, 2.0, 0.2),
    (1.0, 2000.0, 0.5),
    (20.0, 0.2, 0.5),
    (20.0, 2000.0, 0.5),
    (50.0, 2000.0, 0.5),
    (400.0, 2000.0, 0.5),
    (5000.0, 0.2, 0.5),
    (5000.0, 20.0, 0.5),
    (5000.0, 2000.0, 0.5),
];
/// Nobody goes unasked for so many turns; or for so many seconds, where there are ten turns a
/// second.
const TURNS: f64 = 3.0;
const STARVED: f64 = 2.0;

#[test]
fn equal_endpoints_get_equal_shares() {
    for (rate, median, sigma) in EQUAL {
        // 200 requests for each.
        let window = (2_000.0 / rate * 1e9) as u64;
        let length = (4 * window).clamp(12 * SECOND, 8000 * SECOND);
        let world = World { rate, median, sigma, length, ..World::default() };
        for seed in 1..=3 {
            let answers = world.run(Chooser::Ours, seed);
            let (wait, _) = longest_wait(&world, &answers, 0);
            // What nobody has answered yet tells nothing.
            let from = if rate * median > 1e6 { (4.0 * median) as u64 * MS } else { 0 };
            let (least, most) = shares(&world, &answers, from, window);
            println!("{rate}/s of {median} ms, {sigma}: {least:.2} to {most:.2}, wait {wait:.1}");
            assert!(least >= 0.75 && most <= 1.25, "{rate}/s of {median} ms: {least} to {most}");
            let each = rate / world.weights.len() as f64;
            let turns = match each * median {
                _ if each >= 10.0 => STARVED * each,
                // Where several wait at each, who has more of them is passed over.
                several if several > 1_000.0 => TURNS * 3.0,
                _ => TURNS,
            };
            assert!(wait <= turns, "{rate}/s of {median} ms: {wait} turns");
        }
    }
}

/// The rate, and the median in ms.
const WEIGHTED: [(f64, f64); 9] = [
    (1.0, 0.2),
    (1.0, 2000.0),
    (30.0, 2.0),
    (400.0, 5.0),
    (300.0, 10.0),
    (300.0, 100.0),
    (3000.0, 0.2),
    (3000.0, 20.0),
    (5000.0, 2.0),
];

#[test]
fn weights_count_once() {
    for (rate, median) in WEIGHTED {
        let length = (12_000.0 / rate * 1e9) as u64;
        let world = World { weights: vec![1, 2, 3], rate, median, length, ..World::default() };
        for seed in 1..=3 {
            let answers = world.run(Chooser::Ours, seed);
            let (least, most) = shares(&world, &answers, 0, length * 9 / 10);
            println!("1:2:3 at {rate}/s of {median} ms: {least:.3} to {most:.3}");
            assert!(least >= 0.9 && most <= 1.1, "{rate}/s of {median} ms: {least} to {most}");
        }
    }
}

/// In the window that begins with `from`, beside the mean of the others.
fn share_of_first(world: &World, from: u64, length: u64, seed: u64) -> f64 {
    let answers = world.run(Chooser::Ours, seed);
    let counted = answers.iter().filter(|a| a.due >= from && a.due < from + length);
    let (first, others): (Vec<_>, Vec<_>) = counted.copied().partition(|a| a.endpoint == 0);
    first.len() as f64 / (others.len() as f64 / (world.weights.len() - 1) as f64)
}

#[test]
fn who_is_well_again_is_back_within_five_seconds() {
    for (count, rate, n) in [(1, 100.0, 10), (3, 400.0, 10), (5, 400.0, 10), (1, 30.0, 3)] {
        for behaviour in [
            Behaviour::Slower(20.0),
            Behaviour::Fails(0.5),
            Behaviour::Fails(1.0),
            Behaviour::Hangs,
        ] {
            for seed in 1..=4 {
                let world = World {
                    weights: vec![1; n],
                    rate,
                    breaker: false,
                    length: 40 * SECOND,
                    changes: vec![
                        (2 * SECOND, 0..count, behaviour),
                        (20 * SECOND, 0..count, Behaviour::Well),
                    ],
                    ..World::default()
                };
                let back = share_of_first(&world, 26 * SECOND, 8 * SECOND, seed);
                println!("{count} of {n} at {rate}/s, {behaviour:?}: {back:.2}");
                assert!(back >= 0.75, "{count} of {n} at {rate}/s, {behaviour:?}: {back}");
            }
        }
    }
}

#[test]
fn one_slow_answer_or_a_stall_starves_nobody() {
    // One in 50 answers takes 400 ms, everywhere.
    for seed in 1..=3 {
        let world =
            World { changes: vec![(0, 0..10, Behaviour::Stutters(0.02))], ..World::default() };
        let answers = world.run(Chooser::Ours, seed);
        let (least, most) = shares(&world, &answers, 0, 5 * SECOND);
        println!("stutters everywhere: {least:.2} to {most:.2}");
        assert!(least >= 0.6 && most <= 1.4, "{least} to {most}");
        for (length, every) in [(50, 1_500), (150, 3_000), (400, 5_000)] {
            let stall = Some(Stall { every: every * MS, length: length * MS });
            let world = World { stall, median: 2.0, ..World::default() };
            let answers = world.run(Chooser::Ours, seed);
            let (least, most) = shares(&world, &answers, 0, 5 * SECOND);
            println!("stalls of {length} ms: {least:.2} to {most:.2}");
            assert!(least >= 0.75 && most <= 1.25, "{least} to {most}");
        }
    }
}

#[test]
fn a_newcomer_gets_its_share_at_once() {
    for seed in 1..=3 {
        let world = World {
            changes: vec![(0, 0..1, Behaviour::Absent), (10 * SECOND, 0..1, Behaviour::Well)],
            ..World::default()
        };
        let back = share_of_first(&world, 10 * SECOND, 5 * SECOND, seed);
        assert!((0.75..1.25).contains(&back), "{back}");
    }
}
