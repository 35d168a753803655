//! Who goes and who stays, second by second.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::*;

/// The endpoints as they are, whatever the registry says.
#[derive(Default)]
struct World {
    refuse: BTreeSet<SocketAddr>,
    silent: BTreeSet<SocketAddr>,
}

impl World {
    /// Does the trials that are due, and whatever follows from them at the same moment.
    fn answer(&self, state: &mut State, now: Moment) -> Changes {
        let mut last = Changes::default();
        for _ in 0..10 {
            let trials = state.take_trials(now, 100_000);
            if trials.is_empty() {
                break;
            }
            let results = trials.into_iter().map(|trial| {
                let tried = if self.refuse.contains(&trial.address) {
                    Tried::Refused
                } else if self.silent.contains(&trial.address) {
                    Tried::Silent
                } else {
                    Tried::Accepted
                };
                (trial, tried)
            });
            let update = Update::Trials(results.collect());
            let changes = tell(state, update, now);
            last.held += changes.held;
            last.notices.extend(changes.notices);
        }
        last
    }

    /// Lets the time pass up to `until`, second by second.
    fn run(&self, state: &mut State, from: u64, until: u64) {
        for now in from..=until {
            tell(state, Update::Tick, at(now));
            self.answer(state, at(now));
        }
    }
}

fn id(n: usize) -> String {
    format!("e{n:05}")
}

fn address(n: usize) -> SocketAddr {
    format!("10.0.0.1:{}", port(&id(n))).parse().unwrap()
}

/// A state that has known `count` endpoints from the start, each under a lease of its own.
fn leased(count: usize) -> State {
    let mut state = State::new(settings());
    let items = (0..count).map(|n| Item { lease: 1 + n as u64, ..item("orders", &id(n), 1) });
    tell(&mut state, Update::Listing(Listing { revision: 1, items: items.collect() }), at(0));
    state
}

fn unleased(count: usize) -> State {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", count, 1), at(0));
    state
}

fn gone(state: &mut State, numbers: impl IntoIterator<Item = usize>, now: Moment) -> Changes {
    let revision = 1000 + now.mono.as_secs();
    let changes = numbers.into_iter().map(|n| delete("orders", &id(n), revision));
    tell(state, Update::Changes(changes.collect()), now)
}

fn serving(state: &State) -> usize {
    ids(state, "orders").len()
}

fn held(state: &State) -> usize {
    state.snapshot().held.len()
}

#[test]
fn whom_somebody_deleted_goes_at_once_and_only_the_last_is_tried() {
    let mut state = leased(10);
    let changes = gone(&mut state, 0..8, at(1));
    assert_eq!(changes.leases, (1..=8).collect::<Vec<u64>>());
    tell(&mut state, Update::LeasesLive(changes.leases), at(1));
    assert_eq!((serving(&state), held(&state)), (2, 0), "ten scaled down to two");
    let changes = gone(&mut state, 8..10, at(2));
    tell(&mut state, Update::LeasesLive(changes.leases), at(2));
    World::default().answer(&mut state, at(2));
    assert_eq!((serving(&state), held(&state)), (1, 1), "the last one answers");
    World::default().run(&mut state, 3, 2000);
    assert_eq!(serving(&state), 1);
    let refuse = BTreeSet::from([address(8), address(9)]);
    World { refuse, ..World::default() }.run(&mut state, 2001, 2001);
    assert_eq!((serving(&state), held(&state)), (0, 0), "it answers no more");
}

#[test]
fn when_all_leases_expire_nobody_who_answers_goes() {
    let mut state = leased(10);
    // One after the other, as etcd tells it.
    let mut notices = Vec::new();
    for n in 0..10 {
        gone(&mut state, [n], at(1));
        notices.extend(World::default().answer(&mut state, at(1)).notices);
    }
    assert!(notices.iter().any(|n| n.alarm && n.kind == "removal"));
    World::default().run(&mut state, 2, 4000);
    assert_eq!((serving(&state), held(&state)), (10, 10));
    // Whoever stops answering goes, the others stay.
    let refuse = BTreeSet::from([address(3), address(4)]);
    World { refuse, ..World::default() }.run(&mut state, 4001, 4002);
    assert_eq!((serving(&state), held(&state)), (8, 8));
    // Whoever registers again is no longer held.
    let back = (5..10).map(|n| put("orders", &id(n), 9000));
    tell(&mut state, Update::Changes(back.collect()), at(4003));
    assert_eq!((serving(&state), held(&state)), (8, 3));
    let release = Update::Release { service: "orders".into() };
    assert_eq!(tell(&mut state, release, at(4004)).released, 3);
    assert_eq!((serving(&state), held(&state)), (5, 0));
}

#[test]
fn a_dead_endpoint_goes_by_its_refusal_or_its_third_silence() {
    let mut state = leased(10);
    let world =
        World { refuse: (0..5).map(address).collect(), silent: (5..9).map(address).collect() };
    gone(&mut state, 0..9, at(1));
    world.answer(&mut state, at(1));
    assert_eq!(serving(&state), 5, "whose port refuses goes at once");
    world.run(&mut state, 2, 2);
    assert_eq!(serving(&state), 5);
    world.run(&mut state, 3, 3);
    assert_eq!((serving(&state), held(&state)), (1, 0), "the others with the third silence");
}

/// An agent that nobody answers has lost its own network.
#[test]
fn silence_means_nothing_to_an_agent_that_nobody_answers() {
    let mut state = leased(10);
    let world = World { silent: (0..10).map(address).collect(), ..World::default() };
    gone(&mut state, 0..9, at(1));
    world.run(&mut state, 1, 300);
    assert_eq!((serving(&state), held(&state)), (10, 9));
    let world = World { silent: (0..9).map(address).collect(), ..World::default() };
    world.run(&mut state, 301, 303);
    assert_eq!((serving(&state), held(&state)), (1, 0), "one that is there answers again");
}

#[test]
fn one_alone_may_go_untested_at_once_where_it_had_no_lease_and_after_the_window_where_it_had() {
    let world = World::default();
    let mut state = unleased(10);
    gone(&mut state, [0], at(1));
    assert_eq!(serving(&state), 9, "at once");
    gone(&mut state, [1], at(2));
    world.run(&mut state, 2, 60);
    assert_eq!(serving(&state), 9, "the next one a minute later");
    assert_eq!(state.next_deadline(), Some(Duration::from_secs(61)));
    world.run(&mut state, 61, 61);
    assert_eq!(serving(&state), 8);
    gone(&mut state, 2..4, at(200));
    world.run(&mut state, 200, 4000);
    assert_eq!((serving(&state), held(&state)), (8, 2), "of a mass nobody");

    let mut state = leased(10);
    gone(&mut state, [0], at(1));
    world.run(&mut state, 1, 60);
    assert_eq!(serving(&state), 10);
    world.run(&mut state, 61, 61);
    assert_eq!((serving(&state), held(&state)), (9, 0));
}

/// Newcomers take the places of those whose lease was given up while they still answer.
#[test]
fn a_rolling_deployment_waits_for_nobody_but_a_newcomer_that_accepts_no_connection() {
    let mut state = leased(10);
    let mut world = World::default();
    for n in 0..5 {
        let second = 10 + n as u64;
        let newcomer = Change { lease: 50, ..put("orders", &id(100 + n), 2000 + second) };
        tell(&mut state, Update::Changes(vec![newcomer]), at(second));
        gone(&mut state, [n], at(second));
        world.answer(&mut state, at(second));
        assert_eq!((serving(&state), held(&state)), (10, 0), "{n}");
    }
    world.refuse.insert(address(105));
    tell(&mut state, Update::Changes(vec![put("orders", &id(105), 3000)]), at(20));
    gone(&mut state, [5], at(20));
    world.run(&mut state, 20, 70);
    assert_eq!((serving(&state), held(&state)), (11, 1), "it takes no place");
    world.refuse.clear();
    world.run(&mut state, 71, 71);
    assert_eq!((serving(&state), held(&state)), (10, 0));
}

fn moved(n: usize, port: u16, revision: u64) -> Change {
    Change { value: Some(value("orders", &id(n), port, "")), ..put("orders", &id(n), revision) }
}

#[test]
fn who_moves_takes_the_old_place_once_the_new_one_accepts_connections() {
    let mut state = leased(10);
    let there: SocketAddr = "10.0.0.1:60001".parse().unwrap();
    let mut world = World { refuse: BTreeSet::from([there]), ..World::default() };
    let ports = |state: &State| -> BTreeSet<u16> {
        state.snapshot().services["orders"].table.endpoints.iter().map(|e| e.port).collect()
    };
    tell(&mut state, Update::Changes(vec![moved(0, 60_001, 2000)]), at(1));
    world.run(&mut state, 1, 30);
    assert!(ports(&state).contains(&address(0).port()) && !ports(&state).contains(&60_001));
    world.refuse.clear();
    world.run(&mut state, 31, 31);
    assert!(!ports(&state).contains(&address(0).port()) && ports(&state).contains(&60_001));
    assert_eq!((serving(&state), held(&state)), (10, 0));

    // All at once, to where nobody is: the mistake that costs nothing.
    let all = (0..10).map(|n| moved(n, 50_000 + n as u16, 3000));
    world.refuse = (50_000..50_010).map(|port| SocketAddr::new(there.ip(), port)).collect();
    let before = ports(&state);
    tell(&mut state, Update::Changes(all.collect()), at(100));
    world.run(&mut state, 100, 4000);
    assert_eq!((ports(&state), held(&state)), (before.clone(), 10));
    // To where somebody is: at once.
    world.refuse.clear();
    world.run(&mut state, 4001, 4001);
    assert_eq!((serving(&state), held(&state)), (10, 0));
    assert!(ports(&state).is_disjoint(&before));
}

/// The agent tells of each trial when it is done, and the old address may be the quicker one.
#[test]
fn who_moves_is_not_held_while_the_new_place_is_tried() {
    for (there, held_at_last) in [(Tried::Accepted, 0), (Tried::Refused, 1)] {
        let mut state = leased(10);
        tell(&mut state, Update::Changes(vec![moved(0, 60_001, 2000)]), at(1));
        let trials = state.take_trials(at(1), 100);
        let (new, others): (Vec<_>, Vec<_>) =
            trials.into_iter().partition(|trial| trial.address.port() == 60_001);
        let accepted = others.into_iter().map(|trial| (trial, Tried::Accepted)).collect();
        let first = tell(&mut state, Update::Trials(accepted), at(1));
        assert_eq!((first.held, held(&state)), (0, 0));
        let last = new.into_iter().map(|trial| (trial, there)).collect();
        let second = tell(&mut state, Update::Trials(last), at(1));
        assert_eq!((second.held, held(&state)), (held_at_last, held_at_last as usize));
    }
}

#[test]
fn a_stateful_instance_that_comes_back_elsewhere_is_there_once_it_accepts_connections() {
    let mut state = leased(3);
    let world = World { silent: BTreeSet::from([address(0)]), ..World::default() };
    gone(&mut state, [0], at(1));
    world.answer(&mut state, at(1));
    tell(&mut state, Update::Changes(vec![moved(0, 60_001, 2000)]), at(2));
    world.answer(&mut state, at(2));
    let table = state.snapshot().services["orders"].table.clone();
    let ports: Vec<_> = table.endpoints.iter().map(|e| e.port).collect();
    assert!(ports.contains(&60_001) && ports.len() == 3, "{ports:?}");
}

fn health(n: usize, health: &str, revision: u64) -> Change {
    let text = String::from_utf8(value("orders", &id(n), port(&id(n)), "")).unwrap();
    Change {
        value: Some(text.replace("healthy", health).into_bytes()),
        ..put("orders", &id(n), revision)
    }
}

fn healthy(state: &State) -> usize {
    let table = state.snapshot().services["orders"].table.clone();
    table.endpoints.iter().filter(|e| e.health == Health::Healthy).count()
}

#[test]
fn most_of_a_service_called_unhealthy_at_once_is_not_believed_while_it_answers() {
    let mut state = leased(10);
    let world = World::default();
    let few = (0..5).map(|n| health(n, "unhealthy", 2000));
    tell(&mut state, Update::Changes(few.collect()), at(1));
    assert_eq!((healthy(&state), held(&state)), (5, 0), "half of it");
    let more = (5..10).map(|n| health(n, "unhealthy", 2001));
    tell(&mut state, Update::Changes(more.collect()), at(2));
    world.run(&mut state, 2, 300);
    assert_eq!((healthy(&state), held(&state)), (5, 5));
    let refuse = BTreeSet::from([address(5)]);
    World { refuse, ..World::default() }.run(&mut state, 301, 301);
    assert_eq!((healthy(&state), held(&state)), (4, 4));
    tell(&mut state, Update::Changes(vec![health(6, "healthy", 2002)]), at(302));
    assert_eq!((healthy(&state), held(&state)), (4, 3));
    tell(&mut state, Update::Release { service: "orders".into() }, at(303));
    assert_eq!((healthy(&state), held(&state)), (1, 0));
}

#[test]
fn who_drained_first_leaves_freely_but_not_the_last() {
    let mut state = leased(4);
    let drain = (0..4).map(|n| health(n, "draining", 500));
    tell(&mut state, Update::Changes(drain.collect()), at(1));
    gone(&mut state, 0..4, at(2));
    World::default().answer(&mut state, at(2));
    assert_eq!((serving(&state), held(&state)), (1, 1));
}

#[test]
fn only_configuration_turns_it_off() {
    let mut settings = settings();
    settings.protection.enabled = false;
    let mut state = State::new(settings);
    tell(&mut state, listing("orders", 10, 1), at(0));
    gone(&mut state, 0..10, at(1));
    assert_eq!(serving(&state), 0);
}

/// Fourteen restarts in a minute took a service from 100 endpoints to 13 once.
#[test]
fn what_went_untested_is_remembered_over_restarts() {
    let world = World::default();
    let mut state = unleased(100);
    for round in 0..14 {
        let now = at(10 + 4 * round);
        let left = (0..100usize).filter(|n| *n as u64 > round);
        let items = left.map(|n| item("orders", &id(n), 1)).collect();
        tell(&mut state, Update::Listing(Listing { revision: 100 + round, items }), now);
        world.answer(&mut state, now);
        let saved = state.save(now);
        state = State::new(Settings { epoch: 200 + round, ..settings() });
        state.restore(saved, now);
    }
    assert_eq!(serving(&state), 99, "one in the minute");
    world.run(&mut state, 70, 200);
    assert_eq!(serving(&state), 99, "thirteen are a mass");
}

#[test]
fn a_registry_that_comes_back_empty_takes_no_policy_away() {
    let policy = || Item {
        key: b"/pintle/policies/orders".to_vec(),
        value: br#"{"a":1}"#.to_vec(),
        revision: 50,
        ..Item::default()
    };
    let full = |revision, policies: Vec<Item>| {
        let items = (0..10).map(|n| item("orders", &id(n), revision)).chain(policies);
        Update::Listing(Listing { revision, items: items.collect() })
    };
    let in_force = |state: &State| state.snapshot().services["orders"].table.policy.clone();
    let mut state = State::new(settings());
    tell(&mut state, full(60, vec![policy()]), at(0));
    // Everybody has registered again, and nobody has put the policy back.
    let changes = tell(&mut state, full(30, Vec::new()), at(10));
    assert!(changes.notices.iter().any(|n| n.alarm));
    assert_eq!((in_force(&state), held(&state)), (r#"{"a":1}"#.to_owned(), 1));
    // The next listing says the same, and so does the first one after a restart.
    let saved = state.save(at(11));
    tell(&mut state, full(31, Vec::new()), at(12));
    assert_eq!(held(&state), 1);
    let mut again = State::new(Settings { epoch: 101, ..settings() });
    again.restore(saved, at(13));
    tell(&mut again, Update::Listing(Listing { revision: 29, items: Vec::new() }), at(13));
    assert_eq!(in_force(&again), r#"{"a":1}"#);
    tell(&mut state, Update::Release { service: "orders".into() }, at(14));
    assert_eq!((in_force(&state), held(&state)), (String::new(), 0));
    // One that is missing where all else goes on was deleted by somebody.
    tell(&mut state, full(40, vec![Item { revision: 35, ..policy() }]), at(20));
    tell(&mut state, full(50, Vec::new()), at(30));
    assert_eq!((in_force(&state), held(&state)), (String::new(), 0));
}

#[test]
fn a_stepped_wall_clock_removes_nothing_sooner() {
    let mut state = leased(10);
    gone(&mut state, 0..9, at(1));
    World::default().answer(&mut state, at(1));
    tell(&mut state, Update::Stream { identity: 1 }, at(1));
    let drain = order::event(1, "orders", Some("e00009"), event::Action::Drain, 60);
    tell(&mut state, Update::Events(vec![drain]), at(1));
    for wall in [at(3601).wall, at(0).wall - Duration::from_secs(3600)] {
        let stepped = Moment { wall, ..at(2) };
        tell(&mut state, Update::Tick, stepped);
        assert_eq!(serving(&state), 10);
        assert_eq!(state.snapshot().overlays.len(), 1);
    }
}

#[test]
fn ten_thousand_leases_that_expire_at_once_are_held_quickly() {
    let mut state = leased(10_000);
    let began = std::time::Instant::now();
    gone(&mut state, 0..10_000, at(1));
    World::default().answer(&mut state, at(1));
    assert_eq!(serving(&state), 10_000);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
