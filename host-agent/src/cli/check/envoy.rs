//! Envoy's admin address: what it runs, and whether that is safe.
//!
//! The dump is searched for the shapes that matter wherever they are (static, dynamic, nested in
//! filter chains), rather than walked by its schema, which differs by version.

use std::collections::BTreeSet;

use http::Method;
use pintle_policy::{Config, Via};
use serde_json::{Map, Value};

use super::Finding;
use crate::cli::client::Client;

type Object = Map<String, Value>;

/// Envoy 1.36 to 1.40 end with SIGFPE at the first reload when the base interval is below this.
const LEAST_BACKOFF_S: f64 = 0.01;

pub(super) async fn check(address: &str, socket: &str) -> Vec<Finding> {
    let envoy = Client::new(address, "Envoy's admin address");
    let dump: Value = match envoy.get("/config_dump").await {
        Ok(dump) => dump,
        Err(error) => {
            return vec![Finding::bad(
                "envoy",
                error.to_string(),
                "start Envoy with an admin address, and name it by --envoy (or leave it out by \
                 --no-envoy)",
            )];
        }
    };
    let mut findings = judge(&dump, socket);
    match envoy.ask(Method::GET, "/ready").await {
        Ok((status, _)) if status.is_success() => {
            findings.push(Finding::good("envoy", "ready"));
        }
        Ok((status, _)) => findings.push(Finding::bad(
            "envoy",
            format!("/ready answers {status}"),
            "it waits for a cluster or listener: see the agent's socket, and set \
             initial_fetch_timeout of the EDS clusters",
        )),
        Err(error) => findings.push(Finding::bad("envoy", error.to_string(), "look at its log")),
    }
    if let Ok(stats) = envoy.get::<Value>("/stats?format=json&filter=wasm").await {
        findings.extend(wasm_stats(&stats));
    }
    if let Ok(clusters) = envoy.get::<Value>("/clusters?format=json").await {
        findings.extend(sync_cluster(&clusters, socket));
    }
    if let Ok(listeners) = envoy.get::<Value>("/listeners?format=json").await {
        let count =
            listeners.get("listener_statuses").and_then(Value::as_array).map_or(0, Vec::len);
        findings.push(if count > 0 {
            Finding::good("listeners", format!("{count} listening"))
        } else {
            Finding::bad(
                "listeners",
                "none is listening",
                "a listener whose module is refused is not opened: look for \"wasm\" in Envoy's log",
            )
        });
    }
    findings
}

/// What is to be said of a `/config_dump` whose Envoy should reach the agent at `socket`.
#[must_use]
pub fn judge(dump: &Value, socket: &str) -> Vec<Finding> {
    let mut all = Vec::new();
    visit(dump, &mut |object| all.push(object));
    let mut findings = Vec::new();
    findings.extend(node(&all));
    findings.extend(plugins(&all));
    findings.extend(settings(&all));
    findings.extend(headers(&all));
    findings.extend(original_dst(&all));
    findings.extend(eds(&all));
    if !all.iter().any(|object| text(object, "path") == Some(socket)) {
        findings.push(Finding::bad(
            "socket in Envoy",
            format!("no cluster has the pipe {socket}"),
            "give the sync cluster's endpoint address {pipe: {path: ...}} the agent's --socket",
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

fn visit<'a>(value: &'a Value, found: &mut impl FnMut(&'a Object)) {
    // A dump is nested as deep as serde_json reads, which is 128.
    match value {
        Value::Object(object) => {
            found(object);
            for value in object.values() {
                visit(value, found);
            }
        }
        Value::Array(list) => {
            for value in list {
                visit(value, found);
            }
        }
        _ => {}
    }
}

fn text<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

fn at<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(object.get(*first)?, |value, key| value.get(*key))
}

/// A protobuf duration such as `0.010s`.
fn seconds(value: Option<&Value>) -> Option<f64> {
    value?.as_str()?.strip_suffix('s')?.parse().ok()
}

fn node(all: &[&Object]) -> Option<Finding> {
    let node = all.iter().find_map(|object| object.get("node").and_then(Value::as_object))?;
    let named = |key| text(node, key).is_some_and(|value| !value.is_empty());
    Some(if named("id") && named("cluster") {
        Finding::good("node", format!("id {}", text(node, "id").unwrap_or_default()))
    } else {
        Finding::bad(
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
fn plugins(all: &[&Object]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    let plugins = all.iter().filter(|object| object.contains_key("vm_config"));
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
                &what,
                "FAIL_OPEN: after a trap that worker goes without the module for good",
                "set failure_policy: FAIL_RELOAD with reload_config.backoff.base_interval: 0.01s",
            ),
            other => Finding::bad(
                &what,
                format!("failure_policy {other}: after a trap every request there gets 503"),
                "set failure_policy: FAIL_RELOAD with reload_config.backoff.base_interval: 0.01s",
            ),
        });
        let interval = at(plugin, &["reload_config", "backoff", "base_interval"]);
        match seconds(interval) {
            Some(base) if base < LEAST_BACKOFF_S => findings.push(Finding::bad(
                &what,
                format!("reload_config.backoff.base_interval is {base} s"),
                "set it to 0.01s or more: below, Envoy ends with SIGFPE at the first reload",
            )),
            Some(base) if base > 0.5 => findings.push(Finding::warn(
                &what,
                format!("reload_config.backoff.base_interval is {base} s"),
                "set it to 0.01s to 0.1s: until it is over, that worker answers 503",
            )),
            None if policy == "FAIL_RELOAD" => findings.push(Finding::warn(
                &what,
                "reload_config.backoff is not set (1 s)",
                "set reload_config.backoff.base_interval to 0.01s: until it is over, that worker \
                 answers 503",
            )),
            _ => {}
        }
        if vm_id.unwrap_or_default().is_empty() && by_istio.is_none() {
            findings.push(Finding::warn(
                &what,
                "vm_config.vm_id is empty: other plugins without one share its data",
                "set vm_config.vm_id: pintle",
            ));
        }
        if at(plugin, &["vm_config", "allow_precompiled"]) == Some(&Value::Bool(true)) {
            findings.push(Finding::warn(
                &what,
                "vm_config.allow_precompiled is true",
                "remove it: machine code inside the module would be run as it is",
            ));
        }
        let remote = at(plugin, &["vm_config", "code", "remote"]);
        if remote.is_some_and(|it| it.get("sha256").is_none_or(|sum| sum == "")) {
            findings.push(Finding::bad(
                &what,
                "the module is fetched and its sha256 is not checked",
                "set vm_config.code.remote.sha256, or use a local file",
            ));
        }
    }
    if seen.is_empty() {
        findings.push(Finding::bad(
            "wasm plugin",
            "Envoy has no Wasm plugin",
            "add the filter of envoy/envoy.yaml to the HTTP connection manager",
        ));
    }
    findings
}

/// What our own plugins are told must have its other half in Envoy's configuration.
fn settings(all: &[&Object]) -> Vec<Finding> {
    let sources = override_sources(all);
    let clusters: BTreeSet<&str> = all
        .iter()
        .filter(|object| object.contains_key("connect_timeout") || object.contains_key("type"))
        .filter_map(|object| text(object, "name"))
        .collect();
    let mut findings = Vec::new();
    for plugin in all.iter().filter(|object| object.contains_key("vm_config")) {
        let value = at(plugin, &["configuration", "value"]).and_then(Value::as_str);
        // Another module's settings are none of ours.
        let Some(config) = value.and_then(|json| Config::parse(json.as_bytes()).ok()) else {
            continue;
        };
        let what = format!("settings of {}", text(plugin, "name").unwrap_or("(no name)"));
        match &config.agent {
            None if config.select.is_none() => {}
            None => findings.push(Finding::bad(
                &what,
                "sync.cluster is not set: no table comes",
                "set it to the cluster whose endpoint is the agent's socket",
            )),
            Some(agent) if !clusters.contains(agent.as_str()) => findings.push(Finding::bad(
                &what,
                format!("sync.cluster is {agent}, and there is no such cluster"),
                "name the cluster whose endpoint is the agent's socket",
            )),
            Some(_) => {}
        }
        if config.breaker && config.select.is_none() {
            findings.push(Finding::bad(
                &what,
                "breaker does nothing without select, which asks the breakers",
                "add select to the same plugin",
            ));
        }
        let Some(select) = &config.select else { continue };
        if select.via == Via::OverrideHost && !sources.contains(select.header.as_str()) {
            findings.push(Finding::bad(
                &what,
                format!("endpoints are listed in {}, and no cluster reads it", select.header),
                "give the services' clusters the load_balancing_policy override_host with \
                 override_host_sources: [{header: <that>}]",
            ));
        }
    }
    findings
}

/// The headers that choose a host of some cluster.
fn override_sources<'a>(all: &[&'a Object]) -> BTreeSet<&'a str> {
    let policies = all.iter().filter_map(|object| object.get("override_host_sources")?.as_array());
    policies.flatten().filter_map(|source| source.get("header")?.as_str()).collect()
}

/// The headers that choose a host must be the module's: stripped from the client's request first, and
/// not taken away by the route before the choice.
fn headers(all: &[&Object]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let sources = override_sources(all);
    let managers: Vec<&&Object> = all
        .iter()
        .filter(|object| object.contains_key("stat_prefix") && object.contains_key("http_filters"))
        .collect();
    for header in &sources {
        let what = format!("header {header}");
        let open: BTreeSet<&str> = managers
            .iter()
            .filter(|manager| !strips(manager, header))
            .filter_map(|manager| text(manager, "stat_prefix"))
            .collect();
        let open: Vec<&str> = open.into_iter().collect();
        findings.push(if open.is_empty() {
            Finding::good(&what, "a client's copy is removed before use")
        } else {
            Finding::bad(
                &what,
                format!("a client may choose its host through {}", open.join(", ")),
                "add early_header_mutation_extensions to the HTTP connection manager, with \
                 mutations: [{remove: <header>}]",
            )
        });
        let removed_too_early = all.iter().any(|object| {
            let list = object.get("request_headers_to_remove").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|it| it.as_str() == Some(header)))
        });
        if removed_too_early {
            findings.push(Finding::bad(
                &what,
                "request_headers_to_remove takes it away before the host is chosen",
                "remove it in the cluster's upstream filter instead \
                 (envoy.filters.http.header_mutation)",
            ));
        }
    }
    findings
}

fn strips(manager: &Object, header: &str) -> bool {
    let mut found = false;
    for key in ["early_header_mutation_extensions", "internal_only_headers"] {
        let Some(value) = manager.get(key) else {
            continue;
        };
        visit(value, &mut |object| {
            found |= text(object, "remove").is_some_and(|it| it.eq_ignore_ascii_case(header));
        });
    }
    // Route-level, and good with use_remote_address.
    let route = manager.get("route_config").and_then(Value::as_object);
    let internal = route.and_then(|route| route.get("internal_only_headers")?.as_array());
    let remote = manager.get("use_remote_address") == Some(&Value::Bool(true));
    found
        || remote && internal.is_some_and(|list| list.iter().any(|it| it.as_str() == Some(header)))
}

fn original_dst(all: &[&Object]) -> Vec<Finding> {
    let by_header =
        all.iter().filter_map(|object| object.get("original_dst_lb_config")).any(|config| {
            config.get("use_http_header") == Some(&Value::Bool(true))
                || config.get("http_header_name").is_some_and(|name| name != "")
        });
    if by_header {
        vec![Finding::bad(
            "original_dst",
            "a cluster takes its address from a request header: any address can be reached",
            "leave original_dst_lb_config empty; the module sets the address by filter state",
        )]
    } else {
        Vec::new()
    }
}

/// Hosts of our clusters that a discovery service of their own brings, as the agent does.
fn eds(all: &[&Object]) -> Vec<Finding> {
    let overridden = |cluster: &Object| {
        let mut found = false;
        if let Some(policy) = cluster.get("load_balancing_policy") {
            visit(policy, &mut |object| {
                found |= object.contains_key("override_host_sources");
            });
        }
        found
    };
    let clusters = all.iter().filter(|object| {
        let source = at(object, &["eds_cluster_config", "eds_config"]);
        object.get("type").and_then(Value::as_str) == Some("EDS")
            && overridden(object)
            && source.is_some_and(|it| it.get("api_config_source").is_some())
    });
    let mut findings = Vec::new();
    for cluster in clusters {
        let what = format!("cluster {}", text(cluster, "name").unwrap_or_default());
        let config = ["eds_cluster_config", "eds_config"];
        let wait = seconds(at(cluster, &[config[0], config[1], "initial_fetch_timeout"]));
        findings.push(match wait {
            Some(wait) if wait <= 5.0 => Finding::good(&what, "EDS"),
            wait => Finding::warn(
                &what,
                format!(
                    "a start without the agent keeps the listeners closed for {} s",
                    wait.unwrap_or(15.0)
                ),
                "set eds_config.initial_fetch_timeout to 1s or 2s",
            ),
        });
    }
    findings
}

fn wasm_stats(stats: &Value) -> Vec<Finding> {
    let list = stats.get("stats").and_then(Value::as_array);
    let count = |suffix: &str| -> u64 {
        let stats = list.into_iter().flatten().filter_map(Value::as_object);
        stats
            .filter(|stat| text(stat, "name").is_some_and(|name| name.ends_with(suffix)))
            .filter_map(|stat| stat.get("value").and_then(Value::as_u64))
            .sum()
    };
    let active = count("v8.active");
    let reloads = count("vm_reload_success") + count("vm_reload_failure");
    let mut findings = vec![if active > 0 {
        Finding::good("wasm", format!("{active} VMs are active"))
    } else {
        Finding::bad(
            "wasm",
            "no VM is active",
            "the module was not loaded: look for \"wasm\" in Envoy's log",
        )
    }];
    if reloads > 0 {
        findings.push(Finding::warn(
            "wasm",
            format!("a VM has trapped and was reloaded {reloads} times"),
            "look for \"panicked\" in Envoy's log and report it",
        ));
    }
    findings
}

fn sync_cluster(clusters: &Value, socket: &str) -> Option<Finding> {
    let statuses = clusters.get("cluster_statuses")?.as_array()?;
    let cluster = statuses.iter().find(|cluster| {
        let mut found = false;
        visit(cluster, &mut |object| {
            found |= at(object, &["pipe", "path"]).and_then(Value::as_str) == Some(socket);
        });
        found
    })?;
    let name = cluster.get("name").and_then(Value::as_str).unwrap_or_default();
    let what = format!("cluster {name}");
    let mut failures = 0;
    let mut connections = 0;
    visit(cluster, &mut |object| {
        let value = object.get("value").and_then(|value| match value {
            Value::String(text) => text.parse::<u64>().ok(),
            other => other.as_u64(),
        });
        match text(object, "name") {
            Some("cx_connect_fail") => failures += value.unwrap_or(0),
            Some("cx_active") => connections += value.unwrap_or(0),
            _ => {}
        }
    });
    Some(if connections > 0 {
        Finding::good(&what, format!("{connections} connections to the agent"))
    } else {
        Finding::bad(
            &what,
            format!("no connection to the agent ({failures} failed)"),
            "is the agent running, and may Envoy's uid open the socket (socket.allow_uids, \
             socket.mode)? its log names refused peers",
        )
    })
}
