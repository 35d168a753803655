//! An event, read and written: `events.{type}.{subject}`, a JSON envelope, an action with a ttl.
//!
//! The envelope is DESIGN section 4's: `id type source subject data metadata timestamp version`.
//! What is done is in `data`; `subject` says to whom: `{service}` or `{service}/{endpoint}`. The
//! NATS subject must be the one that type and subject spell, because subject permissions are what
//! keeps a publisher to its own kind of event. An event's age is the difference of two readings of
//! the server's clock, which the source passes in, so that neither a skewed publisher nor a stepped
//! clock shortens or stretches a ttl. The publisher's `timestamp` only orders what one proxy says
//! of one breaker.
//!
//! | type | subject | data |
//! |---|---|---|
//! | `endpoint` | `{service}/{id}` | `action`: `drain`, `eject`, `weight` (with `weight`), each with `ttl`; `undrain`, `restore` |
//! | `service` | `{service}` | one of `policy`: a merge patch over the policy, with `ttl`; `{}` ends it; `bypass`: true with `ttl`, false ends it; `mode`: `shadow` with `ttl`, `active` ends it; `failover`: `{"tag": "dr"}` or `{"region": "dr"}` with `ttl`, null ends it |
//! | `trace` | `{service}` | `ratio`: 0 to 1 with `ttl`; null ends it |
//! | `breaker` | `{service}/{id}` | `action`: `force-open`, `force-close` with `ttl`; `clear`; `transition` with `proxy`, `to`, `ttl` |
//!
//! A `ttl` is text such as `90s` or `10m`, or a number of seconds; from 1 s to 24 h.

use std::time::Duration;

use pintle_contract::{BreakerState, MAX_WEIGHT, Now, is_name};
use pintle_settings::{duration_text, parse_duration};
use serde_json::{Map, Value, json};

use crate::entry::{MAX_VALUE, Reject, parse_time};
use crate::json as strict;

/// The shortest ttl.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// The longest ttl; the stream must keep events at least as long.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long an order without a state of its own (`undrain`, `clear`) is shown, when it says
/// nothing.
pub const ENDING_TTL: Duration = Duration::from_secs(60);
/// The version of the envelope.
pub const VERSION: &str = "1";
/// Bytes of `id`, `source`, `proxy` and a reason, at most.
const MAX_TEXT: usize = 512;
const TEXT: &str = "text of at most 512 bytes";
const RATIO: &str = "a number from 0 to 1, or null, which ends it";

/// What an event does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Nothing new goes to the endpoint; pinned sessions stay.
    Drain,
    /// Ends a drain.
    Undrain,
    /// Nothing goes to the endpoint.
    Eject,
    /// Ends whatever events have laid over the endpoint: drain, ejection and weight.
    Restore,
    /// Another weight than the registered one.
    Weight(u32),
    /// A merge patch over the service's policy; empty ends it.
    Policy(Value),
    /// The service is left to Envoy's own policy; false ends it.
    Bypass(bool),
    /// The service is decided and counted, and Envoy's own policy chooses; false ends it.
    Shadow(bool),
    /// The service is moved to the endpoints of a tag or a region; `None` ends it.
    Failover(Option<Value>),
    /// Another sampling ratio for the service, 0 to 1; `None` ends it.
    Trace(Option<f64>),
    /// A proxy's breaker has changed its state.
    Transition {
        /// Envoy's node id.
        proxy: String,
        /// Before.
        from: BreakerState,
        /// After.
        to: BreakerState,
        /// Why, in a few words.
        reason: String,
        /// How many times in a row it has opened.
        trips: u32,
    },
    /// Every breaker of the endpoint is held open.
    ForceOpen,
    /// Every breaker of the endpoint is held closed.
    ForceClose,
    /// Every breaker of the endpoint forgets what it has counted; ends `ForceOpen`, `ForceClose`.
    Clear,
}

impl Action {
    /// `endpoint`, `service`, `trace` or `breaker`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Drain | Self::Undrain | Self::Eject | Self::Restore | Self::Weight(_) => {
                "endpoint"
            }
            Self::Policy(_) | Self::Bypass(_) | Self::Shadow(_) | Self::Failover(_) => "service",
            Self::Trace(_) => "trace",
            Self::Transition { .. } | Self::ForceOpen | Self::ForceClose | Self::Clear => "breaker",
        }
    }

    /// The word for it, such as `drain`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Eject => "eject",
            Self::Restore => "restore",
            Self::Weight(_) => "weight",
            Self::Policy(_) => "policy",
            Self::Bypass(_) => "bypass",
            Self::Shadow(_) => "shadow",
            Self::Failover(_) => "failover",
            Self::Trace(_) => "trace",
            Self::Transition { .. } => "transition",
            Self::ForceOpen => "force-open",
            Self::ForceClose => "force-close",
            Self::Clear => "clear",
        }
    }

    /// Whether it only ends something; then a ttl need not be said.
    #[must_use]
    pub fn ends(&self) -> bool {
        match self {
            Self::Undrain
            | Self::Restore
            | Self::Clear
            | Self::Bypass(false)
            | Self::Shadow(false)
            | Self::Failover(None)
            | Self::Trace(None) => true,
            Self::Policy(patch) => patch.as_object().is_some_and(Map::is_empty),
            Self::Transition { to, .. } => *to != BreakerState::Open,
            _ => false,
        }
    }

    fn data(&self, ttl: Option<Duration>) -> Value {
        let mut data = match self {
            Self::Weight(weight) => json!({"action": "weight", "weight": weight}),
            Self::Policy(patch) => json!({"policy": patch}),
            Self::Bypass(on) => json!({"bypass": on}),
            Self::Shadow(on) => json!({"mode": if *on { "shadow" } else { "active" }}),
            Self::Failover(to) => json!({"failover": to}),
            Self::Trace(ratio) => json!({"ratio": ratio}),
            Self::Transition { proxy, from, to, reason, trips } => json!({
                "action": "transition",
                "proxy": proxy,
                "from": from.as_str(),
                "to": to.as_str(),
                "reason": reason,
                "trips": trips,
            }),
            other => json!({"action": other.name()}),
        };
        if let (Some(ttl), Some(data)) = (ttl, data.as_object_mut()) {
            data.insert("ttl".into(), duration_text(ttl).into());
        }
        data
    }
}

/// To whom an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: String,
    /// The endpoint's id, for `endpoint` and `breaker` events.
    pub endpoint: Option<String>,
}

impl Target {
    /// `{service}` or `{service}/{endpoint}`.
    #[must_use]
    pub fn subject(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => format!("{}/{endpoint}", self.service),
            None => self.service.clone(),
        }
    }

    fn parse(subject: &str, of_endpoint: bool) -> Option<Self> {
        let (service, endpoint) = match subject.split_once('/') {
            Some((service, endpoint)) => (service, Some(endpoint)),
            None => (subject, None),
        };
        let named = is_name(service) && endpoint.is_none_or(is_name);
        (named && endpoint.is_some() == of_endpoint).then(|| Self {
            service: service.to_owned(),
            endpoint: endpoint.map(ToOwned::to_owned),
        })
    }
}

/// The NATS subject of an event. Dots that would make an empty token are written `%2E`, all of
/// them.
#[must_use]
pub fn nats_subject(prefix: &str, kind: &str, subject: &str) -> String {
    let empty_token = subject.split('.').any(str::is_empty);
    if empty_token {
        format!("{prefix}.{kind}.{}", subject.replace('.', "%2E"))
    } else {
        format!("{prefix}.{kind}.{subject}")
    }
}

/// Where in which stream an event stands, as the source knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Which life of the stream; see [`crate::Update::Stream`].
    pub stream: u64,
    /// The stream's sequence.
    pub sequence: u64,
    /// How long ago it was published, by the server's clock.
    pub age: Duration,
    /// When it was published, by the server's clock: tells one order from the next.
    pub published: Now,
}

/// One event, good as far as it goes by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The publisher's id of it.
    pub id: String,
    /// Who published it.
    pub source: String,
    /// To whom it is.
    pub target: Target,
    /// What it does.
    pub action: Action,
    /// For how long, from when it was published.
    pub ttl: Duration,
    /// When it happened, by the publisher's clock.
    pub happened: Now,
    /// Where it comes from.
    pub origin: Origin,
}

/// An event before it is published.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Unique; repeated when the same event is published again.
    pub id: String,
    /// Who publishes it.
    pub source: String,
    /// To whom it is.
    pub target: Target,
    /// What it does.
    pub action: Action,
    /// For how long; may be absent where the action only ends something.
    pub ttl: Option<Duration>,
}

impl Draft {
    /// The NATS subject, below `prefix`.
    #[must_use]
    pub fn subject(&self, prefix: &str) -> String {
        nats_subject(prefix, self.action.kind(), &self.target.subject())
    }

    /// The message's bytes.
    #[must_use]
    pub fn encode(&self, at: Now) -> Vec<u8> {
        let at = jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or_default();
        let event = json!({
            "id": self.id,
            "type": self.action.kind(),
            "source": self.source,
            "subject": self.target.subject(),
            "data": self.action.data(self.ttl),
            "metadata": {},
            "timestamp": at.to_string(),
            "version": VERSION,
        });
        event.to_string().into_bytes()
    }

    /// What everybody who receives it would say of it: the check before publishing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, check: crate::PolicyCheck) -> Result<(), Reject> {
        // JSON has no NaN: it would be written as null, which ends what it was to set.
        if let Action::Trace(Some(ratio)) = self.action
            && !ratio.is_finite()
        {
            return Err(Reject::Type("ratio", RATIO));
        }
        let subject = self.subject("events");
        let bytes = self.encode(Now(0));
        parse("events", &subject, &bytes, Origin::default(), check).map(drop)
    }
}

/// Reads an event that came on the NATS subject `on`.
///
/// # Errors
/// The first thing that is wrong with it; such an event will never be good.
pub fn parse(
    prefix: &str,
    on: &str,
    payload: &[u8],
    origin: Origin,
    check: crate::PolicyCheck,
) -> Result<Event, Reject> {
    if payload.len() > MAX_VALUE {
        return Err(Reject::ValueTooLong);
    }
    let Value::Object(fields) = strict::parse(payload).map_err(Reject::Json)? else {
        return Err(Reject::NotAnObject);
    };
    match fields.get("version") {
        Some(Value::String(version)) if version == VERSION || version == "1.0" => {}
        Some(Value::Number(version)) if version.as_u64() == Some(1) => {}
        None => return Err(Reject::Missing("version")),
        Some(_) => return Err(Reject::EventVersion),
    }
    let kind = text(&fields, "type")?;
    let of_endpoint = match kind {
        "endpoint" | "breaker" => true,
        "service" | "trace" => false,
        _ => return Err(Reject::EventType),
    };
    let subject = text(&fields, "subject")?;
    let form = if of_endpoint { "SERVICE/ID" } else { "SERVICE" };
    let odd = || Reject::Subject(format!("subject is not {form}, as {kind} events have it"));
    let target = Target::parse(subject, of_endpoint).ok_or_else(odd)?;
    let wanted = nats_subject(prefix, kind, subject);
    if wanted != on {
        let why =
            format!("it came on the NATS subject {on}, and by its type and subject is {wanted}");
        return Err(Reject::Subject(why));
    }
    let happened = parse_time(text(&fields, "timestamp")?).ok_or(Reject::Time("timestamp"))?;
    if !matches!(fields.get("metadata"), None | Some(Value::Null | Value::Object(_))) {
        return Err(Reject::Type("metadata", "an object"));
    }
    let data = match fields.get("data") {
        Some(Value::Object(data)) => data,
        None => return Err(Reject::Missing("data")),
        Some(_) => return Err(Reject::Type("data", "an object")),
    };
    let action = action(kind, data, check)?;
    let ttl = match data.get("ttl") {
        None if action.ends() => ENDING_TTL,
        None => return Err(Reject::Ttl),
        Some(ttl) => ttl_of(ttl).ok_or(Reject::Ttl)?,
    };
    Ok(Event {
        id: text(&fields, "id")?.to_owned(),
        source: text(&fields, "source")?.to_owned(),
        target,
        action,
        ttl,
        happened,
        origin,
    })
}

fn text<'a>(fields: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, Reject> {
    match fields.get(field) {
        None | Some(Value::Null) => Err(Reject::Missing(field)),
        Some(Value::String(text)) if text.is_empty() => Err(Reject::Missing(field)),
        Some(Value::String(text)) if text.len() > MAX_TEXT => Err(Reject::Type(field, TEXT)),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Reject::Type(field, TEXT)),
    }
}

fn ttl_of(value: &Value) -> Option<Duration> {
    let ttl = match value {
        Value::String(text) => parse_duration(text).ok()?,
        Value::Number(seconds) => Duration::try_from_secs_f64(seconds.as_f64()?).ok()?,
        _ => return None,
    };
    (MIN_TTL..=MAX_TTL).contains(&ttl).then_some(ttl)
}

fn action(
    kind: &str,
    data: &Map<String, Value>,
    check: crate::PolicyCheck,
) -> Result<Action, Reject> {
    match kind {
        "service" => of_service(data, check),
        "trace" => match data.get("ratio") {
            None => Err(Reject::Missing("ratio")),
            Some(Value::Null) => Ok(Action::Trace(None)),
            Some(ratio) => ratio
                .as_f64()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .map(|ratio| Action::Trace(Some(ratio)))
                .ok_or(Reject::Type("ratio", RATIO)),
        },
        "endpoint" => match text(data, "action")? {
            "drain" => Ok(Action::Drain),
            "undrain" => Ok(Action::Undrain),
            "eject" => Ok(Action::Eject),
            "restore" => Ok(Action::Restore),
            "weight" => data
                .get("weight")
                .and_then(Value::as_u64)
                .and_then(|weight| u32::try_from(weight).ok())
                .filter(|weight| *weight <= MAX_WEIGHT)
                .map(Action::Weight)
                .ok_or(Reject::Weight),
            _ => Err(Reject::Action("drain, undrain, eject, restore and weight")),
        },
        _ => match text(data, "action")? {
            "force-open" => Ok(Action::ForceOpen),
            "force-close" => Ok(Action::ForceClose),
            "clear" => Ok(Action::Clear),
            "transition" => transition(data),
            _ => Err(Reject::Action("force-open, force-close, clear and transition")),
        },
    }
}

/// What an event does to a whole service: exactly one thing, so that each has its own end.
fn of_service(data: &Map<String, Value>, check: crate::PolicyCheck) -> Result<Action, Reject> {
    const KINDS: [&str; 4] = ["policy", "bypass", "mode", "failover"];
    let mut said = KINDS.iter().filter_map(|kind| Some((*kind, data.get(*kind)?)));
    let one =
        Reject::Type("data", "an object with exactly one of policy, bypass, mode and failover");
    let (Some((kind, value)), None) = (said.next(), said.next()) else { return Err(one) };
    match (kind, value) {
        ("policy", policy) if policy.is_object() => {
            check(policy).map_err(|error| Reject::Policy(error.to_string()))?;
            Ok(Action::Policy(policy.clone()))
        }
        ("bypass", Value::Bool(on)) => Ok(Action::Bypass(*on)),
        ("mode", Value::String(mode)) if mode == "shadow" => Ok(Action::Shadow(true)),
        ("mode", Value::String(mode)) if mode == "active" => Ok(Action::Shadow(false)),
        ("failover", Value::Null) => Ok(Action::Failover(None)),
        ("failover", to) if to.is_object() => {
            check(&failover(to)).map_err(|error| Reject::Policy(error.to_string()))?;
            Ok(Action::Failover(Some(to.clone())))
        }
        ("bypass", _) => Err(Reject::Type("bypass", "true or false")),
        ("mode", _) => Err(Reject::Type("mode", "shadow or active")),
        ("failover", _) => Err(Reject::Type("failover", "an object with tag or region, or null")),
        _ => Err(Reject::Type("policy", "an object")),
    }
}

/// The policy that a failover lays over the others: what a failover of theirs says goes.
pub(crate) fn failover(to: &Value) -> Value {
    let mut failover = json!({"tag": null, "region": null});
    if let (Some(failover), Some(to)) = (failover.as_object_mut(), to.as_object()) {
        failover.extend(to.clone());
    }
    json!({"select": {"failover": failover}})
}

fn transition(data: &Map<String, Value>) -> Result<Action, Reject> {
    let state = |field| match text(data, field)? {
        "closed" => Ok(BreakerState::Closed),
        "open" => Ok(BreakerState::Open),
        "half-open" => Ok(BreakerState::HalfOpen),
        _ => Err(Reject::Type(field, "closed, open or half-open")),
    };
    let reason = match data.get("reason") {
        None => "",
        Some(Value::String(reason)) if reason.len() <= MAX_TEXT => reason,
        Some(_) => return Err(Reject::Type("reason", TEXT)),
    };
    let trips = match data.get("trips") {
        None => 0,
        Some(trips) => trips
            .as_u64()
            .and_then(|trips| u32::try_from(trips).ok())
            .ok_or(Reject::Type("trips", "a whole number"))?,
    };
    Ok(Action::Transition {
        proxy: text(data, "proxy")?.to_owned(),
        from: state("from")?,
        to: state("to")?,
        reason: reason.to_owned(),
        trips,
    })
}

#[cfg(test)]
mod tests;
