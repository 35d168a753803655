//! Events on a real nats-server: applied, acknowledged, buried, and survived.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test, helpers included"
)]

#[path = "../support/mod.rs"]
mod support;

mod fleet;
mod orders;
mod shared;

use std::process::Output;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context as JetStream};
use pintle_agent::events::{Action, Draft, Events, How, Target, new_id};
use pintle_agent::link::Reported;
use pintle_agent::source::{NatsConfig, SecretRef, SourcesConfig, Tls};
use pintle_contract::{BreakerState, Health, Now, Transition};
use pintle_tests::{Authority, Nats, NetworkFault as Fault, Proxy, Server as _};
use serde_json::{Value, json};
use support::{Agent, secs, with_nats};

/// Runs the command against this server.
async fn pintle(nats: &Nats, arguments: &[&str]) -> Output {
    let url = nats.url();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pintle"));
    command.args(arguments).args(["--nats", &url]).env_clear();
    command.output().await.unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn draft(service: &str, endpoint: &str, action: Action, ttl: u64) -> Draft {
    Draft {
        id: new_id(),
        source: "a person".into(),
        target: Target {
            service: service.into(),
            endpoint: (!endpoint.is_empty()).then(|| endpoint.into()),
        },
        action,
        ttl: Some(secs(ttl)),
    }
}

/// An agent with a file of services beside its events: no etcd is needed for these tests.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoints: Vec<String> = (0..10)
            .map(|n| format!("{{\"id\":\"e{n}\",\"address\":\"10.0.0.1\",\"port\":{}}}", 80 + n))
            .collect();
        let text =
            format!("{{\"services\":{{\"orders\":{{\"endpoints\":[{}]}}}}}}", endpoints.join(","));
        std::fs::write(dir.path().join("services.json"), text).unwrap();
        Self { dir }
    }

    fn config(&self, url: &str) -> SourcesConfig {
        let mut config = with_nats(url.to_owned());
        config.file = Some(pintle_agent::source::FileConfig {
            path: self.dir.path().join("services.json"),
            ..Default::default()
        });
        config.state.dir = Some(self.dir.path().join("state"));
        config
    }
}

fn health(agent: &Agent, id: &str) -> Option<Health> {
    let snapshot = agent.snapshot();
    let table = &snapshot.services.get("orders")?.table;
    table.endpoints.iter().find(|e| e.id == id).map(|e| e.health)
}

async fn js(nats: &Nats) -> JetStream {
    jetstream::new(async_nats::connect(nats.url()).await.unwrap())
}

async fn ready(agent: &Agent) {
    agent
        .until(secs(15), "connected with a file", |a| a.sources().nats.connected && a.count() == 10)
        .await;
}

fn nats_config(config: &SourcesConfig) -> NatsConfig {
    config.nats.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_take_effect_at_once_and_end_with_their_ttl() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let mut config = place.config(&nats.url());
    // As a node is called; a consumer may not be.
    config.agent = "node-7.eu.internal".into();
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    let events = Events::connect(&nats_config(&config)).await.unwrap();

    let drain = draft("orders", "e1", Action::Drain, 3);
    let began = Instant::now();
    events.publish(&drain).await.unwrap();
    agent.until(secs(2), "drained", |a| health(a, "e1") == Some(Health::Draining)).await;
    println!("drained after {:?}", began.elapsed());
    assert!(events.publish(&drain).await.unwrap().duplicate, "the same id is the same event");

    events.publish(&draft("orders", "e2", Action::Eject, 60)).await.unwrap();
    agent.until(secs(2), "ejected", |a| health(a, "e2") == Some(Health::Unhealthy)).await;
    events.publish(&draft("orders", "e2", Action::Restore, 60)).await.unwrap();
    agent.until(secs(2), "restored", |a| health(a, "e2") == Some(Health::Healthy)).await;
    events.publish(&draft("orders", "e3", Action::Drain, 60)).await.unwrap();
    agent.until(secs(2), "drained too", |a| health(a, "e3") == Some(Health::Draining)).await;
    events.publish(&draft("orders", "e3", Action::Undrain, 60)).await.unwrap();
    agent.until(secs(2), "undrained", |a| health(a, "e3") == Some(Health::Healthy)).await;
    events.publish(&draft("orders", "e4", Action::Weight(9), 60)).await.unwrap();
    let weight = |a: &Agent| a.snapshot().services["orders"].table.endpoints[4].weight;
    agent.until(secs(2), "weighed", |a| weight(a) == 9).await;
    events.publish(&draft("orders", "e5", Action::ForceOpen, 60)).await.unwrap();
    let force = |a: &Agent| a.snapshot().services["orders"].table.endpoints[5].force;
    agent.until(secs(2), "forced", |a| force(a).is_some()).await;

    events.publish(&draft("orders", "", Action::Trace(Some(0.5)), 60)).await.unwrap();
    let policy = |a: &Agent| a.snapshot().services["orders"].table.policy.clone();
    agent.until(secs(2), "sampled", |a| policy(a) == r#"{"trace":{"ratio":0.5}}"#).await;
    let patch = json!({"select": {"strategy": "random"}});
    events.publish(&draft("orders", "", Action::Policy(patch), 60)).await.unwrap();
    agent.until(secs(2), "patched", |a| policy(a).contains(r#""strategy":"random""#)).await;
    let ended = agent.until(secs(6), "ended", |a| health(a, "e1") == Some(Health::Healthy)).await;
    println!("the drain ended {ended:?} after the rest");
    assert_eq!(events.newest().await.unwrap(), 9);
    assert_eq!(agent.sources().events_applied, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_while_the_agent_was_away_is_applied_and_what_was_applied_is_kept() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    events.publish(&draft("orders", "e1", Action::Drain, 600)).await.unwrap();
    agent.until(secs(2), "drained", |a| health(a, "e1") == Some(Health::Draining)).await;
    agent.stop().await;
    events.publish(&draft("orders", "e2", Action::Drain, 600)).await.unwrap();

    let agent = Agent::start(config.clone());
    assert_eq!(health(&agent, "e1"), Some(Health::Draining), "from disk");
    agent.until(secs(5), "the missed one", |a| health(a, "e2") == Some(Health::Draining)).await;
    agent.stop().await;

    // Without its disk, the stream tells it all again.
    std::fs::remove_dir_all(place.dir.path().join("state")).unwrap();
    let agent = Agent::start(config);
    agent
        .until(secs(5), "both", |a| {
            ["e1", "e2"].iter().all(|id| health(a, id) == Some(Health::Draining))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_buried_once_with_its_reason_and_holds_nobody_up() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let agent = Agent::start(config.clone());
    let mut other = place.config(&nats.url());
    other.agent = "other".into();
    other.state.dir = None;
    let other = Agent::start(other);
    ready(&agent).await;
    ready(&other).await;
    let js = js(&nats).await;
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    for n in 0..300 {
        if n % 10 == 0 {
            js.publish("events.endpoint.orders/e1", format!("poison {n}").into())
                .await
                .unwrap()
                .await
                .unwrap();
        }
        let action = if n % 2 == 0 { Action::Drain } else { Action::Undrain };
        events.publish(&draft("orders", "e3", action, 60)).await.unwrap();
    }
    js.publish("events.endpoint.nonsense", vec![b'x'; 200_000].into())
        .await
        .unwrap()
        .await
        .unwrap();
    let began = Instant::now();
    events.publish(&draft("orders", "e4", Action::Drain, 60)).await.unwrap();
    agent.until(secs(1), "the next good one", |a| health(a, "e4") == Some(Health::Draining)).await;
    println!("the next good event after {:?}", began.elapsed());
    // Either finds all of it, and each letter is one's.
    let buried =
        || [&agent, &other].map(|a| a.sources().events_dead_lettered).into_iter().sum::<u64>();
    agent.until(secs(10), "all buried", |_| buried() == 31).await;
    for agent in [&agent, &other] {
        agent.until(secs(5), "all applied", |a| a.sources().events_applied == 301).await;
    }
    let letters = events.dead_letters(1, 1000).await.unwrap();
    assert_eq!(letters.len(), 31, "one per origin, whoever found it");
    assert_eq!(letters[0].reason, "json");
    assert_eq!(letters[0].payload, b"poison 0");
    assert_eq!((letters[0].sequence, letters[0].deliveries), (1, 1));
    assert_eq!(letters[30].reason, "value_too_long");
    assert_eq!(letters[30].payload.len(), 200_000);
    let stream = js.get_stream("PINTLE_EVENTS").await.unwrap();
    for consumer in ["pintle-test:endpoint", "pintle-other:endpoint"] {
        let info = async || stream.consumer_info(consumer).await.unwrap();
        pintle_tests::assert_eventually!(secs(5), info().await.num_ack_pending == 0);
        let info = info().await;
        assert_eq!(info.num_redelivered, 0, "one delivery each");
    }

    // Replayed, it is poison again: buried under its new sequence, and the old letter is gone.
    let replayed = events.replay(letters[0].number).await.unwrap();
    let again = async || {
        let letters = events.dead_letters(1, 1000).await.unwrap();
        letters.len() == 31 && letters.iter().any(|l| l.sequence == replayed.sequence)
    };
    pintle_tests::assert_eventually!(secs(5), again().await);
    agent.until(secs(5), "counted once", |_| buried() == 32).await;
    assert!(events.dead_letter(letters[0].number).await.unwrap().is_none());
    assert_eq!(events.purge(None).await.unwrap(), 31);
    assert!(events.dead_letters(1, 10).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_out_of_deliveries_becomes_a_dead_letter() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let mut config = place.config(&nats.url());
    if let Some(nats) = &mut config.nats {
        nats.backoff = vec![Duration::from_millis(100)];
        nats.max_deliver = 2;
    }
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    agent.stop().await;
    // Somebody pulls with the agent's consumer and never answers, as an agent that hangs would.
    let published = events.publish(&draft("orders", "e1", Action::Drain, 60)).await.unwrap();
    let js = js(&nats).await;
    let stream = js.get_stream("PINTLE_EVENTS").await.unwrap();
    let consumer: jetstream::consumer::PullConsumer =
        stream.get_consumer("pintle-test:endpoint").await.unwrap();
    use futures::StreamExt as _;
    for _ in 0..4 {
        let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
        while let Ok(Some(_)) = tokio::time::timeout(secs(1), batch.next()).await {}
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let agent = Agent::start(config);
    agent.until(secs(10), "buried", |a| a.sources().events_dead_lettered == 1).await;
    let letters = events.dead_letters(1, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, "max_deliveries");
    assert_eq!(letters[0].sequence, published.sequence);
    assert!(letters[0].deliveries >= 2);
    assert!(letters[0].payload.starts_with(b"{"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_and_a_consumer_deleted_are_survived() {
    let mut nats = Nats::start().await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    for id in ["e1", "e2", "e3"] {
        events.publish(&draft("orders", id, Action::Drain, 600)).await.unwrap();
    }
    agent.until(secs(3), "drained", |a| health(a, "e3") == Some(Health::Draining)).await;

    let js = js(&nats).await;
    let stream = js.get_stream("PINTLE_EVENTS").await.unwrap();
    stream.delete_consumer("pintle-test:endpoint").await.unwrap();
    events.publish(&draft("orders", "e4", Action::Drain, 600)).await.unwrap();
    let took = agent
        .until(secs(15), "another consumer", |a| health(a, "e4") == Some(Health::Draining))
        .await;
    println!("after its consumer was deleted: {took:?}");

    nats.restart_empty().await.unwrap();
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    // Sequence 1 again: older than what was seen by number, newer by the stream's identity.
    events.publish(&draft("orders", "e1", Action::Undrain, 600)).await.unwrap();
    let took =
        agent.until(secs(15), "the new stream", |a| health(a, "e1") == Some(Health::Healthy)).await;
    println!("after the stream was made anew: {took:?}");
    assert_eq!(health(&agent, "e2"), Some(Health::Draining), "until its ttl");
}

fn report(n: u64) -> Reported {
    Reported {
        proxy: "envoy-1".into(),
        transition: Transition {
            service: "orders".into(),
            endpoint: format!("e{}", n % 10),
            from: BreakerState::Closed,
            to: BreakerState::Open,
            reason: "5 consecutive failures".into(),
            observed: true,
            at: Now(1_000_000_000_000 + n),
            until: Now(1_000_000_000_000 + n + 30_000_000_000),
            trips: 1,
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transitions_that_come_faster_than_they_are_confirmed_get_out_nevertheless() {
    let nats = Nats::start().await.unwrap();
    let proxy = Proxy::to(nats.addr()).await.unwrap();
    let place = Place::new();
    let agent = Agent::start(place.config(&format!("nats://{}", proxy.addr())));
    ready(&agent).await;
    proxy.set(Fault::Delay(Duration::from_millis(100)));
    let stream = js(&nats).await.get_stream("PINTLE_EVENTS").await.unwrap();
    let stored = async || stream.get_info().await.unwrap().state.messages;
    let mut n = 0;
    while stored().await < 10 {
        assert!(n < 800, "{} of {n} stored", stored().await);
        agent.running.outgoing.send(report(n)).await.unwrap();
        n += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(agent.sources().outgoing_dropped, 0);
}

fn opinions(agent: &Agent) -> usize {
    let snapshot = agent.snapshot();
    let Some(service) = snapshot.services.get("orders") else { return 0 };
    service.table.endpoints.iter().filter(|e| e.opinion.is_some()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_of_one_agent_tell_each_other_without_nats_and_one_that_starts_is_told() {
    let place = Place::new();
    let mut config = place.config("nats://127.0.0.1:4222");
    config.nats = None;
    let agent = Agent::start(config.clone());
    agent.until(secs(15), "the file", |a| a.count() == 10).await;
    let mut open = report(7);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    open.transition.at = Now(u64::try_from(now.as_nanos()).unwrap());
    open.transition.until = open.transition.at.after(secs(60));
    let took =
        async |agent: &Agent, count| agent.until(secs(5), "told", |a| opinions(a) == count).await;
    agent.running.outgoing.send(open.clone()).await.unwrap();
    println!("told after {:?}", took(&agent, 1).await);
    agent.stop().await;
    let agent = Agent::start(config);
    assert_eq!(opinions(&agent), 1, "in the first tables after a restart");

    let mut half = open;
    half.transition.from = BreakerState::Open;
    half.transition.to = BreakerState::HalfOpen;
    half.transition.at = half.transition.at.after(secs(1));
    agent.running.outgoing.send(half).await.unwrap();
    took(&agent, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_gone_or_silent_is_noticed_and_resumed_and_transitions_wait_for_it() {
    let mut nats = Nats::start().await.unwrap();
    let proxy = Proxy::to(nats.addr()).await.unwrap();
    let place = Place::new();
    let mut config = place.config(&format!("nats://{}", proxy.addr()));
    if let Some(nats) = &mut config.nats {
        nats.buffer = 10;
    }
    let agent = Agent::start(config.clone());
    let mut far = place.config(&nats.url());
    far.agent = "far".into();
    far.state.dir = None;
    let far = Agent::start(far);
    ready(&agent).await;
    ready(&far).await;
    agent.running.outgoing.send(report(7)).await.unwrap();
    far.until(secs(3), "an opinion", |a| opinions(a) == 1).await;
    assert_eq!(opinions(&agent), 1, "for the other proxies of this agent");

    proxy.set(Fault::Blackhole);
    let noticed = agent.until(secs(10), "the silence", |a| !a.sources().nats.connected).await;
    println!("silence noticed after {noticed:?}");
    for n in 0..25 {
        agent.running.outgoing.send(report(100 + n)).await.unwrap();
    }
    agent.until(secs(3), "the oldest dropped", |a| a.sources().outgoing_dropped >= 14).await;
    let events = Events::connect(&{
        let mut direct = nats_config(&config);
        direct.servers = vec![nats.url()];
        direct
    })
    .await
    .unwrap();
    events.publish(&draft("orders", "e1", Action::Drain, 600)).await.unwrap();
    proxy.set(Fault::None);
    let took =
        agent.until(secs(10), "resumed", |a| health(a, "e1") == Some(Health::Draining)).await;
    println!("resumed {took:?} after the black hole");
    far.until(secs(10), "what had waited", |a| opinions(a) == 10).await;

    nats.kill9();
    agent.until(secs(10), "the loss", |a| !a.sources().nats.connected).await;
    tokio::time::sleep(secs(2)).await;
    nats.restart().await.unwrap();
    let began = Instant::now();
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    events.publish(&draft("orders", "e2", Action::Drain, 600)).await.unwrap();
    agent.until(secs(10), "resumed", |a| health(a, "e2") == Some(Health::Draining)).await;
    println!("resumed {:?} after the restart", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_events_is_applied_fast_and_ends_where_the_last_one_says() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let config = place.config(&nats.url());
    let events = Events::connect(&nats_config(&config)).await.unwrap();
    events.publish(&draft("orders", "e0", Action::Weight(1), 600)).await.unwrap();
    let js = js(&nats).await;
    const COUNT: u32 = 20_000;
    let mut acks = Vec::new();
    for n in 0..COUNT {
        let draft = draft("orders", &format!("e{}", n % 10), Action::Weight(n), 600);
        acks.push(js.publish(draft.subject("events"), draft.encode(Now(0)).into()).await.unwrap());
        if acks.len() == 1000 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    let agent = Agent::start(config);
    agent.until(secs(15), "the first", |a| a.sources().events_applied > 0).await;
    let began = Instant::now();
    agent.until(secs(30), "all", |a| a.sources().events_applied >= u64::from(COUNT)).await;
    let rate = f64::from(COUNT) / began.elapsed().as_secs_f64();
    println!("{rate:.0} events/s");
    let weights = |a: &Agent| {
        let snapshot = a.snapshot();
        let endpoints = snapshot.services.get("orders").map(|s| s.table.endpoints.clone());
        endpoints.unwrap_or_default().iter().map(|e| e.weight).collect::<Vec<_>>()
    };
    let expect: Vec<_> = (COUNT - 10..COUNT).collect();
    agent.until(secs(5), "the last words", |a| weights(a) == expect).await;
}

/// Two agents: one that gets in, one that says why not. The second is returned.
async fn only_the_first(place: &Place, what: &str, good: NatsConfig, bad: NatsConfig) -> Agent {
    let mut config = place.config("nats://127.0.0.1:4222");
    config.state.dir = None;
    config.nats = Some(good);
    let agent = Agent::start(config.clone());
    ready(&agent).await;
    config.nats = Some(bad);
    let agent = Agent::start(config);
    agent.until(secs(10), what, |a| a.sources().nats.error.is_some()).await;
    assert!(!agent.sources().nats.connected, "{what}");
    assert!(!format!("{:?}", agent.sources()).contains("hunter2"), "{what}");
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_users_tokens_and_nkeys_open_the_door_and_nothing_else_does() {
    let place = Place::new();
    let dir = place.dir.path().to_owned();
    let secret = |name: &str, text: &str| {
        std::fs::write(dir.join(name), format!("{text}\n")).unwrap();
        Some(SecretRef::File(dir.join(name)))
    };
    let base = |nats: &Nats| nats_config(&place.config(&nats.url()));

    let nats = Nats::start_with(&["--user", "u", "--pass", "right"]).await.unwrap();
    let user = |password| NatsConfig { user: Some("u".into()), password, ..base(&nats) };
    let refused = only_the_first(
        &place,
        "user",
        user(secret("good", "right")),
        user(secret("bad", "hunter2")),
    )
    .await;
    secret("bad", "right");
    refused.until(secs(5), "the rotated password", |a| a.sources().nats.connected).await;

    let nats = Nats::start_with(&["--auth", "right"]).await.unwrap();
    let token = |token| NatsConfig { token, ..base(&nats) };
    only_the_first(
        &place,
        "token",
        token(secret("good", "right")),
        token(secret("bad", "hunter2")),
    )
    .await;

    let authority = Authority::new().unwrap();
    let server = authority.issue(&["127.0.0.1"]).unwrap();
    let ours = authority.issue(&["agent"]).unwrap();
    let path = |p: &std::path::Path| p.display().to_string();
    let nats = Nats::start_with(&[
        "--tlsverify",
        "--tlscert",
        &path(&server.certificate),
        "--tlskey",
        &path(&server.key),
        "--tlscacert",
        &path(&authority.certificate()),
    ])
    .await
    .unwrap();
    let url = nats.url().replace("nats://", "tls://");
    let tls = |ca, with_cert: bool| NatsConfig {
        servers: vec![url.clone()],
        tls: Tls {
            ca: Some(ca),
            cert: with_cert.then(|| ours.certificate.clone()),
            key: with_cert.then(|| ours.key.clone()),
            server_name: None,
        },
        ..base(&nats)
    };
    let stranger = Authority::new().unwrap();
    only_the_first(
        &place,
        "authority",
        tls(authority.certificate(), true),
        tls(stranger.certificate(), true),
    )
    .await;
    only_the_first(
        &place,
        "certificate",
        tls(authority.certificate(), true),
        tls(authority.certificate(), false),
    )
    .await;

    let pair = nkeys::KeyPair::new_user();
    let conf = dir.join("nats.conf");
    std::fs::write(
        &conf,
        format!("authorization {{ users: [ {{ nkey: {} }} ] }}\n", pair.public_key()),
    )
    .unwrap();
    let nats = Nats::start_with(&["-c", &path(&conf)]).await.unwrap();
    let nkey = |nkey| NatsConfig { nkey, ..base(&nats) };
    let other = nkeys::KeyPair::new_user();
    only_the_first(
        &place,
        "nkey",
        nkey(secret("seed", &pair.seed().unwrap())),
        nkey(secret("other", &other.seed().unwrap())),
    )
    .await;
}

/// What an operator, an account or a user is, signed by who is above.
fn signed(by: &nkeys::KeyPair, subject: &str, nats: &Value) -> String {
    let url_safe = |bytes: &[u8]| {
        let text = pintle_tests::text::base64(bytes).replace('+', "-").replace('/', "_");
        text.trim_end_matches('=').to_owned()
    };
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({
        "jti": "a-test", "iat": 1_700_000_000, "iss": by.public_key(), "name": "a-test",
        "sub": subject, "nats": nats,
    });
    let [head, body] = [head, body].map(|part| url_safe(part.to_string().as_bytes()));
    let signature = by.sign(format!("{head}.{body}").as_bytes()).unwrap();
    format!("{head}.{body}.{}", url_safe(&signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credentials_file_opens_the_door_and_a_wrong_one_is_named() {
    let place = Place::new();
    let dir = place.dir.path().to_owned();
    let operator = nkeys::KeyPair::new_operator();
    let (account, system) = (nkeys::KeyPair::new_account(), nkeys::KeyPair::new_account());
    let user = nkeys::KeyPair::new_user();
    let all = -1;
    let limits = json!({
        "subs": all, "data": all, "payload": all, "imports": all, "exports": all,
        "wildcards": true, "conn": all, "leaf": all, "mem_storage": all, "disk_storage": all,
        "streams": all, "consumer": all,
    });
    let of_account = |key: &nkeys::KeyPair, limits: &Value| {
        let is = json!({"limits": limits, "type": "account", "version": 2});
        format!("{}: {}", key.public_key(), signed(&operator, &key.public_key(), &is))
    };
    // JetStream is not for the system's account.
    let plain = json!({"subs": all, "conn": all, "data": all, "payload": all});
    let conf = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}\n{}\n}}\n",
        signed(&operator, &operator.public_key(), &json!({"type": "operator", "version": 2})),
        system.public_key(),
        of_account(&system, &plain),
        of_account(&account, &limits),
    );
    std::fs::write(dir.join("nats.conf"), conf).unwrap();
    let nats =
        Nats::start_with(&["-c", &dir.join("nats.conf").display().to_string()]).await.unwrap();

    let is = json!({"subs": all, "data": all, "payload": all, "type": "user", "version": 2});
    let jwt = signed(&account, &user.public_key(), &is);
    let credentials = |name: &str, seed: &nkeys::KeyPair| {
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            seed.seed().unwrap()
        );
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let with =
        |path| NatsConfig { credentials: Some(path), ..nats_config(&place.config(&nats.url())) };
    let good = with(credentials("good.creds", &user));
    let other = with(credentials("other.creds", &nkeys::KeyPair::new_user()));
    let refused = only_the_first(&place, "another's seed", good.clone(), other).await;
    let why = refused.sources().nats.error.unwrap();
    assert!(why.to_lowercase().contains("authorization"), "{why}");

    std::fs::write(dir.join("broken.creds"), "no credentials").unwrap();
    for name in ["broken.creds", "absent.creds"] {
        let refused = only_the_first(&place, name, good.clone(), with(dir.join(name))).await;
        let why = refused.sources().nats.error.unwrap();
        assert!(why.contains(name), "{why}");
    }
    // Read anew by each attempt.
    let agent = only_the_first(&place, "none yet", good, with(dir.join("late.creds"))).await;
    credentials("late.creds", &user);
    agent.until(secs(10), "the file that came", |a| a.sources().nats.connected).await;
}
