//! A fleet: a hundred proxies of two workers before thirty endpoints, each with what it has seen
//! itself.
//!
//! Nobody runs to the best: the busiest of the well endpoints stays within one and a half times
//! their mean over a minute, whatever is wrong with the others, and those get their share again
//! when they are well.

use crate::world::{Answer, Behaviour, Chooser, SECOND, World};

const PROXIES: usize = 100;
const ENDPOINTS: usize = 30;
/// Ill from here until [`WELL`]; a minute from [`NOTICED`] on is looked at.
const ILL: u64 = 10 * SECOND;
const NOTICED: u64 = 20 * SECOND;
const WELL: u64 = 80 * SECOND;
/// A minute from here on those that were ill are looked at: no breaker is open any more.
const BACK: u64 = 115 * SECOND;
const MINUTE: u64 = 60 * SECOND;

fn fleet(rate: f64, ill: usize, behaviour: Behaviour) -> World {
    World {
        proxies: PROXIES,
        weights: vec![1; ENDPOINTS],
        rate,
        length: BACK + MINUTE,
        capacity: 8,
        changes: vec![(ILL, 0..ill, behaviour), (WELL, 0..ill, Behaviour::Well)],
        ..World::default()
    }
}

/// Those that come and go.
const RESTLESS: usize = 15;

/// Every other second another one of the first fifteen goes, for five seconds.
fn churn(rate: f64) -> World {
    let mut changes: Vec<_> = (0..37)
        .flat_map(|round| {
            let (at, who) = (round * 2 * SECOND, round as usize % RESTLESS);
            let gone = (at, who..who + 1, Behaviour::Absent);
            [gone, (at + 5 * SECOND, who..who + 1, Behaviour::Well)]
        })
        .collect();
    changes.sort_by_key(|(at, ..)| *at);
    World { changes, ..fleet(rate, 0, Behaviour::Well) }
}

/// Requests of each endpoint in a minute.
fn minute(answers: &[Answer], from: u64) -> Vec<f64> {
    let mut counts = vec![0.0; ENDPOINTS];
    for answer in answers.iter().filter(|a| (from..from + MINUTE).contains(&a.due)) {
        counts[answer.endpoint] += 1.0;
    }
    counts
}

fn mean(counts: &[f64]) -> f64 {
    counts.iter().sum::<f64>() / counts.len() as f64
}

fn most(counts: &[f64]) -> f64 {
    counts.iter().copied().fold(0.0, f64::max)
}

fn least(counts: &[f64]) -> f64 {
    counts.iter().copied().fold(f64::INFINITY, f64::min)
}

/// What one world comes to: the busiest well endpoint, what the ill got in percent, and the least
/// that one of them has of the mean when it is well again.
fn told(name: &str, world: &World, chooser: Chooser, ill: usize) -> (f64, f64, f64) {
    let answers = world.run(chooser, 1);
    let (during, after) = (minute(&answers, NOTICED), minute(&answers, BACK));
    let busiest = most(&during[ill..]) / mean(&during[ill..]);
    let share = during[..ill].iter().sum::<f64>() * 100.0 / during.iter().sum::<f64>();
    let back = if ill == 0 { 1.0 } else { least(&after[..ill]) / mean(&after) };
    println!(
        "| {name} | {:.0} | {chooser:?} | {busiest:.2} | {share:.1} % | {back:.2} |",
        world.rate
    );
    (busiest, share, back)
}

#[test]
fn nobody_runs_to_the_best_and_who_was_ill_comes_back() {
    println!("| scenario | requests/s | chooser | busiest well | to the ill | back |");
    let ill = [
        ("all well", 0, Behaviour::Well),
        ("3 of 30, 20x slower", 3, Behaviour::Slower(20.0)),
        ("15 of 30, 20x slower", 15, Behaviour::Slower(20.0)),
        ("10 of 30, half fail", 10, Behaviour::Fails(0.5)),
        ("10 of 30 hang", 10, Behaviour::Hangs),
        ("3 of 30, 5x slower, two at a time", 3, Behaviour::Choked(5.0, 2)),
        ("3 of 30, 30 % take 400 ms", 3, Behaviour::Stutters(0.3)),
    ];
    // At a request a second each, a worker asks an endpoint once a minute: there is little to go
    // by, and looks are as rare as requests.
    for (rate, least_back) in [(2_000.0, 0.9), (100.0, 0.75)] {
        let mut worlds: Vec<(&str, usize, World)> = Vec::new();
        worlds.extend(ill.iter().map(|(name, n, how)| (*name, *n, fleet(rate, *n, *how))));
        worlds.push(("15 of 30 come and go", RESTLESS, churn(rate)));
        for (name, ill, world) in worlds {
            told(name, &world, Chooser::Native, ill);
            let (busiest, share, back) = told(name, &world, Chooser::Ours, ill);
            assert!(busiest <= 1.5, "{name} at {rate}/s: {busiest:.2}");
            // Who is ill with each answer gets the looks, where there are enough requests to know
            // it by.
            if rate > 1_000.0 && (name.ends_with("20x slower") || name.ends_with("hang")) {
                assert!(share <= 0.5, "{name} at {rate}/s: {share:.2} % to the ill");
            }
            assert!(back >= least_back, "{name} at {rate}/s: {back:.2} of the mean");
        }
    }
}
