//! What one delta stream is owed of clusters, as a state machine without I/O.
//!
//! Envoy asks for all (a first request without names, or `*`) or for some by name (on demand). As
//! with hosts, one response is on its way at a time, in parts of bounded size, and a cluster that
//! Envoy refused is not repeated: it keeps what it had and would refuse the same bytes again. A
//! service that is gone takes its cluster with it; hosts that merely empty leave it where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pintle_state::{Services, Snapshot};
use prost_types::Any;

use super::{TYPE_URL, Template};
use crate::serve::eds::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use crate::serve::eds::{Answer, MAX_SUBSCRIBED, RESPONSE};

const ALL: &str = "*";

/// The clusters of one stream; without a template there are none.
#[derive(Debug, Default)]
pub(crate) struct Session {
    template: Option<Arc<Template>>,
    asked: bool,
    all: bool,
    /// Asked for by name.
    named: BTreeSet<String>,
    sent: BTreeMap<String, Sent>,
    /// The services of which nothing is owed any more, as long as nothing is asked.
    told: Option<Services>,
    /// Whoever asks for all is answered, be it by nothing: Envoy opens its listeners then.
    owed: bool,
    awaited: Option<u64>,
    last: u64,
}

/// What Envoy holds of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// A cluster of this fingerprint, from an earlier stream.
    Before(u64),
    /// The template's.
    Cluster,
    /// That there is none.
    Absent,
}

impl Session {
    pub(crate) fn new(template: Option<Arc<Template>>) -> Self {
        Self { template, ..Self::default() }
    }

    /// A delta request for clusters.
    pub(crate) fn request(&mut self, request: DeltaDiscoveryRequest) -> Answer {
        if self.template.is_none() {
            return Answer::Unserved("serve.clusters is not in the agent's configuration");
        }
        let answer = self.answer(&request);
        if !self.asked && request.resource_names_subscribe.is_empty() {
            self.want_all();
        }
        self.asked = true;
        self.told = None;
        for name in request.resource_names_unsubscribe {
            self.all &= name != ALL;
            self.named.remove(&name);
            if !self.all {
                self.sent.remove(&name);
            }
        }
        for name in request.resource_names_subscribe {
            if name == ALL {
                self.want_all();
            } else if self.named.len() < MAX_SUBSCRIBED {
                // Asked for again means forgotten meanwhile.
                self.sent.remove(&name);
                self.named.insert(name);
            }
        }
        for (name, version) in request.initial_resource_versions.into_iter().take(MAX_SUBSCRIBED) {
            if let Ok(fingerprint) = u64::from_str_radix(&version, 16) {
                self.sent.insert(name, Sent::Before(fingerprint));
            }
        }
        answer
    }

    fn want_all(&mut self) {
        self.owed |= !self.all;
        self.all = true;
    }

    fn answer(&mut self, request: &DeltaDiscoveryRequest) -> Answer {
        match request.response_nonce.parse::<u64>() {
            Ok(nonce) if self.awaited == Some(nonce) => {
                self.awaited = None;
                match &request.error_detail {
                    Some(error) => Answer::Nack(error.message.clone()),
                    None => Answer::Ack,
                }
            }
            _ => Answer::None,
        }
    }

    /// Whether any request has come.
    pub(crate) const fn has_asked(&self) -> bool {
        self.asked
    }

    /// How many names are kept.
    pub(crate) fn subscribed(&self) -> usize {
        self.named.len().max(self.sent.len())
    }

    /// Whether a response is on its way.
    pub(crate) const fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// No answer came; what was sent counts as taken.
    pub(crate) const fn stop_waiting(&mut self) {
        self.awaited = None;
    }

    /// The response that is due, if one is.
    pub(crate) fn respond(&mut self, snapshot: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        let loaded = crate::serve::sync::is_loaded(snapshot);
        if self.is_waiting() || !self.asked || !loaded {
            return None;
        }
        if let Some(told) = &mut self.told
            && told.has_names_of(&snapshot.services)
        {
            *told = snapshot.services.clone();
            return None;
        }
        let template = Arc::clone(self.template.as_ref()?);
        let removed_resources = self.gone(&template, snapshot);
        let resources = self.due(&template, snapshot);
        if resources.is_empty() && removed_resources.is_empty() && !self.owed {
            self.told = Some(snapshot.services.clone());
            return None;
        }
        self.owed = false;
        self.last += 1;
        self.awaited = Some(self.last);
        Some(DeltaDiscoveryResponse {
            system_version_info: snapshot.version.to_string(),
            resources,
            type_url: TYPE_URL.to_owned(),
            nonce: self.last.to_string(),
            removed_resources,
        })
    }

    /// What Envoy holds or waits for, and no service has.
    fn gone(&mut self, template: &Template, snapshot: &Snapshot) -> Vec<String> {
        let is_there = |name: &str| {
            template.service_of(name).is_some_and(|it| snapshot.services.contains_key(it))
        };
        let mut gone: Vec<String> = self
            .sent
            .iter()
            .filter(|(name, sent)| **sent != Sent::Absent && !is_there(name))
            .map(|(name, _)| name.clone())
            .collect();
        let unknown = self.named.iter().filter(|name| !self.sent.contains_key(*name));
        gone.extend(unknown.filter(|name| !is_there(name)).cloned());
        for name in &gone {
            match self.named.contains(name) {
                true => self.sent.insert(name.clone(), Sent::Absent),
                false => self.sent.remove(name),
            };
        }
        gone
    }

    /// What Envoy lacks, up to a response's size.
    fn due(&mut self, template: &Template, snapshot: &Snapshot) -> Vec<Resource> {
        let all = snapshot.services.keys().filter(|_| self.all).map(String::as_str);
        let named = self.named.iter().filter_map(|name| template.service_of(name));
        let named = named.filter(|it| !self.all && snapshot.services.contains_key(it));
        let (mut due, mut bytes, mut sent) = (Vec::new(), 0, Vec::new());
        for service in all.chain(named) {
            let name = template.name_of(service);
            let before = self.sent.get(&name).copied();
            if bytes >= RESPONSE || before == Some(Sent::Cluster) {
                continue;
            }
            let Some(cluster) = template.cluster(service) else { continue };
            sent.push(name);
            if before == Some(Sent::Before(cluster.fingerprint)) {
                continue;
            }
            bytes += cluster.bytes.len();
            due.push(Resource {
                version: format!("{:016x}", cluster.fingerprint),
                resource: Some(Any { type_url: TYPE_URL.to_owned(), value: cluster.bytes }),
                name: cluster.name,
            });
        }
        self.sent.extend(sent.into_iter().map(|name| (name, Sent::Cluster)));
        due
    }
}
