//! `pintle check`: can everything be reached, is it well, and is the Envoy configured as it must
//! be.
//!
//! The running agent is asked first: it knows where its servers are, what it refused, who is
//! connected and what fails now. Each family of findings is a file beside this one that turns what
//! was gathered into [`Finding`]s; what Envoy does is judged from its own `/config_dump`
//! ([`judge`]). With `--envoy-config` nothing that runs is asked: two files are judged.

mod agent;
mod envoy;
mod finding;
mod prefixes;
mod proxies;
mod reach;
mod registry;
mod traffic;

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

pub use envoy::judge;
pub use finding::{Code, Finding, State};

use super::CliError;
use super::args::ConfigArgs;
use super::orders::origin;
use super::reads::print_json;
use crate::config::{ADMIN, SOCKET};
use crate::run::Origin;
use crate::source::{EtcdConfig, NatsConfig};
use agent::Agent;
use clap::Args;
use finding::plural;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// Envoy's admin address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    pub(super) envoy: String,
    /// Leaves Envoy out.
    #[arg(long)]
    pub(super) no_envoy: bool,
    /// Judges this bootstrap file, YAML or JSON, and asks nothing that runs.
    #[arg(long, value_name = "FILE", conflicts_with = "no_envoy")]
    pub(super) envoy_config: Option<PathBuf>,
    /// The agent's admin address. [default: that of the configuration]
    #[arg(long, value_name = "ADDR")]
    pub(super) admin: Option<String>,
    /// A member of the etcd cluster; repeatable.
    #[arg(long, value_name = "URL")]
    pub(super) etcd: Vec<String>,
    /// A NATS server; repeatable.
    #[arg(long, value_name = "URL")]
    pub(super) nats: Vec<String>,
    /// The proxies' socket.
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<String>,
}

pub(super) async fn check(args: &CheckArgs, json: bool) -> Result<(), CliError> {
    let socket: Vec<String> = args.socket.iter().cloned().collect();
    let admin: Vec<String> = args.admin.iter().cloned().collect();
    let origin = origin(
        &args.config,
        &[("etcd", &args.etcd), ("nats", &args.nats), ("socket", &socket), ("admin", &admin)],
    );
    let mut findings = Vec::new();
    if args.config.config.is_some() {
        findings.push(match origin.load() {
            Ok(_) => Finding::good("configuration", "can be used"),
            Err(error) => Finding::bad(
                Code::ConfigRefused,
                "configuration",
                error.to_string(),
                "correct what is named",
            ),
        });
    }
    let given = Given::new(&origin, args)?;
    match &args.envoy_config {
        Some(file) => {
            let socket = given.socket.as_deref().unwrap_or(SOCKET);
            findings.extend(envoy::file(file, socket));
        }
        None => findings.extend(running(&given, args).await),
    }
    report(&findings, json)?;
    match findings.iter().filter(|it| it.state == State::Bad).count() {
        0 => Ok(()),
        1 => Err(CliError::No("1 thing is wrong".to_owned())),
        bad => Err(CliError::No(format!("{} are wrong", plural(bad, "thing")))),
    }
}

/// Asks everything that should run.
async fn running(given: &Given, args: &CheckArgs) -> Vec<Finding> {
    let agent = Agent::ask(&given.admin).await;
    // Without an agent the usual addresses are the best guess.
    let guess = agent.is_err();
    let mut findings = Vec::new();
    let etcd = given.etcd.clone().or_else(|| guess.then(EtcdConfig::default));
    let nats = given.nats.clone().or_else(|| guess.then(NatsConfig::default));
    let of_agent = agent.as_ref().ok().map(|agent| agent.given.socket.path.clone());
    let socket = given.socket.clone().or(of_agent).unwrap_or_else(|| SOCKET.to_owned());
    let services = agent.as_ref().ok().map(|agent| agent.services.as_slice());
    // Side by side: each of them may say nothing for its whole time.
    let (etcd, nats, at_socket, envoy) = tokio::join!(
        async { if let Some(it) = etcd { reach::etcd(&it).await } else { Vec::new() } },
        async { if let Some(it) = nats { Some(reach::nats(&it).await) } else { None } },
        reach::socket(Path::new(&socket)),
        async {
            if args.no_envoy {
                Vec::new()
            } else {
                envoy::check(&args.envoy, &socket, services).await
            }
        },
    );
    findings.extend(etcd.into_iter().chain(nats).chain(at_socket));
    match &agent {
        Err(finding) => findings.push(finding.clone()),
        Ok(agent) => {
            let ill: Vec<Code> = findings.iter().filter_map(|finding| finding.code).collect();
            findings.extend(agent::health(agent).into_iter().filter(|finding| {
                // A socket that is not there was found already.
                finding.code != Some(Code::SocketAbsent) || !ill.contains(&Code::SocketAbsent)
            }));
            findings.extend(agent::sources(&agent.sources, &ill));
            findings.extend(registry::look(agent, &ill));
            findings.extend(traffic::look(agent));
            findings.extend(proxies::look(agent, !args.no_envoy));
        }
    }
    findings.extend(envoy);
    findings
}

/// What the command line or a file says; the rest the agent knows.
struct Given {
    etcd: Option<EtcdConfig>,
    nats: Option<NatsConfig>,
    socket: Option<String>,
    admin: String,
}

impl Given {
    fn new(origin: &Origin, args: &CheckArgs) -> Result<Self, CliError> {
        let text = |section: &str, key: &str| -> Result<Option<String>, CliError> {
            let map: serde_json::Map<String, serde_json::Value> = origin.part(section)?;
            Ok(map.get(key).and_then(|value| value.as_str()).map(ToOwned::to_owned))
        };
        let config = match (&args.config.config, origin.load()) {
            (Some(_), Ok(config)) => Some(config),
            _ => None,
        };
        let (etcd, nats) = match config {
            Some(config) => (config.sources.etcd, config.sources.nats),
            None => (
                (!args.etcd.is_empty()).then(|| origin.part("etcd")).transpose()?,
                (!args.nats.is_empty()).then(|| origin.part("nats")).transpose()?,
            ),
        };
        Ok(Self {
            etcd,
            nats,
            socket: text("socket", "path")?,
            admin: text("admin", "listen")?.unwrap_or_else(|| ADMIN.to_owned()),
        })
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
        let code = finding.code.map_or("", Code::as_str);
        let gap = if code.is_empty() { "" } else { "  " };
        writeln!(out, "{sign}  {}: {detail}{gap}{code}", finding.what)?;
        if let Some(todo) = &finding.todo {
            writeln!(out, "      -> {todo}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
