//! The hosts of our clusters: whether a list of addresses can name them.
//!
//! `override_host` takes the host of the cluster whose address, as `ip:port`, is the list's next
//! entry, and skips an entry that is none. So a cluster with other hosts than the registry's, or
//! with hosts that have no such address, goes its own way for a part of the requests or for all of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::clusters::service;
use super::dump::{Dump, Object, at, overridden, text, visit};
use crate::cli::check::finding::{Code, Finding, plural, some};
use crate::serve::admin::view::ServiceJson;

/// What a host is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    /// `ip:port`, which a list can name.
    Address(String),
    /// A name for DNS, with its port.
    Name(String),
    /// A pipe, or an internal listener's address: nothing that a list can name.
    Other(String),
}

impl Host {
    /// Of an `Address` as Envoy prints it.
    fn of(address: &Object) -> Option<Self> {
        if let Some(pipe) = at(address, &["pipe", "path"]).and_then(Value::as_str) {
            return Some(Self::Other(format!("pipe {pipe}")));
        }
        if let Some(inner) = address.get("envoy_internal_address") {
            let listener = inner.get("server_listener_name").and_then(Value::as_str);
            return Some(Self::Other(format!("envoy://{}", listener.unwrap_or_default())));
        }
        let socket = address.get("socket_address")?.as_object()?;
        let host = text(socket, "address")?;
        let port = socket.get("port_value").and_then(Value::as_u64).unwrap_or_default();
        let parsed = host.parse::<IpAddr>().ok().zip(u16::try_from(port).ok());
        Some(match parsed {
            Some((ip, port)) => Self::Address(SocketAddr::from((ip, port)).to_string()),
            None => Self::Name(format!("{host}:{port}")),
        })
    }

    /// All in `value`, wherever they stand in it.
    fn all(value: &Value) -> BTreeSet<Self> {
        let mut found = BTreeSet::new();
        visit(value, &mut |object| {
            let address = object.get("address").and_then(Value::as_object);
            found.extend(address.and_then(Self::of));
        });
        found
    }
}

/// What the configuration says of the hosts, without the agent.
pub(super) fn configured(dump: &Dump<'_>) -> Vec<Finding> {
    let ours = dump
        .clusters()
        .into_iter()
        .filter(|(name, cluster)| overridden(cluster) && service(name, cluster).is_some());
    let findings = ours.filter_map(|(name, cluster)| {
        let hosts = Host::all(cluster.get("load_assignment")?);
        let what = format!("cluster {name}");
        unnamed(&what, &hosts).or_else(|| {
            let names = hosts.iter().filter_map(|host| match host {
                Host::Name(name) => Some(name),
                Host::Address(_) | Host::Other(_) => None,
            });
            let names: Vec<&String> = names.collect();
            let dns = || {
                Finding::warn(
                    Code::HostsByName,
                    &what,
                    format!(
                        "its hosts come by DNS ({}): the choice is followed as far as the names \
                         lead to the registry's addresses",
                        some(&names, 3)
                    ),
                    "let its hosts come from the agent by EDS, as in envoy/envoy.yaml",
                )
            };
            (!names.is_empty()).then(dns)
        })
    });
    findings.collect()
}

/// The hosts that a running Envoy has, beside the endpoints that the agent knows.
pub(super) fn running(dump: &Dump<'_>, statuses: &Value, services: &[ServiceJson]) -> Vec<Finding> {
    let known: BTreeMap<&str, &ServiceJson> =
        services.iter().map(|it| (it.service.as_str(), it)).collect();
    let clusters = dump.clusters();
    let all = statuses.get("cluster_statuses").and_then(Value::as_array);
    let findings = all.into_iter().flatten().filter_map(Value::as_object).filter_map(|status| {
        let name = text(status, "name")?;
        let cluster = clusters.get(name).filter(|it| overridden(it))?;
        let service = known.get(service(name, cluster)?)?;
        let hosts = Host::all(status.get("host_statuses")?);
        let what = format!("cluster {name}");
        unnamed(&what, &hosts).or_else(|| foreign(&what, cluster, &hosts, service))
    });
    findings.collect()
}

/// Hosts that no list can name.
fn unnamed(what: &str, hosts: &BTreeSet<Host>) -> Option<Finding> {
    let others = hosts.iter().filter_map(|host| match host {
        Host::Other(other) => Some(other),
        Host::Address(_) | Host::Name(_) => None,
    });
    let others: Vec<&String> = others.collect();
    let finding = || {
        Finding::bad(
            Code::HostsUnnamed,
            what,
            format!(
                "of its {} {} can't be listed as ip:port ({}): no choice leads there",
                plural(hosts.len(), "host"),
                others.len(),
                some(&others, 3)
            ),
            "let its hosts come from the agent by EDS; in an ambient mesh leave the service to \
             Envoy (a policy with \"bypass\": true)",
        )
    };
    (!others.is_empty()).then(finding)
}

/// Hosts that are others than the service's endpoints, or fewer.
fn foreign(
    what: &str,
    cluster: &Object,
    hosts: &BTreeSet<Host>,
    service: &ServiceJson,
) -> Option<Finding> {
    let endpoints: BTreeSet<&str> = service.endpoints.iter().map(|it| &*it.address).collect();
    let addresses = hosts.iter().filter_map(|host| match host {
        Host::Address(address) => Some(address.as_str()),
        Host::Name(_) | Host::Other(_) => None,
    });
    let addresses: BTreeSet<&str> = addresses.collect();
    if addresses.is_empty() || endpoints.is_empty() {
        return None;
    }
    let name = &service.service;
    let strange: Vec<_> = addresses.difference(&endpoints).collect();
    if strange.len() == addresses.len() {
        return Some(Finding::bad(
            Code::HostsForeign,
            what,
            format!(
                "its hosts ({}) are none of {name}'s endpoints ({}): the choice is never followed",
                some(strange, 3),
                some(endpoints, 3)
            ),
            "let its hosts come from the agent by EDS, as in envoy/envoy.yaml",
        ));
    }
    let confined = at(cluster, &["metadata", "filter_metadata", "pintle", "subset"]).is_some();
    let missing: Vec<_> = endpoints.difference(&addresses).collect();
    // What the agent serves by EDS may be on its way.
    let served = at(cluster, &["eds_cluster_config", "eds_config", "api_config_source"]).is_some();
    (!missing.is_empty() && !confined && !served).then(|| {
        Finding::bad(
            Code::HostsMissing,
            what,
            format!(
                "{} of {name}'s {} are no hosts of it ({}): where they are listed, the choice is \
                 not followed",
                missing.len(),
                plural(endpoints.len(), "endpoint"),
                some(missing, 3)
            ),
            "let its hosts come from the agent by EDS; a cluster for a part of a service names it \
             by filter_metadata.pintle.subset",
        )
    })
}
