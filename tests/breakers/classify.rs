//! Every way in which a request can end, provoked, and whether it opened a breaker.
//!
//! Each case is a service of one endpoint with panic off, so that an open breaker answers the next
//! request itself: what counts lets exactly five through, what does not lets all twenty. That next
//! request must come within half a second, before the endpoint is tried as the last resort.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_tests::{
    Behaviour, EnvoyConfig, Fault, Grpc, Instance, Latency, Port, Upstream, assert_eventually, http,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{PATIENCE, World, call, refused, strict, upstream};

/// Requests of a kind that must not count.
const MANY: usize = 20;

/// How a case's requests are sent.
#[derive(Clone, Copy)]
enum Client {
    /// HTTP/1.1, reads the answer whole.
    Patient,
    /// gRPC over HTTP/2.
    Grpc,
    /// Closes its connection 30 ms after the request.
    GoneBefore,
    /// Closes its connection after the answer's head.
    GoneDuring,
    /// HTTP/2: resets the stream 100 ms after the request, and keeps the connection.
    Resets,
    /// HTTP/2: resets the stream after the answer's head, and keeps the connection.
    ResetsDuring,
}

/// Service, what its endpoint does, the client, the status seen (0: none), and whether it counts.
type Case = (&'static str, fn() -> Behaviour, Client, u16, bool);

const CASES: [Case; 19] = [
    ("success", Behaviour::default, Client::Patient, 200, false),
    ("not-found", || status(404), Client::Patient, 404, false),
    ("status-500", || status(500), Client::Patient, 500, true),
    ("status-503", || status(503), Client::Patient, 503, true),
    ("route-timeout", || Behaviour::failing(Fault::Hang), Client::Patient, 504, true),
    ("per-try-timeout", || Behaviour::failing(Fault::Hang), Client::Patient, 504, true),
    ("reset-before", || Behaviour::failing(Fault::Reset), Client::Patient, 503, true),
    ("reset-after", || Behaviour::failing(Fault::CloseMidBody), Client::GoneDuring, 200, true),
    ("gone-before", slow, Client::GoneBefore, 0, false),
    ("gone-during", large, Client::GoneDuring, 200, false),
    ("h2-reset", slow, Client::Resets, 0, false),
    ("h2-reset-during", large, Client::ResetsDuring, 200, false),
    ("grpc-ok", || grpc(0, true), Client::Grpc, 200, false),
    ("grpc-not-found", || grpc(5, false), Client::Grpc, 200, false),
    ("grpc-headers", || grpc(14, false), Client::Grpc, 200, true),
    ("grpc-trailers", || grpc(14, true), Client::Grpc, 200, true),
    ("other-filter", Behaviour::default, Client::Patient, 503, false),
    ("no-healthy", Behaviour::default, Client::Patient, 503, false),
    ("overflow", Behaviour::default, Client::Patient, 503, false),
];

fn status(code: u16) -> Behaviour {
    Behaviour { status: code, ..Behaviour::default() }
}

fn slow() -> Behaviour {
    Behaviour::slow(Latency::Fixed(Duration::from_millis(400)))
}

fn large() -> Behaviour {
    // More than all buffers on the way hold.
    Behaviour { body_bytes: Some(16 << 20), ..Behaviour::default() }
}

fn grpc(status: u32, in_trailers: bool) -> Behaviour {
    Behaviour { grpc: Some(Grpc { status, in_trailers }), ..Behaviour::default() }
}

/// No retries, but where a case says so; and what provokes the cases that need Envoy's help.
fn patch(config: EnvoyConfig) -> EnvoyConfig {
    let mut config = config.retry(|retry| *retry = json!({"num_retries": 0}));
    for name in CASES.map(|case| case.0).iter().filter(|name| name.starts_with("grpc")) {
        let protocol = "/typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config";
        let http2 = json!({"http2_protocol_options": {}});
        *config.cluster(name).pointer_mut(protocol).expect("a protocol") = http2;
    }
    route(&mut config, "route-timeout")["timeout"] = json!("0.1s");
    route(&mut config, "per-try-timeout")["retry_policy"] =
        json!({"num_retries": 0, "per_try_timeout": "0.1s"});
    config.cluster("overflow")["circuit_breakers"]["thresholds"][0]["max_pending_requests"] =
        json!(0);
    // The table has an endpoint, Envoy's cluster none.
    let mut config = config.static_hosts("no-healthy", &[]);
    let base = "type.googleapis.com/envoy.extensions.filters.http.lua.v3";
    let lua =
        json!({"name": "envoy.filters.http.lua", "typed_config": {"@type": format!("{base}.Lua")}});
    // Not a second until a connection is closed after half an answer.
    config.http_connection_manager()["delayed_close_timeout"] = json!("0.05s");
    let filters = config.http_connection_manager()["http_filters"].as_array_mut();
    let filters = filters.expect("filters");
    filters.insert(filters.len() - 1, lua);
    let reply = r#"function envoy_on_request(handle) handle:respond({[":status"] = "503"}, "another filter") end"#;
    host(&mut config, "other-filter")["typed_per_filter_config"] = json!({"envoy.filters.http.lua":
        {"@type": format!("{base}.LuaPerRoute"), "source_code": {"inline_string": reply}}});
    host(&mut config, "no-route")["routes"][0]["match"] = json!({"prefix": "/elsewhere"});
    let tries = |on: &str, more: Value| {
        let mut retry = json!({"retry_on": on, "num_retries": 1,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"}});
        retry
            .as_object_mut()
            .into_iter()
            .for_each(|r| r.extend(more.as_object().cloned().unwrap_or_default()));
        retry
    };
    host(&mut config, "retried")["retry_policy"] = tries("5xx", json!({}));
    host(&mut config, "exhausted")["retry_policy"] = tries("5xx", json!({}));
    host(&mut config, "per-try")["retry_policy"] = tries("5xx", json!({"per_try_timeout": "0.5s"}));
    config
}

fn host<'a>(config: &'a mut EnvoyConfig, name: &str) -> &'a mut Value {
    let hosts = config.http_connection_manager()["route_config"]["virtual_hosts"].as_array_mut();
    hosts.into_iter().flatten().find(|host| host["name"] == name).expect("a virtual host")
}

fn route<'a>(config: &'a mut EnvoyConfig, name: &str) -> &'a mut Value {
    &mut host(config, name)["routes"][0]["route"]
}

/// Sends one request; its status, and whether the breaker answered it.
async fn send(world: &World, service: &str, client: Client) -> (u16, bool) {
    let addr = world.envoy.addr();
    match client {
        Client::Patient => {
            let reply = world.get(service).await;
            (reply.status, refused(&reply))
        }
        Client::Grpc => {
            let reply = http::send_h2(addr, call(service)).await.expect("an answer");
            (reply.status, refused(&reply))
        }
        Client::GoneBefore | Client::GoneDuring => {
            let mut stream = TcpStream::connect(addr).await.expect("Envoy accepts");
            let get = format!("GET / HTTP/1.1\r\nhost: {service}\r\n\r\n");
            stream.write_all(get.as_bytes()).await.expect("Envoy reads");
            let mut head = [0; 1024];
            let wait = match client {
                Client::GoneBefore => Duration::from_millis(30),
                _ => PATIENCE,
            };
            let read = tokio::time::timeout(wait, stream.read(&mut head)).await;
            let Ok(Ok(read @ 1..)) = read else { return (0, false) };
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            if code == 200 && service == "reset-after" {
                // Waits for Envoy to end it, which is how the client sees this fault.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
            (code, head.contains("x-pintle-reason: no-endpoint"))
        }
        Client::Resets | Client::ResetsDuring => {
            let stream = TcpStream::connect(addr).await.expect("Envoy accepts");
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .expect("HTTP/2");
            let connection = tokio::spawn(connection);
            let uri = format!("http://{service}/");
            let request =
                ::http::Request::get(uri).body(Full::new(Bytes::new())).expect("a request");
            let answer = sender.send_request(request);
            // Dropped when the time is up, which resets the stream, as dropping the answer does.
            let during = matches!(client, Client::ResetsDuring);
            let wait = if during { PATIENCE } else { Duration::from_millis(100) };
            let answer = tokio::time::timeout(wait, answer).await;
            let mut told = (0, false);
            if let Ok(Ok(answer)) = answer {
                let reason = answer.headers().get("x-pintle-reason").is_some();
                told = (answer.status().as_u16(), reason);
                if !during {
                    let _ = answer.into_body().collect().await;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            connection.abort();
            told
        }
    }
}

/// Services of other cases than those of the table.
const MORE: [&str; 6] = ["refused", "black-hole", "no-route", "retried", "exhausted", "per-try"];

async fn world() -> World {
    let names: Vec<&str> = CASES.iter().map(|case| case.0).chain(MORE).collect();
    World::start(&names, strict, patch).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_end_counts_as_the_table_says() {
    let world = world().await;
    let (mut upstreams, mut written) = (Vec::new(), None);
    for (service, behaviour, ..) in CASES {
        let one = upstream(service).await;
        one.set(behaviour());
        written = Some(world.etcd.register(&Instance::of(service, &one)).await);
        upstreams.push(one);
    }
    let last = CASES[CASES.len() - 1].0;
    assert_eventually!(PATIENCE, world.envoy.hosts(last).await.is_ok_and(|h| h.len() == 1));
    world.settled(written.expect("a case").expect("a registration")).await;

    let (mut wrong, mut trips) = (Vec::new(), Vec::new());
    for ((service, _, client, code, counts), one) in CASES.into_iter().zip(&upstreams) {
        let expected = if counts { 5 } else { MANY };
        let seen = std::sync::Mutex::new(std::collections::BTreeMap::<u16, usize>::new());
        let sent = world
            .until_refused(expected, MANY, async || {
                let (code, refused) = send(&world, service, client).await;
                if !refused {
                    *seen.lock().expect("seen").entry(code).or_default() += 1;
                }
                refused
            })
            .await;
        let seen = seen.into_inner().expect("seen");
        println!("{service:15} {seen:?} reached {} opened after {sent:?}", one.requests());
        if sent.before != expected || seen != [(code, expected + sent.probes)].into() {
            wrong.push(format!(
                "{service}: opened after {sent:?}, not {expected}; statuses {seen:?}"
            ));
        }
        trips.push((service, if counts { 1 + sent.probes } else { 0 }));
    }
    assert_eq!(wrong, Vec::<String>::new());
    for (service, trips) in trips {
        let told = async || world.trips(service).await == trips as f64;
        assert_eventually!(PATIENCE, told().await, "{trips} trips of {service}");
    }

    no_route_counts_nothing(&world).await;
    no_connection_counts(&world).await;
    every_attempt_counts_for_its_own_endpoint(&world).await;
    let unknown = world.envoy.stat("wasmcustom.pintle_unknown_service_total").await;
    assert_eq!(unknown.unwrap_or(0), 0, "no request went out without a table, and uncounted");
    world.no_traps().await;
}

async fn no_route_counts_nothing(world: &World) {
    let one = upstream("no-route").await;
    world.serve("no-route", &[&one]).await;
    for _ in 0..MANY {
        assert_eq!(world.get("no-route").await.status, 404);
    }
    assert_eq!((one.requests(), world.trips("no-route").await), (0, 0.0));
}

async fn no_connection_counts(world: &World) {
    let mut gone = upstream("refused").await;
    world.serve("refused", &[&gone]).await;
    gone.close().await;
    let hole = BlackHole::open().await;
    let instance = Instance::new("black-hole", "hole", hole.port.addr());
    let written = world.etcd.register(&instance).await.expect("a registration");
    assert_eventually!(PATIENCE, world.envoy.hosts("black-hole").await.is_ok_and(|h| h.len() == 1));
    world.settled(written).await;
    let mut probes = 0;
    for service in ["refused", "black-hole"] {
        let sent = world
            .until_refused(5, MANY, async || {
                let reply = world.get(service).await;
                assert_eq!(reply.status, 503);
                refused(&reply)
            })
            .await;
        println!("{service:15} opened after {sent:?}");
        assert_eq!(sent.before, 5, "{service}");
        probes = sent.probes as u64;
    }
    let timeouts = world.envoy.stat("cluster.black-hole.upstream_cx_connect_timeout").await;
    assert_eq!(timeouts, Some(5 + probes), "it was the connect timeout");
}

/// Two endpoints each, one of them bad; the client sees what the good one says.
async fn every_attempt_counts_for_its_own_endpoint(world: &World) {
    let bad = upstream("bad").await;
    let good = upstream("good").await;
    bad.set(Behaviour::failing(Fault::Status(503)));
    world.serve("retried", &[&bad, &good]).await;
    drive(world, "retried", &bad).await;
    assert_eq!((bad.requests(), good.requests()), (5, 40), "a retried success opened it");

    let hung = upstream("hung").await;
    let well = upstream("well").await;
    hung.set(Behaviour::failing(Fault::Hang));
    world.serve("per-try", &[&hung, &well]).await;
    drive(world, "per-try", &hung).await;
    assert_eq!((hung.requests(), well.requests()), (5, 40), "a per-try timeout opened it");

    let pair = [upstream("first").await, upstream("second").await];
    pair.iter().for_each(|one| one.set(Behaviour::failing(Fault::Status(503))));
    world.serve("exhausted", &[&pair[0], &pair[1]]).await;
    let sent = world
        .until_refused(5, MANY, async || {
            let reply = world.get("exhausted").await;
            assert_eq!(reply.status, 503);
            refused(&reply)
        })
        .await;
    let requests = pair.each_ref().map(Upstream::requests);
    assert!(sent.before == 5 && (requests == [5, 5] || sent.probes > 0), "{sent:?} {requests:?}");
}

async fn drive(world: &World, service: &str, bad: &Upstream) {
    let mut before = 0;
    for _ in 0..40 {
        assert_eq!(world.get(service).await.status, 200);
        if before < 5 && bad.requests() == 5 {
            tokio::time::sleep(crate::support::SETTLED).await;
        }
        before = bad.requests();
    }
}

/// A listener whose queue is full: the kernel drops what else wants in.
struct BlackHole {
    port: Port,
    _listener: tokio::net::TcpListener,
    _waiting: Vec<TcpStream>,
}

impl BlackHole {
    async fn open() -> Self {
        let port = Port::take().expect("a port");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(port.addr()).expect("bound");
        let listener = socket.listen(1).expect("listens");
        let mut waiting = Vec::new();
        let short = Duration::from_millis(200);
        while let Ok(Ok(stream)) =
            tokio::time::timeout(short, TcpStream::connect(port.addr())).await
        {
            waiting.push(stream);
        }
        Self { port, _listener: listener, _waiting: waiting }
    }
}
