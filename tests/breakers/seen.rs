//! What an operator sees of a breaker, and what an operator orders.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use pintle_tests::{
    Agent, Behaviour, Fault, Nats, Process, Server as _, Spec, assert_eventually, tools,
};
use serde_json::json;

use crate::support::{PATIENCE, SETTLED, World, breakers, upstream};

const BAD: [&str; 2] = ["service=\"orders\"", "endpoint=\"one\""];

async fn order(nats: &Nats, action: &str, more: &[&str]) {
    let url = nats.url();
    let args = [&["breaker", action, "orders/two", "--nats", &url], more].concat();
    let done = Agent::command(&args).await.expect("the command runs");
    let (said, why) =
        (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{action}: {said}{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_shows_in_metrics_logs_and_table_and_obeys_orders() {
    let nats = Nats::start().await.expect("NATS");
    let plugin = |plugin: &mut serde_json::Value| {
        plugin["select"]["strategy"] = json!("round_robin");
        plugin["breaker"] = json!({"open": "2s", "jitter_percent": 0});
    };
    let mut world = World::with_events(&nats, &["orders"], plugin, |config| config).await;
    let all = [upstream("one").await, upstream("two").await, upstream("three").await];
    world.serve("orders", &[&all[0], &all[1], &all[2]]).await;
    let state = async |world: &World| world.agent.metric("circuit_breaker_state", &BAD).await;
    assert_eq!(state(&world).await, Some(0.0));

    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        state(&world).await == Some(1.0)
    });
    assert_eq!(world.agent.metric("circuit_breaker_trips_total", &BAD).await, Some(1.0));
    let ejected = world.agent.metric("pintle_ejected_ratio", &["service=\"orders\""]).await;
    assert!(ejected.is_some_and(|share| (share - 1.0 / 3.0).abs() < 0.01), "{ejected:?}");
    let text = world.agent.metrics().await.expect("metrics");
    for name in ["pintle_panic_requests_total", "pintle_no_endpoint_requests_total"] {
        assert!(text.contains(&format!("\n{name}{{service=\"orders\"}} 0")), "{name}");
    }
    let opinions = world.agent.metric("pintle_fleet_opinions", &["service=\"orders\""]).await;
    assert_eq!(opinions, Some(1.0), "for the agent's other proxies");
    let opened = world.envoy.stat("wasmcustom.pintle_breaker_opened_total").await;
    assert_eq!(opened, Some(1), "Envoy's own statistic");
    let admin = world.agent.admin().to_string();
    let table = Agent::command(&["breakers", "--admin", &admin]).await.expect("the command runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    println!("{table}");
    for word in ["orders", "one", "open", "5 consecutive failures"] {
        assert!(table.contains(word), "{word} in {table}");
    }

    // A probe that takes its time, whose client leaves before its answer: half-open until the next
    // one.
    all[0].set(Behaviour::failing(Fault::Hang));
    let trying = async {
        loop {
            world.get("orders").await;
        }
    };
    let half_open = async { assert_eventually!(PATIENCE, state(&world).await == Some(2.0)) };
    tokio::select! {
        () = trying => {}
        () = half_open => {}
    }

    // Well again: two probes close it, and every transition was one line, here and there.
    all[0].set(Behaviour::default());
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        state(&world).await == Some(0.0)
    });
    for change in ["closed -> open", "open -> half-open", "half-open -> closed"] {
        let line = format!("breaker of orders/one: {change}:");
        assert_eq!(world.envoy.log().matches(&line).count(), 1, "{line}");
    }
    let lines = |log: String| log.lines().filter(|l| l.contains("pintle::transition")).count();
    let lines = lines(world.agent.log());
    assert_eq!(lines, 3, "one line each in the agent's log, too");

    // Orders of an operator, by way of NATS, on the endpoint that is well.
    let two = &all[1];
    let reached = async || {
        two.forget();
        for _ in 0..30 {
            world.get("orders").await;
        }
        two.requests()
    };
    assert!(reached().await >= 8, "takes its turns");
    order(&nats, "force-open", &["--ttl", "60s"]).await;
    assert_eventually!(
        PATIENCE,
        breakers(&world.agent).await.get("orders/two").is_some_and(|s| s == "open")
    );
    tokio::time::sleep(SETTLED).await;
    assert_eq!(reached().await, 0, "held open");
    order(&nats, "force-close", &["--ttl", "60s"]).await;
    assert_eventually!(PATIENCE, reached().await >= 8, "held closed");
    two.set(Behaviour::failing(Fault::Status(500)));
    assert!(reached().await >= 8, "whatever it does");
    order(&nats, "clear", &[]).await;
    assert_eventually!(PATIENCE, {
        reached().await;
        breakers(&world.agent).await.get("orders/two").is_some_and(|s| s == "open")
    });
    two.set(Behaviour::default());
    order(&nats, "clear", &[]).await;
    assert_eventually!(PATIENCE, reached().await >= 8, "cleared, it takes its turns again");

    order(&nats, "force-open", &["--ttl", "4s"]).await;
    assert_eventually!(PATIENCE, reached().await == 0);
    assert_eventually!(Duration::from_secs(15), reached().await >= 8, "an order ends");

    order(&nats, "force-open", &["--ttl", "3s"]).await;
    let shown = async || breakers(&world.agent).await.get("orders/two").cloned();
    assert_eventually!(PATIENCE, shown().await.is_some_and(|state| state == "open"));
    let label = ["service=\"orders\"", "endpoint=\"two\""];
    assert_eventually!(
        Duration::from_secs(10),
        {
            let state = world.agent.metric("circuit_breaker_state", &label).await;
            state == Some(0.0) && shown().await.is_none_or(|state| state == "closed")
        },
        "it ends without a request, too: {:?}",
        shown().await
    );

    // When the last endpoints go, every worker says so without waiting for another change.
    let ids = all.map(|upstream| upstream.name().to_owned());
    let mut written = None;
    for id in ids {
        written = Some(world.etcd.deregister("orders", &id).await.expect("a removal"));
    }
    let settled = world.agent.settled(written.expect("three removals"));
    let settled = tokio::time::timeout(Duration::from_secs(8), settled).await;
    settled.expect("in time").expect("every worker has the newest table");
    world.no_traps().await;
}

/// What a command has written so far, and nothing of it twice.
async fn watched(watch: &Process, from: &mut usize, word: &str) -> bool {
    let log = watch.log();
    let found = log.get(*from..).and_then(|new| new.find(word));
    if let Some(at) = found {
        *from += at + word.len();
    }
    found.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_changes_until_a_signal_ends_it() {
    let plugin = |plugin: &mut serde_json::Value| {
        plugin["select"]["strategy"] = json!("round_robin");
        plugin["select"]["panic_percent"] = json!(100);
        plugin["breaker"] = json!({"open": "2s", "open_max": "2s", "jitter_percent": 0});
    };
    let world = World::start(&["orders"], plugin, |config| config).await;
    let all = [upstream("one").await, upstream("two").await];
    world.serve("orders", &[&all[0], &all[1]]).await;
    let admin = world.agent.admin().to_string();
    let start = |name: &str| {
        let spec = Spec {
            name: name.into(),
            program: tools::agent().expect("the binary"),
            args: ["breakers", "--watch", "--admin", &admin].map(String::from).to_vec(),
            envs: Vec::new(),
        };
        let dir = tempfile::TempDir::with_prefix("pintle-watch-").expect("a directory");
        Process::spawn(spec, dir).expect("it starts")
    };
    let (mut watch, mut other) = (start("watch"), start("other"));
    let mut from = 0;
    assert_eventually!(PATIENCE, watched(&watch, &mut from, "All breakers are closed.").await);
    all[0].set(Behaviour::failing(Fault::Status(500)));
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        world.trips("orders").await == 1.0
    });
    assert_eventually!(PATIENCE, watched(&watch, &mut from, "5 consecutive failures").await);
    // One of two is fewer than all, which is what this policy calls a panic.
    let panic = async || world.agent.metric("pintle_panic_requests_total", &[]).await;
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        panic().await > Some(0.0)
    });
    all[0].set(Behaviour::default());
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        watched(&watch, &mut from, "All breakers are closed.").await
    });
    println!("{}", watch.log());

    // By the signal itself, as whoever sent it expects: a shell says 130 and 143.
    for (process, signal) in [(&mut watch, libc::SIGINT), (&mut other, libc::SIGTERM)] {
        assert!(process.is_running());
        process.signal(signal);
        // The second signal of `terminate` finds it gone already.
        assert_eventually!(PATIENCE, !process.is_running());
        let status = process.terminate(PATIENCE).await.expect("it has ended");
        assert_eq!((status.code(), status.signal()), (None, Some(signal)));
    }
    world.no_traps().await;
}
