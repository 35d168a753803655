//! The node, the Wasm plugins and what our own are told.

use std::collections::BTreeSet;

use pintle_policy::{Config, Via};
use serde_json::Value;

use super::dump::{Dump, Object, at, seconds, text, told};
use crate::cli::check::finding::{Code, Finding};

/// Envoy 1.36 to 1.40 end with SIGFPE at the first reload when the base interval is below this.
const LEAST_BACKOFF_S: f64 = 0.01;

pub(super) fn node(dump: &Dump<'_>) -> Option<Finding> {
    let node = dump.all.iter().find_map(|object| object.get("node").and_then(Value::as_object))?;
    let named = |key| text(node, key).is_some_and(|value| !value.is_empty());
    // Istio begins the id of each proxy with its kind.
    if let Some(id) = text(node, "id").filter(|id| id.starts_with("waypoint~")) {
        return Some(Finding::bad(
            Code::AmbientWaypoint,
            "node",
            format!("{id} is a waypoint of Istio's ambient mode, which reaches pods by tunnels"),
            "leave the module out of it: no choice is followed there",
        ));
    }
    Some(if named("id") && named("cluster") {
        Finding::good("node", format!("id {}", text(node, "id").unwrap_or_default()))
    } else {
        Finding::bad(
            Code::NodeUnnamed,
            "node",
            "node.id or node.cluster is empty",
            "set both (--service-node, --service-cluster): EDS needs them, and the id is the \
             proxy's name here",
        )
    })
}

/// What Istio tells the VM of a `WasmPlugin`, which has neither `vm_id` nor `reload_config`.
const ISTIO: &str = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION";

/// Every Wasm plugin: it is whatever has a `vm_config`.
pub(super) fn plugins(dump: &Dump<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    let plugins = dump.all.iter().filter(|object| object.contains_key("vm_config"));
    for plugin in plugins {
        let name = text(plugin, "name").unwrap_or("(no name)");
        let what = format!("wasm plugin {name}");
        let policy = text(plugin, "failure_policy").unwrap_or("UNSPECIFIED");
        let by_istio = at(plugin, &["vm_config", "environment_variables", "key_values", ISTIO]);
        let vm_id = at(plugin, &["vm_config", "vm_id"]).and_then(Value::as_str);
        if !seen.insert((name, policy, vm_id)) {
            continue;
        }
        findings.push(match policy {
            "FAIL_RELOAD" => Finding::good(&what, "FAIL_RELOAD"),
            "FAIL_OPEN" if by_istio.is_some() => Finding::good(
                &what,
                "FAIL_OPEN, by a WasmPlugin: after a trap a change of it brings the module back",
            ),
            "FAIL_OPEN" => Finding::warn(
                Code::WasmFailureOpen,
                &what,
                "FAIL_OPEN: after a trap that worker goes without the module for good",
                "set failure_policy: FAIL_RELOAD with reload_config.backoff.base_interval: 0.01s",
            ),
            other => Finding::bad(
                Code::WasmFailureClosed,
                &what,
                format!("failure_policy {other}: after a trap every request there gets 503"),
                "set failure_policy: FAIL_RELOAD with reload_config.backoff.base_interval: 0.01s",
            ),
        });
        let interval = at(plugin, &["reload_config", "backoff", "base_interval"]);
        match seconds(interval) {
            Some(base) if base < LEAST_BACKOFF_S => findings.push(Finding::bad(
                Code::WasmBackoff,
                &what,
                format!("reload_config.backoff.base_interval is {base} s"),
                "set it to 0.01s or more: below, Envoy ends with SIGFPE at the first reload",
            )),
            Some(base) if base > 0.5 => findings.push(Finding::warn(
                Code::WasmBackoff,
                &what,
                format!("reload_config.backoff.base_interval is {base} s"),
                "set it to 0.01s to 0.1s: until it is over, that worker answers 503",
            )),
            None if policy == "FAIL_RELOAD" => findings.push(Finding::warn(
                Code::WasmBackoff,
                &what,
                "reload_config.backoff is not set (1 s)",
                "set reload_config.backoff.base_interval to 0.01s: until it is over, that worker \
                 answers 503",
            )),
            _ => {}
        }
        if vm_id.unwrap_or_default().is_empty() && by_istio.is_none() {
            findings.push(Finding::warn(
                Code::WasmVmId,
                &what,
                "vm_config.vm_id is empty: other plugins without one share its data",
                "set vm_config.vm_id: pintle",
            ));
        }
        if at(plugin, &["vm_config", "allow_precompiled"]) == Some(&Value::Bool(true)) {
            findings.push(Finding::warn(
                Code::WasmPrecompiled,
                &what,
                "vm_config.allow_precompiled is true",
                "remove it: machine code inside the module would be run as it is",
            ));
        }
        let remote = at(plugin, &["vm_config", "code", "remote"]);
        if remote.is_some_and(|it| it.get("sha256").is_none_or(|sum| sum == "")) {
            findings.push(Finding::bad(
                Code::WasmUnchecked,
                &what,
                "the module is fetched and its sha256 is not checked",
                "set vm_config.code.remote.sha256, or use a local file",
            ));
        }
    }
    if seen.is_empty() {
        findings.push(Finding::bad(
            Code::WasmAbsent,
            "wasm plugin",
            "Envoy has no Wasm plugin",
            "add the filter of envoy/envoy.yaml to the HTTP connection manager",
        ));
    }
    findings
}

/// What our own plugins are told must have its other half in Envoy's configuration.
pub(super) fn settings(dump: &Dump<'_>) -> Vec<Finding> {
    let mut findings = refused(dump);
    findings.extend(twice(dump));
    let headers = dump.override_headers();
    let clusters = dump.clusters();
    for (name, config) in dump.plugins() {
        let what = format!("settings of {name}");
        match &config.agent {
            None if config.select.is_none() => {}
            None => findings.push(Finding::bad(
                Code::PluginSyncCluster,
                &what,
                "sync.cluster is not set: no table comes",
                "set it to the cluster whose endpoint is the agent's socket",
            )),
            Some(agent) if !clusters.contains_key(agent.as_str()) => findings.push(Finding::bad(
                Code::PluginSyncCluster,
                &what,
                format!("sync.cluster is {agent}, and there is no such cluster"),
                "name the cluster whose endpoint is the agent's socket",
            )),
            Some(_) => {}
        }
        if config.breaker && config.select.is_none() {
            findings.push(Finding::bad(
                Code::PluginBreakerAlone,
                &what,
                "breaker does nothing without select, which asks the breakers",
                "add select to the same plugin",
            ));
        }
        let Some(select) = &config.select else { continue };
        if select.via == Via::OverrideHost && !headers.contains(select.header.as_str()) {
            findings.push(Finding::bad(
                Code::PluginHeaderUnread,
                &what,
                format!("endpoints are listed in {}, and no cluster reads it", select.header),
                format!(
                    "give the services' clusters the load_balancing_policy override_host with \
                     override_host_sources: [{{header: {}}}]",
                    select.header
                ),
            ));
        }
    }
    findings
}

/// Whether a plugin with settings is ours, by its name or by what only ours is told.
fn is_ours(plugin: &Object) -> bool {
    let named = ["name", "root_id"].iter().any(|key| text(plugin, key) == Some("pintle"));
    let said = told(plugin).and_then(|told| serde_json::from_str::<Object>(&told).ok());
    plugin.contains_key("vm_config") && (named || said.is_some_and(|it| it.contains_key("sync")))
}

/// Settings that the module does not take, which cost Envoy the listener.
fn refused(dump: &Dump<'_>) -> Vec<Finding> {
    let ours = dump.all.iter().filter(|plugin| is_ours(plugin));
    ours.filter_map(|plugin| {
        let error = Config::parse(told(plugin)?.as_bytes()).err()?;
        Some(Finding::bad(
            Code::PluginRefused,
            &format!("settings of {}", text(plugin, "name").unwrap_or("(no name)")),
            format!("the module refuses them: {error}"),
            "correct what is named (docs/configuration.md has all keys)",
        ))
    })
    .collect()
}

/// Connection managers that ask us more than once for a request.
fn twice(dump: &Dump<'_>) -> Vec<Finding> {
    let managers = dump.all.iter().filter(|it| it.contains_key("stat_prefix"));
    let counted = managers.filter_map(|manager| {
        let filters = manager.get("http_filters")?.as_array()?.iter();
        let configs = filters.filter_map(|it| it.pointer("/typed_config/config")?.as_object());
        let count = configs.filter(|config| is_ours(config)).count();
        Some((text(manager, "stat_prefix")?, count))
    });
    let several = counted.filter(|(_, count)| *count > 1);
    several
        .map(|(name, count)| {
            Finding::bad(
                Code::PluginTwice,
                &format!("filters of {name}"),
                format!("the module stands there {count} times, and books each request as often"),
                "leave one of them",
            )
        })
        .collect()
}
