//! Equal endpoints get equal shares in every window, whatever happened to one of them before, and others by
//! their weights.

use std::time::{Duration, Instant};

use pintle_tests::{Behaviour, Latency, Load, Upstream, assert_eventually};

use crate::support::{ORDERS, World};

/// In so long each of four has 200 requests.
const WINDOW: Duration = Duration::from_secs(2);
const RATE: f64 = 400.0;
/// What cost alone kept out is back within so much of being well.
const BACK: Duration = Duration::from_secs(5);

fn quick() -> Behaviour {
    Behaviour::slow(Latency::LogNormal { median: Duration::from_millis(5), sigma: 0.2 })
}

/// What each gets in a window from now on, as a part of the mean.
async fn window(upstreams: &[Upstream]) -> Vec<f64> {
    let began = Instant::now();
    tokio::time::sleep(WINDOW).await;
    let got = upstreams.iter().map(|upstream| upstream.requests_since(began) as f64);
    let got: Vec<f64> = got.collect();
    let mean = got.iter().sum::<f64>() / got.len() as f64;
    got.into_iter().map(|got| got / mean).collect()
}

/// One of three windows in turn is even: a stall of the machine makes anybody look slow.
async fn assert_even(upstreams: &[Upstream], when: &str) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let shares = window(upstreams).await;
        if shares.iter().all(|share| (0.75..=1.25).contains(share)) {
            return;
        }
        seen.push(shares);
    }
    panic!("{when}: {seen:.2?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_endpoints_have_equal_shares_also_after_an_illness_and_with_a_newcomer() {
    let mut world = World::start(4).await;
    world.all(&quick());
    let envoy = world.envoy(world.config()).await;
    // A first answer that is slow makes nobody ill.
    let slow = Behaviour::slow(Latency::Fixed(Duration::from_millis(300)));
    world.upstreams[0].set(slow.clone());
    let load = Load::to(envoy.addr()).host(ORDERS).rate(RATE).connections(64).start();
    assert_eventually!(BACK, world.upstreams[0].requests() > 0);
    world.upstreams[0].set(quick());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_even(&world.upstreams, "after one slow answer").await;

    world.upstreams[1].set(slow);
    let fell_ill = Instant::now();
    let avoided = async || {
        let before = world.upstreams[1].requests();
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.upstreams[1].requests() - before < 10
    };
    assert_eventually!(BACK, avoided().await);
    world.upstreams[1].set(quick());
    println!("left out after {:?}", fell_ill.elapsed());
    tokio::time::sleep(BACK).await;
    assert_even(&world.upstreams, "back from an illness").await;

    let newcomer = Upstream::start("u04").await.unwrap();
    newcomer.set(quick());
    world.register(&pintle_tests::Instance::of(ORDERS, &newcomer)).await;
    world.upstreams.push(newcomer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_even(&world.upstreams, "with a newcomer").await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_of_one_two_three_give_one_two_three() {
    let weigh = |number: usize, instance: pintle_tests::Instance| {
        instance.metadata("weight", &(number + 1).to_string())
    };
    let world = World::with(3, weigh).await;
    let envoy = world.envoy(world.config()).await;
    let load = Load::to(envoy.addr()).host(ORDERS).rate(RATE).connections(64).start();
    let shares = window(&world.upstreams).await;
    load.stop().await;
    for (got, share) in shares.iter().zip([0.5, 1.0, 1.5]) {
        assert!((got / share - 1.0).abs() <= 0.1, "{shares:.3?}");
    }
}
