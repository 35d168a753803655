//! Commands that ask a running agent.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use http::Method;
use http_body_util::BodyExt;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::CliError;
use super::args::AdminArgs;
use super::client::{AGENT, Client};
use super::table::Table;
use crate::serve::admin::view::{
    ActivitiesJson, ActivityJson, BreakerJson, BreakersJson, EndpointJson, HeldJson, OverlayJson,
    OverlaysJson, RejectedJson, ServiceJson, ServicesJson,
};

#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    #[command(flatten)]
    pub(super) admin: AdminArgs,
    /// This service alone.
    pub(super) service: Option<String>,
    /// Shows it again every second.
    #[arg(long)]
    pub(super) watch: bool,
    /// What comes first.
    #[arg(long, value_enum, default_value = "name")]
    pub(super) sort: SortBy,
    /// Shows refused entries instead, and why they were refused.
    #[arg(long, conflicts_with_all = ["service", "held"])]
    pub(super) rejected: bool,
    /// Shows held removals instead, since when and why.
    #[arg(long, conflicts_with = "service")]
    pub(super) held: bool,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum SortBy {
    /// The first by name.
    Name,
    /// The one that is worst off.
    Trouble,
    /// The one with the most requests in the last minute.
    Requests,
}

#[derive(Debug, Args)]
pub(super) struct BreakersArgs {
    #[command(flatten)]
    pub(super) admin: AdminArgs,
    /// Shows it again every second.
    #[arg(long)]
    pub(super) watch: bool,
    /// Closed ones too.
    #[arg(long)]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    pub(super) admin: AdminArgs,
    /// Goes on as they come.
    #[arg(long)]
    pub(super) follow: bool,
}

const EVERY: Duration = Duration::from_secs(1);
/// A stream of events that is silent for so long is dead: the agent writes something every 10 s.
const SIGN: Duration = Duration::from_secs(60);

pub(super) fn agent(args: &AdminArgs) -> Client {
    Client::new(&args.admin, AGENT)
}

/// A name within a path or query: all of its bytes but the percent sign may stand there.
pub(super) fn escaped(name: &str) -> String {
    name.replace('%', "%25")
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::other)?;
    writeln!(stdout(), "{text}")?;
    Ok(())
}

/// Writes what `make` makes, once or every second. A terminal is written over; into a pipe only
/// what changed is written.
pub(super) async fn show<F>(watch: bool, mut make: impl FnMut() -> F) -> Result<(), CliError>
where
    F: Future<Output = Result<String, CliError>>,
{
    let terminal = stdout().is_terminal();
    let mut last = String::new();
    loop {
        let text = match make().await {
            Ok(text) => text,
            // A watch outlives the agent's restart.
            Err(CliError::Unavailable(why, _)) if watch && !last.is_empty() => format!("{why}\n"),
            Err(error) => return Err(error),
        };
        if text != last {
            let mut out = stdout().lock();
            if watch && terminal {
                out.write_all(b"\x1b[2J\x1b[H")?;
            }
            out.write_all(text.as_bytes())?;
            out.flush()?;
            last = text;
        }
        if !watch {
            return Ok(());
        }
        sleep(EVERY).await;
    }
}

pub(super) fn json_line(value: &impl Serialize, watch: bool) -> Result<String, CliError> {
    let text =
        if watch { serde_json::to_string(value) } else { serde_json::to_string_pretty(value) };
    Ok(text.map_err(std::io::Error::other)? + "\n")
}

/// All services, page by page.
pub(super) async fn all_services(agent: &Client) -> Result<ServicesJson, CliError> {
    let mut all: ServicesJson = agent.get("/v1/services?limit=1000").await?;
    while let Some(after) = all.next.take() {
        let path = format!("/v1/services?limit=1000&after={}", escaped(&after));
        let more: ServicesJson = agent.get(&path).await?;
        all.services.extend(more.services);
        all.next = more.next;
    }
    Ok(all)
}

pub(super) async fn services(args: &ServicesArgs, json: bool) -> Result<(), CliError> {
    let agent = agent(&args.admin);
    show(args.watch, || async {
        if args.rejected {
            let rejected: RejectedJson = agent.get("/v1/rejected").await?;
            if json {
                return json_line(&rejected, args.watch);
            }
            let mut table = Table::new(&["at", "source", "key", "reason", "detail"]);
            for row in rejected.rejected {
                table.row([row.at, row.source, row.key, row.reason, row.detail]);
            }
            return Ok(table.render("Nothing was refused."));
        }
        if args.held {
            let held: HeldJson = agent.get("/v1/held").await?;
            if json {
                return json_line(&held, args.watch);
            }
            let mut table = Table::new(&["service", "endpoint", "since", "why", "goes at"]);
            for row in held.held {
                let until = row.until.unwrap_or_default();
                table.row([row.service, row.endpoint, row.since, row.reason, until]);
            }
            return Ok(table.render("No removal is held."));
        }
        if let Some(name) = &args.service {
            if !pintle_contract::is_name(name) {
                return Err(CliError::Usage(format!("{name:?} is no service's name")));
            }
            let service: ServiceJson =
                agent.get(&format!("/v1/services/{}", escaped(name))).await?;
            if json {
                return json_line(&service, args.watch);
            }
            return Ok(endpoints(&[service]) + &switches(&agent, Some(name)).await?);
        }
        let mut all = all_services(&agent).await?;
        sort(&mut all.services, args.sort);
        if json {
            return json_line(&all, args.watch);
        }
        let stale =
            if all.stale { "STALE: from disk, not confirmed by the registry\n" } else { "" };
        if all.services.is_empty() {
            return Ok(format!("{stale}{}", nothing(&agent).await?));
        }
        let switches = switches(&agent, None).await?;
        Ok(format!("{stale}{}{switches}", endpoints(&all.services)))
    })
    .await
}

/// The events in force over whole services, since under a bypass or a failover the table above them
/// says little of where requests go; of one service, or of all.
async fn switches(agent: &Client, of: Option<&str>) -> Result<String, CliError> {
    let all: OverlaysJson = agent.get("/v1/overlays").await?;
    let over = |it: &&OverlayJson| it.kind == "service" && of.is_none_or(|name| name == it.service);
    let line = |it: &OverlayJson| {
        format!("{}: {} until {} (pintle explain {0})\n", it.service, it.action, it.until)
    };
    Ok(all.overlays.iter().filter(over).map(line).collect())
}

/// What is said where no service is served: that none is registered, or that all entries are
/// refused.
async fn nothing(agent: &Client) -> Result<String, CliError> {
    let all: RejectedJson = agent.get("/v1/rejected").await?;
    let refused = all.rejected.iter().filter(|it| it.source != "event").count();
    let said = match refused {
        0 => return Ok("No service is registered.\n".to_owned()),
        1 => "the only entry is".to_owned(),
        many => format!("{many} entries are"),
    };
    Ok(format!("No service is served: {said} refused (--rejected says why).\n"))
}

/// In the wanted order; by name where they are equal in it.
fn sort(services: &mut [ServiceJson], by: SortBy) {
    match by {
        SortBy::Name => {}
        SortBy::Requests => services.sort_by_key(|it| std::cmp::Reverse(it.minute.requests)),
        SortBy::Trouble => services.sort_by_key(|it| std::cmp::Reverse(trouble(it))),
    }
}

/// How ill a service is, the worst highest: answers that nobody could give, panic, failures of the
/// last minute, endpoints that are not used.
fn trouble(service: &ServiceJson) -> (bool, bool, u64, usize) {
    let unused = service
        .endpoints
        .iter()
        .filter(|it| it.health != "healthy" || !matches!(it.breaker.state.as_str(), "closed"));
    let minute = &service.minute;
    let none = minute.no_endpoint > 0 || service.endpoints.is_empty();
    (none, minute.panics > 0, minute.errors, unused.count())
}

fn endpoints(services: &[ServiceJson]) -> String {
    let mut table = Table::new(&[
        "service",
        "endpoint",
        "address",
        "zone",
        "weight",
        "health",
        "breaker",
        "in flight",
        "latency",
        "share",
        "requests",
    ]);
    for service in services {
        if service.endpoints.is_empty() {
            table.row([service.service.clone(), "(none)".to_owned()]);
        }
        for endpoint in &service.endpoints {
            table.row(endpoint_row(&service.service, endpoint));
        }
    }
    let stray: String = services.iter().filter_map(not_followed).collect();
    table.render("") + &stray
}

/// Says that the module's choice is not what a service's requests go by.
fn not_followed(service: &ServiceJson) -> Option<String> {
    let (name, all, minute) = (&service.service, service.not_followed, service.minute.not_followed);
    (all > 0).then(|| {
        format!(
            "{name}: {all} attempts ({minute} in the last minute) went elsewhere than the filter \
             chose, or nobody knows where; pintle check says why\n"
        )
    })
}

fn endpoint_row(service: &str, endpoint: &EndpointJson) -> [String; 11] {
    [
        service.to_owned(),
        match &endpoint.also[..] {
            [] => endpoint.id.clone(),
            also => format!("{} (also {})", endpoint.id, also.join(", ")),
        },
        endpoint.address.clone(),
        endpoint.zone.clone(),
        endpoint.weight.to_string(),
        endpoint.health.clone(),
        endpoint.breaker.state.clone(),
        endpoint.in_flight.to_string(),
        endpoint.latency_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default(),
        format!("{:.0} %", endpoint.share * 100.0),
        endpoint.requests.to_string(),
    ]
}

pub(super) async fn breakers(args: &BreakersArgs, json: bool) -> Result<(), CliError> {
    let agent = agent(&args.admin);
    let path = if args.all { "/v1/breakers?all=true" } else { "/v1/breakers" };
    show(args.watch, || async {
        let breakers: BreakersJson = agent.get(path).await?;
        if json {
            return json_line(&breakers, args.watch);
        }
        let mut table = Table::new(&[
            "service", "endpoint", "address", "state", "for", "on", "why", "probe", "fleet",
            "ordered",
        ]);
        for row in breakers.breakers {
            let fleet = row.opinion.as_ref().map(|it| format!("{} hold it open", it.reporters));
            let ordered = row.force.as_ref().map(|it| it.action.clone());
            for [state, since, on, why, probe] in on_rows(&row.breaker) {
                table.row([
                    row.service.clone(),
                    row.endpoint.clone(),
                    row.address.clone(),
                    state,
                    since,
                    on,
                    why,
                    probe,
                    fleet.clone().unwrap_or_default(),
                    ordered.clone().unwrap_or_default(),
                ]);
            }
        }
        Ok(table.render("All breakers are closed."))
    })
    .await
}

/// State, for how long, where, why, when the next probe is due.
fn on_rows(breaker: &BreakerJson) -> Vec<[String; 5]> {
    if breaker.on.is_empty() {
        let nothing = String::new;
        return vec![[breaker.state.clone(), nothing(), nothing(), nothing(), nothing()]];
    }
    let rows = breaker.on.iter().map(|on| {
        [
            on.state.clone(),
            ago(&on.since),
            on.proxy.clone(),
            on.reason.clone(),
            on.until.as_deref().map(ahead).unwrap_or_default(),
        ]
    });
    rows.collect()
}

fn parse(at: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(at).ok()
}

fn seconds(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

pub(super) fn ago(at: &str) -> String {
    let passed = parse(at).and_then(|at| SystemTime::now().duration_since(at).ok());
    passed.map(seconds).unwrap_or_default()
}

pub(super) fn ahead(at: &str) -> String {
    match parse(at).map(|at| at.duration_since(SystemTime::now())) {
        Some(Ok(left)) => format!("in {}", seconds(left)),
        Some(Err(_)) => "due".to_owned(),
        None => String::new(),
    }
}

fn activity_line(activity: &ActivityJson) -> String {
    let about = match (&activity.service, &activity.endpoint) {
        (Some(service), Some(endpoint)) => format!("{service}/{endpoint}: "),
        (Some(service), None) => format!("{service}: "),
        _ => String::new(),
    };
    let line = format!("{}  {:<8}  {about}{}", activity.at, activity.kind, activity.text);
    line.replace(char::is_control, "\u{fffd}")
}

pub(super) async fn events(args: &EventsArgs, json: bool) -> Result<(), CliError> {
    let agent = agent(&args.admin);
    if !args.follow {
        let past: ActivitiesJson = agent.get("/v1/events?follow=false").await?;
        if json {
            return print_json(&past);
        }
        for activity in &past.events {
            writeln!(stdout(), "{}", activity_line(activity))?;
        }
        return Ok(());
    }
    let response = agent.open(Method::GET, "/v1/events").await?;
    if !response.status().is_success() {
        return Err(agent.unreachable(format!("it answers /v1/events with {}", response.status())));
    }
    let kind = response.headers().get(http::header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    if kind != Some("text/event-stream") {
        return Err(agent.unreachable("its answer to /v1/events is of another server or release"));
    }
    let mut body = response.into_body();
    let mut pending = Vec::new();
    let silent = |_| agent.unreachable(format!("no sign of life for {} s", SIGN.as_secs()));
    while let Some(frame) = timeout(SIGN, body.frame()).await.map_err(silent)? {
        let frame = frame.map_err(|error| agent.unreachable(crate::words::of(&error)))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data: ") else {
                continue;
            };
            // A count of missed ones is no activity.
            if let Ok(activity) = serde_json::from_slice::<ActivityJson>(data) {
                let mut out = stdout().lock();
                if json {
                    out.write_all(data)?;
                } else {
                    writeln!(out, "{}", activity_line(&activity))?;
                }
                out.flush()?;
            }
        }
    }
    Err(agent.unreachable("it has ended the stream of events"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, no_endpoint: u64, panics: u64, errors: u64) -> ServiceJson {
        let text = format!(
            r#"{{"service": "{name}", "version": "", "policy": null, "requests": 0, "errors": 0,
                "rate": 0.0, "in_flight": 0, "mean_ms": null, "panics": 0, "no_endpoint": 0,
                "minute": {{"requests": 9, "errors": {errors}, "mean_ms": null, "panics": {panics},
                            "no_endpoint": {no_endpoint}}},
                "endpoints": [{{"id": "a", "address": "10.0.0.1:1", "weight": 100,
                    "health": "healthy", "zone": "", "tags": [], "metadata": {{}},
                    "registered_at": null, "in_flight": 0, "latency_ms": null, "requests": 0,
                    "failures": 0, "minute_requests": 0, "minute_failures": 0, "rate": 0.0,
                    "share": 0.0, "opinion": null, "force": null,
                    "breaker": {{"state": "closed", "trips": 0, "on": []}}}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn services_in_trouble_come_first_the_worst_before_the_others() {
        let mut all = [
            service("well", 0, 0, 0),
            service("failing", 0, 0, 5),
            service("panicking", 0, 1, 1),
            service("refusing", 1, 0, 1),
        ];
        sort(&mut all, SortBy::Trouble);
        let names: Vec<_> = all.iter().map(|it| it.service.as_str()).collect();
        assert_eq!(names, ["refusing", "panicking", "failing", "well"]);
    }
}
