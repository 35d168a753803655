//! Two Envoys with an agent each on one etcd and one NATS; and several at one agent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Behaviour, Envoy, EnvoyConfig, Etcd, Fault, Instance, Latency, Load, Nats, Server as _,
    Stalls, Upstream, Written, assert_eventually,
};
use serde_json::{Value, json};

use crate::support::{PATIENCE, SETTLED, breakers, get, quantile, settled, upstream};

struct Side {
    agent: Agent,
    envoy: Envoy,
}

struct Fleet {
    etcd: Etcd,
    nats: Nats,
    a: Side,
    b: Side,
}

async fn side(etcd: &Etcd, nats: &Nats, name: &str, services: &[String], breaker: &Value) -> Side {
    let agent = Agent::with(etcd, nats).arg("--agent-id").arg(format!("agent-{name}"));
    let agent = agent.start().await.expect("the agent");
    let mut config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(agent.socket())
        .wasm(PINTLE_PATH)
        .node(&format!("envoy-{name}"))
        .plugin(|plugin| {
            plugin["select"]["strategy"] = json!("round_robin");
            plugin["breaker"] = breaker.clone();
        });
    for service in services.iter().filter(|service| *service != "orders") {
        config = config.service(service);
    }
    let envoy = Envoy::start(config).await.expect("Envoy");
    Side { agent, envoy }
}

impl Fleet {
    /// Every service has the same endpoints.
    async fn start(services: &[String], endpoints: &[&Upstream], breaker: Value) -> Self {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).expect("servers");
        let mut written = None;
        for service in services {
            for endpoint in endpoints {
                written = Some(etcd.register(&Instance::of(service, endpoint)).await);
            }
        }
        let (a, b) = tokio::join!(
            side(&etcd, &nats, "a", services, &breaker),
            side(&etcd, &nats, "b", services, &breaker)
        );
        let last = services.last().expect("a service");
        for side in [&a, &b] {
            let hosts = async || side.envoy.hosts(last).await.map_or(0, |hosts| hosts.len());
            assert_eventually!(PATIENCE, hosts().await == endpoints.len());
            let nats = ["source=\"nats\""];
            let connected = async || side.agent.metric("pintle_source_connected", &nats).await;
            assert_eventually!(PATIENCE, connected().await == Some(1.0));
        }
        let fleet = Self { etcd, nats, a, b };
        fleet.settled(written.expect("an endpoint").expect("a registration")).await;
        fleet
    }

    /// Lays a policy over a service and waits until every worker of both holds it.
    async fn policy(&self, service: &str, policy: Value) {
        let key = format!("/pintle/policies/{service}");
        let written = self.etcd.put(&key, &policy.to_string()).await.expect("a policy");
        self.settled(written).await;
    }

    async fn settled(&self, written: Written) {
        for side in [&self.a, &self.b] {
            settled(&side.agent, written).await;
        }
    }

    /// Whether a side's Envoy has said that the breaker goes to this state.
    fn has_logged(side: &mut Side, endpoint: &str, to: &str) -> bool {
        let ours = format!("breaker of {endpoint}:");
        side.envoy.log().lines().any(|line| line.contains(&ours) && line.contains(to))
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("svc-{number}")).collect()
}

/// Sends to one side until this upstream has failed so often; when the last of them was sent.
async fn fail(side: &Side, service: &str, bad: &Upstream, times: usize) -> Instant {
    bad.forget();
    for _ in 0..100 {
        let sent = Instant::now();
        get(&side.envoy, service).await;
        if bad.requests() >= times {
            return sent;
        }
    }
    panic!("{service}: {} requests only at {}", bad.requests(), bad.name());
}

/// How many of so many requests through a side arrive at this upstream. After each of the first,
/// which may be failures that count, every worker is given the time to hear of it.
async fn arrive(side: &Side, service: &str, at: &Upstream, of: usize) -> usize {
    at.forget();
    for _ in 0..of {
        let before = at.requests();
        get(&side.envoy, service).await;
        if at.requests() > before && before < 5 {
            tokio::time::sleep(SETTLED).await;
        }
    }
    at.requests()
}

async fn has_opinion(side: &Side, service: &str) -> bool {
    let label = format!("service=\"{service}\"");
    side.agent.metric("pintle_fleet_opinions", &[&label]).await == Some(1.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trip_takes_effect_in_the_other_envoy_within_a_tenth_of_a_second() {
    const ROUNDS: usize = 24;
    let [bad, good, third] =
        [upstream("bad").await, upstream("good").await, upstream("third").await];
    bad.set(Behaviour::failing(Fault::Status(500)));
    let services = names(ROUNDS);
    let mut fleet =
        Fleet::start(&services, &[&bad, &good, &third], json!({"fleet": "enforce"})).await;
    let stalls = Stalls::watch();
    let (mut took, mut undisturbed) = (Vec::new(), Vec::new());
    for service in &services {
        // From the request that trips it: what happens before the trip is in it, no time of day is.
        let sent = fail(&fleet.a, service, &bad, 5).await;
        let endpoint = format!("{service}/bad");
        assert_eventually!(PATIENCE, Fleet::has_logged(&mut fleet.b, &endpoint, "-> open"));
        let arrived = Instant::now();
        let ms = (arrived - sent).as_secs_f64() * 1e3;
        took.push(ms);
        if stalls.longest(sent, arrived) < Duration::from_millis(20) {
            undisturbed.push(ms);
        }
    }
    // What is logged is in force: nothing of B's reaches it, in any service.
    let mut reached = 0;
    for service in &services {
        reached += arrive(&fleet.b, service, &bad, 6).await;
    }
    let (p50, p99) = (quantile(&took, 0.5), quantile(&took, 0.99));
    println!("from the request that trips it in A to the open breaker in B, ms: {took:.0?}");
    println!("p50 {p50:.0} ms, p99 {p99:.0} ms, most {:.0} ms", quantile(&took, 1.0));
    assert_eq!(reached, 0);
    assert!(p50 < 100.0, "{took:?}");
    assert!(undisturbed.iter().all(|ms| *ms < 100.0), "without a stall: {undisturbed:?}, {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn advice_needs_one_failure_off_needs_all_and_enforcing_none_until_it_expires() {
    let [bad, good, third] =
        [upstream("bad").await, upstream("good").await, upstream("third").await];
    let services = ["advised", "costly", "deaf", "forced"].map(String::from);
    let fleet = Fleet::start(&services, &[&bad, &good, &third], json!({})).await;
    fleet.policy("deaf", json!({"breaker": {"fleet": "off"}})).await;
    let forced = json!({"breaker": {"fleet": "enforce", "fleet_ttl": "3s"}});
    fleet.policy("forced", forced).await;
    bad.set(Behaviour::failing(Fault::Status(500)));
    let before = Instant::now();
    for service in &services {
        fail(&fleet.a, service, &bad, 5).await;
        assert_eventually!(PATIENCE, has_opinion(&fleet.b, service).await);
    }
    // Enforced: nothing, until it has expired here, though A holds it open for half a minute.
    let forced = async || breakers(&fleet.b.agent).await.remove("forced/bad");
    assert_eventually!(PATIENCE, forced().await.as_deref() == Some("open"));
    // Advised: one failure decides. Off: it takes five, as if nobody had said anything.
    assert_eq!(arrive(&fleet.b, "advised", &bad, 60).await, 1);
    assert_eq!(arrive(&fleet.b, "deaf", &bad, 60).await, 5);
    // Not at once, so that an answer that was held up is not the only one that took long.
    for one in [&bad, &good, &third] {
        one.set(Behaviour::slow(Latency::Fixed(Duration::from_millis(5))));
    }
    fleet.policy("costly", json!({"select": {"strategy": "p2c"}})).await;
    let share = arrive(&fleet.b, "costly", &bad, 300).await;
    println!("advised against: {share} of 300 requests, of 100 without advice");
    assert!(share < 60, "advice raises the cost: {share}");
    assert_eventually!(PATIENCE, arrive(&fleet.b, "forced", &bad, 30).await >= 8);
    println!("enforced with a ttl of 3 s: back after {:.1} s", before.elapsed().as_secs_f64());
    assert!(before.elapsed() >= Duration::from_secs(3));
}

/// What two sides have of a service's breakers: trips since the start, opinions, and who is open.
async fn state_of(fleet: &Fleet) -> Vec<(Option<f64>, Option<f64>, BTreeMap<String, String>)> {
    let mut all = Vec::new();
    for side in [&fleet.a, &fleet.b] {
        let trips = side.agent.metric("circuit_breaker_trips_total", &[]).await;
        let opinions = side.agent.metric("pintle_fleet_opinions", &[]).await;
        all.push((trips, opinions, breakers(&side.agent).await));
    }
    all
}

/// Opens and closes it in A, so that the fleet hears of every kind of transition.
async fn open_and_close(fleet: &Fleet, service: &str, bad: &Upstream) {
    bad.set(Behaviour::failing(Fault::Status(500)));
    fail(&fleet.a, service, bad, 5).await;
    assert_eventually!(PATIENCE, has_opinion(&fleet.b, service).await);
    bad.set(Behaviour::default());
    for side in [&fleet.a, &fleet.b] {
        assert_eventually!(PATIENCE, {
            get(&side.envoy, service).await;
            !breakers(&side.agent).await.keys().any(|name| name.starts_with(service))
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_changes_nothing_however_it_is_said_again() {
    let [bad, good, third] =
        [upstream("bad").await, upstream("good").await, upstream("third").await];
    let services = names(4);
    let quick = json!({"fleet": "enforce", "open": "1s", "open_max": "1s", "jitter_percent": 0});
    let fleet = Fleet::start(&services, &[&bad, &good, &third], quick).await;
    let mut tap = fleet.nats.tap("events.breaker.>").await.expect("a tap");
    for service in &services {
        open_and_close(&fleet, service, &bad).await;
    }
    // One stays open in both, so that what is said again could close as well as open.
    bad.set(Behaviour::failing(Fault::Status(500)));
    let held = json!({"breaker": {"fleet": "enforce", "open": "60s", "open_max": "60s"}});
    fleet.policy(&services[0], held).await;
    fail(&fleet.a, &services[0], &bad, 5).await;
    assert_eventually!(PATIENCE, has_opinion(&fleet.b, &services[0]).await);
    let open = format!("{}/bad", services[0]);
    for side in [&fleet.a, &fleet.b] {
        assert_eventually!(PATIENCE, breakers(&side.agent).await.contains_key(&open));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = state_of(&fleet).await;
    // All of them first: the tap hears what is said again, too.
    let mut said = Vec::new();
    while let Ok(message) = tap.next(Duration::from_millis(300)).await {
        said.push(message);
    }
    let opened = |m: &pintle_tests::Message| m.payload.windows(11).any(|w| w == b"\"to\":\"open\"");
    assert!(said.iter().filter(|m| opened(m)).count() >= 5, "{}", said.len());
    assert!(said.iter().filter(|m| !opened(m)).count() >= 8, "{}", said.len());

    let client = async_nats::connect(fleet.nats.url()).await.expect("NATS");
    let stream = async_nats::jetstream::new(client);
    let publish = async |message: &pintle_tests::Message, id: &str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", id);
        let (subject, payload) = (message.subject.clone(), message.payload.clone().into());
        let sent = stream.publish_with_headers(subject, headers, payload).await.expect("sent");
        sent.await.expect("stored or known").duplicate
    };
    let mut entries = 0;
    for message in &said {
        let event: Value = serde_json::from_slice(&message.payload).expect("JSON");
        let known = publish(message, event["id"].as_str().expect("an id")).await;
        assert!(known, "under its own id the stream keeps it out: {event}");
    }
    // Under others they are new entries: in their order, backwards, and what opened last of all.
    let (opens, others): (Vec<_>, Vec<_>) = said.iter().partition(|m| opened(m));
    let orders = [
        said.iter().collect(),
        said.iter().rev().collect(),
        opens.iter().chain(&others).copied().collect(),
        others.iter().chain(&opens).copied().collect::<Vec<_>>(),
    ];
    for order in orders {
        for message in order {
            entries += 1;
            assert!(!publish(message, &format!("again-{entries}")).await);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(state_of(&fleet).await, before, "after {entries} entries");
    }
    println!("{} events, said again in {entries} new entries", said.len());
    // And requests go where they went.
    bad.set(Behaviour::default());
    for side in [&fleet.a, &fleet.b] {
        assert_eq!(arrive(side, &services[0], &bad, 12).await, 0, "held open");
        assert!(arrive(side, &services[1], &bad, 12).await > 1, "closed: takes its turns");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lies_takes_no_service_down() {
    let all = [
        upstream("one").await,
        upstream("two").await,
        upstream("three").await,
        upstream("four").await,
    ];
    let refs: Vec<&Upstream> = all.iter().collect();
    let services = ["orders".to_owned()];
    let fleet = Fleet::start(&services, &refs, json!({"fleet": "enforce"})).await;
    let load = Load::to(fleet.b.envoy.addr()).host("orders").rate(200.0).connections(8).start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for round in 0..10 {
        for one in &all {
            let subject = format!("orders/{}", one.name());
            let event = json!({
                "id": format!("lie-{round}-{}", one.name()), "type": "breaker", "source": "agent-liar",
                "subject": subject, "version": "1", "timestamp": "2026-01-01T00:00:00Z", "metadata": null,
                "data": {"action": "transition", "proxy": format!("liar-{round}"), "from": "closed",
                    "to": "open", "reason": "a lie", "trips": 32, "ttl": "10m"},
            });
            let on = format!("events.breaker.{subject}");
            fleet.nats.publish(&on, event.to_string().as_bytes()).await.expect("published");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eventually!(PATIENCE, {
        let rows = breakers(&fleet.b.agent).await;
        rows.values().filter(|state| *state == "open").count() >= 2
    });
    // The last lie is in the last table, and the last table in every worker.
    let applied = async || fleet.b.agent.metric("pintle_events_applied_total", &[]).await;
    assert_eventually!(PATIENCE, applied().await.is_some_and(|applied| applied >= 40.0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = Instant::now();
    all.iter().for_each(Upstream::forget);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lied = load.since(now);
    let served: BTreeMap<String, usize> = lied.by_upstream();
    let report = load.stop().await;
    println!("while four of four were said to be open: {served:?}; {}", report.summary());
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(served.len(), 2, "half are taken and not more: {served:?}");
    let panic = fleet.b.agent.metric("pintle_panic_requests_total", &[]).await;
    assert_eq!(panic, Some(0.0), "and it is no panic");
}

/// One more Envoy at this agent, ready for the service.
async fn beside(agent: &Agent, name: &str) -> Envoy {
    let config = EnvoyConfig::shipped()
        .expect("the shipped configuration")
        .agent_socket(agent.socket())
        .wasm(PINTLE_PATH)
        .node(name)
        .plugin(|plugin| plugin["select"]["strategy"] = json!("round_robin"));
    let envoy = Envoy::start(config).await.expect("Envoy");
    let hosts = async || envoy.hosts("orders").await.map_or(0, |hosts| hosts.len());
    assert_eventually!(PATIENCE, hosts().await == 3);
    envoy
}

#[tokio::test(flavor = "multi_thread")]
async fn envoys_of_one_agent_tell_each_other_without_nats_and_one_that_starts_is_told() {
    let [bad, good, third] =
        [upstream("bad").await, upstream("good").await, upstream("third").await];
    bad.set(Behaviour::failing(Fault::Status(500)));
    let etcd = Etcd::start().await.expect("etcd");
    let mut written = None;
    for endpoint in [&bad, &good, &third] {
        written = Some(etcd.register(&Instance::of("orders", endpoint)).await);
    }
    let agent = Agent::builder().etcd(etcd.url()).start().await.expect("the agent");
    let (a, b) = tokio::join!(beside(&agent, "envoy-a"), beside(&agent, "envoy-b"));
    let written = written.expect("an endpoint").expect("a registration");
    settled(&agent, written).await;
    let failed = async |envoy: &Envoy| {
        bad.forget();
        for _ in 0..60 {
            let before = bad.requests();
            get(envoy, "orders").await;
            if bad.requests() > before {
                tokio::time::sleep(SETTLED).await;
            }
        }
        bad.requests()
    };
    assert_eq!(failed(&a).await, 5, "it finds out for itself");
    assert_eq!(failed(&b).await, 1, "one failure is enough where another said so");
    let late = beside(&agent, "envoy-c").await;
    settled(&agent, written).await;
    assert_eq!(failed(&late).await, 1, "and where the first table said so");
    assert_eq!(failed(&a).await, 0, "still open");
}
