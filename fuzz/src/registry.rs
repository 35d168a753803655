//! What anybody may write into the registry and the stream of events, value by value.

use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use pintle_contract::{
    AddressPolicy, BreakerState, Down, MAX_WEIGHT, Message as _, Now, Table, Version, is_name,
};
use pintle_policy::Policy;
use pintle_state::entry::{self, MAX_KEY};
use pintle_state::event::{self, Action, Draft, Event, MAX_TTL, MIN_TTL, Origin, Target};
use pintle_state::json::{self as strict, JsonError};
use pintle_state::{BadPolicy, show};
use serde_json::{Value, json};

use crate::document::{other, vary};
use crate::policies::POLICY;

/// A value in which every field is said.
static ENTRY: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "id": "orders-1", "name": "orders", "address": "10.0.7.4", "port": 8001,
        "health": "healthy", "registered_at": "2026-01-01T00:00:00.123456789+01:00",
        "last_heartbeat": "2026-01-01T00:00:00Z", "tags": ["b", "a", "b"],
        "metadata": {"weight": "5", "zone": "a", "region": "r", "version": "1", "protocol": "h2"},
        "more": {"of": ["somebody", "else's"]},
    })
});

/// An event of each kind, and the data that its kind may have.
static EVENTS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let policy = POLICY.clone();
    let event = |kind: &str, subject: &str, data: Value| {
        json!({
            "id": "1", "type": kind, "source": "somebody", "subject": subject, "data": data,
            "metadata": {}, "timestamp": "2026-01-01T00:00:00Z", "version": "1",
        })
    };
    vec![
        event("endpoint", "orders/orders-1", json!({"action": "drain", "ttl": "90s"})),
        event("endpoint", "orders/orders-1", json!({"action": "undrain"})),
        event("endpoint", "orders/..a", json!({"action": "weight", "weight": 3, "ttl": 60})),
        event("service", "orders", json!({"policy": policy, "ttl": "10m"})),
        event("trace", "orders", json!({"ratio": 0.1, "ttl": 1.5})),
        event("breaker", "orders/orders-1", json!({"action": "force-open", "ttl": "1h"})),
        event(
            "breaker",
            "orders/orders-1",
            json!({
                "action": "transition", "proxy": "p1", "from": "closed", "to": "open",
                "reason": "5 consecutive failures", "trips": 1, "ttl": "30s",
            }),
        ),
    ]
});

pub(crate) fn check_policy(policy: &Value) -> std::result::Result<(), BadPolicy> {
    Ok(Policy::check(policy)?)
}

pub(crate) fn registry(data: &[u8]) {
    let _ = read(data);
}

fn read(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    match u.arbitrary::<u8>()? % 5 {
        0 => {
            let bytes = u.take_rest();
            check_text(bytes);
            check_json(bytes);
            check_entry(bytes);
            check_event("events.endpoint.orders/orders-1", bytes);
        }
        1 => check_entry(vary(&ENTRY, &mut u)?.to_string().as_bytes()),
        2 => {
            let which = usize::from(u.arbitrary::<u8>()?) % EVENTS.len();
            let event = vary(&EVENTS[which], &mut u)?;
            let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let on = event::nats_subject("events", &word("type"), &word("subject"));
            check_event(&on, event.to_string().as_bytes());
        }
        3 => check_draft(&mut u)?,
        _ => {
            let value = other(&mut u)?;
            check_json(value.to_string().as_bytes());
        }
    }
    Ok(())
}

/// Keys, times and what is shown of them.
fn check_text(bytes: &[u8]) {
    for prefix in ["/services/", ""] {
        let key = [prefix.as_bytes(), bytes].concat();
        if let Ok((name, id)) = entry::split_key(prefix, &key) {
            assert!(is_name(name) && is_name(id) && key.len() <= MAX_KEY);
            assert_eq!(format!("{prefix}{name}/{id}").as_bytes(), key);
        }
        if let Ok(name) = entry::policy_key(prefix, &key) {
            assert!(is_name(name) && key.len() <= MAX_KEY);
        }
    }
    let shown = show(bytes);
    assert!(shown.chars().count() <= 256);
    assert!(!shown.chars().any(|c| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}')));
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(at) = entry::parse_time(text)
    {
        assert!(text.is_ascii() && (20..=35).contains(&text.len()));
        let draft = draft(Action::Undrain, None, Some("a".into()));
        let written: Value = serde_json::from_slice(&draft.encode(at)).expect("JSON");
        // Beyond what 64 bits of nanoseconds hold there is one time only.
        let again = written["timestamp"].as_str().and_then(entry::parse_time);
        assert!(again == Some(at) || at == Now(u64::MAX), "{text} is {at:?} is {again:?}");
    }
}

/// As `serde_json` reads it, or refused for depth or for a key that is there twice.
fn check_json(bytes: &[u8]) {
    let loose = serde_json::from_slice::<Value>(bytes);
    match strict::parse(bytes) {
        Ok(value) => assert_eq!(loose.ok(), Some(value)),
        Err(JsonError::Syntax(_)) => assert!(loose.is_err(), "{loose:?} is no JSON"),
        Err(JsonError::Depth | JsonError::DuplicateKey(_)) => {}
    }
}

/// What the agent takes is what the filters take.
fn check_entry(bytes: &[u8]) {
    let addresses = AddressPolicy::default();
    match entry::parse("orders", "orders-1", bytes, &addresses) {
        Ok(endpoint) => {
            assert_eq!(endpoint.id, "orders-1");
            assert_eq!(endpoint.check(), Ok(()));
            assert_eq!(addresses.check(endpoint.address), Ok(endpoint.address));
            assert!(!endpoint.metadata.iter().any(|(key, _)| key == "weight" || key == "zone"));
            let table = Table {
                service: "orders".into(),
                version: Version::default(),
                endpoints: vec![endpoint],
                policy: String::new(),
            };
            let down = Down::Table(table);
            assert_eq!(Down::decode(&down.encode()), Ok(down));
        }
        Err(reject) => assert!(!reject.reason().is_empty() && !reject.to_string().is_empty()),
    }
    if let Ok(policy) = entry::parse_policy(bytes, check_policy) {
        assert_eq!(Policy::check(&policy), Ok(()));
    }
}

fn check_event(on: &str, bytes: &[u8]) {
    match event::parse("events", on, bytes, Origin::default(), check_policy) {
        Ok(event) => {
            assert!((MIN_TTL..=MAX_TTL).contains(&event.ttl));
            assert_eq!(
                on,
                event::nats_subject("events", event.action.kind(), &event.target.subject()),
            );
            check_action(&event);
            // Published once more, it says the same.
            let draft = Draft {
                id: event.id.clone(),
                source: event.source.clone(),
                target: event.target.clone(),
                action: event.action.clone(),
                ttl: Some(event.ttl),
            };
            assert_eq!(draft.check(check_policy), Ok(()));
            assert_read_back(&draft, event.happened);
        }
        Err(reject) => assert!(!reject.reason().is_empty() && !reject.to_string().is_empty()),
    }
}

fn check_action(event: &Event) {
    let of_endpoint = matches!(event.action.kind(), "endpoint" | "breaker");
    assert_eq!(event.target.endpoint.is_some(), of_endpoint);
    assert!(is_name(&event.target.service));
    assert!(event.target.endpoint.as_deref().is_none_or(is_name));
    match &event.action {
        Action::Weight(weight) => assert!(*weight <= MAX_WEIGHT),
        Action::Trace(Some(ratio)) => assert!((0.0..=1.0).contains(ratio)),
        Action::Policy(patch) => assert_eq!(Policy::check(patch), Ok(())),
        _ => {}
    }
}

fn draft(action: Action, ttl: Option<Duration>, endpoint: Option<String>) -> Draft {
    let target = Target { service: "orders".into(), endpoint };
    Draft { id: "1".into(), source: "somebody".into(), target, action, ttl }
}

/// What passes the check before it is published is read as it was meant.
fn check_draft(u: &mut Unstructured<'_>) -> Result<()> {
    let word = u.arbitrary::<&str>()?.to_owned();
    let action = match u.arbitrary::<u8>()? % 14 {
        0 => Action::Drain,
        1 => Action::Undrain,
        2 => Action::Eject,
        3 => Action::Restore,
        4 => Action::Weight(u.arbitrary()?),
        5 => Action::Policy(vary(&POLICY, u)?),
        6 => Action::Trace(u.arbitrary()?),
        7 => Action::ForceOpen,
        8 => Action::ForceClose,
        9 => Action::Clear,
        10 => Action::Bypass(u.arbitrary()?),
        11 => Action::Shadow(u.arbitrary()?),
        12 => Action::Failover(Some(serde_json::json!({ "tag": word }))),
        _ => Action::Transition {
            proxy: word.clone(),
            from: BreakerState::Closed,
            to: [BreakerState::Open, BreakerState::HalfOpen][usize::from(u.arbitrary::<bool>()?)],
            reason: word.clone(),
            trips: u.arbitrary()?,
        },
    };
    let ttl = u.arbitrary::<Option<u64>>()?.map(Duration::from_nanos);
    let named = matches!(action.kind(), "endpoint" | "breaker");
    let endpoint = if named { Some(word) } else { None };
    let draft = draft(action, ttl, endpoint);
    if draft.check(check_policy).is_ok() {
        assert_read_back(&draft, Now(u.arbitrary::<u32>()?.into()));
    }
    Ok(())
}

fn assert_read_back(draft: &Draft, at: Now) {
    let on = draft.subject("events");
    let tokens: Vec<&str> = on.split('.').collect();
    assert!(tokens.iter().all(|token| !token.is_empty() && !["*", ">"].contains(token)), "{on}");
    let event = event::parse("events", &on, &draft.encode(at), Origin::default(), check_policy)
        .expect("it has been checked");
    assert_eq!(event.target, draft.target);
    match (&event.action, &draft.action) {
        // The last digit of seventeen may go.
        (Action::Trace(Some(read)), Action::Trace(Some(said))) => {
            assert!((read - said).abs() <= f64::EPSILON, "{said} is {read}");
        }
        (read, said) => assert_eq!(read, said),
    }
    assert!(draft.ttl.is_none_or(|ttl| ttl == event.ttl));
    assert!(event.happened == at || at == Now(u64::MAX));
}
