//! The sums of a service and of its endpoints over all workers, and what is seen of them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use pintle_contract::{BreakerState, LATENCY_BUCKETS_MS, METHODS, Now};

use super::breaker::Breaker;
use super::minute::Minute;
use super::views::{BreakerView, EndpointView, MinuteView, ServiceView};
use super::{When, wall};

/// A report may be older than a transition that overtook it; after this long it is not.
const SETTLED: Duration = Duration::from_secs(2);
/// Pairs of method and status that one service counts apart, at most. What comes beyond is counted
/// by the class of its status (`500` for 5xx) and as of any other method, so that a proxy that
/// makes them up adds no series for ever.
const MAX_PAIRS: usize = 128;
/// So many of them every service has, whatever is made up of the others,
const OWN_PAIRS: usize = 16;
/// and so many more all of them share.
const SHARED_PAIRS: usize = 8_192;
pub(super) const BUCKETS: usize = LATENCY_BUCKETS_MS.len() + 1;

/// The method that stands for all that are not counted apart.
pub(super) const LAST_METHOD: u8 = METHODS.len() as u8 - 1;

#[derive(Debug, Default)]
pub(super) struct Service {
    pub(super) requests: BTreeMap<(u8, u16), u64>,
    /// Whether a pair was counted by its class: from then on each new one is, or it would count
    /// twice.
    crowded: bool,
    pub(super) latency: [u64; BUCKETS],
    pub(super) latency_sum_us: u64,
    pub(super) panics: u64,
    pub(super) no_endpoint: u64,
    pub(super) not_followed: u64,
    pub(super) unplaced: u64,
    pub(super) minute: Minute<8>,
    pub(super) endpoints: HashMap<String, Endpoint>,
    pub(super) absent: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Endpoint {
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) trips: u64,
    pub(super) counted: u64,
    pub(super) rate: f64,
    pub(super) minute: Minute<2>,
    pub(super) breakers: BTreeMap<String, Breaker>,
    pub(super) absent: Option<Instant>,
}

impl Service {
    /// Under what a method and a status are counted; a pair that is new takes its entry at once,
    /// and where it is not one of the service's own, one of the `shared` ones.
    pub(super) fn pair(&mut self, method: u8, code: u16, shared: &mut usize) -> (u8, u16) {
        let method = method.min(LAST_METHOD);
        let code = if (100..1000).contains(&code) { code } else { 0 };
        if self.requests.contains_key(&(method, code)) {
            return (method, code);
        }
        let held = self.requests.len();
        self.crowded |= held >= MAX_PAIRS || (held >= OWN_PAIRS && *shared >= SHARED_PAIRS);
        if self.crowded {
            return (LAST_METHOD, code / 100 * 100);
        }
        *shared = shared.saturating_add(usize::from(held >= OWN_PAIRS));
        self.requests.entry((method, code)).or_default();
        (method, code)
    }

    /// How many of the shared pairs it has.
    pub(super) fn shared_pairs(&self) -> usize {
        self.requests.len().saturating_sub(OWN_PAIRS)
    }

    /// Requests, errors, timed ones, their microseconds, panics, local answers, and attempts that
    /// went elsewhere.
    pub(super) fn totals(&self) -> [u64; 8] {
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
            self.unplaced,
        ]
    }

    pub(super) fn last_minute(&self) -> MinuteView {
        let [requests, errors, timed, latency_sum_us, panics, no_endpoint, not_followed, unplaced] =
            self.minute.since(self.totals());
        MinuteView {
            requests,
            errors,
            timed,
            latency_sum_us,
            panics,
            no_endpoint,
            not_followed,
            unplaced,
        }
    }

    pub(super) fn view(&self, words: &HashMap<&str, Now>, when: When) -> ServiceView {
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
            unplaced: self.unplaced,
            minute: self.last_minute(),
            rate: endpoints.values().map(|endpoint| endpoint.rate).sum(),
            endpoints,
        }
    }
}

impl Endpoint {
    /// A worker names the state; it stands where no transition said otherwise just now.
    pub(super) fn reported(&mut self, proxy: &str, state: BreakerState, when: When) {
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

    pub(super) fn breaker_views(&self, until: Option<Now>, when: When) -> Vec<BreakerView> {
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

    pub(super) fn view(&self, until: Option<Now>, when: When) -> EndpointView {
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
