use super::*;
use pintle_contract::Cidr;

fn loopback() -> AddressPolicy {
    let mut policy = AddressPolicy::default();
    policy.allow.push("127.0.0.0/8".parse::<Cidr>().unwrap());
    policy
}

const GOOD: &str = r#"{"id":"o-1","name":"orders","address":"10.0.0.1","port":8080,"metadata":{"weight":"3","zone":"a","version":"2"},"health":"healthy","tags":["b","a","b"],"registered_at":"2026-01-02T03:04:05.123456789Z","last_heartbeat":"2026-01-02T03:04:05Z"}"#;

/// GOOD with one field's JSON replaced; an empty replacement takes the field out.
fn with(field: &str, json: &str) -> String {
    let mut value: Map<String, Value> = serde_json::from_str(GOOD).unwrap();
    value.remove(field);
    let rest = serde_json::to_string(&value).unwrap();
    match json {
        "" => rest,
        _ => rest.replacen('{', &format!("{{\"{field}\":{json},"), 1),
    }
}

#[test]
fn a_good_value_becomes_an_endpoint() {
    let endpoint = parse("orders", "o-1", GOOD.as_bytes(), &loopback()).unwrap();
    assert_eq!(endpoint.weight, 3);
    assert_eq!(endpoint.zone, "a");
    assert_eq!(*endpoint.tags, ["a", "b"]);
    assert_eq!(*endpoint.metadata, [("version".to_owned(), "2".to_owned())]);
    assert_eq!(endpoint.registered_at.0 % 1_000_000_000, 123_456_789);
    assert!(endpoint.check().is_ok());
}

#[test]
fn what_is_rendered_is_read_again() {
    let whole = parse("orders", "o-1", GOOD.as_bytes(), &loopback()).unwrap();
    let odd = Endpoint {
        weight: 0,
        health: Health::Draining,
        metadata: [("\"\u{1}\\".to_owned(), "ü\n".to_owned())].into(),
        ..Endpoint::new("o-1", ([10, 0, 0, 1], 1).into())
    };
    let six = Endpoint::new("o-1", "[2001:db8::1]:65535".parse().unwrap());
    for endpoint in [whole, odd, six] {
        let text = render("orders", &endpoint);
        assert_eq!(parse("orders", "o-1", text.as_bytes(), &loopback()), Ok(endpoint), "{text}");
    }
}

#[test]
fn what_may_be_absent_null_or_unknown_is_good() {
    for (field, json) in [
        ("metadata", "null"),
        ("tags", "null"),
        ("metadata", ""),
        ("tags", ""),
        ("registered_at", ""),
        ("registered_at", "\"0001-01-01T00:00:00Z\""),
        ("last_heartbeat", "null"),
        ("last_heartbeat", "1735689600"),
        ("last_heartbeat", "\"2026-01-02T03:04:05\""),
        ("whatever", "{\"a\":[1]}"),
        ("address", "\"::ffff:10.0.0.1\""),
        ("address", "\"127.0.0.1\""),
        ("address", "\"2001:db8::1\""),
        ("registered_at", "\"2026-01-02t03:04:05.1+02:00\""),
    ] {
        let value = with(field, json);
        let read = parse("orders", "o-1", value.as_bytes(), &loopback());
        assert!(read.is_ok(), "{field} = {json}: {read:?}");
    }
}

#[test]
fn every_kind_of_broken_value_is_refused_with_its_reason() {
    let long = format!("\"{}\"", "a".repeat(5000));
    let many = format!("[{}]", vec!["\"t\""; 65].join(","));
    let deep = format!("{}{}", "[".repeat(20), "]".repeat(20));
    let table: &[(&str, &str, &str)] = &[
        ("id", "\"o-2\"", "identity"),
        ("name", "\"other\"", "identity"),
        ("id", "\"../x\"", "name"),
        ("id", "\"\"", "name"),
        ("id", "\"\\u0000\"", "name"),
        ("id", "\"о-1\"", "name"),
        ("name", "\"a/b\"", "name"),
        ("name", "3", "field_type"),
        ("name", "", "missing_field"),
        ("address", "\"localhost\"", "address_form"),
        ("address", "\"10.0.0.1:80\"", "address_form"),
        ("address", "\"0x7f.1\"", "address_form"),
        ("address", "\"2130706433\"", "address_form"),
        ("address", "\"010.0.0.1\"", "address_form"),
        ("address", "\"fe80::1%eth0\"", "address_form"),
        ("address", "\"\"", "address_form"),
        ("address", "null", "missing_field"),
        ("address", "[\"10.0.0.1\"]", "field_type"),
        ("address", "\"0.0.0.0\"", "address_unspecified"),
        ("address", "\"::\"", "address_unspecified"),
        ("address", "\"169.254.169.254\"", "address_metadata"),
        ("address", "\"::ffff:169.254.169.254\"", "address_metadata"),
        ("address", "\"100.100.100.200\"", "address_metadata"),
        ("address", "\"fd00:ec2::254\"", "address_metadata"),
        ("address", "\"169.254.1.1\"", "address_link_local"),
        ("address", "\"fe80::1\"", "address_link_local"),
        ("address", "\"224.0.0.1\"", "address_multicast"),
        ("address", "\"255.255.255.255\"", "address_multicast"),
        ("address", "\"ff02::1\"", "address_multicast"),
        ("address", "\"64:ff9b::a9fe:a9fe\"", "address_embedded"),
        ("address", "\"::1\"", "address_not_allowed"),
        ("port", "0", "port"),
        ("port", "-1", "port"),
        ("port", "65536", "port"),
        ("port", "\"80\"", "port"),
        ("port", "80.5", "port"),
        ("port", "80.0", "port"),
        ("port", "1e2", "port"),
        ("port", "null", "port"),
        ("port", "", "missing_field"),
        ("health", "\"Healthy\"", "health"),
        ("health", "true", "field_type"),
        ("health", "", "missing_field"),
        ("metadata", "[]", "field_type"),
        ("metadata", "{\"a\":1}", "field_type"),
        ("metadata", "{\"weight\":\"-1\"}", "weight"),
        ("metadata", "{\"weight\":\"1000001\"}", "weight"),
        ("metadata", "{\"weight\":\"1e3\"}", "weight"),
        ("metadata", "{\"weight\":\"NaN\"}", "weight"),
        ("metadata", "{\"weight\":\"\"}", "weight"),
        ("metadata", "{\"weight\":\"+1\"}", "weight"),
        ("metadata", "{\"weight\":NaN}", "json"),
        ("metadata", "{\"weight\":1e309}", "json"),
        ("metadata", "{\"a\":\"1\",\"a\":\"2\"}", "json_duplicate_key"),
        ("tags", "\"a\"", "field_type"),
        ("tags", "[1]", "field_type"),
        ("tags", &many, "labels"),
        ("whatever", &deep, "json_depth"),
        ("registered_at", "\"yesterday\"", "time"),
        ("registered_at", "\"2026-01-02T03:04:05.1234567890Z\"", "time"),
        ("registered_at", "\"2026-01-02T03:04:05\"", "time"),
        ("registered_at", "\"2026-01-02 03:04:05Z\"", "time"),
        ("registered_at", "\"2026-02-30T03:04:05Z\"", "time"),
        ("registered_at", "\"2026-01-02T03:04:05.Z\"", "time"),
    ];
    for (field, json, expect) in table {
        let value = with(field, json);
        let read = parse("orders", "o-1", value.as_bytes(), &loopback());
        let reason = read.map_err(|reject| reject.reason());
        assert_eq!(reason, Err(*expect), "{field} = {json}");
    }
    for (value, expect) in [
        (format!("{{\"metadata\":{{\"a\":{long}}},{}", &with("metadata", "")[1..]), "labels"),
        (format!("{{\"tags\":[{long}],{}", &with("tags", "")[1..]), "labels"),
        (format!("{{\"id\":\"o-1\",{}", &GOOD[1..]), "json_duplicate_key"),
        (GOOD[..GOOD.len() - 1].to_owned(), "json"),
        (String::new(), "json"),
        ("[]".into(), "not_an_object"),
        ("null".into(), "not_an_object"),
        (format!("{GOOD}{}", " ".repeat(MAX_VALUE)), "value_too_long"),
    ] {
        let read = parse("orders", "o-1", value.as_bytes(), &loopback());
        assert_eq!(read.map_err(|r| r.reason()), Err(expect), "{value:.60}");
    }
    let named = parse("orders", "o-1", with("metadata", "{\"a\":1}").as_bytes(), &loopback());
    let text = named.unwrap_err().to_string();
    assert_eq!(text, "metadata.a is not text");
    let binary = parse("orders", "o-1", b"{\"id\":\"\xff\"}", &loopback());
    assert_eq!(binary.map_err(|r| r.reason()), Err("json"));
}

#[test]
fn a_key_is_a_prefix_a_name_and_an_id() {
    type Split = Result<(&'static str, &'static str), &'static str>;
    let table: &[(&[u8], Split)] = &[
        (b"/services/orders/o-1", Ok(("orders", "o-1"))),
        (b"/services/a.b/c", Ok(("a.b", "c"))),
        (b"/services/orders/10.0.0.1:80", Ok(("orders", "10.0.0.1:80"))),
        (b"/services/team%2Forders/o-1", Ok(("team%2Forders", "o-1"))),
        (b"/services/orders", Err("key")),
        (b"/services/orders/", Err("key")),
        (b"/services//o-1", Err("key")),
        (b"/services/orders/a/b", Err("key")),
        (b"/services/../x", Err("key")),
        (b"/services/a%2f/x", Err("key")),
        (b"/services/a\0/x", Err("key")),
        (b"/services/\xff/x", Err("key")),
        (b"/other/orders/o-1", Err("key")),
    ];
    for (key, expect) in table {
        let split = split_key("/services/", key).map_err(|reject| reject.reason());
        assert_eq!(split, *expect, "{}", String::from_utf8_lossy(key));
    }
    let long = format!("/services/orders/{}", "a".repeat(600));
    assert_eq!(split_key("/services/", long.as_bytes()), Err(Reject::KeyTooLong));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_an_endpoint_or_a_reason(value in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let _ = parse("orders", "o-1", &value, &loopback());
    }

    #[test]
    fn a_damaged_value_is_an_endpoint_within_its_bounds_or_a_reason(at in 0usize..300, byte in 0u8..) {
        let mut value = GOOD.as_bytes().to_vec();
        let at = at % value.len();
        value[at] = byte;
        if let Ok(endpoint) = parse("orders", "o-1", &value, &loopback()) {
            assert!(endpoint.check().is_ok());
            assert_eq!(endpoint.id, "o-1");
        }
    }
}
