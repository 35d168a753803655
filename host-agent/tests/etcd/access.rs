//! Certificates, users, tokens.

use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, Permission, PermissionType, PutOptions};
use pintle_agent::source::{EtcdConfig, SecretRef, SourcesConfig, Tls};
use pintle_tests::{Authority, Etcd, Port, Process, Server as _, Spec, assert_eventually};

use crate::support::{Agent, key, secs, value, with_etcd};

/// RELIABILITY R28: etcd's tokens die after two seconds without use.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_is_made_anew_and_nothing_is_missed() {
    let etcd = Etcd::start_with(&["--auth-token-ttl", "2"]).await.unwrap();
    etcd.put(&key("orders", "i0"), &value("orders", "i0", 1)).await.unwrap();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    roles_of_the_file(&etcd.url()).await;
    turn_on(&mut client).await;
    let user = |name, password| ConnectOptions::new().with_user(name, password);
    let orders = user("pintle-orders", "orders");
    let mut orders = Client::connect([etcd.url()], Some(orders)).await.unwrap();
    let lease = orders.lease_grant(30, None).await.unwrap().id();
    let leased = || Some(PutOptions::new().with_lease(lease));
    orders.put(key("orders", "own"), value("orders", "own", 1), leased()).await.unwrap();
    orders.delete(key("orders", "own"), None).await.unwrap();
    assert!(orders.put(key("ledger", "x"), "x", leased()).await.is_err(), "another service");
    let options = user("root", "secret").with_auto_token_refresh(true);
    let mut writer = Client::connect([etcd.url()], Some(options)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "right").unwrap();
    let mut config = with_etcd(vec![etcd.url()]);
    let own = config.etcd.as_mut().unwrap();
    own.user = Some("pintle-agent".into());
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

/// The users of `envoy/etcd/roles.sh`.
async fn roles_of_the_file(url: &str) {
    let file = pintle_tests::tools::root().join("envoy/etcd/roles.sh");
    let mut sh = tokio::process::Command::new("sh");
    let passwords = [("AGENT_PASSWORD", "right"), ("ORDERS_PASSWORD", "orders")];
    // 3.3 spoke another version unless it was told.
    sh.arg(file).env("ETCDCTL_ENDPOINTS", url).env("ETCDCTL_API", "3").envs(passwords);
    let done = sh.output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// `root`, and authentication.
async fn turn_on(client: &mut Client) {
    client.role_add("root").await.unwrap();
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
}

/// `agent`, who may only read what agents read; then authentication is on.
async fn add_users(client: &mut Client) {
    client.role_add("reader").await.unwrap();
    for prefix in ["/services/", "/pintle/policies/"] {
        let permission = Permission::new(PermissionType::Read, prefix).with_prefix();
        client.role_grant_permission("reader", permission).await.unwrap();
    }
    client.user_add("agent", "right", None).await.unwrap();
    client.user_grant_role("agent", "reader").await.unwrap();
    turn_on(client).await;
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

    let with = |etcd: EtcdConfig| SourcesConfig { etcd: Some(etcd), ..crate::support::config() };
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
