//! Counts over all services, and which of them are worst off: what a page that shows some can't add
//! up.

use std::cmp::Reverse;

use pintle_contract::{BreakerState, Health};
use pintle_state::{Service, Snapshot};
use serde::{Deserialize, Serialize};

use super::services::{MinuteJson, ServiceJson, ServicesJson, round};
use super::time;
use crate::fleet::{MinuteView, ServiceView, View};

/// Counts over all services.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TotalsJson {
    /// Services.
    pub services: usize,
    /// Those of them with which something is wrong now.
    pub troubled: usize,
    /// Endpoints.
    pub endpoints: usize,
    /// Endpoints whose breaker is not closed on some proxy.
    pub not_closed: usize,
    /// Requests since the agent counts.
    pub requests: u64,
    /// Those of them that ended with 5xx or without a status.
    pub errors: u64,
    /// Attempts a second.
    pub rate: f64,
    /// The last minute.
    pub minute: MinuteJson,
}

/// How ill a service is; greater is worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Illness {
    unanswered: bool,
    panic: bool,
    failing: u64,
    unused: usize,
}

impl Illness {
    fn of(service: &Service, view: &ServiceView) -> Self {
        let endpoints = &service.table.endpoints;
        let ill = endpoints.iter().filter(|it| {
            let open =
                view.endpoints.get(&it.id).is_some_and(|it| it.state != BreakerState::Closed);
            open || it.health != Health::Healthy
        });
        let minute = &view.minute;
        let unused = ill.count();
        Self {
            unanswered: minute.no_endpoint > 0 || unused == endpoints.len(),
            panic: minute.panics > 0,
            failing: minute.errors,
            unused,
        }
    }
}

impl TotalsJson {
    /// The counts, and at most `limit` services with their endpoints, the worst first.
    #[must_use]
    pub(crate) fn of(snapshot: &Snapshot, view: &View, limit: usize) -> (Self, ServicesJson) {
        let nothing = ServiceView::default();
        let mut totals = Self { services: snapshot.services.len(), ..Self::default() };
        let mut minute = MinuteView::default();
        let mut all = Vec::with_capacity(snapshot.services.len());
        for (name, service) in snapshot.services.iter() {
            let seen = view.services.get(name).unwrap_or(&nothing);
            let illness = Illness::of(service, seen);
            totals.troubled += usize::from(illness != Illness::default());
            totals.add(service, seen);
            minute.add(&seen.minute);
            all.push((Reverse(illness), name, service, seen));
        }
        totals.rate = round(totals.rate);
        totals.minute = MinuteJson::of(&minute);
        all.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        let worst = all.iter().take(limit);
        let services =
            worst.map(|(_, _, service, seen)| ServiceJson::of(service, Some(seen), true));
        let services = ServicesJson {
            version: snapshot.version.to_string(),
            stale: snapshot.stale,
            confirmed_at: snapshot.confirmed_at.map(time),
            total: snapshot.services.len(),
            services: services.collect(),
            next: None,
        };
        (totals, services)
    }

    fn add(&mut self, service: &Service, view: &ServiceView) {
        self.endpoints += service.table.endpoints.len();
        let open = view.endpoints.values().filter(|it| it.state != BreakerState::Closed);
        self.not_closed += open.count();
        self.rate += view.rate;
        for ((_, code), count) in &view.requests {
            self.requests = self.requests.saturating_add(*count);
            if *code == 0 || (500..600).contains(code) {
                self.errors = self.errors.saturating_add(*count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use pintle_contract::{Endpoint, Table, Version};

    use super::*;

    #[test]
    fn all_are_counted_and_those_in_trouble_come_first() {
        let mut snapshot = Snapshot::default();
        let mut view = View::default();
        for n in 0..300_u64 {
            let name = format!("s{n:03}");
            let endpoint = Endpoint::new("a", ([10, 0, 0, 1], 80).into());
            let table = Table {
                service: name.clone(),
                version: Version::default(),
                endpoints: vec![endpoint],
                policy: String::new(),
            };
            let service = Service { seen_at: SystemTime::UNIX_EPOCH, ..Service::of(table) };
            snapshot.services.insert(Arc::new(service));
            let minute = MinuteView {
                requests: 10,
                errors: u64::from(n == 250) * 3,
                panics: u64::from(n == 299),
                ..MinuteView::default()
            };
            let requests = [((0, 200), 40), ((0, 503), 2)].into();
            let seen = ServiceView { minute, requests, rate: 1.0, ..ServiceView::default() };
            view.services.insert(name, seen);
        }
        let (totals, services) = TotalsJson::of(&snapshot, &view, 200);
        let counts = (totals.services, totals.troubled, totals.endpoints, totals.requests);
        assert_eq!(counts, (300, 2, 300, 12_600));
        assert_eq!((totals.errors, totals.minute.requests, totals.minute.errors), (600, 3_000, 3));
        let first: Vec<_> =
            services.services.iter().take(3).map(|it| it.service.as_str()).collect();
        assert_eq!(first, ["s299", "s250", "s000"]);
        assert_eq!((services.services.len(), services.total), (200, 300));
    }
}
