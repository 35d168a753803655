use super::*;
use crate::told::{LoadEntry, hear, is_news, since, tell};

const SECOND: Duration = Duration::from_secs(1);
const MS: f32 = 1e6;

/// One endpoint of a service whose middle is 10 ms.
struct One {
    load: Load,
    past: History,
    service: Service,
    clock: Clock,
}

impl One {
    fn new() -> Self {
        let clock = Clock::new(Duration::from_secs(10), 50.0, Now::from_millis(1_700_000_000_000));
        let mut service = Service::default();
        service.middle.answered(10.0 * MS);
        Self { load: Load::new(&clock), past: History::default(), service, clock }
    }

    fn now(&self) -> Now {
        Now(self.clock.now)
    }

    fn wait(&mut self, by: Duration) -> &mut Self {
        self.to(self.now().after(by))
    }

    fn to(&mut self, now: Now) -> &mut Self {
        if self.clock.tick(now) {
            self.load.step_back(now.0);
            self.past.step_back(now.0);
        }
        self
    }

    /// An answer that was sent so long ago as it took.
    fn answer(&mut self, ms: u64, failed: bool) -> &mut Self {
        let latency = Some(Duration::from_millis(ms));
        let Self { load, past, service, clock } = self;
        observe(load, past, clock, service, (latency, failed));
        self
    }

    fn tell(&self) -> Option<LoadEntry> {
        self.is_news(true).then(|| tell(&self.load, &self.past, 7, &self.clock))
    }

    fn is_news(&self, all: bool) -> bool {
        is_news(&self.load, &self.past, since(&self.clock, all), self.now())
    }

    fn hear(&mut self, told: &LoadEntry) -> &mut Self {
        let Self { load, past, service, clock } = self;
        hear(load, past, clock, &service.middle, told);
        self
    }

    /// What an answer takes, ms.
    fn time(&self) -> f32 {
        let factor = self.past.factor(&self.clock);
        self.load.time(&self.past, &self.clock, &self.service.middle, factor) / MS
    }

    fn is_ill(&self) -> bool {
        self.load.is_suspect(&self.clock, &self.service.middle)
            && self.time() * MS > self.service.middle.limit()
    }
}

#[track_caller]
fn close(got: f32, expect: f32) {
    assert!((got - expect).abs() <= expect * 0.01, "{got} for {expect}");
}

#[test]
fn of_a_newcomer_the_middle_is_believed() {
    let one = One::new();
    close(one.time(), 10.0);
    assert!(!one.is_ill());
    close(Load::new(&one.clock).latency(&Middle::default()) / MS, 30.0);
}

#[test]
fn one_slow_answer_makes_nobody_ill_and_two_do() {
    let mut one = One::new();
    one.wait(SECOND).answer(10_000, false);
    assert!(!one.is_ill(), "{}", one.time());
    one.wait(11 * SECOND).answer(10_000, false);
    assert!(one.is_ill(), "{}", one.time());
}

#[test]
fn the_first_answer_of_a_service_is_believed_whatever_it_took() {
    let mut one = One::new();
    one.service = Service::default();
    one.answer(2_000, false);
    close(one.time(), 2_000.0);
}

#[test]
fn what_half_of_all_answers_take_is_learnt_and_no_illness() {
    let mut one = One::new();
    (0..4_000).for_each(|_| one.service.learn((false, false), false, true));
    for _ in 0..8 {
        one.wait(3 * SECOND).answer(2_000, false);
    }
    assert!(one.time() > 1_000.0, "{}", one.time());
}

#[test]
fn what_waited_together_says_it_once() {
    let mut one = One::new();
    one.wait(SECOND);
    for _ in 0..20 {
        one.answer(400, false);
    }
    assert!(!one.is_ill(), "{}", one.time());
    // Sent after the last of those came.
    one.wait(SECOND).answer(400, false);
    assert!(one.is_ill(), "{}", one.time());
}

#[test]
fn a_few_fast_answers_make_it_well() {
    let mut one = One::new();
    for _ in 0..5 {
        one.wait(SECOND).answer(200, false);
    }
    let slow = one.time();
    for _ in 0..5 {
        one.wait(SECOND / 10).answer(10, false);
    }
    assert!(slow > 100.0 && !one.is_ill(), "{slow}, then {}", one.time());
}

#[test]
fn after_a_long_time_old_answers_say_less() {
    let mut one = One::new();
    one.wait(SECOND).answer(40, false);
    let before = one.time();
    one.wait(30 * SECOND).answer(10, false);
    assert!(one.time() < 10.0 + (before - 10.0) * 0.06, "{}", one.time());
}

#[test]
fn a_fast_failure_is_an_illness_where_nobody_else_fails() {
    let mut one = One::new();
    one.answer(1, true);
    assert!(one.is_ill());
    one.answer(10, false).answer(10, false);
    assert!(one.is_ill(), "two successes are chance");
    one.answer(10, false).answer(10, false);
    assert!(!one.is_ill(), "{}", one.time());
    one.answer(1, true).wait(60 * SECOND);
    assert!(!one.is_ill(), "forgotten after a minute");
}

#[test]
fn a_slow_failure_is_a_slow_sample_too() {
    let mut one = One::new();
    one.answer(1000, true);
    assert!(one.time() > 28.0 * 50.0, "{}", one.time());
}

#[test]
fn a_failure_that_everybody_has_is_no_illness() {
    let mut one = One::new();
    for answer in 0..20_000 {
        one.service.learn((false, false), answer % 50 == 0, false);
    }
    one.answer(1, true);
    assert!(!one.is_ill(), "one of fifty");
    one.answer(1, true);
    assert!(one.is_ill(), "two in a row");
}

#[test]
fn waiting_requests_count_by_weight() {
    let mut one = One::new();
    one.load.started(one.now());
    one.load.started(one.now());
    assert_eq!(one.load.queue(), 2.0);
    one.load.inverse_weight = 0.5;
    assert_eq!(one.load.queue(), 1.0);
    one.load.answered(one.now());
    assert_eq!((one.load.queue(), one.load.active()), (0.5, 2), "a stream costs nothing");
    one.load.ended();
    one.load.ended();
    assert_eq!(one.load.active(), 0);
}

#[test]
fn silence_is_an_illness_while_an_answer_is_owed() {
    let mut one = One::new();
    one.load.started(one.now());
    one.wait(SECOND / 100);
    assert!(!one.is_ill());
    one.wait(SECOND);
    assert!(one.is_ill());
    assert!(!one.past.may_look(one.clock.now - 20_000_000, 990_000_000), "not within a second");
    one.load.answered(one.now());
    assert!(!one.is_ill());
    // Its head came: whatever it is now, it is not silent.
    one.wait(60 * SECOND);
    assert!(!one.is_ill());
}

#[test]
fn a_client_that_gives_up_is_no_answer() {
    let mut one = One::new();
    one.load.started(one.now());
    one.load.started(one.now());
    one.wait(SECOND);
    one.load.given_up();
    assert!(one.is_ill());
}

#[test]
fn who_asks_to_be_left_alone_is() {
    let mut one = One::new();
    let then = one.now().after(5 * SECOND).0;
    leave_alone(&mut one.load, &mut one.past, &one.clock, then);
    assert!(one.is_ill() && !one.past.may_look(one.clock.now, 0));
    one.wait(6 * SECOND);
    assert!(!one.is_ill());
}

#[test]
fn what_one_worker_learned_the_other_knows_and_an_echo_adds_nothing() {
    let (mut here, mut there) = (One::new(), One::new());
    for _ in 0..3 {
        here.wait(SECOND).answer(400, true);
    }
    here.load.started(here.now());
    let told = here.tell().unwrap();
    assert_eq!((told.key, told.in_flight, told.waiting), (7, 1, 1));
    there.wait(3 * SECOND).answer(10, false).hear(&told);
    assert!(there.is_ill());
    let echo = there.tell().unwrap();
    assert_eq!(echo.sampled_at, told.sampled_at, "no fresher than it was");
    here.load.answered(here.now());
    // It is well again, and worse news from before does not come back.
    for _ in 0..12 {
        here.wait(SECOND / 4).answer(10, false);
    }
    here.hear(&echo);
    assert!(!here.is_ill());
    there.wait(3 * SECOND).hear(&here.tell().unwrap());
    assert!(!there.is_ill(), "one worker's look serves all");
}

#[test]
fn a_deadline_travels_as_a_deadline() {
    let (mut here, mut there) = (One::new(), One::new());
    let then = here.now().after(20 * SECOND).0;
    leave_alone(&mut here.load, &mut here.past, &here.clock, then);
    let told = here.tell().unwrap();
    assert_eq!((told.retry_at, told.latency_us), (Now(then), 0));
    there.hear(&told).wait(19 * SECOND);
    assert!(there.is_ill());
    there.wait(2 * SECOND);
    assert!(!there.is_ill());
}

#[test]
fn an_idle_endpoint_is_not_worth_telling() {
    let mut one = One::new();
    assert_eq!(one.tell(), None);
    one.answer(5, false);
    assert!(one.is_news(false) && one.is_news(true));
    one.wait(2 * SECOND);
    assert!(!one.is_news(false) && one.is_news(true), "told once a second");
    one.load.started(one.now());
    assert!(one.is_news(false), "what is under way is told with every tick");
    one.load.ended();
    one.wait(9 * SECOND);
    assert_eq!(one.tell(), None);
}

#[test]
fn a_clock_that_steps_back_freezes_nothing() {
    let mut one = One::new();
    one.load.started(one.now());
    for _ in 0..3 {
        one.wait(SECOND).answer(200, true);
    }
    one.to(Now(one.clock.now - 3_600_000_000_000));
    assert!(one.past.may_look(one.clock.now + 1, 0));
    one.load.answered(one.now());
    one.wait(60 * SECOND).answer(10, false);
    assert!(!one.is_ill(), "{}", one.time());
}

#[test]
fn nonsense_stays_finite() {
    let mut one = One::new();
    let told = LoadEntry {
        key: 1,
        in_flight: u32::MAX,
        waiting: u32::MAX,
        latency_us: u32::MAX,
        failures_milli: u32::MAX,
        sampled_at: Now(u64::MAX),
        retry_at: Now(u64::MAX),
    };
    one.hear(&told).hear(&LoadEntry { sampled_at: Now(1), ..told });
    one.load.started(one.now());
    one.answer(u64::MAX / 2_000_000, true);
    assert!(one.time().is_finite() && one.load.queue().is_finite());
    one.to(Now(u64::MAX)).to(Now(0)).answer(5, true);
    assert!(one.time().is_finite());
    assert!(size_of::<Load>() <= 40);
}
