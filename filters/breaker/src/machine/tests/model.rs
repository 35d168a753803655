//! The machine against a model that is too simple to be wrong in the same way: lists instead of
//! buckets and slots, and every sum taken anew.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    Answer(Outcome),
    /// As the last resort or not.
    TakeProbe(bool),
    /// The probe taken so many probes ago.
    AnswerProbe(usize, Outcome),
    Tick,
}

/// Few kinds of steps and short waits, so that every state is reached and left many times.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = || {
        prop_oneof![
            3 => Just(FAILURE),
            3 => Just(SUCCESS),
            1 => Just(SLOW),
            1 => Just(SOFT),
            1 => Just(Outcome::Ignored),
        ]
    };
    let step = prop_oneof![
        3 => prop_oneof![0u64..400, 0u64..4_000, 0u64..40_000].prop_map(Step::Wait),
        10 => outcome().prop_map(Step::Answer),
        3 => any::<bool>().prop_map(Step::TakeProbe),
        4 => (0usize..4, outcome()).prop_map(|(ago, outcome)| Step::AnswerProbe(ago, outcome)),
        3 => Just(Step::Tick),
    ];
    prop::collection::vec(step, 1..200)
}

#[derive(Debug)]
struct Model {
    state: State,
    row: u32,
    trips: u32,
    since_clean: u64,
    /// When it opened, and when it takes a probe.
    since: u64,
    until: u64,
    /// Half-open: whether the probe was taken before `until`.
    early: bool,
    watched: Option<u64>,
    /// Millisecond and what of every answer since the breaker closed.
    answers: Vec<(u64, Outcome)>,
    /// Number and expiry of every probe that is out.
    probes: Vec<(u32, u64)>,
    successes: u32,
}

fn is_bad(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failure(_) | Outcome::Soft { .. })
}

impl Model {
    fn sums(&self, now: u64) -> (u64, u64, u64) {
        let recent = || self.answers.iter().filter(|(at, _)| at / 1000 + 10 > now / 1000);
        let failed = recent().filter(|(_, outcome)| is_bad(*outcome)).count();
        let slow = recent().filter(|(_, outcome)| *outcome == SLOW).count();
        (recent().count() as u64, failed as u64, slow as u64)
    }

    fn open(&mut self, now: u64) {
        self.trips = (self.trips + 1).min(32);
        self.enter(State::Open);
        self.since = now;
        self.until = now + 30_000 * 2u64.pow((self.trips - 1).min(4)).min(10);
    }

    /// A probe failed.
    fn reopen(&mut self, now: u64) {
        if self.early && now < self.until {
            self.enter(State::Open);
            self.since = now;
        } else {
            self.open(now);
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.row = 0;
        self.watched = None;
        self.answers.clear();
        self.probes.clear();
        self.successes = 0;
    }

    fn forgive(&mut self, now: u64) {
        while self.trips > 0 && now - self.since_clean >= 10_000 {
            self.trips -= 1;
            self.since_clean += 10_000;
        }
    }

    fn rates(&mut self, now: u64) {
        let (total, failed, slow) = self.sums(now);
        let watched = self.watched.is_some_and(|since| now - since >= 250);
        let reached = total >= 10 && (failed * 2 >= total || slow * 2 >= total);
        if self.state == State::Closed && watched && reached {
            self.forgive(now);
            self.open(now);
        }
    }

    fn answer(&mut self, outcome: Outcome, now: u64) {
        if self.state != State::Closed {
            return;
        }
        if outcome != Outcome::Ignored {
            self.answers.push((now, outcome));
        }
        match outcome {
            Outcome::Success { .. } => self.row = 0,
            Outcome::Failure(_) => {
                self.forgive(now);
                self.since_clean = now;
                self.row += 1;
            }
            Outcome::Soft { .. } | Outcome::Ignored => {}
        }
        if is_bad(outcome) || outcome == SLOW {
            self.watched.get_or_insert(now);
        }
        if self.row == 5 {
            self.open(now);
        } else {
            self.rates(now);
        }
    }

    fn tick(&mut self, now: u64) {
        match self.state {
            State::Open => {}
            State::HalfOpen => {
                if self.probes.iter().any(|(_, expires)| *expires <= now) {
                    self.reopen(now);
                }
            }
            State::Closed => {
                self.forgive(now);
                self.rates(now);
                let (_, failed, slow) = self.sums(now);
                if failed == 0 && slow == 0 {
                    self.watched = None;
                }
            }
        }
    }

    /// Whether a probe may be taken, and if so it is.
    fn take(&mut self, id: u32, last_resort: bool, now: u64, allowed: usize) -> bool {
        let before = self.state;
        self.tick(now);
        if before != self.state {
            return false;
        }
        let due = now >= self.until;
        if self.state == State::Open && (due || (last_resort && now >= self.since + 500)) {
            self.enter(State::HalfOpen);
            self.early = !due;
        }
        let owed = self.state == State::HalfOpen && self.probes.len() < allowed;
        if owed {
            self.probes.push((id, now + 10_000));
        }
        owed
    }

    fn answer_probe(&mut self, id: u32, outcome: Outcome, now: u64) {
        let known = self.probes.iter().position(|(probe, expires)| *probe == id && now < *expires);
        let (State::HalfOpen, Some(known)) = (self.state, known) else {
            return;
        };
        self.probes.remove(known);
        match outcome {
            Outcome::Ignored => {}
            Outcome::Success { .. } => {
                self.successes += 1;
                if self.successes == 2 {
                    self.enter(State::Closed);
                    self.since_clean = now;
                }
            }
            Outcome::Failure(_) | Outcome::Soft { .. } => self.reopen(now),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn the_machine_does_what_the_model_does(steps in steps(), allowed in 1u8..4) {
        let mut policy = policy();
        policy.half_open.probes = allowed;
        let mut record = Record::default();
        let mut model = Model {
            state: State::Closed, row: 0, trips: 0, since_clean: 0, since: 0, until: 0,
            early: false, watched: None, answers: Vec::new(), probes: Vec::new(), successes: 0,
        };
        let mut now = NOW.as_millis();
        let mut probes = vec![0];
        for (number, step) in steps.into_iter().enumerate() {
            let context = at(&policy, Now::from_millis(now));
            match step {
                Step::Wait(millis) => now += millis,
                Step::Answer(outcome) => {
                    record.apply(Input::Answer(outcome), &context);
                    model.answer(outcome, now);
                }
                Step::TakeProbe(last_resort) => {
                    let (ticket, _) = record.try_probe(&Context { last_resort, ..context });
                    let id = record.last_probe;
                    let taken = model.take(id, last_resort, now, usize::from(allowed));
                    prop_assert_eq!(ticket.is_some(), taken, "step {}: {:?}", number, model);
                    probes.push(id);
                }
                Step::AnswerProbe(ago, outcome) => {
                    let id = probes[probes.len() - 1 - ago.min(probes.len() - 1)];
                    record.apply(Input::Probe { id, outcome, at: context.now }, &context);
                    model.answer_probe(id, outcome, now);
                }
                Step::Tick => {
                    record.apply(Input::Tick, &context);
                    model.tick(now);
                }
            }
            prop_assert_eq!(record.state, model.state, "step {}: {:?} {:?}", number, step, model);
            prop_assert_eq!(record.consecutive, model.row, "step {}: {:?}", number, step);
            prop_assert_eq!(record.trips, model.trips, "step {}: {:?}", number, step);
            prop_assert_eq!(record.is_watched(), model.watched.is_some(), "step {}", number);
            prop_assert_eq!(record.probes_out(), model.probes.len(), "step {}", number);
            prop_assert!(record.probes_out() <= usize::from(allowed));
            let counts = record.counts(&policy, Now::from_millis(now));
            let sums = (counts.total.into(), counts.failed.into(), counts.slow.into());
            prop_assert_eq!(sums, model.sums(now), "step {}: {:?}", number, step);
            if record.state == State::Open {
                prop_assert_eq!(record.until.as_millis(), model.until, "step {}", number);
            }
        }
    }
}

/// What may happen to a breaker besides, the clock being set among it.
fn histories() -> impl Strategy<Value = Vec<(u8, i64, u32)>> {
    const HOUR: i64 = 3_600_000;
    let millis =
        prop_oneof![10 => 0..20_000i64, 1 => Just(HOUR), 1 => Just(-HOUR), 1 => -HOUR..HOUR];
    prop::collection::vec((0u8..10, millis, any::<u32>()), 0..80)
}

proptest! {
    /// Whatever happened, an hour forward or back included, and however often the fleet and an
    /// operator interfered: once they are quiet and the clock runs, requests pass again in time.
    #[test]
    fn nothing_wedges_it(steps in histories()) {
        let policy = Policy { fleet: Fleet::Enforce, jitter_percent: 50, ..policy() };
        let mut record = Record::default();
        let mut now = NOW.as_millis() as i64;
        for (kind, millis, random) in steps {
            now += millis;
            let last_resort = random % 2 == 0;
            let now = Now::from_millis(now as u64);
            let context = Context { last_resort, random, ..at(&policy, now) };
            let until = context.now.after(Duration::from_secs(20));
            let order = |action| Input::Force(Force { action, until, stamp: record.force_seen + 1 });
            let input = match kind {
                0..=3 => Input::Answer(FAILURE),
                4 => Input::Answer(SUCCESS),
                5 => Input::Probe { id: record.last_probe, outcome: SUCCESS, at: context.now },
                6 => Input::Opinion(Opinion { expires_at: until, reporters: 1 }),
                7 => order(ForceAction::Open),
                8 => order(ForceAction::Close),
                _ => {
                    record.try_probe(&context);
                    Input::Tick
                }
            };
            record.apply(input, &context);
        }
        // The longest time open, and that of the probe that may be out.
        let limit = policy.open_at_most() + policy.half_open.timeout + policy.open_at_most();
        let mut waited = Duration::ZERO;
        loop {
            let context = at(&policy, Now::from_millis(now as u64));
            record.apply(Input::Tick, &context);
            if !matches!(record.verdict(&policy, context.now), Verdict::Blocked { .. }) {
                break;
            }
            prop_assert!(waited <= limit, "still {:?}", record);
            waited += Duration::from_secs(1);
            now += 1_000;
        }
    }
}
