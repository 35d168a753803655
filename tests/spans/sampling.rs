//! Which traces are sampled, by whose word, and how soon another word counts.

use std::time::{Duration, Instant};

use pintle_tests::{Load, Seen, Stalls, Upstream, assert_eventually};
use serde_json::json;

use crate::support::{Installed, Rig, SOON, SPAN, exporting};

/// What the request's `traceparent` said to the upstream.
fn sampled(seen: &Seen) -> bool {
    let value = seen.headers["traceparent"].to_str().unwrap();
    u8::from_str_radix(&value[53..], 16).unwrap() & 1 == 1
}

/// Publishes a ratio for `orders`; when the event passed the server.
async fn ratio(world: &Installed, ratio: f64, ttl: &str) -> Instant {
    let mut tap = world.nats.tap("events.trace.orders").await.unwrap();
    let data = json!({"ratio": ratio, "ttl": ttl}).to_string();
    let command = ["publish", "trace", "orders", &data];
    // Side by side: a message counts from when it is read, and the command ends later than it
    // publishes.
    let (event, ()) = tokio::join!(tap.next(SOON), world.order(&command));
    event.unwrap().at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_changes_the_ratio_of_its_service_within_100_ms_and_until_its_ttl_ends() {
    const ROUNDS: usize = 20;
    let ledger = Upstream::start("ledger-1").await.unwrap();
    let world = Installed::start(1, exporting(json!({})), |config| {
        config.service("ledger").static_hosts("ledger", &[ledger.addr()])
    })
    .await;
    let orders = &world.rig.upstream;
    let load = Load::to(world.rig.envoy.addr()).rate(400.0).start();
    let beside = Load::to(world.rig.envoy.addr()).host("ledger").rate(50.0).start();
    let stalls = Stalls::watch();
    let (mut took, mut undisturbed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let on = round % 2 == 1;
        tokio::time::sleep(Duration::from_millis(137)).await;
        orders.forget();
        let at = ratio(&world, f64::from(u8::from(on)), "60s").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let under = |word| orders.seen().into_iter().filter(|seen| sampled(seen) == word).collect();
        let new = async || -> Vec<Seen> { under(on) };
        assert_eventually!(SOON, new().await.len() > 60, "round {round}");
        let old: Vec<Seen> = under(!on);
        let last = old.last().map_or(at, |seen| seen.at.max(at));
        took.push(last - at);
        if stalls.longest(at, last) < Duration::from_millis(20) {
            undisturbed.push(last - at);
        }
    }
    took.sort_unstable();
    println!("event to the last request under the old ratio: {took:.1?}");
    assert!(took[ROUNDS / 2] <= Duration::from_millis(100), "{took:.1?}");
    let late = undisturbed.iter().find(|took| **took > Duration::from_millis(100));
    assert_eq!(late, None, "without a stall: {undisturbed:.1?}");

    orders.forget();
    let at = ratio(&world, 0.0, "2s").await;
    tokio::time::sleep(Duration::from_millis(2_700)).await;
    let seen = orders.seen();
    let none: Vec<_> = seen.iter().filter(|seen| !sampled(seen)).map(|seen| seen.at - at).collect();
    let (first, last) = (none[0], none[none.len() - 1]);
    println!("a ratio of 0 for 2 s: from {first:.0?} to {last:.0?} after the event");
    assert!(first < Duration::from_millis(100), "{first:?}");
    assert!(Duration::from_millis(1_900) < last && last < Duration::from_millis(2_150), "{last:?}");
    // Within these, what was decided before the switch in one worker may arrive after it in
    // another.
    let switch = Duration::from_millis(100);
    let between =
        seen.iter().filter(|seen| seen.at - at > first + switch && seen.at - at < last - switch);
    assert_eq!(between.filter(|seen| sampled(seen)).count(), 0, "in every worker all the while");

    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    let report = beside.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert!(ledger.seen().iter().all(sampled), "another service is not concerned");
    world.rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_in_etcd_gives_each_service_a_ratio_of_its_own() {
    let ledger = Upstream::start("ledger-1").await.unwrap();
    let world = Installed::start(1, exporting(json!({"ratio": 0.5})), |config| {
        config.service("ledger").static_hosts("ledger", &[ledger.addr()])
    })
    .await;
    let instance = pintle_tests::Instance::of("ledger", &ledger);
    world.etcd.register(&instance).await.unwrap();
    world.policy("orders", json!({"trace": {"ratio": 0.1}})).await;
    world.policy("ledger", json!({"trace": {"ratio": 0.9}})).await;
    for (host, upstream, expect) in [("orders", &world.rig.upstream, 0.1), ("ledger", &ledger, 0.9)]
    {
        let load = Load::to(world.rig.envoy.addr()).host(host).rate(600.0);
        let report = load.run_for_secs(2.0).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        let seen = upstream.seen();
        let share = seen.iter().filter(|seen| sampled(seen)).count() as f64 / seen.len() as f64;
        // Of 1,200 five standard deviations are 0.043.
        assert!((share - expect).abs() < 0.043, "{host}: {share:.3} of {}", seen.len());
    }
    world.rig.end().await;
}

/// OpenTelemetry's TraceIdRatioBased, as its specification and the SDKs of Go and Rust have it: the
/// last eight bytes, without their lowest bit, are below the ratio's share of 2^63.
fn trace_id_ratio_based(ratio: f64, low: u64) -> bool {
    low >> 1 < (ratio * (1_u64 << 63) as f64) as u64
}

#[tokio::test]
async fn at_a_boundary_that_decides_for_itself_every_id_is_decided_as_by_trace_id_ratio_based() {
    for ratio in [0.001, 1.0 / 3.0, 0.75] {
        let trace = json!({"boundary": "ignore_sampled", "ratio": ratio});
        let rig = Rig::start(exporting(trace)).await;
        let border = ((ratio * (1_u64 << 63) as f64) as u64) << 1;
        let spread = (1_u64..40).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut decisions = [0, 0];
        for low in
            [1, border - 2, border - 1, border, border + 1, u64::MAX].into_iter().chain(spread)
        {
            for (high, flags) in [(0_u64, 0), (u64::MAX, 1)] {
                let parent = format!("00-{high:016x}{low:016x}-{SPAN}-{flags:02x}");
                let (trace, _, decided) = rig.sent(&[("traceparent", &parent)]).await.parent();
                assert_eq!(trace, format!("{high:016x}{low:016x}"));
                let expect = trace_id_ratio_based(ratio, low);
                assert_eq!(decided & 1 == 1, expect, "{ratio}: {parent}");
                decisions[usize::from(expect)] += 1;
            }
        }
        assert!(decisions.iter().all(|count| *count > 1), "{ratio}: {decisions:?}");
        rig.end().await;
    }
}
