//! What a running Envoy counts: its VMs, and its connections to the agent.

use serde_json::Value;

use super::dump::{at, text, visit};
use crate::cli::check::finding::{Code, Finding, plural};

pub(super) fn wasm_stats(stats: &Value) -> Vec<Finding> {
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
        Finding::good("wasm", format!("{} active", plural(active, "VM")))
    } else {
        Finding::bad(
            Code::WasmInactive,
            "wasm",
            "no VM is active",
            "the module was not loaded: look for \"wasm\" in Envoy's log",
        )
    }];
    if reloads > 0 {
        findings.push(Finding::warn(
            Code::WasmTrapped,
            "wasm",
            format!("a VM has trapped: {} since Envoy's start", plural(reloads, "reload")),
            "look for \"panicked\" in Envoy's log and report it",
        ));
    }
    findings
}

pub(super) fn agent_cluster(clusters: &Value, socket: &str) -> Option<Finding> {
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
        Finding::good(&what, format!("{} to the agent", plural(connections, "connection")))
    } else {
        Finding::bad(
            Code::AgentClusterIdle,
            &what,
            format!("no connection to the agent ({failures} failed)"),
            "is the agent running, and may Envoy's uid open the socket (socket.allow_uids, \
             socket.mode)? its log names refused peers",
        )
    })
}
