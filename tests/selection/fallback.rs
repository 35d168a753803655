//! Requests go on: with the filter removed, without a table, without an agent, after a trap.
//!
//! The trap is a module of a few lines in the place of ours, because ours has none to offer: it
//! does nothing but trap on one path. What Envoy 1.40 does then, as these tests hold it:
//!
//! - the request that traps, and those inside the VM with it, are answered 503, whatever the
//!   policy;
//! - `FAIL_OPEN`: that worker goes on without the filter, at once, and for good;
//! - `FAIL_RELOAD`: the next request rebuilds the VM if `base_interval` has passed since it was
//!   *built*; until then that worker answers 503. Envoy has no policy that does both, so a trap
//!   within the first 10 ms of a VM's life costs what arrives in the rest of them, and a later one
//!   nobody who comes after.

use std::path::PathBuf;
use std::time::Duration;

use pintle_tests::{Agent, Envoy, EnvoyConfig, Load, Server as _, Upstream, assert_eventually};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{ORDERS, World, ask, ask_at, upstreams, who};

/// Traps when `:path` is as long as `/trap-now`, and lets everything else pass.
const TRAPPING: &str = r#"(module
  (import "env" "proxy_get_header_map_value"
    (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
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

/// Two workers with the trapping module in front of hosts that Envoy knows by itself.
struct Trapped {
    envoy: Envoy,
    _upstreams: Vec<Upstream>,
    _module: TempDir,
}

impl Trapped {
    async fn start(policy: &str, base: &str) -> Self {
        let upstreams = upstreams(3).await;
        let (dir, module) = trapping_module();
        let hosts: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
        let config = EnvoyConfig::shipped().unwrap();
        let mut config = config.static_hosts(ORDERS, &hosts).wasm(module);
        let plugin = &mut config.wasm_filter()["typed_config"]["config"];
        plugin["failure_policy"] = json!(policy);
        if policy == "FAIL_RELOAD" {
            plugin["reload_config"]["backoff"]["base_interval"] = json!(base);
        } else {
            plugin.as_object_mut().unwrap().remove("reload_config");
        }
        let envoy = Envoy::start(config).await.unwrap();
        Self { envoy, _upstreams: upstreams, _module: dir }
    }

    /// Whether this request trapped.
    async fn trap(&self) -> bool {
        ask_at(&self.envoy, "/trap-now", &[]).await.status == 503
    }

    fn load(&self) -> Load {
        Load::to(self.envoy.addr()).host(ORDERS).rate(300.0)
    }

    /// Load beside ten traps: how many others failed, of how many.
    async fn beside_traps(&self, pause: Duration) -> (usize, usize) {
        let load = self.load().start();
        for _ in 0..10 {
            tokio::time::sleep(pause).await;
            self.trap().await;
        }
        tokio::time::sleep(pause).await;
        let report = load.stop().await;
        println!("ten traps, {pause:?} apart; others: {}", report.summary());
        (report.failed(), report.total())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_fail_open_the_fallback_policy_serves_everything_after_a_trap() {
    let proxy = Trapped::start("FAIL_OPEN", "").await;
    let mut traps = 0;
    for _ in 0..60 {
        traps += usize::from(proxy.trap().await);
    }
    assert_eq!(traps, 2, "once per worker; then there is no filter left to trap");
    let report = proxy.load().run_for_secs(2.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 3, "{}", report.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_shipped_reload_a_trap_costs_those_inside_the_vm_and_nobody_after() {
    let proxy = Trapped::start("FAIL_RELOAD", "0.01s").await;
    for round in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(proxy.trap().await, "the module is back for round {round}");
        let report = proxy.load().run_for_secs(0.2).await;
        assert_eq!(report.failed(), 0, "round {round}: {}", report.summary());
        // Until a request has come to the worker that trapped, and built its VM anew.
        assert_eventually!(Duration::from_secs(10), {
            assert_eq!(ask(&proxy.envoy, &[]).await.status, 200);
            proxy.envoy.stat_sum("vm_reload_success").await.unwrap() > round
        });
    }
    // With others inside the VM when it traps: they share its fate. 300/s of 2 ms are one in
    // flight.
    let (failed, total) = proxy.beside_traps(Duration::from_millis(150)).await;
    assert!(failed <= 10, "{failed} of {total}");
}

/// What can't be avoided: a second trap before the back-off of the first is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_the_back_off_a_worker_answers_503_which_is_why_it_is_short() {
    let proxy = Trapped::start("FAIL_RELOAD", "1s").await;
    // So many that each worker's VM traps, is rebuilt at once, being old enough, and traps again.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for _ in 0..40 {
        proxy.trap().await;
    }
    let long = proxy.load().run_for_secs(0.3).await;
    println!("after forty traps: {}", long.summary());
    let (long, total) = (long.failed(), long.total());
    assert!(long * 3 > total, "{long} of {total}: then the head of this file is out of date");
    let proxy = Trapped::start("FAIL_RELOAD", "0.01s").await;
    let (short, total) = proxy.beside_traps(Duration::from_millis(100)).await;
    assert!(short * 20 <= total, "{short} of {total}");
}

/// What ends the time without a filter without a restart: the filter comes by discovery from a
/// file, and whoever watches `wasm_fail_stream` moves another version of it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_fail_open_a_filter_that_is_sent_anew_is_back_and_nobody_fails_meanwhile() {
    let upstreams = upstreams(3).await;
    let (dir, module) = trapping_module();
    let hosts: Vec<_> = upstreams.iter().map(Upstream::addr).collect();
    let config = EnvoyConfig::shipped().unwrap();
    let mut config = config.static_hosts(ORDERS, &hosts).wasm(module);
    let mut typed = config.wasm_filter()["typed_config"].take();
    let plugin = typed["config"].as_object_mut().unwrap();
    plugin.remove("reload_config");
    plugin["failure_policy"] = json!("FAIL_OPEN");
    let file = dir.path().join("filter.json");
    let mut send = |version: u32| {
        // The same again would be no change to Envoy.
        typed["config"]["configuration"]["value"] = json!(format!("{{\"version\": {version}}}"));
        let extension = json!({"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": "pintle", "typed_config": typed});
        let update = json!({"version_info": version.to_string(), "resources": [extension]});
        // A file is looked at when one is moved to its name.
        std::fs::write(file.with_extension("new"), update.to_string()).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
    };
    send(1);
    *config.wasm_filter() = json!({"name": "pintle", "config_discovery": {
        "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
        "config_source": {"resource_api_version": "V3",
            "path_config_source": {"path": file}}}});
    let envoy = Envoy::start(config).await.unwrap();
    let proxy = Trapped { envoy, _upstreams: upstreams, _module: dir };
    for version in 2..5 {
        let mut traps = 0;
        for _ in 0..60 {
            traps += usize::from(proxy.trap().await);
        }
        assert_eq!(traps, 2, "version {version}: once per worker");
        let load = proxy.load().start();
        tokio::time::sleep(Duration::from_millis(300)).await;
        send(version);
        let reloaded = "extension_config_discovery.http_filter.pintle.config_reload";
        pintle_tests::assert_eventually!(
            Duration::from_secs(10),
            proxy.envoy.stat(reloaded).await == Some(u64::from(version))
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "version {version}: {}", report.summary());
    }
    assert!(proxy.trap().await, "the module is there");
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
    // Its socket is made when it starts, so the late one is found by starting, stopping and
    // starting.
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
