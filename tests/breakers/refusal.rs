//! Nothing is eligible and panic is off: the answer comes from here, at once, and the way back is
//! short.

use std::time::{Duration, Instant};

use pintle_tests::{Behaviour, Fault, Load, Outcome, Report, Stalls, assert_eventually, http};

use crate::support::{PATIENCE, World, call, millis, quantile, refused, since, strict, upstream};

#[tokio::test(flavor = "multi_thread")]
async fn a_local_answer_is_quick_and_says_why_and_when() {
    let world = World::start(&["orders"], strict, |config| config).await;
    let all = [upstream("one").await, upstream("two").await, upstream("three").await];
    all.iter().for_each(|one| one.set(Behaviour::failing(Fault::Status(503))));
    world.serve("orders", &[&all[0], &all[1], &all[2]]).await;
    assert_eventually!(PATIENCE, refused(&world.get("orders").await));
    assert_eventually!(PATIENCE, world.trips("orders").await >= 3.0);

    // What is answered here, and not by an endpoint that is tried as the last resort.
    let mut reply;
    assert_eventually!(PATIENCE, {
        reply = world.get("orders").await;
        refused(&reply)
    });
    assert_eq!((reply.status, reply.header("x-pintle-reason")), (503, Some("no-endpoint")));
    let wait: u64 = reply.header("retry-after").and_then(|s| s.parse().ok()).expect("retry-after");
    assert_eq!(wait, 1, "the next one is tried in half a second");
    assert_eventually!(PATIENCE, {
        reply = http::send_h2(world.envoy.addr(), call("orders")).await.expect("an answer");
        refused(&reply)
    });
    assert_eq!((reply.status, reply.header("grpc-status")), (200, Some("14")));
    assert_eq!(reply.header("x-pintle-reason"), Some("no-endpoint"));

    // One at a time, so that what is measured is the answer and not the queue of a busy machine.
    let stalls = Stalls::watch();
    let mut report = Report::default();
    while report.total() < 1_000 {
        let load = Load::to(world.envoy.addr()).host("orders").closed().connections(1);
        report.samples.extend(load.run_for_secs(3.0).await.samples);
    }
    let all_503 = report.outcomes().keys().all(|outcome| *outcome == Outcome::Status(503));
    assert!(all_503, "{}", report.summary());
    let (p50, p99) = (millis(report.quantile(0.5)), millis(report.quantile(0.99)));
    println!("{} local answers: p50 {p50:.2} ms, p99 {p99:.2} ms", report.total());
    assert!(p50 < 1.0, "{p50} ms");
    report.samples.retain(|one| !stalls.between(one.due, one.due + one.took));
    let undisturbed = millis(report.quantile(0.99));
    assert!(undisturbed < 5.0, "{undisturbed} ms without a stall");
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_over_within_a_second_of_the_first_endpoints_return() {
    // Open for thirty seconds by the policy; but whoever is the last resort is tried before.
    let world = World::start(&["orders"], strict, |config| config).await;
    let mut all = [upstream("one").await, upstream("two").await, upstream("three").await];
    world.serve("orders", &[&all[0], &all[1], &all[2]]).await;
    let load = Load::to(world.envoy.addr()).host("orders").rate(200.0).connections(8).start();
    let stalls = Stalls::watch();
    let (mut took, mut undisturbed) = (Vec::new(), Vec::new());
    for round in 0..5 {
        for one in &mut all {
            one.close().await;
        }
        // At another moment between two probes each time.
        tokio::time::sleep(Duration::from_millis(1_500 + round * 130)).await;
        let back = Instant::now();
        all[0].open().await.expect("listens again");
        assert_eventually!(PATIENCE, load.since(back).first_from("one").is_some());
        let first = load.since(back).first_from("one").expect("an answer");
        took.push(since(first, back));
        if stalls.longest(back, first) < Duration::from_millis(100) {
            undisturbed.push(since(first, back));
        }
        for one in &mut all[1..] {
            one.open().await.expect("listens again");
        }
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let now = Instant::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let well = load.since(now);
        assert_eq!(well.failed(), 0, "{}", well.summary());
    }
    load.stop().await;
    println!("from the return to the first answer, ms: {took:.0?}");
    assert!(undisturbed.iter().all(|ms| *ms <= 1_000.0), "without a stall: {undisturbed:?}");
    assert!(quantile(&took, 0.5) <= 1_000.0, "{took:?}");
}
