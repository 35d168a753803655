//! The command line: `pintle run` is the agent, everything else asks or orders something.
//!
//! Commands that read ask a running agent's admin address; commands that order something publish an
//! event, so that they reach every agent; `register` speaks to etcd alone. `check` speaks to all of
//! them and to Envoy.
//!
//! Exit codes: 0 done; 1 the answer is no (something is wrong, not found, or refused); 64 usage or
//! configuration (as sysexits has it); 69 what is needed can't be reached; 70 a task of the agent
//! ended.

mod args;
mod check;
mod client;
mod dlq;
mod explain;
mod fleet;
mod init;
mod orders;
mod pages;
mod policy;
mod reads;
mod register;
mod release;
mod run;
mod state;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use args::AdminArgs;
use check::CheckArgs;
pub use check::{Code, Finding, State, judge};
use dlq::DlqCommand;
use explain::ExplainArgs;
use fleet::FleetArgs;
use orders::{BreakerCommand, EndArgs, FailoverArgs, OrderArgs, PublishArgs, SwitchArgs};
use policy::PolicyCommand;
use reads::{BreakersArgs, EventsArgs, ServicesArgs};
use register::RegisterArgs;
use release::ReleaseArgs;
use run::RunArgs;
use state::WatchArgs;

use crate::config::ConfigError;
use crate::exit::{EX_NO, EX_SOFTWARE, EX_UNAVAILABLE, EX_USAGE};

/// Why a command ended without doing what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The answer is no.
    #[error("{0}")]
    No(String),
    /// The command or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// What is needed can't be reached: why, and what to do.
    #[error("{0}")]
    Unavailable(String, &'static str),
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
            Self::Unavailable(..) => EX_UNAVAILABLE,
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
            if let CliError::Unavailable(_, todo) = &error {
                let _ = writeln!(std::io::stderr(), "      -> {todo}");
            }
            ExitCode::from(error.code())
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), CliError> {
    let json = cli.output == Output::Json;
    match cli.command {
        Command::Init(args) => init::init(&args),
        Command::Run(args) => run::run(&args).await,
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
        Command::Dlq(command) => dlq::dlq(command, json).await,
        Command::Register(args) => register::register(*args).await,
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
