//! One service as this VM knows it: its table, who is eligible, and what was counted.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use pintle_balance::{Balancer, LoadEntry, Verdict};
use pintle_breaker::{Mirror, Need, State};
use pintle_contract::{
    BreakerState, Endpoint, EndpointReport, Force, LATENCY_BUCKETS_MS, Load, Now, Opinion,
    RequestCount, ServiceReport, Table, Version,
};
use pintle_policy::Policy;

/// Combinations of method and code that are counted apart, at most; ten methods by the codes in use.
const MAX_REQUEST_COUNTS: usize = 512;

/// The fleet, in the balancer's books a worker like any other; no worker has this number.
const FLEET: u32 = u32::MAX;
/// The failure score, in thousandths, of an endpoint that the fleet advises against. With the default
/// penalty it costs about six times as much: few requests go there, and one that fails decides.
const ADVISED_MILLI: u32 = 100;
/// Endpoints that are remembered after they have gone.
const MAX_DEPARTED: usize = 100;

/// An endpoint's own numbers, beside its load (balancer) and its breaker (mirror).
#[derive(Debug, Default)]
struct Seen {
    /// `ip:port`, as Envoy wants to read it.
    address: String,
    opinion: Option<Opinion>,
    force: Option<Force>,
    requests: u64,
    failures: u64,
    /// What was last reported of it.
    reported: (u64, u32, BreakerState),
}

/// One service.
pub(crate) struct Service {
    pub(crate) version: Version,
    /// Shared, because a request reads it while the service changes.
    pub(crate) policy: Rc<Policy>,
    pub(crate) balancer: Balancer,
    /// By index, as the balancer's.
    mirrors: Vec<Mirror>,
    seen: Vec<Seen>,
    /// Requests and failures of endpoints that are gone: what is reported of one that comes back goes on from
    /// there.
    departed: BTreeMap<String, (u64, u64)>,
    /// Indices whose breaker is not closed, or that were not let pass when last looked at.
    tripped: BTreeSet<usize>,
    /// Whether nobody is eligible and panic is off, so that whoever is open is tried before its time. Of
    /// the service, not of a subset: the others' requests would carry its probes.
    last_resort: bool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    requests: BTreeMap<(u8, u16), u64>,
    latency: [u64; LATENCY_BUCKETS_MS.len() + 1],
    latency_sum_us: u64,
    in_flight: u32,
    panics: u64,
    no_endpoint: u64,
    /// Whether something was counted since the last report.
    fresh: bool,
}

impl Service {
    /// A service whose table has just come.
    pub(crate) fn new(table: &Table, policy: Policy, zone: &str, seed: u64, now: Now) -> Self {
        let balancer = Balancer::new(&table.service, &policy.select, &[], zone, seed, now);
        let mut service = Self {
            version: Version::default(),
            policy: Rc::new(policy),
            balancer,
            mirrors: Vec::new(),
            seen: Vec::new(),
            departed: BTreeMap::new(),
            tripped: BTreeSet::new(),
            last_resort: false,
            counts: Counts::default(),
        };
        service.update(table, None, zone, now);
        service
    }

    /// Takes a new table, and a new policy if there is one. What was learned of an endpoint stays with
    /// its id. Returns the indices that are new.
    pub(crate) fn update(
        &mut self,
        table: &Table,
        policy: Option<Policy>,
        zone: &str,
        now: Now,
    ) -> Vec<usize> {
        if let Some(policy) = policy {
            self.policy = Rc::new(policy);
        }
        let mut old: BTreeMap<String, (Mirror, Seen)> = BTreeMap::new();
        let mirrors = std::mem::take(&mut self.mirrors).into_iter();
        for (index, pair) in mirrors.zip(std::mem::take(&mut self.seen)).enumerate() {
            if let Some(id) = self.balancer.id_of(index) {
                old.insert(id.to_owned(), pair);
            }
        }
        self.balancer.update(&self.policy.select, &table.endpoints, zone, now);
        self.version = table.version;
        self.tripped.clear();
        let mut fresh = Vec::new();
        for (index, endpoint) in table.endpoints.iter().enumerate() {
            let (mirror, mut seen) = old.remove(&endpoint.id).unwrap_or_else(|| {
                fresh.push(index);
                let (requests, failures) = self.departed.remove(&endpoint.id).unwrap_or_default();
                (Mirror::default(), Seen { requests, failures, ..Seen::default() })
            });
            seen.tell(endpoint);
            if mirror.record().state() != State::Closed {
                self.tripped.insert(index);
            }
            self.mirrors.push(mirror);
            self.seen.push(seen);
        }
        if self.departed.len().saturating_add(old.len()) > MAX_DEPARTED {
            self.departed.clear();
        }
        let counted = old.into_iter().filter(|(_, (_, seen))| seen.requests > 0);
        let counts = counted.map(|(id, (_, seen))| (id, (seen.requests, seen.failures)));
        self.departed.extend(counts.take(MAX_DEPARTED));
        self.counts.fresh = true;
        fresh
    }

    // === Breakers ===

    pub(crate) fn mirror(&self, index: usize) -> Option<&Mirror> {
        self.mirrors.get(index)
    }

    pub(crate) fn mirror_mut(&mut self, index: usize) -> Option<&mut Mirror> {
        self.mirrors.get_mut(index)
    }

    /// The ids of the endpoints whose breakers are not closed and quiet.
    pub(crate) fn restless(&self) -> impl Iterator<Item = &str> {
        let all = self.mirrors.iter().enumerate();
        let restless = all.filter(|(_, mirror)| !mirror.record().is_quiet());
        restless.filter_map(|(index, _)| self.balancer.id_of(index))
    }

    /// The endpoints whose breakers need the shared record now: orders and opinions that came with the
    /// table, counts to be brought in, probes that may have expired.
    ///
    /// Every mirror is told what the table says, also when that is nothing: an opinion that was taken
    /// back must not count for as long as it would have.
    pub(crate) fn due(&mut self, now: Now) -> Vec<usize> {
        let policy = &self.policy.breaker;
        let all = self.mirrors.iter_mut().zip(&self.seen).enumerate();
        all.filter_map(|(index, (mirror, seen))| {
            let need = mirror.overlay(seen.opinion, seen.force, policy, now);
            (need == Need::Sync).then_some(index)
        })
        .collect()
    }

    /// Raises the cost of the endpoints that the fleet advises against; to be called with every tick,
    /// because the score decays. What is advised against everywhere costs no more than elsewhere.
    pub(crate) fn advise(&mut self, now: Now) {
        let policy = &self.policy.breaker;
        let advised = self.mirrors.iter().enumerate().filter(|(_, m)| m.is_advised(policy, now));
        let entry = |(index, _)| {
            let key = self.balancer.key_of(index)?;
            Some(LoadEntry { key, failures_milli: ADVISED_MILLI, ..LoadEntry::default() })
        };
        let entries: Vec<LoadEntry> = advised.filter_map(entry).collect();
        if !entries.is_empty() {
            self.balancer.set_remote_load(FLEET, &entries, now, now);
        }
    }

    /// Gives the balancer the breakers' verdicts; to be called after any breaker changed, and once a
    /// tick while one is not closed.
    pub(crate) fn judge(&mut self, index: Option<usize>, now: Now) {
        self.tripped.extend(index);
        self.tell_verdicts(now);
        let last_resort = !self.tripped.is_empty()
            && self.policy.select.panic_percent == 0
            && !self.balancer.has_open();
        if std::mem::replace(&mut self.last_resort, last_resort) != last_resort {
            self.tell_verdicts(now);
        }
        let mirrors = &self.mirrors;
        self.tripped.retain(|&index| {
            mirrors.get(index).is_some_and(|mirror| mirror.record().state() != State::Closed)
        });
    }

    /// Only so many open ones count as the policy lets; the others pass, or get their probe. So who is
    /// eligible does not depend on the last resort.
    fn tell_verdicts(&mut self, now: Now) {
        if self.tripped.is_empty() {
            return;
        }
        let open = |&index: &usize| {
            let severity = self.mirrors.get(index)?.record().severity()?;
            Some((severity, u32::try_from(index).ok()?))
        };
        let mut honoured: Vec<_> = self.tripped.iter().filter_map(open).collect();
        let share = self.policy.breaker.max_ejection_percent;
        pintle_breaker::honour(&mut honoured, self.mirrors.len(), share);
        for &index in &self.tripped {
            let Some(mirror) = self.mirrors.get(index) else { continue };
            // Sorted by position.
            let at = u32::try_from(index).unwrap_or(u32::MAX);
            let counts = honoured.binary_search_by_key(&at, |&(_, at)| at).is_ok();
            let verdict = if counts {
                self.verdict(mirror, now)
            } else {
                mirror.record().verdict(&self.policy.breaker, now)
            };
            let verdict = match verdict {
                pintle_breaker::Verdict::Pass => Verdict::Pass,
                pintle_breaker::Verdict::ProbeOwed => Verdict::Probe,
                pintle_breaker::Verdict::Blocked { .. } if counts => Verdict::Blocked,
                pintle_breaker::Verdict::Blocked { .. } => Verdict::Pass,
            };
            self.balancer.set_verdict(index, verdict);
        }
    }

    fn verdict(&self, mirror: &Mirror, now: Now) -> pintle_breaker::Verdict {
        let policy = &self.policy.breaker;
        if self.last_resort {
            mirror.record().verdict_as_last_resort(policy, now)
        } else {
            mirror.record().verdict(policy, now)
        }
    }

    /// Whether a probe is to be claimed before its time.
    pub(crate) const fn last_resort(&self) -> bool {
        self.last_resort
    }

    /// What a local answer says in `retry-after`, in seconds.
    pub(crate) fn retry_after(&self, now: Now) -> u64 {
        let verdicts = self.mirrors.iter().map(|mirror| self.verdict(mirror, now));
        let open = verdicts.filter(|v| matches!(v, pintle_breaker::Verdict::Blocked { .. }));
        let limit = self.policy.breaker.retry_after;
        pintle_breaker::retry_after(open, now, limit).as_secs()
    }

    pub(crate) fn breaker_state(&self, index: usize) -> BreakerState {
        match self.mirrors.get(index).map(|mirror| mirror.record().state()) {
            None | Some(State::Closed) => BreakerState::Closed,
            Some(State::Open) => BreakerState::Open,
            Some(State::HalfOpen) => BreakerState::HalfOpen,
        }
    }

    // === Addresses ===

    pub(crate) fn address(&self, index: usize) -> &str {
        self.seen.get(index).map_or("", |seen| seen.address.as_str())
    }

    // === Counting ===

    pub(crate) fn sent(&mut self) {
        self.counts.in_flight = self.counts.in_flight.saturating_add(1);
        self.counts.fresh = true;
    }

    pub(crate) fn ended(&mut self) {
        self.counts.in_flight = self.counts.in_flight.saturating_sub(1);
        self.counts.fresh = true;
    }

    pub(crate) fn answered(&mut self, method: u8, code: u16, took: Duration) {
        let counts = &mut self.counts;
        let room = counts.requests.len() < MAX_REQUEST_COUNTS;
        let key = if room || counts.requests.contains_key(&(method, code)) {
            (method, code)
        } else {
            (method, 0)
        };
        let count = counts.requests.entry(key).or_default();
        *count = count.saturating_add(1);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        counts.latency_sum_us = counts.latency_sum_us.saturating_add(micros);
        let bucket = LATENCY_BUCKETS_MS
            .iter()
            .position(|bound| micros <= bound.saturating_mul(1_000))
            .unwrap_or(LATENCY_BUCKETS_MS.len());
        if let Some(count) = counts.latency.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        counts.fresh = true;
    }

    pub(crate) fn attempted(&mut self, index: usize, failed: bool) {
        if let Some(seen) = self.seen.get_mut(index) {
            seen.requests = seen.requests.saturating_add(1);
            seen.failures = seen.failures.saturating_add(u64::from(failed));
        }
    }

    pub(crate) fn panicked(&mut self) {
        self.counts.panics = self.counts.panics.saturating_add(1);
        self.counts.fresh = true;
    }

    pub(crate) fn refused(&mut self) {
        self.counts.no_endpoint = self.counts.no_endpoint.saturating_add(1);
        self.counts.fresh = true;
    }

    /// What this worker tells the others of the load; `None` when there is nothing to tell.
    pub(crate) fn load(&self, now: Now) -> Option<Vec<Load>> {
        let entry = |e: LoadEntry| Load {
            endpoint: e.key,
            in_flight: e.in_flight,
            latency_us: e.latency_us,
            failures_milli: e.failures_milli,
        };
        let load: Vec<Load> = self.balancer.local_load(now).map(entry).collect();
        (!load.is_empty()).then_some(load)
    }

    /// The report since the VM started; `None` when nothing changed and `all` is not asked for.
    pub(crate) fn report(&mut self, service: &str, all: bool, now: Now) -> Option<ServiceReport> {
        if !all && !self.counts.fresh {
            return None;
        }
        self.counts.fresh = false;
        let latency: BTreeMap<u64, u32> =
            self.balancer.local_load(now).map(|entry| (entry.key, entry.latency_us)).collect();
        let mut endpoints = Vec::new();
        for index in 0..self.seen.len() {
            let state = self.breaker_state(index);
            let (in_flight, _) = self.balancer.in_flight(index);
            let (Some(seen), Some(id)) = (self.seen.get_mut(index), self.balancer.id_of(index))
            else {
                continue;
            };
            let now_said = (seen.requests, in_flight, state);
            let telling = all && (seen.requests > 0 || state != BreakerState::Closed);
            if !telling && now_said == seen.reported {
                continue;
            }
            seen.reported = now_said;
            let key = self.balancer.key_of(index).unwrap_or_default();
            endpoints.push(EndpointReport {
                id: id.to_owned(),
                requests: seen.requests,
                failures: seen.failures,
                in_flight,
                latency_us: latency.get(&key).copied().unwrap_or_default().into(),
                state,
            });
        }
        let counts = &self.counts;
        let requests = counts.requests.iter();
        Some(ServiceReport {
            service: service.to_owned(),
            requests: requests
                .map(|(&(method, code), &count)| RequestCount { method, code, count })
                .collect(),
            latency: counts.latency.to_vec(),
            latency_sum_us: counts.latency_sum_us,
            in_flight: counts.in_flight,
            panics: counts.panics,
            no_endpoint: counts.no_endpoint,
            endpoints,
        })
    }
}

impl Seen {
    fn tell(&mut self, endpoint: &Endpoint) {
        let address = endpoint.socket_addr().to_string();
        if self.address != address {
            self.address = address;
        }
        self.opinion = endpoint.opinion;
        self.force = endpoint.force;
    }
}
