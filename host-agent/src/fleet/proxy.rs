//! One Envoy's workers, and what each has said last; the sums hold exactly this much of it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Instant, SystemTime};

use pintle_contract::{EndpointReport, Schema, ServiceReport, Version};

use super::When;
use super::sums::{BUCKETS, Endpoint, LAST_METHOD};
use super::views::{ProxyView, WorkerView};

#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) streams: u32,
    pub(super) since: SystemTime,
    pub(super) changed: Instant,
    pub(super) peer: String,
    pub(super) schema: Schema,
    pub(super) leader: u64,
    pub(super) fence: u64,
    pub(super) expected: u32,
    pub(super) propagated: Version,
    /// Whoever holds the first lacks nothing of the second.
    pub(super) spared: Option<(Version, Version)>,
    /// When its workers last held the newest tables, or newer ones than before.
    pub(super) moved: Instant,
    pub(super) workers: HashMap<u64, Worker>,
}

/// What one worker has said last; the sums hold exactly this much of it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) spoke: Instant,
    pub(super) version: Version,
    pub(super) services: HashMap<String, Said>,
    pub(super) counters: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) requests: BTreeMap<(u8, u16), u64>,
    pub(super) latency: [u64; BUCKETS],
    pub(super) latency_sum_us: u64,
    pub(super) panics: u64,
    pub(super) no_endpoint: u64,
    pub(super) not_followed: u64,
    pub(super) unplaced: u64,
    pub(super) in_flight: u32,
    pub(super) endpoints: HashMap<String, SaidEndpoint>,
}

#[derive(Debug, Default)]
pub(super) struct SaidEndpoint {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) in_flight: u32,
    pub(super) latency_us: u64,
}

/// Adds what `new` says beyond `said`. A lower number is an older report and says nothing.
pub(super) fn count(total: &mut u64, said: &mut u64, new: u64) {
    if let Some(more) = new.checked_sub(*said) {
        *total = total.saturating_add(more);
        *said = new;
    }
}

impl Proxy {
    /// The workers that count: those that spoke last, as many as the Envoy says it has.
    pub(super) fn live(&self) -> Vec<(u64, &Worker)> {
        let mut workers: Vec<_> = self.workers.iter().map(|(id, w)| (*id, w)).collect();
        workers.sort_by_key(|(id, worker)| (std::cmp::Reverse(worker.spoke), *id));
        if self.expected > 0 {
            workers.truncate(self.expected as usize);
        }
        workers
    }

    /// The version that all workers hold, once as many have spoken as there are.
    pub(super) fn held(&self) -> Option<Version> {
        let live = self.live();
        if self.expected == 0 || live.len() < self.expected as usize {
            return None;
        }
        let held = live.iter().map(|(_, worker)| worker.version).min()?;
        let spared = self.spared.filter(|(sent, _)| held >= *sent);
        Some(spared.map_or(held, |(_, reached)| held.max(reached)))
    }

    pub(super) fn is_current(&self, newest: Version) -> bool {
        self.held().is_some_and(|held| held >= newest)
    }

    pub(super) fn view(&self, name: &str, newest: Version, when: When) -> ProxyView {
        let mut workers: Vec<WorkerView> = self
            .live()
            .into_iter()
            .map(|(id, worker)| WorkerView {
                worker: id,
                version: worker.version,
                silent: when.mono.saturating_duration_since(worker.spoke).as_secs_f64(),
            })
            .collect();
        workers.sort_by_key(|worker| worker.worker);
        let version = workers.iter().map(|worker| worker.version).min();
        let current = self.is_current(newest);
        ProxyView {
            proxy: name.to_owned(),
            connected: self.streams > 0,
            since: self.since,
            peer: self.peer.clone(),
            schema: self.schema,
            leader: self.leader,
            fence: self.fence,
            expected: self.expected,
            version: version.unwrap_or_default(),
            current,
            behind: (self.streams > 0 && !current)
                .then(|| when.mono.saturating_duration_since(self.moved)),
            workers,
        }
    }
}

impl Said {
    /// Whether any count of `report` is lower than what was said before.
    pub(super) fn is_newer_than(&self, report: &ServiceReport) -> bool {
        let lower = |said: &u64, new: &u64| new < said;
        let requests = report.requests.iter().any(|new| {
            let key = (new.method.min(LAST_METHOD), new.code);
            self.requests.get(&key).is_some_and(|said| lower(said, &new.count))
        });
        requests
            || self.latency.iter().zip(&report.latency).any(|(said, new)| lower(said, new))
            || lower(&self.latency_sum_us, &report.latency_sum_us)
            || lower(&self.panics, &report.panics)
            || lower(&self.no_endpoint, &report.no_endpoint)
            || lower(&self.not_followed, &report.not_followed)
            || lower(&self.unplaced, &report.unplaced)
    }
}

impl SaidEndpoint {
    pub(super) fn take(&mut self, total: &mut Endpoint, report: &EndpointReport) {
        if report.requests >= self.requests && report.failures >= self.failures {
            self.in_flight = report.in_flight;
            self.latency_us = report.latency_us;
        }
        count(&mut total.requests, &mut self.requests, report.requests);
        count(&mut total.failures, &mut self.failures, report.failures);
    }
}
