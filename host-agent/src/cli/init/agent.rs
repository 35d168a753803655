//! The agent's files: its configuration, the services that no registry knows, and its unit.

use std::collections::BTreeMap;
use std::path::Path;

use pintle_contract::AddressPolicy;
use serde_json::{Map, Value, json};

use super::super::CliError;
use super::InitArgs;
use crate::config::{Config, Flags};

const UNIT: &str = include_str!("../../../../envoy/systemd/pintle.service");
/// Where etcd is unless said otherwise.
pub(super) const ETCD: &str = "http://127.0.0.1:2379";

/// The files by name; `dir` is where they will be.
///
/// # Errors
/// The agent would not take its configuration.
pub(super) fn files(
    args: &InitArgs,
    dir: &Path,
) -> Result<BTreeMap<&'static str, String>, CliError> {
    let config = config(args, dir);
    Config::merge(config.clone(), [], &Flags::new())
        .map_err(|error| CliError::Usage(error.to_string()))?;
    let own = dir.join("agent.yaml").display().to_string();
    let mut files = BTreeMap::new();
    files.insert("pintle.service", UNIT.replace("/etc/pintle/agent.yaml", &own));
    files.insert("agent.yaml", yaml("docs/configuration.md has every key", &config)?);
    if let Some(services) = services(args) {
        files.insert("services.yaml", yaml("read again when it changes", &services)?);
    }
    Ok(files)
}

pub(super) fn yaml(head: &str, value: &Value) -> Result<String, CliError> {
    let text = serde_yaml_ng::to_string(value).map_err(|error| CliError::No(error.to_string()))?;
    Ok(format!("# Written by `pintle init`; {head}.\n{text}"))
}

fn config(args: &InitArgs, dir: &Path) -> Value {
    let mut config = Map::new();
    let registered = args.services.iter().any(|service| service.hosts.is_empty());
    if registered || !args.etcd.is_empty() {
        let given = &args.etcd;
        let endpoints = if given.is_empty() { json!([ETCD]) } else { json!(given) };
        config.insert("etcd".to_owned(), json!({ "endpoints": endpoints }));
    }
    if !args.nats.is_empty() {
        config.insert("nats".to_owned(), json!({"servers": args.nats}));
    }
    let mut hosts = args.services.iter().flat_map(|service| &service.hosts).peekable();
    if hosts.peek().is_some() {
        config.insert("file".to_owned(), json!({"path": dir.join("services.yaml")}));
    }
    let mut state = Map::new();
    if let Some(kept) = &args.state_dir {
        state.insert("dir".to_owned(), json!(kept));
    }
    let loopback = hosts.any(|host| host.ip().is_loopback());
    let allow: Vec<String> = match &args.allow[..] {
        [] if loopback => {
            let private = AddressPolicy::default().allow.into_iter().map(|range| range.to_string());
            ["127.0.0.0/8", "::1/128"].map(str::to_owned).into_iter().chain(private).collect()
        }
        given => given.to_vec(),
    };
    if !allow.is_empty() {
        state.insert("allow".to_owned(), json!(allow));
    }
    if !state.is_empty() {
        config.insert("state".to_owned(), state.into());
    }
    config.insert("socket".to_owned(), json!({"path": args.socket}));
    config.insert("admin".to_owned(), json!({"listen": args.admin}));
    config.into()
}

/// The static services, for the agent to make tables of.
fn services(args: &InitArgs) -> Option<Value> {
    let mut services = Map::new();
    for service in args.services.iter().filter(|service| !service.hosts.is_empty()) {
        let endpoints = service.hosts.iter().enumerate().map(|(number, host)| {
            let id = format!("{}-{}", service.name, number.saturating_add(1));
            json!({"id": id, "address": host.ip(), "port": host.port()})
        });
        let endpoints: Vec<Value> = endpoints.collect();
        services.insert(service.name.clone(), json!({ "endpoints": endpoints }));
    }
    (!services.is_empty()).then(|| json!({ "services": services }))
}
