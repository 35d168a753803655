//! What opens a breaker beside failures in a row, each by a policy in etcd that comes at run time.

use std::time::Duration;

use pintle_tests::{Behaviour, Fault, Latency};
use serde_json::json;

use crate::support::{World, refused, strict, upstream};

const SERVICES: [&str; 6] = ["slow", "rate", "busy", "busy-rate", "spared", "changed"];

/// How many requests came before the breaker answered.
async fn opened_after(world: &World, service: &str, most: usize) -> usize {
    for sent in 0..most {
        if refused(&world.get(service).await) {
            return sent;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_slow_calls_and_refusals_open_it_as_the_policy_says() {
    let world = World::start(&SERVICES, strict, |config| config).await;
    let off = json!({"percent": 0});
    let policies = [
        ("slow", json!({"slow_call": {"threshold": "50ms", "percent": 50, "min_requests": 10}})),
        (
            "rate",
            json!({"consecutive_failures": 0, "failure_rate": {"percent": 50, "min_requests": 20}}),
        ),
        ("busy", json!({"failure_rate": off})),
        ("busy-rate", json!({"failure_rate": {"percent": 50, "min_requests": 12}})),
        ("changed", json!({"consecutive_failures": 1000, "failure_rate": off})),
    ];
    for (service, breaker) in policies {
        world.policy(service, json!({"breaker": breaker})).await;
    }
    let spread = json!({"select": {"strategy": "p2c"}, "breaker": {"failure_rate": off}});
    world.policy("spared", spread).await;
    let mut all = Vec::new();
    for service in SERVICES {
        let one = upstream(service).await;
        world.serve(service, &[&one]).await;
        all.push(one);
    }
    all[0].set(Behaviour::slow(Latency::Fixed(Duration::from_millis(80))));
    let mixed = Behaviour { fail_ratio: 0.7, ..Behaviour::default() };
    all[1].set(mixed);
    let busy = Behaviour {
        status: 429,
        headers: vec![("retry-after".into(), "5".into())],
        ..Behaviour::default()
    };
    all[2].set(busy.clone());
    all[3].set(busy.clone());

    let slow = opened_after(&world, "slow", 60).await;
    assert!((10..=16).contains(&slow), "by slow calls, after {slow}");
    let rate = opened_after(&world, "rate", 60).await;
    assert!((20..=30).contains(&rate), "by the failure rate, after {rate}");
    assert_eq!(opened_after(&world, "busy", 30).await, 30, "429 is no failure in a row");
    let busy_rate = opened_after(&world, "busy-rate", 60).await;
    assert!((12..=18).contains(&busy_rate), "429 counts in the rate, after {busy_rate}");
    println!("slow after {slow}, rate after {rate}, 429 by rate after {busy_rate}");

    let idle = upstream("idle").await;
    world.serve("spared", &[&all[4], &idle].map(|one| one)).await;
    all[4].set(busy);
    for _ in 0..20 {
        world.get("spared").await;
    }
    // The other worker reads what this one knows with its next tick.
    tokio::time::sleep(Duration::from_millis(300)).await;
    all[4].forget();
    idle.forget();
    for _ in 0..100 {
        world.get("spared").await;
    }
    println!("asked to be spared: {} of 100 requests", all[4].requests());
    assert!(all[4].requests() <= 5, "Retry-After is honoured: {}", all[4].requests());

    all[5].set(Behaviour::failing(Fault::Status(500)));
    assert_eq!(opened_after(&world, "changed", 20).await, 20);
    world.policy("changed", json!({"breaker": {"consecutive_failures": 2}})).await;
    let after = opened_after(&world, "changed", 20).await;
    assert!(after <= 2, "the new limit holds at once, after {after}");
    world.policy("changed", json!({"breaker": {"max_ejection_percent": 0}})).await;
    // More than one, because a last resort would be tried as well.
    assert_eq!(opened_after(&world, "changed", 20).await, 20, "none may be taken any more");
    world.no_traps().await;
}
