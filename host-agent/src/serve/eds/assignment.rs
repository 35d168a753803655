//! One service as Envoy's `ClusterLoadAssignment`.
//!
//! Endpoints are grouped by region (metadata `region`) and zone, all at priority 0: which zone to
//! prefer is the module's decision, and the native fallback policy may use its own.
//!
//! - **Weight 0** can't be said in Envoy's terms: its weights begin at 1, and leaving the endpoint
//!   out would keep the module from choosing it in panic. It goes as `DRAINING`, which Envoy's own
//!   policies do not choose and do not count towards panic, while `override_host` still finds it.
//! - **Sums**: Envoy refuses a locality whose weights exceed 2^32 - 1. Larger sums are scaled
//!   down, never below 1.
//! - **One address twice**: Envoy identifies hosts by address, so the first id keeps it.
//!
//! The overprovisioning factor is left to Envoy's default (140).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};

use pintle_contract::{Endpoint, Health, Table};
use prost::Message;

use super::proto::envoy::config::endpoint::v3 as pb;

/// The name of the resource type.
pub(crate) const TYPE_URL: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

/// A resource, encoded, and a fingerprint of its bytes that serves as its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    /// The encoded `ClusterLoadAssignment`.
    pub bytes: Vec<u8>,
    /// Equal bytes have equal fingerprints, in every life of the agent.
    pub fingerprint: u64,
}

impl Assignment {
    /// Of a table.
    #[must_use]
    pub(crate) fn of(table: &Table) -> Self {
        Self::new(assignment(table))
    }

    /// Of a service without endpoints.
    #[must_use]
    pub(crate) fn empty(service: &str) -> Self {
        Self::new(pb::ClusterLoadAssignment {
            cluster_name: service.to_owned(),
            endpoints: Vec::new(),
        })
    }

    fn new(assignment: pb::ClusterLoadAssignment) -> Self {
        let bytes = assignment.encode_to_vec();
        // DefaultHasher::new has fixed keys.
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Self { fingerprint: hasher.finish(), bytes }
    }
}

/// The message itself.
#[must_use]
pub(crate) fn assignment(table: &Table) -> pb::ClusterLoadAssignment {
    let mut addresses = BTreeSet::new();
    let mut localities: BTreeMap<(&str, &str), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in &table.endpoints {
        if addresses.insert(endpoint.socket_addr()) {
            let region = endpoint
                .metadata
                .iter()
                .find(|(key, _)| key == "region")
                .map_or("", |(_, value)| value.as_str());
            let locality = (region, endpoint.zone.as_str());
            localities.entry(locality).or_default().push(endpoint);
        }
    }
    pb::ClusterLoadAssignment {
        cluster_name: table.service.clone(),
        endpoints: localities
            .into_iter()
            .map(|((region, zone), endpoints)| pb::LocalityLbEndpoints {
                locality: Some(pb::Locality {
                    region: region.to_owned(),
                    zone: zone.to_owned(),
                    sub_zone: String::new(),
                }),
                lb_endpoints: scaled(&endpoints),
                load_balancing_weight: None,
                priority: 0,
            })
            .collect(),
    }
}

fn scaled(endpoints: &[&Endpoint]) -> Vec<pb::LbEndpoint> {
    let sum: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    let divisor = sum.div_ceil(u64::from(u32::MAX)).max(1);
    // With a divisor every weight rounds down but those that become 1: halve once more for them.
    let divisor = if divisor > 1 { divisor + 1 } else { 1 };
    endpoints
        .iter()
        .map(|endpoint| {
            let health = match (endpoint.health, endpoint.weight) {
                (Health::Healthy, 0) | (Health::Draining, _) => pb::HealthStatus::Draining,
                (Health::Healthy, _) => pb::HealthStatus::Healthy,
                (Health::Unhealthy, _) => pb::HealthStatus::Unhealthy,
            };
            let weight = (u64::from(endpoint.weight) / divisor).max(1);
            pb::LbEndpoint {
                health_status: health.into(),
                load_balancing_weight: Some(u32::try_from(weight).unwrap_or(u32::MAX)),
                host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
                    address: Some(pb::Address {
                        address: Some(pb::address::Address::SocketAddress(pb::SocketAddress {
                            address: endpoint.address.to_string(),
                            port_specifier: Some(pb::socket_address::PortSpecifier::PortValue(
                                u32::from(endpoint.port),
                            )),
                        })),
                    }),
                })),
            }
        })
        .collect()
}
