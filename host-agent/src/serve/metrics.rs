//! `/metrics`: what the fleet's sums, the snapshot and the sources come to, at the moment of asking.
//!
//! A collector rather than registered metrics, because nothing here is counted in this file: each
//! scrape reads one view, and a series exists while its service or endpoint does. Labels come from the
//! registry (bounded names) and from fixed sets; endpoint series stop at a configured number of
//! endpoints, the rest is counted in `pintle_endpoints_without_series`.
//!
//! The library writes OpenMetrics, which is served to those who accept it. Everybody else, promtool
//! included, gets the Prometheus text format 0.0.4, which differs in three things only: there the
//! type of a counter belongs to the name with `_total`, and `UNIT` and `EOF` do not exist.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use pintle_contract::{BreakerState, Health, LATENCY_BUCKETS_MS, METHODS};
use pintle_state::Snapshot;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::condition::Condition;
use crate::fleet::{EndpointView, Fleet, PROPAGATION_BUCKETS, ServiceView, View, When};
use crate::link::{Snapshots, SourceStatus, Sources, SourcesWatch};
use crate::serve::eds::Refusals;
use crate::serve::quota::{Kind, Quotas};
use crate::serve::socket::SocketStatus;

/// The type of OpenMetrics.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The type of the Prometheus text format.
pub(crate) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one agent.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

#[derive(Debug)]
struct Scrape {
    snapshots: Snapshots,
    sources: SourcesWatch,
    fleet: Arc<Fleet>,
    socket: Option<Served>,
    max_endpoints: usize,
    names: Names,
    started: SystemTime,
}

/// What the agent is called, for joins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The agent's name.
    pub agent: String,
    /// Its fleet's.
    pub fleet: String,
}

/// How the proxies' server does.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// The socket's file.
    pub file: watch::Receiver<SocketStatus>,
    /// What its peers hold.
    pub quotas: Quotas,
    /// What they refused.
    pub refusals: Refusals,
}

impl Metrics {
    /// At most `max_endpoints` endpoints get series of their own.
    #[must_use]
    pub(crate) fn new(
        snapshots: Snapshots,
        sources: SourcesWatch,
        fleet: Arc<Fleet>,
        socket: Option<Served>,
        max_endpoints: usize,
        names: Names,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Scrape {
            snapshots,
            sources,
            fleet,
            socket,
            max_endpoints,
            names,
            started: SystemTime::now(),
        }));
        Self { registry }
    }

    /// The type of the exposition that a client with this `Accept` header reads.
    #[must_use]
    pub(crate) fn kind(accept: &str) -> &'static str {
        if accept.contains("application/openmetrics-text") { OPENMETRICS } else { TEXT }
    }

    /// The exposition that a client with this `Accept` header reads, and its type.
    #[must_use]
    pub(crate) fn expose(&self, accept: &str) -> (&'static str, String) {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        match Self::kind(accept) {
            OPENMETRICS => (OPENMETRICS, out),
            kind => (kind, to_text(&out)),
        }
    }
}

/// OpenMetrics as Prometheus text 0.0.4.
fn to_text(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        if line.starts_with("# HELP ") {
            help = line;
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap_or((declared, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let words = help
                .strip_prefix("# HELP ")
                .and_then(|help| help.strip_prefix(name))
                .unwrap_or_default();
            let _ = writeln!(out, "# HELP {name}{suffix}{words}\n# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes families; the names of counters come without `_total`.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'l, T>(
        &mut self,
        (name, help, kind): (&str, &str, MetricType),
        rows: impl IntoIterator<Item = (Labels<'l>, T)>,
        write: impl Fn(&mut MetricEncoder<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut rows = rows.into_iter().peekable();
        // A family without a series is a name that promtool can't check and nobody can use.
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                write(&mut family, value)?;
            } else {
                write(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }

    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let kind = (name, help, MetricType::Counter);
        self.family(kind, rows, |metric, value| {
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        let kind = (name, help, MetricType::Gauge);
        self.family(kind, rows, |metric, value| metric.encode_gauge(&value))
    }

    fn histograms<'l>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels<'l>, (f64, Vec<(f64, u64)>))>,
    ) -> fmt::Result {
        let kind = (name, help, MetricType::Histogram);
        self.family(kind, rows, |metric, (sum, buckets)| {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, [(Vec::new(), value)])
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(Vec::new(), value)])
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = When::now();
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let sources = self.sources.borrow().clone();
        let view = self.fleet.view(now);
        let out = &mut Out(encoder);
        requests(out, &view)?;
        endpoints(out, &snapshot, &view, self.max_endpoints)?;
        services(out, &snapshot, &view, now.wall)?;
        let condition = {
            let sources = self.sources.borrow();
            Condition::of(&snapshot, &sources, &view.proxies, now.mono)
        };
        state(out, &snapshot, &view, &condition, now.wall)?;
        events(out, &sources, now.wall)?;
        proxies(out, &view)?;
        if let Some(socket) = &self.socket {
            served(out, socket)?;
        }
        process(out, self.started, &self.names)
    }
}

fn requests(out: &mut Out<'_>, view: &View) -> fmt::Result {
    let mut codes: BTreeMap<u16, String> = BTreeMap::new();
    for (_, code) in view.services.values().flat_map(|s| s.requests.keys()) {
        codes.entry(*code).or_insert_with(|| code.to_string());
    }
    out.counters(
        "http_requests",
        "Requests by service, method and status; code 0 ended without a status.",
        view.services.iter().flat_map(|(name, service)| {
            service.requests.iter().map(|((method, code), count)| {
                let method = METHODS.get(usize::from(*method)).unwrap_or(&"_OTHER");
                let code = codes.get(code).map_or("0", String::as_str);
                let labels = vec![("service", name.as_str()), ("method", method), ("code", code)];
                (labels, *count)
            })
        }),
    )?;
    out.histograms(
        "http_request_duration_seconds",
        "Time from the request to the head of its response.",
        view.services
            .iter()
            .filter(|(_, service)| service.latency.iter().any(|count| *count > 0))
            .map(|(name, service)| (of(name), latency(service))),
    )?;
    out.gauges(
        "http_requests_in_flight",
        "Requests under way, streams included.",
        each(view, |service| service.in_flight as f64),
    )?;
    out.counters(
        "pintle_panic_requests",
        "Requests spread over all endpoints because too few were eligible.",
        each(view, |service| service.panics),
    )?;
    out.counters(
        "pintle_no_endpoint_requests",
        "Requests answered locally because no endpoint was eligible.",
        each(view, |service| service.no_endpoint),
    )?;
    out.counters(
        "pintle_not_followed",
        "Attempts that went elsewhere than the filter's list says, or nobody knows where; of good \
         answers a sample is looked at.",
        each(view, |service| service.not_followed),
    )?;
    out.counters(
        "pintle_unplaced_requests",
        "Requests with a hash that went by p2c, because the ring or table that would place them is \
         not built yet or was refused.",
        each(view, |service| service.unplaced),
    )
}

fn of(service: &str) -> Labels<'_> {
    vec![("service", service)]
}

fn each<T>(
    view: &View,
    value: impl Fn(&ServiceView) -> T,
) -> impl Iterator<Item = (Labels<'_>, T)> {
    view.services.iter().map(move |(name, service)| (of(name), value(service)))
}

fn latency(service: &ServiceView) -> (f64, Vec<(f64, u64)>) {
    let bounds = LATENCY_BUCKETS_MS.iter().map(|ms| *ms as f64 / 1_000.0).chain([f64::INFINITY]);
    let buckets = bounds.zip(service.latency.iter().copied()).collect();
    (service.latency_sum_us as f64 / 1e6, buckets)
}

fn endpoints(out: &mut Out<'_>, snapshot: &Snapshot, view: &View, max: usize) -> fmt::Result {
    let unknown = EndpointView::default();
    let all = || {
        snapshot.services.iter().flat_map(|(name, service)| {
            let seen = view.services.get(name);
            let unknown = &unknown;
            service.table.endpoints.iter().map(move |endpoint| {
                let seen = seen.and_then(|seen| seen.endpoints.get(&endpoint.id));
                let labels = vec![("service", name.as_str()), ("endpoint", endpoint.id.as_str())];
                (labels, seen.unwrap_or(unknown), seen.is_some())
            })
        })
    };
    let shown = || all().take(max);
    let seen = || shown().filter(|(_, _, seen)| *seen);
    out.gauges(
        "circuit_breaker_state",
        "0 closed, 1 open, 2 half-open; the most severe over the proxies.",
        shown().map(|(labels, endpoint, _)| {
            let state = match endpoint.state {
                BreakerState::Closed => 0.0,
                BreakerState::Open => 1.0,
                BreakerState::HalfOpen => 2.0,
            };
            (labels, state)
        }),
    )?;
    out.counters(
        "circuit_breaker_trips",
        "Times that the breaker opened, summed over the proxies.",
        shown().map(|(labels, endpoint, _)| (labels, endpoint.trips)),
    )?;
    out.counters(
        "pintle_endpoint_requests",
        "Attempts sent to the endpoint.",
        seen().map(|(labels, endpoint, _)| (labels, endpoint.requests)),
    )?;
    out.counters(
        "pintle_endpoint_failures",
        "Attempts that failed there.",
        seen().map(|(labels, endpoint, _)| (labels, endpoint.failures)),
    )?;
    out.gauges(
        "pintle_endpoint_in_flight",
        "Attempts that wait for the endpoint's answer.",
        seen().map(|(labels, endpoint, _)| (labels, endpoint.in_flight as f64)),
    )?;
    out.gauges(
        "pintle_endpoint_latency_seconds",
        "Estimated latency, as the choice of endpoints sees it.",
        seen()
            .filter(|(_, endpoint, _)| endpoint.latency_us > 0)
            .map(|(labels, endpoint, _)| (labels, endpoint.latency_us as f64 / 1e6)),
    )?;
    out.gauge(
        "pintle_endpoints_without_series",
        "Endpoints beyond the configured number of series.",
        all().skip(max).count() as f64,
    )
}

fn services(out: &mut Out<'_>, snapshot: &Snapshot, view: &View, now: SystemTime) -> fmt::Result {
    let tables = || snapshot.services.iter().map(|(name, s)| (name, &s.table));
    let health = [
        (Health::Healthy, "healthy"),
        (Health::Unhealthy, "unhealthy"),
        (Health::Draining, "draining"),
    ];
    out.gauges(
        "pintle_endpoints",
        "Endpoints by what registry and events say of them.",
        tables().flat_map(|(name, table)| {
            health.iter().map(move |(health, word)| {
                let count = table.endpoints.iter().filter(|e| e.health == *health);
                let labels = vec![("service", name.as_str()), ("health", *word)];
                (labels, count.count() as f64)
            })
        }),
    )?;
    out.gauges(
        "pintle_ejected_ratio",
        "Share of the service's endpoints whose breaker is open on some proxy.",
        tables().filter(|(_, table)| !table.endpoints.is_empty()).map(|(name, table)| {
            let seen = view.services.get(name);
            let open = seen.map_or(0, |seen| {
                let states = seen.endpoints.values().map(|endpoint| endpoint.state);
                states.filter(|state| *state == BreakerState::Open).count()
            });
            (of(name), open as f64 / table.endpoints.len() as f64)
        }),
    )?;
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    out.gauges(
        "pintle_fleet_opinions",
        "Endpoints that proxies of this agent or of the fleet hold open.",
        tables().map(|(name, table)| {
            let held = table.endpoints.iter().filter(|endpoint| {
                endpoint
                    .opinion
                    .is_some_and(|it| u128::from(it.expires_at.0) > since_epoch.as_nanos())
            });
            (of(name), held.count() as f64)
        }),
    )
}

fn state(
    out: &mut Out<'_>,
    snapshot: &Snapshot,
    view: &View,
    condition: &Condition,
    now: SystemTime,
) -> fmt::Result {
    out.gauge(
        "pintle_snapshot_epoch",
        "Epoch of the newest snapshot, the agent's start in milliseconds.",
        snapshot.version.epoch as f64,
    )?;
    out.gauge(
        "pintle_snapshot_sequence",
        "Sequence of the newest snapshot.",
        snapshot.version.sequence as f64,
    )?;
    out.gauge(
        "pintle_snapshot_stale",
        "1 while the snapshot is from disk and unconfirmed, or the registry gives nothing.",
        f64::from(u8::from(condition.is_stale())),
    )?;
    out.gauge(
        "pintle_agent_ready",
        "1 while /readyz says yes.",
        f64::from(u8::from(condition.is_ready())),
    )?;
    out.gauge(
        "pintle_agent_troubles",
        "What /readyz finds wrong; 0 while the agent is well.",
        condition.troubles.len() as f64,
    )?;
    out.gauges(
        "pintle_snapshot_age_seconds",
        "Time since the registry last confirmed the snapshot.",
        snapshot
            .confirmed_at
            .map(|at| (Vec::new(), now.duration_since(at).unwrap_or_default().as_secs_f64())),
    )?;
    let bounds = PROPAGATION_BUCKETS.iter().copied().chain([f64::INFINITY]);
    out.histograms(
        "pintle_propagation_seconds",
        "From a change seen in the registry until every worker of a proxy had taken it over.",
        [(
            Vec::new(),
            (view.propagation_sum, bounds.zip(view.propagation.iter().copied()).collect()),
        )],
    )?;
    let names = snapshot.services.values().map(|service| service.names.len());
    out.gauge(
        "pintle_endpoints_with_several_ids",
        "Addresses that the registry has under more than one id; each is one endpoint.",
        names.sum::<usize>() as f64,
    )?;
    out.gauges(
        "pintle_removal_held_timestamp_seconds",
        "Since when a removal is held back, and why.",
        snapshot.held.iter().take(1_000).map(|held| {
            let since = held.since.duration_since(SystemTime::UNIX_EPOCH);
            let labels = vec![
                ("service", held.service.as_str()),
                ("endpoint", held.endpoint.as_str()),
                ("reason", held.reason.as_str()),
            ];
            (labels, since.unwrap_or_default().as_secs_f64())
        }),
    )?;
    out.gauge(
        "pintle_removals_waiting",
        "Removals that are held back now.",
        snapshot.held.len() as f64,
    )?;
    out.gauge(
        "pintle_overlays",
        "Events in force over the registry.",
        snapshot.overlays.len() as f64,
    )?;
    let mut rejected: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for entry in snapshot.rejected.iter() {
        *rejected.entry((entry.source, entry.reason)).or_default() += 1;
    }
    out.gauges(
        "pintle_rejected_entries",
        "Refused entries among those remembered, by reason.",
        rejected.into_iter().map(|((source, reason), count)| {
            (vec![("source", source), ("reason", reason)], count as f64)
        }),
    )
}

fn events(out: &mut Out<'_>, sources: &Sources, now: SystemTime) -> fmt::Result {
    for (name, help, value) in [
        ("pintle_events_applied", "Events applied.", sources.events_applied),
        ("pintle_events_duplicate", "Events that had been seen before.", sources.events_duplicate),
        (
            "pintle_events_dead_lettered",
            "Events kept as dead letters.",
            sources.events_dead_lettered,
        ),
        ("pintle_removals_held", "Removals held back.", sources.removals_held),
        (
            "pintle_transitions_dropped",
            "Breaker transitions that could not be told to the fleet.",
            sources.outgoing_dropped,
        ),
    ] {
        out.counter(name, help, value)?;
    }
    out.counters(
        "pintle_rejected",
        "Entries and events that were refused, by where they came from and why.",
        sources.refused.iter().map(|((source, reason), count)| {
            (vec![("source", *source), ("reason", *reason)], *count)
        }),
    )?;
    out.gauge(
        "pintle_registry_keys_beside",
        "Keys under the prefixes of other frameworks that are no instances.",
        sources.keys_beside as f64,
    )?;
    out.gauge(
        "pintle_state_unwritable",
        "1 while the last good state cannot be written to disk.",
        f64::from(u8::from(sources.disk_error.is_some())),
    )?;
    let enabled = || sources.all().into_iter().filter(|(_, status)| status.enabled);
    let gauge = |value: fn(&SourceStatus) -> f64| {
        enabled().map(move |(name, status)| (vec![("source", name)], value(status)))
    };
    out.gauges(
        "pintle_source_connected",
        "1 while the source answers.",
        gauge(|status| f64::from(u8::from(status.connected))),
    )?;
    out.gauges(
        "pintle_source_position",
        "Revision or stream sequence that the agent has reached.",
        gauge(|status| status.position as f64),
    )?;
    out.counters(
        "pintle_source_connects",
        "Connections made.",
        enabled().map(|(name, status)| (vec![("source", name)], status.connects)),
    )?;
    out.counters(
        "pintle_source_restarts",
        "Times that the task of a source ended and was started again.",
        enabled().map(|(name, status)| (vec![("source", name)], status.restarts)),
    )?;
    out.gauges(
        "pintle_source_silence_seconds",
        "Time since the source last said anything.",
        enabled().filter_map(|(name, status)| {
            let silence = now.duration_since(status.last_seen?).unwrap_or_default();
            Some((vec![("source", name)], silence.as_secs_f64()))
        }),
    )
}

fn proxies(out: &mut Out<'_>, view: &View) -> fmt::Result {
    let connected = || view.proxies.iter().filter(|proxy| proxy.connected);
    out.gauge(
        "pintle_proxies_connected",
        "Envoys that hold a stream.",
        connected().count() as f64,
    )?;
    out.gauge(
        "pintle_proxies_current",
        "Connected Envoys whose workers all hold the newest snapshot.",
        connected().filter(|proxy| proxy.current).count() as f64,
    )?;
    out.gauge(
        "pintle_workers",
        "Workers of the connected Envoys that spoke lately.",
        connected().map(|proxy| proxy.workers.len()).sum::<usize>() as f64,
    )?;
    out.gauge(
        "pintle_workers_expected",
        "Workers that the connected Envoys say they have.",
        connected().map(|proxy| f64::from(proxy.expected)).sum(),
    )?;
    out.counters(
        "pintle_frames_refused",
        "Messages of proxies, or parts of them, that were refused.",
        view.refused.iter().map(|(reason, count)| (vec![("reason", *reason)], *count)),
    )?;
    out.counters(
        "pintle_module_events",
        "What the module counted in the proxies.",
        view.counters.iter().map(|(name, count)| (vec![("event", name.as_str())], *count)),
    )
}

fn served(out: &mut Out<'_>, socket: &Served) -> fmt::Result {
    let file = socket.file.borrow().clone();
    out.gauge(
        "pintle_socket_bound",
        "1 while the socket's file is there for Envoys to connect to.",
        f64::from(u8::from(file.error.is_none())),
    )?;
    out.counter(
        "pintle_socket_renewed",
        "Times that the file was gone and made anew.",
        file.renewed,
    )?;
    let usage = socket.quotas.usage();
    let of = |kind: Kind| vec![("kind", kind.as_str())];
    out.gauges(
        "pintle_quota_used",
        "What all peers of the proxies' server hold.",
        usage.iter().map(|usage| (of(usage.kind), usage.used as f64)),
    )?;
    out.gauges(
        "pintle_quota_limit",
        "What all of them may hold.",
        usage.iter().map(|usage| (of(usage.kind), usage.limit as f64)),
    )?;
    out.counters(
        "pintle_quota_refused",
        "Times that a peer was refused because a quota was used up.",
        usage.iter().map(|usage| (of(usage.kind), usage.refused)),
    )
}

fn process(out: &mut Out<'_>, started: SystemTime, names: &Names) -> fmt::Result {
    let started = started.duration_since(SystemTime::UNIX_EPOCH);
    out.gauge(
        "process_start_time_seconds",
        "When the agent started.",
        started.unwrap_or_default().as_secs_f64(),
    )?;
    out.gauges(
        "process_resident_memory_bytes",
        "Resident memory.",
        resident().map(|bytes| (Vec::new(), bytes as f64)),
    )?;
    out.gauges(
        "pintle_build_info",
        "1; the label is the version.",
        [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)],
    )?;
    let labels = vec![
        ("agent", names.agent.as_str()),
        ("fleet", names.fleet.as_str()),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    out.gauges(
        "pintle_agent_info",
        "1; the labels are the agent's name, its fleet's (metrics.fleet) and its version.",
        [(labels, 1.0)],
    )
}

/// Resident bytes, from `/proc/self/status`, which is in kB whatever the page size.
#[must_use]
pub(crate) fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests;
