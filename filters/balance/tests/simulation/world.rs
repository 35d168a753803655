//! Proxies, their workers and their endpoints in virtual time.
//!
//! An open loop of requests; answers log-normal around the endpoint's median; workers of one proxy
//! tell each other their load every 200 ms and know nothing of other proxies. The breaker is the
//! simplest that can help: five failures in a row shut an endpoint for 30 s in one proxy. Requests
//! that a limit refuses are left out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use pintle_balance::{Balancer, Dice, Picks, Policy, Request, Sample, Ticket, Verdict};
use pintle_contract::{Endpoint, Now};
use rand::{RngExt, SeedableRng};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;
/// Where virtual time begins; any date will do.
const START: u64 = 1_700_000_000 * SECOND;
const EXCHANGE: u64 = 200 * MS;

/// How an endpoint behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Behaviour {
    Well,
    Slower(f64),
    /// So much slower, and so many requests at a time.
    Choked(f64, usize),
    /// This share takes 400 ms.
    Stutters(f64),
    /// This share fails within a millisecond.
    Fails(f64),
    /// Each so-manieth answer is good, and the others fail within a millisecond.
    GoodEvery(u64),
    /// Each so-manieth answer fails within a millisecond.
    BadEvery(u64),
    /// So much slower, but in the first of every four half seconds alone.
    Bursts(f64),
    /// Well, but for the first answer, which takes so many ms more.
    LateFirst(f64),
    /// Never answers; the caller gives up after a second.
    Hangs,
    /// Not in the table.
    Absent,
}

/// From a time on, in ns of the run, endpoints of a range behave in a way.
pub(crate) type Change = (u64, std::ops::Range<usize>, Behaviour);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Chooser {
    Ours,
    /// Envoy's: two draws, fewer active in this worker.
    Native,
    /// Envoy's full scan.
    Scan,
}

/// The whole machine stands still for so long every so often: what is under way then takes longer,
/// whoever works on it, and says nothing of its endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stall {
    pub(crate) every: u64,
    pub(crate) length: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) proxies: usize,
    pub(crate) workers: usize,
    pub(crate) weights: Vec<u32>,
    /// So many of them, the first, are in the zone of the proxies; the others in another one.
    pub(crate) near: usize,
    /// Requests per second of all proxies together.
    pub(crate) rate: f64,
    pub(crate) length: u64,
    pub(crate) median: f64,
    pub(crate) sigma: f64,
    pub(crate) changes: Vec<Change>,
    pub(crate) breaker: bool,
    /// Requests that an endpoint works on at once; the rest queue.
    pub(crate) capacity: usize,
    /// Every answer fails with this probability, whoever gives it.
    pub(crate) background: f64,
    pub(crate) stall: Option<Stall>,
    pub(crate) policy: Policy,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// When it was due, ns of the run.
    pub(crate) due: u64,
    pub(crate) took: u64,
    pub(crate) endpoint: usize,
    pub(crate) failed: bool,
    /// A stall delayed it, which it did for every policy.
    pub(crate) stalled: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival { due: u64 },
    Exchange { proxy: usize },
    Change,
    Reopen { proxy: usize, endpoint: usize },
    Done { request: usize },
}

struct InFlight {
    worker: usize,
    endpoint: usize,
    ticket: Option<Ticket>,
    due: u64,
    sent: u64,
    failed: bool,
}

impl Stall {
    /// When what is due at `at` can happen.
    fn over(&self, at: u64) -> u64 {
        let into = (at - START) % self.every;
        let begins = self.every - self.length;
        if into < begins { at } else { at - into + self.every }
    }

    fn delayed(&self, due: u64, done: u64) -> bool {
        self.over(due) != due || (due - START) / self.every != (done - START) / self.every
    }
}

impl Default for World {
    fn default() -> Self {
        Self {
            proxies: 1,
            workers: 2,
            weights: vec![1; 10],
            near: 0,
            rate: 400.0,
            length: 22 * SECOND,
            median: 10.0,
            sigma: 0.2,
            changes: Vec::new(),
            breaker: true,
            capacity: usize::MAX,
            background: 0.0,
            stall: None,
            policy: Policy { attempts: 1, ..Policy::default() },
        }
    }
}

/// The state of a run.
struct Run<'a> {
    world: &'a World,
    chooser: Chooser,
    dice: Dice,
    /// By proxy, then by worker.
    balancers: Vec<Balancer>,
    native: Vec<Vec<u32>>,
    behaviour: Vec<Behaviour>,
    /// Endpoint numbers by the balancers' index.
    listed: Vec<usize>,
    /// By endpoint, how often it was asked.
    asked: Vec<u64>,
    consecutive: Vec<Vec<u32>>,
    /// When each of an endpoint's places is free again.
    places: Vec<BinaryHeap<Reverse<u64>>>,
    requests: Vec<InFlight>,
    events: BinaryHeap<Reverse<(u64, usize, Event)>>,
    order: usize,
    answers: Vec<Answer>,
    picks: Picks,
}

impl World {
    const fn zone(&self) -> &'static str {
        if self.near == 0 { "" } else { "near" }
    }

    pub(crate) fn run(&self, chooser: Chooser, seed: u64) -> Vec<Answer> {
        let n = self.weights.len();
        let mut run = Run {
            world: self,
            chooser,
            dice: Dice::seed_from_u64(seed),
            balancers: Vec::new(),
            native: vec![vec![0; n]; self.proxies * self.workers],
            behaviour: vec![Behaviour::Well; n],
            listed: Vec::new(),
            asked: vec![0; n],
            consecutive: vec![vec![0; n]; self.proxies],
            places: vec![BinaryHeap::new(); n],
            requests: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
            answers: Vec::new(),
            picks: Picks::new(),
        };
        run.change(START);
        let table = run.table();
        for worker in 0..self.proxies * self.workers {
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ worker as u64;
            run.balancers.push(Balancer::new(
                "s",
                &self.policy,
                &table,
                self.zone(),
                seed,
                Now(START),
            ));
        }
        run.at(START, Event::Arrival { due: START });
        for proxy in 0..self.proxies {
            let phase = run.dice.random_range(0..EXCHANGE);
            run.at(START + phase, Event::Exchange { proxy });
        }
        for (when, ..) in &self.changes {
            run.at(START + when, Event::Change);
        }
        run.go();
        run.answers
    }
}

impl Run<'_> {
    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.events.push(Reverse((when, self.order, event)));
    }

    fn go(&mut self) {
        let end = START + self.world.length;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            let stalled = self.world.stall.map(|stall| stall.over(now)).filter(|end| *end > now);
            if let Some(end) = stalled {
                self.at(end, event);
                continue;
            }
            match event {
                Event::Arrival { due } => {
                    let gap = -(1.0 - self.dice.random::<f64>()).ln() / self.world.rate * 1e9;
                    let next = due + gap as u64;
                    if next < end {
                        self.at(next, Event::Arrival { due: next });
                    }
                    self.send(due, now);
                }
                Event::Done { request } => self.done(request, now),
                Event::Change => self.change(now),
                Event::Reopen { proxy, endpoint } => self.tell(proxy, endpoint, Verdict::Pass),
                Event::Exchange { proxy } => {
                    self.exchange(proxy, now);
                    if now < end {
                        self.at(now + EXCHANGE, Event::Exchange { proxy });
                    }
                }
            }
        }
    }

    fn send(&mut self, due: u64, now: u64) {
        let worker = self.dice.random_range(0..self.balancers.len());
        let (endpoint, ticket) = match self.chooser {
            Chooser::Ours => {
                let balancer = &mut self.balancers[worker];
                let request = Request::default();
                balancer.pick(&request, Now(now), &mut self.dice, &mut self.picks);
                // All are full: nobody is sent anything.
                let Some(index) = self.picks.first() else { return };
                (self.listed[index], balancer.started(index, Now(now)))
            }
            Chooser::Native => {
                let n = self.listed.len();
                let a = self.dice.random_range(0..n);
                let b = (a + self.dice.random_range(1..n)) % n;
                let (a, b) = (self.listed[a], self.listed[b]);
                let active = &mut self.native[worker];
                let endpoint = if active[b] < active[a] { b } else { a };
                active[endpoint] += 1;
                (endpoint, None)
            }
            Chooser::Scan => {
                let active = &mut self.native[worker];
                let least = self.listed.iter().map(|&i| active[i]).min().unwrap();
                let best: Vec<_> = self.listed.iter().filter(|&&i| active[i] == least).collect();
                let endpoint = *best[self.dice.random_range(0..best.len())];
                active[endpoint] += 1;
                (endpoint, None)
            }
        };
        let (ns, failed) = self.service_time(endpoint, now);
        let capacity = match self.behaviour[endpoint] {
            Behaviour::Choked(_, capacity) => capacity,
            _ => self.world.capacity,
        };
        let queue = &mut self.places[endpoint];
        let begin = if queue.len() < capacity { now } else { queue.pop().unwrap().0.max(now) };
        if capacity < usize::MAX {
            queue.push(Reverse(begin + ns));
        }
        self.requests.push(InFlight { worker, endpoint, ticket, due, sent: now, failed });
        self.at(begin + ns, Event::Done { request: self.requests.len() - 1 });
    }

    fn service_time(&mut self, endpoint: usize, now: u64) -> (u64, bool) {
        // The sum of twelve is normal enough.
        let normal: f64 = (0..12).map(|_| self.dice.random::<f64>()).sum::<f64>() - 6.0;
        let ns = self.world.median * (self.world.sigma * normal).exp() * MS as f64;
        if self.dice.random::<f64>() < self.world.background {
            return (MS, true);
        }
        let chance = self.dice.random::<f64>();
        self.asked[endpoint] += 1;
        let turn = self.asked[endpoint];
        match self.behaviour[endpoint] {
            Behaviour::Bursts(factor) if (now - START) % (2 * SECOND) < SECOND / 2 => {
                ((ns * factor) as u64, false)
            }
            Behaviour::LateFirst(more) if turn == 1 => ((ns + more * MS as f64) as u64, false),
            Behaviour::Well | Behaviour::Absent | Behaviour::LateFirst(_) => (ns as u64, false),
            Behaviour::Slower(factor) | Behaviour::Choked(factor, _) => {
                ((ns * factor) as u64, false)
            }
            Behaviour::Stutters(share) if chance < share => (400 * MS, false),
            Behaviour::Fails(share) if chance < share => (MS, true),
            Behaviour::GoodEvery(n) if !turn.is_multiple_of(n) => (MS, true),
            Behaviour::BadEvery(n) if turn.is_multiple_of(n) => (MS, true),
            Behaviour::Stutters(_)
            | Behaviour::Fails(_)
            | Behaviour::GoodEvery(_)
            | Behaviour::BadEvery(_)
            | Behaviour::Bursts(_) => (ns as u64, false),
            Behaviour::Hangs => (SECOND, true),
        }
    }

    fn done(&mut self, request: usize, now: u64) {
        let InFlight { worker, endpoint, ticket, due, sent, failed } = self.requests[request];
        let stalled = self.world.stall.is_some_and(|stall| stall.delayed(due, now));
        let due_at = due - START;
        self.answers.push(Answer { due: due_at, took: now - due, endpoint, failed, stalled });
        if let Some(ticket) = ticket {
            let latency = Some(Duration::from_nanos(now - sent));
            let sample = Sample { latency, failed, ..Sample::default() };
            self.balancers[worker].finished(ticket, Now(now), sample);
        } else {
            self.native[worker][endpoint] -= 1;
        }
        let proxy = worker / self.world.workers;
        let count = &mut self.consecutive[proxy][endpoint];
        *count = if failed { *count + 1 } else { 0 };
        if self.world.breaker && *count == 5 && self.chooser == Chooser::Ours {
            self.tell(proxy, endpoint, Verdict::Blocked);
            self.at(now + 30 * SECOND, Event::Reopen { proxy, endpoint });
        }
    }

    fn of(&self, proxy: usize) -> std::ops::Range<usize> {
        proxy * self.world.workers..(proxy + 1) * self.world.workers
    }

    fn tell(&mut self, proxy: usize, endpoint: usize, verdict: Verdict) {
        let Some(index) = self.listed.iter().position(|&i| i == endpoint) else { return };
        for worker in self.of(proxy) {
            self.balancers[worker].set_verdict(index, verdict);
        }
    }

    fn exchange(&mut self, proxy: usize, now: u64) {
        let all = (now - START) % SECOND < EXCHANGE;
        let range = self.of(proxy);
        let tells = |worker: usize| {
            let load = self.balancers[worker].local_load(Now(now), all);
            (worker, load.map(|(_, entry)| entry).collect())
        };
        let told: Vec<(usize, Vec<_>)> = range.map(tells).collect();
        for (from, entries) in &told {
            for to in self.of(proxy).filter(|to| to != from) {
                self.balancers[to].set_remote_load(*from as u32, entries, Now(now));
            }
        }
    }

    fn table(&self) -> Vec<Endpoint> {
        let endpoint = |&i: &usize| {
            let at = format!("10.0.{}.{}:80", i / 200, i % 200 + 1).parse().unwrap();
            let zone = if i < self.world.near { "near" } else { "far" }.into();
            let weight = self.world.weights[i];
            Endpoint { weight, zone, ..Endpoint::new(format!("e{i}"), at) }
        };
        self.listed.iter().map(endpoint).collect()
    }

    fn change(&mut self, now: u64) {
        self.behaviour.fill(Behaviour::Well);
        for (when, range, behaviour) in &self.world.changes {
            if START + when <= now {
                self.behaviour[range.clone()].fill(*behaviour);
            }
        }
        let here = |i: &usize| self.behaviour[*i] != Behaviour::Absent;
        let listed: Vec<usize> = (0..self.behaviour.len()).filter(here).collect();
        if listed != self.listed {
            self.listed = listed;
            let table = self.table();
            for balancer in &mut self.balancers {
                balancer.update(&self.world.policy, &table, self.world.zone(), Now(now));
            }
        }
    }
}
