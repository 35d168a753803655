use proptest::prelude::*;

use super::*;

const LENGTH: u64 = 1_000;

fn at(time: u64) -> Now {
    Now(time)
}

fn failure() -> Counts {
    Counts { total: 1, failed: 1, slow: 0 }
}

#[test]
fn a_count_leaves_with_its_bucket_and_not_before() {
    let mut window = Window::default();
    window.add(failure(), at(10_999), LENGTH);
    assert_eq!(window.sum(at(19_999), LENGTH).failed, 1, "bucket 10 is the oldest of 10 to 19");
    assert_eq!(window.sum(at(20_000), LENGTH).failed, 0, "bucket 10 has left 11 to 20");
}

#[test]
fn a_burst_is_counted_exactly_however_it_lies_across_buckets() {
    let mut window = Window::default();
    for millis in 0..10_000 {
        window.add(failure(), at(50_000 + millis), LENGTH);
    }
    assert_eq!(window.sum(at(59_999), LENGTH).total, 10_000);
}

#[test]
fn an_idle_gap_of_any_length_empties_it_and_does_not_wedge_it() {
    for gap in [10_000, 10_001, 1 << 32, 1 << 40, u64::MAX / 2] {
        let mut window = Window::default();
        window.add(failure(), at(5_000), LENGTH);
        assert_eq!(window.sum(at(5_000 + gap), LENGTH), Counts::default(), "gap {gap}");
        window.add(failure(), at(5_000 + gap), LENGTH);
        assert_eq!(window.sum(at(5_000 + gap), LENGTH).total, 1, "gap {gap}");
    }
}

#[test]
fn a_clock_set_back_starts_it_empty() {
    let mut window = Window::default();
    window.add(failure(), at(3_600_000), LENGTH);
    window.add(failure(), at(1_000), LENGTH);
    assert_eq!(window.sum(at(1_000), LENGTH).total, 1);
}

#[test]
fn a_slightly_older_now_counts_where_it_belongs() {
    let mut window = Window::default();
    window.add(failure(), at(20_000), LENGTH);
    window.add(failure(), at(19_990), LENGTH);
    assert_eq!(window.sum(at(20_000), LENGTH).total, 2);
    assert_eq!(window.sum(at(29_000), LENGTH).total, 1, "bucket 19 has left");
}

#[test]
fn another_bucket_length_starts_it_empty() {
    let mut window = Window::default();
    window.add(failure(), at(20_000), LENGTH);
    assert_eq!(window.sum(at(20_000), 500), Counts::default());
    window.add(failure(), at(20_000), 500);
    assert_eq!(window.sum(at(20_000), 500).total, 1);
}

#[test]
fn counts_stop_at_their_limit() {
    let mut window = Window::default();
    let full = Counts { total: u32::MAX, failed: u32::MAX, slow: u32::MAX };
    window.add(full, at(0), LENGTH);
    window.add(full, at(1_000), LENGTH);
    assert_eq!(window.sum(at(1_000), LENGTH), full);
}

proptest! {
    /// Times in a tiny range, so that buckets collide and gaps of every size occur.
    #[test]
    fn the_sum_is_that_of_a_list_of_all_counts(
        steps in prop::collection::vec((0u64..4_000, any::<bool>(), 0usize..3), 1..80),
    ) {
        // Three workers count on their own and are absorbed into one window in the end.
        let mut windows = [Window::default(), Window::default(), Window::default()];
        let mut all = Vec::new();
        let mut now = 100_000;
        for (step, failed, worker) in steps {
            now += step;
            let counts = Counts { total: 1, failed: u32::from(failed), slow: 0 };
            windows[worker].add(counts, at(now), LENGTH);
            all.push((now / LENGTH, failed));
        }
        let mut shared = Window::default();
        for window in &windows {
            shared.absorb(window, at(now), LENGTH);
        }
        for later in [0, 500, 1_000, 5_000, 9_999, 20_000] {
            let newest = (now + later) / LENGTH;
            let inside = all.iter().filter(|(bucket, _)| bucket + 10 > newest);
            let sum = shared.sum(at(now + later), LENGTH);
            prop_assert_eq!(sum.total as usize, inside.clone().count());
            prop_assert_eq!(sum.failed as usize, inside.filter(|(_, failed)| *failed).count());
        }
    }
}
