//! The admin address over real connections: what it answers, and to whom it does not.

use std::time::SystemTime;

use pintle_contract::{
    Applied, BreakerState, Endpoint, EndpointReport, Health, Hello, Now, Report, RequestCount,
    ServiceReport, Table, Transition, Up, Version,
};
use pintle_state::{Held, Overlay, Rejected, Service, Snapshot};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::timeout;

use super::*;
use crate::link::{Activities, Activity, Reported, Sources};
use crate::serve::metrics::Names;

const SOON: Duration = Duration::from_secs(20);

struct Releases;

impl Release for Releases {
    fn release(&self, service: String) -> Releasing {
        let known = service == "orders";
        let answer = if known { Ok(2) } else { Err(Gone) };
        Box::pin(std::future::ready(answer))
    }
}

/// An admin address with two services, traffic and troubles, as the page's test shows them too.
pub(crate) struct Made {
    pub(crate) address: SocketAddr,
    orders: std::path::PathBuf,
    snapshots: watch::Sender<Arc<Snapshot>>,
    activities: Activities,
    stop: CancellationToken,
    _sources: watch::Sender<Sources>,
    _reported: mpsc::Receiver<Reported>,
    _dir: tempfile::TempDir,
}

impl Drop for Made {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn version(sequence: u64) -> Version {
    Version { epoch: 1_764_000_000_000, sequence }
}

fn sample(stale: bool) -> Snapshot {
    let endpoint = |id: &str, port: u16, zone: &str, weight, health| Endpoint {
        zone: zone.to_owned(),
        weight,
        health,
        metadata: [("version".to_owned(), "1.4.2".to_owned())].into(),
        registered_at: Now(1_764_000_000_000_000_000),
        ..Endpoint::new(id, ([10, 0, 7, 4], port).into())
    };
    let service = |name: &str, endpoints| {
        let table = Table {
            service: name.to_owned(),
            version: version(41),
            endpoints,
            policy: r#"{"select":{"strategy":"p2c"}}"#.to_owned(),
        };
        let service = Service::of(table);
        Arc::new(service)
    };
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    Snapshot {
        version: version(42),
        services: pintle_state::Services::from_iter([
            service(
                "orders",
                vec![
                    endpoint("orders-1", 8001, "eu-1a", 1, Health::Healthy),
                    endpoint("orders-2", 8002, "eu-1a", 1, Health::Healthy),
                    endpoint("orders-3", 8003, "eu-1b", 2, Health::Draining),
                ],
            ),
            service(
                "payments",
                vec![
                    endpoint("pay-1", 9001, "", 0, Health::Healthy),
                    endpoint("pay-2", 9002, "eu-1b", 1, Health::Unhealthy),
                ],
            ),
        ]),
        stale,
        confirmed_at: Some(ago(3)),
        held: [Held {
            service: "payments".to_owned(),
            endpoint: "pay-2".to_owned(),
            since: ago(40),
            reason: "3 of 4 endpoints left within 60 s".to_owned(),
            until: Some(SystemTime::now() + Duration::from_secs(500)),
        }]
        .into(),
        rejected: [Rejected {
            source: "registry",
            key: "/services/orders/bad\u{1b}[31m".to_owned(),
            reason: "metadata_address",
            detail: "169.254.169.254 is a cloud metadata address".to_owned(),
            at: ago(9),
        }]
        .into(),
        overlays: [Overlay {
            kind: "endpoint",
            service: "orders".to_owned(),
            endpoint: Some("orders-3".to_owned()),
            action: "drain".to_owned(),
            source: "pintle drain".to_owned(),
            until: SystemTime::now() + Duration::from_secs(55),
        }]
        .into(),
        ..Snapshot::default()
    }
}

fn traffic(fleet: &Fleet, round: u64) {
    let endpoint = |id: &str, share: u64, latency_us, state| EndpointReport {
        id: id.to_owned(),
        requests: round * share,
        failures: if state == BreakerState::Open { 9 } else { 0 },
        in_flight: 2,
        latency_us,
        state,
    };
    let report = Report {
        worker: 0xabcd,
        version: version(42),
        services: vec![ServiceReport {
            service: "orders".to_owned(),
            requests: vec![RequestCount { method: 0, code: 200, count: round * 90 }],
            latency: vec![0, 0, 0, round * 90],
            latency_sum_us: round * 90 * 8_000,
            in_flight: 4,
            endpoints: vec![
                endpoint("orders-1", 80, 7_900, BreakerState::Closed),
                endpoint("orders-2", 10, 48_000, BreakerState::Open),
            ],
            ..ServiceReport::default()
        }],
        counters: Vec::new(),
    };
    fleet.received("envoy-1", Up::Report(report), When::now());
}

impl Made {
    pub(crate) async fn start(stale: bool) -> Self {
        Self::with(Arc::new(sample(stale))).await
    }

    async fn with(snapshot: Arc<Snapshot>) -> Self {
        let (snapshots, rx) = watch::channel(snapshot);
        let mut sources = Sources::default();
        sources.etcd.enabled = true;
        sources.etcd.connected = !rx.borrow().stale;
        sources.etcd.endpoint = "http://127.0.0.1:2379".to_owned();
        sources.etcd.position = 1_203;
        sources.etcd.last_seen = Some(SystemTime::now());
        sources.events_applied = 5;
        let (sources, sources_rx) = watch::channel(sources);
        let (outgoing, reported) = mpsc::channel(8);
        let activities: Activities = broadcast::channel(64).0;
        let recent = Recent::default();
        tokio::spawn(recent.clone().listen(activities.subscribe()));
        let fleet = Arc::new(Fleet::new(activities.clone(), outgoing));
        fleet.published(&rx.borrow(), When::now());
        let hello = Hello {
            proxy: "envoy-1".to_owned(),
            worker: 0xabcd,
            fence: 3,
            have: Version::default(),
        };
        fleet.connected(&hello, pintle_contract::Schema::Two, "uid 0, pid 71", When::now());
        for round in 1..=8 {
            traffic(&fleet, round);
            fleet.tick(When::now());
        }
        let applied = Applied { worker: 0xabcd, workers: 1, version: version(42) };
        fleet.received("envoy-1", Up::Applied(applied), When::now());
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let nanos = u64::try_from(wall.as_nanos()).unwrap();
        let transition = Transition {
            service: "orders".to_owned(),
            endpoint: "orders-2".to_owned(),
            from: BreakerState::Closed,
            to: BreakerState::Open,
            reason: "5 consecutive failures".to_owned(),
            observed: true,
            at: Now(nanos),
            until: Now(nanos + 30_000_000_000),
            trips: 2,
        };
        fleet.received("envoy-1", Up::Transition(transition), When::now());
        let dir = tempfile::tempdir().unwrap();
        let options = AdminOptions {
            agent: "edge-1".to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            allow_remote: false,
            hosts: vec!["pintle.internal".to_owned()],
            socket: SocketOptions::at(dir.path().join("orders.sock")),
        };
        let listener = bind(&options).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        // Workers report their totals again and again; one that does not is silent after ten
        // seconds.
        let (reports, ended) = (Arc::clone(&fleet), stop.clone());
        tokio::spawn(async move {
            while timeout(Duration::from_secs(1), ended.cancelled()).await.is_err() {
                traffic(&reports, 8);
            }
        });
        let admin = Admin::new(
            options,
            Parts {
                metrics: Metrics::new(
                    rx.clone(),
                    sources_rx.clone(),
                    Arc::clone(&fleet),
                    None,
                    100,
                    Names::default(),
                ),
                snapshots: rx,
                sources: sources_rx,
                fleet,
                recent,
                release: Box::new(Releases),
                given: Given::default(),
                served: None,
                stop: stop.clone(),
            },
        );
        tokio::spawn(admin.clone().serve_unix(admin.bind_unix().unwrap()));
        tokio::spawn(admin.serve(listener));
        let orders = dir.path().join("orders.sock");
        Self {
            address,
            orders,
            snapshots,
            activities,
            stop,
            _sources: sources,
            _reported: reported,
            _dir: dir,
        }
    }

    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        timeout(SOON, read).await.unwrap().unwrap();
        answer
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let host = self.address;
        let answer = self
            .raw(&format!(
                "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n"
            ))
            .await;
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, body.to_owned())
    }

    /// The same at the unix socket.
    async fn order(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut stream = tokio::net::UnixStream::connect(&self.orders).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[tokio::test]
async fn every_path_answers_with_its_json() {
    let made = Made::start(false).await;
    assert_eq!(made.get("/healthz").await["status"], "ok");
    let services = made.get("/v1/services").await;
    assert_eq!(services["total"], 2);
    let orders = made.get("/v1/services/orders").await;
    assert_eq!(services["services"][0]["endpoints"][1]["id"], "orders-2");
    let second = &orders["endpoints"][1];
    assert_eq!(second["breaker"]["state"], "open");
    assert_eq!(second["breaker"]["on"][0]["reason"], "5 consecutive failures");
    assert_eq!(second["address"], "10.0.7.4:8002");
    assert_eq!(second["latency_ms"], 48.0);
    assert_eq!(orders["policy"]["select"]["strategy"], "p2c");
    let share = orders["endpoints"][0]["share"].as_f64().unwrap();
    assert!((share - 0.889).abs() < 0.01, "{share}");
    let breakers = made.get("/v1/breakers").await;
    assert_eq!(breakers["breakers"].as_array().unwrap().len(), 1);
    let all = made.get("/v1/breakers?all=true").await;
    assert_eq!(all["breakers"].as_array().unwrap().len(), 5);
    let proxies = made.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["current"], true);
    assert_eq!(proxies["proxies"][0]["workers"][0]["worker"], "000000000000abcd");
    assert_eq!(made.get("/v1/sources").await["etcd"]["position"], 1_203);
    assert_eq!(made.get("/v1/held").await["held"][0]["endpoint"], "pay-2");
    let overlays = made.get("/v1/overlays").await;
    assert_eq!(overlays["overlays"][0]["action"], "drain");
    let rejected = made.get("/v1/rejected").await;
    let key = rejected["rejected"][0]["key"].as_str().unwrap();
    assert!(!key.contains('\u{1b}'), "{key:?}");
    let (status, text) = made.ask("GET", "/metrics", "").await;
    assert_eq!(status, 200);
    assert!(text.contains("circuit_breaker_state{"));
}

#[tokio::test]
async fn pages_of_services_follow_each_other() {
    let made = Made::start(false).await;
    let first = made.get("/v1/services?limit=1&endpoints=false").await;
    assert_eq!(first["services"][0]["service"], "orders");
    assert_eq!(first["services"][0]["endpoints"], serde_json::json!([]));
    assert_eq!(first["next"], "orders");
    let second = made.get("/v1/services?limit=1&after=orders").await;
    assert_eq!(second["services"][0]["service"], "payments");
    assert_eq!(second["next"], Value::Null);
    for bad in ["limit=0", "limit=9999", "limit=x", "surprise=1"] {
        let (status, _) = made.ask("GET", &format!("/v1/services?{bad}"), "").await;
        assert_eq!(status, 400, "{bad}");
    }
}

#[tokio::test]
async fn ready_is_a_snapshot_stale_or_not_and_the_body_says_which() {
    let made = Made::start(false).await;
    assert_eq!(made.get("/readyz").await["stale"], false);
    made.snapshots.send_replace(Arc::new(sample(true)));
    let ready = made.get("/readyz").await;
    assert_eq!((&ready["ready"], &ready["stale"]), (&true.into(), &true.into()));
    made.snapshots.send_replace(Arc::default());
    let (status, body) = made.ask("GET", "/readyz", "").await;
    assert_eq!(status, 503);
    assert!(body.contains("no snapshot yet"), "{body}");
}

#[tokio::test]
async fn a_release_is_taken_at_the_unix_socket_and_needs_its_header() {
    let made = Made::start(false).await;
    let header = "x-pintle-request: 1\r\ncontent-length: 0\r\n";
    let (status, body) = made.ask("POST", "/v1/release/orders", header).await;
    assert_eq!(status, 403, "whoever reaches the TCP address is nobody in particular");
    assert!(body.contains("orders.sock"), "{body}");
    let (status, _) = made.order("POST", "/v1/release/orders", "").await;
    assert_eq!(status, 403);
    let (status, body) = made.order("POST", "/v1/release/orders", header).await;
    assert_eq!((status, body.as_str()), (200, r#"{"service":"orders","released":2}"#));
    let (status, _) = made.order("POST", "/v1/release/a%20b", header).await;
    assert_eq!(status, 400);
    let (status, _) = made.order("GET", "/v1/release/orders", header).await;
    assert_eq!(status, 405);
    let (status, _) = made.order("POST", "/v1/release/other", header).await;
    assert_eq!(status, 503);
}

/// 256 connections that say nothing, and one reader of each kind that does not read.
#[tokio::test]
async fn health_answers_when_every_place_is_taken() {
    let made = Made::start(false).await;
    let mut silent = Vec::new();
    for _ in 0..descriptors::admin() + 20 {
        silent.push(TcpStream::connect(made.address).await.unwrap());
    }
    for path in ["/healthz", "/readyz"].repeat(5) {
        let (status, body) = made.ask("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    let (status, _) = made.ask("GET", "/v1/services", "").await;
    assert_eq!(status, 503, "and nothing else does");
}

#[tokio::test]
async fn readers_that_do_not_read_are_cut_off() {
    let (near, mut far) = tokio::io::duplex(1 << 10);
    let mut stream = deadline::Deadline::new(near);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    stream.write_all(&[7; 1 << 10]).await.unwrap();
    stream.flush().await.unwrap();
    let cut = stream.write_all(&[7; 4 << 10]).await.unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed().as_secs(), deadline::TAKEN_WITHIN.as_secs());
    let mut taken = vec![0; 1 << 10];
    far.read_exact(&mut taken).await.unwrap();
}

#[tokio::test]
async fn only_hosts_that_dns_cannot_rebind_are_served() {
    let made = Made::start(false).await;
    for (host, expect) in [
        ("127.0.0.1:19100", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:19100", 200),
        ("pintle.internal:19100", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:19100", 403),
        ("", 403),
    ] {
        let answer = made
            .raw(&format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
            .await;
        let status = answer.split(' ').nth(1).unwrap();
        assert_eq!(status, expect.to_string(), "{host}");
    }
}

#[tokio::test]
async fn another_address_than_loopback_must_be_meant() {
    let options = |listen: &str, allow_remote| AdminOptions {
        agent: String::new(),
        listen: listen.parse().unwrap(),
        allow_remote,
        hosts: Vec::new(),
        socket: SocketOptions::at("/nowhere/orders.sock"),
    };
    let refused = bind(&options("0.0.0.0:0", false)).await;
    assert!(matches!(refused, Err(AdminError::Remote(_))));
    assert!(bind(&options("0.0.0.0:0", true)).await.is_ok());
    assert!(bind(&options("127.0.0.1:0", false)).await.is_ok());
}

#[tokio::test]
async fn events_come_as_they_happen_after_those_that_happened() {
    let made = Made::start(false).await;
    let activity = |text: &str| Activity {
        at: SystemTime::now(),
        kind: "registry",
        service: Some("orders".to_owned()),
        endpoint: None,
        text: text.to_owned(),
    };
    made.activities.send(activity("first\u{1b}")).unwrap();
    let mut stream = TcpStream::connect(made.address).await.unwrap();
    let request = "GET /v1/events?state=1 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut read_until = async |what: &str| {
        let mut buffer = [0; 65_536];
        while !seen.contains(what) {
            let count = timeout(SOON, stream.read(&mut buffer)).await.unwrap().unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen.clone()
    };
    let text = read_until("first").await;
    assert!(text.contains("text/event-stream"));
    assert!(text.contains("event: state"), "{text}");
    made.activities.send(activity("second")).unwrap();
    let text = read_until("second").await;
    assert!(!text.contains('\u{1b}'));
    let past = made.get("/v1/events?follow=false").await;
    let texts: Vec<_> = past["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["kind"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["proxy", "breaker", "registry", "registry"]);
}

#[tokio::test]
async fn event_streams_are_bounded() {
    let made = Made::start(false).await;
    let mut open = Vec::new();
    for _ in 0..MAX_STREAMS {
        let mut stream = TcpStream::connect(made.address).await.unwrap();
        let request = "GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        open.push(stream);
    }
    let (status, _) = made.ask("GET", "/v1/events", "").await;
    assert_eq!(status, 503);
}

#[tokio::test]
async fn a_body_or_head_that_is_too_large_is_refused() {
    let made = Made::start(false).await;
    let header = format!("x-long: {}\r\n", "a".repeat(20_000));
    let (status, _) = made.ask("GET", "/healthz", &header).await;
    assert_eq!(status, 431);
}
