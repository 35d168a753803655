//! Deployments and a lost node under load, on a real Envoy with the shipped configuration and its
//! retries: how long after its deletion an instance still gets requests, and how many of all fail.

use std::time::{Duration, Instant};

use etcd_client::{Client, PutOptions};
use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Envoy, EnvoyConfig, Error, Etcd, Instance, Load, Patience, Result, Upstream, http,
};
use tokio::net::{TcpSocket, TcpStream};

use crate::{Bound, Figures, PATIENCE, put};
use pintle_benches::transaction::failed;

const SERVICE: &str = "orders";
/// Requests a second.
const RATE: f64 = 300.0;
/// What may be on its way when nobody sends to an instance any more.
const LATE: Duration = Duration::from_secs(1);

struct Stage {
    client: Client,
    agent: Agent,
    load: Load,
    _servers: (Etcd, Envoy),
}

/// A registered instance, under a lease of its own.
struct Running {
    upstream: Upstream,
    lease: i64,
}

/// All of it, with fewer turns where it is brief.
pub async fn measure(figures: &mut Figures, brief: bool) -> Result<()> {
    let etcd = Etcd::start().await?;
    let client = Client::connect([etcd.url()], None).await.map_err(failed)?;
    let agent = Agent::builder().etcd(etcd.url()).start().await?;
    let config = EnvoyConfig::shipped()?.agent_socket(agent.socket()).wasm(PINTLE_PATH);
    let envoy = Envoy::start(config).await?;
    let load = Load::to(envoy.addr()).host(SERVICE).rate(RATE).timeout(Duration::from_secs(5));
    let mut stage = Stage { client, agent, load, _servers: (etcd, envoy) };
    let mut all = Vec::new();
    for number in 0..10 {
        all.push(stage.register(&format!("old-{number}")).await?);
    }
    stage.asked(&all).await?;

    // One comes, then one goes, without a drain.
    let load = stage.load.clone().start();
    let mut last = Duration::ZERO;
    let turns = if brief { 2 } else { 10 };
    for (number, place) in all.iter_mut().enumerate().take(turns) {
        let newcomer = stage.register(&format!("new-{number}")).await?;
        stage.asked(std::slice::from_ref(&newcomer)).await?;
        let old = std::mem::replace(place, newcomer);
        last = last.max(stage.delete(&old).await?);
    }
    let report = load.stop().await;
    put(figures, "rolling_last_request_ms", millis(last), Bound::AtMost(300.0));
    put(figures, "rolling_failed", report.failed() as f64, Bound::AtMost(0.0));
    put(figures, "rolling_requests", report.total() as f64, Bound::None);

    // From ten to two at once.
    let load = stage.load.clone().start();
    let deleted = Instant::now();
    for old in &all[2..] {
        stage.unregister(old).await?;
    }
    tokio::time::sleep(LATE).await;
    let last = all[2..].iter().map(|old| after(old, deleted)).max().unwrap_or_default();
    let report = load.stop().await;
    put(figures, "scale_down_last_request_ms", millis(last), Bound::AtMost(300.0));
    put(figures, "scale_down_failed", report.failed() as f64, Bound::AtMost(0.0));
    all.truncate(2);

    // Nodes that are lost with their leases: the ports of one refuse, those of the other are
    // silent.
    for (figure, failures, silent, most) in [
        ("node_refuses_gone_ms", "node_refuses_failed", false, 300.0),
        ("node_silent_gone_ms", "node_silent_failed", true, 4_000.0),
    ] {
        let mut lost = Vec::new();
        for number in 0..2 {
            lost.push(stage.register(&format!("{figure}-{number}")).await?);
        }
        stage.asked(&lost).await?;
        let load = stage.load.clone().start();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut holes = Vec::new();
        for one in &mut lost {
            let at = one.upstream.addr();
            one.upstream.close().await;
            if silent {
                holes.push(hole(at).await?);
            }
        }
        // What was in them is lost with them, and not asked twice.
        let deleted = Instant::now();
        for one in &lost {
            stage.client.lease_revoke(one.lease).await.map_err(failed)?;
        }
        stage.gone(&lost).await?;
        let took = deleted.elapsed();
        tokio::time::sleep(LATE).await;
        let report = load.since(deleted);
        load.stop().await;
        put(figures, figure, millis(took), Bound::AtMost(most));
        put(figures, failures, report.failed() as f64, Bound::AtMost(0.0));
    }
    Ok(())
}

impl Stage {
    async fn register(&mut self, name: &str) -> Result<Running> {
        let upstream = Upstream::start(name).await?;
        let lease = self.client.lease_grant(60, None).await.map_err(failed)?.id();
        let instance = Instance::of(SERVICE, &upstream);
        let options = PutOptions::new().with_lease(lease);
        let value = instance.value().to_string();
        self.client.put(instance.key(), value, Some(options)).await.map_err(failed)?;
        Ok(Running { upstream, lease })
    }

    async fn unregister(&mut self, old: &Running) -> Result<()> {
        let key = Instance::of(SERVICE, &old.upstream).key();
        self.client.delete(key, None).await.map_err(failed)?;
        Ok(())
    }

    /// Deletes one; how long after that its last request came.
    async fn delete(&mut self, old: &Running) -> Result<Duration> {
        let deleted = Instant::now();
        self.unregister(old).await?;
        tokio::time::sleep(LATE).await;
        Ok(after(old, deleted))
    }

    /// Sends requests until each of these has had one.
    async fn asked(&self, all: &[Running]) -> Result<()> {
        let mut patience = Patience::new(PATIENCE);
        while all.iter().any(|one| one.upstream.first_at().is_none()) {
            self.load.clone().run_for_secs(0.1).await;
            if !patience.lasts().await {
                return Err(Error::new("not every instance is asked"));
            }
        }
        Ok(())
    }

    /// Waits until the agent tells nobody of these any more.
    async fn gone(&self, lost: &[Running]) -> Result<()> {
        let mut patience = Patience::new(PATIENCE);
        loop {
            let told = http::get(self.agent.admin(), "/v1/services").await?.text();
            if !lost.iter().any(|one| told.contains(&format!("\"{}\"", one.upstream.addr()))) {
                return Ok(());
            }
            if !patience.lasts().await {
                return Err(Error::new("a lost node is still told of"));
            }
        }
    }
}

/// How long after `deleted` its last request came.
fn after(old: &Running, deleted: Instant) -> Duration {
    old.upstream.last_at().map_or(Duration::ZERO, |at| at.saturating_duration_since(deleted))
}

/// A port that answers no attempt to connect: its queue is full, and nobody takes from it.
async fn hole(at: std::net::SocketAddr) -> Result<(tokio::net::TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    let listener = socket.listen(1)?;
    let mut waiting = Vec::new();
    while let Ok(stream) =
        tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(at)).await
    {
        waiting.push(stream?);
    }
    Ok((listener, waiting))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
