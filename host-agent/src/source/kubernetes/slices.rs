//! What EndpointSlices say, as services of our own form: no I/O.
//!
//! A Service's endpoints are spread over slices, one address family each, and an endpoint that
//! moves from one slice to another may stand in both for a moment. The rules are those of
//! kube-proxy (`discovery.k8s.io/v1`): `ready` and `serving` count as true and `terminating` as
//! false where they are absent, the first of an endpoint's addresses stands for it, and of two
//! entries of one address the ready one counts.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use pintle_contract::encode_name;
use pintle_state::Told;
use serde_json::json;

use super::config::{KubernetesConfig, Unserved};

/// The label that names a slice's Service.
const SERVICE: &str = "kubernetes.io/service-name";
/// Slices that are kept, at most: 100,000 endpoints of ten Services a thousand.
const MAX_SLICES: usize = 65_536;

/// A slice by its namespace and name.
type Key = (String, String);
/// A Service by its namespace and name.
type Of = (String, String);

/// Endpoints by their id, as etcd would hold them.
type Endpoints = BTreeMap<String, Vec<u8>>;

/// The slices that are known.
#[derive(Debug)]
pub(super) struct Slices {
    config: KubernetesConfig,
    slices: BTreeMap<Key, EndpointSlice>,
    /// The slices of each Service.
    services: BTreeMap<Of, BTreeSet<Key>>,
    /// The names under which each Service was told last.
    told: BTreeMap<Of, BTreeSet<String>>,
    /// Slices left out since the start, for want of room.
    left_out: u64,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Services as they are now; one that is gone has no endpoints.
    pub(super) services: Vec<Told>,
    /// Services that are not served, and why.
    pub(super) unserved: Vec<(String, Unserved)>,
}

impl Slices {
    pub(super) fn new(config: KubernetesConfig) -> Self {
        Self {
            config,
            slices: BTreeMap::new(),
            services: BTreeMap::new(),
            told: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Slices left out since the start, for want of room.
    pub(super) const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// A slice is there, or another than it was.
    pub(super) fn put(&mut self, slice: EndpointSlice) -> Changed {
        let mut changed = BTreeSet::new();
        self.insert(slice, &mut changed);
        self.tell(changed)
    }

    /// A slice is gone.
    pub(super) fn remove(&mut self, slice: &EndpointSlice) -> Changed {
        let mut changed = BTreeSet::new();
        self.take(&key(slice), &mut changed);
        self.tell(changed)
    }

    /// All slices of a namespace, or of all; those that are not among them are gone.
    pub(super) fn list(&mut self, namespace: Option<&str>, slices: Vec<EndpointSlice>) -> Changed {
        let there: BTreeSet<Key> = slices.iter().map(key).collect();
        let of = |key: &&Key| namespace.is_none_or(|namespace| key.0 == namespace);
        let gone = self.slices.keys().filter(of).filter(|key| !there.contains(*key));
        let gone: Vec<Key> = gone.cloned().collect();
        let mut changed = BTreeSet::new();
        for key in gone {
            self.take(&key, &mut changed);
        }
        for slice in slices {
            self.insert(slice, &mut changed);
        }
        self.tell(changed)
    }

    /// Every Service.
    pub(super) fn all(&mut self) -> Changed {
        self.tell(self.services.keys().cloned().collect())
    }

    fn insert(&mut self, slice: EndpointSlice, changed: &mut BTreeSet<Of>) {
        let key = key(&slice);
        let Some(of) = service(&slice) else { return self.take(&key, changed) };
        if self.slices.get(&key) == Some(&slice) {
            return;
        }
        self.take(&key, changed);
        if self.slices.len() >= MAX_SLICES {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.services.entry(of.clone()).or_default().insert(key.clone());
        self.slices.insert(key, slice);
        changed.insert(of);
    }

    fn take(&mut self, key: &Key, changed: &mut BTreeSet<Of>) {
        let Some(of) = self.slices.remove(key).as_ref().and_then(service) else { return };
        if let Some(slices) = self.services.get_mut(&of) {
            slices.remove(key);
            if slices.is_empty() {
                self.services.remove(&of);
            }
        }
        changed.insert(of);
    }

    fn tell(&mut self, services: BTreeSet<Of>) -> Changed {
        let mut changed = Changed::default();
        for of in services {
            let (mut now, unserved) = self.read(&of);
            let before = self.told.remove(&of).unwrap_or_default();
            for name in before.difference(&now.keys().cloned().collect()) {
                changed.services.push(Told { name: name.clone(), ..Told::default() });
            }
            if !now.is_empty() {
                self.told.insert(of.clone(), now.keys().cloned().collect());
            }
            for (name, endpoints) in std::mem::take(&mut now) {
                let endpoints = endpoints.into_iter().collect();
                changed.services.push(Told { name, policy: None, endpoints });
            }
            if let Some(why) = unserved {
                changed.unserved.push((self.config.name_of(&of.1, &of.0, ""), why));
            }
        }
        changed
    }

    /// A Service's endpoints, by the name that its port gives it.
    fn read(&self, of: &Of) -> (BTreeMap<String, Endpoints>, Option<Unserved>) {
        let mut read = BTreeMap::new();
        let keys = self.services.get(of).into_iter().flatten();
        let slices: Vec<&EndpointSlice> = keys.filter_map(|key| self.slices.get(key)).collect();
        if slices.is_empty() {
            return (read, None);
        }
        let Some(family) =
            self.config.family(slices.iter().map(|slice| slice.address_type.as_str()))
        else {
            return (read, Some(Unserved::HostNames));
        };
        let slices: Vec<_> =
            slices.into_iter().filter(|slice| slice.address_type == family).collect();
        let ports = match self.config.choose(slices.iter().flat_map(|slice| ports(slice))) {
            Ok(ports) => ports,
            Err(why) => return (read, Some(why)),
        };
        for port in ports {
            let name = self.config.name_of(&of.1, &of.0, &port);
            let service: &mut Endpoints = read.entry(name.clone()).or_default();
            let mut best: BTreeMap<String, (bool, String, serde_json::Value)> = BTreeMap::new();
            for slice in &slices {
                let Some(number) = ports_named(slice, &port) else { continue };
                for endpoint in &slice.endpoints {
                    let Some(address) = endpoint.addresses.first() else { continue };
                    let ready = is_ready(endpoint);
                    if best.get(address).is_some_and(|(other, ..)| *other || !ready) {
                        continue;
                    }
                    let Some(id) = encode_name(id(endpoint, address).as_bytes()) else { continue };
                    let value = value(endpoint, &name, &id, address, number);
                    best.insert(address.clone(), (ready, id, value));
                }
            }
            for (_, id, value) in best.into_values() {
                service.insert(id, value.to_string().into_bytes());
            }
        }
        (read, None)
    }
}

fn key(slice: &EndpointSlice) -> Key {
    let meta = &slice.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The Service that a slice is of; none where the label is missing.
fn service(slice: &EndpointSlice) -> Option<Of> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE)?;
    (!name.is_empty()).then(|| (key(slice).0, name.clone()))
}

/// The slice's TCP ports that have a number.
fn ports(slice: &EndpointSlice) -> impl Iterator<Item = (&str, u16)> {
    slice.ports.iter().flatten().filter_map(numbered)
}

fn numbered(port: &EndpointPort) -> Option<(&str, u16)> {
    let tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    let number = port.port.and_then(|number| u16::try_from(number).ok()).filter(|it| *it > 0)?;
    tcp.then(|| (port.name.as_deref().unwrap_or_default(), number))
}

fn ports_named(slice: &EndpointSlice, name: &str) -> Option<u16> {
    ports(slice).find(|(port, _)| *port == name).map(|(_, number)| number)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|it| it.ready).unwrap_or(true)
}

/// The pod's name, where there is one.
fn id(endpoint: &Endpoint, address: &str) -> String {
    let target = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
    target.or_else(|| endpoint.hostname.clone()).unwrap_or_else(|| address.to_owned())
}

/// One that is terminating gets nothing new, and is not there for anybody once it does not serve.
fn health(endpoint: &Endpoint) -> &'static str {
    let conditions = endpoint.conditions.as_ref();
    let serving = conditions.and_then(|it| it.serving).unwrap_or_else(|| is_ready(endpoint));
    match conditions.and_then(|it| it.terminating).unwrap_or(false) {
        true if serving => "draining",
        true => "unhealthy",
        false if is_ready(endpoint) => "healthy",
        false => "unhealthy",
    }
}

/// As etcd would hold it. A hint says for which zone an endpoint is meant, so it goes before the
/// zone in which the endpoint is.
fn value(
    endpoint: &Endpoint,
    service: &str,
    id: &str,
    address: &str,
    port: u16,
) -> serde_json::Value {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    let hinted = hints.and_then(|zones| zones.first()).map(|zone| zone.name.clone());
    let mut metadata = serde_json::Map::new();
    for (key, value) in
        [("zone", hinted.or_else(|| endpoint.zone.clone())), ("node", endpoint.node_name.clone())]
    {
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value.into());
        }
    }
    json!({
        "id": id,
        "name": service,
        "address": address,
        "port": port,
        "health": health(endpoint),
        "metadata": metadata,
    })
}

#[cfg(test)]
mod tests;
