//! Registration on a real etcd: leases, health, leaving.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test, helpers included"
)]

mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_client::Client;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_agent::registration::{Check, Instance, RegisterConfig, register};
use pintle_agent::source::EtcdConfig;
use pintle_tests::{Behaviour, Etcd, NetworkFault as Fault, Proxy, Upstream, assert_eventually};
use serde_json::Value;
use support::{Agent, key, secs, value, with_etcd};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Registration {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

fn start(url: String, instances: Vec<Instance>, drain: Duration) -> Registration {
    let config = RegisterConfig {
        etcd: EtcdConfig { endpoints: vec![url], ..EtcdConfig::default() },
        instances,
        lease: secs(5),
        drain,
        ..RegisterConfig::default()
    };
    start_with(config)
}

fn start_with(config: RegisterConfig) -> Registration {
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    let task = tokio::spawn(async move { register(config, token).await });
    Registration { shutdown, task }
}

fn instance(id: &str, at: SocketAddr, check: Option<Check>) -> Instance {
    Instance {
        name: "orders".into(),
        id: id.into(),
        address: at.ip(),
        port: at.port(),
        metadata: BTreeMap::from([("weight".into(), "3".into())]),
        tags: vec!["blue".into()],
        check,
    }
}

fn check(json: &str) -> Option<Check> {
    let check: Check = pintle_settings::read("check", serde_json::from_str(json).unwrap()).unwrap();
    Some(Check {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(500),
        ..check
    })
}

async fn health(etcd: &Etcd, id: &str) -> Option<String> {
    let value = etcd.get(&key("orders", id)).await.unwrap()?;
    let value: Value = serde_json::from_str(&value).unwrap();
    Some(value["health"].as_str().unwrap().to_owned())
}

async fn versions(etcd: &Etcd, id: &str) -> (i64, i64) {
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let found = client.get(key("orders", id), None).await.unwrap();
    found.kvs().first().map_or((0, 0), |kv| (kv.version(), kv.lease()))
}

#[tokio::test(flavor = "multi_thread")]
async fn several_instances_live_on_one_lease_are_never_rewritten_by_a_beat_and_leave_in_order() {
    let etcd = Etcd::start().await.unwrap();
    let at: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let other = "127.0.0.2:8080".parse().unwrap();
    let instances = vec![instance("a", at, None), instance("b", other, None)];
    let registered = start(etcd.url(), instances, secs(3));
    assert_eventually!(secs(5), health(&etcd, "b").await.as_deref() == Some("healthy"));
    let value: Value =
        serde_json::from_str(&etcd.get(&key("orders", "a")).await.unwrap().unwrap()).unwrap();
    let fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        fields,
        [
            "address",
            "health",
            "id",
            "last_heartbeat",
            "metadata",
            "name",
            "port",
            "registered_at",
            "tags"
        ]
    );
    let agent = Agent::start(with_etcd(vec![etcd.url()]));
    agent.until(secs(5), "seen", |a| a.ids("orders") == ["a", "b"]).await;

    // Longer than the lease: it is kept alive, and nothing is written for it.
    let (written, lease) = versions(&etcd, "a").await;
    tokio::time::sleep(secs(7)).await;
    assert_eq!(versions(&etcd, "a").await, (written, lease));

    let began = Instant::now();
    registered.shutdown.cancel();
    assert_eventually!(secs(2), health(&etcd, "a").await.as_deref() == Some("draining"));
    assert_eventually!(secs(10), etcd.list("/services/").await.unwrap().is_empty());
    assert!(began.elapsed() >= secs(3), "it waits for what is under way");
    registered.task.await.unwrap();
}

/// Neither fights: the newer one has the id until it goes.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_registrars_of_one_id_the_second_wins_for_good() {
    let etcd = Etcd::start().await.unwrap();
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let start = |port| start(etcd.url(), vec![instance("a", at(port), None)], Duration::ZERO);
    let port = async || {
        let value = etcd.get(&key("orders", "a")).await.unwrap()?;
        serde_json::from_str::<Value>(&value).unwrap()["port"].as_u64()
    };
    let first = start(8081);
    assert_eventually!(secs(5), port().await == Some(8081));
    let second = start(8082);
    assert_eventually!(secs(5), port().await == Some(8082));
    let (written, _) = versions(&etcd, "a").await;
    // Three beats of both.
    tokio::time::sleep(secs(6)).await;
    assert_eq!((port().await, versions(&etcd, "a").await.0), (Some(8082), written));
    second.shutdown.cancel();
    second.task.await.unwrap();
    assert_eventually!(secs(5), port().await == Some(8081));
    first.shutdown.cancel();
    first.task.await.unwrap();
}

/// A successor registers under the ids of the one that goes, before it goes and while it drains.
#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_lets_be_what_another_has_registered_in_its_place() {
    let etcd = Etcd::start().await.unwrap();
    let at: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let registered = start_with(RegisterConfig {
        etcd: EtcdConfig { endpoints: vec![etcd.url()], ..EtcdConfig::default() },
        instances: ["before", "during", "ours"].map(|id| instance(id, at, None)).to_vec(),
        // So long that no beat comes between, after which it would claim its own again.
        lease: secs(60),
        drain: secs(3),
        ..RegisterConfig::default()
    });
    assert_eventually!(secs(5), health(&etcd, "ours").await.as_deref() == Some("healthy"));
    let lease = etcd.grant(60).await.unwrap();
    let take = async |id| {
        etcd.put_leased(&key("orders", id), &value("orders", id, 8081), &lease).await.unwrap();
    };
    take("before").await;
    registered.shutdown.cancel();
    assert_eventually!(secs(2), health(&etcd, "ours").await.as_deref() == Some("draining"));
    take("during").await;
    registered.task.await.unwrap();
    let left = etcd.list("/services/").await.unwrap();
    let expect = ["before", "during"].map(|id| (key("orders", id), value("orders", id, 8081)));
    assert_eq!(left, expect);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_a_deleted_key_and_a_lost_connection_are_made_good() {
    let etcd = Etcd::start().await.unwrap();
    let proxy = Proxy::to(etcd.addr()).await.unwrap();
    let at: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let url = format!("http://{}", proxy.addr());
    let registered = start(url, vec![instance("a", at, None)], Duration::ZERO);
    assert_eventually!(secs(5), health(&etcd, "a").await.is_some());
    let (_, lease) = versions(&etcd, "a").await;

    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    assert_eventually!(secs(5), ![0, lease].contains(&versions(&etcd, "a").await.1));

    etcd.delete(&key("orders", "a")).await.unwrap();
    assert_eventually!(secs(5), health(&etcd, "a").await.is_some());

    // Shorter than the lease: the same lease goes on and nothing is written.
    let (written, lease) = versions(&etcd, "a").await;
    proxy.set(Fault::Drop);
    tokio::time::sleep(secs(1)).await;
    proxy.set(Fault::None);
    tokio::time::sleep(secs(5)).await;
    assert_eq!(versions(&etcd, "a").await, (written, lease));

    // Longer than the lease.
    proxy.set(Fault::Blackhole);
    assert_eventually!(secs(15), health(&etcd, "a").await.is_none());
    proxy.set(Fault::None);
    assert_eventually!(secs(10), health(&etcd, "a").await.is_some());
    registered.shutdown.cancel();
    registered.task.await.unwrap();
    assert!(etcd.list("/services/").await.unwrap().is_empty());
}

/// `grpc.health.v1.Health`, by hand: SERVING while `healthy`.
async fn grpc_server(healthy: Arc<AtomicBool>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let healthy = Arc::clone(&healthy);
            let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let status = if healthy.load(Ordering::Relaxed) { 1 } else { 2 };
                let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static("0"),
                )]);
                let frames =
                    [Ok::<_, Infallible>(Frame::data(message)), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(futures::stream::iter(frames));
                let answer = http::Response::builder().header("content-type", "application/grpc");
                async move { answer.body(body) }
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http2.serve_connection(TokioIo::new(stream), answer));
        }
    });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_its_checks_and_is_written_only_when_it_changes() {
    let etcd = Etcd::start().await.unwrap();
    let mut http = Upstream::start("http").await.unwrap();
    let serving = Arc::new(AtomicBool::new(true));
    let grpc = grpc_server(Arc::clone(&serving)).await;
    let instances = vec![
        instance("http", http.addr(), check(r#"{"http":"/healthz","unhealthy_after":2}"#)),
        instance("grpc", grpc, check(r#"{"grpc":"","unhealthy_after":2}"#)),
        instance("tcp", http.addr(), check(r#"{"tcp":true,"unhealthy_after":2}"#)),
    ];
    let registered = start(etcd.url(), instances, Duration::ZERO);
    let all = async |expect: [&str; 3]| {
        let is =
            [health(&etcd, "http").await, health(&etcd, "grpc").await, health(&etcd, "tcp").await];
        is.iter().map(|h| h.as_deref().unwrap_or("")).eq(expect)
    };
    assert_eventually!(secs(5), all(["healthy"; 3]).await);
    let first = async |id| versions(&etcd, id).await.0;
    assert_eq!([first("http").await, first("grpc").await, first("tcp").await], [1; 3]);
    serving.store(false, Ordering::Relaxed);
    http.set(Behaviour { healthy: false, ..Behaviour::default() });
    assert_eventually!(secs(5), all(["unhealthy", "unhealthy", "healthy"]).await);
    let before = versions(&etcd, "http").await;
    tokio::time::sleep(secs(1)).await;
    assert_eq!(versions(&etcd, "http").await, before, "ten more failed probes write nothing");
    serving.store(true, Ordering::Relaxed);
    http.set(Behaviour::default());
    assert_eventually!(secs(5), all(["healthy"; 3]).await);
    http.close().await;
    assert_eventually!(secs(5), all(["unhealthy", "healthy", "unhealthy"]).await);
    registered.shutdown.cancel();
    registered.task.await.unwrap();
}
