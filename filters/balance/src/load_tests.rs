use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct One {
    load: Load,
    all: Failures,
    decay: Decay,
    now: Now,
}

impl One {
    fn new() -> Self {
        let now = Now::from_millis(1_700_000_000_000);
        Self {
            load: Load::new(now),
            all: Failures::default(),
            decay: Decay::new(Duration::from_secs(10), 50.0),
            now,
        }
    }

    fn wait(&mut self, by: Duration) -> &mut Self {
        self.now = self.now.after(by);
        self
    }

    fn answer(&mut self, ms: u64, failed: bool) -> &mut Self {
        let latency = Some(Duration::from_millis(ms));
        self.load
            .observe(self.decay, &mut self.all, self.now, latency, failed);
        self
    }

    /// In ms, for one of ten endpoints.
    fn cost(&self) -> f32 {
        self.load.cost(&self.all.moment(self.decay, self.now, 10)) / 1e6
    }
}

#[track_caller]
fn close(got: f32, expect: f32) {
    assert!((got - expect).abs() <= expect * 0.01, "{got} for {expect}");
}

#[test]
fn the_decay_is_the_exponential() {
    let decay = Decay::new(Duration::from_secs(10), 0.0);
    for ms in [
        0_u64, 1, 10, 3000, 6931, 6932, 10_000, 25_000, 100_000, 400_000,
    ] {
        let expect = (-(ms as f64) / 10_000.0).exp();
        let got = decay.keep(ms * 1_000_000);
        assert!(
            (got - expect).abs() <= expect * 1e-5,
            "{ms} ms: {got} for {expect}"
        );
    }
    assert_eq!(decay.keep(u64::MAX), 0.0);
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
    one.all.add(one.decay, one.now.0, 9.0);
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
    one.load.ended(one.now);
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
    let told = here.load.tell(7, here.decay, here.now).unwrap();
    assert_eq!(
        (
            told.key,
            told.in_flight,
            told.latency_us,
            told.failures_milli
        ),
        (7, 1, 400_000, 1000)
    );
    there.wait(SECOND);
    there
        .load
        .hear(there.decay, &mut there.all, &told, here.now, there.now);
    let heard = there.cost();
    here.wait(SECOND);
    here.load.ended(here.now);
    close(heard, here.cost());
    there.load.hear(
        there.decay,
        &mut there.all,
        &told,
        Now(here.now.0 - 1_000_000_000),
        there.now,
    );
    close(there.cost(), heard);
}

#[test]
fn an_idle_endpoint_is_not_worth_telling() {
    let mut one = One::new();
    assert_eq!(one.load.tell(7, one.decay, one.now), None);
    one.answer(5, false);
    assert!(one.load.tell(7, one.decay, one.now).is_some());
    one.wait(11 * SECOND);
    assert_eq!(one.load.tell(7, one.decay, one.now), None);
}

#[test]
fn a_clock_that_steps_back_freezes_nothing() {
    let mut one = One::new();
    one.answer(200, false);
    one.now = Now(one.now.0 - 3_600_000_000_000);
    one.answer(10, false);
    one.wait(10 * SECOND);
    assert!(one.cost() < 80.0, "{}", one.cost());
}

#[test]
fn nonsense_stays_finite() {
    let mut one = One::new();
    let told = LoadEntry {
        key: 1,
        in_flight: u32::MAX,
        latency_us: u32::MAX,
        failures_milli: u32::MAX,
    };
    one.load
        .hear(one.decay, &mut one.all, &told, Now(0), one.now);
    one.load
        .hear(one.decay, &mut one.all, &told, Now(u64::MAX), one.now);
    one.load.elsewhere = u32::MAX;
    one.load.started(one.now);
    one.load.observe(
        one.decay,
        &mut one.all,
        Now(u64::MAX),
        Some(Duration::MAX),
        true,
    );
    assert!(one.cost().is_finite());
    assert!(size_of::<Load>() <= 64);
}
