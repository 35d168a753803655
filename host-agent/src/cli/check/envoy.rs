//! Envoy: what it is configured to do ([`judge`]), and what it does.
//!
//! It is judged by its own `/config_dump`, because that is what it runs, whatever file it came
//! from; a file alone is judged by the same rules ([`file`]).

mod clusters;
mod dump;
mod filters;
mod headers;
mod hosts;
mod metadata;
mod plugins;
mod routes;
mod running;

use std::path::Path;

use http::Method;
use serde_json::{Value, json};

use super::finding::{Code, Finding};
use crate::cli::client::{Client, ENVOY};
use crate::serve::admin::view::ServiceJson;
use dump::{Dump, text};

/// Asks the Envoy at `address`. `services` are those of the agent, where it answers.
pub(super) async fn check(
    address: &str,
    socket: &str,
    services: Option<&[ServiceJson]>,
) -> Vec<Finding> {
    let envoy = Client::new(address, ENVOY);
    let dump: Value = match envoy.get("/config_dump").await {
        Ok(dump) => dump,
        Err(error) => {
            return vec![Finding::bad(
                Code::EnvoyAway,
                "envoy",
                error.to_string(),
                "start Envoy with an admin address, and name it by --envoy (or leave it out by \
                 --no-envoy)",
            )];
        }
    };
    let mut findings = all(&dump, socket, services.unwrap_or_default());
    findings.push(match envoy.ask(Method::GET, "/ready").await {
        Ok((status, _)) if status.is_success() => Finding::good("envoy", "ready"),
        Ok((status, _)) => Finding::bad(
            Code::EnvoyNotReady,
            "envoy",
            format!("/ready answers {status}"),
            "it waits for a cluster or listener: see the agent's socket, and set \
             initial_fetch_timeout of the EDS clusters",
        ),
        Err(error) => Finding::bad(Code::EnvoyAway, "envoy", error.to_string(), "look at its log"),
    });
    if let Ok(stats) = envoy.get::<Value>("/stats?format=json&filter=wasm").await {
        findings.extend(running::wasm_stats(&stats));
    }
    let known = Dump::of(&dump);
    findings.extend(routes::lost(&known));
    if let Some(services) = services {
        findings.extend(clusters::unknown(&known, services));
    }
    if let Ok(statuses) = envoy.get::<Value>("/clusters?format=json").await {
        findings.extend(running::agent_cluster(&statuses, socket));
        if let Some(services) = services {
            findings.extend(hosts::running(&known, &statuses, services));
        }
    }
    if let Ok(listeners) = envoy.get::<Value>("/listeners?format=json").await {
        let count =
            listeners.get("listener_statuses").and_then(Value::as_array).map_or(0, Vec::len);
        findings.push(if count > 0 {
            Finding::good("listeners", format!("{count} listening"))
        } else {
            Finding::bad(
                Code::ListenersNone,
                "listeners",
                "none is listening",
                "a listener whose module is refused is not opened: look for \"wasm\" in Envoy's log",
            )
        });
    }
    findings
}

/// What is to be said of a bootstrap file, YAML or JSON, without an Envoy.
pub(super) fn file(path: &Path, socket: &str) -> Vec<Finding> {
    let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed = read.and_then(|text| {
        serde_yaml_ng::from_str::<Value>(&text).map_err(|error| error.to_string())
    });
    match parsed {
        Ok(bootstrap) => judge(&json!({"configs": [{"bootstrap": bootstrap}]}), socket),
        Err(error) => vec![Finding::bad(
            Code::ConfigRefused,
            "envoy configuration",
            format!("{}: {error}", path.display()),
            "name a bootstrap file, YAML or JSON",
        )],
    }
}

/// What is to be said of a `/config_dump` whose Envoy should reach the agent at `socket`.
#[must_use]
pub fn judge(value: &Value, socket: &str) -> Vec<Finding> {
    all(value, socket, &[])
}

/// The same with what the agent knows of `services`.
fn all(value: &Value, socket: &str, services: &[ServiceJson]) -> Vec<Finding> {
    let dump = Dump::of(value);
    let mut findings = Vec::new();
    findings.extend(plugins::node(&dump));
    findings.extend(plugins::plugins(&dump));
    findings.extend(plugins::settings(&dump));
    findings.extend(headers::headers(&dump));
    findings.extend(headers::on_the_wire(&dump));
    findings.extend(headers::original_dst(&dump));
    findings.extend(clusters::shape(&dump));
    findings.extend(filters::past(&dump));
    findings.extend(clusters::without_http2(&dump, socket));
    findings.extend(hosts::configured(&dump));
    findings.extend(metadata::unread(&dump));
    findings.extend(routes::retries(&dump, services));
    if !dump.all.iter().any(|object| text(object, "path") == Some(socket)) {
        findings.push(Finding::bad(
            Code::AgentClusterAbsent,
            "socket in Envoy",
            format!("no cluster has the pipe {socket}"),
            format!("give the sync cluster's endpoint the address {{pipe: {{path: {socket}}}}}"),
        ));
    }
    // What is static stands in a dump twice: in the bootstrap and in its own section.
    let mut once: Vec<Finding> = Vec::new();
    for finding in findings {
        if !once.contains(&finding) {
            once.push(finding);
        }
    }
    once
}
