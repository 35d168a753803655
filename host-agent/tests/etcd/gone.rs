//! What goes away, and what only seems to: a restore, silence, leases, a process that starts again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pintle_tests::{Etcd, NetworkFault as Fault, Proxy};

use crate::put_many;
use crate::support::{Agent, key, secs, value, value_at, with_etcd};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_restored_to_a_lower_revision_is_listed_again_and_met_with_protection() {
    let mut etcd = Etcd::start().await.unwrap();
    for n in 0..40 {
        etcd.put("/other", &n.to_string()).await.unwrap();
    }
    put_many(&etcd.url(), "orders", 0..10, 0).await;
    etcd.put("/pintle/policies/orders", r#"{"strategy":"random"}"#).await.unwrap();
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 10).await;
    agent.watching().await;
    let policy = |a: &Agent| a.snapshot().services["orders"].table.policy.clone();
    agent.until(secs(5), "its policy", |a| policy(a).contains("random")).await;
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
    assert!(policy(&agent).contains("random"), "policies are protected like endpoints");
    let held = |a: &Agent| a.snapshot().held.iter().any(|it| it.endpoint.is_empty());
    agent.until(secs(5), "and that is said", held).await;
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
async fn instances_that_start_again_where_they_were_under_other_ids_are_not_held() {
    let etcd = Etcd::start().await.unwrap();
    for n in 0..6 {
        let id = format!("old-{n}");
        etcd.put(&key("orders", &id), &value_at("orders", &id, "10.0.0.1", 8000 + n))
            .await
            .unwrap();
    }
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 6).await;
    for n in 0..6 {
        let (old, new) = (format!("old-{n}"), format!("new-{n}"));
        let put = async || {
            etcd.put(&key("orders", &new), &value_at("orders", &new, "10.0.0.1", 8000 + n))
                .await
                .unwrap();
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
    agent.until(secs(5), "none held", |a| a.snapshot().held.is_empty()).await;
}

/// Endpoints that accept connections, and their keys under one lease.
async fn alive(etcd: &Etcd, count: usize, lease: &str) -> Vec<std::net::TcpListener> {
    let mut listeners = Vec::new();
    for n in 0..count {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (id, port) = (format!("i{n:02}"), listener.local_addr().unwrap().port());
        let value = value_at("orders", &id, "127.0.0.1", port);
        etcd.put_leased(&key("orders", &id), &value, lease).await.unwrap();
        listeners.push(listener);
    }
    listeners
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_that_expire_together_are_held_with_an_alarm_and_released_by_a_person() {
    let etcd = Etcd::start().await.unwrap();
    let lease = etcd.grant(4).await.unwrap();
    let mut alive = alive(&etcd, 20, &lease).await;
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    let mut activities = agent.running.activities.subscribe();
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 20).await;
    agent.until(secs(10), "held", |a| a.snapshot().held.len() == 20).await;
    let alarm = async { while activities.recv().await.unwrap().kind != "removal" {} };
    tokio::time::timeout(secs(5), alarm).await.unwrap();
    assert_eq!(agent.ids("orders").len(), 20, "they answer");
    agent.until(secs(5), "counted", |a| a.sources().removals_held == 20).await;
    // Nobody listens there any more.
    alive.truncate(17);
    agent.until(secs(10), "the dead ones are gone", |a| a.ids("orders").len() == 17).await;
    assert_eq!(agent.running.updates.release("orders").await.unwrap(), 17);
    agent.until(secs(5), "released", |a| a.ids("orders").is_empty()).await;
    agent.until(secs(5), "none held", |a| a.snapshot().held.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_somebody_deleted_are_gone_at_once_but_the_last_that_answers() {
    let etcd = Etcd::start().await.unwrap();
    let lease = etcd.grant(60).await.unwrap();
    let alive = alive(&etcd, 10, &lease).await;
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "listed", |a| a.ids("orders").len() == 10).await;
    agent.watching().await;
    for n in 0..8 {
        etcd.deregister("orders", &format!("i{n:02}")).await.unwrap();
    }
    let took = agent.until(secs(10), "two are left", |a| a.ids("orders").len() == 2).await;
    println!("ten scaled down to two in {took:?} after the last deletion");
    agent.until(secs(5), "none held", |a| a.snapshot().held.is_empty()).await;
    etcd.delete_prefix("/services/").await.unwrap();
    // The first to answer its trial is held for the moment in which the lease is asked about.
    let last = |a: &Agent| (a.snapshot().held.len(), a.ids("orders").len()) == (1, 1);
    agent.until(secs(10), "the last one is held and served, for it answers", last).await;
    drop(alive);
    agent.until(secs(10), "gone", |a| a.ids("orders").is_empty()).await;
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
