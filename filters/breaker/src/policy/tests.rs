use super::*;

fn parse(json: &str) -> Result<Policy, String> {
    let value = serde_json::from_str(json).expect("JSON");
    pintle_settings::read("breaker", value).map_err(|error| error.to_string())
}

#[test]
fn nothing_written_is_the_default() {
    assert_eq!(parse("{}"), Ok(Policy::unconfigured()));
}

#[test]
fn every_key_is_read() {
    let policy = parse(
        r#"{"consecutive_failures": 0, "failure_rate": {"percent": 0, "min_requests": 1},
            "window": "1m", "slow_call": {"threshold": "1s500ms", "percent": 80, "min_requests": 7},
            "open": "250ms", "open_max": "2h", "jitter_percent": 0,
            "half_open": {"probes": 8, "successes": 1, "timeout": "5m"},
            "max_ejection_percent": 100, "failure_codes": [404, "500-502", "599"],
            "retries": "any", "fleet": "enforce", "fleet_ttl": "90s", "retry_after": "1h"}"#,
    )
    .unwrap();
    assert_eq!(policy.consecutive_failures, 0);
    assert_eq!(policy.failure_rate, Rate { percent: 0, min_requests: 1 });
    assert_eq!(policy.window, Duration::from_secs(60));
    let slow = policy.slow_call.unwrap();
    assert_eq!(slow.threshold, Duration::from_millis(1500));
    assert_eq!(slow.rate, Rate { percent: 80, min_requests: 7 });
    assert_eq!(policy.open, Duration::from_millis(250));
    assert_eq!(policy.open_max, Duration::from_secs(7200));
    assert_eq!(policy.jitter_percent, 0);
    let half = HalfOpen { probes: 8, successes: 1, timeout: Duration::from_secs(300) };
    assert_eq!(policy.half_open, half);
    assert_eq!(policy.max_ejection_percent, 100);
    let listed: Vec<u16> = (0..=700).filter(|code| policy.failure_codes.contains(*code)).collect();
    assert_eq!(listed, [404, 500, 501, 502, 599]);
    assert_eq!(policy.retries, Retries::Any);
    assert_eq!(policy.fleet, Fleet::Enforce);
    assert_eq!(policy.fleet_ttl, Duration::from_secs(90));
    assert_eq!(policy.retry_after, Duration::from_secs(3600));
}

#[test]
fn a_part_left_out_keeps_its_default() {
    let policy = parse(r#"{"half_open": {"probes": 3}, "slow_call": {}, "open": "10m"}"#).unwrap();
    assert_eq!(policy.half_open.successes, 2);
    assert_eq!(policy.slow_call.unwrap().threshold, Duration::from_secs(1));
    assert_eq!(policy.open_max, policy.open, "the default limit follows a larger base");
}

#[test]
fn null_is_as_if_left_out() {
    let policy = parse(r#"{"slow_call": null, "open": null, "failure_rate": null}"#);
    assert_eq!(policy, Ok(Policy::unconfigured()));
}

#[test]
fn what_is_refused_names_the_key_and_the_range() {
    for (json, expect) in [
        (
            r#"{"consecutive_failures": 1000001}"#,
            "consecutive_failures must be a whole number from 0",
        ),
        (
            r#"{"consecutive_failures": -1}"#,
            "consecutive_failures must be a whole number from 0 to 1000000, found -1",
        ),
        (
            r#"{"failure_rate": {"percent": 101}}"#,
            "failure_rate.percent must be a whole number from 0 to 100",
        ),
        (
            r#"{"failure_rate": {"min_requests": 0}}"#,
            "failure_rate.min_requests must be a whole number from 1",
        ),
        (r#"{"failure_rate": {"per_cent": 1}}"#, "unknown key breaker.failure_rate.per_cent"),
        (r#"{"window": "999ms"}"#, "window must be a duration from 1s to 10m, found \"999ms\""),
        (r#"{"window": "10"}"#, "window must be a duration from 1s to 10m, found \"10\""),
        (r#"{"window": ""}"#, "window must be"),
        (r#"{"window": "5 parsecs"}"#, "window must be"),
        (r#"{"window": "99999999999h"}"#, "window must be"),
        (r#"{"window": "-1s"}"#, "window must be"),
        (
            r#"{"slow_call": {"threshold": "0s"}}"#,
            "slow_call.threshold must be a duration from 1ms to 1h",
        ),
        (r#"{"slow_call": {"percent": 200}}"#, "slow_call.percent must be"),
        (r#"{"open": "99ms"}"#, "open must be a duration from 100ms to 1h"),
        (r#"{"open": "30s", "open_max": "29s"}"#, "open_max must be at least open"),
        (r#"{"jitter_percent": 256}"#, "jitter_percent must be a whole number from 0 to 100"),
        (r#"{"half_open": {"probes": 0}}"#, "half_open.probes must be a whole number from 1 to 8"),
        (r#"{"half_open": {"probes": 9}}"#, "half_open.probes must be a whole number from 1 to 8"),
        (
            r#"{"half_open": {"successes": 0}}"#,
            "half_open.successes must be a whole number from 1 to 100",
        ),
        (
            r#"{"half_open": {"timeout": "6m"}}"#,
            "half_open.timeout must be a duration from 100ms to 5m",
        ),
        (
            r#"{"max_ejection_percent": 101}"#,
            "max_ejection_percent must be a whole number from 0 to 100",
        ),
        (
            r#"{"failure_codes": ["200"]}"#,
            "failure_codes[0] must be a code or a range between 400 and 599",
        ),
        (r#"{"failure_codes": ["599-500"]}"#, "failure_codes[0] must be"),
        (r#"{"failure_codes": ["5xx"]}"#, "failure_codes[0] must be"),
        (r#"{"failure_codes": [70000]}"#, "failure_codes[0] must be"),
        (
            r#"{"failure_codes": [500,500,500,500,500,500,500,500,500,500,500,500,500,500,500,500,500]}"#,
            "failure_codes must be a list of 0 to 16, found 17",
        ),
        (r#"{"retries": "some"}"#, "retries must be failures, any or logged, found \"some\""),
        (r#"{"fleet": "obey"}"#, "fleet must be off, advise or enforce, found \"obey\""),
        (r#"{"fleet_ttl": "2h"}"#, "fleet_ttl must be a duration from 1s to 1h"),
        (r#"{"retry_after": "0s"}"#, "retry_after must be a duration from 1s to 1h"),
        (
            r#"{"jitter_percent": "50"}"#,
            "jitter_percent must be a whole number from 0 to 100, found \"50\"",
        ),
        (
            r#"{"jitter_percent": 0.5}"#,
            "jitter_percent must be a whole number from 0 to 100, found 0.5",
        ),
        (r#"{"window": 10}"#, "window must be a duration from 1s to 10m, found 10"),
        (r#"{"fleet": true}"#, "fleet must be off, advise or enforce, found true"),
        (r#"{"failure_codes": [null]}"#, "failure_codes[0] must be"),
        (
            r#"{"max_ejection": 10}"#,
            "unknown key breaker.max_ejection, accepted are open, open_max, consecutive",
        ),
    ] {
        let error = parse(json).expect_err(json);
        assert!(error.contains(expect), "{json}: {error}");
    }
}

#[test]
fn the_time_open_doubles_up_to_its_limit_and_jitter_only_adds() {
    let policy = Policy::unconfigured();
    for (trips, seconds) in [
        (0, 30),
        (1, 30),
        (2, 60),
        (3, 120),
        (4, 240),
        (5, 300),
        (6, 300),
        (32, 300),
        (u32::MAX, 300),
    ] {
        let least = policy.open_for(trips, 0);
        let most = policy.open_for(trips, u32::MAX);
        assert_eq!(least, Duration::from_secs(seconds), "trip {trips} without jitter");
        assert_eq!(most, Duration::from_secs(seconds) * 3 / 2, "trip {trips} with all of it");
    }
    assert_eq!(policy.open_at_most(), Duration::from_secs(450));
}

proptest::proptest! {
    #[test]
    fn jitter_stays_within_its_share(trips: u32, random: u32, percent in 0u8..=100) {
        let policy = Policy { jitter_percent: percent, ..Policy::unconfigured() };
        let least = policy.open_for(trips, 0);
        let open = policy.open_for(trips, random);
        proptest::prop_assert!(open >= least && open <= least + least * u32::from(percent) / 100);
    }
}
