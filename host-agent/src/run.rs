//! `pintle run`: everything started in order, signals heard, everything ended within a deadline.
//!
//! ```text
//!   start:  logs ─▶ sources and state (last good from disk) ─▶ bind socket, TCP, admin ─▶ serve
//!   HUP:    configuration and certificates are read again; what can't change is named
//!   TERM:   registered instances drain and go ─▶ streams end ─▶ state is written ─▶ exit 0
//! ```
//! A configuration that can't be used ends the start with exit 64 and, on SIGHUP, changes nothing.
//! A second signal ends the process at once. A task that ends, panics or stalls ends the agent in
//! the same order, with exit 70; the sources of services are started again instead.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pintle_settings::Settings;
use pintle_state::Snapshot;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::condition::Condition;
use crate::config::{Config, ConfigError, Flags};
use crate::exit::EX_SOFTWARE;
use crate::fleet::{Fleet, When};
use crate::link::{Snapshots, SourcesWatch, Standing};
use crate::logs::{self, Logs};
use crate::registration;
use crate::serve::admin::view::Given;
use crate::serve::admin::{self, Admin, Parts, Recent, Release, Releasing};
use crate::serve::descriptors;
use crate::serve::eds::Eds;
use crate::serve::interest::Interests;
use crate::serve::metrics::{Metrics, Names, Served};
use crate::serve::quota::Quotas;
use crate::serve::recall::Recall;
use crate::serve::socket::Socket;
use crate::serve::sync::{Sync, is_loaded};
use crate::serve::transport::{Proxies, TlsFiles};
use crate::source::{self, Running};
use crate::tasks::{self, Ended, Pulse, Stalled, Tasks};
use crate::updates::Updates;

/// Where the configuration comes from, kept for SIGHUP.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// The file.
    pub file: Option<PathBuf>,
    /// Flags.
    pub flags: Flags,
}

/// Why the agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Logging could not begin.
    #[error("log: {0}")]
    Logs(#[from] logs::LogError),
    /// The socket could not be made.
    #[error("socket: {0}")]
    Socket(#[from] crate::serve::socket::BindError),
    /// The TCP listener could not be made.
    #[error("tcp.listen {0}: {1}")]
    Tcp(std::net::SocketAddr, std::io::Error),
    /// Its certificates can't be used.
    #[error("tcp: {0}")]
    Tls(#[from] crate::serve::transport::TlsError),
    /// The admin address could not be made.
    #[error(transparent)]
    Admin(#[from] admin::AdminError),
    /// Signals can't be heard.
    #[error("signals: {0}")]
    Signals(std::io::Error),
    /// A task ended that should not have.
    #[error("the task {0}; the agent ends, so that it can be started anew")]
    Task(#[from] Ended),
    /// The system gives no thread.
    #[error("watchdog: {0}")]
    Watchdog(std::io::Error),
}

impl Origin {
    /// Reads it all again.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.file.as_deref(), environment(), &self.flags)
    }

    /// One section of it, the others not looked at.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn part<T: Settings>(&self, name: &str) -> Result<T, ConfigError> {
        Config::part(name, self.file.as_deref(), environment(), &self.flags)
    }
}

fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

impl Release for Updates {
    fn release(&self, service: String) -> Releasing {
        let updates = self.clone();
        Box::pin(async move {
            let released = Self::release(&updates, &service).await;
            released.map(|count| u64::try_from(count).unwrap_or(u64::MAX))
        })
    }
}

/// Runs until a signal.
///
/// # Errors
/// [`RunError`].
pub(crate) async fn run(origin: Origin) -> Result<(), RunError> {
    let config = origin.load()?;
    let logs = logs::start(&config.log)?;
    // Before anything answers: until it is heard, a SIGHUP would end the process.
    let mut signals = Signals::listen().map_err(RunError::Signals)?;
    let stop = CancellationToken::new();
    let sources_stop = CancellationToken::new();
    let mut running = source::start(config.sources.clone(), check_policy, sources_stop.clone());
    let fleet = Arc::new(Fleet::new(running.activities.clone(), running.outgoing.clone()));
    let recent = Recent::default();
    let mut readers = Tasks::new();
    let pulse = readers.pulse("ledger");
    let recall = if running.remembers { Recall::needless() } else { Recall::needed() };
    let ledger = Follow {
        fleet: Arc::clone(&fleet),
        recall: recall.clone(),
        sources: running.sources.clone(),
        standing: running.standing.clone(),
        logs: logs.clone(),
        pulse,
    };
    let ledger = ledger.run(running.snapshots.clone());
    readers.spawn("ledger", ledger);
    readers.spawn("activities", recent.clone().listen(running.activities.subscribe()));
    let (server, certificates, served) = proxies(&config, &running, &fleet, recall, &stop).await?;
    let mut servers = Tasks::new();
    servers.spawn_fallible("proxies' server", server.serve(stop.clone()));
    let listener = admin::bind(&config.admin).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        agent = config.sources.agent,
        socket = %config.socket.path.display(),
        admin = %listener.local_addr().unwrap_or(config.admin.listen),
        "the agent serves"
    );
    let admin = Admin::new(
        config.admin.clone(),
        Parts {
            snapshots: running.snapshots.clone(),
            sources: running.sources.clone(),
            fleet: Arc::clone(&fleet),
            metrics: Metrics::new(
                running.snapshots.clone(),
                running.sources.clone(),
                Arc::clone(&fleet),
                Some(served.clone()),
                config.max_endpoint_series,
                Names { agent: config.sources.agent.clone(), fleet: config.fleet.clone() },
            ),
            recent,
            release: Box::new(running.updates.clone()),
            given: Given::of(config.socket.path.clone(), &config.sources),
            served: Some(served),
            stop: stop.clone(),
        },
    );
    servers.spawn("admin socket", admin.clone().serve_unix(admin.bind_unix()?));
    servers.spawn("admin server", admin.serve(listener));
    let register_stop = CancellationToken::new();
    let mut registered = Tasks::new();
    if let Some(register) = config.register.clone() {
        let stop = register_stop.clone();
        registered.spawn("registration", registration::register(register, stop));
    }
    let mut sources = std::mem::take(&mut running.tasks);
    let pulses = [sources.pulses(), readers.pulses()].concat();
    tasks::watch(pulses, tasks::patience(), stop.clone(), stalled).map_err(RunError::Watchdog)?;
    let ended = tokio::select! {
        () = hear(&mut signals, &origin, &config, &logs, &running, &certificates) => Ok(()),
        ended = first(&mut sources, &mut servers, &mut readers, &mut registered) => Err(ended),
    };
    if let Err(ended) = &ended {
        tracing::error!("the task {ended}");
    }
    tracing::info!(deadline = ?config.deadline, "the agent stops");
    let orderly = async {
        register_stop.cancel();
        registered.join().await;
        stop.cancel();
        servers.join().await;
        sources_stop.cancel();
        sources.join().await;
    };
    tokio::select! {
        done = timeout(config.deadline, orderly) => if done.is_err() {
            tracing::warn!("the deadline is over; what is left is cut off");
        },
        () = signals.stop() => tracing::warn!("a second signal; what is left is cut off"),
    }
    Ok(ended?)
}

/// What ends by another's end has ended by then.
const MOMENT: Duration = Duration::from_millis(100);

/// The task of the agent that ended first, which none does while it serves. Others may end because
/// it did, and be seen before it: of those that end within a moment it is one with a reason, or
/// else the one that was started first.
async fn first(
    sources: &mut Tasks,
    servers: &mut Tasks,
    readers: &mut Tasks,
    registered: &mut Tasks,
) -> Ended {
    let mut next = async || {
        tokio::select! {
            ended = sources.ended() => ended,
            ended = servers.ended() => ended,
            ended = readers.ended() => ended,
            ended = registered.ended() => ended,
        }
    };
    let mut first = next().await;
    let moment = Instant::now() + MOMENT;
    while let Ok(other) = timeout_at(moment, next()).await {
        if other.precedes(&first) {
            first = other;
        }
    }
    first
}

/// Ends the process: an orderly end would wait for the very task that stands still.
fn stalled(stalled: Stalled) {
    tracing::error!("the task {stalled}");
    // Standard error may be closed; the exit code says it as well.
    let _ = writeln!(std::io::stderr(), "pintle: the task {stalled}; the agent ends");
    std::process::exit(EX_SOFTWARE.into());
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

type Certificates = Option<(TlsFiles, watch::Sender<Arc<rustls::ServerConfig>>)>;

async fn proxies(
    config: &Config,
    running: &Running,
    fleet: &Arc<Fleet>,
    recall: Recall,
    stop: &CancellationToken,
) -> Result<(Proxies, Certificates, Served), RunError> {
    let mut tcp = None;
    let mut certificates = None;
    if let Some((listen, files)) = &config.tcp {
        let listener =
            TcpListener::bind(listen).await.map_err(|error| RunError::Tcp(*listen, error))?;
        let (tx, rx) = watch::channel(files.load()?);
        tcp = Some((listener, rx));
        certificates = Some((files.clone(), tx));
    }
    let socket = Socket::bind(config.socket.clone())?;
    let interests = Interests::new(config.all_up_to);
    let eds = Eds::new(running.snapshots.clone(), Arc::clone(fleet), recall.clone(), stop.clone())
        .with_clusters(config.clusters.clone())
        .noting(interests.clone());
    let served = Served {
        file: socket.status(),
        quotas: Quotas::new(descriptors::proxies()),
        refusals: eds.refusals().clone(),
    };
    let sync = Sync::new(
        running.snapshots.clone(),
        Arc::clone(fleet),
        running.updates.clone(),
        recall,
        stop.clone(),
    );
    let proxies = Proxies {
        socket,
        tcp,
        sync: sync.sparing(interests),
        eds,
        fleet: Arc::clone(fleet),
        quotas: served.quotas.clone(),
    };
    Ok((proxies, certificates, served))
}

/// Waits for the signal to stop, and reloads on every SIGHUP until then.
async fn hear(
    signals: &mut Signals,
    origin: &Origin,
    config: &Config,
    logs: &Logs,
    running: &Running,
    certificates: &Certificates,
) {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            _ = signals.hangup.recv() => match origin.load() {
                Ok(fresh) => reload(config, &fresh, logs, running, certificates),
                Err(error) => {
                    tracing::error!(%error, "the new configuration is refused, the old one stays");
                }
            },
        }
    }
}

fn reload(
    old: &Config,
    fresh: &Config,
    logs: &Logs,
    running: &Running,
    certificates: &Certificates,
) {
    if let Err(error) = logs.reload(&fresh.log) {
        tracing::error!(%error, "the log level stays");
    }
    if let Some((files, tx)) = certificates {
        match files.load() {
            Ok(config) => {
                tx.send_replace(config);
            }
            Err(error) => tracing::error!(%error, "the old certificates stay"),
        }
    }
    let kept = running.reload(fresh.sources.clone()).unwrap_or_else(|error| {
        tracing::error!(%error, "the sources go on as they were");
        Vec::new()
    });
    let fixed = [
        ("socket", old.socket != fresh.socket),
        ("tcp", old.tcp != fresh.tcp),
        ("admin", old.admin != fresh.admin),
        ("register", old.register != fresh.register),
        ("serve.clusters", old.clusters != fresh.clusters),
        ("log.format", old.log.format != fresh.log.format),
        (
            "metrics",
            (old.max_endpoint_series, &old.fleet) != (fresh.max_endpoint_series, &fresh.fleet),
        ),
        ("shutdown.deadline", old.deadline != fresh.deadline),
    ];
    let fixed = fixed.into_iter().filter_map(|(section, changed)| changed.then_some(section));
    for section in kept.into_iter().chain(fixed) {
        tracing::warn!(section, "changed; takes effect with the next start");
    }
    tracing::info!("configuration and certificates were read again");
}

/// Tells the ledger of every snapshot and of time, and the sources how the agent stands.
struct Follow {
    fleet: Arc<Fleet>,
    recall: Recall,
    sources: SourcesWatch,
    standing: watch::Sender<Standing>,
    logs: Logs,
    pulse: Pulse,
}

impl Follow {
    async fn run(self, mut snapshots: Snapshots) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut report = interval(logs::REPORT_EVERY);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first = Arc::clone(&snapshots.borrow_and_update());
        self.published(&first);
        loop {
            self.pulse.beat();
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.published(&snapshot);
                }
                _ = second.tick() => {
                    self.fleet.tick(When::now());
                    self.stand(&snapshots.borrow());
                }
                _ = report.tick() => self.logs.report(),
            }
        }
    }

    fn published(&self, snapshot: &Arc<Snapshot>) {
        if is_loaded(snapshot) {
            self.recall.listed(Instant::now());
        }
        self.fleet.published(snapshot, When::now());
    }

    fn stand(&self, snapshot: &Snapshot) {
        let when = When::now();
        let proxies = self.fleet.proxies(when);
        let condition = Condition::of(snapshot, &self.sources.borrow(), &proxies, when.mono);
        let connected = || proxies.iter().filter(|proxy| proxy.connected);
        let behind = connected().filter(|proxy| !proxy.current);
        self.standing.send_replace(Standing {
            connected: connected().count(),
            current: connected().filter(|proxy| proxy.current).count(),
            behind: behind.map(|proxy| proxy.proxy.clone()).collect(),
            troubles: condition.troubles.iter().map(ToString::to_string).collect(),
        });
    }
}

/// Whether a policy is one that the module reads.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_policy(policy: &serde_json::Value) -> Result<(), pintle_state::BadPolicy> {
    Ok(pintle_policy::Policy::check(policy)?)
}
