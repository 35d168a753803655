//! `select.max_requests`: full endpoints are passed over, and being full is not being ill.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what panics here is a failing test")]

use std::net::SocketAddr;

use pintle_balance::{
    Balancer, Choice, Dice, LoadEntry, MaxRequests, Nothing, Picks, Policy, Request, Strategy,
    Ticket, Verdict, Want,
};
use pintle_contract::{Endpoint, Now};
use rand::SeedableRng;

const NOW: Now = Now(1_700_000_000_000_000_000);
fn endpoints(n: u8) -> Vec<Endpoint> {
    let endpoint = |i| Endpoint::new(format!("e{i}"), SocketAddr::from(([10, 0, 0, i], 80)));
    (0..n).map(endpoint).collect()
}

/// A service and the requests that it has in flight.
struct World {
    balancer: Balancer,
    rng: Dice,
    tickets: Vec<(usize, Ticket)>,
}

impl World {
    fn new(policy: &str, endpoints: &[Endpoint]) -> Self {
        let policy = serde_json::from_str(policy).unwrap();
        let policy: Policy = pintle_settings::read("select", policy).unwrap();
        let balancer = Balancer::new("s", &policy, endpoints, "a", 7, NOW);
        Self { balancer, rng: Dice::seed_from_u64(1), tickets: Vec::new() }
    }

    fn pick(&mut self, request: &Request<'_>) -> (Choice, Picks) {
        let mut picks = Picks::new();
        let choice = self.balancer.pick(request, NOW, &mut self.rng, &mut picks);
        (choice, picks)
    }

    /// Sends one more, which stays; where it went, or why nowhere.
    fn send(&mut self, request: &Request<'_>) -> Result<usize, Nothing> {
        let (choice, picks) = self.pick(request);
        if let Choice::None(nothing) = choice {
            return Err(nothing);
        }
        let first = picks.first().unwrap();
        self.tickets.push((first, self.balancer.started(first, NOW).unwrap()));
        Ok(first)
    }

    fn hashed(&mut self, hash: u64) -> Result<usize, Nothing> {
        self.send(&Request { hash: Some(hash), ..Request::default() })
    }

    fn end_one_at(&mut self, index: usize) {
        let at = self.tickets.iter().position(|(at, _)| *at == index).unwrap();
        let (_, ticket) = self.tickets.swap_remove(at);
        self.balancer.finished(ticket, NOW, Default::default());
    }

    fn counts(&self) -> Vec<u32> {
        (0..self.balancer.len()).map(|index| self.balancer.in_flight(index).0).collect()
    }
}

#[test]
fn by_every_strategy_all_are_filled_and_none_over_its_limit() {
    for (strategy, _) in Strategy::NAMES {
        let policy = format!(r#"{{"strategy": "{strategy}", "max_requests": 4}}"#);
        let mut world = World::new(&policy, &endpoints(5));
        for hash in 0..20 {
            assert!(world.hashed(hash).is_ok(), "{strategy}: {:?}", world.counts());
        }
        assert_eq!(world.counts(), [4; 5], "{strategy}");
        assert_eq!(world.hashed(20), Err(Nothing::Full), "{strategy}");
        for index in [3, 0, 4] {
            world.end_one_at(index);
            assert_eq!(world.hashed(21), Ok(index), "{strategy}: the one with room");
        }
        // The list for retries names nobody who is full, either.
        world.end_one_at(2);
        let (_, picks) = world.pick(&Request { hash: Some(1), ..Request::default() });
        assert!(picks.as_slice().iter().all(|&i| i == 2), "{strategy}: {picks:?}");
    }
}

#[test]
fn being_full_is_no_reason_for_a_panic_and_no_panic_fills_further() {
    let mut world = World::new(r#"{"max_requests": 1}"#, &endpoints(4));
    for left in (0..4).rev() {
        assert!(world.send(&Request::default()).is_ok());
        let expect =
            if left > 0 { Choice::Eligible { candidates: 4 } } else { Choice::None(Nothing::Full) };
        assert_eq!(world.pick(&Request::default()).0, expect);
    }
    // Three breakers open: a panic, in which the full ones are still full.
    for index in 0..3 {
        world.balancer.set_verdict(index, Verdict::Blocked);
    }
    assert_eq!(world.send(&Request::default()), Err(Nothing::Full));
    world.end_one_at(1);
    assert_eq!(world.pick(&Request::default()).0, Choice::Panic { candidates: 4 });
    assert_eq!(world.send(&Request::default()), Ok(1), "open, and the only one with room");
    // Nobody would fit who is only full.
    let mut world = World::new(r#"{"max_requests": 1, "panic_percent": 0}"#, &endpoints(2));
    assert!(world.send(&Request::default()).is_ok());
    (0..2).for_each(|index| world.balancer.set_verdict(index, Verdict::Blocked));
    assert_eq!(world.send(&Request::default()), Err(Nothing::Ineligible));
}

#[test]
fn what_is_counted_of_the_eligible_stays_right_while_they_fill_and_empty() {
    let mut world = World::new(r#"{"max_requests": 1}"#, &endpoints(4));
    for _ in 0..4 {
        assert!(world.send(&Request::default()).is_ok());
    }
    for index in 0..4 {
        world.balancer.set_verdict(index, Verdict::Blocked);
    }
    for index in 0..4 {
        world.balancer.set_verdict(index, Verdict::Pass);
    }
    assert_eq!(world.send(&Request::default()), Err(Nothing::Full));
    (0..4).for_each(|index| world.end_one_at(index));
    let candidates = Choice::Eligible { candidates: 4 };
    assert_eq!(world.pick(&Request::default()).0, candidates);
}

#[test]
fn a_session_at_a_full_endpoint_moves_for_that_request_alone() {
    let policy = r#"{"max_requests": 1, "sticky": {"header": "x-pin"}}"#;
    let mut world = World::new(policy, &endpoints(3));
    let pinned = Request { pinned: world.balancer.pin_of(1), ..Request::default() };
    assert_eq!(world.send(&pinned), Ok(1));
    let (choice, picks) = world.pick(&pinned);
    assert_eq!(choice, Choice::Eligible { candidates: 3 });
    assert!(picks.strays() && !picks.pinned() && !picks.as_slice().contains(&1), "{picks:?}");
    world.end_one_at(1);
    let (_, picks) = world.pick(&pinned);
    assert!(picks.pinned() && !picks.strays() && picks.first() == Some(1), "{picks:?}");
}

#[test]
fn what_other_workers_have_in_flight_counts_as_they_told_it() {
    let mut world = World::new(r#"{"max_requests": 3}"#, &endpoints(2));
    let told = |in_flight| LoadEntry { in_flight, ..LoadEntry::default() };
    let key = |world: &World, index| world.balancer.key_of(index).unwrap();
    let entries = [
        LoadEntry { key: key(&world, 0), ..told(2) },
        LoadEntry { key: key(&world, 1), ..told(3) },
    ];
    world.balancer.set_remote_load(9, &entries, NOW);
    // One has room for one more; of the full one this worker may have its part of two.
    let sent = [0; 4].map(|_| world.send(&Request::default()));
    assert_eq!(sent.iter().filter(|sent| **sent == Ok(0)).count(), 1, "{sent:?}");
    assert_eq!(sent.iter().filter(|sent| **sent == Ok(1)).count(), 1, "{sent:?}");
    world.balancer.remove_worker(9);
    for _ in 0..4 {
        assert!(world.send(&Request::default()).is_ok());
    }
    assert_eq!(world.counts(), [3, 3]);
}

#[test]
fn workers_that_share_an_endpoint_each_have_their_part_and_what_the_others_leave() {
    let mut world = World::new(r#"{"max_requests": 8}"#, &endpoints(1));
    let key = world.balancer.key_of(0).unwrap();
    for (others, own) in [(0, 8), (2, 6), (4, 4), (8, 4), (100, 4)] {
        let told = LoadEntry { key, in_flight: others, ..LoadEntry::default() };
        world.balancer.set_remote_load(9, &[told], NOW);
        while world.send(&Request::default()).is_ok() {}
        assert_eq!(world.counts(), [own], "beside {others}");
        (0..own).for_each(|_| world.end_one_at(0));
    }
}

#[test]
fn a_full_zone_spills_and_a_full_subset_does_not() {
    let mut all = endpoints(4);
    all.iter_mut().zip(["a", "a", "b", "b"]).for_each(|(e, zone)| e.zone = zone.into());
    all[3].tags = ["new".into()].into();
    let policy = r#"{"max_requests": 1, "subset": [{"header": "x-tag", "tag": true}]}"#;
    let mut world = World::new(policy, &all);
    let new = [Want { selector: 0, value: b"new" }];
    let subset = Request { subset: &new, ..Request::default() };
    assert_eq!(world.send(&subset), Ok(3));
    assert_eq!(world.send(&subset), Err(Nothing::Full));
    for _ in 0..2 {
        assert!(world.send(&Request::default()).unwrap() < 2, "the own zone first");
    }
    assert_eq!(world.send(&Request::default()), Ok(2));
}

#[test]
fn nobody_who_is_full_gets_a_probe() {
    let mut world = World::new(r#"{"max_requests": 1, "panic_percent": 0}"#, &endpoints(2));
    let first = world.send(&Request::default()).unwrap();
    world.balancer.set_verdict(first, Verdict::Probe);
    let (_, picks) = world.pick(&Request::default());
    assert_eq!((picks.probe(), picks.first()), (false, Some(1 - first)));
    world.end_one_at(first);
    let (_, picks) = world.pick(&Request::default());
    assert_eq!((picks.probe(), picks.first()), (true, Some(first)));
}

/// A limit that comes or goes with a policy holds from there on.
#[test]
fn the_limit_follows_the_policy() {
    let mut world = World::new("{}", &endpoints(2));
    for _ in 0..10 {
        assert!(world.send(&Request::default()).is_ok());
    }
    let limited = Policy { max_requests: MaxRequests::Fixed(2), ..Policy::default() };
    world.balancer.update(&limited, &endpoints(2), "a", NOW);
    assert_eq!(world.send(&Request::default()), Err(Nothing::Full));
    world.balancer.update(&Policy::default(), &endpoints(2), "a", NOW);
    assert!(world.send(&Request::default()).is_ok());
}
