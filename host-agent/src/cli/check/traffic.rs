//! Services that fail their callers now: all breakers open, panic, nothing eligible; or whose keys
//! do not go where their hash says.

use std::collections::BTreeMap;

use pintle_policy::Policy;

use super::agent::Agent;
use super::finding::{Code, Finding, plural, some};
use crate::cli::explain;
use crate::serve::admin::view::{EndpointJson, OverlayJson, ServiceJson};

pub(super) fn look(agent: &Agent) -> Vec<Finding> {
    let services = || agent.services.iter();
    let switches = agent.overlays.iter().filter_map(switch);
    services().filter_map(service).chain(services().filter_map(failover)).chain(switches).collect()
}

/// What an order has taken from the module, and its author may have forgotten.
fn switch(overlay: &OverlayJson) -> Option<Finding> {
    let OverlayJson { service, action, until, .. } = overlay;
    let switched = overlay.kind == "service" && ["bypass", "shadow"].contains(&action.as_str());
    switched.then(|| {
        Finding::warn(
            Code::SwitchInForce,
            &format!("service {service}"),
            format!("{action} until {until}: Envoy's own policy chooses, and no breaker protects"),
            format!("if it is not meant any more: pintle {action} {service} --off"),
        )
    })
}

/// A failover to nobody, which no proxy applies.
fn failover(service: &ServiceJson) -> Option<Finding> {
    let name = &service.service;
    let to = Policy::resolve(&service.policy).ok()?.select.failover?;
    let eligible = |it: &EndpointJson| explain::amiss(it).is_none() && explain::matches(&to, it);
    (!service.endpoints.iter().any(eligible)).then(|| {
        let to = explain::words(&to);
        Finding::bad(
            Code::FailoverUnmatched,
            &format!("service {name}"),
            format!("its failover to {to} is not applied: no eligible endpoint matches"),
            format!("register or mend one that does, or end it: pintle failover {name} --off"),
        )
    })
}

/// Endpoints of which none may take a request.
fn unusable(service: &ServiceJson) -> Option<Finding> {
    let all = &service.endpoints;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for endpoint in all {
        let why = match endpoint.health.as_str() {
            "draining" => "draining",
            _ if endpoint.weight == 0 => "of weight 0",
            "unhealthy" => "unhealthy",
            _ => return None,
        };
        *counts.entry(why).or_default() += 1;
    }
    if all.is_empty() {
        return None;
    }
    let words: Vec<String> = counts.iter().map(|(why, count)| format!("{count} {why}")).collect();
    Some(Finding::bad(
        Code::EndpointsUnusable,
        &format!("service {}", service.service),
        format!(
            "none of {} may take requests: {}",
            plural(all.len(), "endpoint"),
            words.join(", ")
        ),
        "mend them, or correct health and weight in the registry; until then panic serves from \
         those that are unhealthy",
    ))
}

/// One finding a service, the gravest: what makes for the others is in its detail.
fn service(service: &ServiceJson) -> Option<Finding> {
    if let Some(finding) = unusable(service) {
        return Some(finding);
    }
    let name = service.service.as_str();
    let usable = || service.endpoints.iter().filter(|it| it.health != "draining" && it.weight > 0);
    let ill = |it: &&EndpointJson| it.breaker.state != "closed" || it.health == "unhealthy";
    let count = usable().count();
    let open: Vec<&str> =
        usable().filter(|it| it.breaker.state != "closed").map(|it| it.id.as_str()).collect();
    let what = format!("service {name}");
    if count > 0 && open.len() == count {
        let why = usable().find_map(|it| Some(it.breaker.on.first()?.reason.clone()));
        return Some(Finding::bad(
            Code::BreakersOpen,
            &what,
            format!(
                "all {} open ({}): {}",
                if count == 1 {
                    "breakers are".to_owned()
                } else {
                    format!("{count} breakers are")
                },
                some(&open, 3),
                why.unwrap_or_else(|| "as reported".to_owned())
            ),
            format!(
                "pintle breakers says why; mend the endpoints, then pintle breaker clear {name}/{}",
                open.first().unwrap_or(&"ID")
            ),
        ));
    }
    if service.minute.no_endpoint > 0 {
        return Some(Finding::bad(
            Code::ServiceWithoutEndpoint,
            &what,
            format!(
                "{} in the last minute answered 503, because no endpoint was eligible",
                plural(service.minute.no_endpoint, "request")
            ),
            format!("pintle services {name} shows which are ill or draining; register others"),
        ));
    }
    if service.minute.panics > 0 {
        return Some(Finding::bad(
            Code::ServicePanics,
            &what,
            format!(
                "{} in the last minute spread over all endpoints, because only {} of {} are \
                 eligible",
                plural(service.minute.panics, "request"),
                count - usable().filter(ill).count(),
                count
            ),
            format!("pintle services {name} and pintle breakers say which are ill, and why"),
        ));
    }
    if service.minute.unplaced > 0 {
        return Some(Finding::warn(
            Code::RingRefused,
            &what,
            format!(
                "{} in the last minute went by p2c and not by their hash",
                plural(service.minute.unplaced, "request")
            ),
            format!(
                "if it goes on, Envoy's log says \"of {name} refused\" with the sum: make the ring or \
                 table smaller, the weights more alike, or memory.budget larger"
            ),
        ));
    }
    None
}
