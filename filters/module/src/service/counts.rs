//! What is counted of a service's requests, since the VM started.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_contract::{EndpointReport, LATENCY_BUCKETS_MS, RequestCount, ServiceReport, nanos};

/// Combinations of method and code that are counted apart, at most; ten methods by the codes in
/// use.
const MAX_REQUEST_COUNTS: usize = 512;

#[derive(Default)]
pub(crate) struct Counts {
    requests: BTreeMap<(u8, u16), u64>,
    latency: [u64; LATENCY_BUCKETS_MS.len() + 1],
    latency_sum_us: u64,
    in_flight: u32,
    panics: u64,
    no_endpoint: u64,
    not_followed: u64,
    unplaced: u64,
    /// Whether something changed since the last report.
    changed: bool,
}

impl Counts {
    /// A request is on its way.
    pub(crate) const fn start(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.changed = true;
    }

    /// A request's stream is over.
    pub(crate) const fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.changed = true;
    }

    /// An answer of this code, 0 for none; what has no room counts under code 0.
    pub(crate) fn answer(&mut self, method: u8, code: u16, took: Duration) {
        let room = self.requests.len() < MAX_REQUEST_COUNTS;
        let key = if room || self.requests.contains_key(&(method, code)) {
            (method, code)
        } else {
            (method, 0)
        };
        let count = self.requests.entry(key).or_default();
        *count = count.saturating_add(1);
        let micros = nanos(took) / 1_000;
        self.latency_sum_us = self.latency_sum_us.saturating_add(micros);
        let bucket = LATENCY_BUCKETS_MS
            .iter()
            .position(|bound| micros <= bound.saturating_mul(1_000))
            .unwrap_or(LATENCY_BUCKETS_MS.len());
        if let Some(count) = self.latency.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
        self.changed = true;
    }

    /// A request was spread over all endpoints because too few were eligible.
    pub(crate) const fn panic(&mut self) {
        self.panics = self.panics.saturating_add(1);
        self.changed = true;
    }

    /// A request was answered here because no endpoint was eligible.
    pub(crate) const fn refuse(&mut self) {
        self.no_endpoint = self.no_endpoint.saturating_add(1);
        self.changed = true;
    }

    /// So many attempts are charged to nobody, or to another endpoint than the list says.
    pub(crate) fn stray(&mut self, attempts: u32) {
        self.not_followed = self.not_followed.saturating_add(attempts.into());
        self.changed |= attempts > 0;
    }

    /// A request with a hash went by p2c.
    pub(crate) const fn misplace(&mut self) {
        self.unplaced = self.unplaced.saturating_add(1);
    }

    /// The next report must not be left out.
    pub(crate) const fn touch(&mut self) {
        self.changed = true;
    }

    /// Whether something changed since the last report.
    pub(crate) const fn is_changed(&self) -> bool {
        self.changed
    }

    /// Whether something changed since the last report, which the next one is.
    pub(crate) const fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.changed, false)
    }

    pub(crate) fn report(&self, service: &str, endpoints: Vec<EndpointReport>) -> ServiceReport {
        let requests = self.requests.iter();
        ServiceReport {
            service: service.to_owned(),
            requests: requests
                .map(|(&(method, code), &count)| RequestCount { method, code, count })
                .collect(),
            latency: self.latency.to_vec(),
            latency_sum_us: self.latency_sum_us,
            in_flight: self.in_flight,
            panics: self.panics,
            no_endpoint: self.no_endpoint,
            not_followed: self.not_followed,
            unplaced: self.unplaced,
            endpoints,
        }
    }
}
