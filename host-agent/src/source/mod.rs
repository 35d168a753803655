//! The sources, and the wiring of everything between them and the servers.
//!
//! ```text
//!   etcd, kubernetes ──┐
//!   file ──────────────┼─▶ Updates ─▶ publish (owns State) ─▶ Snapshots ─▶ whoever serves
//!   nats ──────────────┘◀─ Outgoing ◀── whoever serves
//! ```
//! [`start`] is what `main` calls, once, within a tokio runtime:
//!
//! ```ignore
//! let running = source::start(config, policy_check, shutdown.clone());
//! serve(running.snapshots.clone(), running.outgoing.clone(), running.sources.clone(), ..);
//! running.updates.release("orders").await?;     // `pintle release orders`
//! running.reload(new_config)?;                  // SIGHUP: reconnects, reads secrets and certificates again
//! shutdown.cancel();
//! running.join().await;                         // state written to disk, transitions sent
//! ```
//! Sources never end before shutdown: whatever happens to what they talk to, they report it in
//! [`Sources`], wait with full jitter, at most 2 s, and connect again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pintle_contract::Endpoint;
use pintle_policy::Policy;
use pintle_policy::select::Demand;
use pintle_settings::Invalid;
use pintle_state::{PolicyCheck, Settings, State};
use rand::RngExt as _;
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::link::{Activities, Outgoing, Snapshots, SourceStatus, Sources, SourcesWatch, Standing};
use crate::publish::{self, Board, Clock};
use crate::tasks::{Tasks, Why, restarting};
use crate::updates::Updates;

mod config;
pub mod etcd;
pub mod file;
pub mod formats;
pub mod jetstream;
pub mod kubernetes;
mod leases;
mod relay;
mod settings;

pub use config::{FileConfig, SourcesConfig, StateConfig};
pub use etcd::EtcdConfig;
pub use formats::{FormatName, SourceConfig};
pub use jetstream::NatsConfig;
pub use kubernetes::KubernetesConfig;
pub(crate) use settings::text;
pub use settings::{Secret, SecretRef, Tls, Unreadable};

/// For how long a source may give nothing where it has no time to reconcile of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines that a reader of activities may be behind.
const ACTIVITIES: usize = 1024;
/// Reconnecting waits at most this long.
const RECONNECT_CAP: Duration = Duration::from_secs(2);
/// The first wait; doubles up to the cap.
const RECONNECT_BASE: Duration = Duration::from_millis(100);
/// From the beginning of one attempt to that of the next there is at least this.
const RECONNECT_PACE: Duration = Duration::from_secs(1);

/// Everything that [`start`] started.
#[derive(Debug)]
pub struct Running {
    /// The newest snapshot. At start it is the last good one from disk, if there was one, marked
    /// stale.
    pub snapshots: Snapshots,
    /// Whether there was a last good state on disk.
    pub remembers: bool,
    /// Where updates go; `release` is there.
    pub updates: Updates,
    /// Where reported transitions go.
    pub outgoing: Outgoing,
    /// Lines for the status page; `subscribe` to read.
    pub activities: Activities,
    /// How the sources do.
    pub sources: SourcesWatch,
    /// Told to the commands that ask the fleet; the ledger's to write.
    pub standing: watch::Sender<Standing>,
    config: watch::Sender<Arc<SourcesConfig>>,
    /// The tasks, each by its name.
    pub tasks: Tasks,
}

impl Running {
    /// Takes another configuration over: sources reconnect, secrets and certificates are read
    /// again. What they were built with stays, such as `agent`, `state`, and whether a source is
    /// there at all; the names of what would have been another.
    ///
    /// # Errors
    /// What stays does not go with what is new; then everything stays as it is.
    pub fn reload(&self, config: SourcesConfig) -> Result<Vec<&'static str>, Invalid> {
        let (config, kept) = self.config.borrow().take_over(config)?;
        self.config.send_replace(Arc::new(config));
        Ok(kept)
    }

    /// Waits until all tasks have ended, which they do after shutdown.
    pub async fn join(self) {
        self.tasks.join().await;
    }
}

/// Loads the last good state, and starts the state's task and the configured sources.
///
/// Ready when it returns: no source has been waited for. Must be called within a tokio runtime.
/// Nothing is an error here: a disk that cannot be read is an alarm, a server that cannot be
/// reached is tried again.
pub fn start(
    config: SourcesConfig,
    check_policy: PolicyCheck,
    shutdown: CancellationToken,
) -> Running {
    let clock = Clock::new();
    let mut disk = config.state.dir.as_deref().map(Disk::new);
    let saved = disk.as_mut().and_then(Disk::resume);
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let started = u64::try_from(started.as_millis()).unwrap_or(u64::MAX);
    let before = saved.as_ref().map_or(0, |saved| saved.epoch);
    let etcd = config.etcd.clone().unwrap_or_default();
    let mut state = State::new(Settings {
        agent: config.agent.clone(),
        epoch: started.max(before.saturating_add(1)),
        services: etcd.services,
        policies: etcd.policies,
        addresses: config.state.addresses(),
        budget: usize::try_from(config.state.budget).unwrap_or(usize::MAX),
        protection: config.state.protection(),
        decides: config.decides(),
        check_policy,
        demand,
        vm_budget: config.state.vm_budget,
    });
    let remembers = saved.is_some();
    if let Some(saved) = saved {
        state.restore(saved, clock.now());
    }
    let resume = state.stream();
    let (activities, _) = broadcast::channel(ACTIVITIES);
    let (board, sources) = Board::new();
    board.change(|sources| {
        sources.etcd.enabled = config.etcd.is_some();
        sources.nats.enabled = config.nats.is_some();
        sources.file.enabled = config.file.is_some();
        sources.kubernetes.enabled = config.kubernetes.is_some();
        for status in
            [&mut sources.etcd, &mut sources.kubernetes, &mut sources.nats, &mut sources.file]
        {
            status.heard = Some(std::time::Instant::now());
            status.patience = PATIENCE;
        }
    });
    let mut tasks = Tasks::new();
    let (updates, snapshots) = publish::start(
        state,
        clock,
        disk,
        board.clone(),
        activities.clone(),
        shutdown.clone(),
        &mut tasks,
    );
    let buffer = config.nats.as_ref().map_or(1, |nats| nats.buffer);
    let (outgoing, reported) = mpsc::channel(usize::try_from(buffer).unwrap_or(1).max(1));
    let (etcd, nats) = (config.etcd.is_some(), config.nats.is_some());
    let (file, kubernetes) = (config.file.is_some(), config.kubernetes.is_some());
    let agent = config.agent.clone();
    let (config, reader) = watch::channel(Arc::new(config));
    let (standing, standing_reader) = watch::channel(Standing::default());
    let source = Context {
        config: reader,
        updates: updates.clone(),
        snapshots: snapshots.clone(),
        standing: standing_reader,
        board,
        activities: activities.clone(),
        shutdown,
    };
    if etcd {
        let context = source.clone();
        tasks.spawn("keeper of etcd", context.restarting("etcd", |all| &mut all.etcd, etcd::run));
    }
    if file {
        let context = source.clone();
        tasks.spawn(
            "keeper of the file",
            context.restarting("file", |all| &mut all.file, file::run),
        );
    }
    if kubernetes {
        let context = source.clone();
        tasks.spawn(
            "keeper of kubernetes",
            context.restarting("kubernetes", |all| &mut all.kubernetes, kubernetes::run),
        );
    }
    let to_fleet = nats.then(|| {
        let (to_fleet, of_fleet) = mpsc::channel(1);
        let events = jetstream::run(source.clone(), resume, check_policy, of_fleet);
        tasks.spawn("nats", events);
        to_fleet
    });
    tasks.spawn("relay", relay::run(source, agent, reported, to_fleet));
    Running {
        snapshots,
        remembers,
        updates,
        outgoing,
        activities,
        sources,
        standing,
        config,
        tasks,
    }
}

/// What a service with this policy holds of every VM; what no proxy can read holds nothing.
fn demand(policy: &Value, endpoints: &[Endpoint]) -> Demand {
    let select = match policy {
        Value::Null => pintle_policy::select::Policy::default(),
        policy => Policy::resolve([policy]).unwrap_or_default().select,
    };
    Demand::of(&select, endpoints)
}

/// What every source is given.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) config: watch::Receiver<Arc<SourcesConfig>>,
    pub(crate) updates: Updates,
    /// What is served, for agents and commands that ask.
    pub(crate) snapshots: Snapshots,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) board: Board,
    pub(crate) activities: Activities,
    pub(crate) shutdown: CancellationToken,
}

impl Context {
    /// Keeps a source running that finds its place by itself; its status says when it had to.
    async fn restarting<F>(
        self,
        name: &'static str,
        status: fn(&mut Sources) -> &mut SourceStatus,
        run: fn(Self) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let told = |why: &Why| {
            self.board.change(|sources| {
                let status = status(sources);
                status.connected = false;
                status.error = Some(format!("its task {why}; it is started again"));
                status.restarts = status.restarts.saturating_add(1);
            });
            self.tell(format!("{name}: the task {why}; it is started again"));
        };
        restarting(name, self.shutdown.clone(), told, || run(self.clone())).await;
    }

    /// What is missing of NATS though events come, by what it is about; `None` when it is well.
    /// Logged and told when it is news.
    pub(crate) fn warn(&self, about: &'static str, warning: Option<String>) {
        let mut news = false;
        self.board.change(|sources| {
            let warnings = &mut sources.nats.warnings;
            news = warnings.get(about) != warning.as_ref();
            match warning.clone() {
                Some(warning) => warnings.insert(about, warning),
                None => warnings.remove(about),
            };
        });
        match warning {
            Some(warning) if news => {
                tracing::warn!(about, "nats: {warning}");
                self.tell(format!("nats: {warning}"));
            }
            None if news => tracing::info!(about, "nats: well again"),
            _ => {}
        }
    }

    /// A line on the status page.
    pub(crate) fn tell(&self, text: String) {
        // Nobody may be listening.
        let _ = self.activities.send(crate::link::Activity {
            at: SystemTime::now(),
            kind: "source",
            service: None,
            endpoint: None,
            text,
        });
    }
}

/// Waits before the next attempt: anything from nothing to a bound that doubles up to 2 s, so that
/// a fleet that lost its server together does not come back together.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let bound = RECONNECT_BASE.saturating_mul(1 << self.failures.min(10)).min(RECONNECT_CAP);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    /// When to connect again after an attempt that began at `began`: short waits in a row would be
    /// a burst of connections upon a server that is in trouble. Who would be too early is put off
    /// by a second and a draw, since a second alone would keep a fleet in step.
    pub(crate) fn reconnect(&mut self, began: Instant) -> Instant {
        let (soon, paced) = (Instant::now() + self.next(), began + RECONNECT_PACE);
        if soon >= paced {
            return soon;
        }
        let rest = RECONNECT_CAP - RECONNECT_PACE;
        paced + rest.mul_f64(rand::rng().random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_are_drawn_up_to_two_seconds_and_connections_are_a_second_apart() {
        let mut backoff = Backoff::default();
        let first = (0..100).map(|_| Backoff::default().next()).max().unwrap();
        assert!(first <= RECONNECT_BASE, "{first:?}");
        let later: Vec<_> = (0..1000).map(|_| backoff.next()).collect();
        let over = |bound: Duration| later.iter().filter(|wait| **wait > bound).count();
        assert_eq!(over(RECONNECT_CAP), 0);
        for quarter in 1..4 {
            let expected = 1000 - 250 * quarter as usize;
            assert!(over(RECONNECT_CAP / 4 * quarter).abs_diff(expected) < 80, "{quarter}");
        }
        let began = Instant::now();
        let again: Vec<_> = (0..1000).map(|_| Backoff::default().reconnect(began)).collect();
        assert!(
            again.iter().all(|at| (began + RECONNECT_PACE..=began + RECONNECT_CAP).contains(at))
        );
        let late = again.iter().filter(|at| **at > began + Duration::from_millis(1_500)).count();
        assert!(late.abs_diff(500) < 80, "{late}");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(Backoff::default().reconnect(began) <= Instant::now() + RECONNECT_BASE);
    }
}
