//! The `register` section of the configuration.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::uri::PathAndQuery;
use pintle_contract::{AddressPolicy, MAX_LABEL, MAX_LABELS, MAX_WEIGHT, is_name};
use pintle_settings::{HOUR, Invalid, MILLISECOND, MINUTE, SECOND, Section, Settings};

use crate::source::formats::{self, FormatName, SourceConfig};
use crate::source::{EtcdConfig, text};

/// Instances that this process keeps registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterConfig {
    /// The registry: the configuration's own `etcd` section, and no key of this one.
    pub etcd: EtcdConfig,
    /// In another framework's form than our own: under its prefix, as its own clients would find
    /// it.
    pub format: Option<FormatName>,
    /// The prefix in that form; that of the first of `etcd.sources` in it, else the framework's
    /// own.
    pub prefix: Option<Vec<u8>>,
    /// The URL's scheme in that form, where it has one.
    pub scheme: Option<String>,
    /// The instances; at least one.
    pub instances: Vec<Instance>,
    /// The lease, 5s to 1h; kept alive three times as often.
    pub lease: Duration,
    /// How long an instance stays `draining` at shutdown before it is deleted, 0s to 10m.
    pub drain: Duration,
}

impl Default for RegisterConfig {
    fn default() -> Self {
        Self {
            etcd: EtcdConfig::default(),
            format: None,
            prefix: None,
            scheme: None,
            instances: Vec::new(),
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The service.
    pub name: String,
    /// The instance's id, unique in the service.
    pub id: String,
    /// An IP literal.
    pub address: IpAddr,
    /// 1 to 65,535.
    pub port: u16,
    /// `weight`, `zone`, `region`, `version` and `protocol` have a meaning.
    pub metadata: BTreeMap<String, String>,
    /// Tags.
    pub tags: Vec<String>,
    /// How its health is found; without it, it is healthy while this process lives.
    pub check: Option<Check>,
}

/// A health check; exactly one of `http`, `grpc` and `tcp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// GET this path at the instance; 200 to 299 is healthy.
    pub http: Option<String>,
    /// `grpc.health.v1.Health/Check` for this service (empty: the whole server); SERVING is
    /// healthy.
    pub grpc: Option<String>,
    /// A connection can be made.
    pub tcp: bool,
    /// How often, 100ms to 10m.
    pub interval: Duration,
    /// How long an answer may take, 10ms to 1m.
    pub timeout: Duration,
    /// Failures in a row until it is unhealthy, 1 to 100.
    pub unhealthy_after: u32,
    /// Successes in a row until it is healthy again, 1 to 100.
    pub healthy_after: u32,
}

impl Settings for RegisterConfig {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let instances = keys.list("instances", 1..=1000, pintle_settings::read::<Instance>);
        keys.ensure(instances.is_some(), "instances", "a list of 1 to 1000");
        let instances = instances.unwrap_or_default();
        let mut seen = HashSet::new();
        for (at, instance) in instances.iter().enumerate() {
            let first = seen.insert((&instance.name, &instance.id));
            let accepts = "an id that no other instance of the service has";
            keys.ensure(first, &format!("instances[{at}].id"), accepts);
        }
        let format = FormatName::named(keys, "format");
        let (prefix, scheme) = (formats::prefix(keys), text(keys, "scheme"));
        let apart = format.is_some() || (prefix.is_none() && scheme.is_none());
        keys.ensure(apart, "format", "set with register.prefix and register.scheme");
        Self {
            etcd: default.etcd,
            format,
            prefix,
            scheme,
            instances,
            lease: keys.duration("lease", SECOND.saturating_mul(5)..=HOUR, default.lease),
            drain: keys.duration(
                "drain",
                Duration::ZERO..=MINUTE.saturating_mul(10),
                default.drain,
            ),
        }
    }
}

impl RegisterConfig {
    /// The same in this registry.
    ///
    /// # Errors
    /// The format has no prefix of its own, and none is given.
    pub fn within(self, etcd: EtcdConfig) -> Result<Self, Invalid> {
        let all = Self { etcd, ..self };
        match all.source() {
            Some(source) if source.prefix().is_empty() => {
                let accepts = "given, since this format has no prefix of its own";
                Err(Invalid::new("register.prefix", accepts))
            }
            _ => Ok(all),
        }
    }

    /// The form that is written, where it is not our own.
    #[must_use]
    pub fn source(&self) -> Option<SourceConfig> {
        let format = self.format?;
        let known = self.etcd.sources.iter().find(|source| source.format == format);
        let mut source = known.cloned().unwrap_or_else(|| SourceConfig::new(format));
        if self.prefix.is_some() {
            source.prefix.clone_from(&self.prefix);
        }
        if let Some(scheme) = &self.scheme {
            source.scheme.clone_from(scheme);
        }
        Some(source)
    }
}

impl Settings for Instance {
    fn read(keys: &mut Section) -> Self {
        let address = keys.required(
            "address",
            "an address of one host, not link-local, metadata, multicast or unspecified",
            |address| {
                let address = address.as_str()?.parse().ok()?;
                AddressPolicy::trusting().check(address).is_ok().then_some(address)
            },
        );
        Self {
            name: name(keys, "name"),
            id: name(keys, "id"),
            address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            port: keys.whole("port", 1..=u16::MAX, None),
            metadata: metadata(keys),
            tags: tags(keys),
            check: keys.section("check"),
        }
    }
}

fn name(keys: &mut Section, key: &'static str) -> String {
    let name =
        keys.required(key, "1 to 253 characters of [A-Za-z0-9._:-], any other as %XX", |name| {
            name.as_str().filter(|name| is_name(name)).map(ToOwned::to_owned)
        });
    name.unwrap_or_default()
}

fn metadata(keys: &mut Section) -> BTreeMap<String, String> {
    let metadata = keys.labels("metadata", MAX_LABELS).unwrap_or_default();
    let fits = metadata.iter().all(|(key, value)| key.len().max(value.len()) <= MAX_LABEL);
    keys.ensure(fits, "metadata", format!("names and values of at most {MAX_LABEL} bytes"));
    if let Some(weight) = metadata.get("weight") {
        let good = weight.parse::<u32>().is_ok_and(|weight| weight <= MAX_WEIGHT);
        let accepts = format!("a whole number from 0 to {MAX_WEIGHT}, as text");
        keys.ensure(good, "metadata.weight", accepts);
    }
    metadata
}

fn tags(keys: &mut Section) -> Vec<String> {
    let tags = keys.texts("tags", 0..=MAX_LABELS).unwrap_or_default();
    let fit = tags.iter().all(|tag| tag.len() <= MAX_LABEL);
    keys.ensure(fit, "tags", format!("tags of at most {MAX_LABEL} bytes"));
    tags
}

impl Settings for Check {
    fn read(keys: &mut Section) -> Self {
        let http = keys.parse("http", "a path that begins with a slash", |path| {
            let path = path.as_str()?;
            let good = path.starts_with('/') && path.parse::<PathAndQuery>().is_ok();
            good.then(|| path.to_owned())
        });
        let grpc = keys.has("grpc").then(|| keys.text("grpc", 0..=253, None));
        let tcp = keys.flag("tcp", false);
        let ways = [http.is_some(), grpc.is_some(), tcp];
        let one = ways.into_iter().filter(|set| *set).count() == 1;
        keys.ensure(one, "", "exactly one of http, grpc and tcp");
        let interval = MILLISECOND.saturating_mul(100)..=MINUTE.saturating_mul(10);
        let timeout = MILLISECOND.saturating_mul(10)..=MINUTE;
        Self {
            http,
            grpc,
            tcp,
            interval: keys.duration("interval", interval, SECOND.saturating_mul(5)),
            timeout: keys.duration("timeout", timeout, SECOND),
            unhealthy_after: keys.whole("unhealthy_after", 1..=100, 3),
            healthy_after: keys.whole("healthy_after", 1..=100, 2),
        }
    }
}
