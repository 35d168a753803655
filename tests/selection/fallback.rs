//! Requests go on: with the filter removed, without a table, without an agent, after a trap.
//!
//! The trap is a module of a few lines in the place of ours, because ours has none to offer: it does
//! nothing but trap on one path. What Envoy 1.40 does then, as these tests hold it:
//!
//! - the request inside the VM is answered 503, whatever the policy;
//! - `FAIL_OPEN`: that worker goes on without the filter, at once, and for good;
//! - `FAIL_RELOAD`: the next request rebuilds the VM if `base_interval` has passed since it was *built*;
//!   until then that worker answers 503. Envoy has no policy that does both, so a trap within the first
//!   10 ms of a VM's life costs what arrives in the rest of them, and a later one costs nobody else.

use std::path::PathBuf;
use std::time::Duration;

use pintle_tests::{Agent, Envoy, EnvoyConfig, Load, Server as _};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{ORDERS, World, ask, ask_at, upstreams, who};

/// Traps when `:path` is as long as `/trap-now`, and lets everything else pass.
const TRAPPING: &str = r#"(module
  (import "env" "proxy_get_header_map_value"
    (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (global $top (mut i32) (i32.const 4096))
  (data (i32.const 16) ":path")
  (func (export "_initialize"))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
    (i32.const 4096))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $get (i32.const 0) (i32.const 16) (i32.const 5) (i32.const 32) (i32.const 36)))
    (if (i32.eq (i32.load (i32.const 36)) (i32.const 9)) (then unreachable))
    (i32.const 0)))"#;

fn trapping_module() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("trapping.wasm");
    std::fs::write(&path, wat::parse_str(TRAPPING).unwrap()).unwrap();
    (dir, path)
}

/// Load beside a trap every so often: how many traps, and how many other requests failed.
async fn trapped(policy: &str, base: &str, pause: Duration) -> (usize, usize, usize) {
    let upstreams = upstreams(3).await;
    let (_dir, module) = trapping_module();
    let hosts: Vec<_> = upstreams.iter().map(|u| u.addr()).collect();
    let config = EnvoyConfig::shipped().unwrap().static_hosts(ORDERS, &hosts).wasm(module);
    let mut config = config;
    let plugin = &mut config.wasm_filter()["typed_config"]["config"];
    plugin["failure_policy"] = json!(policy);
    if policy == "FAIL_RELOAD" {
        plugin["reload_config"] = json!({"backoff": {"base_interval": base, "max_interval": "1s"}});
    } else {
        plugin.as_object_mut().unwrap().remove("reload_config");
    }
    let envoy = Envoy::start(config).await.unwrap();
    let load = Load::to(envoy.addr()).host(ORDERS).rate(300.0).start();
    let mut traps = 0;
    for _ in 0..10 {
        tokio::time::sleep(pause).await;
        let reply = ask_at(&envoy, "/trap-now", &[]).await;
        traps += usize::from(reply.status == 503);
    }
    tokio::time::sleep(pause).await;
    let report = load.stop().await;
    println!("{policy} {base}: {traps} of 10 trapped, others: {}", report.summary());
    (traps, report.failed(), report.total())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_with_fail_open_costs_the_request_that_trapped_and_no_other() {
    let (traps, failed, total) = trapped("FAIL_OPEN", "", Duration::from_millis(150)).await;
    // One per worker; from then on there is no filter left to trap.
    assert!((1..=2).contains(&traps), "{traps}");
    assert_eq!(failed, 0, "of {total}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trap_with_the_shipped_reload_costs_the_request_that_trapped_and_no_other() {
    let (traps, failed, total) = trapped("FAIL_RELOAD", "0.01s", Duration::from_millis(150)).await;
    assert_eq!(traps, 10, "the module is back after each");
    assert_eq!(failed, 0, "of {total}");
}

/// What the back-off costs where it can't be avoided: two traps closer to each other than it is long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traps_within_the_back_off_are_answered_503_on_that_worker_until_it_is_over() {
    let (_, long, total) = trapped("FAIL_RELOAD", "1s", Duration::from_millis(100)).await;
    assert!(long > 0, "none of {total}: then the sentence above is out of date");
    let (_, short, total) = trapped("FAIL_RELOAD", "0.01s", Duration::from_millis(20)).await;
    assert!(short * 20 <= total, "{short} of {total}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_module_the_fallback_policy_serves_the_agents_hosts() {
    let world = World::start(3).await;
    let envoy = Envoy::start(world.config().without_filter()).await.unwrap();
    pintle_tests::assert_eventually!(
        Duration::from_secs(10),
        envoy.hosts(ORDERS).await.unwrap().len() == 3
    );
    let report = Load::to(envoy.addr()).host(ORDERS).rate(300.0).run_for_secs(2.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_table_the_fallback_policy_serves() {
    let world = World::start(3).await;
    // A service that nobody has registered, in a cluster with hosts of its own.
    let hosts: Vec<_> = world.upstreams.iter().map(|u| u.addr()).collect();
    let config = world.config().service("unknown").static_hosts("unknown", &hosts);
    let envoy = world.envoy(config).await;
    let report = Load::to(envoy.addr()).host("unknown").rate(300.0).run_for_secs(2.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 3);
    let counted = envoy.stat("wasmcustom.pintle_unknown_service_total").await;
    assert_eq!(counted, Some(report.total() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_comes_late_is_missed_by_nobody_whose_hosts_are_known() {
    let world = World::start(3).await;
    let hosts: Vec<_> = world.upstreams.iter().map(|u| u.addr()).collect();
    // Its socket is made when it starts, so the late one is found by starting, stopping and starting.
    let mut agent = Agent::builder().etcd(world.etcd.url()).start().await.unwrap();
    agent.kill9();
    let config = world.config().agent_socket(agent.socket()).static_hosts(ORDERS, &hosts);
    let envoy = Envoy::start(config).await.unwrap();
    let load = Load::to(envoy.addr()).host(ORDERS).rate(300.0).start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    agent.restart().await.unwrap();
    // Its tables are there when the registry's order counts: one endpoint drains and gets nothing.
    let drained = world.instance(0).health("draining");
    let written = world.etcd.register(&drained).await.unwrap();
    agent.settled(written).await.unwrap();
    let moment = std::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert!(world.upstreams[0].requests_since(moment) <= 1, "the module chooses by now");
    assert_ne!(who(&ask(&envoy, &[]).await), "u00");
}
