//! The `kubernetes` section.

use std::path::PathBuf;

use pintle_contract::is_name;
use pintle_settings::{Section, Settings};

use crate::source::settings::{path, text};

/// The `kubernetes` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// A kubeconfig; without it the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; without it its current one.
    pub context: Option<String>,
    /// The namespaces that are read, at most 64; empty: all of the cluster.
    pub namespaces: Vec<String>,
    /// Which EndpointSlices are read, by their labels, which are those of their Service.
    pub selector: Option<String>,
    /// The name of a service, of `{service}`, `{namespace}` and `{port}`, the port's name. With
    /// `{port}` every named port of a Service is a service of its own.
    pub name: String,
    /// The name of the port that is taken where a Service has several.
    pub port: Option<String>,
    /// The address family that is taken where a Service has both.
    pub family: Family,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

const FAMILIES: [(&str, Family); 2] = [("ipv4", Family::V4), ("ipv6", Family::V6)];

/// Why a Service is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unserved {
    /// Several ports, and none is chosen.
    #[error("{0} ports ({1}): set kubernetes.port, or put {{port}} into kubernetes.name")]
    Ports(usize, String),
    /// None of the ports has the name that is asked for.
    #[error("no TCP port is called {0:?} (there: {1})")]
    NoPort(String, String),
    /// No TCP port at all.
    #[error("no TCP port")]
    NoTcp,
    /// Its addresses are host names.
    #[error("its addresses are host names (addressType FQDN); Envoy's lists need IP addresses")]
    HostNames,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespaces: Vec::new(),
            selector: None,
            name: "{service}.{namespace}".into(),
            port: None,
            family: Family::V4,
        }
    }
}

impl Settings for KubernetesConfig {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let kubeconfig = path(keys, "kubeconfig");
        let context = text(keys, "context");
        keys.ensure(context.is_none() || kubeconfig.is_some(), "kubeconfig", "set with context");
        let namespaces = keys.texts("namespaces", 0..=64).unwrap_or_default();
        keys.ensure(namespaces.iter().all(|it| is_label(it)), "namespaces", "names of namespaces");
        let name = text(keys, "name").unwrap_or(default.name);
        let sample = fill(&name, "s", "n", "p");
        let good = name.contains("{service}") && is_name(&sample);
        let accepts =
            "{service}, {namespace}, {port} and A-Z a-z 0-9 . _ - :, with {service} in it";
        keys.ensure(good, "name", accepts);
        let port = text(keys, "port");
        let one = port.is_none() || !name.contains("{port}");
        keys.ensure(one, "port", "absent where kubernetes.name has {port}");
        Self {
            kubeconfig,
            context,
            namespaces,
            selector: text(keys, "selector"),
            name,
            port,
            family: keys.word("family", &FAMILIES, default.family),
        }
    }
}

impl KubernetesConfig {
    /// How a Service's port is called here.
    pub(super) fn name_of(&self, service: &str, namespace: &str, port: &str) -> String {
        fill(&self.name, service, namespace, port)
    }

    /// The `addressType` that is read of those that a Service's slices have: the preferred family,
    /// else the other one.
    pub(super) fn family<'a>(&self, there: impl Iterator<Item = &'a str>) -> Option<&'static str> {
        let there: Vec<&str> = there.collect();
        let preferred = match self.family {
            Family::V4 => ["IPv4", "IPv6"],
            Family::V6 => ["IPv6", "IPv4"],
        };
        preferred.into_iter().find(|family| there.contains(family))
    }

    /// The names of the ports that are read, of all that a Service's slices have.
    ///
    /// # Errors
    /// [`Unserved`]: there is none, or no telling which.
    pub(super) fn choose<'a>(
        &self,
        there: impl Iterator<Item = (&'a str, u16)>,
    ) -> Result<Vec<String>, Unserved> {
        let mut names: Vec<&str> = there.map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        let listed = || names.join(", ");
        match (names.as_slice(), &self.port) {
            ([], _) => Err(Unserved::NoTcp),
            (names, None) if self.name.contains("{port}") => {
                Ok(names.iter().map(ToString::to_string).collect())
            }
            ([one], _) => Ok(vec![(*one).to_owned()]),
            (names, Some(port)) if names.contains(&port.as_str()) => Ok(vec![port.clone()]),
            (_, Some(port)) => Err(Unserved::NoPort(port.clone(), listed())),
            (names, None) => Err(Unserved::Ports(names.len(), listed())),
        }
    }
}

/// A port without a name is called `default`.
fn fill(template: &str, service: &str, namespace: &str, port: &str) -> String {
    let port = if port.is_empty() { "default" } else { port };
    template.replace("{service}", service).replace("{namespace}", namespace).replace("{port}", port)
}

/// A DNS label (RFC 1123), as namespaces are named.
fn is_label(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(plain)
}
