//! `pintle release`: held removals confirmed, at every agent or at this machine's alone.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::json;

use super::CliError;
use super::args::{AdminArgs, NatsArgs, waiting};
use super::client::{Client, ORDERS};
use super::orders::connect;
use super::reads::{self, escaped, print_json};
use crate::events::Released;
use crate::nearest::but;
use crate::serve::admin::view::{AgentJson, HeldJson, ReleasedJson};

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    #[command(flatten)]
    pub(super) admin: AdminArgs,
    #[command(flatten)]
    pub(super) nats: NatsArgs,
    /// How long to wait for the agents' word, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = waiting)]
    pub(super) wait: Duration,
    /// At this machine's agent alone, by its socket.
    #[arg(long)]
    pub(super) local: bool,
    /// Of all services.
    #[arg(long, conflicts_with = "services")]
    pub(super) all: bool,
    /// The services.
    #[arg(required_unless_present = "all", value_name = "SERVICE")]
    pub(super) services: Vec<String>,
}

/// What was released, by agent and service.
#[derive(Default)]
struct Outcome {
    released: BTreeMap<String, BTreeMap<String, u64>>,
    /// Services that no agent knows, and names that look like them.
    unknown: BTreeMap<String, Vec<String>>,
    silent: Vec<String>,
}

pub(super) async fn release(args: &ReleaseArgs, json: bool) -> Result<(), CliError> {
    if let Some(bad) = args.services.iter().find(|name| !pintle_contract::is_name(name)) {
        return Err(CliError::Usage(format!("{bad:?} is no service's name")));
    }
    let local = args.local || !args.nats.is_given();
    let outcome = if local { here(args).await? } else { everywhere(args).await? };
    if json {
        print_json(&json!({
            "released": outcome.released,
            "unknown": outcome.unknown,
            "silent": outcome.silent,
        }))?;
    } else {
        say(&outcome, local)?;
    }
    if !outcome.unknown.is_empty() {
        return Err(CliError::No(unknown(&outcome.unknown)));
    }
    let none = outcome.released.values().flat_map(BTreeMap::values).all(|count| *count == 0);
    if none { Err(CliError::No("nothing was held".to_owned())) } else { Ok(()) }
}

/// At every agent of the fleet.
async fn everywhere(args: &ReleaseArgs) -> Result<Outcome, CliError> {
    let events = connect(&args.nats).await?;
    let services: Vec<Option<&str>> = if args.all {
        vec![None]
    } else {
        args.services.iter().map(|service| Some(service.as_str())).collect()
    };
    let mut outcome = Outcome::default();
    for service in services {
        let answers = events.release(service, args.wait).await?;
        let mut known = false;
        let mut nearest = Vec::new();
        for (agent, said) in answers.said {
            match said {
                Released::Gone(services) => {
                    known = true;
                    outcome.released.entry(agent).or_default().extend(services);
                }
                Released::Unknown(names) => nearest.extend(names),
            }
        }
        if let Some(service) = service.filter(|_| !known && !nearest.is_empty()) {
            nearest.dedup();
            nearest.truncate(3);
            outcome.unknown.insert(service.to_owned(), nearest);
        } else if let Some(service) = service.filter(|_| !known) {
            outcome.unknown.insert(service.to_owned(), Vec::new());
        }
        let silent = answers.silent.into_iter();
        outcome.silent.extend(silent);
    }
    outcome.silent.sort();
    outcome.silent.dedup();
    Ok(outcome)
}

/// At this machine's agent alone, by its socket.
async fn here(args: &ReleaseArgs) -> Result<Outcome, CliError> {
    let agent = reads::agent(&args.admin);
    let known: AgentJson = agent.get("/v1/agent").await?;
    let orders = Client::new(&known.admin_socket, ORDERS);
    let services = if args.all {
        let held: HeldJson = agent.get("/v1/held").await?;
        let mut services: Vec<String> = held.held.into_iter().map(|row| row.service).collect();
        services.sort();
        services.dedup();
        services
    } else {
        args.services.clone()
    };
    let mut outcome = Outcome::default();
    let all = outcome.released.entry(known.agent).or_default();
    for service in services {
        let path = format!("/v1/release/{}", escaped(&service));
        let released: ReleasedJson = orders.json(Method::POST, &path).await?;
        all.insert(released.service, released.released);
    }
    Ok(outcome)
}

fn say(outcome: &Outcome, local: bool) -> Result<(), CliError> {
    let mut services: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for (service, count) in outcome.released.values().flatten() {
        let sum = services.entry(service).or_default();
        sum.0 = sum.0.saturating_add(*count);
        sum.1 += usize::from(*count > 0);
    }
    let mut out = stdout().lock();
    let agents = outcome.released.len() + outcome.silent.len();
    for (service, (count, at)) in services.iter().filter(|(_, (count, _))| *count > 0) {
        let removals = if *count == 1 { "removal" } else { "removals" };
        let place = if local {
            "at this agent; --nats URL releases in the whole fleet".to_owned()
        } else {
            format!("on {at} of {agents} {}", if agents == 1 { "agent" } else { "agents" })
        };
        writeln!(out, "{service}: {count} {removals} released {place}")?;
    }
    if !outcome.silent.is_empty() {
        let silent = outcome.silent.join(", ");
        writeln!(out, "no word from {silent}; ask there with --local")?;
    }
    Ok(())
}

fn unknown(services: &BTreeMap<String, Vec<String>>) -> String {
    let each = services.iter().map(|(service, nearest)| {
        format!("{service} is not registered at any agent{}", but(nearest))
    });
    each.collect::<Vec<_>>().join("; ")
}
