//! What a configuration may hold, and what a wrong one is told.

use std::time::Duration;

use pintle_trace::{Config, Policy, Ratio, Spans};

#[test]
fn an_empty_object_is_a_whole_configuration() {
    let config: Config = serde_json::from_str("{}").unwrap();
    assert!(config.export().is_none());
    let policy: Policy = serde_json::from_str("{}").unwrap();
    assert_eq!((policy.ratio, policy.spans), (Ratio::ALWAYS, Spans::PerRequest));
    assert_eq!(policy.with_ratio(Ratio::NEVER).spans, Spans::PerRequest);
}

#[test]
fn the_exporters_defaults_are_the_documented_ones() {
    let json = r#"{"export": {"cluster": "otel", "service_name": "s"}}"#;
    let config: Config = serde_json::from_str(json).unwrap();
    let export = config.export().unwrap();
    assert_eq!((export.batch, export.queue, export.retries), (512, 2048, 5));
    assert_eq!(export.interval, Duration::from_secs(1));
    assert_eq!(export.timeout, Duration::from_secs(5));
    assert!(!export.query);
}

#[test]
fn durations_are_human_text() {
    for (text, expect) in [("250ms", 250), ("30s", 30_000), ("1m", 60_000), ("50ms", 50)] {
        let json = format!(
            r#"{{"export": {{"cluster": "o", "service_name": "s", "interval": "{text}"}}}}"#
        );
        let config: Config = serde_json::from_str(&json).unwrap();
        assert_eq!(config.export().unwrap().interval, Duration::from_millis(expect), "{text}");
    }
}

#[test]
fn a_wrong_configuration_names_the_field_and_what_it_accepts() {
    let export = |fields: &str| {
        format!(r#"{{"export": {{"cluster": "o", "service_name": "s", {fields}}}}}"#)
    };
    for (json, told) in [
        (r#"{"extracts": []}"#.to_owned(), "unknown field `extracts`"),
        (
            r#"{"extract": ["w3c"]}"#.to_owned(),
            "unknown variant `w3c`, expected one of `tracecontext`",
        ),
        (r#"{"inject": ["b3", "b3"]}"#.to_owned(), "inject is with B3 twice"),
        (
            r#"{"boundary": "none"}"#.to_owned(),
            "expected one of `trust`, `ignore_sampled`, `restart`",
        ),
        (r#"{"direction": "both"}"#.to_owned(), "`ingress` or `egress`"),
        (r#"{"baggage_allow": ["a b"]}"#.to_owned(), "baggage_allow is \"a b\", accepted is keys"),
        (r#"{"tracestate_member": "Pintle"}"#.to_owned(), "tracestate_member is \"Pintle\""),
        (r#"{"tracestate_member": ""}"#.to_owned(), "accepted is a tracestate key"),
        (r#"{"export": {"cluster": "o"}}"#.to_owned(), "missing field `service_name`"),
        (export(r#""batches": 1"#), "unknown field `batches`"),
        (export(r#""batch": 0"#), "export.batch is 0, accepted is 1 to 4096"),
        (export(r#""batch": 100, "queue": 99"#), "export.batch is 100 with a queue of 99"),
        (export(r#""queue": 65537"#), "export.queue is 65537, accepted is 1 to 65536"),
        (export(r#""interval": "1h""#), "export.interval is \"1h\", accepted is 50ms to 60s"),
        (export(r#""interval": "49ms""#), "accepted is 50ms to 60s"),
        (export(r#""timeout": "61s""#), "export.timeout is \"61s\""),
        (export(r#""timeout": "99999999999999999999s""#), "export.timeout"),
        (export(r#""timeout": """#), "export.timeout is \"\""),
        (export(r#""retries": 11"#), "export.retries is 11, accepted is 0 to 10"),
        (export(r#""environment": """#), "export.environment is \"\", accepted is 1 to 255 bytes"),
    ] {
        let error = serde_json::from_str::<Config>(&json).unwrap_err().to_string();
        assert!(error.contains(told), "{json}\n{error}");
    }
    for (json, told) in [
        (r#"{"ratio": 1.1}"#, "ratio is 1.1, accepted is 0.0 to 1.0"),
        (r#"{"ratio": -0.1}"#, "ratio is -0.1"),
        (r#"{"ratio": "half"}"#, "invalid type"),
        (r#"{"spans": "all"}"#, "`per_request`, `per_attempt`, `off`"),
        (r#"{"rate": 1}"#, "unknown field `rate`"),
    ] {
        let error = serde_json::from_str::<Policy>(json).unwrap_err().to_string();
        assert!(error.contains(told), "{json}\n{error}");
    }
}
