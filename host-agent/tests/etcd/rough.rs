//! etcd as it is run: values that are too large, missing permissions, a proxy before it, slow
//! links.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType};
use pintle_agent::source::SecretRef;
use pintle_tests::{Etcd, NetworkFault as Fault, Port, Process, Proxy, Spec, tools};

use crate::put_many;
use crate::support::{Agent, key, secs, value, with_etcd};

/// Longer than the client's limit for a message.
#[tokio::test(flavor = "multi_thread")]
async fn one_value_too_large_costs_itself() {
    let etcd = Etcd::start_with(&["--max-request-bytes", "16777216"]).await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    put_many(&etcd.url(), "orders", 0..20, 0).await;
    let huge = || "x".repeat(5 << 20);
    client.put(key("orders", "huge"), huge(), None).await.unwrap();
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(20), "the others, listed", |a| a.ids("orders").len() == 20).await;
    agent.watching().await;
    client.put(key("orders", "huger"), huge(), None).await.unwrap();
    client.put(key("orders", "z"), value("orders", "z", 1), None).await.unwrap();
    agent.until(secs(20), "the next, watched", |a| a.ids("orders").len() == 21).await;
    let reasons = |a: &Agent| {
        let snapshot = a.snapshot();
        snapshot.rejected.iter().map(|r| (r.key.clone(), r.reason)).collect::<Vec<_>>()
    };
    let long = |id: &str| (key("orders", id), "value_too_long");
    let both = |a: &Agent| [long("huge"), long("huger")].iter().all(|it| reasons(a).contains(it));
    agent.until(secs(20), "both refused", both).await;
    client.put(key("orders", "zz"), value("orders", "zz", 1), None).await.unwrap();
    agent.until(secs(20), "still watched", |a| a.ids("orders").len() == 22).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_on_policies_the_instances_are_served_and_it_is_said() {
    let etcd = Etcd::start().await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    put_many(&etcd.url(), "orders", 0..3, 0).await;
    etcd.put("/pintle/policies/orders", "{\"strategy\":\"random\"}").await.unwrap();
    client.role_add("reader").await.unwrap();
    let permission = |prefix| Permission::new(PermissionType::Read, prefix).with_prefix();
    client.role_grant_permission("reader", permission("/services/")).await.unwrap();
    client.user_add("agent", "right", None).await.unwrap();
    client.user_grant_role("agent", "reader").await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let options = ConnectOptions::new().with_user("root", "secret");
    let mut root = Client::connect([etcd.url()], Some(options)).await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "right").unwrap();
    let mut config = with_etcd(vec![etcd.url()]);
    if let Some(etcd) = &mut config.etcd {
        etcd.user = Some("agent".into());
        etcd.password = Some(SecretRef::File(dir.path().join("password")));
        etcd.reconcile = secs(1);
    }
    let agent = Agent::start(config);
    agent.until(secs(10), "the instances", |a| a.ids("orders").len() == 3).await;
    let said = |a: &Agent| {
        let etcd = a.sources().etcd;
        etcd.connected && etcd.error.is_some_and(|e| e.contains("/pintle/policies/"))
    };
    agent.until(secs(10), "the prefix, named", said).await;
    root.put(key("orders", "new"), value("orders", "new", 1), None).await.unwrap();
    agent.until(secs(10), "a change", |a| a.ids("orders").len() == 4).await;
    let policy = |a: &Agent| a.snapshot().services["orders"].table.policy.clone();
    assert_eq!(policy(&agent), "");
    // Granted, the policy is there; taken away again, it stays.
    root.role_grant_permission("reader", permission("/pintle/policies/")).await.unwrap();
    let set = |a: &Agent| policy(a).contains("random") && a.sources().etcd.error.is_none();
    agent.until(secs(15), "the policy", set).await;
    let range = etcd_client::RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("reader", "/pintle/policies/", Some(range)).await.unwrap();
    agent.until(secs(15), "the prefix, named again", said).await;
    root.put(key("orders", "newer"), value("orders", "newer", 1), None).await.unwrap();
    agent.until(secs(10), "a change", |a| a.ids("orders").len() == 5).await;
    assert!(policy(&agent).contains("random"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_no_obstacle_while_authentication_is_off() {
    let etcd = Etcd::start().await.unwrap();
    etcd.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "any").unwrap();
    let mut config = with_etcd(vec![etcd.url()]);
    if let Some(etcd) = &mut config.etcd {
        etcd.user = Some("agent".into());
        etcd.password = Some(SecretRef::File(dir.path().join("password")));
    }
    let agent = Agent::start(config);
    agent.until(secs(10), "the instance", |a| a.ids("orders") == ["a"]).await;
}

/// `etcd grpc-proxy` gives watches its own ids and answers no progress requests.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_grpc_proxy_one_watch_stays_up() {
    let etcd = Etcd::start().await.unwrap();
    let port = Port::take().unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let args = [
        "grpc-proxy".to_owned(),
        "start".to_owned(),
        format!("--endpoints={}", etcd.addr()),
        format!("--listen-addr={}", port.addr()),
        format!("--data-dir={}", dir.path().join("proxy").display()),
    ];
    let program = tools::etcd().unwrap();
    let spec = Spec { name: "grpc-proxy".into(), program, args: args.into(), envs: Vec::new() };
    let mut proxy = Process::spawn(spec, dir).unwrap();
    let ready = async || tokio::net::TcpStream::connect(port.addr()).await.is_ok();
    proxy.wait_ready(secs(30), ready).await.unwrap();
    etcd.put(&key("orders", "a"), &value("orders", "a", 1)).await.unwrap();
    let mut config = with_etcd(vec![format!("http://{}", port.addr())]);
    if let Some(etcd) = &mut config.etcd {
        etcd.silence = secs(2);
    }
    let agent = Agent::start(config);
    agent.until(secs(20), "listed", |a| a.ids("orders") == ["a"]).await;
    agent.watching().await;
    for n in 0..8 {
        tokio::time::sleep(secs(1)).await;
        let id = format!("b{n}");
        etcd.put(&key("orders", &id), &value("orders", &id, 1)).await.unwrap();
        agent.until(secs(5), "a change", |a| a.ids("orders").contains(&id)).await;
    }
    assert_eq!(agent.sources().etcd.connects, 1, "{:?}", agent.sources().etcd);
    assert!(proxy.is_running(), "no request that the proxy does not know");
}

/// What is waited for is a sign of life, not the end of an answer.
#[tokio::test(flavor = "multi_thread")]
async fn slow_links_become_ready_and_stay_up() {
    let etcd = Etcd::start().await.unwrap();
    put_many(&etcd.url(), "orders", 0..300, 100).await;
    let far = Proxy::to(etcd.addr()).await.unwrap();
    far.set(Fault::Delay(Duration::from_millis(800)));
    let narrow = Proxy::to(etcd.addr()).await.unwrap();
    narrow.set(Fault::Rate(20_000));
    let start = |proxy: &Proxy| {
        let mut config = with_etcd(vec![format!("http://{}", proxy.addr())]);
        if let Some(etcd) = &mut config.etcd {
            etcd.reconcile = secs(3);
        }
        Agent::start(config)
    };
    let agents = [("1.6 s there and back", start(&far)), ("20 kB/s", start(&narrow))];
    for (what, agent) in &agents {
        let took = agent.until(secs(60), what, |a| a.count() == 300).await;
        println!("{what}: ready after {took:?}");
        agent.watching().await;
    }
    // Two listings more, beside the watch.
    tokio::time::sleep(secs(8)).await;
    etcd.put(&key("orders", "new"), &value("orders", "new", 1)).await.unwrap();
    for (what, agent) in &agents {
        let took = agent.until(secs(20), what, |a| a.count() == 301).await;
        println!("{what}: a change after {took:?}");
        assert_eq!(agent.sources().etcd.connects, 1, "{what}: {:?}", agent.sources().etcd);
    }
}
