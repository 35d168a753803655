//! `pintle explain`: who of a service's endpoints requests go to, and why not to the others.
//!
//! This is the agent's view: the registry, what events laid over it, and what the proxies last
//! reported. A proxy also knows its own zone, what its other layers of policy say, and its breakers
//! a moment earlier.

mod asked;
mod request;

use std::io::{Write, stdout};

use clap::Args;
use pintle_policy::Policy;
use pintle_policy::select::{Failover, MaxRequests, tier_of, tier_shares};
use serde::Serialize;

use asked::Asked;
use request::Headers;

use super::CliError;
use super::args::AdminArgs;
use super::reads::{agent, escaped, print_json};
use super::table::Table;
use crate::serve::admin::view::{EndpointJson, ServiceJson};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) admin: AdminArgs,
    /// The service.
    pub(super) service: String,
    /// KEY=VALUE that a request asks for; repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) metadata: Vec<String>,
    /// A tag that a request asks for; repeatable.
    #[arg(long)]
    pub(super) tag: Vec<String>,
    /// A header of the request, `:path` among them: its hash key, subset and pin are looked at;
    /// repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) header: Vec<String>,
}

/// What is asked of a service.
#[derive(Debug, Serialize)]
struct Explanation {
    service: String,
    version: String,
    strategy: &'static str,
    /// What holds for the service as a whole.
    notes: Vec<String>,
    endpoints: Vec<Row>,
}

/// One endpoint.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    address: String,
    zone: String,
    tier: u8,
    weight: u32,
    health: String,
    breaker: String,
    in_flight: u64,
    latency_ms: Option<f64>,
    /// Of the service's attempts lately.
    share: f64,
    /// Why no request goes there; empty for a candidate.
    left_out: Vec<String>,
}

/// Why an endpoint takes nothing by itself, whatever the others do.
pub(super) fn amiss(endpoint: &EndpointJson) -> Option<String> {
    if endpoint.weight == 0 {
        return Some("weight 0".to_owned());
    }
    match endpoint.health.as_str() {
        "unhealthy" => return Some("unhealthy".to_owned()),
        "draining" => return Some("draining: pinned sessions only".to_owned()),
        _ => {}
    }
    if let Some(force) = endpoint.force.as_ref().filter(|force| force.action == "open") {
        return Some(format!("breaker held open by an operator until {}", force.until));
    }
    let on = endpoint.breaker.on.first()?;
    let more = match endpoint.breaker.on.len() {
        1 => String::new(),
        all => format!(" and {} more", all.saturating_sub(1)),
    };
    let due = on.until.as_ref().map_or(String::new(), |at| format!(", a probe is due at {at}"));
    Some(format!("breaker {} on {}{more}: {}{due}", on.state, on.proxy, on.reason))
}

pub(super) fn matches(failover: &Failover, endpoint: &EndpointJson) -> bool {
    match failover {
        Failover::Tag(tag) => endpoint.tags.contains(tag),
        Failover::Region(region) => endpoint.metadata.get("region") == Some(region),
    }
}

/// Explains a service under its policy.
fn explain(service: &ServiceJson, policy: &Policy, asked: &Asked<'_>) -> Explanation {
    let select = &policy.select;
    let mut notes = Vec::new();
    if policy.switches.bypass {
        notes
            .push("bypassed: Envoy's own policy chooses, and nothing below is in force".to_owned());
    } else if policy.switches.shadow {
        notes.push("in shadow: Envoy's own policy chooses, this is only told".to_owned());
    }
    let mut left_out: Vec<Vec<String>> = Vec::new();
    for endpoint in &service.endpoints {
        left_out.push(asked.lacks(endpoint).into_iter().chain(amiss(endpoint)).collect());
    }
    if let Some(failover) = &select.failover {
        let all = || service.endpoints.iter().zip(&left_out);
        if all().any(|(endpoint, why)| why.is_empty() && matches(failover, endpoint)) {
            for (endpoint, why) in service.endpoints.iter().zip(&mut left_out) {
                if !matches(failover, endpoint) {
                    why.push(format!("the service is failed over to {}", words(failover)));
                }
            }
        } else {
            let to = words(failover);
            notes.push(format!("failover to {to} is not applied: nobody eligible matches"));
        }
    }
    by_tier(service, asked, &mut left_out, &mut notes);
    match select.max_requests {
        MaxRequests::Any => {}
        MaxRequests::Fixed(most) => {
            notes.push(format!("at most {most} requests in flight at an endpoint from one Envoy"));
        }
        MaxRequests::Adaptive { min, max } => notes.push(format!(
            "at most {min} to {max} requests in flight at an endpoint from one Envoy, by its latency"
        )),
    }
    let rows = service.endpoints.iter().zip(left_out);
    Explanation {
        service: service.service.clone(),
        version: service.version.clone(),
        strategy: select.strategy.name(),
        notes,
        endpoints: rows.map(|(endpoint, left_out)| row(endpoint, left_out)).collect(),
    }
}

/// Leaves out the tiers to which nothing goes, and says what goes to which.
fn by_tier(
    service: &ServiceJson,
    asked: &Asked<'_>,
    left_out: &mut [Vec<String>],
    notes: &mut Vec<String>,
) {
    let tier =
        |endpoint: &EndpointJson| tier_of(endpoint.metadata.get("priority").map(String::as_str));
    let counts = |endpoint: &&EndpointJson| {
        endpoint.weight > 0 && endpoint.health != "draining" && asked.lacks(endpoint).is_none()
    };
    let mut tiers: Vec<u8> = service.endpoints.iter().filter(counts).map(tier).collect();
    tiers.sort_unstable();
    tiers.dedup();
    if tiers.len() < 2 {
        return;
    }
    let all = || service.endpoints.iter().zip(left_out.iter());
    let parts = tiers.iter().map(|at| {
        let counted = service.endpoints.iter().filter(counts).filter(|e| tier(e) == *at).count();
        let open = all().filter(|(e, why)| why.is_empty() && tier(e) == *at).count();
        (u32::try_from(open).unwrap_or(u32::MAX), u32::try_from(counted).unwrap_or(u32::MAX))
    });
    let shares = tier_shares(&parts.collect::<Vec<_>>());
    let words: Vec<String> =
        tiers.iter().zip(&shares).map(|(at, share)| format!("{share} % to tier {at}")).collect();
    notes.push(words.join(", "));
    for (endpoint, why) in service.endpoints.iter().zip(left_out) {
        let share = tiers.iter().position(|at| *at == tier(endpoint)).and_then(|at| shares.get(at));
        if why.is_empty() && share == Some(&0) {
            why.push("nothing is left for its tier".to_owned());
        }
    }
}

pub(super) fn words(failover: &Failover) -> String {
    match failover {
        Failover::Tag(tag) => format!("tag {tag}"),
        Failover::Region(region) => format!("region {region}"),
    }
}

fn row(endpoint: &EndpointJson, left_out: Vec<String>) -> Row {
    Row {
        id: endpoint.id.clone(),
        address: endpoint.address.clone(),
        zone: endpoint.zone.clone(),
        tier: tier_of(endpoint.metadata.get("priority").map(String::as_str)),
        weight: endpoint.weight,
        health: endpoint.health.clone(),
        breaker: endpoint.breaker.state.clone(),
        in_flight: endpoint.in_flight,
        latency_ms: endpoint.latency_ms,
        share: endpoint.share,
        left_out,
    }
}

impl Explanation {
    fn render(&self) -> String {
        let open = self.endpoints.iter().filter(|row| row.left_out.is_empty()).count();
        let mut out = format!(
            "{}, version {}: {} of {} endpoints are candidates, by {}\n",
            self.service,
            self.version,
            open,
            self.endpoints.len(),
            self.strategy
        );
        for note in &self.notes {
            out += &format!("- {note}\n");
        }
        let mut table = Table::new(&[
            "endpoint",
            "address",
            "zone",
            "tier",
            "weight",
            "in flight",
            "latency",
            "share",
            "why",
        ]);
        for row in &self.endpoints {
            table.row([
                row.id.clone(),
                row.address.clone(),
                row.zone.clone(),
                row.tier.to_string(),
                row.weight.to_string(),
                row.in_flight.to_string(),
                row.latency_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default(),
                format!("{:.0} %", row.share * 100.0),
                match row.left_out.is_empty() {
                    true => "candidate".to_owned(),
                    false => format!("left out: {}", row.left_out.join("; ")),
                },
            ]);
        }
        out + &table.render("The service has no endpoint.")
    }
}

pub(super) async fn run(args: &ExplainArgs, json: bool) -> Result<(), CliError> {
    let name = &args.service;
    if !pintle_contract::is_name(name) {
        return Err(CliError::Usage(format!("{name:?} is no service's name")));
    }
    if let Some(odd) = args.metadata.iter().find(|pair| !pair.contains('=')) {
        return Err(CliError::Usage(format!("--metadata {odd:?} is not KEY=VALUE")));
    }
    let mut asked = Asked {
        metadata: args.metadata.iter().filter_map(|pair| pair.split_once('=')).collect(),
        tags: args.tag.iter().map(String::as_str).collect(),
    };
    let headers = Headers::read(&args.header)?;
    let service: ServiceJson =
        agent(&args.admin).get(&format!("/v1/services/{}", escaped(name))).await?;
    let policy = Policy::resolve(&service.policy)
        .map_err(|error| CliError::No(format!("the policy of {name}: {error}")))?;
    let found = headers.find(&service, &policy, &mut asked);
    let mut explanation = explain(&service, &policy, &asked);
    explanation.notes.extend(found);
    if json {
        return print_json(&explanation);
    }
    stdout().write_all(explanation.render().as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoint(id: &str, change: Value) -> Value {
        let mut endpoint = json!({
            "id": id, "address": "10.0.0.1:80", "weight": 1, "health": "healthy", "zone": "",
            "tags": [], "metadata": {}, "registered_at": null, "in_flight": 0, "latency_ms": 2.0,
            "requests": 0, "failures": 0, "minute_requests": 0, "minute_failures": 0, "rate": 0.0,
            "share": 0.0, "breaker": {"state": "closed", "trips": 0, "on": []},
            "opinion": null, "force": null,
        });
        pintle_policy::merge(&mut endpoint, &change);
        endpoint
    }

    fn explained(policy: Value, endpoints: &[Value], asked: &Asked<'_>) -> Explanation {
        let service = json!({
            "service": "orders", "version": "1.2", "policy": policy, "requests": 0, "errors": 0,
            "rate": 0.0, "in_flight": 0, "mean_ms": null, "panics": 0, "no_endpoint": 0,
            "minute": {"requests": 0, "errors": 0, "mean_ms": null, "panics": 0, "no_endpoint": 0},
            "endpoints": endpoints,
        });
        let service: ServiceJson = serde_json::from_value(service).expect("a service");
        explain(&service, &Policy::resolve(&service.policy).expect("a policy"), asked)
    }

    fn anything() -> Asked<'static> {
        Asked { metadata: Vec::new(), tags: Vec::new() }
    }

    fn why(explanation: &Explanation) -> Vec<String> {
        explanation.endpoints.iter().map(|row| row.left_out.join("; ")).collect()
    }

    #[test]
    fn each_that_is_left_out_has_its_reason() {
        let open = json!({"breaker": {"state": "open", "trips": 1, "on": [{
            "proxy": "envoy-1", "state": "open", "since": "then", "until": "soon",
            "reason": "5 consecutive failures", "observed": true, "trips": 1}]}});
        let forced = json!({"force": {"action": "open", "until": "noon"}});
        let all = [
            endpoint("a", json!({"metadata": {"version": "2"}})),
            endpoint("b", json!({"health": "unhealthy"})),
            endpoint("c", json!({"health": "draining"})),
            endpoint("d", json!({"weight": 0})),
            endpoint("e", open),
            endpoint("f", forced),
        ];
        let explanation = explained(json!({}), &all, &anything());
        let reasons = [
            "",
            "unhealthy",
            "draining: pinned sessions only",
            "weight 0",
            "breaker open on envoy-1: 5 consecutive failures, a probe is due at soon",
            "breaker held open by an operator until noon",
        ];
        assert_eq!(why(&explanation), reasons);
        let text = explanation.render();
        assert!(text.starts_with("orders, version 1.2: 1 of 6 endpoints are candidates, by p2c\n"));
        assert!(text.contains("candidate") && text.contains("left out: weight 0"), "{text}");

        let asked = Asked { metadata: vec![("version", "2")], tags: Vec::new() };
        let explanation = explained(json!({}), &all[..2], &asked);
        assert_eq!(why(&explanation), ["", "not of the subset: version=2; unhealthy"]);
    }

    #[test]
    fn tiers_a_failover_and_switches_are_told() {
        let dr = json!({"tags": ["dr"], "metadata": {"priority": "1"}});
        let all = [endpoint("a", json!({})), endpoint("b", json!({})), endpoint("c", dr)];
        let explanation = explained(json!({"mode": "shadow"}), &all, &anything());
        assert_eq!(why(&explanation), ["", "", "nothing is left for its tier"]);
        assert!(explanation.render().contains("- 100 % to tier 0, 0 % to tier 1"));
        assert!(explanation.render().contains("- in shadow"));

        let moved = json!({"select": {"failover": {"tag": "dr"}}});
        let explanation = explained(moved.clone(), &all, &anything());
        let away = "the service is failed over to tag dr";
        assert_eq!(why(&explanation), [away, away, ""]);
        let explanation = explained(moved, &all[..2], &anything());
        assert_eq!(why(&explanation), ["", ""]);
        assert!(explanation.render().contains("is not applied: nobody eligible matches"));
    }
}
