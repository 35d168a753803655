//! Commands that show one list of the running agent: its proxies, its sources, the events in force.

use std::io::{Write, stdout};

use clap::Args;
use serde_json::json;

use super::CliError;
use super::args::AdminArgs;
use super::reads::{agent, ago, ahead, json_line, show};
use super::table::Table;
use crate::serve::admin::view::{AgentJson, OverlaysJson, ProxiesJson, SourceJson, SourcesJson};

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    pub(super) admin: AdminArgs,
    /// Shows it again every second.
    #[arg(long)]
    pub(super) watch: bool,
}

pub(super) async fn proxies(args: &WatchArgs, json: bool) -> Result<(), CliError> {
    let agent = agent(&args.admin);
    show(args.watch, || async {
        let proxies: ProxiesJson = agent.get("/v1/proxies").await?;
        if json {
            return json_line(&proxies, args.watch);
        }
        let mut table =
            Table::new(&["proxy", "stream", "for", "peer", "workers", "tables", "version"]);
        for proxy in proxies.proxies {
            let stream = if proxy.connected { "open" } else { "closed" };
            let tables = if proxy.current { "newest" } else { "behind" };
            table.row([
                proxy.proxy,
                stream.to_owned(),
                ago(&proxy.since),
                proxy.peer,
                format!("{} of {}", proxy.workers.len(), proxy.expected),
                tables.to_owned(),
                proxy.version,
            ]);
        }
        Ok(table.render("No Envoy has been connected."))
    })
    .await
}

pub(super) async fn sources(args: &WatchArgs, json: bool) -> Result<(), CliError> {
    let agent = agent(&args.admin);
    show(args.watch, || async {
        let sources: SourcesJson = agent.get("/v1/sources").await?;
        if json {
            return json_line(&sources, args.watch);
        }
        Ok(sources_text(&sources))
    })
    .await
}

fn sources_text(sources: &SourcesJson) -> String {
    let mut table = Table::new(&["source", "state", "at", "position", "heard", "connections"]);
    let enabled = || sources.all().into_iter().filter(|(_, source)| source.enabled);
    for (name, source) in enabled() {
        let heard = source.last_seen.as_deref().map(|at| format!("{} ago", ago(at)));
        table.row([
            name.to_owned(),
            if source.connected { "connected" } else { "away" }.to_owned(),
            source.endpoint.clone(),
            source.position.to_string(),
            heard.unwrap_or_default(),
            source.connects.to_string(),
        ]);
    }
    let mut text = table.render(
        "The agent has no source: give it --etcd URL, --file PATH or a kubernetes section.",
    );
    for (name, source) in enabled() {
        for line in notes(source) {
            text.push_str(&format!("{name}: {line}\n"));
        }
    }
    if let Some(error) = &sources.disk_error {
        text.push_str(&format!("state: {error}\n"));
    }
    text
}

fn notes(source: &SourceJson) -> impl Iterator<Item = &str> {
    source.error.iter().chain(&source.warnings).map(String::as_str)
}

pub(super) async fn overlays(args: &WatchArgs, json: bool) -> Result<(), CliError> {
    let agent = agent(&args.admin);
    show(args.watch, || async {
        let overlays: OverlaysJson = agent.get("/v1/overlays").await?;
        if json {
            return json_line(&overlays, args.watch);
        }
        let mut table = Table::new(&["kind", "service", "endpoint", "what", "from", "ends"]);
        for row in overlays.overlays {
            table.row([
                row.kind,
                row.service,
                row.endpoint.unwrap_or_default(),
                row.action,
                row.source,
                ahead(&row.until),
            ]);
        }
        Ok(table.render("No event is in force."))
    })
    .await
}

/// This binary's release, and that of the agent that answers, if one does.
pub(super) async fn version(args: &AdminArgs, json: bool) -> Result<(), CliError> {
    let own = env!("CARGO_PKG_VERSION");
    let found: Result<AgentJson, CliError> = agent(args).get("/v1/agent").await;
    if json {
        let agent = found.ok().map(|it| json!({ "agent": it.agent, "version": it.version }));
        return super::reads::print_json(&json!({ "version": own, "running": agent }));
    }
    let mut out = stdout().lock();
    writeln!(out, "pintle {own}")?;
    match found {
        Ok(it) => writeln!(out, "agent {} at {}: {}", it.agent, args.admin, it.version)?,
        Err(error) => writeln!(out, "no agent answers: {error}")?,
    }
    Ok(())
}
