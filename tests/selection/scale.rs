//! Many services, many workers.

use std::time::{Duration, Instant};

use pintle_tests::{
    Behaviour, Envoy, Fault, Instance, Latency, Load, Stalls, Written, assert_eventually, http,
};
use serde_json::json;

use crate::support::{Held, ORDERS, World, ask, who};

const SERVICES: usize = 1_000;
/// By then a worker knows what another has in flight.
const SOON: Duration = Duration::from_millis(250);

/// CPU seconds a second of each while `work` goes on.
async fn busy<T>(envoys: [&Envoy; 2], work: impl Future<Output = T>) -> ([f64; 2], T) {
    let before = envoys.map(|envoy| envoy.usage().0);
    let began = Instant::now();
    let done = work.await;
    let took = began.elapsed().as_secs_f64();
    ([0, 1].map(|at| (envoys[at].usage().0 - before[at]).as_secs_f64() / took), done)
}

/// How many clusters of Envoy's have all three hosts.
async fn complete(envoy: &Envoy) -> usize {
    let path = "/stats?format=json&filter=cluster.s-.*membership_healthy";
    let stats = http::get(envoy.admin(), path).await.unwrap().json().unwrap();
    let all = stats["stats"].as_array().into_iter().flatten();
    all.filter(|stat| stat["value"] == 3).count()
}

/// A thousand services of three endpoints in etcd, a thousand EDS clusters, a thousand tables in
/// every worker; beside it an Envoy with one of each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_services_cost_a_request_what_one_does() {
    let world = World::start(3).await;
    let one = world.envoy(world.config()).await;
    let mut config = world.config();
    let mut last = Written { revision: 0 };
    for number in 0..SERVICES {
        let service = format!("s-{number:04}");
        for upstream in &world.upstreams {
            last = world.etcd.register(&Instance::of(&service, upstream)).await.unwrap();
        }
        config = config.service(&service);
    }
    let began = Instant::now();
    let many = Envoy::start(config).await.unwrap();
    world.agent.settled(last).await.unwrap();
    let mut ready;
    assert_eventually!(
        Duration::from_secs(20),
        {
            ready = complete(&many).await;
            ready == SERVICES
        },
        "{ready} of {SERVICES} clusters have their hosts"
    );
    println!("{SERVICES} clusters have their hosts {:?} after Envoy's start", began.elapsed());
    for service in (0..SERVICES).step_by(111) {
        let load = Load::to(many.addr()).host(&format!("s-{service:04}")).rate(200.0);
        let report = load.run_for_secs(0.1).await;
        assert_eq!(report.failed(), 0, "s-{service:04}: {}", report.summary());
    }
    assert_eq!(many.stat("wasmcustom.pintle_unknown_service_total").await.unwrap_or(0), 0);

    let envoys = [&one, &many];
    let (idle, ()) = busy(envoys, tokio::time::sleep(Duration::from_secs(3))).await;
    let mut ratios = Vec::new();
    for _ in 0..3 {
        // Both at once: what disturbs one disturbs the other.
        let [one, many] =
            envoys.map(|e| Load::to(e.addr()).host(ORDERS).rate(400.0).run_for_secs(3.0));
        let (used, reports) = busy(envoys, async { tokio::join!(one, many) }).await;
        for report in [&reports.0, &reports.1] {
            assert_eq!(report.failed(), 0, "{}", report.summary());
        }
        let costs = [0, 1].map(|at| (used[at] - idle[at]) * 1e6 / 400.0);
        println!("CPU per request: {costs:.0?} us with 1 and {SERVICES} services");
        ratios.push(costs[1] / costs[0]);
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[1] < 1.2, "{ratios:.2?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_is_learned_once_per_envoy_and_not_once_per_worker() {
    let mut world = World::start(10).await;
    let envoy = world.envoy_with(world.config(), 4).await;
    world.policy(json!({"select": {"strategy": "p2c"}})).await;
    world.all(&Behaviour::slow(Latency::Fixed(Duration::from_millis(5))));
    let load = Load::to(envoy.addr()).host(ORDERS).rate(200.0).connections(64).start();
    let stalls = Stalls::watch();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Another one each time: what comes at once after a stall knows of nothing.
    for at in 0..4 {
        world.upstreams[at].set(Behaviour::slow(Latency::Fixed(Duration::from_millis(400))));
        let ill = Instant::now();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let sent = world.upstreams[at].requests_since(ill);
        println!("sent to the slow one in 5 s over 4 workers: {sent}");
        if at < 3 && stalls.longest(ill, Instant::now()) > Duration::from_millis(200) {
            continue;
        }
        // Each worker can have one or two under way before the first answer is late anywhere; a
        // fair share would be 100.
        assert!(sent <= 14, "{sent}");
        break;
    }
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_is_faster_than_any_success_attracts_nobody() {
    let mut world = World::start(5).await;
    // Cost alone: a breaker would have it out of the way after five.
    let config = world.config().plugin(|plugin| {
        plugin.as_object_mut().unwrap().remove("breaker");
    });
    let envoy = world.envoy(config).await;
    world.policy(json!({"select": {"strategy": "p2c"}})).await;
    // Another one each time, so that the second has no history either.
    for (at, fault) in [Fault::Status(503), Fault::Reset].into_iter().enumerate() {
        world.all(&Behaviour::slow(Latency::Fixed(Duration::from_millis(20))));
        let load = Load::to(envoy.addr()).host(ORDERS).rate(200.0).connections(32).start();
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.upstreams[at].set(Behaviour::failing(fault));
        let ill = Instant::now();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let report = load.stop().await;
        let got = world.upstreams[at].requests_since(ill);
        println!("{fault:?}: {got} of 600 requests; {}", report.summary());
        // A fair share would be 120.
        assert!(got <= 12, "{fault:?}: {got}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_worker_has_in_flight_every_other_knows_within_a_quarter_of_a_second() {
    let mut world =
        World::with(3, |number, instance| instance.metadata("version", &format!("v{number}")))
            .await;
    let envoy = world.envoy_with(world.config(), 4).await;
    // A full scan: one request more anywhere is one reason less to go there, in every worker.
    world
        .policy(json!({"select": {"strategy": "least_request", "choice_count": 3,
            "subset": [{"header": "x-version", "metadata": "version"}]}}))
        .await;
    let stalls = Stalls::watch();
    let mut latest = Vec::new();
    for round in 0..24 {
        let at = round % 3;
        world.upstreams[at].set(Behaviour::failing(Fault::Hang));
        let mut held = Held::default();
        let version = format!("v{at}");
        // Three: what a worker itself asks elsewhere counts as one for a while, and must not look
        // the same.
        for _ in 0..3 {
            held.send(&envoy, &world.upstreams, &[("x-version", &version)]).await;
        }
        let began = Instant::now();
        // Whoever answers from now on answers at once; each of these is on a connection of its own.
        world.upstreams[at].set(Behaviour::default());
        let mut last = Duration::ZERO;
        while began.elapsed() < Duration::from_millis(400) {
            pintle_tests::pause().await;
            let asked = began.elapsed();
            if who(&ask(&envoy, &[]).await) == format!("u{at:02}") {
                last = asked;
            }
        }
        // A worker that stands still tells nobody and hears nobody.
        let stall = stalls.longest(began, Instant::now());
        if last <= SOON || stall < Duration::from_millis(20) {
            latest.push((last, round, stall));
        }
        held.release(&world.upstreams).await;
        // It is known as soon that the endpoint is free again.
        tokio::time::sleep(Duration::from_millis(250)).await;
        let mut used = 0;
        for _ in 0..30 {
            used += usize::from(who(&ask(&envoy, &[]).await) == format!("u{at:02}"));
        }
        assert!(used > 0, "round {round}: u{at:02} is free and not used");
        if latest.len() == 12 {
            break;
        }
    }
    latest.sort_unstable();
    println!("the last request to an endpoint that another worker has in use after {latest:.0?}");
    assert_eq!(latest.len(), 12, "stalls in the other rounds: {latest:?}");
    assert!(latest.iter().all(|(last, ..)| *last <= SOON), "{latest:?}");
}
