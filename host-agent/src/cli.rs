//! The command line: `pintle run` is the agent, everything else asks or orders something.
//!
//! Commands that read ask a running agent's admin address; commands that order something publish an
//! event, so that they reach every agent; `register` speaks to etcd alone. `check` speaks to all of
//! them and to Envoy.
//!
//! Exit codes: 0 done; 1 the answer is no (something is wrong, not found, or refused); 64 usage or
//! configuration (as sysexits has it); 69 what is needed can't be reached; 70 a task of the agent ended.

mod check;
mod client;
mod explain;
mod fleet;
mod init;
mod orders;
mod pages;
mod policy;
mod reads;
mod release;
mod state;
mod table;

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub use check::{Code, Finding, State, judge};

use crate::config::{ADMIN, ConfigError, Flags, LogFormat};
use crate::exit::{EX_NO, EX_SOFTWARE, EX_UNAVAILABLE, EX_USAGE};
use crate::run::{self, Origin, RunError};

/// Why a command ended without doing what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The answer is no.
    #[error("{0}")]
    No(String),
    /// The command or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// What is needed can't be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The agent can't go on.
    #[error("{0}")]
    Broken(String),
    /// Standard output is gone.
    #[error("output: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    const fn code(&self) -> u8 {
        match self {
            Self::No(_) | Self::Output(_) => EX_NO,
            Self::Usage(_) => EX_USAGE,
            Self::Unavailable(_) => EX_UNAVAILABLE,
            Self::Broken(_) => EX_SOFTWARE,
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Endpoint selection, circuit breaking and trace propagation for Envoy: the agent and its tools.
#[derive(Debug, Parser)]
#[command(
    name = "pintle",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done; 1 the answer is no; 64 usage or configuration; \
                  69 something can't be reached.\n\n\
                  Begin with:\n  \
                  pintle run --etcd http://127.0.0.1:2379 --nats nats://127.0.0.1:4222\n  \
                  pintle check --envoy 127.0.0.1:9901\n  \
                  pintle services --watch"
)]
struct Cli {
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value = "table", env = "PINTLE_OUTPUT")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent.
    #[command(after_help = "Examples:\n  \
        pintle run --config /etc/pintle/agent.yaml\n  \
        pintle run --file services.yaml --allow 127.0.0.0/8 --socket /tmp/pintle/agent.sock\n\n\
        A flag wins over the environment, the environment over the file. SIGTERM ends in order, \
        SIGHUP reads configuration and certificates again.")]
    Run(Box<RunArgs>),
    /// Writes the files of a first installation: Envoy's, the agent's, its unit and a compose file.
    #[command(after_help = "Examples:\n  \
        pintle init --service web,static=127.0.0.1:8001,static=127.0.0.1:8002\n  \
        pintle init /etc/pintle --service orders --service ledger,grpc \\\n    \
        --service vault,tls=vault.internal --etcd https://etcd-1:2379\n\n\
        Clients ask for a service by its name in the Host header; what is nobody's goes to the first.")]
    Init(Box<init::InitArgs>),
    /// Finds out what is wrong, and what to do about it.
    #[command(after_help = "Examples:\n  pintle check\n  \
        pintle check --config agent.yaml --envoy 127.0.0.1:9901\n  \
        pintle check --config agent.yaml --envoy-config envoy.yaml\n\n\
        The running agent is asked for its servers, unless --etcd, --nats or --config names them. \
        Every finding has a code; docs/troubleshooting.md has a section for each.")]
    Check(CheckArgs),
    /// Shows services and their endpoints.
    #[command(after_help = "Examples:\n  pintle services\n  pintle services orders --watch\n  \
        pintle services --watch --sort trouble\n  \
        pintle services --rejected --output json")]
    Services(ServicesArgs),
    /// Says which endpoints a service's requests go to, and why not to the others.
    #[command(after_help = "Examples:\n  pintle explain orders\n  \
        pintle explain orders --metadata version=2 --output json\n\n\
        As the agent knows it: a proxy has a zone and layers of policy of its own.")]
    Explain(ExplainArgs),
    /// Shows the breakers that are not closed, and why.
    #[command(after_help = "Examples:\n  pintle breakers\n  pintle breakers --all --output json")]
    Breakers(BreakersArgs),
    /// Orders a breaker by hand, in the whole fleet.
    #[command(subcommand)]
    Breaker(BreakerCommand),
    /// Shows what happened, and with --follow what happens.
    #[command(after_help = "Examples:\n  pintle events\n  pintle events --follow --output json")]
    Events(EventsArgs),
    /// Publishes an event.
    #[command(after_help = "Examples:\n  \
        pintle publish endpoint orders/orders-1 '{\"action\":\"weight\",\"weight\":5,\"ttl\":\"10m\"}'\n  \
        pintle publish service orders '{\"policy\":{\"select\":{\"strategy\":\"random\"}},\"ttl\":\"1h\"}'\n  \
        pintle publish trace orders '{\"ratio\":1,\"ttl\":\"5m\"}'")]
    Publish(PublishArgs),
    /// Lets nothing new go to an endpoint, for a while.
    #[command(after_help = "Example:\n  pintle drain orders/orders-1 --ttl 60s")]
    Drain(OrderArgs),
    /// Ends a drain.
    #[command(after_help = "Example:\n  pintle undrain orders/orders-1")]
    Undrain(EndArgs),
    /// Leaves a service to Envoy's own policy, for a while: no selection, no breaker.
    #[command(after_help = "Examples:\n  pintle bypass orders --ttl 10m\n  \
        pintle bypass orders --off\n\n\
        Where the module writes original_dst, Envoy has no policy of its own, and the proxy refuses it.")]
    Bypass(SwitchArgs),
    /// Decides and counts for a service, for a while, and lets Envoy's own policy choose.
    #[command(after_help = "Examples:\n  pintle shadow orders --ttl 1h\n  \
        pintle shadow orders --off")]
    Shadow(SwitchArgs),
    /// Moves a service to the endpoints of a tag or a region, for a while.
    #[command(after_help = "Examples:\n  pintle failover orders --region eu-2 --ttl 1h\n  \
        pintle failover orders --tag dr\n  pintle failover orders --off\n\n\
        Where nobody eligible matches, a proxy does not apply it, and says so in its log.")]
    Failover(FailoverArgs),
    /// Messages that could not be used.
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Shows the Envoys of the agent, and whether they have the newest tables.
    #[command(after_help = "Examples:\n  pintle proxies\n  pintle proxies --watch")]
    Proxies(WatchArgs),
    /// Shows where the agent's state comes from, and how that does.
    #[command(after_help = "Examples:\n  pintle sources\n  pintle sources -o json")]
    Sources(WatchArgs),
    /// Shows the events in force, and when they end.
    #[command(after_help = "Examples:\n  pintle overlays\n  pintle overlays --watch")]
    Overlays(WatchArgs),
    /// Shows and checks policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Shows all agents of the fleet, and where they differ in what they serve.
    #[command(after_help = "Example:\n  pintle fleet --nats nats://127.0.0.1:4222")]
    Fleet(FleetArgs),
    /// Shows this binary's release, and the running agent's.
    #[command(after_help = "Example:\n  pintle version")]
    Version(AdminArgs),
    /// Confirms removals held back: in the whole fleet with --nats or --config, else at this agent.
    #[command(after_help = "Examples:\n  pintle services --held\n  pintle release orders\n  \
        pintle release orders payments --nats nats://127.0.0.1:4222\n  pintle release --all --local")]
    Release(ReleaseArgs),
    /// Keeps instances registered until SIGTERM, then drains and deletes them.
    #[command(after_help = "Examples:\n  \
        pintle register --etcd http://127.0.0.1:2379 --service orders --id orders-1 \\\n    \
        --address 10.0.7.4 --port 8001 --metadata zone=eu-1a --check-http /healthz\n  \
        pintle register --config register.yaml")]
    Register(Box<RegisterArgs>),
    /// Writes a man page for each command into a directory.
    #[command(after_help = "Example:\n  pintle man /usr/local/share/man/man1")]
    Man {
        /// The directory; it is made.
        dir: PathBuf,
    },
    /// Writes the completions of a shell.
    #[command(after_help = "Example:\n  pintle completions bash > /etc/bash_completion.d/pintle")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Where the configuration is.
#[derive(Clone, Debug, Default, Args)]
struct ConfigArgs {
    /// Configuration, YAML or JSON.
    #[arg(long, value_name = "FILE", env = "PINTLE_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A member of the etcd cluster; repeatable. [env: PINTLE_ETCD=, comma-separated]
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// A NATS server; repeatable. [env: PINTLE_NATS=, comma-separated]
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
    /// A file of services, JSON or YAML, watched. [env: PINTLE_FILE=]
    #[arg(long, value_name = "PATH")]
    file: Option<String>,
    /// The proxies' socket. [env: PINTLE_SOCKET=] [default: /run/pintle/agent.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// The admin address, loopback. [env: PINTLE_ADMIN=] [default: 127.0.0.1:19100]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// Where the last good state is kept. [env: PINTLE_STATE_DIR=]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// The prefix of services in etcd. [env: PINTLE_PREFIX=] [default: /services/]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// A range in which loopback and private endpoint addresses are good; repeatable.
    /// [env: PINTLE_ALLOW=, comma-separated] [default: the private networks]
    #[arg(long, value_name = "CIDR")]
    allow: Vec<String>,
    /// This agent's name in the fleet. [env: PINTLE_AGENT_ID=] [default: the host's name]
    #[arg(long, value_name = "ID")]
    agent_id: Option<String>,
    /// How log lines are written. [env: PINTLE_LOG_FORMAT=] [default: text]
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace or directives. [env: PINTLE_LOG_LEVEL=] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// Where the agent answers.
#[derive(Clone, Debug, Args)]
struct AdminArgs {
    /// The agent's admin address.
    #[arg(long, value_name = "ADDR", env = "PINTLE_ADMIN", default_value = ADMIN)]
    admin: String,
}

/// Where NATS is.
#[derive(Clone, Debug, Default, Args)]
struct NatsArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A NATS server; repeatable. [env: PINTLE_NATS=, comma-separated]
    /// [default: nats://127.0.0.1:4222]
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
}

impl NatsArgs {
    /// Whether anything says where NATS is.
    fn is_given(&self) -> bool {
        let by_environment = || std::env::var_os("PINTLE_NATS").is_some_and(|it| !it.is_empty());
        !self.nats.is_empty() || self.config.config.is_some() || by_environment()
    }
}

/// How an order is given.
#[derive(Clone, Debug, Args)]
struct HowArgs {
    /// How long to wait for the agents' word, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = waiting)]
    wait: Duration,
    /// Publishes it and asks no agent.
    #[arg(long)]
    no_wait: bool,
    /// Orders for a service or endpoint that no agent knows yet.
    #[arg(long)]
    force: bool,
}

/// Why a wait is none.
#[derive(Debug, thiserror::Error)]
enum WaitError {
    #[error(transparent)]
    Duration(#[from] humantime::DurationError),
    #[error("100ms to 60s")]
    Range,
}

fn waiting(text: &str) -> Result<Duration, WaitError> {
    let wait = humantime::parse_duration(text)?;
    let good = (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&wait);
    good.then_some(wait).ok_or(WaitError::Range)
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Envoy's admin address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    envoy: String,
    /// Leaves Envoy out.
    #[arg(long)]
    no_envoy: bool,
    /// Judges this bootstrap file, YAML or JSON, and asks nothing that runs.
    #[arg(long, value_name = "FILE", conflicts_with = "no_envoy")]
    envoy_config: Option<PathBuf>,
    /// The agent's admin address. [default: that of the configuration]
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// A member of the etcd cluster; repeatable.
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// A NATS server; repeatable.
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
    /// The proxies' socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
}

#[derive(Debug, Args)]
struct ServicesArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// This service alone.
    service: Option<String>,
    /// Shows it again every second.
    #[arg(long)]
    watch: bool,
    /// What comes first.
    #[arg(long, value_enum, default_value = "name")]
    sort: SortBy,
    /// Shows refused entries instead, and why they were refused.
    #[arg(long, conflicts_with_all = ["service", "held"])]
    rejected: bool,
    /// Shows held removals instead, since when and why.
    #[arg(long, conflicts_with = "service")]
    held: bool,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SortBy {
    /// The first by name.
    Name,
    /// The one that is worst off.
    Trouble,
    /// The one with the most requests in the last minute.
    Requests,
}

#[derive(Debug, Args)]
struct WatchArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Shows it again every second.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct FleetArgs {
    #[command(flatten)]
    nats: NatsArgs,
    /// How long to wait for the agents' word, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = waiting)]
    wait: Duration,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Shows what the agent tells the proxies of a service, and where each key comes from.
    #[command(after_help = "Example:\n  pintle policy show orders")]
    Show {
        #[command(flatten)]
        admin: AdminArgs,
        /// The service.
        service: String,
    },
    /// Says whether a policy would be taken, and what is wrong with it; asks nothing that runs.
    #[command(after_help = "Examples:\n  pintle policy validate orders.json\n  \
        etcdctl get --print-value-only /pintle/policies/orders | pintle policy validate -")]
    Validate {
        /// JSON; - is standard input.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// The service.
    service: String,
    /// KEY=VALUE that a request asks for; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// A tag that a request asks for; repeatable.
    #[arg(long)]
    tag: Vec<String>,
    /// A header of the request, `:path` among them: its hash key, subset and pin are looked at; repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
}

#[derive(Debug, Args)]
struct BreakersArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Shows it again every second.
    #[arg(long)]
    watch: bool,
    /// Closed ones too.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Subcommand)]
enum BreakerCommand {
    /// Holds an endpoint's breaker open.
    #[command(after_help = "Example:\n  pintle breaker force-open orders/orders-1 --ttl 10m")]
    ForceOpen(OrderArgs),
    /// Holds an endpoint's breaker closed.
    #[command(after_help = "Example:\n  pintle breaker force-close orders/orders-1 --ttl 10m")]
    ForceClose(OrderArgs),
    /// Forgets what an endpoint's breaker has counted, and what was ordered.
    #[command(after_help = "Example:\n  pintle breaker clear orders/orders-1")]
    Clear(EndArgs),
}

#[derive(Debug, Args)]
struct EventsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Goes on as they come.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, Args)]
struct PublishArgs {
    #[command(flatten)]
    nats: NatsArgs,
    /// `endpoint`, `service`, `trace` or `breaker`.
    kind: String,
    /// SERVICE, or SERVICE/ID.
    subject: String,
    /// What to do, JSON.
    data: String,
    /// The event's id; the same id twice is one event. [default: a random one]
    #[arg(long)]
    id: Option<String>,
    #[command(flatten)]
    how: HowArgs,
}

#[derive(Debug, Args)]
struct OrderArgs {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    how: HowArgs,
    /// SERVICE/ID.
    endpoint: String,
    /// For how long, 1s to 24h.
    #[arg(long, default_value = "60s", value_parser = pintle_settings::parse_duration)]
    ttl: Duration,
}

#[derive(Debug, Args)]
struct EndArgs {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    how: HowArgs,
    /// SERVICE/ID.
    endpoint: String,
}

#[derive(Debug, Args)]
struct SwitchArgs {
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    how: HowArgs,
    /// The service.
    service: String,
    /// For how long, 1s to 24h.
    #[arg(long, default_value = "10m", value_parser = pintle_settings::parse_duration)]
    ttl: Duration,
    /// Ends it.
    #[arg(long, conflicts_with = "ttl")]
    off: bool,
}

#[derive(Debug, Args)]
struct FailoverArgs {
    #[command(flatten)]
    switch: SwitchArgs,
    /// To those with this tag.
    #[arg(long, conflicts_with = "region", required_unless_present_any = ["region", "off"])]
    tag: Option<String>,
    /// To those whose metadata `region` is this.
    #[arg(long)]
    region: Option<String>,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// Lists the dead letters, oldest first.
    #[command(
        after_help = "Examples:\n  pintle dlq list\n  pintle dlq list --limit 10 --output json"
    )]
    List {
        #[command(flatten)]
        nats: NatsArgs,
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows one with its bytes.
    #[command(after_help = "Example:\n  pintle dlq show 3")]
    Show {
        #[command(flatten)]
        nats: NatsArgs,
        /// Its number in the list.
        number: u64,
    },
    /// Publishes the original again, and takes the letter away.
    #[command(after_help = "Example:\n  pintle dlq replay 3")]
    Replay {
        #[command(flatten)]
        nats: NatsArgs,
        /// Its number in the list.
        number: u64,
    },
    /// Takes letters away for good.
    #[command(after_help = "Examples:\n  pintle dlq purge 3\n  pintle dlq purge --all")]
    Purge {
        #[command(flatten)]
        nats: NatsArgs,
        /// Its number in the list.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        number: Option<u64>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
struct ReleaseArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    nats: NatsArgs,
    /// How long to wait for the agents' word, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = waiting)]
    wait: Duration,
    /// At this machine's agent alone, by its socket.
    #[arg(long)]
    local: bool,
    /// Of all services.
    #[arg(long, conflicts_with = "services")]
    all: bool,
    /// The services.
    #[arg(required_unless_present = "all", value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
struct RegisterArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A member of the etcd cluster; repeatable. [env: PINTLE_ETCD=, comma-separated]
    #[arg(long, value_name = "URL")]
    etcd: Vec<String>,
    /// The prefix of services in etcd. [env: PINTLE_PREFIX=] [default: /services/]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// In another framework's form, under its prefix or --prefix.
    #[arg(long, value_enum)]
    format: Option<crate::source::FormatName>,
    /// The URL's scheme in that form, where it has one. [default: http]
    #[arg(long, requires = "format")]
    scheme: Option<String>,
    /// The service; with --id, --address and --port one instance without a file.
    #[arg(long, requires_all = ["id", "address", "port"])]
    service: Option<String>,
    /// The instance's id.
    #[arg(long)]
    id: Option<String>,
    /// The instance's address.
    #[arg(long)]
    address: Option<IpAddr>,
    /// The instance's port.
    #[arg(long)]
    port: Option<u16>,
    /// KEY=VALUE; repeatable. weight, zone, region, version and protocol have a meaning.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// A tag; repeatable.
    #[arg(long)]
    tag: Vec<String>,
    /// Healthy while GET of this path answers with 2xx.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["check_grpc", "check_tcp"])]
    check_http: Option<String>,
    /// Healthy while grpc.health.v1 says so of this service (empty: the server).
    #[arg(long, value_name = "SERVICE", conflicts_with = "check_tcp")]
    check_grpc: Option<String>,
    /// Healthy while a connection can be made.
    #[arg(long)]
    check_tcp: bool,
    /// How often it is checked.
    #[arg(long, default_value = "5s", value_name = "DURATION")]
    check_interval: String,
    /// The lease.
    #[arg(long, value_name = "DURATION")]
    lease: Option<String>,
    /// How long it stays draining before it is deleted.
    #[arg(long, value_name = "DURATION")]
    drain: Option<String>,
}

impl RunArgs {
    fn origin(&self) -> Origin {
        let mut flags = Flags::new();
        let mut lists = [("etcd", &self.etcd), ("nats", &self.nats), ("allow", &self.allow)];
        for (flag, values) in lists.iter_mut().filter(|(_, values)| !values.is_empty()) {
            flags.insert(flag, values.clone());
        }
        let format = self.log_format.map(|format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
        for (flag, value) in [
            ("file", &self.file),
            ("socket", &self.socket),
            ("admin", &self.admin),
            ("state-dir", &self.state_dir),
            ("prefix", &self.prefix),
            ("agent-id", &self.agent_id),
            ("log-format", &format),
            ("log-level", &self.log_level),
        ] {
            if let Some(value) = value {
                flags.insert(flag, vec![value.clone()]);
            }
        }
        Origin { file: self.config.config.clone(), flags }
    }
}

/// What `main` does: reads the command line, does it, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(EX_USAGE),
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "pintle: {error}");
            return ExitCode::from(EX_UNAVAILABLE);
        }
    };
    let done = runtime.block_on(dispatch(cli));
    // What was cut off by a deadline must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "pintle: {error}");
            ExitCode::from(error.code())
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let json = cli.output == Output::Json;
    match cli.command {
        Command::Init(args) => init::init(&args),
        Command::Run(args) => run::run(args.origin()).await.map_err(|error| match error {
            RunError::Signals(_) => CliError::No(error.to_string()),
            RunError::Task(_) | RunError::Watchdog(_) => CliError::Broken(error.to_string()),
            RunError::Config(_) | RunError::Logs(_) | RunError::Admin(_) | RunError::Tls(_) => {
                CliError::Usage(error.to_string())
            }
            RunError::Socket(_) | RunError::Tcp(..) => CliError::Unavailable(error.to_string()),
        }),
        Command::Check(args) => check::check(&args, json).await,
        Command::Services(args) => reads::services(&args, json).await,
        Command::Explain(args) => explain::run(&args, json).await,
        Command::Breakers(args) => reads::breakers(&args, json).await,
        Command::Events(args) => reads::events(&args, json).await,
        Command::Release(args) => release::release(&args, json).await,
        Command::Proxies(args) => state::proxies(&args, json).await,
        Command::Sources(args) => state::sources(&args, json).await,
        Command::Overlays(args) => state::overlays(&args, json).await,
        Command::Policy(command) => policy::policy(command, json).await,
        Command::Fleet(args) => fleet::fleet(&args, json).await,
        Command::Version(args) => state::version(&args, json).await,
        Command::Man { dir } => pages::write(Cli::command(), &dir),
        Command::Breaker(command) => orders::breaker(command, json).await,
        Command::Publish(args) => orders::publish(args, json).await,
        Command::Drain(args) => orders::drain(args, json).await,
        Command::Undrain(args) => orders::undrain(args, json).await,
        Command::Bypass(args) => orders::bypass(args, json).await,
        Command::Shadow(args) => orders::shadow(args, json).await,
        Command::Failover(args) => orders::failover(args, json).await,
        Command::Dlq(command) => orders::dlq(command, json).await,
        Command::Register(args) => orders::register(*args).await,
        Command::Completions { shell } => {
            let mut out = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pintle", &mut out);
            std::io::stdout().write_all(&out)?;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
