//! Services, their endpoints, and the traffic of both.

use std::collections::BTreeMap;

use pintle_contract::{Endpoint, Health};
use pintle_state::{Service, Snapshot};
use serde::{Deserialize, Serialize};

use super::breakers::{self, BreakerJson, ForceJson, OpinionJson};
use super::{stamp, time};
use crate::fleet::{EndpointView, MinuteView, ServiceView, View};

/// `/v1/services`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServicesJson {
    /// Of the snapshot.
    pub version: String,
    /// Whether it is from disk and unconfirmed.
    pub stale: bool,
    /// When the registry last confirmed it.
    pub confirmed_at: Option<String>,
    /// How many services there are in all.
    pub total: usize,
    /// Those of this answer, by name.
    pub services: Vec<ServiceJson>,
    /// The `after` of the next answer, when there are more.
    pub next: Option<String>,
}

impl ServicesJson {
    /// At most `limit` services after the name `after`, of those with `contains` in their name,
    /// whatever its case; with their endpoints when asked for.
    #[must_use]
    pub(crate) fn of(
        snapshot: &Snapshot,
        view: &View,
        after: Option<&str>,
        contains: &str,
        limit: usize,
        endpoints: bool,
    ) -> Self {
        let contains = contains.to_lowercase();
        let rest = snapshot.services.after(after);
        let mut rest = rest.filter(|service| service.name().to_lowercase().contains(&contains));
        let services: Vec<ServiceJson> = rest
            .by_ref()
            .take(limit)
            .map(|service| ServiceJson::of(service, view.services.get(service.name()), endpoints))
            .collect();
        let next = rest.next().and(services.last()).map(|s| s.service.clone());
        Self {
            version: snapshot.version.to_string(),
            stale: snapshot.stale,
            confirmed_at: snapshot.confirmed_at.map(time),
            total: snapshot.services.len(),
            services,
            next,
        }
    }
}

/// One service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServiceJson {
    /// Name.
    pub service: String,
    /// When its table last changed.
    pub version: String,
    /// Its policy, merged, if it has one.
    pub policy: Option<serde_json::Value>,
    /// Requests since the agent counts.
    pub requests: u64,
    /// Those of them that ended with 5xx or without a status.
    pub errors: u64,
    /// Attempts a second.
    pub rate: f64,
    /// In flight.
    pub in_flight: u64,
    /// Mean time of a request, in milliseconds.
    pub mean_ms: Option<f64>,
    /// Requests spread in panic.
    pub panics: u64,
    /// Requests answered locally.
    pub no_endpoint: u64,
    /// Attempts that went elsewhere than the filter's list says, or nobody knows where.
    #[serde(default)]
    pub not_followed: u64,
    /// Requests with a hash that went by p2c for want of their ring or table.
    #[serde(default)]
    pub unplaced: u64,
    /// The last minute of these.
    pub minute: MinuteJson,
    /// By id.
    pub endpoints: Vec<EndpointJson>,
}

impl ServiceJson {
    /// Of one service and what is known of its traffic.
    #[must_use]
    pub(crate) fn of(service: &Service, view: Option<&ServiceView>, endpoints: bool) -> Self {
        let table = &service.table;
        let unknown = ServiceView::default();
        let view = view.unwrap_or(&unknown);
        let requests: u64 = view.requests.values().sum();
        let failed =
            view.requests.iter().filter(|((_, code), _)| *code == 0 || (500..600).contains(code));
        let timed: u64 = view.latency.iter().sum();
        let none = EndpointView::default();
        Self {
            service: table.service.clone(),
            version: table.version.to_string(),
            policy: serde_json::from_str(&table.policy).ok(),
            requests,
            errors: failed.map(|(_, count)| count).sum(),
            rate: round(view.rate),
            in_flight: view.in_flight,
            mean_ms: (timed > 0)
                .then(|| round(view.latency_sum_us as f64 / timed as f64 / 1_000.0)),
            panics: view.panics,
            no_endpoint: view.no_endpoint,
            not_followed: view.not_followed,
            unplaced: view.unplaced,
            minute: MinuteJson::of(&view.minute),
            endpoints: if endpoints {
                table
                    .endpoints
                    .iter()
                    .map(|endpoint| {
                        let seen = view.endpoints.get(&endpoint.id).unwrap_or(&none);
                        let also = service.names.get(&endpoint.id).cloned();
                        let also = also.unwrap_or_default();
                        EndpointJson { also, ..EndpointJson::of(endpoint, seen, view.rate) }
                    })
                    .collect()
            } else {
                Vec::new()
            },
        }
    }
}

/// What was counted within the last minute.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MinuteJson {
    /// Requests.
    pub requests: u64,
    /// Those of them that ended with 5xx or without a status.
    pub errors: u64,
    /// Mean time of a request, in milliseconds.
    pub mean_ms: Option<f64>,
    /// Requests spread in panic.
    pub panics: u64,
    /// Requests answered locally.
    pub no_endpoint: u64,
    /// Attempts that went elsewhere than the filter's list says, or nobody knows where.
    #[serde(default)]
    pub not_followed: u64,
    /// Requests with a hash that went by p2c for want of their ring or table.
    #[serde(default)]
    pub unplaced: u64,
}

impl MinuteJson {
    pub(super) fn of(view: &MinuteView) -> Self {
        let mean = view.latency_sum_us as f64 / view.timed as f64 / 1_000.0;
        Self {
            requests: view.requests,
            errors: view.errors,
            mean_ms: (view.timed > 0).then(|| round(mean)),
            panics: view.panics,
            no_endpoint: view.no_endpoint,
            not_followed: view.not_followed,
            unplaced: view.unplaced,
        }
    }
}

/// One endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct EndpointJson {
    /// The newest id.
    pub id: String,
    /// The other ids of the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// `ip:port`.
    pub address: String,
    /// 0 to 1,000,000.
    pub weight: u32,
    /// `healthy`, `unhealthy` or `draining`, overlays applied.
    pub health: String,
    /// Where it runs; empty when not said.
    pub zone: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Metadata without the keys that became fields.
    pub metadata: BTreeMap<String, String>,
    /// When it registered.
    pub registered_at: Option<String>,
    /// In flight.
    pub in_flight: u64,
    /// Estimated latency in milliseconds.
    pub latency_ms: Option<f64>,
    /// Attempts.
    pub requests: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts within the last minute.
    pub minute_requests: u64,
    /// Those of them that failed.
    pub minute_failures: u64,
    /// Attempts a second.
    pub rate: f64,
    /// Share of the service's attempts lately, 0 to 1.
    pub share: f64,
    /// The breaker.
    pub breaker: BreakerJson,
    /// What other proxies of the fleet say.
    pub opinion: Option<OpinionJson>,
    /// What an operator ordered.
    pub force: Option<ForceJson>,
}

impl EndpointJson {
    fn of(endpoint: &Endpoint, view: &EndpointView, rate: f64) -> Self {
        Self {
            id: endpoint.id.clone(),
            also: Vec::new(),
            address: endpoint.socket_addr().to_string(),
            weight: endpoint.weight,
            health: health(endpoint.health).to_owned(),
            zone: endpoint.zone.clone(),
            tags: endpoint.tags.to_vec(),
            metadata: endpoint.metadata.iter().cloned().collect(),
            registered_at: stamp(endpoint.registered_at),
            in_flight: view.in_flight,
            latency_ms: (view.latency_us > 0).then(|| round(view.latency_us as f64 / 1_000.0)),
            requests: view.requests,
            failures: view.failures,
            minute_requests: view.minute.0,
            minute_failures: view.minute.1,
            rate: round(view.rate),
            share: if rate > 0.01 { round(view.rate / rate) } else { 0.0 },
            breaker: BreakerJson::of(view),
            opinion: breakers::opinion(endpoint),
            force: breakers::force(endpoint),
        }
    }
}

pub(super) fn round(value: f64) -> f64 {
    // Zero has no sign here: a rate that has died down is not -0.
    (value * 1_000.0).round() / 1_000.0 + 0.0
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
        Health::Draining => "draining",
    }
}
