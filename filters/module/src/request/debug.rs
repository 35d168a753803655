//! The debug header: why a request went where it went, told to who brings the token.
//!
//! From all others' requests and answers the header is removed, so that nobody behind learns the
//! token and nobody before can be told what is not ours. The token is in no log: it is gone before
//! the request goes on.

use std::rc::Rc;

use pintle_balance::{Choice, Nothing, Picks, Request, Standing};
use pintle_policy::Config;
use serde_json::{Map, Value, json};

use super::Decided;
use crate::boundary::{Headers, Proxy};
use crate::counters::Count;
use crate::service::Service;
use crate::worker::Local;

/// Endpoints that one header tells of, at most: about 4 KiB.
const MOST: usize = 24;

/// What the answer to one request says.
pub(super) struct Answer {
    config: Rc<Config>,
    /// Whether the request brought the token.
    asked: bool,
    told: Option<Value>,
}

impl Answer {
    /// Takes the header off the request.
    pub(super) fn begin<P: Proxy>(
        config: &Rc<Config>,
        local: &mut Local,
        proxy: &P,
        headers: &P::Headers,
    ) -> Option<Self> {
        let name = &config.debug.as_ref()?.header;
        let token = headers.get(name.as_bytes());
        if token.is_some() && proxy.remove_request_header(name).is_err() {
            local.counters.add(Count::HostError);
        }
        let asked =
            token.zip(local.token.as_ref()).is_some_and(|(brought, token)| token.is(brought));
        Some(Self { config: Rc::clone(config), asked, told: None })
    }

    /// Says what has just been picked, and why.
    pub(super) fn explain(
        &mut self,
        service: &Service,
        name: &str,
        request: &Request<'_>,
        choice: Choice,
        picks: &Picks,
    ) {
        if !self.asked {
            return;
        }
        let mut all = service.balancer.standings(request);
        let place = |standing: &Standing| {
            let is = |pick: &u32| usize::try_from(*pick) == Ok(standing.index);
            picks.as_slice().iter().position(is).unwrap_or(usize::MAX)
        };
        all.sort_by_cached_key(|it| (place(it), it.left_out.is_some(), it.cost));
        let more = all.len().saturating_sub(MOST);
        let endpoints = all.iter().take(MOST).map(|standing| of(service, standing));
        let list = picks.as_slice().iter();
        let list = list.filter_map(|index| service.balancer.id_of(usize::try_from(*index).ok()?));
        let (choice, candidates) = match choice {
            Choice::Eligible { candidates } => ("eligible", candidates),
            Choice::Panic { candidates } => ("panic", candidates),
            Choice::None(Nothing::Empty) => ("the service has no endpoint", 0),
            Choice::None(Nothing::Subset) => ("nobody is of the subset", 0),
            Choice::None(Nothing::Ineligible) => ("nobody is eligible", 0),
            Choice::None(Nothing::Full) => ("every endpoint is full", 0),
        };
        self.told = Some(json!({
            "service": name,
            "shadow": service.policy.switches.shadow,
            "version": service.version.to_string(),
            "strategy": service.balancer.policy().strategy.name(),
            "choice": choice,
            "candidates": candidates,
            "list": list.collect::<Vec<_>>(),
            "pinned": picks.pinned(),
            "probe": picks.probe(),
            "hash": request.hash.map(|hash| format!("{hash:016x}")),
            "endpoints": endpoints.collect::<Vec<_>>(),
            "more": more,
        }));
    }

    /// The header and its value; `None` for who has not asked.
    pub(super) fn text(&self, decided: &Decided) -> Option<(&str, String)> {
        let header = self.config.debug.as_ref().filter(|_| self.asked)?;
        // Names and ids are ASCII, as a header must be.
        let text = match &self.told {
            Some(told) => told.to_string(),
            None => {
                let service = decided.service.as_ref().map(|known| &*known.name);
                json!({"service": service, "choice": "Envoy's", "why": decided.reason}).to_string()
            }
        };
        Some((&header.header, text))
    }

    /// Into the answer, or out of it.
    pub(super) fn write<P: Proxy>(&self, proxy: &P, decided: &Decided) {
        // What the proxy refuses here leaves the answer as it was.
        let _ = match (self.text(decided), &self.config.debug) {
            (Some((name, text)), _) => proxy.set_response_header(name, text.as_bytes()),
            (None, Some(debug)) => proxy.remove_response_header(&debug.header),
            (None, None) => Ok(()),
        };
    }
}

fn of(service: &Service, standing: &Standing) -> Value {
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let index = standing.index;
    let mut told = Map::new();
    let mut tell = |key: &str, value: Value| drop(told.insert(key.to_owned(), value));
    tell("id", service.balancer.id_of(index).into());
    tell("address", service.address(index).into());
    tell("cost_ms", ms(standing.cost).into());
    tell("latency_ms", ms(standing.latency).into());
    tell("waiting", standing.waiting.into());
    tell("in_flight", standing.in_flight.into());
    if standing.failures > 1.0 {
        tell("failures", f64::from(standing.failures).into());
    }
    if let Some(limit) = standing.limit {
        tell("limit", limit.into());
    }
    if let Some(ill) = standing.ill {
        tell("ill", ill.words().into());
    }
    if let Some(left_out) = standing.left_out {
        tell("left_out", left_out.words().into());
    }
    Value::Object(told)
}
