//! The JSON of the admin API: plain types, written at the edge, read back by the CLI.
//!
//! Times are RFC 3339 in UTC, latencies milliseconds, rates a second. A field that is not known is
//! null. Fields may be added; none changes its meaning.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use pintle_snapshot::{Endpoint, ForceAction, Health, Now};
use pintle_state::{Held, Overlay, Rejected, Service, Snapshot};
use serde::{Deserialize, Serialize};

use crate::fleet::{self, BreakerView, EndpointView, ProxyView, ServiceView, View};
use crate::link::{Activity, SourceStatus, Sources};

/// Characters of text from outside (reasons, errors) that are passed on.
const MAX_TEXT: usize = 500;

/// `/readyz`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadyJson {
    /// Whether there is a snapshot.
    pub ready: bool,
    /// Whether it is from disk and unconfirmed.
    pub stale: bool,
    /// Its version.
    pub version: String,
    /// When the registry last confirmed it.
    pub confirmed_at: Option<String>,
    /// In words.
    pub detail: String,
}

/// `/v1/services`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServicesJson {
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

/// One service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceJson {
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
    /// By id.
    pub endpoints: Vec<EndpointJson>,
}

/// One endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointJson {
    /// The registry's id.
    pub id: String,
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

/// A breaker over all proxies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakerJson {
    /// `closed`, `open` or `half-open`; the most severe.
    pub state: String,
    /// Times it opened.
    pub trips: u64,
    /// The proxies on which it is not closed.
    pub on: Vec<BreakerOnJson>,
}

/// A breaker on one proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakerOnJson {
    /// Node id.
    pub proxy: String,
    /// `open` or `half-open`.
    pub state: String,
    /// Since when.
    pub since: String,
    /// When the first probe is due.
    pub until: Option<String>,
    /// Why.
    pub reason: String,
    /// Whether that proxy's own traffic is the cause.
    pub observed: bool,
    /// How many times in a row it has opened there.
    pub trips: u32,
}

/// What the fleet says of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpinionJson {
    /// How many other proxies hold it open.
    pub reporters: u32,
    /// Until when it counts.
    pub expires_at: String,
}

/// An operator's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForceJson {
    /// `open`, `close` or `clear`.
    pub action: String,
    /// Until when it holds.
    pub until: String,
}

/// `/v1/breakers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakersJson {
    /// Those that are not closed, that the fleet has an opinion of, or that are forced.
    pub breakers: Vec<BreakerRowJson>,
}

/// One row of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BreakerRowJson {
    /// Of the endpoint.
    pub service: String,
    /// The registry's id.
    pub endpoint: String,
    /// `ip:port`.
    pub address: String,
    /// The breaker.
    pub breaker: BreakerJson,
    /// What the fleet says.
    pub opinion: Option<OpinionJson>,
    /// What an operator ordered.
    pub force: Option<ForceJson>,
}

/// `/v1/proxies`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProxiesJson {
    /// By node id.
    pub proxies: Vec<ProxyJson>,
}

/// One Envoy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProxyJson {
    /// Node id.
    pub proxy: String,
    /// Whether it holds a stream.
    pub connected: bool,
    /// Since when it does, or does not.
    pub since: String,
    /// Who it is to the kernel.
    pub peer: String,
    /// The leading worker.
    pub leader: String,
    /// The leader's term.
    pub fence: u64,
    /// The version all its workers hold.
    pub version: String,
    /// Whether that is the newest.
    pub current: bool,
    /// How many workers it says it has.
    pub expected: u32,
    /// Those that spoke lately.
    pub workers: Vec<WorkerJson>,
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerJson {
    /// Its random id, hexadecimal.
    pub worker: String,
    /// What it holds.
    pub version: String,
    /// Seconds since it spoke.
    pub silent_seconds: f64,
}

/// One line of `/v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityJson {
    /// When.
    pub at: String,
    /// `registry`, `event`, `breaker`, `removal`, `proxy` or `source`.
    pub kind: String,
    /// The service it is about.
    pub service: Option<String>,
    /// The endpoint it is about.
    pub endpoint: Option<String>,
    /// In words.
    pub text: String,
}

/// `/v1/events?follow=false`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActivitiesJson {
    /// Oldest first.
    pub events: Vec<ActivityJson>,
}

/// `/v1/rejected`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RejectedJson {
    /// Newest last.
    pub rejected: Vec<RejectedRowJson>,
}

/// Something that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RejectedRowJson {
    /// `registry`, `policy`, `event` or `file`.
    pub source: String,
    /// Key or subject.
    pub key: String,
    /// One of a fixed set of words.
    pub reason: String,
    /// In words.
    pub detail: String,
    /// When.
    pub at: String,
}

/// `/v1/held`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldJson {
    /// Removals that wait.
    pub held: Vec<HeldRowJson>,
}

/// A removal that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldRowJson {
    /// Of the endpoint.
    pub service: String,
    /// The registry's id.
    pub endpoint: String,
    /// Since when.
    pub since: String,
    /// Why.
    pub reason: String,
    /// When it goes by itself.
    pub until: Option<String>,
}

/// `/v1/overlays`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverlaysJson {
    /// Events in force.
    pub overlays: Vec<OverlayJson>,
}

/// An event in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverlayJson {
    /// `endpoint`, `service`, `trace` or `breaker`.
    pub kind: String,
    /// The service it is laid over.
    pub service: String,
    /// The endpoint it is about.
    pub endpoint: Option<String>,
    /// What it does.
    pub action: String,
    /// Who published it.
    pub source: String,
    /// When it ends.
    pub until: String,
}

/// `/v1/sources`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourcesJson {
    /// The registry.
    pub etcd: SourceJson,
    /// The events.
    pub nats: SourceJson,
    /// The file.
    pub file: SourceJson,
    /// Since the start.
    pub events_applied: u64,
    /// Since the start.
    pub events_duplicate: u64,
    /// Since the start.
    pub events_dead_lettered: u64,
    /// Since the start.
    pub removals_held: u64,
    /// Since the start.
    pub outgoing_dropped: u64,
    /// Why the last good state cannot be written to disk, while it cannot.
    #[serde(default)]
    pub disk_error: Option<String>,
}

/// How a source does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceJson {
    /// Whether it is configured.
    pub enabled: bool,
    /// Whether it answers.
    pub connected: bool,
    /// Where.
    pub endpoint: String,
    /// Revision or sequence.
    pub position: u64,
    /// When it last said anything.
    pub last_seen: Option<String>,
    /// The last error.
    pub error: Option<String>,
    /// Connections made.
    pub connects: u64,
}

/// What the page shows, in one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StateJson {
    /// The agent's name.
    pub agent: String,
    /// Readiness.
    pub ready: ReadyJson,
    /// Services, as many as a page can show.
    pub services: ServicesJson,
    /// Envoys.
    pub proxies: Vec<ProxyJson>,
    /// Removals that wait.
    pub held: Vec<HeldRowJson>,
    /// Events in force.
    pub overlays: Vec<OverlayJson>,
    /// Sources.
    pub sources: SourcesJson,
    /// How many refused entries are remembered.
    pub rejected: usize,
}

/// `POST /v1/release/{service}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleasedJson {
    /// The service.
    pub service: String,
    /// How many removals went.
    pub released: u64,
}

// === from the inside out ===

/// RFC 3339 with milliseconds.
#[must_use]
pub fn time(at: SystemTime) -> String {
    // The format knows the years 1970 to 9999.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let at = at.clamp(SystemTime::UNIX_EPOCH, last);
    humantime::format_rfc3339_millis(at).to_string()
}

fn stamp(at: Now) -> Option<String> {
    (at.0 > 0).then(|| time(fleet::wall(at)))
}

/// Text from outside, without control characters and not too long.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl ReadyJson {
    /// Of a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let ready = crate::serve::sync::is_loaded(snapshot);
        let detail = match (ready, snapshot.stale) {
            (false, _) => "no snapshot yet: the registry has not answered and none is on disk",
            (true, true) => "stale: from disk, not confirmed by the registry yet",
            (true, false) => "confirmed by the registry",
        };
        Self {
            ready,
            stale: snapshot.stale,
            version: snapshot.version.to_string(),
            confirmed_at: snapshot.confirmed_at.map(time),
            detail: detail.to_owned(),
        }
    }
}

impl ServicesJson {
    /// At most `limit` services after the name `after`; with their endpoints when asked for.
    #[must_use]
    pub fn of(
        snapshot: &Snapshot,
        view: &View,
        after: Option<&str>,
        limit: usize,
        endpoints: bool,
    ) -> Self {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = snapshot.services.range::<str, _>((from, Bound::Unbounded));
        let services: Vec<ServiceJson> = rest
            .by_ref()
            .take(limit)
            .map(|(name, service)| ServiceJson::of(service, view.services.get(name), endpoints))
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

impl ServiceJson {
    /// Of one service and what is known of its traffic.
    #[must_use]
    pub fn of(service: &Service, view: Option<&ServiceView>, endpoints: bool) -> Self {
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
            endpoints: if endpoints {
                table
                    .endpoints
                    .iter()
                    .map(|endpoint| {
                        let seen = view.endpoints.get(&endpoint.id).unwrap_or(&none);
                        EndpointJson::of(endpoint, seen, view.rate)
                    })
                    .collect()
            } else {
                Vec::new()
            },
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl EndpointJson {
    fn of(endpoint: &Endpoint, view: &EndpointView, rate: f64) -> Self {
        Self {
            id: endpoint.id.clone(),
            address: endpoint.socket_addr().to_string(),
            weight: endpoint.weight,
            health: health(endpoint.health).to_owned(),
            zone: endpoint.zone.clone(),
            tags: endpoint.tags.clone(),
            metadata: endpoint.metadata.iter().cloned().collect(),
            registered_at: stamp(endpoint.registered_at),
            in_flight: view.in_flight,
            latency_ms: (view.latency_us > 0).then(|| round(view.latency_us as f64 / 1_000.0)),
            requests: view.requests,
            failures: view.failures,
            rate: round(view.rate),
            share: if rate > 0.01 { round(view.rate / rate) } else { 0.0 },
            breaker: BreakerJson::of(view),
            opinion: opinion(endpoint),
            force: force(endpoint),
        }
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
        Health::Draining => "draining",
    }
}

fn is_ahead(at: Now) -> bool {
    fleet::wall(at) > SystemTime::now()
}

fn opinion(endpoint: &Endpoint) -> Option<OpinionJson> {
    let opinion = endpoint.opinion.filter(|it| is_ahead(it.expires_at))?;
    Some(OpinionJson {
        reporters: opinion.reporters,
        expires_at: time(fleet::wall(opinion.expires_at)),
    })
}

fn force(endpoint: &Endpoint) -> Option<ForceJson> {
    let force = endpoint.force.filter(|it| is_ahead(it.until))?;
    let action = match force.action {
        ForceAction::Open => "open",
        ForceAction::Close => "close",
        ForceAction::Clear => "clear",
    };
    Some(ForceJson { action: action.to_owned(), until: time(fleet::wall(force.until)) })
}

impl BreakerJson {
    fn of(view: &EndpointView) -> Self {
        Self {
            state: view.state.as_str().to_owned(),
            trips: view.trips,
            on: view.breakers.iter().map(BreakerOnJson::of).collect(),
        }
    }
}

impl BreakerOnJson {
    fn of(view: &BreakerView) -> Self {
        Self {
            proxy: clean(&view.proxy),
            state: view.state.as_str().to_owned(),
            since: time(view.since),
            until: view.until.map(time),
            reason: clean(&view.reason),
            observed: view.observed,
            trips: view.trips,
        }
    }
}

impl BreakersJson {
    /// At most `limit` rows; all endpoints when `all`.
    #[must_use]
    pub fn of(snapshot: &Snapshot, view: &View, limit: usize, all: bool) -> Self {
        let none = EndpointView::default();
        let rows = snapshot.services.iter().flat_map(|(name, service)| {
            let seen = view.services.get(name);
            let none = &none;
            service.table.endpoints.iter().filter_map(move |endpoint| {
                let seen = seen.and_then(|seen| seen.endpoints.get(&endpoint.id));
                let row = BreakerRowJson {
                    service: name.clone(),
                    endpoint: endpoint.id.clone(),
                    address: endpoint.socket_addr().to_string(),
                    breaker: BreakerJson::of(seen.unwrap_or(none)),
                    opinion: opinion(endpoint),
                    force: force(endpoint),
                };
                let interesting =
                    !row.breaker.on.is_empty() || row.opinion.is_some() || row.force.is_some();
                (all || interesting).then_some(row)
            })
        });
        Self { breakers: rows.take(limit).collect() }
    }
}

impl ProxyJson {
    /// Of one proxy.
    #[must_use]
    pub fn of(view: &ProxyView) -> Self {
        Self {
            proxy: clean(&view.proxy),
            connected: view.connected,
            since: time(view.since),
            peer: view.peer.clone(),
            leader: format!("{:016x}", view.leader),
            fence: view.fence,
            version: view.version.to_string(),
            current: view.current,
            expected: view.expected,
            workers: view
                .workers
                .iter()
                .map(|worker| WorkerJson {
                    worker: format!("{:016x}", worker.worker),
                    version: worker.version.to_string(),
                    silent_seconds: worker.silent.round(),
                })
                .collect(),
        }
    }
}

impl ActivityJson {
    /// Of one activity.
    #[must_use]
    pub fn of(activity: &Activity) -> Self {
        Self {
            at: time(activity.at),
            kind: activity.kind.to_owned(),
            service: activity.service.as_deref().map(clean),
            endpoint: activity.endpoint.as_deref().map(clean),
            text: clean(&activity.text),
        }
    }
}

impl RejectedRowJson {
    /// Of one refusal.
    #[must_use]
    pub fn of(rejected: &Rejected) -> Self {
        Self {
            source: rejected.source.to_owned(),
            key: clean(&rejected.key),
            reason: rejected.reason.to_owned(),
            detail: clean(&rejected.detail),
            at: time(rejected.at),
        }
    }
}

impl HeldRowJson {
    /// Of one held removal.
    #[must_use]
    pub fn of(held: &Held) -> Self {
        Self {
            service: held.service.clone(),
            endpoint: held.endpoint.clone(),
            since: time(held.since),
            reason: clean(&held.reason),
            until: held.until.map(time),
        }
    }
}

impl OverlayJson {
    /// Of one overlay.
    #[must_use]
    pub fn of(overlay: &Overlay) -> Self {
        Self {
            kind: overlay.kind.to_owned(),
            service: overlay.service.clone(),
            endpoint: overlay.endpoint.clone(),
            action: clean(&overlay.action),
            source: clean(&overlay.source),
            until: time(overlay.until),
        }
    }
}

impl SourcesJson {
    /// Of the sources.
    #[must_use]
    pub fn of(sources: &Sources) -> Self {
        let source = |status: &SourceStatus| SourceJson {
            enabled: status.enabled,
            connected: status.connected,
            endpoint: clean(&status.endpoint),
            position: status.position,
            last_seen: status.last_seen.map(time),
            error: status.error.as_deref().map(clean),
            connects: status.connects,
        };
        Self {
            etcd: source(&sources.etcd),
            nats: source(&sources.nats),
            file: source(&sources.file),
            events_applied: sources.events_applied,
            events_duplicate: sources.events_duplicate,
            events_dead_lettered: sources.events_dead_lettered,
            removals_held: sources.removals_held,
            outgoing_dropped: sources.outgoing_dropped,
            disk_error: sources.disk_error.as_deref().map(clean),
        }
    }
}
