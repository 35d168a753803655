//! The agent: the `pintle` binary, as a user runs it.
//!
//! Every flag that the fixtures and the demo use is written in this file and nowhere else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Process, Server, Spec};
use crate::{Error, Etcd, EtcdCluster, Nats, Patience, Port, Result, Written, http, tools};

const READY: Duration = Duration::from_secs(30);
/// For commands that ask something and end.
const COMMAND: Duration = Duration::from_secs(30);

/// A running `pintle run`.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    admin: Port,
    socket: PathBuf,
}

/// What an agent is started with.
#[derive(Clone, Debug, Default)]
pub struct AgentBuilder {
    etcd: Vec<String>,
    nats: Option<String>,
    allow: Option<String>,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    files: Vec<(String, String)>,
    under: Vec<String>,
}

impl AgentBuilder {
    /// Reads the registry from here; several times for several members.
    pub fn etcd(mut self, url: impl Into<String>) -> Self {
        self.etcd.push(url.into());
        self
    }

    /// Takes events from here.
    pub fn nats(mut self, url: impl Into<String>) -> Self {
        self.nats = Some(url.into());
        self
    }

    /// Which loopback and private addresses endpoints may have; 127.0.0.0/8 unless said, because
    /// every upstream here is there and the agent's own default refuses loopback.
    pub fn allow(mut self, range: &str) -> Self {
        self.allow = Some(range.into());
        self
    }

    /// One more flag or value.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Starts it by a command that does something to its surroundings and then becomes the agent,
    /// whose own command line follows; `{dir}` stands for the agent's directory.
    pub fn under(mut self, command: &[&str]) -> Self {
        self.under = command.iter().map(|word| (*word).into()).collect();
        self
    }

    /// `--config`: a file with this text, in the agent's directory.
    pub fn config(mut self, file: &str, text: &str) -> Self {
        self.files.push((file.into(), text.into()));
        self
    }

    /// Starts it and waits until `/readyz` says yes.
    pub async fn start(self) -> Result<Agent> {
        let mut agent = self.launch()?;
        agent.wait_ready(READY).await?;
        Ok(agent)
    }

    /// Starts it without waiting, for tests of the start itself.
    pub fn launch(self) -> Result<Agent> {
        let dir = TempDir::with_prefix("pintle-agent-")?;
        let admin = Port::take()?;
        let socket = dir.path().join("run/agent.sock");
        let state = dir.path().join("state");
        let mut args = vec!["run".to_string()];
        let mut flag = |name: &str, value: String| args.extend([name.to_string(), value]);
        for (file, text) in &self.files {
            let path = dir.path().join(file);
            std::fs::write(&path, text)?;
            flag("--config", path.display().to_string());
        }
        for url in self.etcd {
            flag("--etcd", url);
        }
        if let Some(url) = self.nats {
            flag("--nats", url);
        }
        flag("--socket", socket.display().to_string());
        flag("--admin", admin.addr().to_string());
        flag("--state-dir", state.display().to_string());
        flag("--allow", self.allow.unwrap_or_else(|| "127.0.0.0/8".into()));
        args.extend(self.args);
        let mut program = tools::agent()?;
        if let Some((first, rest)) = self.under.split_first() {
            let dir = dir.path().display().to_string();
            let rest = rest.iter().map(|word| word.replace("{dir}", &dir));
            let command: Vec<String> = rest.chain([program.display().to_string()]).collect();
            args.splice(0..0, command);
            program = first.into();
        }
        let spec = Spec { name: "pintle".into(), program, args, envs: self.envs };
        Ok(Agent { process: Process::spawn(spec, dir)?, admin, socket })
    }
}

impl Agent {
    /// An agent with neither registry nor events.
    pub fn builder() -> AgentBuilder {
        AgentBuilder::default()
    }

    /// An agent with both, as most tests want it.
    pub fn with(etcd: &Etcd, nats: &Nats) -> AgentBuilder {
        AgentBuilder::default().etcd(etcd.url()).nats(nats.url())
    }

    /// An agent that knows all members of a cluster.
    pub fn with_cluster(etcd: &EtcdCluster) -> AgentBuilder {
        etcd.urls().into_iter().fold(AgentBuilder::default(), AgentBuilder::etcd)
    }

    /// Waits until `/readyz` says yes.
    pub async fn wait_ready(&mut self, budget: Duration) -> Result<()> {
        let admin = self.admin.addr();
        let ready = async || http::get(admin, "/readyz").await.is_ok_and(|r| r.status == 200);
        self.process.wait_ready(budget, ready).await
    }

    /// The socket that Envoy connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The admin address.
    pub fn admin(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// The directory of its last good state.
    pub fn state_dir(&self) -> PathBuf {
        self.process.dir().join("state")
    }

    /// Starts the same command again and waits until it is ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.wait_ready(READY).await
    }

    /// Starts the same command again without waiting.
    pub fn relaunch(&mut self) -> Result<()> {
        self.process.restart()
    }

    /// SIGTERM, then waits until it has ended, with success.
    pub async fn terminate(&mut self, budget: Duration) -> Result<()> {
        let status = self.process.terminate(budget).await?;
        match status.success() {
            true => Ok(()),
            false => Err(Error::new(format!("pintle ended with {status}"))),
        }
    }

    /// `/v1/services`.
    pub async fn services(&self) -> Result<Value> {
        http::get(self.admin(), "/v1/services").await?.json()
    }

    /// Waits until the registry was read up to this write and every worker of every connected Envoy
    /// holds what came of it; an error after 30 s, with what the agent knows of its proxies.
    pub async fn settled(&self, written: Written) -> Result<()> {
        /// What was read is published within this time: a service's table at most every 150 ms.
        const PUBLISHED: Duration = Duration::from_millis(250);
        let mut patience = Patience::new(READY);
        let mut settling = Patience::new(PUBLISHED);
        loop {
            let sources = http::get(self.admin(), "/v1/sources").await?.json()?;
            let proxies = http::get(self.admin(), "/v1/proxies").await?.json()?;
            let read = sources["etcd"]["position"].as_i64() >= Some(written.revision);
            let list = proxies["proxies"].as_array().or_else(|| proxies.as_array());
            let mut connected =
                list.into_iter().flatten().filter(|p| p["connected"] == true).peekable();
            // A proxy is expected to have the workers that have spoken; there is more than its main
            // thread.
            let whole = |p: &Value| {
                let workers = p["workers"].as_array().map_or(0, Vec::len);
                p["current"] == true && workers > 1 && p["expected"] == workers
            };
            if !read || connected.peek().is_none() || !connected.all(whole) {
                settling = Patience::new(PUBLISHED);
            }
            if !settling.lasts().await {
                return Ok(());
            }
            if !patience.lasts().await {
                return Err(Error::new(format!("not settled at {written:?}: {proxies} {sources}")));
            }
        }
    }

    /// `/metrics`.
    pub async fn metrics(&self) -> Result<String> {
        Ok(http::get(self.admin(), "/metrics").await?.text())
    }

    /// The sum of a metric's samples whose labels contain all of `labels` (written `name="value"`);
    /// `None` when there is no such sample.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.metrics().await.ok()?;
        let mut sum = None;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            if !rest.starts_with(['{', ' ']) || !labels.iter().all(|l| rest.contains(l)) {
                continue;
            }
            let value = rest.rsplit('}').next().unwrap_or(rest).split_whitespace().next()?;
            *sum.get_or_insert(0.0) += value.parse::<f64>().ok()?;
        }
        sum
    }

    /// User and system time that it has used.
    pub fn cpu_time(&self) -> Duration {
        self.process.cpu_time()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes()
    }

    /// `pintle register`, kept running: the instance lives as long as the value does; drop it for a
    /// crash, `terminate` it for a drain and a deletion.
    pub fn register(
        etcd: &str,
        service: &str,
        id: &str,
        addr: SocketAddr,
        more: &[&str],
    ) -> Result<Process> {
        let (address, port) = (addr.ip().to_string(), addr.port().to_string());
        let own = ["register", "--etcd", etcd, "--service", service, "--id", id];
        let at = ["--address", &address, "--port", &port];
        let args = own.iter().chain(&at).chain(more).map(|a| (*a).to_string()).collect();
        let program = tools::agent()?;
        let spec = Spec { name: format!("register-{id}"), program, args, envs: Vec::new() };
        Process::spawn(spec, TempDir::with_prefix("pintle-register-")?)
    }

    /// `pintle drain`: stops new traffic to one instance for so long; an agent has said that it
    /// did.
    pub async fn drain(nats: &str, service: &str, id: &str, ttl: Duration) -> Result<()> {
        Self::order_drain(nats, service, id, ttl, &[]).await
    }

    /// The same, published without asking any agent.
    pub async fn drain_unasked(nats: &str, service: &str, id: &str, ttl: Duration) -> Result<()> {
        Self::order_drain(nats, service, id, ttl, &["--no-wait"]).await
    }

    async fn order_drain(
        nats: &str,
        service: &str,
        id: &str,
        ttl: Duration,
        more: &[&str],
    ) -> Result<()> {
        let ttl = format!("{}s", ttl.as_secs());
        let instance = format!("{service}/{id}");
        let args = ["drain", "--nats", nats, &instance, "--ttl", &ttl];
        succeeded(Self::command(&[&args, more].concat()).await?).map(|_| ())
    }

    /// `pintle services`, as it prints it.
    pub async fn services_table(admin: SocketAddr) -> Result<String> {
        succeeded(Self::command(&["services", "--admin", &admin.to_string()]).await?)
    }

    /// Runs the binary with these arguments until it ends, for at most 30 s.
    pub async fn command(args: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new(tools::agent()?);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        Ok(tokio::time::timeout(COMMAND, command.output()).await??)
    }
}

impl Server for Agent {
    fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn succeeded(done: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    match done.status.success() {
        true => Ok(said),
        false => {
            let complaint = String::from_utf8_lossy(&done.stderr);
            Err(Error::new(format!("pintle ended with {}: {said}{complaint}", done.status)))
        }
    }
}
