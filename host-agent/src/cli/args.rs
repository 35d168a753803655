//! Arguments that several commands take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::ADMIN;

/// Where the configuration is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ConfigArgs {
    /// Configuration, YAML or JSON.
    #[arg(long, value_name = "FILE", env = "PINTLE_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

/// Where the agent answers.
#[derive(Clone, Debug, Args)]
pub(super) struct AdminArgs {
    /// The agent's admin address.
    #[arg(long, value_name = "ADDR", env = "PINTLE_ADMIN", default_value = ADMIN)]
    pub(super) admin: String,
}

/// Where NATS is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct NatsArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// A NATS server; repeatable. [env: PINTLE_NATS=, comma-separated]
    /// [default: nats://127.0.0.1:4222]
    #[arg(long, value_name = "URL")]
    pub(super) nats: Vec<String>,
}

impl NatsArgs {
    /// Whether anything says where NATS is.
    pub(super) fn is_given(&self) -> bool {
        let by_environment = || std::env::var_os("PINTLE_NATS").is_some_and(|it| !it.is_empty());
        !self.nats.is_empty() || self.config.config.is_some() || by_environment()
    }
}

/// How an order is given.
#[derive(Clone, Debug, Args)]
pub(super) struct HowArgs {
    /// How long to wait for the agents' word, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = waiting)]
    pub(super) wait: Duration,
    /// Publishes it and asks no agent.
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Orders for a service or endpoint that no agent knows yet.
    #[arg(long)]
    pub(super) force: bool,
}

/// Why a wait is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum WaitError {
    #[error(transparent)]
    Duration(#[from] humantime::DurationError),
    #[error("100ms to 60s")]
    Range,
}

pub(super) fn waiting(text: &str) -> Result<Duration, WaitError> {
    let wait = humantime::parse_duration(text)?;
    let good = (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&wait);
    good.then_some(wait).ok_or(WaitError::Range)
}
