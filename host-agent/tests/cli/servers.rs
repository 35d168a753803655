//! Every command against a server that is none: what it says of it, and how soon.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pintle_tests::Authority;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::{pintle, said};

/// What answers at an address, and is not what is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Accepts, and says nothing.
    Silent,
    /// HTTP/1.1, an answer that begins at once and never ends.
    Slow,
    /// Accepts, and hangs up.
    Closing,
    /// HTTP/1.1, which refuses everything.
    Http,
    /// NATS, of which JetStream and all others are silent.
    Nats,
    /// HTTP/2 of a process that hangs: pings, and no answer.
    Pinging,
    /// TLS, by an authority that nobody trusts.
    Tls,
}

const KINDS: [Kind; 7] =
    [Kind::Silent, Kind::Slow, Kind::Closing, Kind::Http, Kind::Nats, Kind::Pinging, Kind::Tls];

const NO_ANSWER: &str = "no answer";
const HUNG_UP: &str = "closed the connection";
const NO_HTTP: &str = "does not speak HTTP";
const NO_GRPC: &str = "does not speak gRPC";
const NO_TLS: &str = "does not speak TLS";
const NO_HANDSHAKE: &str = "ends the TLS handshake";

impl Kind {
    /// What is said of it by one of these, where HTTP is spoken to it. A server that hangs up is
    /// heard before what it has said, or after.
    fn by_http(self) -> &'static [&'static str] {
        match self {
            Self::Silent => &["no answer within 5 s"],
            Self::Slow => &["no answer within 5 s", "is of another server"],
            Self::Closing => &[HUNG_UP],
            Self::Http => &["with 400 Bad Request"],
            Self::Nats | Self::Pinging | Self::Tls => &[NO_HTTP, HUNG_UP],
        }
    }

    fn by_nats(self) -> &'static [&'static str] {
        match self {
            Self::Closing => &[HUNG_UP],
            // Who waits for the agents' words asks JetStream afterwards.
            Self::Nats => &[NO_ANSWER, "answered within"],
            _ => &["no answer within 2 s", HUNG_UP],
        }
    }

    fn by_nats_in_tls(self) -> &'static [&'static str] {
        match self {
            Self::Nats => &[NO_TLS, "no answer within 2 s"],
            _ => &["no answer within 2 s", HUNG_UP],
        }
    }

    fn by_grpc(self) -> &'static [&'static str] {
        match self {
            Self::Silent | Self::Pinging => {
                &["answer within 3s", "answer within 5 s", "answer in time"]
            }
            Self::Closing => &[HUNG_UP],
            Self::Slow | Self::Http | Self::Nats | Self::Tls => &[NO_GRPC, HUNG_UP],
        }
    }

    fn by_grpc_in_tls(self) -> &'static [&'static str] {
        match self {
            Self::Silent => &["answer within 3s", "answer within 5 s", "answer in time"],
            Self::Closing => &[HUNG_UP, NO_HANDSHAKE],
            Self::Tls => &["of no authority that is trusted here"],
            Self::Slow | Self::Http | Self::Nats | Self::Pinging => &[NO_TLS, HUNG_UP],
        }
    }

    /// Starts it; it lives as long as the test.
    fn start(self, tls: &Arc<ServerConfig>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let tls = Arc::clone(tls);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = Arc::clone(&tls);
                // Whoever asks may leave at any time.
                thread::spawn(move || self.serve(stream, tls));
            }
        });
        at
    }

    fn serve(self, mut stream: TcpStream, tls: Arc<ServerConfig>) -> std::io::Result<()> {
        let mut bytes = [0; 4096];
        match self {
            Self::Closing => {}
            Self::Silent => drip(&mut stream, b"", b"")?,
            Self::Slow => {
                let _ = stream.read(&mut bytes)?;
                drip(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b" ")?;
            }
            Self::Pinging => {
                // Empty SETTINGS, then PING after PING (RFC 9113, 6.5 and 6.7).
                let settings = b"\0\0\0\x04\0\0\0\0\0";
                drip(&mut stream, settings, b"\0\0\x08\x06\0\0\0\0\0........")?;
            }
            Self::Http => {
                let _ = stream.read(&mut bytes)?;
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")?;
            }
            Self::Nats => {
                stream.write_all(
                    b"INFO {\"version\":\"2.10.0\",\"max_payload\":1048576,\"headers\":true}\r\n",
                )?;
                while let count @ 1.. = stream.read(&mut bytes)? {
                    if bytes[..count].windows(4).any(|it| it == b"PING") {
                        stream.write_all(b"PONG\r\n")?;
                    }
                }
            }
            Self::Tls => {
                let mut tls = ServerConnection::new(tls).map_err(std::io::Error::other)?;
                tls.complete_io(&mut stream)?;
                drip(&mut stream, b"", b"")?;
            }
        }
        Ok(())
    }
}

/// Says something at once, and then something again and again, until the other end goes.
fn drip(stream: &mut TcpStream, first: &[u8], more: &[u8]) -> std::io::Result<()> {
    stream.write_all(first)?;
    stream.set_read_timeout(Some(Duration::from_millis(250)))?;
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(_) => stream.write_all(more)?,
        }
    }
}

fn acceptor(authority: &Authority) -> Arc<ServerConfig> {
    let identity = authority.issue(&["127.0.0.1"]).unwrap();
    let certificate = CertificateDer::from_pem_file(&identity.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&identity.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key);
    Arc::new(config.unwrap())
}

/// What an address's protocol is taken for, with what is to be said of its server.
type Expect = Vec<&'static [&'static str]>;

/// Commands that end, and what they say.
fn commands(kind: Kind, at: &str) -> Vec<(Vec<String>, Expect)> {
    let (http, nats) = (kind.by_http(), kind.by_nats());
    let url = |scheme: &str| format!("{scheme}://{at}");
    let mut rows: Vec<(&str, Vec<String>, Expect)> = Vec::new();
    let mut by_http = vec!["services", "events --follow", "version", "release orders --local"];
    let mut by_nats = vec!["fleet", "drain orders/1", "dlq list"];
    if kind == Kind::Silent {
        by_http.extend([
            "services orders",
            "services --watch",
            "explain orders",
            "breakers",
            "events",
            "proxies",
            "sources",
            "overlays",
            "policy show orders",
        ]);
        by_nats.extend(["release orders", "bypass orders", "breaker clear orders/1"]);
    }
    for line in by_http {
        rows.push((line, vec!["--admin".to_owned(), at.to_owned()], vec![http]));
    }
    for line in by_nats {
        rows.push((line, vec!["--nats".to_owned(), url("nats")], vec![nats]));
    }
    rows.push(("fleet", vec!["--nats".to_owned(), url("tls")], vec![kind.by_nats_in_tls()]));
    let all = format!("--admin {at} --envoy {at} --nats {} --etcd ", url("nats"));
    for (scheme, etcd) in [("http", kind.by_grpc()), ("https", kind.by_grpc_in_tls())] {
        let all = format!("{all}{}", url(scheme));
        let all = all.split(' ').map(ToOwned::to_owned).collect();
        rows.push(("check", all, vec![etcd, http, nats]));
    }
    rows.into_iter()
        .map(|(line, more, expect)| {
            (line.split(' ').map(ToOwned::to_owned).chain(more).collect(), expect)
        })
        .collect()
}

/// Processes that try again until they are told to stop.
fn runners(kind: Kind, at: &str) -> Vec<(String, Expect)> {
    let instance = "--service orders --id orders-1 --address 10.0.0.1 --port 80";
    let (plain, tls) = (kind.by_grpc(), kind.by_grpc_in_tls());
    let agent = "run --agent-id edge-1 --admin 127.0.0.1:0 --socket";
    vec![
        (format!("register --etcd http://{at} {instance}"), vec![plain, &["orders/orders-1"]]),
        (format!("register --etcd https://{at} {instance}"), vec![tls, &["orders/orders-1"]]),
        (
            format!("{agent} DIR/plain.sock --etcd http://{at} --nats nats://{at}"),
            vec![plain, kind.by_nats()],
        ),
        (
            format!("{agent} DIR/tls.sock --etcd https://{at} --nats tls://{at}"),
            vec![tls, kind.by_nats_in_tls()],
        ),
    ]
}

/// A process whose lines are read when it has ended; killed on drop.
struct Runner {
    child: Child,
    log: std::path::PathBuf,
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Runner {
    fn start(line: &str, trusted: &std::path::Path, log: std::path::PathBuf) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_pintle"))
            .args(line.split(' '))
            .env_clear()
            .env("SSL_CERT_FILE", trusted)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Waits until it has said all of these, then tells it to stop, and gives what it said.
    fn ended(mut self, at: &str, expect: &Expect) -> String {
        let since = Instant::now();
        let said = |log| std::fs::read_to_string(log).unwrap();
        let all = |text: &str| text.contains(at) && expect.iter().all(|of| says(text, of));
        while !all(&said(&self.log)) && since.elapsed() < Duration::from_secs(30) {
            assert!(self.child.try_wait().unwrap().is_none(), "{}", said(&self.log));
            thread::sleep(Duration::from_millis(50));
        }
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        let said = said(&self.log);
        assert!(status.success(), "{status:?}: {said}");
        said
    }
}

fn says(text: &str, one_of: &[&str]) -> bool {
    one_of.iter().any(|it| text.contains(it))
}

/// Each command gives up within the time that docs/operations.md names, the agent and `register`
/// try again and end when they are told to; all of them name the server, and what to do, in words.
#[test]
fn a_server_that_is_none_is_named_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (known, unknown) = (Authority::new().unwrap(), Authority::new().unwrap());
    let acceptor = acceptor(&unknown);
    let began = Instant::now();
    let mut ending = Vec::new();
    let mut running = Vec::new();
    for kind in KINDS {
        let at = kind.start(&acceptor);
        for (line, expect) in runners(kind, &at) {
            let dir = dir.path().join(format!("{kind:?}"));
            std::fs::create_dir_all(&dir).unwrap();
            let line = line.replace("DIR", dir.to_str().unwrap());
            let log = dir.join(format!("{}.log", running.len()));
            let runner = Runner::start(&line, &known.certificate(), log);
            running.push((kind, at.clone(), line, expect, runner));
        }
        for (arguments, expect) in commands(kind, &at) {
            let line = arguments.join(" ");
            let ends = thread::spawn(move || {
                let began = Instant::now();
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                (said(&pintle(&arguments)), began.elapsed())
            });
            ending.push((kind, at.clone(), line, expect, ends));
        }
    }
    let mut wrong = Vec::new();
    let mut judge = |kind: Kind, at: &str, line: &str, expect: &Expect, said: &str| {
        let told = said.contains(at) && expect.iter().all(|of| says(said, of));
        let remedy = says(said, &["-> ", "--etcd) names", "--no-wait", "no agent answers"])
            || line.starts_with("register");
        // What only a type's own printing has.
        let dump = says(said, &["Error(", "kind:", "code: '", "grpc request error", "Elapsed"]);
        if !told || !remedy || dump {
            wrong.push(format!("{kind:?}: {line}\n{expect:?}\n{said}"));
        }
    };
    for (kind, at, line, expect, runner) in running {
        judge(kind, &at, &line, &expect, &runner.ended(&at, &expect));
    }
    for (kind, at, line, expect, ends) in ending {
        let (said, took) = ends.join().unwrap();
        judge(kind, &at, &line, &expect, &said);
        println!("{kind:?}: {line}: {took:?}");
    }
    assert!(wrong.is_empty(), "{} of them\n{}", wrong.len(), wrong.join("\n"));
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}
