//! Three workers, one breaker, and a store that a neighbour may write into.

use std::time::Duration;

use arbitrary::Arbitrary;
use pintle_breaker::{
    MAX_PROBES, Merged, Mirror, Need, Origin, Policy, Record, State, Ticket, Verdict, allowed,
    honour, retry_after,
};
use pintle_contract::{Force, ForceAction, Now, Opinion};

use crate::breakers::{BASE_MS, Rules, Said, check_codec, check_transition, written};
use crate::case;

const WORKERS: usize = 3;

#[derive(Debug, Arbitrary)]
struct Case<'a> {
    rules: Rules,
    percent: u8,
    steps: Vec<(u32, Step<'a>)>,
}

#[derive(Debug, Arbitrary)]
enum Step<'a> {
    Wait(u16),
    Jump(i16),
    Send(u8, bool),
    End(u8, u8, Said),
    Tick(u8),
    Wake(u8),
    /// What the table says: the fleet's opinion and an order, each until so many seconds from now.
    Told(u8, Option<u16>, Option<(u8, u16)>),
    /// The worker's next write loses its race.
    Lose(u8),
    Neighbour(&'a [u8]),
    Garbage(&'a [u8]),
    Wipe,
}

struct World {
    policy: Policy,
    store: Vec<u8>,
    mirrors: [Mirror; WORKERS],
    in_flight: [Vec<Ticket>; WORKERS],
    loses: [bool; WORKERS],
    ms: u64,
    random: u32,
    stamp: u64,
}

pub(crate) fn workers(data: &[u8]) {
    let Some(case) = case::<Case<'_>>(data) else { return };
    let mut world = World {
        policy: case.rules.policy(),
        store: Vec::new(),
        mirrors: Default::default(),
        in_flight: Default::default(),
        loses: [false; WORKERS],
        ms: BASE_MS,
        random: 0,
        stamp: 0,
    };
    let mut forged = false;
    for (random, step) in case.steps.into_iter().take(150) {
        world.random = random;
        forged |= matches!(step, Step::Neighbour(_) | Step::Garbage(_));
        world.run(step);
        if let Ok(record) = Record::decode(&world.store) {
            let most = if forged { MAX_PROBES } else { world.policy.half_open.probes.into() };
            assert!(record.probes_out() <= most);
        }
    }
    world.check_cap(case.percent);
    world.check_unwedged();
}

fn worker(number: u8) -> usize {
    usize::from(number) % WORKERS
}

impl World {
    fn now(&self) -> Now {
        Now::from_millis(self.ms)
    }

    fn run(&mut self, step: Step<'_>) {
        let now = self.now();
        match step {
            Step::Wait(millis) => self.ms += u64::from(millis),
            Step::Jump(seconds) => {
                self.ms = self.ms.saturating_add_signed(i64::from(seconds) * 1000);
            }
            Step::Send(number, last_resort) => {
                let number = worker(number);
                let record = self.mirrors[number].record();
                let verdict = if last_resort {
                    record.verdict_as_last_resort(&self.policy, now)
                } else {
                    record.verdict(&self.policy, now)
                };
                match verdict {
                    Verdict::Pass => {
                        let ticket = record.ticket();
                        self.in_flight[number].push(ticket);
                    }
                    Verdict::Blocked { .. } => {}
                    Verdict::ProbeOwed => {
                        let ticket = self.sync(number, Some(last_resort));
                        self.in_flight[number].extend(ticket);
                    }
                }
            }
            Step::End(number, at, said) => {
                let number = worker(number);
                let in_flight = &mut self.in_flight[number];
                if let Some(at) = usize::from(at).checked_rem(in_flight.len()) {
                    let ticket = in_flight.swap_remove(at);
                    let need =
                        self.mirrors[number].observe(ticket, said.outcome(), &self.policy, now);
                    self.serve(number, need);
                }
            }
            Step::Tick(number) => {
                let number = worker(number);
                let need = self.mirrors[number].tick(now);
                self.serve(number, need);
            }
            Step::Wake(number) => {
                let number = worker(number);
                if let Ok(record) = Record::decode(&self.store) {
                    let need = self.mirrors[number].refresh(record, now);
                    self.serve(number, need);
                }
            }
            Step::Told(number, opinion, order) => {
                let number = worker(number);
                let later = |seconds: u16| now.after(Duration::from_secs(u64::from(seconds % 900)));
                let opinion = opinion.map(|ttl| Opinion { expires_at: later(ttl), reporters: 2 });
                self.stamp += 1;
                let actions = [ForceAction::Open, ForceAction::Close, ForceAction::Clear];
                let force = order.map(|(action, ttl)| Force {
                    action: actions[usize::from(action % 3)],
                    until: later(ttl),
                    stamp: self.stamp,
                });
                let need = self.mirrors[number].overlay(opinion, force, &self.policy, now);
                self.serve(number, need);
            }
            Step::Lose(number) => self.loses[worker(number)] = true,
            Step::Neighbour(bytes) => self.store = written(bytes),
            Step::Garbage(bytes) => self.store = bytes.to_vec(),
            Step::Wipe => self.store.clear(),
        }
    }

    fn serve(&mut self, number: usize, need: Need) {
        if need == Need::Sync {
            self.sync(number, None);
        }
    }

    /// Read, merge, write, commit; a lost race is tried again with the next tick.
    fn sync(&mut self, number: usize, claim: Option<bool>) -> Option<Ticket> {
        let now = self.now();
        let (policy, random) = (&self.policy, self.random);
        let fresh = Record::decode(&self.store).ok();
        let mirror = &mut self.mirrors[number];
        let Merged { record, changed, ticket, transitions, .. } = &match claim {
            None => mirror.merge(fresh.clone(), policy, now, random),
            Some(last_resort) => mirror.claim(fresh.clone(), policy, last_resort, now, random),
        };
        check_codec(record);
        transitions.iter().for_each(check_transition);
        assert!(*changed || transitions.is_empty(), "a transition that is not written");
        assert!(ticket.is_none() || (*changed && record.state() == State::HalfOpen));
        assert!(*changed || fresh.is_none_or(|fresh| fresh == *record), "left as it is");
        let merged = match claim {
            None => mirror.merge(Record::decode(&self.store).ok(), policy, now, random),
            Some(last) => mirror.claim(Record::decode(&self.store).ok(), policy, last, now, random),
        };
        if merged.changed {
            if std::mem::take(&mut self.loses[number]) {
                return None;
            }
            merged.record.encode(&mut self.store);
        }
        let ticket = merged.ticket;
        mirror.commit(merged);
        ticket
    }

    /// However many are open, no more are honoured than the policy has for a service.
    fn check_cap(&self, percent: u8) {
        let records = self.mirrors.iter().map(Mirror::record);
        let mut open: Vec<_> =
            records.zip(0..).filter_map(|(record, at)| Some((record.severity()?, at))).collect();
        let before = open.len();
        honour(&mut open, WORKERS, percent);
        assert_eq!(open.len(), before.min(allowed(WORKERS, percent)));
        assert!(open.is_sorted_by_key(|(_, at)| *at));
        let now = self.now();
        let verdicts = self.mirrors.iter().map(|m| m.record().verdict(&self.policy, now));
        let after = retry_after(verdicts, now, self.policy.retry_after);
        assert!((Duration::from_secs(1)..=self.policy.retry_after).contains(&after));
    }

    /// Once everybody is quiet, every worker lets a request through again in time.
    fn check_unwedged(&mut self) {
        self.loses = [false; WORKERS];
        let policy = &self.policy;
        let longest = policy.open_at_most().max(policy.fleet_ttl).max(Duration::from_secs(900));
        let limit = self.now().after(longest * 3 + Duration::from_secs(600));
        for number in 0..WORKERS {
            loop {
                self.sync(number, None);
                let record = self.mirrors[number].record();
                if record.origin() == Origin::Forced {
                    // For as long as somebody said, who may have been a neighbour.
                    return;
                }
                match record.verdict(&self.policy, self.now()) {
                    Verdict::Pass => break,
                    Verdict::ProbeOwed if self.sync(number, Some(false)).is_some() => break,
                    Verdict::ProbeOwed => {}
                    Verdict::Blocked { until } => {
                        self.ms = self.ms.max(until.as_millis());
                    }
                }
                self.ms += 100;
                assert!(self.now() <= limit, "{:?}", self.mirrors[number].record());
            }
        }
    }
}
