//! A real nats-server with JetStream on, and just enough of its text protocol to watch from
//! outside.
//!
//! The protocol by hand, not a client crate: what is needed here is to see *when* a message passed
//! the server (a core subscription also receives what a stream captures) and to publish one, which
//! is thirty lines. Tests that consume durably use `async-nats` themselves.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::process::{Process, Server, Spec};
use crate::{Error, Port, Result, http, tools};

const READY: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(5);

/// One nats-server.
#[derive(Debug)]
pub struct Nats {
    process: Process,
    client: Port,
    monitor: Port,
}

/// A subscription on core NATS.
#[derive(Debug)]
pub struct Tap {
    wire: BufReader<TcpStream>,
}

/// A message as it passed.
#[derive(Clone, Debug)]
pub struct Message {
    /// When this process read it.
    pub at: Instant,
    /// Its subject.
    pub subject: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Nats {
    /// A server with JetStream in a directory of its own.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same with more arguments, for example `["--user", "u", "--pass", "p"]`.
    pub async fn start_with(args: &[&str]) -> Result<Self> {
        let dir = TempDir::with_prefix("pintle-nats-")?;
        let (client, monitor) = (Port::take()?, Port::take()?);
        let (port, http_port) = (client.number().to_string(), monitor.number().to_string());
        let store = dir.path().join("store").display().to_string();
        let own = ["-a", "127.0.0.1", "-p", &port, "-m", &http_port, "-js", "-sd", &store];
        let args = own.iter().chain(args).map(|a| (*a).to_string()).collect();
        let program = tools::nats_server()?;
        let spec = Spec { name: "nats-server".into(), program, args, envs: Vec::new() };
        let mut nats = Self { process: Process::spawn(spec, dir)?, client, monitor };
        nats.wait_ready().await?;
        Ok(nats)
    }

    async fn wait_ready(&mut self) -> Result<()> {
        let (client, monitor) = (self.client.addr(), self.monitor.addr());
        let healthy = async || {
            let reply = http::get(monitor, "/healthz").await;
            reply.is_ok_and(|r| r.status == 200) && TcpStream::connect(client).await.is_ok()
        };
        self.process.wait_ready(READY, healthy).await
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.client.addr()
    }

    /// Where the monitoring endpoint answers (`/varz`, `/jsz`, `/connz`).
    pub fn monitor(&self) -> SocketAddr {
        self.monitor.addr()
    }

    /// `nats://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.addr())
    }

    /// Starts it again on the same port with the same store.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.restart()?;
        self.wait_ready().await
    }

    /// Starts it again without its store: streams and consumers are gone.
    pub async fn restart_empty(&mut self) -> Result<()> {
        self.process.kill9();
        let _ = std::fs::remove_dir_all(self.process.dir().join("store"));
        self.restart().await
    }

    /// Listens to a subject (wildcards as NATS has them); from its return on nothing is missed.
    pub async fn tap(&self, subject: &str) -> Result<Tap> {
        let mut wire = self.connect().await?;
        wire.write_all(format!("SUB {subject} 1\r\nPING\r\n").as_bytes()).await?;
        expect_pong(&mut wire).await?;
        Ok(Tap { wire })
    }

    /// Publishes on core NATS; returns when the server has it. A stream that captures the subject
    /// stores it, without saying so.
    pub async fn publish(&self, subject: &str, payload: &[u8]) -> Result<()> {
        let mut wire = self.connect().await?;
        let mut bytes = format!("PUB {subject} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\nPING\r\n");
        wire.write_all(&bytes).await?;
        expect_pong(&mut wire).await
    }

    async fn connect(&self) -> Result<BufReader<TcpStream>> {
        let mut wire = BufReader::new(TcpStream::connect(self.addr()).await?);
        let mut info = String::new();
        wire.read_line(&mut info).await?;
        wire.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n").await?;
        Ok(wire)
    }
}

impl Server for Nats {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Tap {
    /// The next message, waiting for at most `budget`.
    pub async fn next(&mut self, budget: Duration) -> Result<Message> {
        tokio::time::timeout(budget, self.read())
            .await
            .map_err(|_| Error::new(format!("no message on NATS within {budget:?}")))?
    }

    async fn read(&mut self) -> Result<Message> {
        loop {
            let mut line = String::new();
            if self.wire.read_line(&mut line).await? == 0 {
                return Err(Error::new("nats-server closed the subscription"));
            }
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields.as_slice() {
                ["PING"] => self.wire.write_all(b"PONG\r\n").await?,
                // With headers the first of the two lengths is theirs.
                ["HMSG", subject, .., head, total] => {
                    let (head, total) = (length(head)?, length(total)?);
                    let mut message = self.payload(subject, total).await?;
                    message.payload.drain(..head.min(total));
                    return Ok(message);
                }
                ["MSG", subject, .., total] => return self.payload(subject, length(total)?).await,
                _ => {}
            }
        }
    }

    async fn payload(&mut self, subject: &str, length: usize) -> Result<Message> {
        let mut payload = vec![0; length + 2];
        self.wire.read_exact(&mut payload).await?;
        payload.truncate(length);
        Ok(Message { at: Instant::now(), subject: subject.to_string(), payload })
    }
}

fn length(field: &str) -> Result<usize> {
    field.parse().map_err(|_| Error::new(format!("not a length: {field}")))
}

async fn expect_pong(wire: &mut BufReader<TcpStream>) -> Result<()> {
    loop {
        let mut line = String::new();
        tokio::time::timeout(ANSWER, wire.read_line(&mut line)).await??;
        match line.trim_end() {
            "PONG" => return Ok(()),
            "" => return Err(Error::new("nats-server closed the connection")),
            refused if refused.starts_with("-ERR") => return Err(Error::new(refused)),
            _ => {}
        }
    }
}
