//! `pintle check`: can everything be reached, and is the Envoy configured as it must be.
//!
//! Every finding says what was looked at, what is wrong, and what to do. What Envoy is configured to
//! do is judged from its own `/config_dump` ([`judge`]), because that is what it runs, whatever
//! file it came from.

mod envoy;

use std::io::{Write, stdout};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use etcd_client::GetOptions;
use http::Method;
use serde::Serialize;
use tokio::time::timeout;

pub use envoy::judge;

use super::client::Client;
use super::orders::origin;
use super::reads::print_json;
use super::{CheckArgs, CliError};
use crate::config::{ADMIN, SOCKET};
use crate::events::Events;
use crate::run::Origin;
use crate::serve::admin::view::{ReadyJson, SourcesJson};
use crate::source::{EtcdConfig, NatsConfig, etcd};

const WITHIN: Duration = Duration::from_secs(5);

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Works, and could be better or safer.
    Warn,
    /// Does not work, or is dangerous.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub todo: Option<String>,
}

impl Finding {
    pub(crate) fn good(what: &str, detail: impl Into<String>) -> Self {
        Self { what: what.to_owned(), state: State::Good, detail: detail.into(), todo: None }
    }

    pub(crate) fn warn(what: &str, detail: impl Into<String>, todo: &str) -> Self {
        Self {
            what: what.to_owned(),
            state: State::Warn,
            detail: detail.into(),
            todo: Some(todo.to_owned()),
        }
    }

    pub(crate) fn bad(what: &str, detail: impl Into<String>, todo: &str) -> Self {
        Self { state: State::Bad, ..Self::warn(what, detail, todo) }
    }
}

pub(super) async fn check(args: &CheckArgs, json: bool) -> Result<(), CliError> {
    let socket: Vec<String> = args.socket.iter().cloned().collect();
    let admin: Vec<String> = args.admin.iter().cloned().collect();
    let origin = origin(
        &args.config,
        &[("etcd", &args.etcd), ("nats", &args.nats), ("socket", &socket), ("admin", &admin)],
    );
    let plan = Plan::new(&origin, args)?;
    let mut findings = Vec::new();
    if args.config.config.is_some() {
        findings.push(match origin.load() {
            Ok(_) => Finding::good("configuration", "can be used"),
            Err(error) => Finding::bad("configuration", error.to_string(), "correct what is named"),
        });
    }
    let (etcd, nats) = plan.wanted(args).await;
    if let Some(config) = &plan.etcd
        && etcd
    {
        findings.push(check_etcd(config).await);
    }
    if let Some(config) = &plan.nats
        && nats
    {
        findings.push(check_nats(config).await);
    }
    findings.extend(check_socket(Path::new(&plan.socket)).await);
    findings.push(check_agent(&plan.admin).await);
    if !args.no_envoy {
        findings.extend(envoy::check(&args.envoy, &plan.socket).await);
    }
    report(&findings, json)?;
    let bad = findings.iter().filter(|it| it.state == State::Bad).count();
    match bad {
        0 => Ok(()),
        1 => Err(CliError::No("1 thing is wrong".to_owned())),
        bad => Err(CliError::No(format!("{bad} things are wrong"))),
    }
}

struct Plan {
    etcd: Option<EtcdConfig>,
    nats: Option<NatsConfig>,
    socket: String,
    admin: String,
}

impl Plan {
    /// With a file, what it has is checked; without one, the defaults are.
    fn new(origin: &Origin, args: &CheckArgs) -> Result<Self, CliError> {
        let text = |section: &str, key: &str, default: &str| -> Result<String, CliError> {
            let map: serde_json::Map<String, serde_json::Value> = origin.part(section)?;
            let value = map.get(key).and_then(|value| value.as_str());
            Ok(value.unwrap_or(default).to_owned())
        };
        let config = match (&args.config.config, origin.load()) {
            (Some(_), Ok(config)) => Some(config),
            _ => None,
        };
        let (etcd, nats) = match config {
            Some(config) => (config.sources.etcd, config.sources.nats),
            None => (Some(origin.part("etcd")?), Some(origin.part("nats")?)),
        };
        Ok(Self {
            etcd,
            nats,
            socket: text("socket", "path", SOCKET)?,
            admin: text("admin", "listen", ADMIN)?,
        })
    }
}

impl Plan {
    /// Whether etcd and NATS are to be there: a running agent knows what it was given, unless the
    /// command line says more.
    async fn wanted(&self, args: &CheckArgs) -> (bool, bool) {
        if args.config.config.is_some() {
            return (true, true);
        }
        let agent = Client::new(&self.admin, "the agent's admin address");
        match agent.get::<SourcesJson>("/v1/sources").await {
            Ok(sources) => (
                sources.etcd.enabled || !args.etcd.is_empty(),
                sources.nats.enabled || !args.nats.is_empty(),
            ),
            Err(_) => (true, true),
        }
    }
}

async fn check_etcd(config: &EtcdConfig) -> Finding {
    let todo = "start etcd, or name its members by --etcd or etcd.endpoints; with TLS or users, \
                see etcd.tls, etcd.user and etcd.password";
    let mut last = String::new();
    for member in 0..config.endpoints.len() {
        let asked = timeout(WITHIN, async {
            let mut client = etcd::connect(config, member).await?;
            let options = GetOptions::new().with_prefix().with_count_only();
            let found = client.get(config.services.as_str(), Some(options)).await?;
            Ok::<_, etcd::EtcdError>(found.count())
        });
        match asked.await {
            Ok(Ok(0)) => {
                return Finding::warn(
                    "etcd",
                    format!("answers; no instance below {}", config.services),
                    "register one (pintle register), or check etcd.services",
                );
            }
            Ok(Ok(count)) => {
                let detail = format!("answers; {count} instances below {}", config.services);
                return Finding::good("etcd", detail);
            }
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => "no answer within 5 s".clone_into(&mut last),
        }
    }
    let at = config.endpoints.join(", ");
    Finding::bad("etcd", format!("{at}: {last}"), todo)
}

async fn check_nats(config: &NatsConfig) -> Finding {
    let todo = "start nats-server with JetStream (-js), or name it by --nats or nats.servers; \
                without events the registry alone is followed";
    let asked = async { Events::connect(config).await?.newest().await };
    match timeout(WITHIN, asked).await {
        Ok(Ok(newest)) => {
            Finding::good("nats", format!("answers; stream {} is at {newest}", config.stream))
        }
        Ok(Err(error)) => {
            Finding::bad("nats", format!("{}: {error}", config.servers.join(", ")), todo)
        }
        Err(_) => Finding::bad("nats", "no answer within 5 s", todo),
    }
}

async fn check_socket(path: &Path) -> Vec<Finding> {
    let shown = path.display();
    let start = "start the agent: pintle run; its --socket must be the path in Envoy's clusters";
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => there,
        Ok(_) => {
            let detail = format!("{shown} is no socket");
            return vec![Finding::bad("socket", detail, "name another path")];
        }
        Err(error) => return vec![Finding::bad("socket", format!("{shown}: {error}"), start)],
    };
    let mut findings = Vec::new();
    findings.push(match tokio::net::UnixStream::connect(path).await {
        Ok(_) => Finding::good("socket", format!("{shown} accepts")),
        Err(error) => Finding::bad("socket", format!("{shown}: {error}"), start),
    });
    if there.mode() & 0o007 != 0 {
        findings.push(Finding::bad(
            "socket",
            format!("{shown} has mode {:o}", there.mode() & 0o777),
            "others may connect: set socket.mode to \"0600\" or \"0660\"",
        ));
    }
    findings
}

async fn check_agent(address: &str) -> Finding {
    let agent = Client::new(address, "the agent's admin address");
    match agent.ask(Method::GET, "/readyz").await {
        Ok((_, body)) => match serde_json::from_slice::<ReadyJson>(&body) {
            Ok(ready) if ready.ready && !ready.stale => {
                Finding::good("agent", format!("ready at version {}", ready.version))
            }
            Ok(ready) if ready.ready => Finding::warn(
                "agent",
                ready.detail,
                "bring the registry back; traffic goes on with the last good state",
            ),
            Ok(ready) => Finding::bad("agent", ready.detail, "see etcd above"),
            Err(_) => Finding::bad(
                "agent",
                format!("what answers at {address} is no agent"),
                "name the agent's admin address by --admin",
            ),
        },
        Err(error) => Finding::bad("agent", error.to_string(), "start it: pintle run"),
    }
}

fn report(findings: &[Finding], json: bool) -> Result<(), CliError> {
    if json {
        return print_json(&serde_json::json!({ "findings": findings }));
    }
    let mut out = stdout().lock();
    for finding in findings {
        let sign = match finding.state {
            State::Good => "ok  ",
            State::Warn => "warn",
            State::Bad => "BAD ",
        };
        let detail = finding.detail.replace(char::is_control, "\u{fffd}");
        writeln!(out, "{sign}  {}: {detail}", finding.what)?;
        if let Some(todo) = &finding.todo {
            writeln!(out, "      -> {todo}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
