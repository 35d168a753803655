//! Our clusters: whether their choice is ours, and how Envoy's own health stands to it.
//!
//! A cluster is ours when its metadata names a service (`filter_metadata.pintle.service`), or when
//! its hosts come by EDS from somewhere and its policy is `override_host`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::dump::{Dump, Object, at, members, overridden, seconds, text, visit};
use crate::cli::check::finding::{Code, Finding, some};
use crate::nearest::{but, nearest};
use crate::serve::admin::view::ServiceJson;

/// What a cluster calls its service: by metadata, else by EDS.
pub(super) fn service<'a>(name: &'a str, cluster: &'a Object) -> Option<&'a str> {
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
    let mut findings = aggregates(dump);
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
                        "{which} beside the module's: the list leads to hosts that it takes out"
                    ),
                    format!("remove {key}: the registry's health and the breakers decide"),
                ));
            }
        }
        findings.extend(eds(&what, cluster));
    }
    findings
}

/// The agent's clusters by whose protocol it can't be reached: it speaks gRPC alone.
pub(super) fn without_http2(dump: &Dump<'_>, socket: &str) -> Vec<Finding> {
    let has = |cluster: &Object, mark: &dyn Fn(&Object) -> bool| {
        let mut found = mark(cluster);
        cluster.values().for_each(|value| visit(value, &mut |object| found |= mark(object)));
        found
    };
    let clusters = dump.clusters().into_iter();
    let of_agent = clusters.filter(|(_, it)| has(it, &|at| text(at, "path") == Some(socket)));
    let silent =
        of_agent.filter(|(_, it)| !has(it, &|at| at.contains_key("http2_protocol_options")));
    silent
        .map(|(name, _)| {
            Finding::bad(
                Code::AgentClusterHttp1,
                &format!("cluster {name}"),
                "Envoy speaks HTTP/1.1 to the agent's socket, and the agent gRPC alone",
                "give it http2_protocol_options (HttpProtocolOptions, explicit_http_config), as in \
                 envoy/envoy.yaml",
            )
        })
        .collect()
}

/// Aggregates of clusters that would follow the choice: inside of one the list is not read (seen on
/// 1.40.0, `tests/ledger`).
fn aggregates(dump: &Dump<'_>) -> Vec<Finding> {
    let clusters = dump.clusters();
    let follows = |name: &&str| clusters.get(name).is_some_and(|it| overridden(it));
    let findings = clusters.iter().filter_map(|(name, cluster)| {
        let members: Vec<&str> = members(cluster).filter(follows).collect();
        let (first, what) = (members.first()?, format!("cluster {name}"));
        Some(Finding::bad(
            Code::ChoiceInAggregate,
            &what,
            format!(
                "it is an aggregate, in which its members ({}) don't follow the choice",
                some(&members, 3)
            ),
            format!(
                "route to {first} itself; what the other members are there for, the tiers of a \
                 registry and select.failover do"
            ),
        ))
    });
    findings.collect()
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
        let near = nearest(service, known.iter().copied());
        findings.push(Finding::bad(
            Code::ServiceUnknown,
            &format!("cluster {name}"),
            format!(
                "its service is {service}, and nothing of that name is registered{}",
                but(&near)
            ),
            format!(
                "correct filter_metadata.pintle.service or eds_cluster_config.service_name, or \
                 register {service}"
            ),
        ));
    }
    findings
}
