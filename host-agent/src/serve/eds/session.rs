//! What one discovery stream is owed, as a state machine without I/O: requests and snapshots in,
//! responses out.
//!
//! At most one response is on its way; the next waits for the ACK or NACK of the last and then says
//! what is newest, so a slow Envoy has no backlog. A NACKed resource is not repeated until it
//! changes, because Envoy keeps what it had and would refuse the same bytes again.
//!
//! | service | state of the world | delta |
//! |---|---|---|
//! | known | its assignment when it changed | likewise |
//! | known, no endpoints | an empty assignment | likewise |
//! | never known | nothing: Envoy waits until `initial_fetch_timeout`, then serves | `removed_resources`, and Envoy waits no longer |
//! | gone after it was sent | an empty assignment | likewise |
//!
//! A service that is gone is sent as empty in delta too: Envoy keeps the hosts of an EDS resource
//! that is merely removed, and addresses that left the registry may be somebody else's tomorrow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pintle_contract::Version;
use pintle_state::{Service, Services, Snapshot};
use prost_types::Any;

use super::assignment::{Assignment, TYPE_URL};
use super::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
    Status,
};

/// Services one stream may ask for.
pub(crate) const MAX_SUBSCRIBED: usize = 10_000;
/// Bytes of assignments in one response, unless one alone is larger. The rest follows when Envoy
/// has answered, so that a reader who does not read is owed this much and no more.
pub(crate) const RESPONSE: usize = 128 << 10;

/// What Envoy said of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing: a first request, a change of subscription, or an answer to something older.
    None,
    /// It took it.
    Ack,
    /// It refused it; why.
    Nack(String),
    /// The request is for another type.
    Foreign,
    /// The request is for clusters, and why it goes without an answer.
    Unserved(&'static str),
}

/// One stream of either kind.
#[derive(Debug, Default)]
pub(crate) struct Session {
    asked: bool,
    subscribed: BTreeSet<String>,
    /// What is subscribed to and may have to be sent.
    due: BTreeSet<String>,
    /// The services as they were when `due` was last brought up to date.
    seen: Services,
    sent: BTreeMap<String, Sent>,
    awaited: Option<u64>,
    last: u64,
}

/// What Envoy holds of a service, as far as was sent.
#[derive(Clone, Copy, Debug)]
enum Sent {
    /// The table's version when it was last compared, and the bytes' fingerprint.
    Assignment(Version, u64),
    /// An empty one, because the service is gone.
    Emptied,
    /// That there is none (delta).
    Absent,
}

/// Changed resources by name, and names that are not there.
type Changes = (Vec<(String, Assignment)>, Vec<String>);

impl Session {
    /// A state-of-the-world request.
    pub(crate) fn request(&mut self, request: DiscoveryRequest) -> Answer {
        self.asked = true;
        if !is_ours(&request.type_url) {
            return Answer::Foreign;
        }
        let answer = self.answer(&request.response_nonce, request.error_detail);
        if self.is_stale(&request.response_nonce) {
            return answer;
        }
        let names: BTreeSet<String> = request
            .resource_names
            .into_iter()
            .filter(|name| is_short(name))
            .take(MAX_SUBSCRIBED)
            .collect();
        // Asked for again means forgotten meanwhile.
        self.sent.retain(|name, _| names.contains(name));
        self.due.retain(|name| names.contains(name));
        self.due.extend(names.difference(&self.subscribed).cloned());
        self.subscribed = names;
        answer
    }

    /// A delta request.
    pub(crate) fn delta_request(&mut self, request: DeltaDiscoveryRequest) -> Answer {
        self.asked = true;
        if !is_ours(&request.type_url) {
            return Answer::Foreign;
        }
        let answer = self.answer(&request.response_nonce, request.error_detail);
        for name in request.resource_names_unsubscribe {
            self.subscribed.remove(&name);
            self.due.remove(&name);
            self.sent.remove(&name);
        }
        for name in request.resource_names_subscribe.into_iter().filter(|name| is_short(name)) {
            if self.subscribed.len() < MAX_SUBSCRIBED {
                self.sent.remove(&name);
                self.due.insert(name.clone());
                self.subscribed.insert(name);
            }
        }
        for (name, version) in request.initial_resource_versions {
            if let Ok(fingerprint) = u64::from_str_radix(&version, 16)
                && self.subscribed.contains(&name)
            {
                let sent = Sent::Assignment(Version::default(), fingerprint);
                self.sent.insert(name, sent);
            }
        }
        answer
    }

    fn is_stale(&self, nonce: &str) -> bool {
        !nonce.is_empty() && nonce.parse() != Ok(self.last)
    }

    fn answer(&mut self, nonce: &str, error: Option<Status>) -> Answer {
        match nonce.parse::<u64>() {
            Ok(nonce) if self.awaited == Some(nonce) => {
                self.awaited = None;
                error.map_or(Answer::Ack, |error| Answer::Nack(error.message))
            }
            _ => Answer::None,
        }
    }

    /// Whether any request has come.
    #[must_use]
    pub(crate) const fn has_asked(&self) -> bool {
        self.asked
    }

    /// How many services it asks for.
    #[must_use]
    pub(crate) fn subscribed(&self) -> usize {
        self.subscribed.len()
    }

    /// What it asks for.
    #[must_use]
    pub(crate) const fn names(&self) -> &BTreeSet<String> {
        &self.subscribed
    }

    /// The one service that it asks for, if it is one.
    #[must_use]
    pub(crate) fn only(&self) -> Option<&str> {
        let mut names = self.subscribed.iter();
        names.next().filter(|_| names.next().is_none()).map(String::as_str)
    }

    /// Whether a response is on its way.
    #[must_use]
    pub(crate) const fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// No answer came; what was sent counts as taken.
    pub(crate) const fn stop_waiting(&mut self) {
        self.awaited = None;
    }

    fn nonce(&mut self) -> String {
        self.last += 1;
        self.awaited = Some(self.last);
        self.last.to_string()
    }

    /// The response that is due, if one is.
    pub(crate) fn respond(&mut self, snapshot: &Snapshot) -> Option<DiscoveryResponse> {
        let (changed, _) = self.changes(snapshot, false)?;
        if changed.is_empty() {
            return None;
        }
        Some(DiscoveryResponse {
            version_info: snapshot.version.to_string(),
            resources: changed.into_iter().map(|(_, a)| any(a)).collect(),
            type_url: TYPE_URL.to_owned(),
            nonce: self.nonce(),
        })
    }

    /// The delta response that is due, if one is.
    pub(crate) fn respond_delta(&mut self, snapshot: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        let (changed, removed_resources) = self.changes(snapshot, true)?;
        if changed.is_empty() && removed_resources.is_empty() {
            return None;
        }
        Some(DeltaDiscoveryResponse {
            system_version_info: snapshot.version.to_string(),
            resources: changed
                .into_iter()
                .map(|(name, assignment)| Resource {
                    version: format!("{:016x}", assignment.fingerprint),
                    resource: Some(any(assignment)),
                    name,
                })
                .collect(),
            type_url: TYPE_URL.to_owned(),
            nonce: self.nonce(),
            removed_resources,
        })
    }

    fn changes(&mut self, snapshot: &Snapshot, delta: bool) -> Option<Changes> {
        if self.is_waiting() || !crate::serve::sync::is_loaded(snapshot) {
            return None;
        }
        if self.only().is_some() {
            // It is not told of every change, and keeps none of what was.
            self.due.extend(self.subscribed.iter().cloned());
            self.seen = Services::default();
        } else {
            let differing = snapshot.services.differing(&self.seen).into_iter();
            let differing = differing.filter(|name| self.subscribed.contains(*name));
            self.due.extend(differing.map(ToOwned::to_owned));
            self.seen = snapshot.services.clone();
        }
        let mut changed = Vec::new();
        let mut removed = Vec::new();
        let mut bytes = 0;
        while bytes < RESPONSE
            && let Some(name) = self.due.pop_first()
        {
            let sent = self.sent.get(&name).copied();
            match (snapshot.services.get(&name), sent) {
                (Some(service), sent) => {
                    if let Some(assignment) = differs(service, sent) {
                        let sent = Sent::Assignment(service.table.version, assignment.fingerprint);
                        self.sent.insert(name.clone(), sent);
                        bytes += assignment.bytes.len();
                        changed.push((name, assignment));
                    }
                }
                (None, Some(Sent::Assignment(..))) => {
                    changed.push((name.clone(), Assignment::empty(&name)));
                    self.sent.insert(name, Sent::Emptied);
                }
                (None, None) if delta => {
                    removed.push(name.clone());
                    self.sent.insert(name, Sent::Absent);
                }
                (None, _) => {}
            }
        }
        Some((changed, removed))
    }
}

/// The assignment, when it is not what was sent. Opinions and policies change a table's version and
/// not its assignment, so an equal version decides alone, and a different one by the bytes.
fn differs(service: &Arc<Service>, sent: Option<Sent>) -> Option<Assignment> {
    if let Some(Sent::Assignment(version, _)) = sent
        && version == service.table.version
    {
        return None;
    }
    let assignment = Assignment::of(&service.table);
    match sent {
        Some(Sent::Assignment(_, fingerprint)) if fingerprint == assignment.fingerprint => None,
        _ => Some(assignment),
    }
}

fn any(assignment: Assignment) -> Any {
    Any { type_url: TYPE_URL.to_owned(), value: assignment.bytes }
}

/// Whether it may be the name of a service (253 bytes), or Envoy's `*`.
fn is_short(name: &str) -> bool {
    name.len() <= 253
}

fn is_ours(type_url: &str) -> bool {
    type_url.is_empty() || type_url == TYPE_URL
}
