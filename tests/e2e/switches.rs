//! What operators turn off by a command: a bypassed service and one in shadow go where Envoy sends
//! them, by its own policy, and the module is back at a word.

use pintle_tests::{Agent, Upstream, assert_eventually};

use crate::support::{PATIENCE, World, in_turns};

async fn order(world: &World, args: &[&str]) {
    let done = Agent::command(&[args, &["--nats", &world.nats.url()]].concat()).await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
}

/// Whether so many requests reach this one, of three.
async fn is_asked(world: &World, upstream: &Upstream) -> bool {
    let before = upstream.requests();
    let report = world.load(300.0).run_for_secs(0.2).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    upstream.requests() > before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_envoys_by_one_command_and_the_modules_by_another() {
    let world = World::with(in_turns).await;
    let all = world.orders(3).await;
    let admin = world.agent.admin().to_string();
    let count = async |name: &str| {
        world.envoy.stat(&format!("wasmcustom.pintle_{name}_total")).await.unwrap_or(0)
    };
    // Envoy does not know of this order: who sends requests there is not the module.
    order(&world, &["breaker", "force-open", "orders/orders-1", "--ttl", "1h"]).await;
    assert_eventually!(PATIENCE, !is_asked(&world, &all[0]).await);

    for switch in ["bypass", "shadow"] {
        order(&world, &[switch, "orders", "--ttl", "10m"]).await;
        assert_eventually!(PATIENCE, is_asked(&world, &all[0]).await);
        let overlays = Agent::command(&["events", "--admin", &admin]).await.unwrap();
        let told = String::from_utf8_lossy(&overlays.stdout).into_owned();
        assert!(told.contains(switch), "{told}");
        order(&world, &[switch, "orders", "--off"]).await;
        assert_eventually!(PATIENCE, !is_asked(&world, &all[0]).await);
    }
    let (bypassed, shadow) = (count("bypassed").await, count("shadow").await);
    assert!(bypassed > 0 && shadow > 0, "{bypassed} bypassed, {shadow} in shadow");
    assert!(count("shadow_same").await < shadow, "some went where the module would not send them");

    order(&world, &["failover", "orders", "--tag", "nobody", "--ttl", "1m"]).await;
    assert_eventually!(PATIENCE, {
        world.load(100.0).run_for_secs(0.1).await;
        count("failover_missed").await > 0
    });
    order(&world, &["failover", "orders", "--off"]).await;

    // By itself, at the end of its ttl.
    order(&world, &["bypass", "orders", "--ttl", "2s"]).await;
    assert_eventually!(PATIENCE, is_asked(&world, &all[0]).await);
    assert_eventually!(PATIENCE, !is_asked(&world, &all[0]).await);
}
