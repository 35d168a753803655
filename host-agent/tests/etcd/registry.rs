//! What is registered comes, changes and goes: pages, fragments, bounds, churn.

use std::time::{Duration, Instant};

use etcd_client::Client;
use pintle_tests::{Etcd, NetworkFault as Fault, Proxy};

use crate::put_many;
use crate::support::{Agent, key, secs, value, value_at, with_etcd};

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_policies_come_change_and_go() {
    let etcd = Etcd::start().await.unwrap();
    etcd.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "first", |a| a.ids("orders") == ["a"]).await;
    assert!(!agent.snapshot().stale);

    let mut worst = Duration::ZERO;
    for n in 0..20u16 {
        etcd.put(&key("orders", "b"), &value("orders", "b", 100 + n)).await.unwrap();
        let began = Instant::now();
        let seen = |a: &Agent| {
            let snapshot = a.snapshot();
            snapshot.services["orders"].table.endpoints.iter().any(|e| e.port == 100 + n)
        };
        agent.until(secs(5), "a change", seen).await;
        worst = worst.max(began.elapsed());
        // Apart from each other, so that the pace of a service is not what is measured.
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    assert!(worst < secs(1), "{worst:?}");

    etcd.put("/pintle/policies/orders", r#"{"strategy":"random"}"#).await.unwrap();
    let policy = |a: &Agent| a.snapshot().services["orders"].table.policy.clone();
    agent.until(secs(5), "the policy", |a| policy(a) == r#"{"strategy":"random"}"#).await;
    etcd.delete("/pintle/policies/orders").await.unwrap();
    agent.until(secs(5), "no policy", |a| policy(a).is_empty()).await;
    etcd.deregister("orders", "a").await.unwrap();
    agent.until(secs(5), "one gone", |a| a.ids("orders") == ["b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_rewritten_publishes_nothing_and_broken_values_cost_only_themselves() {
    let etcd = Etcd::start().await.unwrap();
    etcd.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "first", |a| a.ids("orders") == ["a"]).await;
    let before = agent.snapshot().version.sequence;
    let beat = value("orders", "a", 1)
        .replace("\"last_heartbeat\":\"2026-01-01", "\"last_heartbeat\":\"2026-02-02");
    let written = etcd.put(&key("orders", "a"), &beat).await.unwrap();
    let reached = u64::try_from(written.revision).unwrap();
    agent.until(secs(5), "the beat seen", |a| a.sources().etcd.position >= reached).await;
    // Longer than a service waits to be published again.
    tokio::time::sleep(Duration::from_millis(300)).await;

    for (id, text) in [
        ("1", "{".to_owned()),
        ("2", value("orders", "other", 1)),
        ("3", value("orders", "3", 0)),
        ("4", value_at("orders", "4", "169.254.169.254", 1)),
        ("5", "x".repeat(100_000)),
    ] {
        etcd.put(&key("orders", id), &text).await.unwrap();
    }
    etcd.put(&key("orders", "b"), &value("orders", "b", 1)).await.unwrap();
    agent.until(secs(5), "the good one", |a| a.ids("orders") == ["a", "b"]).await;
    assert_eq!(agent.snapshot().version.sequence, before + 1, "the good one and nothing else");
    agent.until(secs(5), "the list", |a| a.snapshot().rejected.len() == 5).await;
    let reasons: Vec<_> = agent.snapshot().rejected.iter().map(|r| r.reason).collect();
    assert_eq!(reasons, ["json", "identity", "port", "address_metadata", "value_too_long"]);
    assert_eq!(agent.sources().refused.values().sum::<u64>(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_instances_are_listed_in_pages_and_survive_compaction_while_away() {
    let etcd = Etcd::start().await.unwrap();
    for service in 0..10 {
        put_many(&etcd.url(), &format!("s{service}"), 0..1000, 400).await;
    }
    let proxy = Proxy::to(etcd.addr()).await.unwrap();
    let began = Instant::now();
    let agent = Agent::start(with_etcd(vec![format!("http://{}", proxy.addr())]));
    agent.until(secs(20), "all listed", |a| a.count() == 10_000).await;
    let took = began.elapsed();
    println!("10,000 instances listed in {took:?}");
    assert!(took < secs(10), "{took:?}");
    agent.watching().await;
    let before = agent.snapshot().version;

    proxy.set(Fault::Refuse);
    agent.until(secs(10), "the loss", |a| !a.sources().etcd.connected).await;
    assert_eq!(agent.count(), 10_000);
    etcd.deregister("s0", "i00000").await.unwrap();
    put_many(&etcd.url(), "s1", 1000..1001, 0).await;
    let last = etcd.put(&key("s2", "i00000"), &value("s2", "i00000", 99)).await.unwrap();
    etcd.compact(last.revision).await.unwrap();
    proxy.set(Fault::None);
    let came = |a: &Agent| {
        let snapshot = a.snapshot();
        snapshot.services["s0"].table.endpoints.len() == 999
            && snapshot.services["s1"].table.endpoints.len() == 1001
            && snapshot.services["s2"].table.endpoints[0].port == 99
    };
    let fresh = agent.until(secs(10), "what happened meanwhile", came).await;
    println!("caught up after compaction in {fresh:?}");
    assert_eq!(agent.count(), 10_000);
    assert_eq!(agent.snapshot().version.sequence - before.sequence, 3, "only what changed is told");
    assert_eq!(agent.sources().removals_held, 0);
}

/// What the watch has to tell at once is three times as long as a message may be.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_longer_than_a_message_comes_in_fragments() {
    let etcd = Etcd::start().await.unwrap();
    put_many(&etcd.url(), "orders", 0..1, 0).await;
    let proxy = Proxy::to(etcd.addr()).await.unwrap();
    let agent = Agent::start(with_etcd(vec![format!("http://{}", proxy.addr())]));
    agent.until(secs(5), "listed", |a| a.count() == 1).await;
    agent.watching().await;
    proxy.set(Fault::Refuse);
    agent.until(secs(10), "the loss", |a| !a.sources().etcd.connected).await;
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    for n in 1..=200 {
        let id = format!("i{n:05}");
        let mut text = value("orders", &id, 80);
        text.insert_str(text.len() - 1, &format!(",\"pad\":\"{}\"", "x".repeat(60_000)));
        client.put(key("orders", &id), text, None).await.unwrap();
    }
    proxy.set(Fault::None);
    let took = agent.until(secs(20), "the backlog", |a| a.count() == 201).await;
    println!("12 MB of backlog in {took:?}");
    assert_eq!(agent.sources().etcd.connects, 2, "in one watch: {:?}", agent.sources().etcd);
}

#[tokio::test(flavor = "multi_thread")]
async fn churn_under_constant_reconciliation_ends_in_what_etcd_holds() {
    let etcd = Etcd::start().await.unwrap();
    let mut config = with_etcd(vec![etcd.url()]);
    config.state.protect = false;
    if let Some(etcd) = &mut config.etcd {
        etcd.reconcile = secs(1);
        etcd.page = 7;
    }
    let agent = Agent::start(config);
    agent.watching().await;
    let mut published = 0u64;
    let mut snapshots = agent.running.snapshots.clone();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let began = Instant::now();
    let mut round = 0u16;
    let mut last = None;
    while began.elapsed() < secs(4) {
        round = round.wrapping_add(1).max(1);
        let id = format!("i{}", round % 97);
        if round.is_multiple_of(5) {
            client.delete(key("orders", &id), None).await.unwrap();
        } else {
            client.put(key("orders", &id), value("orders", &id, round), None).await.unwrap();
        }
        if snapshots.has_changed().unwrap() {
            let version =
                snapshots.borrow_and_update().services.get("orders").map(|s| s.table.version);
            published += u64::from(version != last);
            last = version;
        }
    }
    println!("{round} changes, {published} snapshots in {:?}", began.elapsed());
    assert!(published <= 45, "ten a second at most: {published}");
    let mut expect: Vec<_> = etcd
        .list("/services/orders/")
        .await
        .unwrap()
        .into_iter()
        .map(|(key, value)| {
            let value: serde_json::Value = serde_json::from_str(&value).unwrap();
            let id = key.rsplit('/').next().unwrap().to_owned();
            (id, value["port"].as_u64().unwrap())
        })
        .collect();
    expect.sort();
    let same = |a: &Agent| {
        let snapshot = a.snapshot();
        let table = &snapshot.services["orders"].table;
        let is: Vec<_> =
            table.endpoints.iter().map(|e| (e.id.clone(), u64::from(e.port))).collect();
        is == expect
    };
    agent.until(secs(3), "the model's state", same).await;
    let version = agent.snapshot().version;
    tokio::time::sleep(secs(3)).await;
    assert!(same(&agent));
    assert_eq!(agent.snapshot().version, version, "listing the same again is no change");
    assert_eq!(agent.sources().etcd.connects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_is_taken_over_without_a_restart() {
    let (first, second) = (Etcd::start().await.unwrap(), Etcd::start().await.unwrap());
    first.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    second.put(&key("orders", "a"), &value("orders", "a", 2)).await.unwrap();
    let agent = Agent::start(with_etcd(vec![first.url()]));
    let port = |a: &Agent| {
        let snapshot = a.snapshot();
        snapshot.services.get("orders").map(|s| s.table.endpoints[0].port)
    };
    agent.until(secs(5), "the first", |a| port(a) == Some(1)).await;
    agent.running.reload(with_etcd(vec![second.url()])).unwrap();
    agent.until(secs(5), "the second, another cluster", |a| port(a) == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_bounds_is_refused_by_reason_and_what_is_within_is_served() {
    let etcd = Etcd::start().await.unwrap();
    put_many(&etcd.url(), "many", 0..10_000, 0).await;
    let longest = "n".repeat(253);
    etcd.put(&key("orders", &longest), &value("orders", &longest, 1)).await.unwrap();
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(20), "what is within", |a| a.count() == 10_001).await;

    let padded = |id: &str, pad: &str| {
        let mut text = value("orders", id, 1);
        text.insert_str(text.len() - 1, &format!(",\"pad\":{pad}"));
        text
    };
    let room = (64 << 10) - padded("full", "\"\"").len();
    let full = |more: usize| padded("full", &format!("\"{}\"", "x".repeat(room + more)));
    let deep = |levels: usize| padded("deep", &("[".repeat(levels) + &"]".repeat(levels)));
    let too_long = "n".repeat(254);
    for (reason, key, text) in [
        ("value_too_long", key("orders", "full"), full(1)),
        ("json_depth", key("orders", "deep"), deep(16)),
        ("too_many", key("many", "one-more"), value("many", "one-more", 1)),
        ("key", key("orders", &too_long), value("orders", &too_long, 1)),
        ("key", key("orders", "a b"), value("orders", "a b", 1)),
        ("key_too_long", key("orders", &"k".repeat(512)), value("orders", "k", 1)),
    ] {
        etcd.put(&key, &text).await.unwrap();
        let listed = |a: &Agent| {
            let snapshot = a.snapshot();
            snapshot.rejected.iter().any(|r| r.reason == reason && key.starts_with(&r.key[..20]))
        };
        agent.until(secs(5), reason, listed).await;
        let counted =
            agent.sources().refused.iter().any(|(of, count)| of.1 == reason && *count > 0);
        assert!(counted, "{reason}: {:?}", agent.sources().refused);
    }
    assert_eq!(agent.count(), 10_001);
    // Just within.
    etcd.put(&key("orders", "full"), &full(0)).await.unwrap();
    etcd.put(&key("orders", "deep"), &deep(15)).await.unwrap();
    agent.until(secs(5), "the good ones", |a| a.ids("orders").len() == 3).await;
}
