//! A registry that is told page by page, beside what its watch tells, and within a budget.

use super::*;

fn page(begins: bool, revision: u64, items: Vec<Item>) -> Update {
    Update::Page(Page { begins, revision, items })
}

const END: Update = Update::Listed(Listed { without_policies: false });

fn policy(text: &str, revision: u64) -> Item {
    Item {
        key: b"/pintle/policies/orders".to_vec(),
        value: text.into(),
        revision,
        ..Item::default()
    }
}

fn ids(state: &State) -> Vec<String> {
    let snapshot = state.snapshot();
    let orders = snapshot.services.get("orders");
    let endpoints = orders.map_or(&[][..], |it| it.table.endpoints.as_slice());
    endpoints.iter().map(|endpoint| endpoint.id.clone()).collect()
}

fn unprotected(budget: usize) -> State {
    let protection = Protection { enabled: false, ..Protection::default() };
    State::new(Settings { protection, budget, ..settings() })
}

#[test]
fn tables_are_made_when_the_last_page_is_told_and_what_no_page_named_goes() {
    let mut state = unprotected(1 << 20);
    tell(&mut state, page(true, 5, vec![item("orders", "a", 1)]), at(0));
    assert!(ids(&state).is_empty() && state.snapshot().stale);
    tell(&mut state, page(false, 5, vec![item("orders", "b", 2)]), at(0));
    tell(&mut state, END, at(0));
    assert_eq!(ids(&state), ["a", "b"]);
    assert!(!state.snapshot().stale);
    // One that is broken off takes nothing away, and what it told comes with the next.
    tell(&mut state, page(true, 7, vec![item("orders", "c", 6)]), at(1));
    tell(&mut state, page(true, 8, vec![item("orders", "b", 2)]), at(2));
    tell(&mut state, page(false, 8, vec![item("orders", "c", 6)]), at(2));
    tell(&mut state, END, at(2));
    assert_eq!(ids(&state), ["b", "c"]);
}

#[test]
fn what_the_watch_tells_beside_a_listing_is_newer() {
    let mut state = unprotected(1 << 20);
    let patch = |text| policy(text, 2);
    let items = vec![item("orders", "a", 1), item("orders", "b", 1), patch(r#"{"a":1}"#)];
    tell(&mut state, Update::Listing(Listing { revision: 5, items: items.clone() }), at(0));
    tell(&mut state, page(true, 6, Vec::new()), at(1));
    let moved = Change { value: Some(value("orders", "a", 9, "")), ..put("orders", "a", 7) };
    let Item { key, value, .. } = policy(r#"{"a":2}"#, 8);
    let newer = Change { key, value: Some(value), revision: 8, ..Change::default() };
    let changes = vec![moved, newer, delete("orders", "b", 9), put("orders", "c", 10)];
    tell(&mut state, Update::Changes(changes), at(1));
    tell(&mut state, page(false, 6, items), at(2));
    tell(&mut state, END, at(2));
    assert_eq!(ids(&state), ["a", "c"]);
    let table = &state.snapshot().services["orders"].table;
    assert_eq!((table.endpoints[0].port, table.policy.as_str()), (9, r#"{"a":2}"#));
    // Old news from before the listing stays without effect.
    tell(&mut state, Update::Changes(vec![put("orders", "z", 6)]), at(3));
    assert_eq!(ids(&state), ["a", "c"]);
}

#[test]
fn policies_that_could_not_be_read_stay() {
    let mut state = unprotected(1 << 20);
    let one = item("orders", "a", 1);
    let items = vec![one.clone(), policy(r#"{"a":1}"#, 2)];
    tell(&mut state, Update::Listing(Listing { revision: 5, items }), at(0));
    tell(&mut state, page(true, 6, vec![one]), at(1));
    tell(&mut state, Update::Listed(Listed { without_policies: true }), at(1));
    assert_eq!(state.snapshot().services["orders"].table.policy, r#"{"a":1}"#);
}

#[test]
fn values_beyond_the_budget_are_refused_by_name_and_taken_once_there_is_room() {
    let one = item("orders", "e00000", 1).value.len();
    let mut state = unprotected(3 * one);
    let items = |range: std::ops::Range<usize>| -> Vec<Item> {
        range.map(|n| item("orders", &format!("e{n:05}"), 1)).collect()
    };
    let listing = |revision, items| Update::Listing(Listing { revision, items });
    let changes = tell(&mut state, listing(1, items(0..5)), at(0));
    assert_eq!(ids(&state).len(), 3);
    assert_eq!(changes.refused, [("registry", entry::OVER_BUDGET); 2]);
    let told = state.snapshot().rejected[0].detail.clone();
    assert!(told.contains("state.budget"), "{told}");
    // Read again it is no news; what is there may be told anew and may shrink.
    assert!(tell(&mut state, listing(2, items(0..5)), at(1)).refused.is_empty());
    tell(&mut state, Update::Changes(vec![put("orders", "e00000", 3)]), at(2));
    assert_eq!(ids(&state), ["e00000", "e00001", "e00002"]);
    tell(&mut state, Update::Changes(vec![delete("orders", "e00000", 4)]), at(3));
    tell(&mut state, listing(5, items(1..5)), at(4));
    assert_eq!(ids(&state), ["e00001", "e00002", "e00003"]);
    assert_eq!(state.snapshot().rejected.len(), 1);
    // A policy counts as well, and a state from disk is held to the same.
    let patch = || policy(r#"{"a":1}"#, 6);
    assert_eq!(tell(&mut state, listing(6, vec![patch()]), at(5)).refused.len(), 1);
    assert!(tell(&mut state, listing(7, vec![patch()]), at(5)).refused.is_empty());
    let mut small = State::new(Settings { budget: 1, epoch: 101, ..settings() });
    small.restore(state.save(at(6)), at(6));
    assert!(ids(&small).is_empty());
}

#[test]
fn a_policy_that_no_vm_can_hold_is_refused_with_the_sum_and_the_one_before_it_stays() {
    fn demand(policy: &Value, endpoints: &[pintle_contract::Endpoint]) -> pintle_balance::Demand {
        let tables = policy["bytes"].as_u64().unwrap_or(0) * endpoints.len() as u64;
        pintle_balance::Demand { endpoints: 10, tables, largest: tables }
    }
    let mut state = State::new(Settings { demand, vm_budget: 1_000, ..settings() });
    let items = vec![item("orders", "a", 1), item("users", "b", 1)];
    tell(&mut state, Update::Listing(Listing { revision: 1, items }), at(0));
    let mut put = |service: &str, bytes: u64, revision: u64| {
        let Item { mut key, .. } = policy("", 0);
        key.truncate(key.len() - "orders".len());
        key.extend_from_slice(service.as_bytes());
        let value = Some(format!(r#"{{"bytes":{bytes}}}"#).into_bytes());
        let change = Change { key, value, revision, ..Change::default() };
        tell(&mut state, Update::Changes(vec![change]), at(revision)).refused.len()
    };
    // Beside each stands room to build the largest anew.
    assert_eq!((put("orders", 500, 2), put("orders", 400, 3)), (1, 0));
    assert_eq!((put("users", 300, 4), put("users", 100, 5)), (1, 0));
    assert_eq!((put("orders", 300, 6), put("users", 300, 7)), (0, 0));
    assert_eq!(put("orders", 500, 8), 1);
    let snapshot = state.snapshot();
    assert_eq!(snapshot.services["orders"].table.policy, r#"{"bytes":300}"#);
    let refused = snapshot.rejected.last().unwrap();
    assert_eq!((refused.source, refused.reason), ("policy", entry::TOO_COSTLY));
    assert!(refused.detail.contains("500 bytes"), "{}", refused.detail);
}
