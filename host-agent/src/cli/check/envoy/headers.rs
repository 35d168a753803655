//! The headers that choose a host: whose they are, and how far they go.

use std::collections::BTreeSet;

use serde_json::Value;

use super::dump::{Dump, Object, members, override_headers, text, visit};
use crate::cli::check::finding::{Code, Finding};

/// The headers that choose a host must be the module's: stripped from the client's request first,
/// and not taken away by the route before the choice.
pub(super) fn headers(dump: &Dump<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let sources = dump.override_headers();
    let managers: Vec<&&Object> = dump
        .all
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
                Code::ClientChoosesHost,
                &what,
                format!("a client may choose its host through {}", open.join(", ")),
                format!(
                    "add early_header_mutation_extensions to the HTTP connection manager, with \
                     mutations: [{{remove: {header}}}], as in envoy/envoy.yaml"
                ),
            )
        });
        let removed_too_early = dump.all.iter().any(|object| {
            let list = object.get("request_headers_to_remove").and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|it| it.as_str() == Some(header)))
        });
        if removed_too_early {
            findings.push(Finding::bad(
                Code::HeaderRemovedEarly,
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

pub(super) fn original_dst(dump: &Dump<'_>) -> Vec<Finding> {
    let by_header =
        dump.all.iter().filter_map(|object| object.get("original_dst_lb_config")).any(|config| {
            config.get("use_http_header") == Some(&Value::Bool(true))
                || config.get("http_header_name").is_some_and(|name| name != "")
        });
    if by_header {
        vec![Finding::bad(
            Code::OriginalDstHeader,
            "original_dst",
            "a cluster takes its address from a request header: any address can be reached",
            "leave original_dst_lb_config empty; the module sets the address by filter state",
        )]
    } else {
        Vec::new()
    }
}

/// Our header must not leave the machine: each cluster that a request with it can reach takes it
/// away on the way out. That is the clusters that choose by it, their members where they are
/// aggregates, and those that requests are mirrored to.
pub(super) fn on_the_wire(dump: &Dump<'_>) -> Vec<Finding> {
    let headers = dump.override_headers();
    let clusters = dump.clusters();
    let mut reached: BTreeSet<&str> = BTreeSet::new();
    for (name, cluster) in &clusters {
        if !override_headers(cluster).is_empty() {
            reached.insert(name);
        }
        reached.extend(members(cluster));
    }
    for object in &dump.all {
        let mirrors = object.get("request_mirror_policies").and_then(Value::as_array);
        reached.extend(
            mirrors.into_iter().flatten().filter_map(|mirror| mirror.get("cluster")?.as_str()),
        );
    }
    let mut findings = Vec::new();
    for name in reached {
        let Some(cluster) = clusters.get(name) else { continue };
        // An aggregate sends nothing itself.
        if cluster.contains_key("cluster_type") && !cluster.contains_key("load_balancing_policy") {
            continue;
        }
        let kept: Vec<&str> =
            headers.iter().copied().filter(|header| !strips_upstream(cluster, header)).collect();
        if let Some(header) = kept.first() {
            findings.push(Finding::bad(
                Code::HeaderOnTheWire,
                &format!("cluster {name}"),
                format!("{header} goes out to the upstream"),
                format!(
                    "add the upstream filter envoy.filters.http.header_mutation with \
                     request_mutations: [{{remove: {header}}}], as in envoy/envoy.yaml"
                ),
            ));
        }
    }
    findings
}

fn strips_upstream(cluster: &Object, header: &str) -> bool {
    let mut found = false;
    if let Some(options) = cluster.get("typed_extension_protocol_options") {
        visit(options, &mut |object| {
            let mutations = object.get("request_mutations").and_then(Value::as_array);
            found |= mutations.into_iter().flatten().any(|mutation| {
                mutation
                    .get("remove")
                    .and_then(Value::as_str)
                    .is_some_and(|removed| removed.eq_ignore_ascii_case(header))
            });
        });
    }
    found
}
