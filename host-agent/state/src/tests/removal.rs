//! Removal protection, second by second.

use super::*;

fn gone(state: &mut State, service: &str, numbers: std::ops::Range<usize>, now: Moment) -> Changes {
    let changes = numbers.map(|n| delete(service, &format!("e{n:05}"), 1000 + now.mono.as_secs()));
    tell(state, Update::Changes(changes.collect()), now)
}

#[test]
fn single_removals_go_at_once_and_mass_ones_at_the_pace_of_the_budget() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 100, 1), at(0));
    assert_eq!(gone(&mut state, "orders", 0..1, at(1)).held, 0);
    assert_eq!(ids(&state, "orders").len(), 99);
    let changes = gone(&mut state, "orders", 1..60, at(2));
    assert_eq!(ids(&state, "orders").len(), 85, "15 of 100 within the minute");
    assert_eq!(changes.held, 45);
    assert!(changes.notices.iter().any(|n| n.alarm && n.kind == "removal"));
    assert_eq!(state.snapshot().held.len(), 45);
    assert_eq!(state.next_deadline(), Some(Duration::from_secs(61)));
    tell(&mut state, Update::Tick, at(60));
    assert_eq!(ids(&state, "orders").len(), 85);
    tell(&mut state, Update::Tick, at(61));
    assert_eq!(ids(&state, "orders").len(), 85, "14 in the last minute are 15 % of 99");
    tell(&mut state, Update::Tick, at(62));
    assert_eq!(ids(&state, "orders").len(), 73, "12 are 15 % of 85");
    let mut now = 62;
    while !state.snapshot().held.is_empty() {
        now = state.next_deadline().unwrap().as_secs().max(now + 1);
        tell(&mut state, Update::Tick, at(now));
    }
    assert_eq!(ids(&state, "orders").len(), 40);
    assert!((180..600).contains(&now), "{now}");
}

/// A removal comes when the turn of others has come, and before the tick that would have told.
#[test]
fn whose_turn_comes_with_the_removal_of_another_is_gone_from_the_table_as_well() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 100, 1), at(0));
    gone(&mut state, "orders", 0..60, at(1));
    assert_eq!((ids(&state, "orders").len(), state.snapshot().held.len()), (85, 45));
    let changes = gone(&mut state, "orders", 60..61, at(70));
    assert_eq!(changes.services, ["orders"]);
    assert!(changes.notices.iter().any(|n| n.text == "12 held removals took effect"));
    assert_eq!((ids(&state, "orders").len(), state.snapshot().held.len()), (73, 34));
}

#[test]
fn a_service_is_never_emptied_within_the_grace() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 3, 1), at(0));
    gone(&mut state, "orders", 0..3, at(10));
    assert_eq!(ids(&state, "orders").len(), 2);
    for now in (11..610).step_by(7) {
        tell(&mut state, Update::Tick, at(now));
        assert!(!ids(&state, "orders").is_empty(), "empty at {now}");
    }
    let held = state.snapshot().held[0].clone();
    assert_eq!(held.endpoint, "e00002");
    assert_eq!(held.since, at(10).wall);
    tell(&mut state, Update::Tick, at(609));
    assert_eq!(ids(&state, "orders").len(), 1);
    tell(&mut state, Update::Tick, at(610));
    assert!(ids(&state, "orders").is_empty());
}

#[test]
fn whoever_comes_back_is_no_longer_held() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10, 1), at(0));
    gone(&mut state, "orders", 0..10, at(1));
    assert_eq!(state.snapshot().held.len(), 9);
    let back = (0..10).map(|n| put("orders", &format!("e{n:05}"), 2000));
    tell(&mut state, Update::Changes(back.collect()), at(2));
    assert!(state.snapshot().held.is_empty());
    assert_eq!(ids(&state, "orders").len(), 10);
    tell(&mut state, Update::Tick, at(5000));
    assert_eq!(ids(&state, "orders").len(), 10);
    assert_eq!(state.next_deadline(), None);
}

#[test]
fn a_person_may_confirm_and_only_configuration_turns_it_off() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10, 1), at(0));
    gone(&mut state, "orders", 0..10, at(1));
    let release = Update::Release { service: "orders".into() };
    assert_eq!(tell(&mut state, release, at(2)).released, 9);
    assert!(ids(&state, "orders").is_empty());
    assert!(state.snapshot().held.is_empty());

    let mut settings = settings();
    settings.protection.enabled = false;
    let mut state = State::new(settings);
    tell(&mut state, listing("orders", 10, 1), at(0));
    assert_eq!(gone(&mut state, "orders", 0..10, at(1)).held, 0);
    assert!(ids(&state, "orders").is_empty());
}

#[test]
fn who_drained_first_leaves_freely_but_not_the_last() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 4, 1), at(0));
    let drain = |n: usize| Change {
        value: Some(
            String::from_utf8(value("orders", &format!("e{n:05}"), 80, ""))
                .unwrap()
                .replace("healthy", "draining")
                .into_bytes(),
        ),
        ..put("orders", &format!("e{n:05}"), 5)
    };
    tell(&mut state, Update::Changes((0..4).map(drain).collect()), at(1));
    assert_eq!(gone(&mut state, "orders", 0..4, at(2)).held, 1);
    assert_eq!(ids(&state, "orders"), ["e00003"]);
}

/// An instance that starts again where it was, under another id, before or after the old one goes.
#[test]
fn whose_address_another_id_has_does_not_wait_and_takes_no_ones_turn() {
    let again = |n: usize| {
        let mut change = put("orders", &format!("again-{n}"), 2000);
        change.value = put("orders", &format!("e{n:05}"), 2000).value.map(|old| {
            String::from_utf8(old)
                .unwrap()
                .replace(&format!("e{n:05}"), &format!("again-{n}"))
                .into()
        });
        change
    };
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10, 1), at(0));
    let total = |state: &State| (ids(state, "orders").len(), state.snapshot().held.len());
    // First the new one, then the old one goes: ten times, where one a minute may.
    for n in 0..5 {
        tell(&mut state, Update::Changes(vec![again(n)]), at(1));
        assert_eq!(gone(&mut state, "orders", n..n + 1, at(1)).held, 0);
        assert_eq!(total(&state), (10, 0));
    }
    // First the old one goes: the first has its turn, the others wait until they are registered again.
    assert_eq!(gone(&mut state, "orders", 5..10, at(2)).held, 4);
    assert_eq!(total(&state), (9, 4));
    for n in 5..10 {
        tell(&mut state, Update::Changes(vec![again(n)]), at(3));
    }
    assert_eq!(total(&state), (10, 0));
    assert!(ids(&state, "orders").iter().all(|id| id.starts_with("again")));
    // The address is one's own again, so that the last to go is held as ever.
    let changes = (0..10).map(|n| delete("orders", &format!("again-{n}"), 3000)).collect();
    tell(&mut state, Update::Changes(changes), at(4));
    assert_eq!(total(&state), (10, 10));
}

#[test]
fn a_stepped_wall_clock_removes_nothing_sooner() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10, 1), at(0));
    gone(&mut state, "orders", 0..10, at(1));
    tell(&mut state, Update::Stream { identity: 1 }, at(1));
    let drain = order::event(1, "orders", Some("e00009"), event::Action::Drain, 60);
    tell(&mut state, Update::Events(vec![drain]), at(1));
    for wall in [at(3601).wall, at(0).wall - Duration::from_secs(3600)] {
        let stepped = Moment { wall, ..at(2) };
        tell(&mut state, Update::Tick, stepped);
        assert_eq!(ids(&state, "orders").len(), 9);
        assert_eq!(state.snapshot().overlays.len(), 1);
    }
}

#[test]
fn ten_thousand_leases_that_expire_at_once_are_held_quickly() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10_000, 1), at(0));
    let began = std::time::Instant::now();
    gone(&mut state, "orders", 0..10_000, at(1));
    assert_eq!(ids(&state, "orders").len(), 8_500);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
