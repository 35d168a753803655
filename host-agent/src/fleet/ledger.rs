//! The arithmetic of reports: differences per worker, sums over all, time as an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pintle_contract::{
    Applied, BreakerState, ForceAction, Hello, Now, Report, Schema, ServiceReport, Transition,
    Version,
};
use pintle_state::Snapshot;

use super::When;
use super::breaker::Breaker;
use super::proxy::{Proxy, Worker, count};
use super::sums::Service;
use super::views::{ProxyView, ServiceView, View};

/// Envoys on one agent; a machine runs a handful, and each costs a few kilobytes a service.
pub(crate) const MAX_PROXIES: usize = 256;
/// Workers kept of one Envoy, the silent ones included, whose counts must not be taken twice.
pub(crate) const MAX_WORKERS: usize = 512;
/// Names of module counters.
pub(crate) const MAX_COUNTERS: usize = 128;
/// Upper bounds of the propagation histogram, in seconds.
pub(crate) const PROPAGATION_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Workers report every second; ten missed and their gauges no longer hold.
const SILENT: Duration = Duration::from_secs(10);
/// An Envoy that went without a word is remembered for so long, should its stream only be broken.
const AWAY: Duration = Duration::from_secs(30);
/// How long a silent worker's last counts are remembered, should it speak again.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// How long the sums of an endpoint outlive it, so that a flapping one does not start over.
const ABSENT: Duration = Duration::from_secs(300);
/// Versions on their way that are timed at once.
const IN_TRANSIT: usize = 4096;

/// The sums, and per worker what has been counted into them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    known: Arc<Snapshot>,
    services: HashMap<String, Service>,
    /// Pairs of method and status beyond each service's own.
    pairs: usize,
    proxies: BTreeMap<String, Proxy>,
    counters: BTreeMap<String, u64>,
    refused: BTreeMap<&'static str, u64>,
    in_transit: VecDeque<(Version, SystemTime)>,
    propagation: [u64; PROPAGATION_BUCKETS.len() + 1],
    propagation_sum: f64,
}

impl Ledger {
    /// A newer snapshot is out.
    pub(crate) fn published(&mut self, snapshot: &Arc<Snapshot>, when: When) {
        let before = std::mem::replace(&mut self.known, Arc::clone(snapshot));
        let differing = snapshot.services.differing(&before.services);
        for service in differing.iter().filter_map(|name| snapshot.services.get(name)) {
            if service.table.version > before.version {
                if self.in_transit.len() >= IN_TRANSIT {
                    self.in_transit.pop_front();
                }
                self.in_transit.push_back((service.table.version, service.seen_at));
            }
        }
        for proxy in self.proxies.values_mut().filter(|it| it.is_current(before.version)) {
            proxy.moved = when.mono;
        }
        for name in differing {
            let Some(service) = self.services.get_mut(name) else { continue };
            let table = snapshot.services.get(name).map(|known| &known.table);
            note(&mut service.absent, table.is_some(), when.mono);
            for (id, endpoint) in &mut service.endpoints {
                let there = table.is_some_and(|table| has(&table.endpoints, id));
                note(&mut endpoint.absent, there, when.mono);
            }
        }
    }

    /// A stream of `hello.proxy` has opened; false when there is no room for another proxy.
    pub(crate) fn connected(
        &mut self,
        hello: &Hello,
        schema: Schema,
        peer: &str,
        when: When,
    ) -> bool {
        if !self.proxies.contains_key(&hello.proxy) && self.proxies.len() >= MAX_PROXIES {
            let longest = self
                .proxies
                .iter()
                .filter(|(_, proxy)| proxy.streams == 0)
                .min_by_key(|(_, proxy)| proxy.changed)
                .map(|(name, _)| name.clone());
            let Some(name) = longest else {
                self.refused("too_many_proxies");
                return false;
            };
            self.forget(&name);
        }
        let propagated = self.known.version;
        let proxy = self.proxies.entry(hello.proxy.clone()).or_insert_with(|| Proxy {
            streams: 0,
            since: when.wall,
            changed: when.mono,
            peer: String::new(),
            schema,
            leader: 0,
            fence: 0,
            expected: 0,
            propagated,
            spared: None,
            moved: when.mono,
            workers: HashMap::new(),
        });
        if proxy.streams == 0 {
            proxy.since = when.wall;
            proxy.changed = when.mono;
            proxy.moved = when.mono;
            // What it missed while away would be timed as if it had been sent late.
            proxy.propagated = proxy.propagated.max(propagated);
        }
        proxy.streams = proxy.streams.saturating_add(1);
        proxy.spared = None;
        proxy.leader = hello.worker;
        proxy.fence = hello.fence;
        proxy.schema = schema;
        peer.clone_into(&mut proxy.peer);
        true
    }

    /// A stream of `proxy` has closed.
    pub(crate) fn disconnected(&mut self, proxy: &str, when: When) {
        if let Some(proxy) = self.proxies.get_mut(proxy) {
            proxy.streams = proxy.streams.saturating_sub(1);
            if proxy.streams == 0 {
                proxy.since = when.wall;
                proxy.changed = when.mono;
            }
        }
    }

    /// How many streams a proxy holds; more than one while its leader changes.
    pub(crate) fn streams(&self, proxy: &str) -> u32 {
        self.proxies.get(proxy).map_or(0, |proxy| proxy.streams)
    }

    /// Counts a refusal.
    pub(crate) fn refused(&mut self, reason: &'static str) {
        let count = self.refused.entry(reason).or_default();
        *count = count.saturating_add(1);
    }

    fn worker(&mut self, proxy: &str, worker: u64, when: When) -> Option<&mut Worker> {
        if !self.proxies.contains_key(proxy) {
            self.refused("unknown_proxy");
        }
        let proxy = self.proxies.get_mut(proxy)?;
        if !proxy.workers.contains_key(&worker) && proxy.workers.len() >= MAX_WORKERS {
            let longest =
                proxy.workers.iter().min_by_key(|(_, worker)| worker.spoke).map(|(&id, _)| id);
            if let Some(id) = longest {
                proxy.workers.remove(&id);
            }
        }
        let worker = proxy.workers.entry(worker).or_insert_with(|| Worker {
            spoke: when.mono,
            version: Version::default(),
            services: HashMap::new(),
            counters: BTreeMap::new(),
        });
        worker.spoke = worker.spoke.max(when.mono);
        Some(worker)
    }

    /// A worker has taken a version over.
    pub(crate) fn applied(&mut self, proxy: &str, applied: Applied, when: When) {
        let Some(worker) = self.worker(proxy, applied.worker, when) else {
            return;
        };
        let newer = applied.version > worker.version;
        worker.version = worker.version.max(applied.version);
        if let Some(proxy) = self.proxies.get_mut(proxy) {
            proxy.expected = applied.workers;
            if newer {
                proxy.moved = when.mono;
            }
        }
        self.arrived(proxy, when);
    }

    /// Whoever holds `sent` lacks nothing of `reached`.
    pub(crate) fn spared(&mut self, name: &str, sent: Version, reached: Version, when: When) {
        if let Some(proxy) = self.proxies.get_mut(name) {
            proxy.spared = Some((sent, reached));
        }
        self.arrived(name, when);
    }

    /// Times every version that all workers of `proxy` hold by now.
    fn arrived(&mut self, name: &str, when: When) {
        let Some(proxy) = self.proxies.get_mut(name) else {
            return;
        };
        let Some(held) = proxy.held() else {
            return;
        };
        for (version, seen_at) in &self.in_transit {
            if *version > proxy.propagated && *version <= held {
                let took = when.wall.duration_since(*seen_at).unwrap_or_default().as_secs_f64();
                let bucket = PROPAGATION_BUCKETS.partition_point(|bound| *bound < took);
                if let Some(count) = self.propagation.get_mut(bucket) {
                    *count = count.saturating_add(1);
                }
                self.propagation_sum += took;
            }
        }
        proxy.propagated = proxy.propagated.max(held);
        let slowest = self
            .proxies
            .values()
            .filter(|proxy| proxy.streams > 0)
            .map(|proxy| proxy.propagated)
            .min()
            .unwrap_or_default();
        self.in_transit.retain(|(version, _)| *version > slowest);
    }

    /// What a worker has counted since it started.
    pub(crate) fn report(&mut self, name: &str, report: &Report, when: When) {
        if self.worker(name, report.worker, when).is_none() {
            return;
        }
        // The worker leaves the map while it is counted, so that sums and worker can both change.
        let taken =
            self.proxies.get_mut(name).and_then(|proxy| proxy.workers.remove(&report.worker));
        let Some(mut worker) = taken else {
            return;
        };
        worker.version = worker.version.max(report.version);
        for said in &report.services {
            self.service(name, &mut worker, said, when);
        }
        for (counter, value) in &report.counters {
            if !self.counters.contains_key(counter)
                && (self.counters.len() >= MAX_COUNTERS || !is_counter(counter))
            {
                self.refused("counter_name");
                continue;
            }
            count(
                self.counters.entry(counter.clone()).or_default(),
                worker.counters.entry(counter.clone()).or_default(),
                *value,
            );
        }
        if let Some(proxy) = self.proxies.get_mut(name) {
            proxy.workers.insert(report.worker, worker);
        }
        self.arrived(name, when);
    }

    fn service(&mut self, proxy: &str, worker: &mut Worker, report: &ServiceReport, when: When) {
        let known = Arc::clone(&self.known);
        let Some(table) = known.services.get(&report.service).map(|known| &known.table) else {
            self.refused("unknown_service");
            return;
        };
        let mut unknown = 0u64;
        {
            let total = self.services.entry(report.service.clone()).or_default();
            let said = worker.services.entry(report.service.clone()).or_default();
            // Whatever says less than is known already was overtaken: its gauges are history.
            if !said.is_newer_than(report) {
                said.in_flight = report.in_flight;
            }
            // By class, several become one, whose counts are added up before they are compared.
            let mut pairs: BTreeMap<(u8, u16), u64> = BTreeMap::new();
            for requests in &report.requests {
                let pair = total.pair(requests.method, requests.code, &mut self.pairs);
                let sum = pairs.entry(pair).or_default();
                *sum = sum.saturating_add(requests.count);
            }
            for (pair, sum) in pairs {
                count(
                    total.requests.entry(pair).or_default(),
                    said.requests.entry(pair).or_default(),
                    sum,
                );
            }
            let buckets = total.latency.iter_mut().zip(said.latency.iter_mut());
            for ((total, said), new) in buckets.zip(&report.latency) {
                count(total, said, *new);
            }
            count(&mut total.latency_sum_us, &mut said.latency_sum_us, report.latency_sum_us);
            count(&mut total.panics, &mut said.panics, report.panics);
            count(&mut total.no_endpoint, &mut said.no_endpoint, report.no_endpoint);
            count(&mut total.not_followed, &mut said.not_followed, report.not_followed);
            count(&mut total.unplaced, &mut said.unplaced, report.unplaced);
            for endpoint in &report.endpoints {
                if has(&table.endpoints, &endpoint.id) {
                    let total = total.endpoints.entry(endpoint.id.clone()).or_default();
                    let said = said.endpoints.entry(endpoint.id.clone()).or_default();
                    said.take(total, endpoint);
                    total.reported(proxy, endpoint.state, when);
                } else {
                    unknown = unknown.saturating_add(1);
                }
            }
        }
        for _ in 0..unknown {
            self.refused("unknown_endpoint");
        }
    }

    /// A breaker has changed; false when that was known, or the endpoint is not.
    pub(crate) fn transition(&mut self, proxy: &str, transition: &Transition, when: When) -> bool {
        if !self.proxies.contains_key(proxy) {
            self.refused("unknown_proxy");
            return false;
        }
        let known = self.known.services.get(&transition.service);
        if !known.is_some_and(|known| has(&known.table.endpoints, &transition.endpoint)) {
            self.refused("unknown_endpoint");
            return false;
        }
        let endpoint = self
            .services
            .entry(transition.service.clone())
            .or_default()
            .endpoints
            .entry(transition.endpoint.clone())
            .or_default();
        let breaker =
            endpoint.breakers.entry(proxy.to_owned()).or_insert_with(|| Breaker::closed(when));
        if !breaker.take(transition, when) {
            return false;
        }
        if transition.to == BreakerState::Open && transition.from != BreakerState::Open {
            endpoint.trips = endpoint.trips.saturating_add(1);
        }
        true
    }

    /// Once a second: rates move on, what is silent or absent for long is forgotten.
    pub(crate) fn tick(&mut self, when: When) {
        let old = |since: Instant, limit| when.mono.saturating_duration_since(since) > limit;
        let gone: BTreeSet<String> = self
            .proxies
            .iter()
            .filter(|(_, proxy)| proxy.streams == 0 && old(proxy.changed, AWAY))
            .map(|(name, _)| name.clone())
            .collect();
        self.services.retain(|_, service| !service.absent.is_some_and(|since| old(since, ABSENT)));
        self.pairs = self.services.values().map(Service::shared_pairs).sum();
        let mut dropped: Vec<(String, String)> = Vec::new();
        for (name, service) in &mut self.services {
            let totals = service.totals();
            service.minute.tick(when.mono, totals);
            service.endpoints.retain(|id, endpoint| {
                endpoint.minute.tick(when.mono, [endpoint.requests, endpoint.failures]);
                endpoint.breakers.retain(|proxy, _| !gone.contains(proxy));
                let new = endpoint.requests.saturating_sub(endpoint.counted);
                endpoint.counted = endpoint.requests;
                // Half of what is seen is from the last 3 seconds: quick enough to watch a
                // drain, slow enough to read.
                endpoint.rate += (new as f64 - endpoint.rate) * 0.2;
                let keep = !endpoint.absent.is_some_and(|since| old(since, ABSENT));
                if !keep {
                    dropped.push((name.clone(), id.clone()));
                }
                keep
            });
        }
        let services = &self.services;
        for proxy in self.proxies.values_mut() {
            proxy.workers.retain(|_, worker| !old(worker.spoke, FORGOTTEN));
            for worker in proxy.workers.values_mut() {
                worker.services.retain(|name, _| services.contains_key(name));
                for (service, endpoint) in &dropped {
                    if let Some(said) = worker.services.get_mut(service) {
                        said.endpoints.remove(endpoint);
                    }
                }
            }
        }
        self.proxies.retain(|_, proxy| proxy.streams > 0 || !old(proxy.changed, FORGOTTEN));
    }

    fn forget(&mut self, proxy: &str) {
        self.proxies.remove(proxy);
        for service in self.services.values_mut() {
            for endpoint in service.endpoints.values_mut() {
                endpoint.breakers.remove(proxy);
            }
        }
    }

    /// Everything, added up.
    #[must_use]
    pub(crate) fn view(&self, when: When) -> View {
        let mut services: BTreeMap<String, ServiceView> = self
            .services
            .iter()
            .filter(|(_, service)| service.absent.is_none())
            .map(|(name, service)| (name.clone(), service.view(&self.words(name), when)))
            .collect();
        let mut weights: HashMap<(&str, &str), (f64, f64)> = HashMap::new();
        let speaking = self
            .proxies
            .values()
            .flat_map(|proxy| proxy.workers.values())
            .filter(|worker| when.mono.saturating_duration_since(worker.spoke) <= SILENT);
        for worker in speaking {
            for (name, said) in &worker.services {
                let Some(view) = services.get_mut(name) else {
                    continue;
                };
                view.in_flight = view.in_flight.saturating_add(u64::from(said.in_flight));
                for (id, said) in &said.endpoints {
                    let Some(view) = view.endpoints.get_mut(id) else {
                        continue;
                    };
                    view.in_flight = view.in_flight.saturating_add(u64::from(said.in_flight));
                    if said.latency_us > 0 {
                        let weight = said.requests.max(1) as f64;
                        let sum = weights.entry((name.as_str(), id.as_str())).or_default();
                        sum.0 += said.latency_us as f64 * weight;
                        sum.1 += weight;
                    }
                }
            }
        }
        for ((service, id), (sum, weight)) in weights {
            let view = services.get_mut(service);
            if let Some(view) = view.and_then(|view| view.endpoints.get_mut(id)) {
                view.latency_us = (sum / weight) as u64;
            }
        }
        View {
            services,
            proxies: self.proxies(when),
            counters: self.counters.clone(),
            refused: self.refused.clone(),
            propagation: self.propagation.to_vec(),
            propagation_sum: self.propagation_sum,
        }
    }

    /// The Envoys by node id, as of `when`.
    #[must_use]
    pub(crate) fn proxies(&self, when: When) -> Vec<ProxyView> {
        let all = self.proxies.iter();
        all.map(|(name, proxy)| proxy.view(name, self.known.version, when)).collect()
    }

    /// By endpoint of a service, until when an operator or the fleet holds it open.
    fn words(&self, service: &str) -> HashMap<&str, Now> {
        let Some(known) = self.known.services.get(service) else { return HashMap::new() };
        let until = |endpoint: &pintle_contract::Endpoint| {
            let forced = endpoint.force.filter(|force| force.action == ForceAction::Open);
            let forced = forced.map(|force| force.until);
            forced.max(endpoint.opinion.map(|opinion| opinion.expires_at))
        };
        let endpoints = known.table.endpoints.iter();
        endpoints.filter_map(|endpoint| Some((endpoint.id.as_str(), until(endpoint)?))).collect()
    }
}

fn has(endpoints: &[pintle_contract::Endpoint], id: &str) -> bool {
    endpoints.binary_search_by(|endpoint| endpoint.id.as_str().cmp(id)).is_ok()
}

fn note(absent: &mut Option<Instant>, there: bool, now: Instant) {
    if there {
        *absent = None;
    } else {
        absent.get_or_insert(now);
    }
}

fn is_counter(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
