//! What a configuration may hold, and what a wrong one is told.

use std::time::Duration;

use pintle_settings::{Invalid, Settings};
use pintle_trace::{Config, Policy, Ratio, Spans};

fn read<T: Settings>(json: &str) -> Result<T, Invalid> {
    pintle_settings::read("trace", serde_json::from_str(json).unwrap_or_default())
}

#[test]
fn an_empty_object_is_a_whole_configuration() {
    let config: Config = read("{}").unwrap();
    assert!(config.export().is_none());
    let policy: Policy = read("{}").unwrap();
    assert_eq!((policy.ratio, policy.spans), (Ratio::ALWAYS, Spans::PerRequest));
    assert_eq!(policy.with_ratio(Ratio::NEVER).spans, Spans::PerRequest);
}

#[test]
fn a_null_is_a_key_left_out() {
    let keys = ["extract", "inject", "participate", "tracestate_member", "baggage_allow", "export"];
    for key in keys {
        let json = format!(r#"{{"{key}": null}}"#);
        assert_eq!(read::<Config>(&json), read("{}"), "{key}");
    }
}

#[test]
fn the_exporters_defaults_are_the_documented_ones() {
    let json = r#"{"export": {"cluster": "otel", "service_name": "s"}}"#;
    let config: Config = read(json).unwrap();
    let export = config.export().unwrap();
    assert_eq!((export.batch, export.queue, export.retries), (512, 2048, 5));
    assert_eq!(export.interval, Duration::from_secs(1));
    assert_eq!(export.timeout, Duration::from_secs(5));
    assert!(!export.query);
}

#[test]
fn durations_are_human_text() {
    for (text, expect) in [("250ms", 250), ("30sec", 30_000), ("1s500ms", 1_500), ("50ms", 50)] {
        let json = format!(
            r#"{{"export": {{"cluster": "o", "service_name": "s", "interval": "{text}"}}}}"#
        );
        let config: Config = read(&json).unwrap();
        assert_eq!(config.export().unwrap().interval, Duration::from_millis(expect), "{text}");
    }
}

#[test]
fn a_wrong_configuration_names_the_field_and_what_it_accepts() {
    let export = |fields: &str| {
        format!(r#"{{"export": {{"cluster": "o", "service_name": "s", {fields}}}}}"#)
    };
    for (json, told) in [
        (r#"{"extracts": []}"#.to_owned(), "unknown key trace.extracts, accepted are extract"),
        (
            r#"{"extract": ["w3c"]}"#.to_owned(),
            "trace.extract[0] must be tracecontext, baggage, b3, b3multi, jaeger, datadog or xray, found",
        ),
        (
            r#"{"inject": ["b3", "b3"]}"#.to_owned(),
            "trace.inject must be a list with each format at most once",
        ),
        (r#"{"boundary": "none"}"#.to_owned(), "boundary must be trust, ignore_sampled or restart"),
        (r#"{"direction": "both"}"#.to_owned(), "must be ingress or egress"),
        (
            r#"{"baggage_allow": ["a b"]}"#.to_owned(),
            "trace.baggage_allow[0] must be an HTTP token, found \"a b\"",
        ),
        (r#"{"tracestate_member": "Pintle"}"#.to_owned(), "at most 256, found \"Pintle\""),
        (r#"{"tracestate_member": ""}"#.to_owned(), "tracestate_member must be a tracestate key"),
        (
            r#"{"export": {"cluster": "o"}}"#.to_owned(),
            "export.service_name must be text of 1 to 255 bytes, found nothing",
        ),
        (export(r#""batches": 1"#), "unknown key trace.export.batches"),
        (export(r#""batch": 0"#), "export.batch must be a whole number from 1 to 4096, found 0"),
        (
            export(r#""headers": {"authorization": "Bearer secret"}"#),
            "export.headers must be an object of at most 8 header names in lower case, each with \
             {\"env\": \"VARIABLE\"}: a value stands in the environment alone",
        ),
        (export(r#""headers": {"Authorization": {"env": "A"}}"#), "export.headers must be"),
        (export(r#""headers": {"grpc-timeout": {"env": "A"}}"#), "export.headers must be"),
        (export(r#""headers": {"a": {"env": "A", "value": "b"}}"#), "export.headers must be"),
        (export(r#""headers": {"a": {"env": ""}}"#), "export.headers must be"),
        (export(r#""batch": 100, "queue": 99"#), "export.batch must be at most queue"),
        (
            export(r#""queue": 65537"#),
            "export.queue must be a whole number from 1 to 65536, found 65537",
        ),
        (
            export(r#""interval": "1h""#),
            "export.interval must be a duration from 50ms to 1m, found \"1h\"",
        ),
        (export(r#""interval": "49ms""#), "must be a duration from 50ms to 1m, found \"49ms\""),
        (export(r#""timeout": "61s""#), "to 1m, found \"61s\""),
        (export(r#""timeout": "99999999999999999999s""#), "export.timeout"),
        (
            export(r#""timeout": """#),
            "export.timeout must be a duration from 50ms to 1m, found \"\"",
        ),
        (
            export(r#""retries": 11"#),
            "export.retries must be a whole number from 0 to 10, found 11",
        ),
        (
            export(r#""environment": """#),
            "export.environment must be text of 1 to 255 bytes, found \"\"",
        ),
    ] {
        let error = read::<Config>(&json).unwrap_err().to_string();
        assert!(error.contains(told), "{json}\n{error}");
    }
    for (json, told) in [
        (r#"{"ratio": 1.1}"#, "trace.ratio must be a number from 0.0 to 1.0, found 1.1"),
        (r#"{"ratio": -0.1}"#, "found -0.1"),
        (r#"{"ratio": "half"}"#, "ratio must be a number from 0.0 to 1.0, found \"half\""),
        (r#"{"spans": "all"}"#, "per_request, per_attempt or off"),
        (r#"{"rate": 1}"#, "unknown key trace.rate"),
    ] {
        let error = read::<Policy>(json).unwrap_err().to_string();
        assert!(error.contains(told), "{json}\n{error}");
    }
}
