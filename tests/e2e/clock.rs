//! The wall clock steps by an hour, at the agent, at Envoy, or at both, and nothing goes by it:
//! RELIABILITY R24.

use std::time::{Duration, Instant, SystemTime};

use pintle_tests::{
    Agent, Clock, Instance, Port, Server as _, Upstream, assert_eventually, http, text,
};

use crate::support::{PATIENCE, World, everybody_serves, first_after, in_turns, millis, quick};

const HOUR: i64 = 3_600;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_steps_by_an_hour_fails_nothing_and_ends_nothing_early_or_late() {
    let (at_agent, at_envoy) = (Clock::new().expect("a clock"), Clock::new().expect("a clock"));
    let agent_envs = at_agent.envs().expect("the library");
    let envs = agent_envs.clone();
    let mut world = World::changed(
        |agent| envs.iter().fold(agent, |agent, (name, value)| agent.env(name, value)),
        |plugin| {
            in_turns(plugin);
            // Tried again at a pace that a test can wait for.
            plugin["breaker"] = serde_json::json!({
                "open": "1s", "open_max": "1s", "jitter_percent": 0
            });
        },
    )
    .await;
    world.envoy.process().spec().envs.extend(at_envoy.envs().expect("the library"));
    world.envoy.restart().await.expect("Envoy");

    let mut all = world.orders(3).await;
    let nobody = Port::take().expect("a port");
    let dead = Instance::new("orders", "orders-dead", nobody.addr());
    world.etcd.register(&dead).await.expect("a registration");
    let leased = quick("orders-leased").await;
    let url = world.etcd.url();
    let more = ["--lease", "5s", "--drain", "0s"];
    let mut own = Agent::register(&url, "orders", "orders-leased", leased.addr(), &more)
        .expect("pintle register");
    own.spec().envs.extend(agent_envs);
    own.restart().expect("pintle register");
    let load = world.load(200.0).start();
    assert_eventually!(PATIENCE, leased.requests() > 0 && world.opened().await > 0);
    all.push(leased);

    for (round, (agent, envoy)) in
        [(HOUR, HOUR), (0, 0), (-HOUR, -HOUR), (0, -HOUR), (HOUR, -HOUR), (0, 0)]
            .into_iter()
            .enumerate()
    {
        let ttl = Duration::from_secs(3);
        let drained = Instant::now();
        Agent::drain(&world.nats.url(), "orders", "orders-2", ttl).await.expect("a drain");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = world.opened().await;
        at_agent.step(agent).expect("a step");
        at_envoy.step(envoy).expect("a step");
        let stepped = Instant::now();
        assert_eventually!(PATIENCE, uptime(&world).await.abs_diff(envoy) < 600, "Envoy's clock");
        assert_eventually!(PATIENCE, is_heard_at(&world, agent).await, "the agent's clock");

        let put = Instant::now();
        let newcomer = world.newcomer(&format!("orders-c{round}")).await;
        let fresh = first_after(&newcomer, put).await;
        let back = again(&all[1], stepped).await.saturating_duration_since(drained);
        println!(
            "agent {agent:+} s, Envoy {envoy:+} s: fresh after {:.0} ms, drained for {:.1} s",
            millis(fresh),
            back.as_secs_f64()
        );
        assert!(fresh <= Duration::from_secs(1), "{fresh:?}");
        assert!((2.9..5.0).contains(&back.as_secs_f64()), "drained for {back:?}, not for 3 s");
        // What was open when the clock stepped, and what opened after, is tried again in a second.
        assert_eventually!(Duration::from_secs(5), world.opened().await >= before + 2);
        all.push(newcomer);
        everybody_serves(&all).await;
    }
    // Started an hour ahead, and anew when the clock is right, without what would tell it.
    at_agent.step(HOUR).expect("a step");
    world.agent.restart().await.expect("the agent");
    assert_eventually!(PATIENCE, is_heard_at(&world, HOUR).await, "the agent's clock");
    let newcomer = world.newcomer("orders-ahead").await;
    first_after(&newcomer, Instant::now()).await;
    all.push(newcomer);
    world.agent.kill9();
    std::fs::remove_dir_all(world.agent.state_dir()).expect("its state");
    at_agent.step(0).expect("a step");
    world.agent.restart().await.expect("the agent");
    let right = Instant::now();
    let newcomer = world.newcomer("orders-right").await;
    let fresh = first_after(&newcomer, right).await;
    println!("an agent that was an hour ahead: fresh after {:.0} ms", millis(fresh));
    assert!(fresh <= Duration::from_secs(5), "{fresh:?}");
    all.push(newcomer);
    everybody_serves(&all).await;

    assert_eq!(world.held().await, 0.0);
    let key = Instance::of("orders", &all[3]).key();
    assert!(world.etcd.get(&key).await.expect("etcd").is_some(), "its lease is kept alive");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

/// When requests come again, after a pause that began before `stepped` or right after it.
async fn again(upstream: &Upstream, stepped: Instant) -> Instant {
    let settled = stepped + Duration::from_millis(500);
    tokio::time::sleep_until(settled.into()).await;
    assert_eventually!(PATIENCE, upstream.requests_since(settled) > 0, "it serves again");
    let seen = upstream.seen();
    seen.iter().map(|seen| seen.at).find(|at| *at >= settled).expect("a request")
}

/// Envoy's age by its own clock, in seconds.
async fn uptime(world: &World) -> i64 {
    let info = http::get(world.envoy.admin(), "/server_info").await.expect("Envoy");
    let info = info.json().expect("JSON");
    let uptime = info["uptime_current_epoch"].as_str().expect("a duration");
    uptime.trim_end_matches('s').parse().expect("seconds")
}

/// Whether the agent last heard from etcd in that hour, by its own clock.
async fn is_heard_at(world: &World, seconds: i64) -> bool {
    let sources = http::get(world.agent.admin(), "/v1/sources").await.expect("the agent");
    let heard = sources.json().expect("JSON")["etcd"]["last_seen"].clone();
    let offset = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    let there = text::rfc3339(if seconds < 0 { now - offset } else { now + offset });
    heard.as_str().is_some_and(|heard| heard[..13] == there[..13])
}
