//! `pintle fleet`: every agent of the fleet, and where they differ in what they serve.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Write, stdout};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::sleep;

use super::CliError;
use super::args::{NatsArgs, waiting};
use super::orders::connect;
use super::reads::print_json;
use super::table::Table;
use crate::events::{Answers, Report};

#[derive(Debug, Args)]
pub(super) struct FleetArgs {
    #[command(flatten)]
    pub(super) nats: NatsArgs,
    /// How long to wait for the agents' word, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = waiting)]
    pub(super) wait: Duration,
}

/// What differs is asked for once more after this long: a change that was made just now is on its
/// way.
const ONCE_MORE: Duration = Duration::from_millis(1_500);
/// Differences that are written out.
const MAX_SHOWN: usize = 50;

pub(super) async fn fleet(args: &FleetArgs, json: bool) -> Result<(), CliError> {
    let events = connect(&args.nats).await?;
    let mut fleet = events.fleet(args.wait).await?;
    let mut differences = differences(&fleet.said);
    if !differences.is_empty() {
        sleep(ONCE_MORE).await;
        fleet = events.fleet(args.wait).await?;
        let still = self::differences(&fleet.said);
        differences.retain(|it| still.contains(it));
    }
    if json {
        return print_json(&in_json(&fleet, &differences));
    }
    let mut out = stdout().lock();
    out.write_all(agents(&fleet).as_bytes())?;
    for (agent, report) in &fleet.said {
        for trouble in &report.troubles {
            writeln!(out, "{agent}: {trouble}")?;
        }
        if !report.behind.is_empty() {
            writeln!(out, "{agent}: without the newest tables: {}", report.behind.join(", "))?;
        }
    }
    if !fleet.silent.is_empty() {
        let silent: Vec<&str> = fleet.silent.iter().map(String::as_str).collect();
        let silent = silent.join(", ");
        writeln!(out, "no word from {silent}, an earlier release most likely")?;
    }
    for difference in differences.iter().take(MAX_SHOWN) {
        writeln!(out, "{difference}")?;
    }
    if let more @ 1.. = differences.len().saturating_sub(MAX_SHOWN) {
        writeln!(out, "and {more} more; --output json has all")?;
    }
    if differences.is_empty() && fleet.said.len() > 1 {
        writeln!(out, "All serve the same.")?;
    }
    Ok(())
}

fn agents(fleet: &Answers<Report>) -> String {
    let mut table = Table::new(&[
        "agent",
        "version",
        "services",
        "endpoints",
        "proxies",
        "held",
        "refused",
        "state",
    ]);
    for (agent, report) in &fleet.said {
        table.row([
            agent.clone(),
            report.version.clone(),
            report.services.to_string(),
            report.endpoints.to_string(),
            format!("{} of {} current", report.current, report.connected),
            report.held.to_string(),
            report.rejected.to_string(),
            if report.troubles.is_empty() { "well" } else { "unwell" }.to_owned(),
        ]);
    }
    table.render("No agent has answered.")
}

fn in_json(fleet: &Answers<Report>, differences: &[String]) -> serde_json::Value {
    let agents = fleet.said.iter().map(|(agent, report)| {
        json!({
            "agent": agent,
            "version": report.version,
            "snapshot": report.snapshot,
            "services": report.services,
            "endpoints": report.endpoints,
            "proxies_connected": report.connected,
            "proxies_current": report.current,
            "proxies_behind": report.behind,
            "held": report.held,
            "rejected": report.rejected,
            "troubles": report.troubles,
        })
    });
    json!({
        "agents": agents.collect::<Vec<_>>(),
        "silent": fleet.silent,
        "differences": differences,
    })
}

/// In words, those of releases first, then by service.
fn differences(said: &BTreeMap<String, Report>) -> Vec<String> {
    let mut found = Vec::new();
    let versions = said.iter().map(|(agent, report)| (agent.as_str(), report.version.clone()));
    if let Some(groups) = several(versions) {
        found.push(format!("releases differ: {groups}"));
    }
    let services: BTreeSet<&str> =
        said.values().flat_map(|report| report.digests.keys().map(String::as_str)).collect();
    // Where an agent has cut its list, what follows its last name is not known.
    let end = said.values().filter(|report| report.digests.len() < report.services);
    let end = end.filter_map(|report| report.digests.keys().next_back()).min();
    let known = |service: &&str| end.is_none_or(|end| *service <= end.as_str());
    for service in services.into_iter().filter(known) {
        let digests = || {
            let all = said.iter();
            all.map(|(agent, report)| (agent.as_str(), report.digests.get(service)))
        };
        let there = |it: bool| if it { "served" } else { "not served" }.to_owned();
        if let Some(groups) = several(digests().map(|(agent, it)| (agent, there(it.is_some())))) {
            found.push(format!("{service}: {groups}"));
            continue;
        }
        for (what, part) in [("endpoints", 0), ("policy", 1)] {
            let hash = digests().map(|(agent, it)| {
                let it = it.map(|it| if part == 0 { it.endpoints } else { it.policy });
                (agent, format!("{:08x}", it.unwrap_or_default()))
            });
            if let Some(groups) = several(hash) {
                found.push(format!("{service}: {what} differ: {groups}"));
            }
        }
    }
    found
}

/// Who says what, where not all say the same; most agreed first.
fn several<'a>(said: impl Iterator<Item = (&'a str, String)>) -> Option<String> {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (agent, what) in said {
        groups.entry(what).or_default().push(agent);
    }
    if groups.len() < 2 {
        return None;
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then(a.cmp(b)));
    let groups = groups.iter().map(|(what, agents)| {
        let (few, more) = agents.split_at(agents.len().min(3));
        let more =
            if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        format!("{what} at {}{more}", few.join(", "))
    });
    Some(groups.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Digest;

    fn report(services: &[(&str, u32, u32)]) -> Report {
        let digests = services.iter().map(|(service, endpoints, policy)| {
            ((*service).to_owned(), Digest { endpoints: *endpoints, policy: *policy })
        });
        let version = "0.2.0".to_owned();
        let digests: BTreeMap<_, _> = digests.collect();
        Report { version, services: digests.len(), digests, ..Report::default() }
    }

    fn found(reports: &[Report]) -> Vec<String> {
        let names = (b'a'..).map(|name| char::from(name).to_string());
        differences(&names.zip(reports.iter().cloned()).collect())
    }

    #[test]
    fn agents_that_serve_the_same_do_not_differ_and_each_difference_is_named() {
        let same = report(&[("orders", 1, 2), ("pay", 3, 4)]);
        assert!(found(&[same.clone(), same.clone()]).is_empty());
        let other = report(&[("orders", 9, 2), ("pay", 3, 9)]);
        assert_eq!(
            found(&[same.clone(), other, same.clone()]),
            [
                "orders: endpoints differ: 00000001 at a, c; 00000009 at b",
                "pay: policy differ: 00000004 at a, c; 00000009 at b",
            ]
        );
        let less = report(&[("orders", 1, 2)]);
        assert_eq!(found(&[same.clone(), less]), ["pay: served at a; not served at b"]);
        let newer = Report { version: "0.3.0".to_owned(), ..same.clone() };
        assert_eq!(found(&[same, newer]), ["releases differ: 0.2.0 at a; 0.3.0 at b"]);
    }

    #[test]
    fn what_an_agent_has_cut_is_no_difference() {
        let whole = report(&[("a", 1, 1), ("b", 1, 1)]);
        let cut = Report { services: 2, ..report(&[("a", 1, 1)]) };
        assert!(found(&[whole, cut]).is_empty());
    }
}
