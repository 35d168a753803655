//! What happened, and what was not done: activities, overlays, refusals, removals that wait.

use pintle_state::{Held, Overlay, Rejected};
use serde::{Deserialize, Serialize};

use super::{clean, time};
use crate::link::Activity;

/// One line of `/v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActivityJson {
    /// When.
    pub at: String,
    /// `registry`, `event`, `breaker`, `removal`, `proxy` or `source`.
    pub kind: String,
    /// The service it is about.
    pub service: Option<String>,
    /// The endpoint it is about.
    pub endpoint: Option<String>,
    /// In words.
    pub text: String,
}

impl ActivityJson {
    /// Of one activity.
    #[must_use]
    pub(crate) fn of(activity: &Activity) -> Self {
        Self {
            at: time(activity.at),
            kind: activity.kind.to_owned(),
            service: activity.service.as_deref().map(clean),
            endpoint: activity.endpoint.as_deref().map(clean),
            text: clean(&activity.text),
        }
    }
}

/// `/v1/events?follow=false`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ActivitiesJson {
    /// Oldest first.
    pub events: Vec<ActivityJson>,
}

/// `/v1/rejected`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RejectedJson {
    /// Newest last.
    pub rejected: Vec<RejectedRowJson>,
}

/// Something that was refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RejectedRowJson {
    /// `registry`, `policy`, `event` or `file`.
    pub source: String,
    /// Key or subject.
    pub key: String,
    /// One of a fixed set of words.
    pub reason: String,
    /// In words.
    pub detail: String,
    /// When.
    pub at: String,
}

impl RejectedRowJson {
    /// Of one refusal.
    #[must_use]
    pub(crate) fn of(rejected: &Rejected) -> Self {
        Self {
            source: rejected.source.to_owned(),
            key: clean(&rejected.key),
            reason: rejected.reason.to_owned(),
            detail: clean(&rejected.detail),
            at: time(rejected.at),
        }
    }
}

/// `/v1/held`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HeldJson {
    /// Removals that wait.
    pub held: Vec<HeldRowJson>,
}

/// A removal that waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HeldRowJson {
    /// Of the endpoint.
    pub service: String,
    /// The registry's id.
    pub endpoint: String,
    /// Since when.
    pub since: String,
    /// Why.
    pub reason: String,
    /// When it goes by itself.
    pub until: Option<String>,
}

impl HeldRowJson {
    /// Of one held removal.
    #[must_use]
    pub(crate) fn of(held: &Held) -> Self {
        Self {
            service: held.service.clone(),
            endpoint: held.endpoint.clone(),
            since: time(held.since),
            reason: clean(&held.reason),
            until: held.until.map(time),
        }
    }
}

/// `/v1/overlays`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OverlaysJson {
    /// Events in force.
    pub overlays: Vec<OverlayJson>,
}

/// An event in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OverlayJson {
    /// `endpoint`, `service`, `trace` or `breaker`.
    pub kind: String,
    /// The service it is laid over.
    pub service: String,
    /// The endpoint it is about.
    pub endpoint: Option<String>,
    /// What it does.
    pub action: String,
    /// Who published it.
    pub source: String,
    /// When it ends.
    pub until: String,
}

impl OverlayJson {
    /// Of one overlay.
    #[must_use]
    pub(crate) fn of(overlay: &Overlay) -> Self {
        Self {
            kind: overlay.kind.to_owned(),
            service: overlay.service.clone(),
            endpoint: overlay.endpoint.clone(),
            action: clean(&overlay.action),
            source: clean(&overlay.source),
            until: time(overlay.until),
        }
    }
}

/// `POST /v1/release/{service}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReleasedJson {
    /// The service.
    pub service: String,
    /// How many removals went.
    pub released: u64,
}
