//! Our clusters: whether their hosts are the agent's and their choice is ours.
//!
//! A cluster is ours when its metadata names a service (`filter_metadata.pintle.service`), or when its
//! hosts come by EDS from somewhere and its policy is `override_host`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::dump::{Dump, Object, at, overridden, seconds, text};
use crate::cli::check::finding::{Code, Finding, some};
use crate::serve::admin::view::ServiceJson;

/// What a cluster calls its service: by metadata, else by EDS.
fn service<'a>(name: &'a str, cluster: &'a Object) -> Option<&'a str> {
    let metadata = at(cluster, &["metadata", "filter_metadata", "pintle", "service"]);
    metadata.and_then(Value::as_str).or_else(|| {
        let eds = text(cluster, "type") == Some("EDS");
        let api = at(cluster, &["eds_cluster_config", "eds_config", "api_config_source"]);
        if !eds || api.is_none() || !overridden(cluster) {
            return None;
        }
        let named = at(cluster, &["eds_cluster_config", "service_name"]).and_then(Value::as_str);
        Some(named.filter(|named| !named.is_empty()).unwrap_or(name))
    })
}

/// What can be said without the agent.
pub(super) fn shape(dump: &Dump<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let any_header = !dump.override_headers().is_empty();
    for (name, cluster) in dump.clusters() {
        let Some(service) = service(name, cluster) else { continue };
        let what = format!("cluster {name}");
        if any_header && !overridden(cluster) && text(cluster, "type") != Some("ORIGINAL_DST") {
            findings.push(Finding::bad(
                Code::OverrideHostAbsent,
                &what,
                format!("it is {service}'s, and nothing follows the choice: no override_host"),
                "give it the load_balancing_policy override_host with override_host_sources, as in \
                 envoy/envoy.yaml",
            ));
        }
        for (key, which) in [
            ("health_checks", "Envoy's own health checks"),
            ("outlier_detection", "Envoy's own outlier detection"),
        ] {
            let there = cluster.get(key).is_some_and(|value| match value {
                Value::Array(list) => !list.is_empty(),
                Value::Object(_) => true,
                _ => false,
            });
            if there {
                findings.push(Finding::bad(
                    Code::HealthBeside,
                    &what,
                    format!(
                        "{which} beside the module's: a host that it takes out is skipped unseen"
                    ),
                    format!("remove {key}: the registry's health and the breakers decide"),
                ));
            }
        }
        findings.extend(eds(&what, cluster));
    }
    findings
}

/// Hosts that a discovery service of their own brings, as the agent does.
fn eds(what: &str, cluster: &Object) -> Option<Finding> {
    let source = at(cluster, &["eds_cluster_config", "eds_config"])?;
    source.get("api_config_source")?;
    if text(cluster, "type") != Some("EDS") || !overridden(cluster) {
        return None;
    }
    Some(match seconds(source.get("initial_fetch_timeout")) {
        Some(wait) if wait <= 5.0 => Finding::good(what, "EDS"),
        wait => Finding::warn(
            Code::EdsWaits,
            what,
            format!(
                "a start without the agent keeps the listeners closed for {} s",
                wait.unwrap_or(15.0)
            ),
            "set eds_config.initial_fetch_timeout to 1s or 2s",
        ),
    })
}

/// Services that no table has.
pub(super) fn unknown(dump: &Dump<'_>, services: &[ServiceJson]) -> Vec<Finding> {
    let known: BTreeSet<&str> = services.iter().map(|it| it.service.as_str()).collect();
    let mut findings = Vec::new();
    for (name, cluster) in dump.clusters() {
        let Some(service) = service(name, cluster).filter(|it| !known.contains(it)) else {
            continue;
        };
        let near = nearest(service, &known);
        findings.push(Finding::bad(
            Code::ServiceUnknown,
            &format!("cluster {name}"),
            if near.is_empty() {
                format!("its service is {service}, and the agent knows no such service")
            } else {
                format!("its service is {service}, and the agent knows none but {}", some(near, 3))
            },
            format!(
                "correct filter_metadata.pintle.service or eds_cluster_config.service_name, or \
                 register {service}"
            ),
        ));
    }
    findings
}

/// Names that are like `name`, or a few where none is.
fn nearest<'a>(name: &str, known: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let mut all: Vec<(usize, &str)> = known.iter().map(|it| (distance(name, it), *it)).collect();
    all.sort_unstable();
    all.truncate(3);
    all.into_iter().map(|(_, name)| name).collect()
}

/// Edits from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let best = (corner + usize::from(x != y)).min(left + 1).min(*cell + 1);
            corner = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Clusters that have hosts, none of which the agent knows: what the module lists is skipped.
pub(super) fn hosts(dump: &Dump<'_>, statuses: &Value, services: &[ServiceJson]) -> Vec<Finding> {
    let known: BTreeMap<&str, &ServiceJson> =
        services.iter().map(|it| (it.service.as_str(), it)).collect();
    let clusters = dump.clusters();
    let mut findings = Vec::new();
    let all = statuses.get("cluster_statuses").and_then(Value::as_array);
    for status in all.into_iter().flatten().filter_map(Value::as_object) {
        let Some(name) = text(status, "name") else { continue };
        let Some(cluster) = clusters.get(name).filter(|it| overridden(it)) else {
            continue;
        };
        let Some(service) = service(name, cluster).and_then(|it| known.get(it)) else { continue };
        let hosts = addresses(status);
        let endpoints: BTreeSet<&str> =
            service.endpoints.iter().map(|it| it.address.as_str()).collect();
        let foreign = hosts.iter().all(|host| !endpoints.contains(host.as_str()));
        if !hosts.is_empty() && !endpoints.is_empty() && foreign {
            findings.push(Finding::bad(
                Code::HostsForeign,
                &format!("cluster {name}"),
                format!(
                    "its hosts ({}) are none of {}'s endpoints ({}): the choice is never followed",
                    some(hosts, 3),
                    service.service,
                    some(endpoints, 3)
                ),
                "let its hosts come from the agent by EDS, as in envoy/envoy.yaml",
            ));
        }
    }
    findings
}

fn addresses(status: &Object) -> Vec<String> {
    let hosts = status.get("host_statuses").and_then(Value::as_array);
    let address = |host: &Value| {
        let socket = host.get("address")?.get("socket_address")?;
        let ip: std::net::IpAddr = socket.get("address")?.as_str()?.parse().ok()?;
        let port = u16::try_from(socket.get("port_value")?.as_u64()?).ok()?;
        Some(std::net::SocketAddr::from((ip, port)).to_string())
    };
    hosts.into_iter().flatten().filter_map(address).collect()
}
