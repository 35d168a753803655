//! Workers that read, merge and write in any interleaving, against what must hold whatever it is.
//!
//! Few workers, few kinds of answers and short steps of time, so that writes collide often.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    /// A worker sends a request, as a probe if that is what it takes; maybe as the last resort.
    Send(usize, bool),
    /// A worker's request ends, the one sent so many before the last.
    End(usize, usize, Outcome),
    /// A worker reads and merges; it will write when it is next named.
    Read(usize),
    Tick(usize),
    Wake(usize),
}

const WORKERS: usize = 3;

fn steps(longest_wait: u64) -> impl Strategy<Value = Vec<Step>> {
    let worker = 0..WORKERS;
    let outcome = prop_oneof![
        4 => Just(FAILURE),
        3 => Just(SUCCESS),
        1 => Just(Outcome::Soft { retry_after: None }),
        1 => Just(Outcome::Ignored),
    ];
    let step = prop_oneof![
        2 => (0..=longest_wait).prop_map(Step::Wait),
        5 => (worker.clone(), any::<bool>()).prop_map(|(w, last)| Step::Send(w, last)),
        5 => (worker.clone(), 0usize..3, outcome).prop_map(|(w, ago, o)| Step::End(w, ago, o)),
        4 => worker.clone().prop_map(Step::Read),
        2 => worker.clone().prop_map(Step::Tick),
        3 => worker.prop_map(Step::Wake),
    ];
    prop::collection::vec(step, 1..150)
}

#[derive(Default)]
struct Worker {
    mirror: Mirror,
    in_flight: Vec<Ticket>,
    /// Read and merged, not yet written.
    begun: Option<(Merged, u64)>,
    /// Answers that made it sync, not yet committed.
    waiting: Vec<Outcome>,
}

struct World {
    policy: Policy,
    store: Store,
    workers: [Worker; WORKERS],
    now: u64,
    transitions: Vec<Transition>,
    /// The row of failures, replayed in the order in which writes were accepted.
    row: u32,
    /// When every answer that counts was observed, and whether it failed.
    answers: Vec<(u64, bool)>,
    /// Every probe that went out and has not been answered: its ticket and when it expires.
    probes: Vec<(Ticket, u64)>,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            store: Store::default(),
            workers: Default::default(),
            now: 0,
            transitions: Vec::new(),
            row: 0,
            answers: Vec::new(),
            probes: Vec::new(),
        }
    }

    fn begin(&mut self, worker: usize) {
        let (fresh, cas) = self.store.read();
        let merged = self.workers[worker].mirror.merge(fresh, &self.policy, at(self.now), 0);
        self.workers[worker].begun = Some((merged, cas));
    }

    /// Writes what was begun, again and again until it is accepted. The worker is one thread, so
    /// this comes before anything else that it does.
    fn finish(&mut self, worker: usize) {
        while let Some((merged, cas)) = self.workers[worker].begun.take() {
            if merged.changed && !self.store.write(&merged.record, cas) {
                self.begin(worker);
                continue;
            }
            self.committed(worker, merged);
        }
    }

    fn committed(&mut self, worker: usize, merged: Merged) {
        let worker = &mut self.workers[worker];
        for outcome in worker.waiting.drain(..) {
            match outcome {
                Outcome::Success { .. } => self.row = 0,
                Outcome::Failure(_) => self.row += 1,
                _ => {}
            }
        }
        if !merged.transitions.is_empty() {
            self.row = 0;
        }
        self.transitions.extend(worker.mirror.commit(merged));
    }

    fn sync(&mut self, worker: usize) {
        self.begin(worker);
        self.finish(worker);
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Wait(millis) => self.now += millis,
            Step::Send(worker, last_resort) => {
                self.finish(worker);
                let (record, now) = (self.workers[worker].mirror.record(), at(self.now));
                let verdict = if last_resort {
                    record.verdict_as_last_resort(&self.policy, now)
                } else {
                    record.verdict(&self.policy, now)
                };
                match verdict {
                    Verdict::Pass => {
                        let ticket = self.workers[worker].mirror.record().ticket();
                        self.workers[worker].in_flight.push(ticket);
                    }
                    Verdict::Blocked { .. } => {}
                    Verdict::ProbeOwed => self.probe(worker, last_resort),
                }
            }
            Step::End(worker, ago, outcome) => {
                self.finish(worker);
                let in_flight = &mut self.workers[worker].in_flight;
                let Some(index) = in_flight.len().checked_sub(ago + 1) else {
                    return;
                };
                let ticket = in_flight.remove(index);
                self.end(worker, ticket, outcome);
            }
            Step::Read(worker) => {
                self.finish(worker);
                self.begin(worker);
            }
            Step::Tick(worker) => {
                self.finish(worker);
                if self.workers[worker].mirror.tick(at(self.now)) == Need::Sync {
                    self.sync(worker);
                }
            }
            Step::Wake(worker) => {
                self.finish(worker);
                let (record, now) = (self.store.record(), at(self.now));
                if self.workers[worker].mirror.refresh(record, now) == Need::Sync {
                    self.sync(worker);
                }
            }
        }
    }

    fn probe(&mut self, worker: usize, last_resort: bool) {
        let (fresh, cas) = self.store.read();
        let mirror = &self.workers[worker].mirror;
        let merged = mirror.claim(fresh, &self.policy, last_resort, at(self.now), 0);
        assert!(!merged.changed || self.store.write(&merged.record, cas));
        if let Some(ticket) = merged.ticket {
            self.workers[worker].in_flight.push(ticket);
            self.probes.push((ticket, self.now + 10_000));
        }
        self.committed(worker, merged);
    }

    fn end(&mut self, worker: usize, ticket: Ticket, outcome: Outcome) {
        self.probes.retain(|(probe, _)| *probe != ticket);
        let mirror = &mut self.workers[worker].mirror;
        if !ticket.is_probe() && outcome != Outcome::Ignored {
            self.answers.push((self.now, outcome != SUCCESS));
        }
        if mirror.observe(ticket, outcome, &self.policy, at(self.now)) == Need::Sync {
            if !ticket.is_probe() {
                self.workers[worker].waiting.push(outcome);
            }
            // Sometimes at once, sometimes after others: as the steps have it.
            self.begin(worker);
        }
    }

    fn settle(&mut self) {
        for worker in 0..WORKERS {
            self.finish(worker);
            self.sync(worker);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// With every trigger off nothing changes state, so every answer must be in the sums.
    #[test]
    fn no_answer_is_lost_or_counted_twice(steps in steps(700)) {
        let mut world = World::new(Policy {
            consecutive_failures: 0,
            failure_rate: Rate { percent: 0, min_requests: 1 },
            ..plain()
        });
        for step in steps {
            world.run(step);
            prop_assert_eq!(world.store.record().consecutive(), world.row, "{:?}", step);
        }
        // A failure is due in the store as soon as its worker has written, so ask for all of them.
        world.settle();
        let (record, now) = (world.store.record(), at(world.now));
        let bucket = |millis: u64| at(millis).as_millis() / 1000;
        let inside = || world.answers.iter().filter(|(seen, _)| bucket(*seen) + 10 > bucket(world.now));
        let counts = record.counts(&world.policy, now);
        prop_assert_eq!(counts.total as usize, inside().count());
        prop_assert_eq!(counts.failed as usize, inside().filter(|(_, failed)| *failed).count());
        prop_assert_eq!(record.state(), State::Closed);
    }

    #[test]
    fn the_fifth_failure_in_a_row_opens_and_probes_stay_within_their_slots(
        steps in steps(9_000),
        allowed in 1u8..4,
    ) {
        let mut policy = Policy { failure_rate: Rate { percent: 0, min_requests: 1 }, ..plain() };
        policy.half_open.probes = allowed;
        let mut world = World::new(policy);
        for step in steps {
            world.run(step);
            let record = world.store.record();
            prop_assert!(record.consecutive() < 5, "five in a row and still closed");
            if record.state() == State::Closed {
                prop_assert_eq!(record.consecutive(), world.row, "{:?}", step);
            }
            // One of two failed, so that what the other says is dropped.
            let live = |ticket: &Ticket| ticket.generation == record.generation();
            let probes = world.probes.iter().filter(|(ticket, _)| live(ticket));
            let out = probes.filter(|(_, expires)| world.now < *expires).count();
            prop_assert!(out <= usize::from(allowed), "{} probes are out", out);
            prop_assert!(record.probes_out() <= usize::from(allowed));
        }
        world.settle();
        // Reported once each: the generations have no gap and no double, the states follow on.
        let mut reported = world.transitions.clone();
        reported.sort_by_key(|transition| transition.generation);
        let mut state = State::Closed;
        for (transition, generation) in reported.iter().zip(1..) {
            prop_assert_eq!(transition.generation, generation);
            prop_assert_eq!(transition.from, state);
            state = transition.to;
        }
        prop_assert_eq!(world.store.record().state(), state);
    }
}
