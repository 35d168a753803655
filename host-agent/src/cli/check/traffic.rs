//! Services that fail their callers now: all breakers open, panic, nothing eligible; or whose keys do not go
//! where their hash says.

use super::agent::Agent;
use super::finding::{Code, Finding, plural, some};
use crate::serve::admin::view::{EndpointJson, ServiceJson};

pub(super) fn look(agent: &Agent) -> Vec<Finding> {
    agent.services.iter().filter_map(service).collect()
}

/// One finding a service, the gravest: what makes for the others is in its detail.
fn service(service: &ServiceJson) -> Option<Finding> {
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
