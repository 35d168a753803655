//! Everything is replaced in turn under one load: agent, each member of etcd, NATS, the module and
//! its configuration by ECDS and by LDS, Envoy by hot restart; from the release before to this one
//! and back. No request fails, and what changes afterwards is served.
//!
//! `ROLLING_ROUNDS=5` does it five times, with a drain that is longer than Envoy takes to compile a
//! module, and so sends modules by LDS as well. With `ROLLING_OLDER_AGENT`, the agent of the
//! release before takes turns with this one under either module. `cargo xtask rolling` does both.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Envoy, EnvoyConfig, EtcdCluster, Instance, Load, Nats, Port, Running, Server as _,
    Upstream, assert_eventually, http,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::skew::older;
use crate::support::{PATIENCE, in_turns, quick};

/// A listener and a filter from files that Envoy watches, as LDS and ECDS.
struct Files {
    dir: TempDir,
    port: Port,
    listener: Value,
    /// The filter, and what stands for it in a listener that gets it by ECDS.
    filter: Value,
    discovered: Value,
    version: u64,
}

struct World {
    etcd: EtcdCluster,
    nats: Nats,
    agent: Agent,
    envoy: Envoy,
    files: Files,
    older: PathBuf,
    upstreams: Vec<Upstream>,
    load: Running,
    told: Instant,
}

impl Files {
    /// Moves the first listener of the configuration into a file, its filter into another.
    fn of(config: &mut EnvoyConfig) -> Self {
        let dir = TempDir::with_prefix("pintle-rolling-").expect("a directory");
        let port = Port::take().expect("a port");
        let mut filter = config.wasm_filter().clone();
        filter["name"] = json!("pintle");
        let mut listener = config.at("/static_resources/listeners/0").clone();
        listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
        listener["name"] = json!("rolled");
        listener["address"]["socket_address"]["address"] = json!("127.0.0.1");
        listener["address"]["socket_address"]["port_value"] = json!(port.number());
        let source = |name: &str| {
            json!({"resource_api_version": "V3", "path_config_source":
                {"path": dir.path().join(name), "watched_directory": {"path": dir.path()}}})
        };
        config.root()["dynamic_resources"] = json!({"lds_config": source("lds.json")});
        let discovered = json!({"name": "pintle", "config_discovery": {
            "config_source": source("ecds.json"),
            "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"]}});
        Self { dir, port, listener, filter, discovered, version: 0 }
    }

    /// Sends a module with a plugin configuration that was never sent before.
    fn changed(&mut self, module: &Path) -> Value {
        self.version += 1;
        let config = &mut self.filter["typed_config"]["config"];
        config["vm_config"]["code"]["local"]["filename"] = json!(module);
        let text = config["configuration"]["value"].as_str().expect("a string");
        let mut plugin: Value = serde_json::from_str(text).expect("JSON");
        plugin["breaker"]["consecutive_failures"] = json!(5 + self.version);
        config["configuration"]["value"] = json!(plugin.to_string());
        self.filter.clone()
    }

    fn ecds(&mut self, module: &Path) {
        let mut resource = self.changed(module);
        resource["@type"] = json!("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
        self.write("ecds.json", &resource);
    }

    /// Sends the listener with the filter in it, or with one that ECDS sends.
    fn lds(&mut self, module: Option<&Path>) {
        let filter = match module {
            Some(module) => self.changed(module),
            None => self.discovered.clone(),
        };
        let manager = &mut self.listener["filter_chains"][0]["filters"][0]["typed_config"];
        manager["http_filters"][0] = filter;
        self.write("lds.json", &self.listener);
    }

    fn write(&self, name: &str, resource: &Value) {
        let next = self.dir.path().join("next.json");
        let version = self.version.to_string();
        let response = json!({"version_info": version, "resources": [resource]});
        std::fs::write(&next, response.to_string()).expect("written");
        std::fs::rename(&next, self.dir.path().join(name)).expect("moved");
    }
}

impl World {
    /// With the module of the release before.
    async fn start(drain: u32) -> Self {
        let (etcd, nats) = tokio::try_join!(EtcdCluster::start(3), Nats::start()).expect("servers");
        let agent = Agent::with_cluster(&etcd).nats(nats.url()).start().await.expect("the agent");
        let config = EnvoyConfig::shipped().expect("the shipped configuration");
        let mut config = config.agent_socket(agent.socket()).plugin(in_turns);
        let mut files = Files::of(&mut config);
        let older = older(&files.dir);
        files.ecds(&older);
        files.lds(None);
        let config = config.without_filter();
        let envoy = Envoy::start_restartable(config, drain).await.expect("Envoy");
        let addr = files.port.addr();
        let load = Load::to(addr).host("orders").rate(200.0).timeout(Duration::from_secs(5));
        let mut upstreams = Vec::new();
        for number in 1..=3 {
            upstreams.push(registered(&etcd, 0, &format!("orders-{number}")).await);
        }
        let answer = async || {
            let request = http::request("orders", "GET", "/", "").expect("a request");
            http::send(addr, request).await.map_or(0, |reply| reply.status)
        };
        assert_eventually!(PATIENCE, answer().await == 200);
        let (load, told) = (load.start(), Instant::now());
        Self { etcd, nats, agent, envoy, files, older, upstreams, load, told }
    }

    /// What is registered after the roll, by this member of etcd, is served, and no request has
    /// failed.
    async fn rolled(&mut self, what: &str, member: usize) {
        let name = format!("orders-{}", self.upstreams.len() + 1);
        let newcomer = registered(&self.etcd, member, &name).await;
        assert_eventually!(PATIENCE, newcomer.requests() > 0, "{what}: the newcomer");
        self.upstreams.push(newcomer);
        let (began, report) = (self.told, self.load.since(self.told));
        self.told = Instant::now();
        let took = began.elapsed().as_secs_f64();
        println!("{what}: {} failed of {}, {took:.1} s", report.failed(), report.total());
        assert_eq!(report.failed(), 0, "{what}: {}", report.summary());
    }

    /// Waits until a leader is of the module that reads this schema at best.
    async fn speaks(&self, schema: u64) {
        let spoken = async || {
            let proxies = http::get(self.agent.admin(), "/v1/proxies").await.expect("an answer");
            let proxies = proxies.json().expect("JSON");
            let proxies = proxies["proxies"].as_array().cloned().unwrap_or_default();
            proxies.iter().any(|proxy| proxy["schema"] == schema)
        };
        // The one before may lead until it has drained.
        let patience = PATIENCE + Duration::from_secs(LONG_DRAIN.into());
        assert_eventually!(patience, spoken().await, "schema {schema}");
    }

    async fn agent(&mut self) {
        self.agent.terminate(PATIENCE).await.expect("an end");
        self.agent.restart().await.expect("the agent");
        self.rolled("agent, ended", 0).await;
        self.agent.kill9();
        self.agent.restart().await.expect("the agent");
        self.rolled("agent, killed", 0).await;
    }

    /// To the agent of the release before and back; each reads what the other kept on disk.
    async fn older_agent(&mut self, module: &str) {
        let Some(older) = std::env::var_os("ROLLING_OLDER_AGENT") else { return };
        let this = self.agent.process().spec().program.clone();
        for (what, program) in [("agent, back to 0.1.0", older.into()), ("agent, of now", this)] {
            self.agent.process().spec().program = program;
            self.agent.terminate(PATIENCE).await.expect("an end");
            self.agent.restart().await.expect("the agent");
            self.rolled(&format!("{what}, with {module}"), 0).await;
        }
    }

    async fn etcd(&mut self) {
        for member in 0..self.etcd.members.len() {
            let etcd = &mut self.etcd.members[member];
            let _ = etcd.process().terminate(PATIENCE).await.expect("an end");
            self.rolled(&format!("etcd, without {member}"), (member + 1) % 3).await;
            self.etcd.members[member].restart().await.expect("etcd");
            self.rolled(&format!("etcd, {member} is back"), member).await;
        }
    }

    async fn nats(&mut self) {
        let _ = self.nats.process().terminate(PATIENCE).await.expect("an end");
        self.nats.restart().await.expect("NATS");
        let connected = async || {
            self.agent.metric("pintle_source_connected", &["source=\"nats\""]).await == Some(1.0)
        };
        assert_eventually!(PATIENCE, connected().await);
        // An agent says that it is in force, once it hears of it.
        let (nats, minute) = (self.nats.url(), Duration::from_secs(60));
        let drained = async || Agent::drain(&nats, "orders", "orders-1", minute).await;
        assert_eventually!(PATIENCE, drained().await.is_ok());
        self.rolled("NATS", 0).await;
    }

    async fn ecds(&mut self, module: &Path) {
        let name = "extension_config_discovery.http_filter.pintle.config_reload";
        let before = self.envoy.stat(name).await;
        self.files.ecds(module);
        assert_eventually!(PATIENCE, self.envoy.stat(name).await > before);
    }

    async fn lds(&mut self, module: Option<&Path>) {
        let name = "listener_manager.listener_in_place_updated";
        let before = self.envoy.stat(name).await;
        self.files.lds(module);
        assert_eventually!(PATIENCE, self.envoy.stat(name).await > before);
    }

    async fn module(&mut self) {
        self.ecds(Path::new(PINTLE_PATH)).await;
        self.speaks(THIS).await;
        self.rolled("0.1.0 to this module, by ECDS", 0).await;
    }

    async fn envoy(&mut self) {
        self.envoy.hot_restart().await.expect("a hot restart");
        self.rolled("Envoy, by hot restart", 0).await;
    }

    async fn configuration(&mut self) {
        let this = Path::new(PINTLE_PATH);
        self.ecds(this).await;
        self.rolled("configuration, by ECDS", 0).await;
        self.lds(Some(this)).await;
        self.rolled("configuration, by LDS", 0).await;
        self.lds(None).await;
        self.rolled("configuration, by LDS again", 0).await;
    }

    async fn module_back(&mut self, by_lds: bool) {
        let older = self.older.clone();
        self.ecds(&older).await;
        self.speaks(OLDER).await;
        self.rolled("back to 0.1.0, by ECDS", 0).await;
        if by_lds {
            self.lds(Some(Path::new(PINTLE_PATH))).await;
            self.speaks(THIS).await;
            self.rolled("0.1.0 to this module, by LDS", 0).await;
            self.lds(None).await;
            self.speaks(OLDER).await;
            self.rolled("back to 0.1.0, by LDS", 0).await;
        }
    }
}

/// Seconds of a drain. Envoy's timer for it counts the time, too, in which its main thread compiles
/// a module: after a hot restart, and when a listener with another module comes by LDS. That took
/// nine seconds on a busy machine, and then connections are cut without a word.
const DRAIN: u32 = 8;
const LONG_DRAIN: u32 = 20;

/// What the modules of the release before and of this one read.
const OLDER: u64 = 1;
const THIS: u64 = 3;

async fn registered(etcd: &EtcdCluster, member: usize, name: &str) -> Upstream {
    let upstream = quick(name).await;
    let instance = Instance::of("orders", &upstream);
    etcd.members[member].register(&instance).await.expect("a registration");
    upstream
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_rolled_and_no_request_fails() {
    let rounds = std::env::var("ROLLING_ROUNDS");
    let rounds: u32 = rounds.map_or(1, |text| text.parse().expect("a whole number"));
    let long = rounds > 1;
    let mut world = World::start(if long { LONG_DRAIN } else { DRAIN }).await;
    for _ in 0..rounds {
        world.older_agent("0.1.0's module").await;
        world.module().await;
        world.older_agent("this module").await;
        world.envoy().await;
        // The Envoy before drains meanwhile.
        world.agent().await;
        world.etcd().await;
        world.nats().await;
        world.configuration().await;
        world.module_back(long).await;
        world.envoy.drained().await.expect("the Envoy before ends");
        world.rolled("Envoy, the one before has ended", 0).await;
    }
    let report = world.load.stop().await;
    println!("rolling: {} failed of {}", report.failed(), report.total());
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(world.envoy.vm_reloads().await.expect("stats"), 0, "no VM was rebuilt");
}
