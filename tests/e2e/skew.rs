//! Modules of the release before, beside this agent and beside this module in one Envoy.
//!
//! `tests/skew/pintle-0.1.0.wasm.gz` is the `pintle.wasm` of commit 60c7988, as
//! `cargo build -p pintle-artifact` makes it there; unpacked its SHA-256 begins with
//! `ac1e50823c35f07e`. What an agent of that release reads and writes is held by
//! `filters/contract/tests/golden`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Agent, Envoy, EnvoyConfig, Etcd, Nats, Upstream, assert_eventually, http};
use serde_json::Value;

use crate::support::{PATIENCE, World, in_turns};

/// The module of the release before, unpacked into `dir`.
pub fn older(dir: &tempfile::TempDir) -> PathBuf {
    let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/skew/pintle-0.1.0.wasm.gz");
    let unpacked = Command::new("gzip").args(["-dc", packed]).output().expect("gzip runs");
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let path = dir.path().join("pintle-0.1.0.wasm");
    std::fs::write(&path, unpacked.stdout).expect("written");
    path
}

async fn world(envoy: impl FnOnce(EnvoyConfig) -> EnvoyConfig) -> World {
    let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
    let agent = Agent::with(&etcd, &nats).start().await.expect("the agent");
    let config = EnvoyConfig::shipped().expect("the shipped configuration");
    let config = config.agent_socket(agent.socket()).plugin(in_turns);
    let envoy = Envoy::start(envoy(config)).await.expect("Envoy");
    World { etcd, nats, agent, envoy }
}

impl World {
    async fn proxy(&self) -> Value {
        let proxies = http::get(self.agent.admin(), "/v1/proxies").await.expect("an answer");
        proxies.json().expect("JSON")["proxies"][0].clone()
    }

    /// Frames and parts of frames that the agent could not use.
    async fn refused(&self) -> f64 {
        let sum = self.agent.metric("pintle_frames_refused_total", &[]).await;
        sum.unwrap_or_default()
    }

    async fn requests(&self) -> f64 {
        let labels = ["service=\"orders\"", "method=\"GET\"", "code=\"200\""];
        self.agent.metric("http_requests_total", &labels).await.unwrap_or_default()
    }

    async fn order(&self, args: &[&str]) {
        let done = Agent::command(&[args, &["--nats", &self.nats.url()]].concat()).await.unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stdout));
    }

    async fn is_asked(&self, upstream: &Upstream) -> bool {
        let before = upstream.requests();
        let report = self.load(200.0).run_for_secs(0.2).await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
        upstream.requests() > before
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_the_release_before_is_served_as_ever_and_check_says_what_it_is() {
    let dir = tempfile::TempDir::with_prefix("pintle-skew-").expect("a directory");
    let world = world(|config| config.wasm(older(&dir))).await;
    let all = world.orders(3).await;
    world.chosen().await;
    assert_eq!(world.proxy().await["schema"], 1);
    // Tables, orders and reports go through.
    let reported = world.requests().await;
    world.order(&["drain", "orders/orders-1", "--ttl", "1h"]).await;
    assert_eventually!(PATIENCE, !world.is_asked(&all[0]).await);
    assert_eventually!(PATIENCE, world.requests().await > reported);
    assert_eventually!(PATIENCE, world.proxy().await["current"] == true);
    assert_eq!(world.refused().await, 0.0);
    let admin = world.agent.admin().to_string();
    let check = Agent::command(&["check", "--no-envoy", "--output", "json", "--admin", &admin])
        .await
        .unwrap();
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.contains("module-older"), "{check}");
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_of_both_releases_share_one_envoy_its_tables_and_its_lease() {
    let dir = tempfile::TempDir::with_prefix("pintle-skew-").expect("a directory");
    let world = world(|config| {
        let mut config = config.wasm(older(&dir));
        let older = config.wasm_filter().clone();
        config = config.wasm(PINTLE_PATH);
        let filters = config.http_connection_manager().pointer_mut("/http_filters");
        filters.and_then(Value::as_array_mut).expect("filters").insert(0, older);
        config
    })
    .await;
    let all = world.orders(3).await;
    world.chosen().await;
    // Two workers and the main thread, of each.
    assert_eventually!(PATIENCE, {
        let proxy = world.proxy().await;
        proxy["expected"] == 6 && proxy["current"] == true
    });
    world.order(&["drain", "orders/orders-1", "--ttl", "1h"]).await;
    assert_eventually!(PATIENCE, !world.is_asked(&all[0]).await);

    let fence = world.proxy().await["fence"].clone();
    let stat = async |name: &str| {
        world.envoy.stat(&format!("wasmcustom.pintle_{name}_total")).await.unwrap_or(0)
    };
    let refused = (stat("shared_rejected").await, stat("frame_rejected").await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.proxy().await["fence"], fence, "nobody takes the lease from who has it");
    let refused_now = (stat("shared_rejected").await, stat("frame_rejected").await);
    assert_eq!(refused_now, refused, "neither writes what the other can't read");
    assert_eq!(world.refused().await, 0.0);
    world.no_traps().await;
}
