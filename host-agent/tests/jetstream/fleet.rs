//! What is asked of all agents at once: removals released, and where agents differ.

use pintle_agent::link::Standing;
use pintle_agent::source::EtcdConfig;
use pintle_tests::Etcd;
use tokio::net::TcpListener;

use super::support::{key, value_at};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn held_removals_are_released_at_every_agent_by_name_or_all() {
    let (nats, etcd) = (Nats::start().await.unwrap(), Etcd::start().await.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // All of 127.0.0.0/8 is this machine: each is an endpoint of its own that answers.
    let mut listeners = vec![listener];
    for n in 2..8 {
        listeners.push(TcpListener::bind(format!("127.0.0.{n}:{port}")).await.unwrap());
    }
    for service in ["orders", "payments"] {
        for n in 1..8 {
            let (id, address) = (format!("i{n}"), format!("127.0.0.{n}"));
            let value = value_at(service, &id, &address, port);
            etcd.put(&key(service, &id), &value).await.unwrap();
        }
    }
    let agents = ["one", "two"].map(|name| {
        let mut config = with_nats(nats.url());
        config.agent = name.into();
        config.etcd = Some(EtcdConfig { endpoints: vec![etcd.url()], ..EtcdConfig::default() });
        Agent::start(config)
    });
    for agent in &agents {
        let there = |a: &Agent| a.sources().nats.connected && a.count() == 14;
        agent.until(secs(20), "connected, with both services", there).await;
        agent.watching().await;
    }
    let nothing = pintle(&nats, &["release", "orders"]).await;
    assert_eq!(nothing.status.code(), Some(1), "{}", said(&nothing));
    assert!(said(&nothing).contains("nothing was held"), "{}", said(&nothing));
    let unknown = pintle(&nats, &["release", "ordres"]).await;
    assert_eq!(unknown.status.code(), Some(1), "{}", said(&unknown));
    assert!(
        said(&unknown).contains("not registered at any agent, but orders"),
        "{}",
        said(&unknown)
    );

    for service in ["orders", "payments"] {
        for n in 1..8 {
            etcd.deregister(service, &format!("i{n}")).await.unwrap();
        }
    }
    let held = |a: &Agent| {
        let snapshot = a.snapshot();
        let of = |name: &str| snapshot.held.iter().filter(|it| it.service == name).count();
        of("orders") >= 5 && of("payments") >= 5
    };
    for agent in &agents {
        agent.until(secs(20), "held", held).await;
    }
    let done = pintle(&nats, &["release", "orders"]).await;
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("on 2 of 2 agents"), "{}", said(&done));
    for agent in &agents {
        assert!(agent.count() <= 7, "{:?}", agent.ids("orders"));
    }
    let done = pintle(&nats, &["release", "--all", "-o", "json"]).await;
    assert!(done.status.success(), "{}", said(&done));
    let json: Value = serde_json::from_str(&said(&done)).unwrap();
    for (name, agent) in ["one", "two"].iter().zip(&agents) {
        assert!(json["released"][name]["payments"].as_u64() >= Some(5), "{json}");
        agent.until(secs(20), "all gone", |a| a.count() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_is_shown_with_its_troubles_and_where_its_agents_differ() {
    let nats = Nats::start().await.unwrap();
    let place = Place::new();
    let agents = ["one", "two"].map(|name| {
        let mut config = place.config(&nats.url());
        config.agent = name.into();
        config.state.dir = None;
        Agent::start(config)
    });
    for agent in &agents {
        ready(agent).await;
    }
    let standing = Standing {
        connected: 3,
        current: 2,
        behind: vec!["envoy-7".into()],
        ..Standing::default()
    };
    agents[0].running.standing.send_replace(standing);
    let words = said(&pintle(&nats, &["fleet"]).await);
    for text in ["one", "two", "2 of 3 current", "envoy-7", "All serve the same."] {
        assert!(words.contains(text), "{text}: {words}");
    }
    // One agent alone is told of another endpoint.
    let other = place.dir.path().join("other.json");
    let text = std::fs::read_to_string(place.dir.path().join("services.json")).unwrap();
    std::fs::write(&other, text.replace("\"port\":80}", "\"port\":81}")).unwrap();
    let mut config = place.config(&nats.url());
    (config.agent, config.state.dir) = ("three".into(), None);
    if let Some(file) = &mut config.file {
        file.path = other;
    }
    let third = Agent::start(config);
    third.until(secs(15), "connected", |a| a.sources().nats.connected && a.count() > 0).await;
    let words = said(&pintle(&nats, &["fleet"]).await);
    assert!(words.contains("orders: endpoints differ"), "{words}");
    assert!(words.contains(" at one, two; "), "{words}");
}
