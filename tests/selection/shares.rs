//! Equal endpoints get equal shares in every window, whatever happened to one of them before, and
//! others by their weights.

use std::time::{Duration, Instant};

use pintle_tests::{Behaviour, Latency, Load, Stalls, Upstream, assert_eventually};

use crate::support::{ORDERS, World};

/// In so long each of four has 200 requests.
const WINDOW: Duration = Duration::from_secs(2);
const RATE: f64 = 400.0;
/// Windows begin so much after each other.
const STEP: Duration = Duration::from_millis(250);
/// A stall that makes an answer take twice as long: what waits meanwhile is nobody's by weight.
const STALL: Duration = Duration::from_millis(5);
/// What cost alone kept out is back within so much of being well.
const BACK: Duration = Duration::from_secs(5);

fn quick() -> Behaviour {
    Behaviour::slow(Latency::LogNormal { median: Duration::from_millis(5), sigma: 0.2 })
}

/// The least and the most that one gets by its weight, as a part of the mean, in any window from
/// `from` to now.
fn extremes(
    upstreams: &[Upstream],
    weights: &[f64],
    from: Instant,
    window: Duration,
) -> (f64, f64) {
    let (mut least, mut most, mut at) = (f64::INFINITY, 0.0_f64, from);
    while at + window <= Instant::now() {
        let got = |u: &Upstream| (u.requests_since(at) - u.requests_since(at + window)) as f64;
        let got: Vec<f64> = upstreams.iter().map(got).collect();
        let mean = got.iter().sum::<f64>() / weights.iter().sum::<f64>();
        for (got, weight) in got.iter().zip(weights) {
            least = least.min(got / (mean * weight));
            most = most.max(got / (mean * weight));
        }
        at += STEP;
    }
    (least, most)
}

/// Every window from now on is even; once more where the machine stood still, which makes anybody
/// look slow.
async fn assert_even(
    upstreams: &[Upstream],
    weights: &[f64],
    window: Duration,
    off: f64,
    when: &str,
) {
    let stalls = Stalls::watch();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let began = Instant::now();
        tokio::time::sleep(window + 4 * STEP).await;
        let (least, most) = extremes(upstreams, weights, began, window);
        if least >= 1.0 - off && most <= 1.0 + off {
            return;
        }
        let stall = stalls.longest(began, Instant::now());
        seen.push((least, most, stall));
        if stall < STALL {
            break;
        }
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
    assert_even(&world.upstreams, &[1.0; 4], WINDOW, 0.25, "after one slow answer").await;

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
    assert_even(&world.upstreams, &[1.0; 4], WINDOW, 0.25, "back from an illness").await;

    let newcomer = Upstream::start("u04").await.unwrap();
    newcomer.set(quick());
    world.register(&pintle_tests::Instance::of(ORDERS, &newcomer)).await;
    world.upstreams.push(newcomer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let longer = WINDOW + 2 * STEP;
    assert_even(&world.upstreams, &[1.0; 5], longer, 0.25, "with a newcomer").await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_of_one_two_three_give_one_two_three() {
    let weigh = |number: usize, instance: pintle_tests::Instance| {
        instance.metadata("weight", &(number + 1).to_string())
    };
    let world = World::with(3, weigh).await;
    world.all(&quick());
    let envoy = world.envoy(world.config()).await;
    let load = Load::to(envoy.addr()).host(ORDERS).rate(RATE).connections(64).start();
    // The lightest has 667 requests: the second of each draw is by chance, which is 4 % of these.
    let window = Duration::from_secs(10);
    assert_even(&world.upstreams, &[1.0, 2.0, 3.0], window, 0.1, "1:2:3").await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}
