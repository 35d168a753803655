//! A real HAProxy, to measure beside.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::process::{Process, Server, Spec};
use crate::{Port, Result, tools};

const READY: Duration = Duration::from_secs(10);
const CONFIG: &str = "haproxy.cfg";

/// One HAProxy with two threads and one frontend.
#[derive(Debug)]
pub struct HaProxy {
    process: Process,
    port: Port,
}

impl HaProxy {
    /// Before these servers, the one with the fewest connections first; `backend` and `server` are
    /// added to the backend and to each server's line.
    pub async fn start(servers: &[SocketAddr], backend: &str, server: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("pintle-haproxy-")?;
        let port = Port::take()?;
        let mut config = format!(
            "global\n  nbthread 2\n  maxconn 4096\n\
             defaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  timeout server 30s\n\
             frontend in\n  bind {}\n  default_backend all\n\
             backend all\n  balance leastconn\n  http-reuse always\n  {backend}\n",
            port.addr()
        );
        for (number, addr) in servers.iter().enumerate() {
            config += &format!("  server s{number} {addr} {server}\n");
        }
        let file = dir.path().join(CONFIG);
        std::fs::write(&file, config)?;
        // -db: it stays in the foreground.
        let args = vec!["-db".into(), "-f".into(), file.display().to_string()];
        let program = tools::haproxy()?;
        let spec = Spec { name: "haproxy".into(), program, args, envs: Vec::new() };
        let mut process = Process::spawn(spec, dir)?;
        let addr = port.addr();
        let ready = async || TcpStream::connect(addr).await.is_ok();
        process.wait_ready(READY, ready).await?;
        Ok(Self { process, port })
    }

    /// Where it takes requests.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }
}

impl Server for HaProxy {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
