//! Other ways to be ill than those of `cargo xtask bench tail`, and what is everybody's.

use crate::figures::{Figures, shares};
use crate::world::{Behaviour, Chooser, SECOND, World};

const ILL_FROM: u64 = 2 * SECOND;

/// The mean of six seeds.
fn mean(world: &World, chooser: Chooser, ill: usize) -> Figures {
    let mut mean = Figures::default();
    for seed in 1..=6 {
        let one = Figures::of(&world.run(chooser, seed), ILL_FROM, ill);
        mean.errors += one.errors / 6.0;
        mean.p50 += one.p50 / 6.0;
        mean.p99 += one.p99 / 6.0;
        mean.share += one.share / 6.0;
    }
    mean
}

fn ill(count: usize, behaviour: Behaviour) -> World {
    World { changes: vec![(ILL_FROM, 0..count, behaviour)], breaker: false, ..World::default() }
}

/// Beside native least request: what goes to the ill ones, what fails, p99 in ms.
#[test]
fn who_is_ill_in_another_way_gets_less_than_its_share() {
    let of_200_ms = |world: World| World { median: 200.0, ..world };
    let near = |world: World| World { near: 5, ..world };
    for (name, count, world, of_share, p99) in [
        ("bursts of 500 ms in two seconds", 1, ill(1, Behaviour::Bursts(20.0)), 0.35, 20.0),
        ("bursts, three", 3, ill(3, Behaviour::Bursts(20.0)), 0.40, 60.0),
        ("one path in ten fails", 3, ill(3, Behaviour::Fails(0.1)), 0.30, 20.0),
        ("one path in ten takes 400 ms", 3, ill(3, Behaviour::Stutters(0.1)), 0.75, 401.0),
        ("resets among ones of 200 ms", 1, of_200_ms(ill(1, Behaviour::Fails(1.0))), 0.05, 350.0),
        ("every other answer fails", 1, ill(1, Behaviour::BadEvery(2)), 0.03, 20.0),
        ("every other answer fails, three", 3, ill(3, Behaviour::BadEvery(2)), 0.03, 20.0),
        ("one of three fails", 3, ill(3, Behaviour::BadEvery(3)), 0.05, 20.0),
        ("one of ten fails", 3, ill(3, Behaviour::BadEvery(10)), 0.20, 20.0),
        ("one of three is good", 3, ill(3, Behaviour::GoodEvery(3)), 0.03, 20.0),
        ("five of ten fail half", 5, ill(5, Behaviour::Fails(0.5)), 0.03, 20.0),
        ("nine of ten fail", 9, ill(9, Behaviour::Fails(1.0)), 0.02, 20.0),
        ("slow under load", 3, ill(3, Behaviour::Choked(2.0, 1)), 1.20, 50.0),
        ("three of five in the own zone", 3, near(ill(3, Behaviour::Slower(20.0))), 0.05, 20.0),
    ] {
        let of = |chooser| mean(&world, chooser, count);
        let (ours, native) = (of(Chooser::Ours), of(Chooser::Native));
        println!("{name}: {ours:.2?} native {native:.2?}");
        assert!(ours.share <= native.share * of_share, "{name}: {ours:?} {native:?}");
        assert!(ours.errors <= native.errors * of_share, "{name}: {ours:?} {native:?}");
        assert!(ours.p99 <= p99, "{name}: {ours:?} {native:?}");
    }
}

/// Nobody is ill beside a service that is slow as a whole, from the start or all at once.
#[test]
fn what_befalls_all_makes_nobody_ill() {
    for (rate, median) in [(400.0, 10.0), (5_000.0, 10.0), (5_000.0, 100.0), (30.0, 10.0)] {
        let world = World {
            rate,
            median,
            length: 62 * SECOND,
            changes: vec![(ILL_FROM, 0..10, Behaviour::Slower(20.0))],
            ..World::default()
        };
        let answers = world.run(Chooser::Ours, 1);
        let window = (2_000.0 / rate * 1e9) as u64;
        let from = ILL_FROM + 5 * SECOND + 80 * (median * 1e6) as u64;
        let (least, most) = shares(&world, &answers, from, window.max(2 * SECOND));
        println!("{rate}/s of {median} ms, all slower: {least:.2} to {most:.2}");
        assert!(least >= 0.75 && most <= 1.25, "{rate}/s of {median}: {least} to {most}");
    }
}
