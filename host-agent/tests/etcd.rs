//! The registry on a real etcd: what the agent sees of it when all is well, and when nothing is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test, helpers included"
)]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Permission, PermissionType, Txn, TxnOp};
use pintle_agent::source::{EtcdConfig, SecretRef, SourcesConfig, Tls};
use pintle_tests::{
    Authority, Etcd, EtcdCluster, NetworkFault as Fault, Port, Process, Proxy, Server as _, Spec,
    assert_eventually, most_within,
};
use support::{Agent, key, secs, value, with_etcd};

async fn put_many(url: &str, service: &str, numbers: std::ops::Range<usize>, pad: usize) {
    let mut client = Client::connect([url], None).await.unwrap();
    let numbers: Vec<_> = numbers.collect();
    for chunk in numbers.chunks(100) {
        let puts = chunk.iter().map(|n| {
            let id = format!("i{n:05}");
            let mut text = value(service, &id, 1000 + u16::try_from(*n).unwrap());
            text.insert_str(text.len() - 1, &format!(",\"pad\":\"{}\"", "x".repeat(pad)));
            TxnOp::put(key(service, &id), text, None)
        });
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_policies_come_change_and_go() {
    let etcd = Etcd::start().await.unwrap();
    etcd.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "first", |a| a.ids("orders") == ["a"]).await;
    assert!(!agent.snapshot().stale);

    let mut worst = Duration::ZERO;
    for n in 0..20u16 {
        let began = Instant::now();
        etcd.put(&key("orders", "b"), &value("orders", "b", 100 + n)).await.unwrap();
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
    let version = agent.snapshot().version;
    let beat = value("orders", "a", 1)
        .replace("\"last_heartbeat\":\"2026-01-01", "\"last_heartbeat\":\"2026-02-02");
    let written = etcd.put(&key("orders", "a"), &beat).await.unwrap();
    let reached = u64::try_from(written.revision).unwrap();
    agent.until(secs(5), "the beat seen", |a| a.sources().etcd.position >= reached).await;
    assert_eq!(agent.snapshot().version, version);

    for (id, text) in [
        ("1", "{".to_owned()),
        ("2", value("orders", "other", 1)),
        ("3", value("orders", "3", 0)),
        ("4", value("orders", "4", 1).replace("10.0.0.1", "169.254.169.254")),
        ("5", "x".repeat(100_000)),
    ] {
        etcd.put(&key("orders", id), &text).await.unwrap();
    }
    etcd.put(&key("orders", "b"), &value("orders", "b", 1)).await.unwrap();
    agent.until(secs(5), "the good one", |a| a.ids("orders") == ["a", "b"]).await;
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
    let took = agent.until(secs(5), "the backlog", |a| a.count() == 201).await;
    println!("12 MB of backlog in {took:?}");
    assert_eq!(agent.sources().etcd.connects, 2, "in one watch: {:?}", agent.sources().etcd);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_restored_to_a_lower_revision_is_listed_again_and_met_with_protection() {
    let mut etcd = Etcd::start().await.unwrap();
    for n in 0..40 {
        etcd.put("/other", &n.to_string()).await.unwrap();
    }
    put_many(&etcd.url(), "orders", 0..10, 0).await;
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 10).await;
    agent.watching().await;
    let high = agent.snapshot().version;

    etcd.restart_empty().await.unwrap();
    put_many(&etcd.url(), "orders", 5..11, 0).await;
    let took =
        agent.until(secs(5), "the new one", |a| a.ids("orders").contains(&"i00010".into())).await;
    println!("right after a restore in {took:?}");
    let ids: BTreeSet<_> = agent.ids("orders").into_iter().collect();
    assert!((5..11).all(|n| ids.contains(&format!("i{n:05}"))));
    assert!(ids.len() >= 10, "removals are held: {ids:?}");
    assert!(agent.snapshot().version > high);
    etcd.put(&key("orders", "later"), &value("orders", "later", 1)).await.unwrap();
    agent.until(secs(5), "the watch goes on", |a| a.ids("orders").contains(&"later".into())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_swallows_everything_is_noticed_within_ten_seconds() {
    let etcd = Etcd::start().await.unwrap();
    etcd.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let proxy = Proxy::to(etcd.addr()).await.unwrap();
    let agent = Agent::start(with_etcd(vec![format!("http://{}", proxy.addr())]));
    agent.until(secs(5), "first", |a| a.ids("orders") == ["a"]).await;
    agent.watching().await;
    proxy.set(Fault::Blackhole);
    etcd.put(&key("orders", "b"), &value("orders", "b", 1)).await.unwrap();
    let noticed = agent.until(secs(10), "the silence", |a| !a.sources().etcd.connected).await;
    println!("silence noticed after {noticed:?}");
    assert_eq!(agent.ids("orders"), ["a"]);
    proxy.set(Fault::None);
    let fresh = agent.until(secs(6), "what was missed", |a| a.ids("orders") == ["a", "b"]).await;
    println!("fresh after {fresh:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_members_one_may_die_and_with_two_dead_what_is_known_stays() {
    let mut cluster = EtcdCluster::start(3).await.unwrap();
    cluster.members[0].put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let agent = Agent::start(with_etcd(cluster.urls()));
    agent.until(secs(10), "first", |a| a.ids("orders") == ["a"]).await;
    agent.watching().await;

    let leader = cluster.leader().await.unwrap();
    cluster.members[leader].process().kill9();
    let alive = (leader + 1) % 3;
    let deadline = Instant::now() + secs(15);
    while cluster.members[alive].put(&key("orders", "b"), &value("orders", "b", 1)).await.is_err() {
        assert!(Instant::now() < deadline, "no new leader");
    }
    let took = agent.until(secs(5), "news from the rest", |a| a.ids("orders") == ["a", "b"]).await;
    println!("fresh {took:?} after a write to the new leader");

    let other = (leader + 2) % 3;
    cluster.members[other].process().kill9();
    agent.until(secs(15), "no quorum noticed", |a| !a.sources().etcd.connected).await;
    tokio::time::sleep(secs(5)).await;
    assert_eq!(agent.ids("orders"), ["a", "b"]);
    assert!(agent.snapshot().held.is_empty());

    cluster.members[other].restart().await.unwrap();
    cluster.members[alive].put(&key("orders", "c"), &value("orders", "c", 1)).await.unwrap();
    let took = agent.until(secs(5), "after quorum", |a| a.ids("orders") == ["a", "b", "c"]).await;
    println!("fresh {took:?} after quorum");
}

/// As many as would be held, were they gone.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_start_again_where_they_were_under_other_ids_are_not_held() {
    let etcd = Etcd::start().await.unwrap();
    for n in 0..6 {
        let id = format!("old-{n}");
        etcd.put(&key("orders", &id), &value("orders", &id, 8000 + n)).await.unwrap();
    }
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 6).await;
    for n in 0..6 {
        let (old, new) = (format!("old-{n}"), format!("new-{n}"));
        let put = async || {
            etcd.put(&key("orders", &new), &value("orders", &new, 8000 + n)).await.unwrap();
        };
        // A process that is killed and started again may come before its lease ends, or after.
        if n % 2 == 0 {
            put().await;
            etcd.deregister("orders", &old).await.unwrap();
        } else {
            etcd.deregister("orders", &old).await.unwrap();
            put().await;
        }
    }
    let all_new = |a: &Agent| {
        a.ids("orders").len() == 6 && a.ids("orders").iter().all(|id| id.starts_with("new"))
    };
    agent.until(secs(5), "the new ones alone", all_new).await;
    assert!(agent.snapshot().held.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_expire_together_are_held_with_an_alarm_and_released_by_a_person() {
    let etcd = Etcd::start().await.unwrap();
    let lease = etcd.grant(2).await.unwrap();
    for n in 0..20 {
        let id = format!("i{n:02}");
        etcd.put_leased(&key("orders", &id), &value("orders", &id, 1 + n), &lease).await.unwrap();
    }
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 20).await;
    let mut activities = agent.running.activities.subscribe();
    agent.until(secs(10), "held", |a| a.snapshot().held.len() == 17).await;
    assert_eq!(agent.ids("orders").len(), 17, "15 % of 20 went");
    let alarm = async { while activities.recv().await.unwrap().kind != "removal" {} };
    tokio::time::timeout(secs(5), alarm).await.unwrap();
    assert_eq!(agent.sources().removals_held, 17);
    assert_eq!(agent.running.updates.release("orders").await.unwrap(), 17);
    agent.until(secs(5), "released", |a| a.ids("orders").is_empty()).await;
    agent.until(secs(5), "none held", |a| a.snapshot().held.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_etcd_starts_from_disk_at_once_and_a_spoiled_disk_is_ignored() {
    let etcd = Etcd::start().await.unwrap();
    put_many(&etcd.url(), "orders", 0..100, 0).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_etcd(vec![etcd.url()]);
    config.state.dir = Some(dir.path().join("state"));
    let agent = Agent::start(config.clone());
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 100).await;
    let before = agent.snapshot().version;
    agent.stop().await;
    drop(etcd);

    let began = Instant::now();
    let agent = Agent::start(config.clone());
    assert_eq!(agent.ids("orders").len(), 100);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert!(agent.snapshot().stale);
    assert!(agent.snapshot().version > before);
    agent.stop().await;

    let path = dir.path().join("state/state");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&path, bytes).unwrap();
    let agent = Agent::start(config);
    assert_eq!(agent.count(), 0);
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
    let mut bad = with_etcd(vec![second.url()]);
    bad.agent = String::new();
    assert!(agent.running.reload(bad).is_err());
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

/// RELIABILITY R27, without its bound of 50 connections a second: 200 agents that wait two seconds at
/// most come at 100 a second or more, however they draw. What is held here is that they are spread over
/// that time and over the members.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_agents_that_come_back_at_once_do_not_come_as_a_herd() {
    const AGENTS: usize = 200;
    let cluster = EtcdCluster::start(3).await.unwrap();
    put_many(&cluster.members[0].url(), "orders", 0..10, 0).await;
    let mut links = Vec::new();
    for member in &cluster.members {
        links.push(Proxy::to(member.addr()).await.unwrap());
    }
    let urls: Vec<_> = links.iter().map(|link| format!("http://{}", link.addr())).collect();
    let agents: Vec<_> = (0..AGENTS)
        .map(|n| {
            let mut config = with_etcd(urls.clone());
            config.agent = format!("agent-{n}");
            Agent::start(config)
        })
        .collect();
    for agent in &agents {
        agent.until(secs(30), "the start", |a| a.count() == 10).await;
        agent.watching().await;
    }
    links.iter().for_each(|link| link.set(Fault::Refuse));
    for agent in &agents {
        agent.until(secs(15), "the loss", |a| !a.sources().etcd.connected).await;
    }
    tokio::time::sleep(secs(6)).await;
    cluster.members[0].put(&key("orders", "new"), &value("orders", "new", 1)).await.unwrap();
    links.iter().for_each(|link| link.set(Fault::None));
    let back = Instant::now();
    for agent in &agents {
        agent.until(secs(10), "fresh", |a| a.count() == 11).await;
    }
    println!("all of {AGENTS} fresh after {:?}", back.elapsed());
    assert!(back.elapsed() <= secs(10));
    let came: Vec<Vec<_>> = links
        .iter()
        .map(|link| link.accepted().into_iter().filter(|at| *at > back).collect())
        .collect();
    let second: Vec<_> = came.iter().map(|moments| most_within(moments, secs(1))).collect();
    let mut all = came.concat();
    all.sort();
    let (most, tenth) = (most_within(&all, secs(1)), most_within(&all, secs(1) / 10));
    println!("connections: {second:?} in a second by member, {most} of all, {tenth} in a tenth");
    assert!(second.iter().all(|most| (1..=AGENTS / 2).contains(most)), "{second:?}");
    // Evenly over two seconds it would be ten.
    assert!(tenth <= AGENTS / 5, "{tenth}");
}

/// RELIABILITY R28: etcd's tokens die after two seconds without use.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_is_made_anew_and_nothing_is_missed() {
    let etcd = Etcd::start_with(&["--auth-token-ttl", "2"]).await.unwrap();
    etcd.put(&key("orders", "i0"), &value("orders", "i0", 1)).await.unwrap();
    add_users(&mut Client::connect([etcd.url()], None).await.unwrap()).await;
    let options = ConnectOptions::new().with_user("root", "secret").with_auto_token_refresh(true);
    let mut writer = Client::connect([etcd.url()], Some(options)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "right").unwrap();
    let mut config = with_etcd(vec![etcd.url()]);
    let own = config.etcd.as_mut().unwrap();
    own.user = Some("agent".into());
    own.password = Some(SecretRef::File(dir.path().join("password")));
    own.reconcile = secs(4);
    let agent = Agent::start(config);
    agent.until(secs(10), "listed", |a| a.ids("orders") == ["i0"]).await;
    let mut worst = Duration::ZERO;
    for n in 1..=12 {
        tokio::time::sleep(secs(1)).await;
        let id = format!("i{n}");
        writer.put(key("orders", &id), value("orders", &id, 1), None).await.unwrap();
        let took = agent.until(secs(5), "news", |a| a.ids("orders").contains(&id)).await;
        worst = worst.max(took);
    }
    println!("tokens of two seconds: {worst:?} at worst");
    assert!(worst <= secs(2), "{worst:?}");
    // Listings with a token that had expired were not failures that end the session.
    assert_eq!(agent.sources().etcd.connects, 1, "{:?}", agent.sources().etcd);
    assert_eq!(agent.snapshot().services["orders"].table.endpoints.len(), 13);
}

/// `root`, and `agent` who may only read what agents read; then authentication is on.
async fn add_users(client: &mut Client) {
    client.role_add("reader").await.unwrap();
    for prefix in ["/services/", "/pintle/policies/"] {
        let permission = Permission::new(PermissionType::Read, prefix).with_prefix();
        client.role_grant_permission("reader", permission).await.unwrap();
    }
    client.user_add("agent", "right", None).await.unwrap();
    client.user_grant_role("agent", "reader").await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
}

/// RELIABILITY R28: SIGHUP takes other certificates over, and says so when they are wrong.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_rotated_by_a_signal_without_a_restart() {
    let authority = Authority::new().unwrap();
    let (_server, url, _port) = start_tls(&authority).await;
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    let install = |identity: &pintle_tests::Identity| {
        std::fs::copy(&identity.certificate, place("crt.pem")).unwrap();
        std::fs::copy(&identity.key, place("key.pem")).unwrap();
    };
    install(&authority.issue(&["agent"]).unwrap());
    let tls = Tls {
        ca: Some(authority.certificate()),
        cert: Some(place("crt.pem")),
        key: Some(place("key.pem")),
        server_name: None,
    };
    let etcd = EtcdConfig { endpoints: vec![url.clone()], tls, ..EtcdConfig::default() };
    let mut writer = until_connected(&etcd).await;
    writer.put(key("orders", "a"), value("orders", "a", 1), None).await.unwrap();
    let text = format!(
        "etcd: {{endpoints: ['{url}'], tls: {{ca: {}, cert: {}, key: {}}}}}\n",
        authority.certificate().display(),
        place("crt.pem").display(),
        place("key.pem").display(),
    );
    let builder = pintle_tests::Agent::builder().allow("10.0.0.0/8").config("agent.yaml", &text);
    let mut agent = builder.start().await.unwrap();
    let connects = async |agent: &pintle_tests::Agent| {
        let labels = ["source=\"etcd\""];
        let up = agent.metric("pintle_source_connected", &labels).await == Some(1.0);
        (up, agent.metric("pintle_source_connects_total", &labels).await.unwrap_or(0.0))
    };
    assert_eventually!(secs(10), connects(&agent).await == (true, 1.0));

    install(&authority.issue(&["agent"]).unwrap());
    agent.process().signal(SIGHUP);
    let signalled = Instant::now();
    assert_eventually!(secs(5), connects(&agent).await == (true, 2.0));
    println!("other certificates in use after {:?}", signalled.elapsed());
    assert!(signalled.elapsed() <= secs(2), "{:?}", signalled.elapsed());

    // One that etcd does not know is really used: there is no connection until the next.
    install(&Authority::new().unwrap().issue(&["agent"]).unwrap());
    agent.process().signal(SIGHUP);
    assert_eventually!(secs(5), !connects(&agent).await.0);
    tokio::time::sleep(secs(1)).await;
    assert!(!connects(&agent).await.0);
    writer.put(key("orders", "b"), value("orders", "b", 1), None).await.unwrap();
    install(&authority.issue(&["agent"]).unwrap());
    agent.process().signal(SIGHUP);
    let signalled = Instant::now();
    let two = async || {
        let services = agent.services().await.unwrap();
        services["services"][0]["endpoints"].as_array().map_or(0, Vec::len) == 2
    };
    assert_eventually!(secs(5), two().await);
    println!("what was missed is there after {:?}", signalled.elapsed());
    assert!(signalled.elapsed() <= secs(2), "{:?}", signalled.elapsed());
}

const SIGHUP: i32 = 1;

async fn until_connected(etcd: &EtcdConfig) -> Client {
    let deadline = Instant::now() + secs(20);
    loop {
        if let Ok(mut client) = pintle_agent::source::etcd::connect(etcd, 0).await
            && client.get("x", None).await.is_ok()
        {
            return client;
        }
        assert!(Instant::now() < deadline, "no connection to etcd");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An etcd with TLS; only etcd-client can speak to it.
async fn start_tls(authority: &Authority) -> (Process, String, Port) {
    let dir = tempfile::TempDir::new().unwrap();
    let (client, peer) = (Port::take().unwrap(), Port::take().unwrap());
    let identity = authority.issue(&["127.0.0.1", "localhost"]).unwrap();
    let url = format!("https://{}", client.addr());
    let peer_url = format!("http://{}", peer.addr());
    let path = |p: &std::path::Path| p.display().to_string();
    let args: Vec<String> = [
        "--name",
        "m0",
        "--data-dir",
        &path(&dir.path().join("data")),
        "--listen-client-urls",
        &url,
        "--advertise-client-urls",
        &url,
        "--listen-peer-urls",
        &peer_url,
        "--initial-advertise-peer-urls",
        &peer_url,
        "--initial-cluster",
        &format!("m0={peer_url}"),
        "--cert-file",
        &path(&identity.certificate),
        "--key-file",
        &path(&identity.key),
        "--trusted-ca-file",
        &path(&authority.certificate()),
        "--client-cert-auth",
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    let spec = Spec {
        name: "etcd".into(),
        program: pintle_tests::tools::etcd().unwrap(),
        args,
        envs: Vec::new(),
    };
    let process = Process::spawn(spec, dir).unwrap();
    (process, url, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified_both_ways_users_are_authenticated_and_a_reader_cannot_write() {
    let authority = Authority::new().unwrap();
    let (mut server, url, _port) = start_tls(&authority).await;
    let ours = authority.issue(&["agent"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "right\n").unwrap();
    let etcd = EtcdConfig {
        endpoints: vec![url.clone()],
        tls: Tls {
            ca: Some(authority.certificate()),
            cert: Some(ours.certificate.clone()),
            key: Some(ours.key.clone()),
            server_name: None,
        },
        ..EtcdConfig::default()
    };
    let mut root = until_connected(&etcd).await;
    root.put(key("orders", "a"), value("orders", "a", 1), None).await.unwrap();
    add_users(&mut root).await;

    let with = |etcd: EtcdConfig| SourcesConfig { etcd: Some(etcd), ..support::config() };
    let good = EtcdConfig {
        user: Some("agent".into()),
        password: Some(SecretRef::File(password.clone())),
        ..etcd.clone()
    };
    let agent = Agent::start(with(good.clone()));
    agent.until(secs(10), "listed by a reader", |a| a.ids("orders") == ["a"]).await;
    let mut reader = pintle_agent::source::etcd::connect(&good, 0).await.unwrap();
    assert!(reader.put(key("orders", "x"), "x", None).await.is_err(), "the role only reads");

    // Simple tokens die with the server: the next session has to authenticate again.
    server.restart().unwrap();
    agent
        .until(secs(15), "again after a restart", |a| {
            a.sources().etcd.connects >= 2 && a.sources().etcd.connected
        })
        .await;

    let stranger = Authority::new().unwrap();
    let mut wrong_ca = good.clone();
    wrong_ca.tls.ca = Some(stranger.certificate());
    let mut no_cert = good.clone();
    no_cert.tls.cert = None;
    no_cert.tls.key = None;
    let wrong_password = dir.path().join("wrong");
    std::fs::write(&wrong_password, "hunter2").unwrap();
    let mut wrong_user = good.clone();
    wrong_user.password = Some(SecretRef::File(wrong_password));
    for (what, config) in
        [("authority", wrong_ca), ("certificate", no_cert), ("password", wrong_user)]
    {
        let refused = Agent::start(with(config));
        refused.until(secs(10), what, |a| a.sources().etcd.error.is_some()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(refused.count(), 0, "{what}");
        let said = format!("{:?}", refused.sources());
        assert!(!said.contains("hunter2") && !said.contains("right"), "{said}");
    }
}
