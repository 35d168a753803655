//! What the agent did not take as it stands: refused entries and policies, removals that it holds
//! back, ids that share an address.

use std::collections::BTreeMap;

use pintle_state::entry::{OVER_BUDGET, TOO_COSTLY};

use super::agent::Agent;
use super::finding::{Code, Finding, plural, some};
use crate::condition::service_of;
use crate::serve::admin::view::RejectedRowJson;

/// `ill`: what was found already.
pub(super) fn look(agent: &Agent, ill: &[Code]) -> Vec<Finding> {
    let mut findings = refused(agent);
    findings.extend(held(agent));
    findings.extend(several_ids(agent));
    if !ill.contains(&Code::SchemeForeign) {
        findings.extend(untaken(agent));
    }
    findings
}

/// Keys of foreign registries of which none is an instance: those of a scheme that no source takes,
/// mostly.
fn untaken(agent: &Agent) -> Option<Finding> {
    let keys = agent.sources.keys_beside;
    if keys == 0 || agent.services.iter().any(|service| !service.endpoints.is_empty()) {
        return None;
    }
    let detail = format!("{} of other registries, and no instance among them", plural(keys, "key"));
    let todo = "pintle check --config FILE reads the keys and says what they are";
    Some(Finding::bad(Code::EtcdEmpty, "registry", detail, todo))
}

/// Each is one endpoint, and most often its older keys are forgotten ones.
fn several_ids(agent: &Agent) -> Option<Finding> {
    let endpoints = agent.services.iter().flat_map(|service| {
        service.endpoints.iter().map(move |endpoint| (&service.service, endpoint))
    });
    let several: Vec<_> = endpoints.filter(|(_, endpoint)| !endpoint.also.is_empty()).collect();
    let (service, first) = several.first()?;
    let detail = format!(
        "{} under several ids, such as {} of {service}: {}, {}",
        plural(several.len(), "address").replace("addresss", "addresses"),
        first.address,
        first.id,
        first.also.join(", ")
    );
    let todo = "each is one endpoint; delete the keys that nobody keeps alive";
    Some(Finding::warn(Code::IdsSeveral, "registry", detail, todo))
}

fn refused(agent: &Agent) -> Vec<Finding> {
    let mut findings = Vec::new();
    let served = |service: &str| {
        let of = agent.services.iter().find(|it| it.service == service);
        of.is_some_and(|it| !it.endpoints.is_empty())
    };
    let mut entries: BTreeMap<String, Vec<&RejectedRowJson>> = BTreeMap::new();
    let over: Vec<_> = agent.rejected.iter().filter(|row| row.reason == OVER_BUDGET).collect();
    if let Some(first) = over.first() {
        findings.push(Finding::bad(
            Code::ValuesOverBudget,
            "registry",
            format!(
                "{} refused, such as {}: {}",
                plural(over.len(), "value"),
                first.key,
                first.detail
            ),
            "delete keys that nobody needs, keep long texts out of the metadata, or raise state.budget",
        ));
    }
    let others = |row: &&RejectedRowJson| row.source != "event" && row.reason != OVER_BUDGET;
    for row in agent.rejected.iter().filter(others) {
        if row.reason == TOO_COSTLY {
            findings.push(Finding::bad(
                Code::PolicyTooCostly,
                "policy",
                format!("{} is refused: {}", row.key, row.detail),
                "set a smaller minimum_ring_size or table_size, or maximum_ring_size where weights \
                 differ; or raise the modules' memory.budget and state.vm_budget with it",
            ));
        } else if row.source == "policy" {
            findings.push(Finding::bad(
                Code::PolicyRefused,
                "policy",
                format!("{} is refused: {}", row.key, row.detail),
                "correct it; until then the policy before it is in force, or the defaults",
            ));
        } else {
            entries.entry(service_of(&row.key)).or_default().push(row);
        }
    }
    let nothing = agent.services.iter().all(|service| service.endpoints.is_empty());
    for (service, rows) in entries {
        let Some(first) = rows.first() else { continue };
        let seen = format!(
            "{} refused ({}): {}",
            plural(rows.len(), "entry").replace("entrys", "entries"),
            some(rows.iter().map(|row| row.key.as_str()), 3),
            first.detail
        );
        let todo = remedy(&first.reason);
        findings.push(if nothing || !served(&service) {
            let detail = format!("no endpoint of {service} is left: {seen}");
            Finding::bad(Code::EntriesAllRefused, "registry", detail, todo)
        } else {
            let detail = format!("{service}: {seen}");
            Finding::bad(Code::EntriesRefused, "registry", detail, todo)
        });
    }
    findings
}

/// What to type against one kind of refusal.
fn remedy(reason: &str) -> String {
    match reason {
        "address_not_allowed" => {
            "start the agent with --allow and a range that holds the address (state.allow), \
             such as --allow 127.0.0.0/8"
                .to_owned()
        }
        _ => {
            "correct the entry and register it again; `pintle services --rejected` has all of them"
                .to_owned()
        }
    }
}

fn held(agent: &Agent) -> Vec<Finding> {
    let mut services: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for held in &agent.held {
        services.entry(&held.service).or_default().push(&held.endpoint);
    }
    let why = |service: &str| {
        let held = agent.held.iter().find(|held| held.service == service);
        held.map_or("", |held| held.reason.as_str())
    };
    services
        .iter()
        .map(|(service, endpoints)| {
            Finding::bad(
                Code::RemovalsHeld,
                "registry",
                format!(
                    "{} of {service} held back ({}): {}",
                    plural(endpoints.len(), "removal"),
                    some(endpoints, 3),
                    why(service)
                ),
                format!(
                    "if they are gone for good: pintle release {service}; if not, register them again"
                ),
            )
        })
        .collect()
}
