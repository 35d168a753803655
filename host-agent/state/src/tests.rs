//! The state as a whole: what is told, held, overlaid and published.

mod leaks;
mod names;
mod order;
mod pages;
mod removal;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pintle_contract::{AddressPolicy, Down, Health, Message as _};
use serde_json::Value;

use crate::*;

fn any(_: &Value) -> Result<(), BadPolicy> {
    Ok(())
}

fn settings() -> Settings {
    Settings {
        agent: "here".into(),
        epoch: 100,
        services: "/services/".into(),
        policies: "/pintle/policies/".into(),
        addresses: AddressPolicy::default(),
        budget: 128 << 20,
        protection: Protection::default(),
        decides: Source::Registry,
        check_policy: any,
        demand: |_, _| pintle_balance::Demand::default(),
        vm_budget: 256 << 20,
    }
}

/// `seconds` after the start; the wall clock runs along.
fn at(seconds: u64) -> Moment {
    Moment {
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds),
        mono: Duration::from_secs(seconds),
    }
}

fn value(service: &str, id: &str, port: u16, extra: &str) -> Vec<u8> {
    format!(
        r#"{{"id":"{id}","name":"{service}","address":"10.0.0.1","port":{port},"health":"healthy"{extra}}}"#
    )
    .into_bytes()
}

/// Another for each id.
fn port(id: &str) -> u16 {
    let digits = id.bytes().fold(0, |sum: u64, byte| sum * 31 + u64::from(byte));
    u16::try_from(1 + digits % 65_521).unwrap()
}

fn item(service: &str, id: &str, revision: u64) -> Item {
    Item {
        key: format!("/services/{service}/{id}").into_bytes(),
        value: value(service, id, port(id), ""),
        revision,
        ..Item::default()
    }
}

fn put(service: &str, id: &str, revision: u64) -> Change {
    let item = item(service, id, revision);
    Change { key: item.key, value: Some(item.value), revision, ..Change::default() }
}

fn delete(service: &str, id: &str, revision: u64) -> Change {
    Change { value: None, ..put(service, id, revision) }
}

fn listing(service: &str, count: usize, revision: u64) -> Update {
    Update::Listing(Listing {
        revision,
        items: (0..count).map(|n| item(service, &format!("e{n:05}"), revision)).collect(),
    })
}

/// Applies and publishes.
fn tell(state: &mut State, update: Update, now: Moment) -> Changes {
    let changes = state.apply(update, now);
    state.publish(changes.services.iter().map(String::as_str), true, now);
    changes
}

fn ids(state: &State, service: &str) -> Vec<String> {
    let snapshot = state.snapshot();
    let service = snapshot.services.get(service);
    service.map_or(Vec::new(), |s| s.table.endpoints.iter().map(|e| e.id.clone()).collect())
}

#[test]
fn equal_tables_publish_nothing_and_a_heartbeat_is_no_change() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 2, 5), at(0));
    let first = state.snapshot();
    assert_eq!(first.version.sequence, 1);
    assert!(!first.stale);
    let mut change = put("orders", "e00000", 6);
    change.value = Some(value(
        "orders",
        "e00000",
        port("e00000"),
        r#","last_heartbeat":"2026-01-01T00:00:00Z""#,
    ));
    tell(&mut state, Update::Changes(vec![change]), at(1));
    tell(&mut state, listing("orders", 2, 7), at(2));
    assert_eq!(state.snapshot().version, first.version);
    tell(&mut state, Update::Changes(vec![put("orders", "new", 8)]), at(3));
    assert_eq!(state.snapshot().version.sequence, 2);
    assert_eq!(ids(&state, "orders"), ["e00000", "e00001", "new"]);
}

#[test]
fn every_changed_table_has_a_version_of_its_own_and_none_goes_back() {
    let mut state = State::new(settings());
    let mut last = BTreeMap::new();
    let mut highest = state.snapshot().version;
    for round in 0..50u64 {
        let changes = ["a", "b", "c"].map(|s| put(s, &format!("x{}", round % 7), round + 1));
        tell(&mut state, Update::Changes(changes.to_vec()), at(round));
        let snapshot = state.snapshot();
        assert!(snapshot.version >= highest);
        highest = snapshot.version;
        let mut versions: Vec<_> = snapshot.services.values().map(|s| s.table.version).collect();
        for (name, service) in snapshot.services.iter() {
            let before = last.insert(name.clone(), service.table.version);
            assert!(before.is_none_or(|before| before <= service.table.version));
        }
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), snapshot.services.len());
    }
}

#[test]
fn a_broken_value_leaves_what_was_there_and_what_is_beside_it() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 2, 5), at(0));
    let mut bad = put("orders", "e00000", 6);
    bad.value = Some(b"{".to_vec());
    let mut also = put("orders", "x", 6);
    also.value = Some(value("orders", "y", 80, ""));
    let changes = tell(&mut state, Update::Changes(vec![bad, also, put("orders", "z", 6)]), at(1));
    assert_eq!(changes.refused, [("registry", "json"), ("registry", "identity")]);
    assert_eq!(ids(&state, "orders"), ["e00000", "e00001", "z"]);
    let rejected: Vec<_> = state.snapshot().rejected.iter().map(|r| r.key.clone()).collect();
    assert_eq!(rejected, ["/services/orders/e00000", "/services/orders/x"]);
    tell(
        &mut state,
        Update::Changes(vec![put("orders", "e00000", 7), delete("orders", "x", 7)]),
        at(2),
    );
    assert!(state.snapshot().rejected.is_empty());
}

#[test]
fn what_is_refused_again_for_the_same_reason_is_old_news_until_it_was_good_or_gone() {
    let broken = |revision| {
        let policy = Item {
            key: b"/pintle/policies/orders".to_vec(),
            value: b"[".to_vec(),
            revision: 2,
            ..Item::default()
        };
        let bad = Item { value: b"{".to_vec(), ..item("orders", "x", 2) };
        Update::Listing(Listing { revision, items: vec![bad, policy] })
    };
    let file = |value: &str| {
        Update::file(vec![Told {
            name: "orders".into(),
            policy: Some(b"{".to_vec()),
            endpoints: vec![("f".into(), value.into())],
        }])
    };
    let mut state = State::new(settings());
    assert_eq!(tell(&mut state, broken(5), at(0)).refused.len(), 2);
    assert_eq!(tell(&mut state, file("{"), at(1)).refused.len(), 2);
    let first = state.snapshot();
    for (update, now) in [(broken(6), at(60)), (file("{"), at(61)), (broken(7), at(120))] {
        let changes = tell(&mut state, update, now);
        assert_eq!(changes, Changes::default(), "nothing new");
    }
    assert_eq!(state.snapshot().rejected, first.rejected);
    assert_eq!(state.snapshot().rejected.len(), 4);
    // Another reason is news, and so is the same one after the value was good or gone.
    assert_eq!(tell(&mut state, file("[]"), at(130)).refused.len(), 1);
    assert!(tell(&mut state, Update::file(Vec::new()), at(131)).meta);
    assert_eq!(state.snapshot().rejected.len(), 2);
    assert_eq!(tell(&mut state, file("{"), at(132)).refused.len(), 2);
    tell(&mut state, listing("orders", 1, 8), at(133));
    assert_eq!(tell(&mut state, broken(9), at(134)).refused.len(), 2);
}

#[test]
fn a_service_of_nothing_but_a_policy_is_forgotten_with_it() {
    let policy = || Item {
        key: b"/pintle/policies/orders".to_vec(),
        value: b"{}".to_vec(),
        revision: 1,
        ..Item::default()
    };
    let mut state = State::new(settings());
    let mut gone = |with: Update, without: Update| {
        tell(&mut state, with, at(0));
        assert_eq!(state.names(), ["orders"]);
        tell(&mut state, without, at(1));
        assert!(state.names().is_empty());
    };
    let listing = |revision, items| Update::Listing(Listing { revision, items });
    gone(listing(1, vec![policy()]), listing(2, Vec::new()));
    let delete = Change { key: policy().key, revision: 4, ..Change::default() };
    gone(listing(3, vec![policy()]), Update::Changes(vec![delete]));
    let file = Told { name: "orders".into(), policy: Some(b"{}".to_vec()), ..Told::default() };
    gone(Update::file(vec![file]), Update::file(Vec::new()));
}

/// One key may then be read as either: a policy, or an endpoint of a service called as the prefix
/// is.
#[test]
fn of_two_prefixes_of_which_one_lies_below_the_other_the_longer_has_the_key() {
    let item =
        |key: &str, value: Vec<u8>| Item { key: key.into(), value, revision: 1, ..Item::default() };
    let policy = || item("/pintle/policies/orders", br#"{"a":1}"#.to_vec());
    let endpoint = |at: &str, service| item(at, value(service, "x", 1, ""));
    for (services, policies, items) in [
        ("/pintle/", "/pintle/policies/", [policy(), endpoint("/pintle/orders/x", "orders")]),
        (
            "/pintle/policies/of/",
            "/pintle/policies/",
            [policy(), endpoint("/pintle/policies/of/orders/x", "orders")],
        ),
    ] {
        let settings =
            Settings { services: services.into(), policies: policies.into(), ..settings() };
        let mut state = State::new(settings);
        let policy = |state: &State| state.snapshot().services["orders"].table.policy.clone();
        let [first, second] = items.clone();
        let put = |item: Item| Change {
            key: item.key,
            value: Some(item.value),
            revision: 1,
            ..Change::default()
        };
        let changes = Update::Changes(vec![put(first.clone()), put(second)]);
        assert_eq!(tell(&mut state, changes, at(0)).refused, []);
        assert_eq!(policy(&state), r#"{"a":1}"#);
        let all = Update::Listing(Listing { revision: 5, items: items.to_vec() });
        assert_eq!(tell(&mut state, all, at(1)).refused, []);
        assert_eq!(policy(&state), r#"{"a":1}"#, "it is in the listing");
        let gone = Change { key: first.key, revision: 6, ..Change::default() };
        tell(&mut state, Update::Changes(vec![gone]), at(2));
        assert_eq!(policy(&state), "");
        assert_eq!(ids(&state, "orders"), ["x"]);
    }
}

#[test]
fn keys_that_were_refused_are_shown_without_control_characters() {
    let mut state = State::new(settings());
    let change = Change {
        key: b"/services/\x1b[31m\n\xe2\x80\xae/x".to_vec(),
        value: Some(Vec::new()),
        revision: 1,
        ..Change::default()
    };
    tell(&mut state, Update::Changes(vec![change]), at(0));
    let shown = state.snapshot().rejected[0].key.clone();
    assert!(!shown.chars().any(|c| c.is_control() || c == '\u{202e}'), "{shown:?}");
}

#[test]
fn a_change_that_is_older_than_the_listing_or_than_what_is_known_is_ignored() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 3, 10), at(0));
    tell(&mut state, Update::Changes(vec![delete("orders", "e00000", 9)]), at(1));
    assert_eq!(ids(&state, "orders").len(), 3);
    tell(&mut state, Update::Changes(vec![delete("orders", "e00000", 12)]), at(2));
    tell(&mut state, Update::Changes(vec![put("orders", "e00000", 11)]), at(3));
    assert_eq!(ids(&state, "orders"), ["e00001", "e00002"]);
}

#[test]
fn a_lower_revision_after_a_restore_is_taken_as_it_is() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10, 100), at(0));
    tell(&mut state, listing("orders", 9, 20), at(1));
    assert_eq!(ids(&state, "orders").len(), 9);
    tell(&mut state, Update::Changes(vec![put("orders", "new", 21)]), at(2));
    assert_eq!(ids(&state, "orders").len(), 10);
}

/// Held removals keep an endpoint of before the restore, with a revision that is not reached again
/// soon.
#[test]
fn who_registers_anew_after_a_restore_is_taken_at_whatever_revision() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 3, 100), at(0));
    tell(&mut state, Update::Listing(Listing { revision: 20, items: Vec::new() }), at(1));
    assert_eq!(ids(&state, "orders").len(), 3);
    tell(&mut state, Update::Changes(vec![put("orders", "e00002", 21)]), at(2));
    tell(&mut state, Update::Release { service: "orders".into() }, at(3));
    assert_eq!(ids(&state, "orders"), ["e00002"]);
    tell(&mut state, Update::Changes(vec![put("orders", "new", 22)]), at(4));
    tell(&mut state, Update::Changes(vec![delete("orders", "e00002", 23)]), at(5));
    tell(&mut state, Update::Release { service: "orders".into() }, at(6));
    assert_eq!(ids(&state, "orders"), ["new"]);
}

#[test]
fn the_registry_outranks_the_file_and_events_outrank_both_until_they_end() {
    let mut state = State::new(settings());
    let file = vec![Told {
        name: "orders".into(),
        policy: Some(br#"{"a":1,"b":1,"c":1}"#.to_vec()),
        endpoints: vec![
            ("x".into(), value("orders", "x", 1, "")),
            ("y".into(), value("orders", "y", 1, "")),
        ],
    }];
    tell(&mut state, Update::file(file), at(0));
    assert!(state.snapshot().stale, "the registry has not spoken yet");
    let items = vec![
        Item {
            key: b"/services/orders/x".to_vec(),
            value: value("orders", "x", 2, ""),
            revision: 1,
            ..Item::default()
        },
        Item {
            key: b"/pintle/policies/orders".to_vec(),
            value: br#"{"b":2,"c":null}"#.to_vec(),
            revision: 1,
            ..Item::default()
        },
    ];
    tell(&mut state, Update::Listing(Listing { revision: 1, items }), at(1));
    let table = |state: &State| state.snapshot().services["orders"].table.clone();
    let ports: Vec<_> = table(&state).endpoints.iter().map(|e| (e.id.clone(), e.port)).collect();
    assert_eq!(ports, [("x".into(), 2), ("y".into(), 1)]);
    assert_eq!(table(&state).policy, r#"{"a":1,"b":2,"c":null}"#);
    tell(&mut state, Update::Stream { identity: 1 }, at(2));
    let event = order::event(1, "orders", None, event::Action::Trace(Some(0.5)), 60);
    tell(&mut state, Update::Events(vec![event]), at(2));
    assert_eq!(table(&state).policy, r#"{"a":1,"b":2,"c":null,"trace":{"ratio":0.5}}"#);
    let next = state.next_deadline().unwrap();
    assert_eq!(next, Duration::from_secs(62));
    tell(&mut state, Update::Tick, at(62));
    assert_eq!(table(&state).policy, r#"{"a":1,"b":2,"c":null}"#);
}

#[test]
fn of_two_policies_that_do_not_go_together_the_registrys_stands_alone() {
    fn not_both(policy: &Value) -> Result<(), BadPolicy> {
        let both = policy.get("a").is_some() && policy.get("b").is_some();
        if both { Err("one or the other".into()) } else { Ok(()) }
    }
    let mut state = State::new(Settings { check_policy: not_both, ..settings() });
    let file = Told {
        name: "orders".into(),
        policy: Some(br#"{"a":1}"#.to_vec()),
        endpoints: vec![("x".into(), value("orders", "x", 1, ""))],
    };
    tell(&mut state, Update::file(vec![file]), at(0));
    let policy = |state: &State| state.snapshot().services["orders"].table.policy.clone();
    assert_eq!(policy(&state), r#"{"a":1}"#);
    let change = Change {
        key: b"/pintle/policies/orders".to_vec(),
        value: Some(br#"{"b":1}"#.to_vec()),
        revision: 1,
        ..Change::default()
    };
    tell(&mut state, Update::Changes(vec![change]), at(1));
    assert_eq!(policy(&state), r#"{"b":1}"#);
}

#[test]
fn what_little_changes_of_a_large_table_is_told_by_itself() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 1_000, 1), at(0));
    let before = state.snapshot().services["orders"].clone();
    assert!(before.patch.is_none(), "there is no table before");
    tell(&mut state, Update::Changes(vec![put("orders", "f", 2)]), at(1));
    let after = state.snapshot().services["orders"].clone();
    let patched = after.patch.as_ref().expect("one of a thousand");
    assert!(patched.from == before.table.version && patched.frame.len() < 200);
    let Ok(Down::Patch(patch)) = Down::decode(&patched.frame) else { panic!("no patch") };
    assert_eq!(patch.apply(&before.frame()), Ok(after.frame().to_vec()));
}

#[test]
fn bounds_refuse_the_one_too_many_and_keep_the_rest() {
    let mut state = State::new(settings());
    let changes = tell(&mut state, listing("orders", 10_001, 1), at(0));
    assert_eq!(changes.refused, [("registry", "too_many")]);
    assert_eq!(ids(&state, "orders").len(), 10_000);
    let big = format!(r#","tags":["{}"]"#, "t".repeat(4000));
    let items = (0..2500).map(|n| Item {
        key: format!("/services/big/e{n}").into_bytes(),
        value: value("big", &format!("e{n}"), 1 + n, &big),
        revision: 2,
        ..Item::default()
    });
    let update = Update::Listing(Listing { revision: 2, items: items.collect() });
    let mut state = State::new(settings());
    let changes = tell(&mut state, update, at(0));
    assert!(changes.refused.iter().all(|r| *r == ("registry", "frame_too_large")));
    let service = state.snapshot().services["big"].clone();
    assert!(service.frame().len() <= pintle_contract::MAX_FRAME);
    assert!(service.table.endpoints.len() > 1900);
    let items = (0..=MAX_TOTAL).map(|n| {
        let (service, id) = (format!("s{}", n % 20), format!("e{n:06}"));
        let key = format!("/services/{service}/{id}").into_bytes();
        Item {
            key,
            value: value(&service, &id, 1 + (n / 20) as u16, ""),
            revision: 2,
            ..Item::default()
        }
    });
    let update = Update::Listing(Listing { revision: 2, items: items.collect() });
    let mut state = State::new(settings());
    let changes = tell(&mut state, update, at(0));
    assert_eq!(changes.refused, [("registry", "too_many")]);
    let served = state.snapshot().services.values().map(|s| s.table.endpoints.len()).sum::<usize>();
    assert_eq!(served, MAX_TOTAL);
}

#[test]
fn a_service_that_went_is_remembered_as_gone_and_comes_back_newer() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 1, 1), at(0));
    let before = state.snapshot().services["orders"].table.version;
    tell(&mut state, Update::Changes(vec![delete("orders", "e00000", 2)]), at(1));
    tell(&mut state, Update::Release { service: "orders".into() }, at(2));
    let gone = state.snapshot().gone["orders"];
    assert!(gone > before);
    tell(&mut state, Update::Changes(vec![put("orders", "e00000", 3)]), at(3));
    assert!(state.snapshot().gone.is_empty());
    assert!(state.snapshot().services["orders"].table.version > gone);
}

#[test]
fn a_proxy_with_a_higher_epoch_brings_everything_above_it() {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 2, 1), at(0));
    let before = state.snapshot();
    tell(&mut state, Update::Outrun { epoch: before.version.epoch - 1 }, at(1));
    assert_eq!(state.snapshot().version, before.version, "it has reached that");
    let epoch = before.version.epoch + 7;
    tell(&mut state, Update::Outrun { epoch }, at(2));
    let after = state.snapshot();
    assert_eq!(after.version.epoch, epoch + 1);
    assert_eq!(after.complete_since, after.version);
    let table = &after.services["orders"].table;
    assert_eq!(table.version, after.version);
    assert_eq!(table.endpoints, before.services["orders"].table.endpoints);
    let told = Down::decode(&after.services["orders"].frame()).unwrap();
    assert_eq!(told, Down::Table(table.clone()));
    tell(&mut state, Update::Changes(vec![put("orders", "e00007", 8)]), at(3));
    assert!(state.snapshot().services["orders"].table.version > after.version);
}

#[test]
fn what_was_saved_is_served_stale_until_the_registry_speaks_and_meets_its_emptiness_with_protection()
 {
    let mut state = State::new(settings());
    tell(&mut state, listing("orders", 10, 7), at(0));
    tell(&mut state, Update::Stream { identity: 1 }, at(0));
    let drain = order::event(5, "orders", Some("e00003"), event::Action::Drain, 600);
    tell(&mut state, Update::Events(vec![drain]), at(0));
    let saved = state.save(at(10));
    let text = serde_json::to_string(&saved).unwrap();

    let mut next = State::new(Settings { epoch: 200, ..settings() });
    next.restore(serde_json::from_str(&text).unwrap(), at(20));
    let snapshot = next.snapshot();
    assert!(snapshot.stale);
    assert_eq!(ids(&next, "orders").len(), 10);
    assert_eq!(snapshot.version.epoch, 200);
    let health = |state: &State| state.snapshot().services["orders"].table.endpoints[3].health;
    assert_eq!(health(&next), Health::Draining);
    assert_eq!(next.stream().highest, 5);
    tell(&mut next, Update::Stream { identity: 1 }, at(20));
    let again =
        Update::Events(vec![order::event(5, "orders", Some("e00003"), event::Action::Undrain, 60)]);
    assert_eq!(tell(&mut next, again, at(20)).outcomes, [Outcome::Duplicate]);

    tell(&mut next, listing("orders", 0, 1), at(30));
    assert!(!next.snapshot().stale);
    assert_eq!(ids(&next, "orders").len(), 10);
    tell(&mut next, Update::Tick, at(20 + 590));
    assert_eq!(health(&next), Health::Healthy, "the drain ends when it would have");
}
