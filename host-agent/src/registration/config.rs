//! The `register` section of the configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use pintle_contract::{AddressPolicy, MAX_LABEL, MAX_LABELS, MAX_WEIGHT, is_name};
use serde::Deserialize;

use crate::source::{EtcdConfig, Invalid, human, within};

/// Instances that this process keeps registered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegisterConfig {
    /// The registry: the configuration's own `etcd` section, and no key of this one.
    #[serde(skip)]
    pub etcd: EtcdConfig,
    /// The instances; at least one.
    pub instances: Vec<Instance>,
    /// The lease, 5s to 1h; kept alive three times as often.
    #[serde(with = "human")]
    pub lease: Duration,
    /// How long an instance stays `draining` at shutdown before it is deleted, 0s to 10m.
    #[serde(with = "human")]
    pub drain: Duration,
}

impl Default for RegisterConfig {
    fn default() -> Self {
        Self {
            etcd: EtcdConfig::default(),
            instances: Vec::new(),
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
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
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// How its health is found; without it, it is healthy while this process lives.
    #[serde(default)]
    pub check: Option<Check>,
}

/// A health check; exactly one of `http`, `grpc` and `tcp`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// GET this path at the instance; 200 to 299 is healthy.
    #[serde(default)]
    pub http: Option<String>,
    /// `grpc.health.v1.Health/Check` for this service (empty: the whole server); SERVING is healthy.
    #[serde(default)]
    pub grpc: Option<String>,
    /// A connection can be made.
    #[serde(default)]
    pub tcp: bool,
    /// How often, 100ms to 10m.
    #[serde(default = "interval", with = "human")]
    pub interval: Duration,
    /// How long an answer may take, 10ms to 1m.
    #[serde(default = "timeout", with = "human")]
    pub timeout: Duration,
    /// Failures in a row until it is unhealthy, 1 to 100.
    #[serde(default = "unhealthy_after")]
    pub unhealthy_after: u32,
    /// Successes in a row until it is healthy again, 1 to 100.
    #[serde(default = "healthy_after")]
    pub healthy_after: u32,
}

const fn interval() -> Duration {
    Duration::from_secs(5)
}

const fn timeout() -> Duration {
    Duration::from_secs(1)
}

const fn unhealthy_after() -> u32 {
    3
}

const fn healthy_after() -> u32 {
    2
}

impl RegisterConfig {
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        self.etcd.check()?;
        let seconds = Duration::from_secs;
        within("register.lease", self.lease, seconds(5), seconds(3600))?;
        within("register.drain", self.drain, Duration::ZERO, seconds(600))?;
        if self.instances.is_empty() || self.instances.len() > 1000 {
            return Err(Invalid::new("register.instances", "1 to 1000 instances"));
        }
        for (at, instance) in self.instances.iter().enumerate() {
            instance.check(&format!("register.instances[{at}]"))?;
            let same = |other: &Instance| other.name == instance.name && other.id == instance.id;
            if self.instances.iter().filter(|other| same(other)).count() > 1 {
                return Err(Invalid::new(
                    format!("register.instances[{at}].id"),
                    "an id that no other instance of the service has",
                ));
            }
        }
        Ok(())
    }
}

impl Instance {
    fn check(&self, at: &str) -> Result<(), Invalid> {
        for (field, name) in [("name", &self.name), ("id", &self.id)] {
            if !is_name(name) {
                return Err(Invalid::new(
                    format!("{at}.{field}"),
                    "1 to 253 characters of [A-Za-z0-9._-]",
                ));
            }
        }
        if AddressPolicy::trusting().check(self.address).is_err() {
            return Err(Invalid::new(
                format!("{at}.address"),
                "an address of one host, not link-local, metadata, multicast or unspecified",
            ));
        }
        if self.port == 0 {
            return Err(Invalid::new(format!("{at}.port"), "1 to 65535"));
        }
        if let Some(weight) = self.metadata.get("weight")
            && !weight.parse::<u32>().is_ok_and(|weight| weight <= MAX_WEIGHT)
        {
            return Err(Invalid::new(
                format!("{at}.metadata.weight"),
                format!("a number from 0 to {MAX_WEIGHT}"),
            ));
        }
        let labels = |map: usize, longest: usize| map <= MAX_LABELS && longest <= MAX_LABEL;
        let longest =
            |texts: &mut dyn Iterator<Item = &String>| texts.map(String::len).max().unwrap_or(0);
        let metadata = longest(&mut self.metadata.iter().flat_map(|(k, v)| [k, v]));
        if !labels(self.metadata.len(), metadata) {
            return Err(Invalid::new(format!("{at}.metadata"), "at most 64 entries of 4 KiB"));
        }
        if !labels(self.tags.len(), longest(&mut self.tags.iter())) {
            return Err(Invalid::new(format!("{at}.tags"), "at most 64 tags of 4 KiB"));
        }
        self.check.as_ref().map_or(Ok(()), |check| check.check(&format!("{at}.check")))
    }
}

impl Check {
    fn check(&self, at: &str) -> Result<(), Invalid> {
        let ways = [self.http.is_some(), self.grpc.is_some(), self.tcp];
        if ways.into_iter().filter(|set| *set).count() != 1 {
            return Err(Invalid::new(at, "exactly one of http, grpc and tcp"));
        }
        if let Some(path) = &self.http
            && (!path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err())
        {
            return Err(Invalid::new(format!("{at}.http"), "a path that begins with a slash"));
        }
        let millis = Duration::from_millis;
        within(&format!("{at}.interval"), self.interval, millis(100), millis(600_000))?;
        within(&format!("{at}.timeout"), self.timeout, millis(10), millis(60_000))?;
        for (field, times) in
            [("unhealthy_after", self.unhealthy_after), ("healthy_after", self.healthy_after)]
        {
            if !(1..=100).contains(&times) {
                return Err(Invalid::new(format!("{at}.{field}"), "a number from 1 to 100"));
            }
        }
        Ok(())
    }
}
