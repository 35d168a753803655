//! Commands that order something: events for the whole fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Write, stdout};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::CliError;
use super::args::{ConfigArgs, HowArgs, NatsArgs};
use super::reads::print_json;
use crate::config::Flags;
use crate::events::{
    self, Action, Done, Draft, Events, How, NatsError, OrderError, Published, Target,
};
use crate::run::{Origin, check_policy};
use crate::serve::admin::view::time;
use crate::source::NatsConfig;

#[derive(Debug, Subcommand)]
pub(super) enum BreakerCommand {
    /// Holds an endpoint's breaker open.
    #[command(after_help = "Example:\n  pintle breaker force-open orders/orders-1 --ttl 10m")]
    ForceOpen(OrderArgs),
    /// Holds an endpoint's breaker closed.
    #[command(after_help = "Example:\n  pintle breaker force-close orders/orders-1 --ttl 10m")]
    ForceClose(OrderArgs),
    /// Forgets what an endpoint's breaker has counted, and what was ordered.
    #[command(after_help = "Example:\n  pintle breaker clear orders/orders-1")]
    Clear(EndArgs),
}

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    #[command(flatten)]
    pub(super) nats: NatsArgs,
    /// `endpoint`, `service`, `trace` or `breaker`.
    pub(super) kind: String,
    /// SERVICE, or SERVICE/ID.
    pub(super) subject: String,
    /// What to do, JSON.
    pub(super) data: String,
    /// The event's id; the same id twice is one event. [default: a random one]
    #[arg(long)]
    pub(super) id: Option<String>,
    #[command(flatten)]
    pub(super) how: HowArgs,
}

#[derive(Debug, Args)]
pub(super) struct OrderArgs {
    #[command(flatten)]
    pub(super) nats: NatsArgs,
    #[command(flatten)]
    pub(super) how: HowArgs,
    /// SERVICE/ID.
    pub(super) endpoint: String,
    /// For how long, 1s to 24h.
    #[arg(long, default_value = "60s", value_parser = pintle_settings::parse_duration)]
    pub(super) ttl: Duration,
}

#[derive(Debug, Args)]
pub(super) struct EndArgs {
    #[command(flatten)]
    pub(super) nats: NatsArgs,
    #[command(flatten)]
    pub(super) how: HowArgs,
    /// SERVICE/ID.
    pub(super) endpoint: String,
}

#[derive(Debug, Args)]
pub(super) struct SwitchArgs {
    #[command(flatten)]
    pub(super) nats: NatsArgs,
    #[command(flatten)]
    pub(super) how: HowArgs,
    /// The service.
    pub(super) service: String,
    /// For how long, 1s to 24h.
    #[arg(long, default_value = "10m", value_parser = pintle_settings::parse_duration)]
    pub(super) ttl: Duration,
    /// Ends it.
    #[arg(long, conflicts_with = "ttl")]
    pub(super) off: bool,
}

#[derive(Debug, Args)]
pub(super) struct FailoverArgs {
    #[command(flatten)]
    pub(super) switch: SwitchArgs,
    /// To those with this tag.
    #[arg(long, conflicts_with = "region", required_unless_present_any = ["region", "off"])]
    pub(super) tag: Option<String>,
    /// To those whose metadata `region` is this.
    #[arg(long)]
    pub(super) region: Option<String>,
}

const NATS: &str = "start nats-server with JetStream (-js) there, or name the server by --nats";
const ANSWER: &str = "pintle check --nats URL says what that server lacks";

impl From<NatsError> for CliError {
    fn from(error: NatsError) -> Self {
        match error {
            NatsError::Config(_) | NatsError::Credentials { .. } | NatsError::Absent(_) => {
                Self::Usage(error.to_string())
            }
            NatsError::Replay(..) => Self::No(error.to_string()),
            NatsError::Connect { .. } => Self::Unavailable(format!("NATS: {error}"), NATS),
            NatsError::Denied { .. }
            | NatsError::NoJetStream { .. }
            | NatsError::Request { .. }
            | NatsError::Lost(_)
            | NatsError::Gone => Self::Unavailable(format!("NATS: {error}"), ANSWER),
        }
    }
}

impl From<OrderError> for CliError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Nats(error) => error.into(),
            OrderError::NoAgent { .. }
            | OrderError::Unknown { .. }
            | OrderError::NotApplied { .. } => Self::No(error.to_string()),
        }
    }
}

pub(super) fn origin(file: &ConfigArgs, flags: &[(&'static str, &[String])]) -> Origin {
    let given = flags.iter().filter(|(_, values)| !values.is_empty());
    let flags: Flags = given.map(|(flag, values)| (*flag, values.to_vec())).collect();
    Origin { file: file.config.clone(), flags }
}

pub(super) async fn connect(args: &NatsArgs) -> Result<Events, CliError> {
    let config: NatsConfig = origin(&args.config, &[("nats", &args.nats)]).part("nats")?;
    Ok(Events::connect(&config).await?)
}

fn target(endpoint: &str) -> Result<Target, CliError> {
    let bad = || CliError::Usage(format!("{endpoint:?} is not SERVICE/ID"));
    let (service, id) = endpoint.split_once('/').ok_or_else(bad)?;
    if !pintle_contract::is_name(service) || !pintle_contract::is_name(id) {
        return Err(bad());
    }
    Ok(Target { service: service.to_owned(), endpoint: Some(id.to_owned()) })
}

async fn send(args: &NatsArgs, how: &HowArgs, draft: Draft, json: bool) -> Result<(), CliError> {
    draft.check(check_policy).map_err(|error| CliError::Usage(error.to_string()))?;
    let events = connect(args).await?;
    let done = if how.no_wait {
        unasked(events.publish(&draft).await?)
    } else {
        events.order(&draft, How { wait: how.wait, force: how.force }).await?
    };
    if json {
        return print_json(&outcome(&draft, &done));
    }
    let what = format!("{} {}", draft.action.name(), draft.target.subject());
    writeln!(stdout(), "{what}: {}", words(&done, how))?;
    for (agent, why) in &done.refused {
        writeln!(stdout(), "not on {agent}: {why}")?;
    }
    if let Action::Failover(Some(to)) = &draft.action {
        let service = &draft.target.service;
        writeln!(
            stdout(),
            "requests go to those of {service} with {} while any of them is eligible, else as before; \
             pintle explain {service} says whether one is",
            to_words(to)
        )?;
    }
    Ok(())
}

/// A failover's goal, such as `region eu-2`.
fn to_words(to: &Value) -> String {
    let fields = to.as_object().into_iter().flatten();
    let words = fields.filter_map(|(key, value)| Some(format!("{key} {}", value.as_str()?)));
    words.collect::<Vec<_>>().join(" and ")
}

fn unasked(published: Published) -> Done {
    let (applied, refused) = (BTreeMap::new(), BTreeMap::new());
    Done { published, applied, refused, silent: BTreeSet::new() }
}

/// What became of an order, in a line.
fn words(done: &Done, how: &HowArgs) -> String {
    let event = format!("event {}", done.published.sequence);
    if done.published.duplicate {
        return format!("{event}, known already");
    }
    if how.no_wait {
        return format!("{event} is published, and no agent was asked");
    }
    let until = done.applied.values().filter_map(|applied| applied.until.as_deref()).max();
    let until = until.map_or_else(|| "done".to_owned(), |until| format!("in force until {until}"));
    let all = done.applied.len() + done.refused.len() + done.silent.len();
    let agents = if all == 1 { "agent" } else { "agents" };
    let silent: Vec<&str> = done.silent.iter().map(String::as_str).collect();
    let silent = if silent.is_empty() {
        String::new()
    } else {
        format!("; no word yet from {}", silent.join(", "))
    };
    format!("{until} on {} of {all} {agents} ({event}){silent}", done.applied.len())
}

fn outcome(draft: &Draft, done: &Done) -> Value {
    let until = done.applied.values().filter_map(|applied| applied.until.as_deref()).max();
    json!({
        "id": draft.id,
        "subject": draft.target.subject(),
        "action": draft.action.name(),
        "sequence": done.published.sequence,
        "duplicate": done.published.duplicate,
        "until": until,
        "agents": done.applied.keys().collect::<Vec<_>>(),
        "refused": done.refused,
        "silent": done.silent,
    })
}

fn draft(target: Target, action: Action, ttl: Option<Duration>) -> Draft {
    Draft { id: events::new_id(), source: "pintle".to_owned(), target, action, ttl }
}

async fn order(args: OrderArgs, action: Action, json: bool) -> Result<(), CliError> {
    let draft = draft(target(&args.endpoint)?, action, Some(args.ttl));
    send(&args.nats, &args.how, draft, json).await
}

async fn end(args: EndArgs, action: Action, json: bool) -> Result<(), CliError> {
    send(&args.nats, &args.how, draft(target(&args.endpoint)?, action, None), json).await
}

/// Turns something on for a whole service, or off again.
async fn switch(args: SwitchArgs, action: Action, json: bool) -> Result<(), CliError> {
    if !pintle_contract::is_name(&args.service) {
        return Err(CliError::Usage(format!("{:?} is not the name of a service", args.service)));
    }
    let target = Target { service: args.service, endpoint: None };
    let draft = draft(target, action, (!args.off).then_some(args.ttl));
    send(&args.nats, &args.how, draft, json).await
}

pub(super) async fn bypass(args: SwitchArgs, json: bool) -> Result<(), CliError> {
    let on = !args.off;
    switch(args, Action::Bypass(on), json).await
}

pub(super) async fn shadow(args: SwitchArgs, json: bool) -> Result<(), CliError> {
    let on = !args.off;
    switch(args, Action::Shadow(on), json).await
}

pub(super) async fn drain(args: OrderArgs, json: bool) -> Result<(), CliError> {
    order(args, Action::Drain, json).await
}

pub(super) async fn undrain(args: EndArgs, json: bool) -> Result<(), CliError> {
    end(args, Action::Undrain, json).await
}

pub(super) async fn breaker(command: BreakerCommand, json: bool) -> Result<(), CliError> {
    match command {
        BreakerCommand::ForceOpen(args) => order(args, Action::ForceOpen, json).await,
        BreakerCommand::ForceClose(args) => order(args, Action::ForceClose, json).await,
        BreakerCommand::Clear(args) => end(args, Action::Clear, json).await,
    }
}

pub(super) async fn failover(args: FailoverArgs, json: bool) -> Result<(), CliError> {
    let to = match (args.tag, args.region) {
        _ if args.switch.off => None,
        (Some(tag), _) => Some(json!({ "tag": tag })),
        (None, region) => Some(json!({ "region": region })),
    };
    switch(args.switch, Action::Failover(to), json).await
}

/// What the user wrote is read as every agent would read it, and published as what that came to.
pub(super) async fn publish(args: PublishArgs, json: bool) -> Result<(), CliError> {
    let data: Value = serde_json::from_str(&args.data)
        .map_err(|error| CliError::Usage(format!("the data is not JSON: {error}")))?;
    let id = args.id.unwrap_or_else(events::new_id);
    let envelope = json!({
        "id": id,
        "type": args.kind,
        "source": "pintle",
        "subject": args.subject,
        "data": data,
        "metadata": Map::new(),
        "timestamp": time(std::time::SystemTime::now()),
        "version": "1",
    });
    let subject = pintle_state::event::nats_subject("events", &args.kind, &args.subject);
    let event = events::parse(
        "events",
        &subject,
        envelope.to_string().as_bytes(),
        events::Origin::default(),
        check_policy,
    )
    .map_err(|error| CliError::Usage(error.to_string()))?;
    let draft = Draft {
        id: event.id,
        source: event.source,
        target: event.target,
        action: event.action,
        ttl: Some(event.ttl),
    };
    send(&args.nats, &args.how, draft, json).await
}
