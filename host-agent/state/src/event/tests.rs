use super::*;
use crate::BadPolicy;

fn any(_: &Value) -> Result<(), BadPolicy> {
    Ok(())
}

fn draft(action: Action, ttl: Option<u64>) -> Draft {
    let endpoint = matches!(action.kind(), "endpoint" | "breaker").then(|| "o-1".to_owned());
    Draft {
        id: "1".into(),
        source: "a person".into(),
        target: Target { service: "orders".into(), endpoint },
        action,
        ttl: ttl.map(Duration::from_secs),
    }
}

#[test]
fn every_action_is_read_as_it_was_written() {
    let transition = Action::Transition {
        proxy: "envoy-1".into(),
        from: BreakerState::Closed,
        to: BreakerState::Open,
        reason: "5 consecutive failures".into(),
        trips: 2,
    };
    for (action, ttl) in [
        (Action::Drain, Some(60)),
        (Action::Undrain, None),
        (Action::Eject, Some(60)),
        (Action::Restore, None),
        (Action::Weight(7), Some(60)),
        (Action::Policy(json!({"strategy": "random"})), Some(60)),
        (Action::Policy(json!({})), None),
        (Action::Bypass(true), Some(60)),
        (Action::Bypass(false), None),
        (Action::Shadow(true), Some(60)),
        (Action::Shadow(false), None),
        (Action::Failover(Some(json!({"tag": "dr"}))), Some(60)),
        (Action::Failover(None), None),
        (Action::Trace(Some(0.25)), Some(60)),
        (Action::Trace(None), None),
        (transition, Some(30)),
        (Action::ForceOpen, Some(60)),
        (Action::ForceClose, Some(60)),
        (Action::Clear, None),
    ] {
        let draft = draft(action.clone(), ttl);
        let on = draft.subject("events");
        let bytes = draft.encode(Now(1_700_000_000_123_456_789));
        let event = parse("events", &on, &bytes, Origin::default(), any).unwrap();
        assert_eq!(event.action, action);
        assert_eq!(event.target, draft.target);
        assert_eq!(event.ttl, Duration::from_secs(ttl.unwrap_or(60)));
    }
}

#[test]
fn the_subject_is_the_one_that_type_and_subject_spell() {
    for (kind, subject, expect) in [
        ("endpoint", "orders/o-1", "events.endpoint.orders/o-1"),
        ("endpoint", "a.b/c.d", "events.endpoint.a.b/c.d"),
        ("service", "a..b", "events.service.a%2E%2Eb"),
        ("service", ".a", "events.service.%2Ea"),
    ] {
        assert_eq!(nats_subject("events", kind, subject), expect);
    }
}

#[test]
fn every_kind_of_broken_event_is_refused_with_its_reason() {
    let good = draft(Action::Drain, Some(60));
    let on = good.subject("events");
    let text = String::from_utf8(good.encode(Now(0))).unwrap();
    let swap = |from: &str, to: &str| {
        assert!(text.contains(from), "{from} not in {text}");
        text.replace(from, to)
    };
    let table: &[(String, &str, &str)] = &[
        ("".into(), &on, "json"),
        ("[]".into(), &on, "not_an_object"),
        (swap("\"version\":\"1\"", "\"version\":\"2\""), &on, "event_version"),
        (swap(",\"version\":\"1\"", ""), &on, "missing_field"),
        (swap("\"type\":\"endpoint\"", "\"type\":\"endpoints\""), &on, "event_type"),
        (swap("\"type\":\"endpoint\"", "\"type\":3"), &on, "field_type"),
        (swap("orders/o-1", "orders"), &on, "subject"),
        (swap("orders/o-1", "orders/../x"), &on, "subject"),
        (swap("orders/o-1", "orders/o-2"), &on, "subject"),
        (text.clone(), "events.endpoint.orders/o-2", "subject"),
        (text.clone(), "events.service.orders/o-1", "subject"),
        (text.clone(), "other.endpoint.orders/o-1", "subject"),
        (swap("\"drain\"", "\"explode\""), &on, "action"),
        (swap("\"drain\"", "\"weight\""), &on, "weight"),
        (swap("\"1m\"", "\"\""), &on, "ttl"),
        (swap("\"1m\"", "\"25h\""), &on, "ttl"),
        (swap("\"1m\"", "0.5"), &on, "ttl"),
        (swap("\"1m\"", "-5"), &on, "ttl"),
        (swap("\"1m\"", "null"), &on, "ttl"),
        (swap(",\"ttl\":\"1m\"", ""), &on, "ttl"),
        (swap("\"id\":\"1\"", "\"id\":\"\""), &on, "missing_field"),
        (swap("\"source\":\"a person\"", "\"source\":null"), &on, "missing_field"),
        (swap("1970-01-01T00:00:00Z", "now"), &on, "time"),
        (swap("\"metadata\":{}", "\"metadata\":[]"), &on, "field_type"),
        (swap("\"data\":{", "\"data\":{\"action\":\"drain\","), &on, "json_duplicate_key"),
        (format!("{text}{}", " ".repeat(70_000)), &on, "value_too_long"),
    ];
    for (payload, subject, expect) in table {
        let read = parse("events", subject, payload.as_bytes(), Origin::default(), any);
        assert_eq!(read.map_err(|r| r.reason()), Err(*expect), "{payload:.200}");
    }
}

#[test]
fn a_ratio_that_json_cannot_say_is_refused_before_it_is_published() {
    for ratio in [f64::NAN, f64::INFINITY] {
        let draft = draft(Action::Trace(Some(ratio)), Some(60));
        assert_eq!(draft.check(any), Err(Reject::Type("ratio", RATIO)));
    }
}

#[test]
fn a_policy_must_follow_its_schema() {
    fn never(_: &Value) -> Result<(), BadPolicy> {
        Err("no".into())
    }
    let draft = draft(Action::Policy(json!({"a": 1})), Some(60));
    assert_eq!(draft.check(never), Err(Reject::Policy("no".into())));
    assert!(draft.check(any).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_an_event_or_a_reason(payload in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let _ = parse("events", "events.endpoint.orders/o-1", &payload, Origin::default(), any);
    }
}

/// Each thing that an event sets ends by itself, so that one event sets one.
#[test]
fn an_event_of_a_service_says_one_thing_and_says_it_whole() {
    let parse_data = |data: Value| {
        let text = String::from_utf8(draft(Action::Bypass(true), Some(60)).encode(Now(0))).unwrap();
        let text = text.replace(r#"{"bypass":true,"ttl":"1m"}"#, &data.to_string());
        let read =
            parse("events", "events.service.orders", text.as_bytes(), Origin::default(), any);
        read.map(|event| event.action).map_err(|reject| reject.reason())
    };
    for (data, read) in [
        (json!({"bypass": true, "ttl": 60}), Ok(Action::Bypass(true))),
        (json!({"mode": "shadow", "ttl": "1h"}), Ok(Action::Shadow(true))),
        (json!({"mode": "active"}), Ok(Action::Shadow(false))),
        (json!({"bypass": true}), Err("ttl")),
        (json!({"bypass": true, "mode": "shadow", "ttl": "1m"}), Err("field_type")),
        (json!({"bypass": true, "policy": {}, "ttl": "1m"}), Err("field_type")),
        (json!({"bypass": "yes", "ttl": "1m"}), Err("field_type")),
        (json!({"mode": "off", "ttl": "1m"}), Err("field_type")),
        (json!({"failover": {"tag": "a"}, "ttl": "1m"}), {
            Ok(Action::Failover(Some(json!({"tag": "a"}))))
        }),
        (json!({"failover": null}), Ok(Action::Failover(None))),
        (json!({"failover": "dr", "ttl": "1m"}), Err("field_type")),
        (json!({"ttl": "1m"}), Err("field_type")),
    ] {
        assert_eq!(parse_data(data.clone()), read, "{data}");
    }
}
