//! Names that come and go.

use super::*;

fn policy(service: &str, there: bool, revision: u64) -> Change {
    let value = there.then(|| br#"{"strategy":"random"}"#.to_vec());
    let key = format!("/pintle/policies/{service}").into_bytes();
    Change { key, value, revision, ..Change::default() }
}

/// How many come and go; a hundred thousand are for the long form.
fn names() -> u64 {
    let asked = std::env::var("PINTLE_NAMES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(2_000)
}

#[test]
fn of_names_that_came_and_went_nothing_is_kept() {
    let protection = Protection { enabled: false, ..Protection::default() };
    let mut state = State::new(Settings { protection, ..settings() });
    tell(&mut state, listing("orders", 2, 1), at(0));
    let before = state.entries();
    let mut revision = 1;
    for round in 0..names() / 100 {
        let names: Vec<String> = (0..100).map(|n| format!("s-{round}-{n}")).collect();
        let mut change = |state: &mut State, published: bool, of: &dyn Fn(&str, u64) -> Change| {
            let changes = names.iter().map(|name| {
                revision += 1;
                of(name, revision)
            });
            let update = Update::Changes(changes.collect());
            match published {
                true => tell(state, update, at(round)),
                false => state.apply(update, at(round)),
            }
        };
        // Also what comes and goes before it is published.
        change(&mut state, false, &|name, at| policy(name, true, at));
        change(&mut state, true, &|name, at| policy(name, false, at));
        change(&mut state, true, &|name, at| put(name, "a", at));
        change(&mut state, true, &|name, at| policy(name, true, at));
        change(&mut state, true, &|name, at| delete(name, "a", at));
        change(&mut state, true, &|name, at| policy(name, false, at));
        tell(&mut state, Update::Tick, at(round));
        // Deletions are remembered until all is listed again, once a minute.
        tell(&mut state, listing("orders", 2, revision), at(round));
    }
    assert_eq!(state.entries(), before);
    assert!(state.snapshot().gone.len() <= 1_000, "{}", state.snapshot().gone.len());
}
