//! The arithmetic of reports: differences per worker, sums over all, time as an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pintle_contract::{
    Applied, BreakerState, EndpointReport, ForceAction, Hello, LATENCY_BUCKETS_MS, METHODS, Now,
    Report, ServiceReport, Transition, Version,
};
use pintle_state::Snapshot;

use super::breaker::Breaker;
use super::minute::Minute;
use super::views::{
    BreakerView, EndpointView, MinuteView, ProxyView, ServiceView, View, WorkerView,
};
use super::{When, wall};

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
/// A report may be older than a transition that overtook it; after this long it is not.
const SETTLED: Duration = Duration::from_secs(2);
/// Versions on their way that are timed at once.
const IN_TRANSIT: usize = 4096;
/// Pairs of method and status that one service counts apart. What comes beyond them is counted by the
/// class of its status (`500` for 5xx), so that a proxy that makes them up adds no series for ever.
const MAX_PAIRS: usize = 128;
const BUCKETS: usize = LATENCY_BUCKETS_MS.len() + 1;

/// The sums, and per worker what has been counted into them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    known: Arc<Snapshot>,
    services: HashMap<String, Service>,
    proxies: BTreeMap<String, Proxy>,
    counters: BTreeMap<String, u64>,
    refused: BTreeMap<&'static str, u64>,
    in_transit: VecDeque<(Version, SystemTime)>,
    propagation: [u64; PROPAGATION_BUCKETS.len() + 1],
    propagation_sum: f64,
}

#[derive(Debug, Default)]
struct Service {
    requests: BTreeMap<(u8, u16), u64>,
    latency: [u64; BUCKETS],
    latency_sum_us: u64,
    panics: u64,
    no_endpoint: u64,
    not_followed: u64,
    minute: Minute<7>,
    endpoints: HashMap<String, Endpoint>,
    absent: Option<Instant>,
}

#[derive(Debug, Default)]
struct Endpoint {
    requests: u64,
    failures: u64,
    trips: u64,
    counted: u64,
    rate: f64,
    minute: Minute<2>,
    breakers: BTreeMap<String, Breaker>,
    absent: Option<Instant>,
}

#[derive(Debug)]
struct Proxy {
    streams: u32,
    since: SystemTime,
    changed: Instant,
    peer: String,
    leader: u64,
    fence: u64,
    expected: u32,
    propagated: Version,
    /// When its workers last held the newest tables, or newer ones than before.
    moved: Instant,
    workers: HashMap<u64, Worker>,
}

/// What one worker has said last; the sums hold exactly this much of it.
#[derive(Debug)]
struct Worker {
    spoke: Instant,
    version: Version,
    services: HashMap<String, Said>,
    counters: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Said {
    requests: BTreeMap<(u8, u16), u64>,
    latency: [u64; BUCKETS],
    latency_sum_us: u64,
    panics: u64,
    no_endpoint: u64,
    not_followed: u64,
    in_flight: u32,
    endpoints: HashMap<String, SaidEndpoint>,
}

#[derive(Debug, Default)]
struct SaidEndpoint {
    requests: u64,
    failures: u64,
    in_flight: u32,
    latency_us: u64,
}

/// Adds what `new` says beyond `said`. A lower number is an older report and says nothing.
fn count(total: &mut u64, said: &mut u64, new: u64) {
    if let Some(more) = new.checked_sub(*said) {
        *total = total.saturating_add(more);
        *said = new;
    }
}

// === impl Ledger ===

impl Ledger {
    /// A newer snapshot is out.
    pub(crate) fn published(&mut self, snapshot: &Arc<Snapshot>, when: When) {
        for service in snapshot.services.values() {
            if service.table.version > self.known.version {
                if self.in_transit.len() >= IN_TRANSIT {
                    self.in_transit.pop_front();
                }
                self.in_transit.push_back((service.table.version, service.seen_at));
            }
        }
        for proxy in self.proxies.values_mut().filter(|it| it.is_current(self.known.version)) {
            proxy.moved = when.mono;
        }
        self.known = Arc::clone(snapshot);
        for (name, service) in &mut self.services {
            let table = snapshot.services.get(name).map(|known| &known.table);
            note(&mut service.absent, table.is_some(), when.mono);
            for (id, endpoint) in &mut service.endpoints {
                let there = table.is_some_and(|table| has(&table.endpoints, id));
                note(&mut endpoint.absent, there, when.mono);
            }
        }
    }

    /// A stream of `hello.proxy` has opened; false when there is no room for another proxy.
    pub(crate) fn connected(&mut self, hello: &Hello, peer: &str, when: When) -> bool {
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
            leader: 0,
            fence: 0,
            expected: 0,
            propagated,
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
        proxy.leader = hello.worker;
        proxy.fence = hello.fence;
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
                let pair = total.pair(requests.method, requests.code);
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

    /// The breakers that are not closed.
    #[cfg(test)]
    pub(crate) fn breakers(&self, when: When) -> BTreeMap<(String, String), Vec<BreakerView>> {
        let mut all = BTreeMap::new();
        for (name, service) in &self.services {
            let words = self.words(name);
            for (id, endpoint) in &service.endpoints {
                let views = endpoint.breaker_views(words.get(id.as_str()).copied(), when);
                if endpoint.absent.is_none() && !views.is_empty() {
                    all.insert((name.clone(), id.clone()), views);
                }
            }
        }
        all
    }
}

const LAST_METHOD: u8 = METHODS.len() as u8 - 1;

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

// === impl Service, Endpoint ===

impl Service {
    /// Under what a method and a status are counted; a pair that is new takes its entry at once.
    fn pair(&mut self, method: u8, code: u16) -> (u8, u16) {
        let method = method.min(LAST_METHOD);
        let code = if (100..1000).contains(&code) { code } else { 0 };
        if !self.requests.contains_key(&(method, code)) && self.requests.len() >= MAX_PAIRS {
            return (method, code / 100 * 100);
        }
        self.requests.entry((method, code)).or_default();
        (method, code)
    }

    /// Requests, errors, timed ones, their microseconds, panics, local answers, and attempts that
    /// went elsewhere.
    fn totals(&self) -> [u64; 7] {
        let failed = |code: u16| code == 0 || (500..600).contains(&code);
        let errors = self.requests.iter().filter(|((_, code), _)| failed(*code));
        [
            self.requests.values().sum(),
            errors.map(|(_, count)| count).sum(),
            self.latency.iter().sum(),
            self.latency_sum_us,
            self.panics,
            self.no_endpoint,
            self.not_followed,
        ]
    }

    fn last_minute(&self) -> MinuteView {
        let [requests, errors, timed, latency_sum_us, panics, no_endpoint, not_followed] =
            self.minute.since(self.totals());
        MinuteView { requests, errors, timed, latency_sum_us, panics, no_endpoint, not_followed }
    }

    fn view(&self, words: &HashMap<&str, Now>, when: When) -> ServiceView {
        let endpoints: BTreeMap<String, EndpointView> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.absent.is_none())
            .map(|(id, endpoint)| {
                (id.clone(), endpoint.view(words.get(id.as_str()).copied(), when))
            })
            .collect();
        ServiceView {
            requests: self.requests.clone(),
            latency: self.latency.to_vec(),
            latency_sum_us: self.latency_sum_us,
            in_flight: 0,
            panics: self.panics,
            no_endpoint: self.no_endpoint,
            not_followed: self.not_followed,
            minute: self.last_minute(),
            rate: endpoints.values().map(|endpoint| endpoint.rate).sum(),
            endpoints,
        }
    }
}

impl Endpoint {
    /// A worker names the state; it stands where no transition said otherwise just now.
    fn reported(&mut self, proxy: &str, state: BreakerState, when: When) {
        match self.breakers.get_mut(proxy) {
            Some(breaker)
                if breaker.state != state
                    && when.mono.saturating_duration_since(breaker.changed) > SETTLED =>
            {
                breaker.state = state;
                breaker.since = when.wall;
                breaker.changed = when.mono;
                breaker.until = Now(0);
                "as reported".clone_into(&mut breaker.reason);
            }
            None if state != BreakerState::Closed => {
                let mut breaker = Breaker::closed(when);
                breaker.state = state;
                "as reported".clone_into(&mut breaker.reason);
                self.breakers.insert(proxy.to_owned(), breaker);
            }
            _ => {}
        }
    }

    fn breaker_views(&self, until: Option<Now>, when: When) -> Vec<BreakerView> {
        self.breakers
            .iter()
            .filter(|(_, breaker)| breaker.state != BreakerState::Closed)
            .filter(|(_, breaker)| !breaker.is_over(until, when))
            .map(|(proxy, breaker)| BreakerView {
                proxy: proxy.clone(),
                state: breaker.state,
                since: breaker.since,
                until: (breaker.until.0 > 0).then(|| wall(breaker.until)),
                reason: breaker.reason.clone(),
                observed: breaker.observed,
                trips: breaker.trips,
            })
            .collect()
    }

    fn view(&self, until: Option<Now>, when: When) -> EndpointView {
        let breakers = self.breaker_views(until, when);
        let any = |state| breakers.iter().any(|breaker| breaker.state == state);
        EndpointView {
            requests: self.requests,
            failures: self.failures,
            minute: {
                let [requests, failures] = self.minute.since([self.requests, self.failures]);
                (requests, failures)
            },
            trips: self.trips,
            in_flight: 0,
            latency_us: 0,
            rate: self.rate,
            state: if any(BreakerState::Open) {
                BreakerState::Open
            } else if any(BreakerState::HalfOpen) {
                BreakerState::HalfOpen
            } else {
                BreakerState::Closed
            },
            breakers,
        }
    }
}

// === impl Proxy ===

impl Proxy {
    /// The workers that count: those that spoke last, as many as the Envoy says it has.
    fn live(&self) -> Vec<(u64, &Worker)> {
        let mut workers: Vec<_> = self.workers.iter().map(|(id, w)| (*id, w)).collect();
        workers.sort_by_key(|(id, worker)| (std::cmp::Reverse(worker.spoke), *id));
        if self.expected > 0 {
            workers.truncate(self.expected as usize);
        }
        workers
    }

    /// The version that all workers hold, once as many have spoken as there are.
    fn held(&self) -> Option<Version> {
        let live = self.live();
        if self.expected == 0 || live.len() < self.expected as usize {
            return None;
        }
        live.iter().map(|(_, worker)| worker.version).min()
    }

    fn is_current(&self, newest: Version) -> bool {
        self.held().is_some_and(|held| held >= newest)
    }

    fn view(&self, name: &str, newest: Version, when: When) -> ProxyView {
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

// === impl Said ===

impl Said {
    /// Whether any count of `report` is lower than what was said before.
    fn is_newer_than(&self, report: &ServiceReport) -> bool {
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
    }
}

impl SaidEndpoint {
    fn take(&mut self, total: &mut Endpoint, report: &EndpointReport) {
        if report.requests >= self.requests && report.failures >= self.failures {
            self.in_flight = report.in_flight;
            self.latency_us = report.latency_us;
        }
        count(&mut total.requests, &mut self.requests, report.requests);
        count(&mut total.failures, &mut self.failures, report.failures);
    }
}
