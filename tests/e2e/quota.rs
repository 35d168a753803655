//! How many proxies one agent takes over TCP, and how it says that it takes no more: by its log, by
//! its metrics and by `pintle check`, while those whom it has go on.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use pintle_contract::{Hello, Schema, Up, Version};
use pintle_tests::{Agent, Authority, Etcd, Identity, Instance, Port, Server as _};
use pintle_tests::{assert_eventually, http};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::support::PATIENCE;

/// Of all proxies, and of those with one certificate, as `docs/istio.md` has it.
const ALL: usize = 256;
const OF_ONE: usize = 192;

/// Connects with this certificate.
fn connector(authority: &Authority, identity: &Identity) -> TlsConnector {
    let certificate = |path: &Path| CertificateDer::from_pem_file(path).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&authority.certificate())).expect("an authority");
    let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(&identity.certificate)], key)
        .expect("an identity");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// The tasks of one connection, which end with it.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().expect("no panic").spawn(async { drop(task.await) });
    }
}

/// A proxy: a connection with a Watch stream.
struct Proxy {
    body: Incoming,
    /// gRPC's status where it is there at once, which a refusal's is.
    status: Option<String>,
    connection: Tasks,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.connection.0.lock().expect("no panic").abort_all();
    }
}

impl Proxy {
    async fn connect(tls: &TlsConnector, port: &Port, name: String) -> Self {
        let stream = TcpStream::connect(port.addr()).await.expect("a connection");
        let agent = ServerName::try_from("agent").expect("a name");
        let io = TokioIo::new(tls.connect(agent, stream).await.expect("mutual TLS"));
        let tasks = Tasks::default();
        let shaken = hyper::client::conn::http2::handshake(tasks.clone(), io).await;
        let (mut sender, connection) = shaken.expect("HTTP/2");
        hyper::rt::Executor::execute(&tasks, connection);
        let hello = Up::Hello(Hello { proxy: name, worker: 1, fence: 1, have: Version::default() });
        let hello = hello.encode_for(Schema::Two);
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(hello.len() as u32);
        framed.put_slice(&hello);
        let said = stream::once(async { Ok(Frame::data(framed.freeze())) });
        let up: BoxStream<'static, Result<Frame<Bytes>, Infallible>> =
            said.chain(stream::pending()).boxed();
        let request = hyper::Request::post("https://agent/pintle.v1.Sync/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(up))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.headers().get("grpc-status");
        let status = status.and_then(|it| it.to_str().ok()).map(str::to_owned);
        Self { body: response.into_body(), status, connection: tasks }
    }

    /// Whether it is told of this service.
    async fn hears_of(&mut self, service: &str) -> bool {
        let mut heard = Vec::new();
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(PATIENCE, self.body.frame()).await {
            heard.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            if heard.windows(service.len()).any(|window| window == service.as_bytes()) {
                return true;
            }
        }
        false
    }
}

/// The codes that `pintle check` finds at the agent's socket.
async fn found(agent: &Agent) -> Vec<String> {
    let (socket, admin) = (agent.socket().display().to_string(), agent.admin().to_string());
    let args = ["check", "--no-envoy", "-o", "json", "--socket", &socket, "--admin", &admin];
    let done = Agent::command(&args).await.expect("pintle");
    let said: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    let findings = said["findings"].as_array().expect("findings").iter();
    findings.filter_map(|it| Some(it["code"].as_str()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_takes_256_proxies_over_tcp_and_says_aloud_that_it_takes_no_more() {
    let authority = Authority::new().expect("an authority");
    let [server, one, other] =
        ["agent", "one", "other"].map(|name| authority.issue(&[name]).expect("a certificate"));
    let (etcd, port) = (Etcd::start().await.expect("etcd"), Port::take().expect("a port"));
    let config = json!({"tcp": {"listen": port.addr(), "cert": server.certificate,
        "key": server.key, "client_ca": authority.certificate()}});
    let builder = Agent::builder().etcd(etcd.url());
    let mut agent = builder.config("agent.yaml", &config.to_string()).start().await.expect("it");
    assert!(!found(&agent).await.contains(&"quota-full".to_owned()));

    let (one, other) = (connector(&authority, &one), connector(&authority, &other));
    let mut proxies = Vec::new();
    for (tls, most) in [(&one, OF_ONE), (&other, ALL)] {
        while proxies.len() < most {
            let proxy = Proxy::connect(tls, &port, format!("envoy-{}", proxies.len())).await;
            assert_eq!(proxy.status, None, "{}", proxies.len());
            proxies.push(proxy);
        }
        let beyond = Proxy::connect(tls, &port, "beyond".to_owned()).await;
        // RESOURCE_EXHAUSTED
        assert_eq!(beyond.status.as_deref(), Some("8"), "of {most}");
    }

    for (name, value) in [("used", ALL), ("limit", ALL), ("refused_total", 2)] {
        let quota = format!("pintle_quota_{name}");
        let shown = agent.metric(&quota, &["kind=\"watches\""]).await;
        assert_eq!(shown, Some(value as f64), "{quota}");
    }
    assert!(found(&agent).await.contains(&"quota-full".to_owned()));
    let log = agent.process().log();
    let line = log.lines().find(|line| line.contains("its quota is used up")).expect("a line");
    for part in ["kind=\"watches\"", "owner=certificate ", "limit=192"] {
        assert!(line.contains(part), "{part}: {line}");
    }

    // Whoever is there is served on, and one who goes makes room.
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    etcd.register(&Instance::new("orders", "orders-1", at)).await.expect("a registration");
    for proxy in [0, OF_ONE, ALL - 1] {
        assert!(proxies[proxy].hears_of("orders-1").await, "{proxy}");
    }
    proxies.truncate(ALL - 1);
    assert_eventually!(PATIENCE, {
        let next = Proxy::connect(&other, &port, "next".to_owned()).await;
        next.status.is_none()
    });
    let ready = http::get(agent.admin(), "/readyz").await.expect("an answer");
    assert_eq!(ready.status, 200);
}
