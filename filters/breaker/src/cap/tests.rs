use proptest::prelude::*;

use super::*;

fn severity(origin: Origin, trips: u32, since: u64) -> Severity {
    Severity { origin, trips, since: Reverse(Now(since)) }
}

#[test]
fn the_share_is_rounded_down() {
    for (endpoints, percent, expect) in [
        (0, 50, 0),
        (1, 50, 0),
        (1, 99, 0),
        (1, 100, 1),
        (2, 50, 1),
        (3, 50, 1),
        (3, 34, 1),
        (3, 33, 0),
        (10, 0, 0),
        (10, 10, 1),
        (10, 100, 10),
        (10_000, 50, 5_000),
        (10, 255, 10),
        (usize::MAX, 100, usize::MAX),
    ] {
        assert_eq!(allowed(endpoints, percent), expect, "{percent} % of {endpoints}");
    }
}

#[test]
fn a_single_endpoint_is_not_ejected_at_half() {
    let mut open = vec![(severity(Origin::Forced, 9, 1), 0)];
    honour(&mut open, 1, 50);
    assert_eq!(open, []);
}

#[test]
fn the_worst_stay_open() {
    // Each line is worse than the next.
    let order = [
        severity(Origin::Forced, 0, 900),
        severity(Origin::Own, 3, 900),
        severity(Origin::Own, 2, 100),
        severity(Origin::Own, 2, 200),
        severity(Origin::Advised, 9, 1),
        severity(Origin::Fleet, 9, 1),
    ];
    for honoured in 0..=order.len() {
        let mut open: Vec<_> = order.iter().rev().zip(0..).map(|(s, at)| (*s, at)).collect();
        honour(&mut open, 100, u8::try_from(honoured).unwrap());
        let positions: Vec<u32> = open.iter().map(|&(_, at)| at).collect();
        let expect: Vec<u32> = (6 - u32::try_from(honoured).unwrap()..6).collect();
        assert_eq!(positions, expect, "{honoured} may stay open");
    }
}

#[test]
fn retry_after_is_the_first_probes_time_in_whole_seconds() {
    let now = Now::from_millis(10_000);
    let blocked = |millis| Verdict::Blocked { until: Now::from_millis(millis) };
    let limit = Duration::from_secs(30);
    for (verdicts, expect) in [
        (vec![], 30),
        (vec![blocked(12_001), blocked(40_000)], 3),
        (vec![blocked(12_000)], 2),
        (vec![blocked(9_000)], 1),
        (vec![blocked(900_000)], 30),
        (vec![blocked(900_000), Verdict::ProbeOwed], 1),
    ] {
        let found = retry_after(verdicts.clone(), now, limit);
        assert_eq!(found, Duration::from_secs(expect), "{verdicts:?}");
    }
}

proptest! {
    #[test]
    fn never_more_than_allowed_and_the_same_in_every_worker(
        open in prop::collection::vec((0u8..4, 0u32..3, 0u64..3), 0..40),
        healthy in 0usize..40,
        percent in 0u8..=100,
        seed in any::<u64>(),
    ) {
        let origins = [Origin::Fleet, Origin::Advised, Origin::Own, Origin::Forced];
        let all: Vec<_> = open
            .iter()
            .zip(0u32..)
            .map(|(&(o, trips, since), at)| (severity(origins[usize::from(o)], trips, since), at))
            .collect();
        let endpoints = all.len() + healthy;
        let mut one = all.clone();
        honour(&mut one, endpoints, percent);
        prop_assert!(one.len() * 100 <= usize::from(percent) * endpoints);
        prop_assert_eq!(one.len(), all.len().min(allowed(endpoints, percent)));
        // No dropped one is worse than a kept one.
        let least = one.iter().map(|(s, _)| *s).min();
        let dropped = all.iter().filter(|entry| !one.contains(entry));
        prop_assert!(dropped.clone().all(|(s, _)| least.is_none_or(|least| *s <= least)));
        // The order in which a worker lists them does not matter.
        let mut two = all;
        two.sort_by_key(|&(_, at)| (u64::from(at) + 1).wrapping_mul(seed | 1));
        honour(&mut two, endpoints, percent);
        prop_assert_eq!(one, two);
    }
}
