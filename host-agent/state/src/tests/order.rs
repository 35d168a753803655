//! Events in any order, any number of times: the result is that of seeing each once, in its order.

use pintle_contract::{BreakerState, Now};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::event::{Action, Event, Origin, Target};

pub(super) fn event(
    sequence: u64,
    service: &str,
    endpoint: Option<&str>,
    action: Action,
    ttl: u64,
) -> Event {
    Event {
        id: sequence.to_string(),
        source: "somebody".into(),
        target: Target { service: service.into(), endpoint: endpoint.map(Into::into) },
        action,
        ttl: Duration::from_secs(ttl),
        happened: Now(sequence),
        origin: Origin { stream: 1, sequence, age: Duration::ZERO, published: Now(sequence) },
    }
}

fn transition(agent: &str, proxy: &str, to: BreakerState) -> (String, Action) {
    let action = Action::Transition {
        proxy: proxy.into(),
        from: BreakerState::Closed,
        to,
        reason: String::new(),
        trips: 1,
    };
    (agent.into(), action)
}

/// Few names, so that events collide.
fn random_event(rng: &mut StdRng, sequence: u64, stream: u64) -> Event {
    let (source, action) = match rng.random_range(0..20) {
        0 | 1 => ("a".into(), Action::Drain),
        2 => ("a".into(), Action::Undrain),
        3 => ("a".into(), Action::Eject),
        4 => ("a".into(), Action::Restore),
        5 => ("a".into(), Action::Weight(rng.random_range(0..5))),
        6 => ("a".into(), Action::ForceOpen),
        7 => ("a".into(), Action::Clear),
        8 => ("a".into(), Action::Policy(serde_json::json!({"n": rng.random_range(0..3)}))),
        9 => ("a".into(), Action::Trace(Some(f64::from(rng.random_range(0..3u8)) / 2.0))),
        14 | 15 => ("a".into(), Action::Bypass(rng.random())),
        18 => ("a".into(), Action::Failover(Some(serde_json::json!({"tag": "dr"})))),
        19 => ("a".into(), Action::Failover(None)),
        16 | 17 => ("a".into(), Action::Shadow(rng.random())),
        10 => transition("here", "p1", BreakerState::Open),
        11 => transition("there", "p1", BreakerState::Closed),
        _ => transition("there", ["p1", "p2"][rng.random_range(0..2)], BreakerState::Open),
    };
    let endpoint = matches!(action.kind(), "endpoint" | "breaker");
    Event {
        id: sequence.to_string(),
        source,
        target: Target {
            service: ["s", "t"][rng.random_range(0..2)].into(),
            endpoint: endpoint
                .then(|| ["e00000", "e00001", "absent"][rng.random_range(0..3)].into()),
        },
        action,
        ttl: Duration::from_secs(rng.random_range(1..100)),
        happened: Now(sequence),
        origin: Origin {
            stream,
            sequence,
            age: Duration::from_secs(rng.random_range(0..50)),
            published: Now(sequence),
        },
    }
}

/// What a person would say is in force: the last word on each thing, if it has not ended.
fn model(events: &[Event]) -> BTreeMap<String, String> {
    let mut in_force = BTreeMap::new();
    for event in events {
        let left = event.ttl.saturating_sub(event.origin.age);
        let on = event.target.subject();
        let mut say = |what: &str, word: Option<String>| {
            let key = format!("{on} {what}");
            match word {
                Some(word) if !left.is_zero() => in_force.insert(key, word),
                _ => in_force.remove(&key),
            };
        };
        match &event.action {
            Action::Drain => say("drain", Some("drain".into())),
            Action::Undrain => say("drain", None),
            Action::Eject => say("eject", Some("eject".into())),
            Action::Weight(weight) => say("weight", Some(format!("weight {weight}"))),
            Action::Restore => {
                ["drain", "eject", "weight"].map(|what| say(what, None)).into_iter().collect()
            }
            Action::ForceOpen => say("force", Some("force-open".into())),
            Action::Clear => say("force", Some("clear".into())),
            Action::Policy(_) => say("policy", Some("policy".into())),
            Action::Bypass(on) => say("bypass", on.then(|| "bypass".into())),
            Action::Shadow(on) => say("shadow", on.then(|| "shadow".into())),
            Action::Failover(to) => say("failover", to.as_ref().map(|_| "failover".into())),
            Action::Trace(Some(ratio)) => say("trace", Some(format!("ratio {ratio}"))),
            Action::Transition { proxy, to, .. } if event.source != "here" => {
                say(proxy, (*to == BreakerState::Open).then(|| "open".into()));
            }
            _ => {}
        }
    }
    in_force
}

fn in_force(state: &State) -> Vec<(String, String)> {
    let mut list: Vec<_> = state
        .snapshot()
        .overlays
        .iter()
        .map(|overlay| {
            let target =
                Target { service: overlay.service.clone(), endpoint: overlay.endpoint.clone() };
            (target.subject(), overlay.action.clone())
        })
        .collect();
    list.sort();
    list
}

fn base(identity: u64) -> State {
    let mut state = State::new(settings());
    let mut items = listing_items("s");
    items.extend(listing_items("t"));
    tell(&mut state, Update::Listing(Listing { revision: 1, items }), at(0));
    tell(&mut state, Update::Stream { identity }, at(0));
    state
}

fn listing_items(service: &str) -> Vec<Item> {
    (0..2).map(|n| item(service, &format!("e{n:05}"), 1)).collect()
}

fn tables(state: &State) -> Vec<(Vec<pintle_contract::Endpoint>, String)> {
    let snapshot = state.snapshot();
    let tables = snapshot.services.values().map(|s| &s.table);
    tables.map(|t| (t.endpoints.clone(), t.policy.clone())).collect()
}

#[test]
fn a_hundred_thousand_events_over_a_thousand_seeds_end_in_the_models_state() {
    for seed in 0..1000u64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let events: Vec<_> = (1..=100).map(|n| random_event(&mut rng, n, 1)).collect();
        let mut once = base(1);
        tell(&mut once, Update::Events(events.clone()), at(1));
        let expect: Vec<_> = model(&events)
            .into_iter()
            .map(|(key, word)| (key.split(' ').next().unwrap().to_owned(), word))
            .collect();
        let mut expect = expect;
        expect.sort();
        assert_eq!(in_force(&once), expect, "seed {seed}: in order");

        let mut storm = events.clone();
        storm.extend(events.iter().filter(|_| rng.random_bool(0.5)).cloned());
        storm.shuffle(&mut rng);
        let mut state = base(1);
        for batch in storm.chunks(rng.random_range(1..20)) {
            tell(&mut state, Update::Events(batch.to_vec()), at(1));
        }
        assert_eq!(in_force(&state), expect, "seed {seed}: duplicated and reordered");
        assert_eq!(tables(&state), tables(&once), "seed {seed}");

        tell(&mut state, Update::Events(events.clone()), at(1));
        assert_eq!(tables(&state), tables(&once), "seed {seed}: replayed");

        // What proxies said, published once more as new entries: each has one author and its clock.
        let mut told: Vec<_> =
            events.iter().filter(|e| e.action.name() == "transition").cloned().collect();
        told.shuffle(&mut rng);
        (1_000..).zip(&mut told).for_each(|(sequence, event)| event.origin.sequence = sequence);
        tell(&mut state, Update::Events(told), at(1));
        assert_eq!(tables(&state), tables(&once), "seed {seed}: told again");

        // The same said again in a stream made anew, and late news of the old one.
        tell(&mut state, Update::Stream { identity: 2 }, at(1));
        let again = events.iter().cloned().map(|mut event| {
            event.origin.stream = 2;
            event
        });
        let changes = tell(&mut state, Update::Events(again.collect()), at(1));
        assert!(changes.outcomes.contains(&Outcome::Applied));
        let late = tell(&mut state, Update::Events(events), at(1));
        assert!(late.outcomes.iter().all(|outcome| *outcome == Outcome::Stale));
        assert_eq!(tables(&state), tables(&once), "seed {seed}: made anew");

        tell(&mut state, Update::Tick, at(200));
        assert_eq!(in_force(&state), [], "seed {seed}: all ended");
        for (endpoints, policy) in tables(&state) {
            assert!(endpoints.iter().all(|e| e.health == Health::Healthy && e.weight == 1));
            assert!(endpoints.iter().all(|e| e.opinion.is_none() && e.force.is_none()));
            assert_eq!(policy, "");
        }
    }
}

#[test]
fn opinions_count_other_agents_proxies_and_expire() {
    let mut state = base(1);
    let mut events = Vec::new();
    let said = [("there", "p1"), ("there", "p2"), ("elsewhere", "p1"), ("here", "p9")];
    for (n, (agent, proxy)) in said.into_iter().enumerate() {
        let (source, action) = transition(agent, proxy, BreakerState::Open);
        let mut event = event(n as u64 + 1, "s", Some("e00000"), action, 30 + n as u64);
        event.source = source;
        events.push(event);
    }
    let changes = tell(&mut state, Update::Events(events), at(0));
    assert_eq!(changes.outcomes[3], Outcome::Own);
    let opinion = |state: &State| state.snapshot().services["s"].table.endpoints[0].opinion;
    let now = opinion(&state).unwrap();
    assert_eq!(now.reporters, 3);
    assert_eq!(now.expires_at, now_of(at(32).wall));
    let (_, closed) = transition("there", "p1", BreakerState::HalfOpen);
    let mut closed = event(9, "s", Some("e00000"), closed, 60);
    closed.source = "there".into();
    tell(&mut state, Update::Events(vec![closed]), at(1));
    assert_eq!(opinion(&state).unwrap().reporters, 2);
    tell(&mut state, Update::Tick, at(31));
    assert_eq!(opinion(&state).unwrap().reporters, 1);
    tell(&mut state, Update::Tick, at(32));
    assert_eq!(opinion(&state), None);
}

#[test]
fn an_event_never_brings_back_what_the_registry_deleted() {
    let mut state = base(1);
    tell(&mut state, Update::Changes(vec![delete("s", "e00000", 5)]), at(1));
    let restore = event(1, "s", Some("e00000"), Action::Restore, 60);
    let close = event(2, "s", Some("e00000"), Action::ForceClose, 60);
    tell(&mut state, Update::Events(vec![restore, close]), at(2));
    assert_eq!(ids(&state, "s"), ["e00001"]);
}

#[test]
fn an_order_to_clear_has_a_stamp_of_its_own_each_time() {
    let mut state = base(1);
    let stamp =
        |state: &State| state.snapshot().services["s"].table.endpoints[0].force.unwrap().stamp;
    let mut stamps = Vec::new();
    for n in [1, 2] {
        let clear = event(n, "s", Some("e00000"), Action::Clear, 60);
        tell(&mut state, Update::Events(vec![clear.clone(), clear]), at(n));
        stamps.push(stamp(&state));
    }
    assert_ne!(stamps[0], stamps[1]);
}

#[test]
fn replaying_a_long_past_costs_no_memory() {
    let mut state = base(1);
    let old = (1..=1000).map(|n| {
        let mut event = event(n, "s", Some(&format!("x{n}")), Action::Drain, 60);
        event.target.service = format!("s{n}");
        event.origin.age = Duration::from_secs(90_000);
        event.origin.stream = 1;
        event
    });
    let changes = tell(&mut state, Update::Events(old.collect()), at(1));
    assert!(changes.outcomes.iter().all(|outcome| *outcome == Outcome::Expired));
    assert_eq!(state.save(at(1)).overlays.len(), 0);
}

#[test]
fn opinions_give_way_oldest_first_and_never_keep_an_order_out() {
    let mut state = State::new(settings());
    state.apply(Update::Stream { identity: 1 }, at(0));
    let mut sequence = 0;
    let mut opinion = |state: &mut State, agent: &str, proxy: &str| {
        sequence += 1;
        let (source, action) = transition(agent, proxy, BreakerState::Open);
        let event = Event { source, ..event(sequence, "s", Some("e00001"), action, 60) };
        state.apply(Update::Events(vec![event]), at(1))
    };
    let first = opinion(&mut state, "quiet", "p");
    assert_eq!(first.outcomes, [Outcome::Applied]);
    let mut gave_way = 0;
    for n in 0..60_000 {
        let agent = format!("flood-{}", n % 3);
        gave_way += opinion(&mut state, &agent, &format!("p{n}")).refused.len();
    }
    assert_eq!(gave_way, 45_000, "each flood drives out its own");
    let reporters = |state: &State| {
        let kept = state.save(at(1)).overlays;
        kept.iter().filter(|overlay| overlay.source == "quiet").count()
    };
    assert_eq!(reporters(&state), 1, "who is quiet stays");
    for n in 0..40_000 {
        opinion(&mut state, &format!("many-{n}"), "p");
    }
    assert_eq!(reporters(&state), 0, "the oldest of all goes");
    let saved = state.save(at(1));
    assert_eq!(saved.overlays.len(), MAX_OPINIONS);
    let bytes = serde_json::to_vec(&saved).unwrap().len();
    assert!(bytes < 16 << 20, "{bytes}");
    let order = event(200_000, "s", Some("e00001"), Action::Drain, 60);
    let done = state.apply(Update::Events(vec![order]), at(1));
    assert_eq!(done.outcomes, [Outcome::Applied]);

    // Policies are bounded by their bytes.
    let patch = serde_json::json!({"pad": "x".repeat(60_000)});
    let fits = (0..1_000).filter(|n| {
        let action = Action::Policy(patch.clone());
        let order = event(300_000 + n, &format!("s{n}"), None, action, 60);
        state.apply(Update::Events(vec![order]), at(1)).outcomes == [Outcome::Applied]
    });
    let fits = fits.count();
    assert!((500..600).contains(&fits), "{fits}");
    let order = event(400_000, "s", Some("e00002"), Action::Drain, 60);
    assert_eq!(
        state.apply(Update::Events(vec![order]), at(1)).outcomes,
        [Outcome::Applied],
        "what has no bytes has room"
    );
}
