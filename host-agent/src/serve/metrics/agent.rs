//! How the agent itself does: its snapshot, sources, proxies, socket and process.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::SystemTime;

use pintle_state::Snapshot;
use tokio::sync::watch;

use super::out::Out;
use crate::condition::Condition;
use crate::fleet::{PROPAGATION_BUCKETS, View};
use crate::link::{SourceStatus, Sources};
use crate::serve::eds::Refusals;
use crate::serve::quota::{Kind, Quotas};
use crate::serve::socket::SocketStatus;

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

pub(super) fn state(
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

pub(super) fn events(out: &mut Out<'_>, sources: &Sources, now: SystemTime) -> fmt::Result {
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

pub(super) fn proxies(out: &mut Out<'_>, view: &View) -> fmt::Result {
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

pub(super) fn served(out: &mut Out<'_>, socket: &Served) -> fmt::Result {
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

pub(super) fn process(out: &mut Out<'_>, started: SystemTime, names: &Names) -> fmt::Result {
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
pub(super) fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
