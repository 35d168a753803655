//! An agent that sends of its services only what is wanted: by EDS at start, all else with the
//! first request.

use std::time::{Duration, Instant};

use pintle_tests::{
    Agent, Envoy, EnvoyConfig, Etcd, Instance, Load, Upstream, assert_eventually, http, tools,
};

use serde_json::json;

use crate::support::{ORDERS, SOON, upstreams};

const CONFIG: &str = "serve: {all_up_to: 0}\n";

async fn status(envoy: &Envoy, host: &str) -> (u16, Duration) {
    let began = Instant::now();
    let reply = http::send(envoy.addr(), http::request(host, "GET", "/", "").unwrap()).await;
    (reply.unwrap().status, began.elapsed())
}

async fn register(etcd: &Etcd, all: &[Upstream]) {
    for upstream in all {
        etcd.register(&Instance::of(ORDERS, upstream)).await.unwrap();
    }
    for number in 0..20 {
        let beside = Instance::of(&format!("beside-{number}"), &all[0]);
        etcd.register(&beside).await.unwrap();
    }
}

/// By `ORIGINAL_DST` there is no other choice than the module's: the first request waits for its
/// table. By EDS the table is there before the first request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_request_finds_its_table_also_after_the_agent_has_restarted() {
    let etcd = Etcd::start().await.unwrap();
    let all = upstreams(3).await;
    register(&etcd, &all).await;
    let agent = Agent::builder().etcd(etcd.url()).config("agent.yaml", CONFIG);
    let mut agent = agent.start().await.unwrap();
    let adapt = |config: EnvoyConfig, node: &str| {
        config.agent_socket(agent.socket()).wasm(tools::module().unwrap()).node(node)
    };
    let direct = adapt(EnvoyConfig::original_dst().unwrap(), "direct");
    let direct = direct.plugin(|plugin| plugin["service"] = json!({"from": ["authority"]}));
    let shipped = adapt(EnvoyConfig::shipped().unwrap(), "shipped");
    let direct = Envoy::start_with(direct, 2, &[]).await.unwrap();
    let shipped = Envoy::start_with(shipped, 2, &[]).await.unwrap();
    let written = etcd.register(&Instance::of(ORDERS, &all[0])).await.unwrap();
    agent.settled(written).await.unwrap();

    // Each waits for up to 250 ms, which a busy machine may need for itself.
    let mut at_once = 0;
    for number in 0..10 {
        let service = format!("beside-{number}");
        at_once += usize::from(status(&direct, &service).await.0 == 200);
        assert_eventually!(SOON, status(&direct, &service).await.0 == 200, "{service}");
    }
    assert!(at_once >= 5, "{at_once} of 10 first requests found their table");
    assert_eventually!(SOON, status(&direct, ORDERS).await.0 == 200, "orders");
    let (code, took) = status(&direct, "nobody").await;
    assert!(code == 503 && took < SOON, "{code} after {took:?}");

    let report = Load::to(shipped.addr()).host(ORDERS).rate(100.0).run_for_secs(0.5).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    let unknown = "wasmcustom.pintle_unknown_service_total";
    assert_eq!(shipped.stat(unknown).await.unwrap_or(0), 0, "by EDS it was there at the start");

    // What was wanted is wanted of the next agent, and what has changed meanwhile is heard.
    let loads = [&direct, &shipped].map(|it| Load::to(it.addr()).host(ORDERS).rate(100.0).start());
    agent.terminate(SOON).await.unwrap();
    let drained = Instance::of(ORDERS, &all[0]).health("draining");
    let written = etcd.register(&drained).await.unwrap();
    agent.restart().await.unwrap();
    agent.settled(written).await.unwrap();
    let moment = Instant::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    for load in loads {
        let later = load.since(moment).by_upstream();
        assert!(later.len() == 2 && !later.contains_key("u00"), "{later:?}");
        let report = load.stop().await;
        assert_eq!(report.failed(), 0, "{}", report.summary());
    }

    // A new service is found by whoever asks for it next.
    let late = etcd.register(&Instance::of("late", &all[1])).await.unwrap();
    agent.settled(late).await.unwrap();
    assert_eventually!(SOON, status(&direct, "late").await.0 == 200, "late");
    assert_eq!(direct.vm_reloads().await.unwrap(), 0);
}
