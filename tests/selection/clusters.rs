//! Clusters that the agent serves (`serve.clusters`, `envoy/dynamic.yaml`): services come and go
//! without a change of Envoy's files.

use std::time::Instant;

use pintle_tests::{
    Agent, Envoy, EnvoyConfig, Etcd, Instance, Load, Upstream, assert_eventually, http, tools,
};
use serde_json::{Value, json};

use crate::support::{ORDERS, SOON};

const CONFIG: &str = "serve:\n  clusters: {name: \"service/{service}\"}\n";

/// How many services come and go; a thousand are for the long form.
fn services() -> usize {
    let asked = std::env::var("PINTLE_SERVICES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(40)
}

async fn status(envoy: &Envoy, host: &str) -> u16 {
    http::send(envoy.addr(), http::request(host, "GET", "/", "").unwrap()).await.unwrap().status
}

/// The clusters of a kind in Envoy's own words.
async fn dumped(envoy: &Envoy, kind: &str) -> Vec<Value> {
    let path = format!("/config_dump?resource={kind}");
    let dump = http::get(envoy.admin(), &path).await.unwrap().json().unwrap();
    dump["configs"].as_array().cloned().unwrap_or_default()
}

/// `dynamic.yaml` with this agent, and beside it the shipped cluster as a file has it.
fn config(agent: &Agent) -> EnvoyConfig {
    let mut shipped = EnvoyConfig::shipped().unwrap();
    let cluster = shipped.cluster(ORDERS).clone();
    let mut config = EnvoyConfig::file("dynamic.yaml").unwrap();
    let clusters = config.at("/static_resources/clusters");
    clusters.as_array_mut().unwrap().push(cluster);
    config.agent_socket(agent.socket()).wasm(tools::module().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_come_and_go_under_load_and_envoys_files_stay_as_they_are() {
    let etcd = Etcd::start().await.unwrap();
    let agent = Agent::builder().etcd(etcd.url()).config("agent.yaml", CONFIG);
    let agent = agent.start().await.unwrap();
    let upstreams = [Upstream::start("u00").await.unwrap(), Upstream::start("u01").await.unwrap()];
    let envoy = Envoy::start(config(&agent)).await.unwrap();
    assert_eq!(status(&envoy, ORDERS).await, 503, "nobody has registered");

    let mut last = None;
    for upstream in &upstreams {
        last = Some(etcd.register(&Instance::of(ORDERS, upstream)).await.unwrap());
    }
    agent.settled(last.unwrap()).await.unwrap();
    assert_eventually!(SOON, status(&envoy, ORDERS).await == 200, "orders");
    for _ in 0..20 {
        assert_eq!(status(&envoy, "orders:10000").await, 200);
    }
    assert_eq!(status(&envoy, "pintle_agent").await, 503, "a client names services alone");
    assert!(upstreams.iter().all(|upstream| upstream.requests() > 0), "both are chosen");
    let unknown = async || envoy.stat("wasmcustom.pintle_unknown_service_total").await;
    let before = unknown().await;
    for seen in upstreams.iter().flat_map(Upstream::seen) {
        let ours = seen.headers.keys().find(|name| name.as_str().starts_with("x-pintle-"));
        assert_eq!(ours, None, "on the wire");
    }

    // What Envoy was sent is what the shipped file says, in its own words.
    let served = dumped(&envoy, "dynamic_active_clusters").await;
    let filed = dumped(&envoy, "static_clusters").await;
    let cluster = |all: &[Value], name: &str| {
        let found = all.iter().map(|it| it["cluster"].clone()).find(|it| it["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {all:#?}"))
    };
    let (mut served, mut filed) = (cluster(&served, "service/orders"), cluster(&filed, ORDERS));
    served["name"] = json!(ORDERS);
    let source = &mut filed["eds_cluster_config"]["eds_config"];
    source.as_object_mut().unwrap().remove("api_config_source");
    source["ads"] = json!({});
    assert_eq!(served, filed);

    let all: Vec<String> = (0..services()).map(|number| format!("s-{number:04}")).collect();
    let mut goes = Upstream::start("goes").await.unwrap();
    let orders = Load::to(envoy.addr()).host(ORDERS).rate(100.0).start();
    let began = Instant::now();
    let mut last = None;
    for service in &all {
        last = Some(etcd.register(&Instance::of(service, &goes)).await.unwrap());
    }
    agent.settled(last.unwrap()).await.unwrap();
    let active = async || envoy.stat("cluster_manager.active_clusters").await.unwrap_or(0);
    let wanted = u64::try_from(all.len() + 3).unwrap();
    assert_eventually!(SOON, active().await == wanted, "{} of {wanted}", active().await);
    println!("{} clusters {:?} after the first was registered", all.len(), began.elapsed());
    let (mut sent, mut failed) = (0, 0);
    for service in all.iter().step_by(all.len().div_ceil(40)) {
        assert_eventually!(SOON, status(&envoy, service).await == 200, "{service}");
        let report = Load::to(envoy.addr()).host(service).rate(200.0).run_for_secs(0.1).await;
        (sent, failed) = (sent + report.total(), failed + report.failed());
    }
    // One that still answered would be held.
    goes.close().await;
    for service in &all {
        etcd.deregister(service, "goes").await.unwrap();
    }
    assert_eventually!(SOON, active().await == 3, "{} are left", active().await);
    let report = orders.stop().await;
    (sent, failed) = (sent + report.total(), failed + report.failed());
    println!("{failed} failed of {sent}");
    assert_eq!(failed, 0, "{}", report.summary());
    assert_eq!(envoy.stat("cluster_manager.cds.update_rejected").await, Some(0));
    assert_eq!(unknown().await, before, "each has a table");
}

/// The agent knows a template's keys, and not the files on an Envoy's machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_envoy_refuses_of_them_is_told_in_its_words_until_it_takes_them() {
    let etcd = Etcd::start().await.unwrap();
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context": {"trusted_ca": {"filename": "/no/such.pem"}}},
    }});
    let bad =
        json!({"serve": {"clusters": {"name": "service/{service}", "transport_socket": tls}}});
    let agent = Agent::builder().etcd(etcd.url()).config("agent.yaml", &bad.to_string());
    let agent = agent.start().await.unwrap();
    let upstream = Upstream::start("u00").await.unwrap();
    let envoy = Envoy::start(config(&agent)).await.unwrap();
    let version = etcd.register(&Instance::of(ORDERS, &upstream)).await.unwrap();
    agent.settled(version).await.unwrap();

    let refusals = async || {
        let said = http::get(agent.admin(), "/v1/agent").await.unwrap().json().unwrap();
        said["refusals"].as_array().cloned().unwrap_or_default()
    };
    assert_eventually!(SOON, !refusals().await.is_empty(), "nothing was refused");
    let all = refusals().await;
    assert_eq!(all[0]["what"], "clusters", "{all:?}");
    assert!(all[0]["why"].as_str().unwrap().contains("/no/such.pem"), "{all:?}");
    let admin = agent.admin().to_string();
    let check = Agent::command(&["check", "--no-envoy", "--admin", &admin]).await.unwrap();
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(said.contains("discovery-refused") && said.contains("/no/such.pem"), "{said}");

    drop(envoy);
    assert_eventually!(SOON, refusals().await.is_empty(), "{:?}", refusals().await);
}
