use prost::Message as _;
use prost_types::value::Kind;

use super::*;

fn refused(text: &str) -> String {
    match Config::parse(text.as_bytes()) {
        Ok(config) => panic!("{text} was taken: {config:?}"),
        Err(error) => error.to_string(),
    }
}

/// What people put into `configuration`, and what it tells them.
#[test]
fn a_wrong_configuration_is_refused_by_its_key() {
    let yaml =
        "the configuration must be a JSON object, or a google.protobuf.Struct, found text in";
    for (text, says) in [
        ("select: {}", yaml),
        ("\n# ours\n---\nselect:\n  attempts: 3\n", yaml),
        ("{select: {}}", yaml),
        ("- select", "found not JSON: invalid number at line 1 column 2"),
        ("select", "found not JSON: expected value at line 1 column 1"),
        ("{\"select\": {},}", "found not JSON: trailing comma at line 1 column 15"),
        ("{'select': {}}", "found not JSON: key must be a string at line 1 column 2"),
        ("{\"select\": {}", "found not JSON: EOF while parsing an object"),
        ("{} {}", "found not JSON: trailing characters"),
        ("\u{feff}{}", "found not JSON: expected value at line 1 column 1"),
        ("[]", "the whole must be an object of keys, found a list"),
        ("\"{}\"", "the whole must be an object of keys, found \"{}\""),
        ("true", "the whole must be an object of keys, found true"),
        ("{\"select\": {}, \"select\": {}}", "found the key select stands twice in one object"),
        (
            "{\"select\": {\"attempts\": 1, \"attempts\": 2}}",
            "found the key select.attempts stands twice in one object",
        ),
        (
            "{\"services\": {\"a\": {}, \"a\": {}}}",
            "found the key services.a stands twice in one object",
        ),
        ("{\"select\": null}", "select must be a value, or left out to be off, found null"),
        ("{\"breaker\": null}", "breaker must be a value, or left out to be off, found null"),
        ("{\"sync\": null}", "sync must be a value, or left out to be off, found null"),
        ("{\"select\": true}", "select must be an object of keys, found true"),
        ("{\"select\": []}", "select must be an object of keys, found a list"),
        ("{\"select\": \"p2c\"}", "select must be an object of keys, found \"p2c\""),
        ("{\"Select\": {}}", "unknown key Select, accepted are bypass, mode, select, breaker"),
        ("{\"mode\": true}", "mode must be active or shadow, found true"),
        (
            "{\"select\": {\"Attempts\": 1}}",
            "unknown key select.Attempts, accepted are header, via",
        ),
        ("{\"trace\": {\"rate\": 1}}", "unknown key trace.rate, accepted are extract, inject"),
        ("{\"sync\": {}}", "sync.cluster must be text of 1 to 1024 bytes, found nothing"),
        ("{\"service\": {\"from\": []}}", "service.from must be a list of 1 to 16, found 0"),
        ("{\"service\": {\"from\": [\"host\"]}}", "service.from[0] must be \"cluster_metadata\""),
        ("{\"addresses\": {\"allow\": [\"10.0.0.1/8\"]}}", "addresses.allow[0] must be a range"),
        (
            "{\"services\": {\"a\": {\"select\": {\"attempts\": 0}}}}",
            "services.a.select.attempts must be a whole number from 1 to 16, found 0",
        ),
        (
            "{\"services\": {\"a\": {\"select\": null}}}",
            "services.a.select must be an object of keys (\"bypass\": true beside it",
        ),
    ] {
        let error = refused(text);
        assert!(error.contains(says), "{text}: {error}");
    }
}

/// The bytes of a `Struct` with these fields.
fn structure(fields: &[(&str, Kind)]) -> prost_types::Struct {
    let value = |kind: &Kind| prost_types::Value { kind: Some(kind.clone()) };
    let fields = fields.iter().map(|(key, kind)| ((*key).to_owned(), value(kind))).collect();
    prost_types::Struct { fields }
}

#[test]
fn a_struct_is_read_as_what_it_holds() {
    let select = structure(&[
        ("attempts", Kind::NumberValue(4.0)),
        ("zone_aware", Kind::BoolValue(true)),
        ("strategy", Kind::StringValue("random".into())),
    ]);
    let of = |part: Kind| structure(&[("select", part)]).encode_to_vec();
    let config = Config::parse(&of(Kind::StructValue(select.clone()))).unwrap();
    assert_eq!(config.default_policy.select.attempts, 4);
    assert_eq!(config.parts_on(), ["select"]);

    let wrong = structure(&[("attempts", Kind::NumberValue(2.5))]);
    let endless = structure(&[("attempts", Kind::NumberValue(f64::NAN))]);
    for (bytes, says) in [
        (of(Kind::NullValue(0)), "select must be a value, or left out to be off, found null"),
        (of(Kind::StructValue(wrong)), "select.attempts must be a whole number"),
        (of(Kind::StructValue(endless)), "found not JSON"),
        (of(Kind::StructValue(select))[..9].to_vec(), "found not JSON"),
        (of(Kind::ListValue(Default::default())), "select must be an object of keys, found a list"),
    ] {
        let error = Config::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn what_is_on_is_told_and_that_nothing_is() {
    let told = |text: &str| {
        let config = Config::parse(text.as_bytes()).unwrap();
        (config.parts_on().join(" "), config.remarks().join("; "))
    };
    for nothing in ["", " \n", "{}"] {
        assert_eq!(told(nothing), Default::default(), "{nothing:?}");
    }
    let (on, remarks) = told(r#"{"select": {}, "trace": {}, "sync": {"cluster": "a"}}"#);
    assert_eq!((on.as_str(), remarks.as_str()), ("select trace", ""));
    assert!(told(r#"{"select": {}}"#).1.contains("select does nothing without sync.cluster"));
    assert!(told(r#"{"breaker": {}}"#).1.contains("breaker does nothing without select"));
}

/// Under `original_dst` the address is the choice's, and nobody else would make one.
#[test]
fn without_a_policy_of_envoys_own_nothing_is_left_to_it() {
    let says = "left out under select.via original_dst, where Envoy has no policy of its own";
    let original = r#"{"select": {"via": "original_dst"}}"#;
    for policy in [r#"{"bypass": true}"#, r#"{"mode": "shadow"}"#] {
        let of_service = original.replace("}}", &format!(r#"}}, "services": {{"a": {policy}}}}}"#));
        assert!(refused(&of_service).contains(says), "{of_service}");
        let of_all = original.replace("}}", &format!("}}, {}", &policy[1..]));
        assert!(refused(&of_all).contains(says), "{of_all}");
        let config = Config::parse(original.as_bytes()).unwrap();
        let error = config.policy("a", policy).unwrap_err().to_string();
        assert!(error.contains(says), "{policy}: {error}");
        assert!(Config::parse(br#"{"select": {}}"#).unwrap().policy("a", policy).is_ok());
    }
}

#[test]
fn a_service_may_be_taken_out_of_a_bypass_of_all() {
    let text = r#"{"bypass": true, "select": {}, "services": {"a": {"bypass": false}}}"#;
    let config = Config::parse(text.as_bytes()).unwrap();
    let bypassed = |service: &str| config.policy(service, "").unwrap().switches.bypass;
    assert_eq!((bypassed("a"), bypassed("b")), (false, true));
}
