use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct One {
    load: Load,
    all: Failures,
    clock: Clock,
    now: Now,
}

impl One {
    fn new() -> Self {
        let now = Now::from_millis(1_700_000_000_000);
        let clock = Clock::new(Duration::from_secs(10), 50.0, now);
        Self { load: Load::new(&clock), all: Failures::default(), clock, now }
    }

    fn wait(&mut self, by: Duration) -> &mut Self {
        self.to(self.now.after(by))
    }

    fn to(&mut self, now: Now) -> &mut Self {
        self.now = now;
        self.clock.tick(now, std::slice::from_mut(&mut self.load), &mut self.all);
        self
    }

    fn answer(&mut self, ms: u64, failed: bool) -> &mut Self {
        let latency = Some(Duration::from_millis(ms));
        self.load.observe(&self.clock, &mut self.all, latency, failed);
        self
    }

    fn hear(&mut self, told: &LoadEntry, then: Now) {
        self.load.hear(&self.clock, &mut self.all, told, then);
    }

    /// In ms, for one of ten endpoints.
    fn cost(&self) -> f64 {
        self.load.cost(&self.clock, &self.all, 10) / self.clock.scale / 1e6
    }
}

#[track_caller]
fn close(got: f64, expect: f64) {
    assert!((got - expect).abs() <= expect * 0.01, "{got} for {expect}");
}

#[test]
fn the_power_is_the_exponential() {
    let clock = One::new().clock;
    for ms in [0_u64, 1, 10, 3000, 3465, 3466, 6931, 10_000, 25_000, 640_000, 6_000_000] {
        let expect = (ms as f64 / 10_000.0).exp();
        let got = clock.power(ms * 1_000_000);
        assert!((got - expect).abs() <= expect * 1e-5, "{ms} ms: {got} for {expect}");
    }
    assert_eq!(clock.power(u64::MAX), f64::INFINITY);
}

#[test]
fn a_fresh_endpoint_costs_the_seed_and_not_nothing() {
    close(One::new().cost(), 30.0);
}

#[test]
fn a_sample_above_is_taken_at_once_and_one_below_decays_in() {
    let mut one = One::new();
    one.wait(SECOND).answer(200, false);
    close(one.cost(), 200.0);
    one.wait(10 * SECOND).answer(10, false);
    close(one.cost(), 200.0 * 0.3679 + 10.0 * 0.6321);
}

#[test]
fn reading_is_a_projection_that_changes_nothing() {
    let mut one = One::new();
    one.answer(200, false).wait(10 * SECOND);
    close(one.cost(), 200.0 * 0.3679);
    close(one.cost(), 200.0 * 0.3679);
    one.wait(1000 * SECOND);
    close(one.cost(), 1.0);
}

#[test]
fn a_fast_failure_raises_the_cost() {
    let mut one = One::new();
    let before = one.cost();
    one.answer(1, true);
    assert!(one.cost() > 40.0 * before, "{} after {before}", one.cost());
    one.wait(60 * SECOND);
    assert!(one.cost() < before, "forgotten after a minute");
}

#[test]
fn a_slow_failure_is_a_slow_sample_too() {
    let mut one = One::new();
    one.answer(1000, true);
    assert!(one.cost() > 40_000.0);
}

#[test]
fn failures_that_everybody_has_weigh_little() {
    let mut one = One::new();
    one.answer(30, true);
    let alone = one.cost();
    // The other nine have failed once each as well.
    one.all.sum += 9.0;
    close(one.cost(), 2.0 * 30.0);
    assert!(alone > 20.0 * one.cost());
}

#[test]
fn requests_in_flight_multiply_and_weight_divides() {
    let mut one = One::new();
    one.load.started(one.now);
    one.load.elsewhere = 2;
    close(one.cost(), 4.0 * 30.0);
    one.load.inverse_weight = 0.5;
    close(one.cost(), 2.0 * 30.0);
}

#[test]
fn silence_with_a_request_out_counts_as_latency_until_it_is_a_stream() {
    let mut one = One::new();
    one.load.started(one.now);
    one.wait(5 * SECOND);
    close(one.cost(), 2.0 * 5000.0);
    one.wait(6 * SECOND);
    close(one.cost(), 2.0 * 30.0 * 0.3329);
    one.load.answered(one.now);
    one.load.ended();
    assert_eq!(one.load.in_flight, 0);
}

#[test]
fn retry_after_is_honoured_up_to_a_minute() {
    let mut one = One::new();
    one.load.leave_alone(one.now, Duration::from_secs(3600));
    close(one.cost(), 60_000.0);
    one.wait(Duration::from_secs(61));
    assert!(one.cost() < 30.0);
}

#[test]
fn what_one_worker_learned_the_other_knows_and_an_echo_adds_nothing() {
    let (mut here, mut there) = (One::new(), One::new());
    here.answer(400, true);
    here.load.started(here.now);
    let told = here.load.tell(7, &here.clock, here.now).unwrap();
    assert_eq!(
        (told.key, told.in_flight, told.latency_us, told.failures_milli),
        (7, 1, 400_000, 1000)
    );
    let then = here.now;
    there.wait(SECOND);
    there.hear(&told, then);
    let heard = there.cost();
    here.wait(SECOND);
    here.load.answered(here.now);
    here.load.ended();
    close(heard, here.cost());
    there.hear(&told, then);
    close(there.cost(), heard);
}

#[test]
fn an_idle_endpoint_is_not_worth_telling() {
    let mut one = One::new();
    assert_eq!(one.load.tell(7, &one.clock, one.now), None);
    one.answer(5, false);
    assert!(one.load.tell(7, &one.clock, one.now).is_some());
    one.wait(11 * SECOND);
    assert_eq!(one.load.tell(7, &one.clock, one.now), None);
}

#[test]
fn a_clock_that_steps_back_freezes_nothing() {
    let mut one = One::new();
    one.answer(200, false);
    one.to(Now(one.now.0 - 3_600_000_000_000));
    close(one.cost(), 200.0);
    one.answer(10, false);
    one.wait(10 * SECOND);
    assert!(one.cost() < 80.0, "{}", one.cost());
}

#[test]
fn a_new_epoch_changes_nothing_but_the_numbers() {
    let mut one = One::new();
    for _ in 0..100 {
        one.answer(200, false);
        close(one.cost(), 200.0);
        one.wait(20 * SECOND);
        close(one.cost(), 200.0 * 0.1353);
    }
    one.answer(200, true).wait(Duration::from_secs(100_000));
    close(one.cost(), 1.0);
    assert!(one.all.sum < 1e-9);
}

#[test]
fn nonsense_stays_finite() {
    let mut one = One::new();
    let told =
        LoadEntry { key: 1, in_flight: u32::MAX, latency_us: u32::MAX, failures_milli: u32::MAX };
    one.hear(&told, Now(0));
    one.hear(&told, Now(u64::MAX));
    one.load.elsewhere = u32::MAX;
    one.load.started(one.now);
    one.load.observe(&one.clock, &mut one.all, Some(Duration::MAX), true);
    assert!(one.cost().is_finite());
    one.to(Now(u64::MAX)).to(Now(0)).answer(5, true);
    assert!(one.cost().is_finite());
    assert!(size_of::<Load>() <= 64);
}
