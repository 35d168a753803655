//! Breakers: what each proxy counted, what the fleet says, what an operator ordered.

use std::time::SystemTime;

use pintle_contract::{Endpoint, ForceAction, Now};
use pintle_state::Snapshot;
use serde::{Deserialize, Serialize};

use super::{clean, time};
use crate::fleet::{self, BreakerView, EndpointView, View};

/// A breaker over all proxies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BreakerJson {
    /// `closed`, `open` or `half-open`; the most severe.
    pub state: String,
    /// Times it opened.
    pub trips: u64,
    /// The proxies on which it is not closed.
    pub on: Vec<BreakerOnJson>,
}

impl BreakerJson {
    pub(super) fn of(view: &EndpointView) -> Self {
        Self {
            state: view.state.as_str().to_owned(),
            trips: view.trips,
            on: view.breakers.iter().map(BreakerOnJson::of).collect(),
        }
    }
}

/// A breaker on one proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BreakerOnJson {
    /// Node id.
    pub proxy: String,
    /// `open` or `half-open`.
    pub state: String,
    /// Since when.
    pub since: String,
    /// When the first probe is due.
    pub until: Option<String>,
    /// Why.
    pub reason: String,
    /// Whether that proxy's own traffic is the cause.
    pub observed: bool,
    /// How many times in a row it has opened there.
    pub trips: u32,
}

impl BreakerOnJson {
    fn of(view: &BreakerView) -> Self {
        Self {
            proxy: clean(&view.proxy),
            state: view.state.as_str().to_owned(),
            since: time(view.since),
            until: view.until.map(time),
            reason: clean(&view.reason),
            observed: view.observed,
            trips: view.trips,
        }
    }
}

/// What the fleet says of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OpinionJson {
    /// How many other proxies hold it open.
    pub reporters: u32,
    /// Until when it counts.
    pub expires_at: String,
}

/// An operator's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ForceJson {
    /// `open`, `close` or `clear`.
    pub action: String,
    /// Until when it holds.
    pub until: String,
}

/// `/v1/breakers`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BreakersJson {
    /// Those that are not closed, that the fleet has an opinion of, or that are forced.
    pub breakers: Vec<BreakerRowJson>,
}

impl BreakersJson {
    /// At most `limit` rows; all endpoints when `all`.
    #[must_use]
    pub(crate) fn of(snapshot: &Snapshot, view: &View, limit: usize, all: bool) -> Self {
        let none = EndpointView::default();
        let rows = snapshot.services.iter().flat_map(|(name, service)| {
            let seen = view.services.get(name);
            let none = &none;
            service.table.endpoints.iter().filter_map(move |endpoint| {
                let seen = seen.and_then(|seen| seen.endpoints.get(&endpoint.id));
                let row = BreakerRowJson {
                    service: name.clone(),
                    endpoint: endpoint.id.clone(),
                    address: endpoint.socket_addr().to_string(),
                    breaker: BreakerJson::of(seen.unwrap_or(none)),
                    opinion: opinion(endpoint),
                    force: force(endpoint),
                };
                let interesting =
                    !row.breaker.on.is_empty() || row.opinion.is_some() || row.force.is_some();
                (all || interesting).then_some(row)
            })
        });
        Self { breakers: rows.take(limit).collect() }
    }
}

/// One row of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BreakerRowJson {
    /// Of the endpoint.
    pub service: String,
    /// The registry's id.
    pub endpoint: String,
    /// `ip:port`.
    pub address: String,
    /// The breaker.
    pub breaker: BreakerJson,
    /// What the fleet says.
    pub opinion: Option<OpinionJson>,
    /// What an operator ordered.
    pub force: Option<ForceJson>,
}

fn is_ahead(at: Now) -> bool {
    fleet::wall(at) > SystemTime::now()
}

pub(super) fn opinion(endpoint: &Endpoint) -> Option<OpinionJson> {
    let opinion = endpoint.opinion.filter(|it| is_ahead(it.expires_at))?;
    Some(OpinionJson {
        reporters: opinion.reporters,
        expires_at: time(fleet::wall(opinion.expires_at)),
    })
}

pub(super) fn force(endpoint: &Endpoint) -> Option<ForceJson> {
    let force = endpoint.force.filter(|it| is_ahead(it.until))?;
    let action = match force.action {
        ForceAction::Open => "open",
        ForceAction::Close => "close",
        ForceAction::Clear => "clear",
    };
    Some(ForceJson { action: action.to_owned(), until: time(fleet::wall(force.until)) })
}
