//! What ill endpoints do to everybody's tail.

use crate::figures::Figures;
use crate::world::{Behaviour, Chooser, MS, SECOND, Stall, World};

/// All is well until then.
const ILL_FROM: u64 = 2 * SECOND;

fn ill(count: usize, of: usize, behaviour: Behaviour) -> World {
    World {
        weights: vec![1; of],
        changes: vec![(ILL_FROM, 0..count, behaviour)],
        ..World::default()
    }
}

/// The worst of six seeds.
fn worst(name: &str, world: &World, chooser: Chooser) -> Figures {
    let count = world.changes.first().map_or(0, |(_, range, _)| range.end);
    let mut worst = Figures::default();
    for seed in 1..=6 {
        worst = worst.worse(Figures::of(&world.run(chooser, seed), ILL_FROM, count));
    }
    println!(
        "{name:<28} {chooser:?}: errors {:.3} %, p50 {:.1} ms, p99 {:.1} ms, share {:.2} %",
        worst.errors, worst.p50, worst.p99, worst.share
    );
    worst
}

#[test]
fn several_slow_ones_stay_below_the_99th_percentile() {
    let well = worst("none", &World::default(), Chooser::Ours);
    for (count, of) in [(1, 10), (2, 10), (3, 10), (5, 10), (2, 3)] {
        let name = format!("{count} of {of}, 20x slower");
        let world = ill(count, of, Behaviour::Slower(20.0));
        worst(&name, &world, Chooser::Native);
        worst(&name, &world, Chooser::Scan);
        let ours = worst(&name, &world, Chooser::Ours);
        assert!(ours.p99 <= 1.2 * well.p99, "{name}: {ours:?}, well {well:?}");
        // Of 8,000 requests, those that found them ill among them; how many these are is chance.
        let share = |seed| Figures::of(&world.run(Chooser::Ours, seed), ILL_FROM, count).share;
        let mean = (1..=12).map(share).sum::<f64>() / 12.0;
        println!("{name:<28} mean {mean:.3} %");
        assert!(mean <= 0.5, "{name}: {mean} % to the ill");
    }
}

#[test]
fn slow_in_other_ways() {
    for behaviour in [Behaviour::Choked(5.0, 2), Behaviour::Stutters(0.3)] {
        for count in [1, 3] {
            let name = format!("{count} of 10, {behaviour:?}");
            let world = ill(count, 10, behaviour);
            worst(&name, &world, Chooser::Native);
            let ours = worst(&name, &world, Chooser::Ours);
            assert!(ours.p99 <= 30.0, "{name}: {ours:?}");
        }
    }
}

#[test]
fn failing_endpoints_are_left_alone() {
    for (count, behaviour, breaker, bound) in [
        (1, Behaviour::Fails(0.5), false, 0.15),
        (3, Behaviour::Fails(0.5), false, 0.30),
        (1, Behaviour::Fails(1.0), true, 0.10),
        (1, Behaviour::Fails(1.0), false, 0.12),
        (3, Behaviour::Fails(1.0), true, 0.30),
        (1, Behaviour::Hangs, true, 0.20),
        (1, Behaviour::Hangs, false, 0.20),
        (3, Behaviour::Hangs, true, 0.30),
    ] {
        let name = format!("{count} of 10, {behaviour:?}, {breaker}");
        let world = World { breaker, ..ill(count, 10, behaviour) };
        worst(&name, &world, Chooser::Native);
        worst(&name, &world, Chooser::Ours);
        // A look fails by chance, so here it is the mean.
        let errors = |seed| Figures::of(&world.run(Chooser::Ours, seed), ILL_FROM, count).errors;
        let mean = (1..=12).map(errors).sum::<f64>() / 12.0;
        println!("{name:<28} mean {mean:.3} %");
        assert!(mean <= bound, "{name}: {mean}");
    }
}

/// A stall makes every endpoint look as slow as the slow one; that must not last.
#[test]
fn a_slow_endpoint_stays_slow_where_the_machine_stalls() {
    for (length_ms, every_ms) in [(50, 1_500), (150, 3_000), (400, 5_000)] {
        for behaviour in
            [Behaviour::Slower(20.0), Behaviour::Choked(5.0, 2), Behaviour::Stutters(0.3)]
        {
            let stall = Some(Stall { every: every_ms * MS, length: length_ms * MS });
            let world = World { stall, ..ill(1, 10, behaviour) };
            let name = format!("{behaviour:?}, {length_ms} ms each {every_ms}");
            let native = worst(&name, &world, Chooser::Native);
            let ours = worst(&name, &world, Chooser::Ours);
            assert!(ours.p99 <= 30.0, "{name}: {ours:?}");
            assert!(ours.share * 3.0 <= native.share, "{name}: {ours:?} {native:?}");
        }
    }
}

#[test]
fn a_healthy_service_is_served_as_by_native_least_request() {
    for capacity in [usize::MAX, 4, 2] {
        let world = World { capacity, length: 32 * SECOND, ..World::default() };
        let native = worst("healthy", &world, Chooser::Native);
        let ours = worst("healthy", &world, Chooser::Ours);
        assert!(ours.p99 <= native.p99 * 1.05, "{capacity}: {ours:?} {native:?}");
        assert!(ours.p50 <= native.p50 * 1.05, "{capacity}: {ours:?} {native:?}");
    }
}

#[test]
fn errors_everywhere_do_not_make_the_traffic_gather() {
    for background in [0.002, 0.01, 0.05] {
        let world = World { capacity: 4, background, breaker: false, ..World::default() };
        let native = worst("errors everywhere", &world, Chooser::Native);
        let ours = worst("errors everywhere", &world, Chooser::Ours);
        assert!(ours.p99 <= native.p99 * 1.25, "{background}: {ours:?} {native:?}");
    }
}
