//! One address is one endpoint, whatever it is called.

use super::*;

fn named(id: &str, created: u64, extra: &str) -> Change {
    Change {
        key: format!("/services/orders/{id}").into_bytes(),
        value: Some(value("orders", id, 80, extra)),
        revision: created,
        created,
        lease: created,
    }
}

fn one(state: &State) -> pintle_contract::Endpoint {
    let table = state.snapshot().services["orders"].table.clone();
    assert_eq!(table.endpoints.len(), 1, "{:?}", table.endpoints);
    table.endpoints[0].clone()
}

#[test]
fn an_address_under_several_ids_is_what_the_newest_says_and_stays_with_the_last() {
    let mut state = State::new(settings());
    let ids = [("b", 5), ("c", 9), ("a", 7)];
    let puts = ids.map(|(id, created)| {
        named(id, created, &format!(r#","metadata":{{"weight":"{created}"}}"#))
    });
    tell(&mut state, Update::Changes(puts.to_vec()), at(0));
    assert_eq!((one(&state).id, one(&state).weight), ("c".into(), 9));
    assert_eq!(state.snapshot().services["orders"].names["c"], ["a", "b"]);
    // A heartbeat is written later, and is no younger key.
    let mut beat = named("b", 5, r#","metadata":{"weight":"1"}"#);
    beat.revision = 20;
    tell(&mut state, Update::Changes(vec![beat]), at(1));
    assert_eq!(one(&state).weight, 9);
    // The going of a name is no removal.
    let gone = |id: &str| Change { value: None, revision: 30, ..named(id, 0, "") };
    let changes = tell(&mut state, Update::Changes(vec![gone("c")]), at(2));
    assert_eq!((one(&state).id, changes.held), ("a".into(), 0));
    assert_eq!(state.snapshot().services["orders"].names["a"], ["b"]);
    tell(&mut state, Update::Changes(vec![gone("a")]), at(3));
    assert_eq!(one(&state).id, "b");
    assert!(state.snapshot().services["orders"].names.is_empty());
    assert!(state.snapshot().held.is_empty());
}

#[test]
fn ten_ids_of_one_address_beside_two_others_are_three_endpoints() {
    let mut state = State::new(settings());
    let mut puts: Vec<_> = (0..10).map(|n| named(&format!("dead-{n}"), 5 + n, "")).collect();
    puts.extend(["x", "y"].map(|id| put("orders", id, 5)));
    tell(&mut state, Update::Changes(puts), at(0));
    assert_eq!(ids(&state, "orders"), ["dead-9", "x", "y"]);
}

#[test]
fn an_order_by_any_id_is_an_order_for_the_endpoint_and_the_last_one_counts() {
    use event::Action;
    let mut state = State::new(settings());
    let puts = [named("a", 5, ""), named("b", 6, "")];
    tell(&mut state, Update::Changes(puts.to_vec()), at(0));
    tell(&mut state, Update::Stream { identity: 1 }, at(0));
    let mut sequence = 0;
    let mut order = |state: &mut State, id: &str, action: Action| {
        sequence += 1;
        let event = order::event(sequence, "orders", Some(id), action, 600);
        tell(state, Update::Events(vec![event]), at(1));
        one(state)
    };
    assert_eq!(order(&mut state, "a", Action::Drain).health, Health::Draining);
    assert_eq!(order(&mut state, "b", Action::Undrain).health, Health::Healthy);
    assert_eq!(order(&mut state, "b", Action::Weight(5)).weight, 5);
    assert_eq!(order(&mut state, "a", Action::Weight(3)).weight, 3);
    assert!(order(&mut state, "a", Action::ForceOpen).force.is_some());
    assert_eq!(order(&mut state, "a", Action::Eject).health, Health::Unhealthy);
    let restored = order(&mut state, "b", Action::Restore);
    assert_eq!((restored.health, restored.weight), (Health::Healthy, 1));
}

#[test]
fn the_registrys_id_comes_before_the_files_and_the_order_outlives_a_restart() {
    let mut state = State::new(settings());
    let file = Told {
        name: "orders".into(),
        policy: None,
        endpoints: vec![("z".into(), value("orders", "z", 80, ""))],
    };
    let puts = [named("b", 9, ""), named("c", 5, "")];
    tell(&mut state, Update::Changes(puts.to_vec()), at(0));
    tell(&mut state, Update::file(vec![file]), at(0));
    assert_eq!(one(&state).id, "b");
    let mut again = State::new(Settings { epoch: 101, ..settings() });
    again.restore(state.save(at(1)), at(1));
    assert_eq!(one(&again).id, "b");
    assert_eq!(again.snapshot().services["orders"].names["b"], ["c", "z"]);
}
