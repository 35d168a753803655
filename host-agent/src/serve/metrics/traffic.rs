//! What is known of services and endpoints, and of the requests to them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use pintle_contract::{BreakerState, Health, LATENCY_BUCKETS_MS, METHODS};
use pintle_state::Snapshot;

use super::out::{Labels, Out};
use crate::fleet::{EndpointView, ServiceView, View};

pub(super) fn requests(out: &mut Out<'_>, view: &View) -> fmt::Result {
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

pub(super) fn endpoints(
    out: &mut Out<'_>,
    snapshot: &Snapshot,
    view: &View,
    max: usize,
) -> fmt::Result {
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

pub(super) fn services(
    out: &mut Out<'_>,
    snapshot: &Snapshot,
    view: &View,
    now: SystemTime,
) -> fmt::Result {
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
