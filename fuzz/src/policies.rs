//! What an operator, the registry and events say of a service, as text and as layers.

use std::ops::RangeInclusive;
use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use pintle_balance::{HashSource, MAX_ATTEMPTS, MAX_RING_SIZE, MAX_TABLE_SIZE, Sticky};
use pintle_policy::{Config, Policy, Source, merge};
use pintle_state::{entry, json as strict};
use pintle_trace::is_field_value;
use serde_json::{Value, json};

use crate::document::vary;

/// A service's policy in which every key is said.
pub(crate) static POLICY: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "select": {
            "strategy": "ring_hash", "choice_count": 3, "active_request_bias": 1.5,
            "hash_key": [
                {"header": "x-user", "terminal": true},
                {"cookie": {"name": "c", "ttl": "1h", "path": "/"}},
                {"query": "q"}, {"path": true}, {"source_address": true},
            ],
            "hash_function": "murmur2", "minimum_ring_size": 64, "maximum_ring_size": 1024,
            "table_size": 101, "hash_balance_factor": 120,
            "slow_start": {"window": "30s", "aggression": 2.0, "min_weight_percent": 5},
            "panic_percent": 40, "zone_aware": false,
            "subset": [{"header": "x-version", "metadata": "version"}, {"tag": true}],
            "subset_fallback": "default",
            "subset_default": {"metadata": {"version": "1"}, "tags": ["stable"]},
            "sticky": {"cookie": {"name": "pin", "ttl": "1h"}},
            "attempts": 4, "ewma_decay": "5s", "failure_penalty": 10.0,
        },
        "breaker": {
            "consecutive_failures": 3, "failure_rate": {"percent": 40, "min_requests": 5},
            "window": "20s",
            "slow_call": {"threshold": "2s", "percent": 60, "min_requests": 6},
            "open": "5s", "open_max": "60s", "jitter_percent": 10,
            "half_open": {"probes": 2, "successes": 3, "timeout": "2s"},
            "max_ejection_percent": 30, "failure_codes": ["500-599", 429, "404"],
            "retries": "any", "fleet": "enforce", "fleet_ttl": "30s", "retry_after": "10s",
        },
        "trace": {"ratio": 0.25, "spans": "per_attempt"},
    })
});

/// A plugin's configuration in which every key is said.
static PLUGIN: LazyLock<Value> = LazyLock::new(|| {
    let mut whole = json!({
        "service": {"from": [
            "cluster_metadata", "route_metadata", "cluster", "authority",
            {"cluster": "outbound|80||*.local"}, {"authority": "*.example"}, {"header": "x-svc"},
        ]},
        "sync": {"cluster": "pintle_agent"},
        "select": {"via": "original_dst", "header": "x-list", "unknown_service": "reject"},
        "trace": {
            "extract": ["tracecontext", "b3", "baggage"], "inject": ["tracecontext", "xray"],
            "boundary": "ignore_sampled", "baggage_allow": ["a", "b"], "direction": "egress",
            "tracestate_member": "pintle", "participate": true,
            "export": {
                "cluster": "otel", "service_name": "cart", "service_version": "1",
                "environment": "test", "resource": {"host.name": "a"}, "batch": 10,
                "interval": "500ms", "queue": 100, "timeout": "2s", "retries": 3, "query": true,
            },
        },
        "addresses": {"allow": ["10.0.0.0/8", "::1/128"]},
        "services": {},
    });
    merge(&mut whole, &POLICY);
    whole["services"]["orders"] = POLICY.clone();
    whole
});

pub(crate) fn policies(data: &[u8]) {
    let _ = read(data);
}

fn read(data: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(data);
    match u.arbitrary::<u8>()? % 4 {
        0 => {
            let bytes = u.take_rest();
            if let Ok(config) = Config::parse(bytes) {
                check_config(&config, &POLICY);
            }
            if let Ok(patch) = serde_json::from_slice(bytes) {
                check_patch(&patch);
            }
        }
        1 => check_patch(&vary(&POLICY, &mut u)?),
        2 => {
            let (first, second) = (vary(&POLICY, &mut u)?, vary(&POLICY, &mut u)?);
            check_merge(&first, &second);
            check_compose(&first, &second);
        }
        _ => {
            if let Ok(config) = Config::parse(vary(&PLUGIN, &mut u)?.to_string().as_bytes()) {
                check_config(&config, &vary(&POLICY, &mut u)?);
            }
        }
    }
    Ok(())
}

fn check_patch(patch: &Value) {
    let good = Policy::check(patch);
    match Policy::resolve([patch]) {
        Ok(policy) => check_policy(&policy),
        Err(error) => assert!(good.is_err() && !error.to_string().is_empty()),
    }
    // The agent has the same schema, and bounds of its own.
    let read =
        entry::parse_policy(patch.to_string().as_bytes(), |policy| Ok(Policy::check(policy)?));
    assert!(read.is_err() || good.is_ok());
}

fn within<T: PartialOrd + std::fmt::Debug>(what: &str, value: &T, range: RangeInclusive<T>) {
    assert!(range.contains(value), "{what} is {value:?}");
}

/// Whatever was written, what comes out of it is within what is documented.
fn check_policy(policy: &Policy) {
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    let select = &policy.select;
    within("attempts", &select.attempts, 1..=MAX_ATTEMPTS);
    within("choice_count", &select.choice_count, 2..=100);
    within("active_request_bias", &select.active_request_bias, 0.0..=100.0);
    within("minimum_ring_size", &select.minimum_ring_size, 1..=select.maximum_ring_size);
    within("maximum_ring_size", &select.maximum_ring_size, 1..=MAX_RING_SIZE);
    within("table_size", &select.table_size, 2..=MAX_TABLE_SIZE);
    within("panic_percent", &select.panic_percent, 0..=100);
    within("ewma_decay", &select.ewma_decay, ms(100)..=s(3600));
    within("failure_penalty", &select.failure_penalty, 0.0..=1000.0);
    if let Some(slow) = &select.slow_start {
        within("aggression", &slow.aggression, 0.1..=100.0);
        within("min_fraction", &slow.min_fraction, 0.01..=1.0);
        within("slow_start.window", &slow.window, s(1)..=s(86_400));
    }
    let mut names = Vec::new();
    for part in &select.hash_key {
        match &part.source {
            HashSource::Header(name) => names.push(name),
            HashSource::Cookie(cookie) => assert!(is_field_value(cookie.set("0").as_bytes())),
            _ => {}
        }
    }
    match &select.sticky {
        Some(Sticky::Header(name)) => names.push(name),
        Some(Sticky::Cookie(cookie)) => assert!(is_field_value(cookie.set("0").as_bytes())),
        None => {}
    }
    assert!(names.iter().all(|name| **name == name.to_ascii_lowercase() && !name.is_empty()));

    let breaker = &policy.breaker;
    within("window", &breaker.window, s(1)..=s(600));
    within("open", &breaker.open, ms(100)..=s(3600));
    within("open_max", &breaker.open_max, breaker.open..=s(86_400));
    within("jitter_percent", &breaker.jitter_percent, 0..=100);
    within("max_ejection_percent", &breaker.max_ejection_percent, 0..=100);
    within("half_open.probes", &breaker.half_open.probes, 1..=8);
    within("half_open.successes", &breaker.half_open.successes, 1..=100);
    within("half_open.timeout", &breaker.half_open.timeout, ms(100)..=s(300));
    within("failure_rate.percent", &breaker.failure_rate.percent, 0..=100);
    within("fleet_ttl", &breaker.fleet_ttl, s(1)..=s(3600));
    within("retry_after", &breaker.retry_after, s(1)..=s(3600));
    let good = [0, 99, 100, 200, 399, 600, 611, 612, u16::MAX];
    assert!(!good.into_iter().any(|code| breaker.failure_codes.contains(code)));
    for (trips, random) in [(0, 0), (1, u32::MAX), (u32::MAX, 7)] {
        within("open_for", &breaker.open_for(trips, random), breaker.open..=breaker.open_at_most());
    }
}

fn check_merge(first: &Value, second: &Value) {
    let mut once = first.clone();
    merge(&mut once, second);
    let mut twice = once.clone();
    merge(&mut twice, second);
    assert_eq!(once, twice, "a patch says the same twice");
}

/// One patch for two does what they do one after the other, as far as a patch can say it: it cannot
/// clear what it then says anew.
fn check_compose(first: &Value, second: &Value) {
    if replaces(first, second) {
        return;
    }
    let mut one = first.clone();
    strict::compose(&mut one, second.clone());
    for target in [Value::Null, POLICY.clone()] {
        let (mut step_by_step, mut at_once) = (target.clone(), target);
        merge(&mut step_by_step, first);
        merge(&mut step_by_step, second);
        merge(&mut at_once, &one);
        assert_eq!(step_by_step, at_once, "{first} then {second} is {one}");
    }
}

/// Whether `second` has an object where `first` has something else.
fn replaces(first: &Value, second: &Value) -> bool {
    match (first, second) {
        (Value::Object(first), Value::Object(second)) => second
            .iter()
            .any(|(key, value)| first.get(key).is_some_and(|said| replaces(said, value))),
        (_, Value::Object(_)) => true,
        _ => false,
    }
}

fn check_config(config: &Config, patch: &Value) {
    check_policy(&config.default_policy);
    // What was accepted stands by itself, for a service with a layer of its own as well.
    for service in ["orders", "users"] {
        let policy = config.policy(service, "").expect("no table, no objection");
        check_policy(&policy);
        assert_eq!(config.trace_policy(Some(service)), policy.trace);
        if let Ok(policy) = config.policy(service, &patch.to_string()) {
            check_policy(&policy);
        }
        let _ = config.policy(service, "{");
    }
    assert!(!config.exports() || config.trace.is_some());
    for source in &config.sources {
        if let Source::Cluster(pattern) | Source::Authority(pattern) = source {
            let text = b"outbound|80||a.local.example";
            let star = pattern.of(text);
            assert!(star.is_none_or(|star| text.windows(star.len()).any(|part| part == star)));
        }
    }
}
