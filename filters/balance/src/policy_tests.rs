use super::*;

fn parse(json: &str) -> Result<Policy, String> {
    let value = serde_json::from_str(json).expect("JSON");
    pintle_settings::read("select", value).map_err(|error| error.to_string())
}

#[test]
fn an_empty_section_is_the_default() {
    assert_eq!(parse("{}").unwrap(), Policy::default());
}

#[test]
fn everything_can_be_said() {
    let policy = parse(
        r#"{"strategy":"maglev","choice_count":3,"active_request_bias":0.5,
            "hash_key":[{"header":"X-User","terminal":true},
                        {"cookie":{"name":"c","ttl":"1h","path":"/"}},
                        {"query":"q"},{"path":true},{"source_address":true}],
            "hash_function":"murmur2","minimum_ring_size":12,"maximum_ring_size":100,
            "table_size":7,"hash_balance_factor":150,
            "slow_start":{"window":"30s","aggression":2.0,"min_weight_percent":20},
            "panic_percent":0,"zone_aware":false,
            "subset":[{"header":"x-version","metadata":"version"},{"header":"x-tag","tag":true}],
            "subset_fallback":"default","subset_default":{"metadata":{"version":"v1"},"tags":["a"]},
            "sticky":{"cookie":{"name":"pin","ttl":"0s"}},
            "failover":{"tag":"dr"},"max_requests":100,"attempts":16,"ewma_decay":"5s","failure_penalty":7}"#,
    )
    .unwrap();
    assert_eq!(policy.strategy, Strategy::Maglev);
    assert_eq!(policy.max_requests, MaxRequests::Fixed(100));
    assert_eq!(policy.failover, Some(Failover::Tag("dr".into())));
    assert_eq!(policy.hash_key.len(), 5);
    assert_eq!(policy.hash_key[0].source, HashSource::Header("x-user".into()));
    assert!(policy.hash_key[0].terminal);
    let Some(Sticky::Cookie(pin)) = &policy.sticky else { panic!("no cookie") };
    assert_eq!(pin.ttl, Some(Duration::ZERO));
    assert_eq!(policy.slow_start.unwrap().min_fraction, 0.2);
}

#[test]
fn a_refusal_names_the_field_and_the_range() {
    for (json, says) in [
        (
            r#"{"choice_count":1}"#,
            "select.choice_count must be a whole number from 2 to 100, found 1",
        ),
        (
            r#"{"active_request_bias":-1}"#,
            "select.active_request_bias must be a number from 0.0 to 100.0, found -1",
        ),
        (r#"{"table_size":8}"#, "table_size must be a prime"),
        (r#"{"table_size":5000029}"#, "table_size must be a whole number from 2 to 5000011"),
        (
            r#"{"minimum_ring_size":0}"#,
            "minimum_ring_size must be a whole number from 1 to 8388608",
        ),
        (
            r#"{"minimum_ring_size":20,"maximum_ring_size":10}"#,
            "maximum_ring_size must be at least minimum_ring_size",
        ),
        (r#"{"hash_balance_factor":99}"#, "hash_balance_factor must be 0, or 100 to 10000"),
        (r#"{"panic_percent":101}"#, "panic_percent must be a whole number from 0 to 100"),
        (r#"{"attempts":0}"#, "attempts must be a whole number from 1 to 16"),
        (r#"{"attempts":17}"#, "attempts must be a whole number from 1 to 16"),
        (r#"{"ewma_decay":"1ms"}"#, "ewma_decay must be a duration from 100ms to 1h"),
        (r#"{"ewma_decay":"soon"}"#, "ewma_decay must be a duration from 100ms to 1h"),
        (r#"{"slow_start":{}}"#, "slow_start.window must be a duration from 1s to 1d"),
        (r#"{"sticky":{}}"#, "select.sticky must be either a cookie or a header"),
        (
            r#"{"sticky":{"cookie":{"name":"a b"}}}"#,
            "sticky.cookie.name must be a token of 1 to 128 characters",
        ),
        (
            r#"{"hash_key":[{"header":"a","query":"b"}]}"#,
            "select.hash_key[0] must be a part with exactly one",
        ),
        (r#"{"hash_key":[{"header":"a b"}]}"#, "hash_key[0].header must be a header name"),
        (r#"{"failover":{}}"#, "select.failover must be either a tag or a region"),
        (r#"{"failover":{"tag":"a","region":"b"}}"#, "failover must be either a tag or a region"),
        (r#"{"failover":{"zone":"a"}}"#, "unknown key select.failover.zone"),
        (r#"{"subset":[{"tag":true}]}"#, "subset[0].header must be a header name"),
        (r#"{"subset":[{"header":"a"}]}"#, "subset[0] must be a selector with"),
        (r#"{"failure_penalty":1001}"#, "failure_penalty must be a number from 0.0 to 1000.0"),
        (r#"{"stratgy":"p2c"}"#, "unknown key select.stratgy, accepted are"),
        (r#"{"attempts":"3"}"#, "attempts must be a whole number from 1 to 16, found \"3\""),
        (r#"{"ewma_decay":10}"#, "ewma_decay must be a duration from 100ms to 1h, found 10"),
        (r#"{"zone_aware":"yes"}"#, "zone_aware must be true or false, found \"yes\""),
        (r#"{"sticky":{"cookie":{"name":"a","ttl":60}}}"#, "sticky.cookie.ttl must be a duration"),
        (r#"{"strategy":"best"}"#, "or maglev, found \"best\""),
    ] {
        let error = parse(json).expect_err(json);
        assert!(error.contains(says), "{json}: {error}");
    }
}

#[test]
fn primes_are_told_from_the_rest() {
    for (n, prime) in [(0, false), (1, false), (2, true), (3, true), (9, false), (65_537, true)] {
        assert_eq!(is_prime(n), prime, "{n}");
    }
    assert!(is_prime(MAX_TABLE_SIZE));
}
