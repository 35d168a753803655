//! `pintle run`: what its flags say beside the configuration.

use clap::Args;

use super::CliError;
use super::args::ConfigArgs;
use crate::config::{Flags, LogFormat};
use crate::run::{self, Origin, RunError};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// A member of the etcd cluster; repeatable. [env: PINTLE_ETCD=, comma-separated]
    #[arg(long, value_name = "URL")]
    pub(super) etcd: Vec<String>,
    /// A NATS server; repeatable. [env: PINTLE_NATS=, comma-separated]
    #[arg(long, value_name = "URL")]
    pub(super) nats: Vec<String>,
    /// A file of services, JSON or YAML, watched. [env: PINTLE_FILE=]
    #[arg(long, value_name = "PATH")]
    pub(super) file: Option<String>,
    /// The proxies' socket. [env: PINTLE_SOCKET=] [default: /run/pintle/agent.sock]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<String>,
    /// The admin address, loopback. [env: PINTLE_ADMIN=] [default: 127.0.0.1:19100]
    #[arg(long, value_name = "ADDR")]
    pub(super) admin: Option<String>,
    /// Where the last good state is kept. [env: PINTLE_STATE_DIR=]
    #[arg(long, value_name = "DIR")]
    pub(super) state_dir: Option<String>,
    /// The prefix of services in etcd. [env: PINTLE_PREFIX=] [default: /services/]
    #[arg(long, value_name = "PREFIX")]
    pub(super) prefix: Option<String>,
    /// A range in which loopback and private endpoint addresses are good; repeatable.
    /// [env: PINTLE_ALLOW=, comma-separated] [default: the private networks]
    #[arg(long, value_name = "CIDR")]
    pub(super) allow: Vec<String>,
    /// This agent's name in the fleet. [env: PINTLE_AGENT_ID=] [default: the host's name]
    #[arg(long, value_name = "ID")]
    pub(super) agent_id: Option<String>,
    /// How log lines are written. [env: PINTLE_LOG_FORMAT=] [default: text]
    #[arg(long, value_enum)]
    pub(super) log_format: Option<LogFormat>,
    /// error, warn, info, debug, trace or directives. [env: PINTLE_LOG_LEVEL=] [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
}

impl RunArgs {
    pub(super) fn origin(&self) -> Origin {
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

/// Runs the agent until it is told to stop.
pub(super) async fn run(args: &RunArgs) -> Result<(), CliError> {
    run::run(args.origin()).await.map_err(|error| match error {
        RunError::Signals(_) => CliError::No(error.to_string()),
        RunError::Task(_) | RunError::Watchdog(_) => CliError::Broken(error.to_string()),
        RunError::Config(_) | RunError::Logs(_) | RunError::Admin(_) | RunError::Tls(_) => {
            CliError::Usage(error.to_string())
        }
        RunError::Socket(_) | RunError::Tcp(..) => CliError::Unavailable(
            error.to_string(),
            "free that path or address, or name another (--socket, tcp.listen)",
        ),
    })
}
