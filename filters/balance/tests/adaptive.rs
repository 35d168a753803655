//! `select.max_requests: adaptive` before endpoints that serve so many side by side and queue the
//! rest.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: what panics here is a failing test"
)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use pintle_balance::{Balancer, Choice, Dice, Nothing, Picks, Policy, Request, Sample, Ticket};
use pintle_contract::{Endpoint, Now};
use rand::{RngExt, SeedableRng};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const START: u64 = 1_700_000_000 * SECOND;
const MEDIAN: f64 = 10.0 * MS as f64;

/// How often a worker tells the others, ns.
const TELL: u64 = 250 * MS;

/// Endpoints with a queue each, and the workers before them.
struct World {
    /// Requests that an endpoint serves at once.
    capacity: usize,
    median: f64,
    sigma: f64,
    workers: Vec<Balancer>,
    dice: Dice,
    now: u64,
    /// When the next one tells the others, and which.
    tells: (u64, usize),
    places: Vec<Place>,
    /// When an endpoint is done with its oldest.
    done: BinaryHeap<Reverse<(u64, usize, u64)>>,
}

#[derive(Default)]
struct Place {
    serving: Vec<(u64, Sent)>,
    queue: VecDeque<Sent>,
}

struct Sent {
    at: u64,
    worker: usize,
    ticket: Ticket,
}

/// What came of a while.
#[derive(Debug, Default)]
struct Figures {
    sent: usize,
    refused: usize,
    answered: usize,
    /// Requests in flight at one endpoint, at most.
    most: usize,
    /// ns.
    took: Vec<u64>,
}

impl Figures {
    fn p99(&mut self) -> f64 {
        self.took.sort_unstable();
        self.took[self.took.len() * 99 / 100] as f64 / MS as f64
    }
}

impl World {
    fn new(setting: &str, endpoints: u8, capacity: usize, sigma: f64) -> Self {
        Self::of_workers(1, setting, endpoints, capacity, sigma)
    }

    fn of_workers(workers: u64, setting: &str, endpoints: u8, capacity: usize, sigma: f64) -> Self {
        let policy = format!(r#"{{"max_requests": {setting}}}"#);
        let policy: Policy =
            pintle_settings::read("select", serde_json::from_str(&policy).unwrap()).unwrap();
        let endpoint = |i| Endpoint::new(format!("e{i}"), SocketAddr::from(([10, 0, 0, i], 80)));
        let all: Vec<Endpoint> = (0..endpoints).map(endpoint).collect();
        let worker = |seed| Balancer::new("s", &policy, &all, "", seed, Now(START));
        Self {
            capacity,
            median: MEDIAN,
            sigma,
            workers: (7..7 + workers).map(worker).collect(),
            dice: Dice::seed_from_u64(3),
            now: START,
            tells: (START, 0),
            places: all.iter().map(|_| Place::default()).collect(),
            done: BinaryHeap::new(),
        }
    }

    /// One draw of the standard normal distribution.
    fn normal(&mut self) -> f64 {
        let (u, v): (f64, f64) = (self.dice.random(), self.dice.random());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// An open loop of so many requests a second, for so many seconds.
    fn run(&mut self, rate: f64, seconds: f64) -> Figures {
        let mut figures = Figures::default();
        let end = self.now + (seconds * SECOND as f64) as u64;
        let mut due = self.now;
        while due < end {
            while let Some(Reverse((at, index, number))) = self.done.peek().copied()
                && at <= due
            {
                self.tell(at);
                self.done.pop();
                self.now = at;
                self.answer(index, number, &mut figures);
            }
            self.tell(due);
            self.now = due;
            self.send(&mut figures);
            let wait: f64 = -(1.0 - self.dice.random::<f64>()).ln() / rate;
            due += (wait * SECOND as f64) as u64;
        }
        self.now = end;
        figures
    }

    /// The workers take turns in telling the others, up to `until`.
    fn tell(&mut self, until: u64) {
        while self.workers.len() > 1 && self.tells.0 <= until {
            let (at, from) = self.tells;
            let load = self.workers[from].local_load(Now(at), at % SECOND < TELL);
            let entries: Vec<_> = load.map(|(_, entry)| entry).collect();
            for (to, balancer) in self.workers.iter_mut().enumerate() {
                if to != from {
                    balancer.set_remote_load(from as u32, &entries, Now(at));
                }
            }
            let workers = self.workers.len();
            self.tells = (at + TELL / workers as u64, (from + 1) % workers);
        }
    }

    fn send(&mut self, figures: &mut Figures) {
        let mut picks = Picks::new();
        let now = Now(self.now);
        let worker = self.dice.random_range(0..self.workers.len());
        let balancer = &mut self.workers[worker];
        let choice = balancer.pick(&Request::default(), now, &mut self.dice, &mut picks);
        if choice == Choice::None(Nothing::Full) {
            figures.refused += 1;
            return;
        }
        let index = picks.first().unwrap();
        let ticket = balancer.started(index, now).unwrap();
        self.places[index].queue.push_back(Sent { at: self.now, worker, ticket });
        self.serve(index);
        let place = &self.places[index];
        figures.sent += 1;
        figures.most = figures.most.max(place.serving.len() + place.queue.len());
    }

    fn serve(&mut self, index: usize) {
        while self.places[index].serving.len() < self.capacity {
            let Some(sent) = self.places[index].queue.pop_front() else { break };
            let took = self.median * (self.sigma * self.normal()).exp();
            let number = self.dice.random();
            self.done.push(Reverse((self.now + took as u64, index, number)));
            self.places[index].serving.push((number, sent));
        }
    }

    fn answer(&mut self, index: usize, number: u64, figures: &mut Figures) {
        let at = self.places[index].serving.iter().position(|(n, _)| *n == number).unwrap();
        let (_, sent) = self.places[index].serving.swap_remove(at);
        let took = self.now - sent.at;
        let sample = Sample { latency: Some(Duration::from_nanos(took)), ..Sample::default() };
        self.workers[sent.worker].finished(sent.ticket, Now(self.now), sample);
        figures.answered += 1;
        figures.took.push(took);
        self.serve(index);
    }
}

/// Twice what they can serve, for a minute: each has a queue of about half of what it serves, and
/// nobody serves less than it could.
#[test]
fn under_twice_the_load_the_queue_stays_short_and_the_endpoints_busy() {
    for (endpoints, capacity) in [(1, 10), (3, 10), (1, 50), (2, 100), (3, 4)] {
        let mut world = World::new(r#""adaptive""#, endpoints, capacity, 0.2);
        let served = f64::from(endpoints) * capacity as f64 * 98.0;
        world.run(served * 2.0, 5.0);
        let mut figures = world.run(served * 2.0, 60.0);
        let p99 = figures.p99();
        let goodput = figures.answered as f64 / 60.0 / served;
        println!(
            "{endpoints} x {capacity}: most {}, p99 {p99:.1} ms, goodput {goodput:.3}",
            figures.most
        );
        assert!(
            figures.most * 10 <= capacity * 20 + 40,
            "{endpoints} x {capacity}: {}",
            figures.most
        );
        assert!(p99 <= 36.0, "{endpoints} x {capacity}: {p99}");
        assert!(goodput > 0.97, "{endpoints} x {capacity}: {goodput}");
    }
}

/// The same by several workers, each of which knows of the others what they told last.
#[test]
fn workers_that_know_of_each_other_late_keep_the_limit_together() {
    for (workers, endpoints, capacity, median) in
        [(2, 3, 8, 4.0), (2, 3, 8, 1.0), (4, 3, 16, 4.0), (2, 1, 50, 1.0), (8, 3, 32, 4.0)]
    {
        for load in [1.5, 0.5] {
            let mut world = World::of_workers(workers, r#""adaptive""#, endpoints, capacity, 0.2);
            world.median = MEDIAN * median;
            let served = f64::from(endpoints) * capacity as f64 * 98.0 / median;
            world.run(served * load, 5.0);
            let mut figures = world.run(served * load, 60.0);
            let p99 = figures.p99() / median;
            let goodput = figures.answered as f64 / 60.0 / served;
            let (most, refused) = (figures.most, figures.refused);
            let case = format!("{workers} workers, {endpoints} x {capacity}, load {load}");
            println!("{case}: most {most}, p99 {p99:.1}, goodput {goodput:.3}, refused {refused}");
            if load < 1.0 {
                assert_eq!(refused, 0, "{case}");
                continue;
            }
            assert!(most <= capacity * 2 + workers as usize * 4, "{case}: {most} in flight");
            assert!(p99 <= 36.0, "{case}: {p99}");
            assert!(goodput > 0.97, "{case}: {goodput}");
        }
    }
}

/// What never waits is never refused, whatever its answers vary by, and however many come at once.
#[test]
fn who_has_room_is_not_limited() {
    for (sigma, rate) in [(0.0, 800.0), (0.2, 800.0), (1.0, 200.0), (1.0, 800.0), (1.5, 3_000.0)] {
        let mut world = World::new(r#""adaptive""#, 2, 10_000, sigma);
        let mut figures = world.run(rate, 120.0);
        let p99 = figures.p99();
        println!(
            "sigma {sigma}, {rate}/s: refused {} of {}, p99 {p99:.0}",
            figures.refused, figures.sent
        );
        assert_eq!(figures.refused, 0, "sigma {sigma}, {rate}/s");
    }
}

/// Three times as slow for everybody is no queue: the limit comes back by itself, under a load that
/// keeps it full all the time.
#[test]
fn an_endpoint_that_became_slower_is_not_held_to_what_it_was() {
    let mut world = World::new(r#""adaptive""#, 1, 50, 0.2);
    world.run(8_000.0, 10.0);
    for median in [3.0, 1.0, 2.0, 0.5] {
        world.median = MEDIAN * median;
        let served = 50.0 * 98.0 / median;
        world.run(served * 2.0, 10.0);
        let figures = world.run(served * 2.0, 20.0);
        let goodput = figures.answered as f64 / 20.0 / served;
        println!("{median}: most {}, goodput {goodput:.3}", figures.most);
        assert!(goodput > 0.95, "{median} times as slow: {goodput:.3} of what it serves");
        assert!(figures.most <= 110, "{median} times as slow: {}", figures.most);
    }
}

/// Capacity that goes is noticed, and so is what comes back.
#[test]
fn the_limit_follows_the_capacity() {
    let mut world = World::new(r#""adaptive""#, 1, 50, 0.2);
    for capacity in [50, 10, 50, 20] {
        world.capacity = capacity;
        let served = capacity as f64 * 98.0;
        world.run(10_000.0, 5.0);
        let figures = world.run(10_000.0, 20.0);
        let goodput = figures.answered as f64 / 20.0 / served;
        println!("{capacity}: most {}, goodput {goodput:.3}", figures.most);
        assert!(goodput > 0.95, "{capacity} at once: {goodput:.3} of what it serves");
        assert!(figures.most * 10 <= capacity * 20 + 40, "{capacity} at once: {}", figures.most);
    }
}

#[test]
fn floor_and_ceiling_hold() {
    let mut world = World::new(r#"{"adaptive": {"min": 6, "max": 8}}"#, 1, 50, 0.2);
    assert_eq!(world.run(8_000.0, 5.0).most, 8);
    world.capacity = 1;
    world.run(8_000.0, 5.0);
    assert_eq!(world.run(8_000.0, 5.0).most, 6);
}
