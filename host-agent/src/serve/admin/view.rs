//! The JSON of the admin API: plain types, written at the edge, read back by the CLI.
//!
//! Times are RFC 3339 in UTC, latencies milliseconds, rates a second. A field that is not known is
//! null. Fields may be added; none changes its meaning.

mod agent;
mod breakers;
mod notices;
pub(crate) mod policy;
mod proxies;
mod services;
mod sources;
mod totals;

use std::time::{Duration, SystemTime};

use pintle_contract::Now;
use pintle_state::Snapshot;
use serde::{Deserialize, Serialize};

pub(crate) use agent::{AgentJson, Given};
pub(crate) use breakers::{BreakerJson, BreakersJson};
pub(crate) use notices::{
    ActivitiesJson, ActivityJson, HeldJson, HeldRowJson, OverlayJson, OverlaysJson, RejectedJson,
    RejectedRowJson, ReleasedJson,
};
pub(crate) use policy::PolicyJson;
pub(crate) use proxies::{ProxiesJson, ProxyJson};
pub(crate) use services::{EndpointJson, ServiceJson, ServicesJson};
pub(crate) use sources::{SourceJson, SourcesJson};
pub(crate) use totals::TotalsJson;

use crate::condition::Condition;
use crate::fleet;

/// Characters of text from outside (reasons, errors) that are passed on.
const MAX_TEXT: usize = 500;

/// `/readyz`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReadyJson {
    /// Whether there is a snapshot, the sources speak, and it is taken.
    pub ready: bool,
    /// Whether there is a snapshot.
    #[serde(default)]
    pub serves: bool,
    /// Whether nothing at all is wrong.
    #[serde(default)]
    pub well: bool,
    /// What is, the worst first.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// Whether it may be of the past: from disk and unconfirmed, or the registry is silent.
    pub stale: bool,
    /// Its version.
    pub version: String,
    /// When the registry last confirmed it.
    pub confirmed_at: Option<String>,
    /// In words.
    pub detail: String,
}

impl ReadyJson {
    /// Of a snapshot and the agent's condition.
    #[must_use]
    pub(crate) fn of(snapshot: &Snapshot, condition: &Condition) -> Self {
        let troubles: Vec<String> =
            condition.troubles.iter().map(|trouble| clean(&trouble.to_string())).collect();
        let well = || "confirmed by the registry".to_owned();
        Self {
            ready: condition.is_ready(),
            serves: condition.serves(),
            well: troubles.is_empty(),
            stale: condition.is_stale(),
            version: snapshot.version.to_string(),
            confirmed_at: snapshot.confirmed_at.map(time),
            detail: troubles.first().cloned().unwrap_or_else(well),
            troubles,
        }
    }
}

/// What the page shows, in one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StateJson {
    /// The agent's name.
    pub agent: String,
    /// Readiness.
    pub ready: ReadyJson,
    /// Counts over all services.
    pub totals: TotalsJson,
    /// Services, as many as a page can show, the worst first.
    pub services: ServicesJson,
    /// Envoys.
    pub proxies: Vec<ProxyJson>,
    /// Removals that wait.
    pub held: Vec<HeldRowJson>,
    /// Events in force.
    pub overlays: Vec<OverlayJson>,
    /// Sources.
    pub sources: SourcesJson,
    /// How many refused entries are remembered.
    pub rejected: usize,
}

/// RFC 3339 with milliseconds.
#[must_use]
pub(crate) fn time(at: SystemTime) -> String {
    // The format knows the years 1970 to 9999.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let at = at.clamp(SystemTime::UNIX_EPOCH, last);
    humantime::format_rfc3339_millis(at).to_string()
}

fn stamp(at: Now) -> Option<String> {
    (at.0 > 0).then(|| time(fleet::wall(at)))
}

/// Text from outside, without control characters and not too long.
#[must_use]
pub(crate) fn clean(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
