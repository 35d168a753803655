//! The sources' sections of the configuration: all of them, `state` and `file`; the other sources
//! have their own.
//!
//! Plain text leaves this machine only where `plaintext: true` says so by name.

use std::path::PathBuf;
use std::time::Duration;

use pintle_contract::{AddressPolicy, Cidr};
use pintle_settings::{DAY, HOUR, Invalid, MILLISECOND, SECOND, Section, Settings};
use pintle_state::{Protection, Source};
use serde_json::Value;

use super::etcd::EtcdConfig;
use super::jetstream::{APART, NatsConfig};
use super::kubernetes::KubernetesConfig;
use super::settings::path;

/// Everything that [`super::start`] needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcesConfig {
    /// This agent's id: 1 to 100 of `[A-Za-z0-9._-]`, unique in the fleet; names its consumer.
    pub agent: String,
    /// The merged state.
    pub state: StateConfig,
    /// The registry.
    pub etcd: Option<EtcdConfig>,
    /// The EndpointSlices of a cluster.
    pub kubernetes: Option<KubernetesConfig>,
    /// The events.
    pub nats: Option<NatsConfig>,
    /// The file of services.
    pub file: Option<FileConfig>,
}

impl Settings for SourcesConfig {
    fn read(keys: &mut Section) -> Self {
        let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let agent = keys.required("agent", "1 to 100 characters of [A-Za-z0-9._-]", |agent| {
            let good = |agent: &&str| (1..=100).contains(&agent.len()) && agent.bytes().all(named);
            agent.as_str().filter(good).map(ToOwned::to_owned)
        });
        Self {
            agent: agent.unwrap_or_default(),
            state: keys.section("state").unwrap_or_default(),
            etcd: keys.section("etcd"),
            kubernetes: keys.section("kubernetes"),
            nats: keys.section("nats"),
            file: keys.section("file"),
        }
    }
}

impl SourcesConfig {
    /// Whose whole content says that what is served is right: the greatest source that is there.
    pub(super) const fn decides(&self) -> Source {
        match (&self.etcd, &self.kubernetes) {
            (Some(_), _) => Source::Registry,
            (None, Some(_)) => Source::Kubernetes,
            (None, None) => Source::File,
        }
    }

    /// `fresh`, but for what the state and the sources were built with, and the names of what would
    /// have been another.
    ///
    /// # Errors
    /// What stays does not go with what is new.
    pub fn take_over(&self, mut fresh: Self) -> Result<(Self, Vec<&'static str>), Invalid> {
        let mut kept = Vec::new();
        keep("agent", &self.agent, &mut fresh.agent, &mut kept);
        keep("state", &self.state, &mut fresh.state, &mut kept);
        if let (Some(is), Some(fresh)) = (&self.etcd, &mut fresh.etcd) {
            keep("etcd.services", &is.services, &mut fresh.services, &mut kept);
            keep("etcd.policies", &is.policies, &mut fresh.policies, &mut kept);
        } else {
            keep("etcd", &self.etcd, &mut fresh.etcd, &mut kept);
        }
        if let (Some(is), Some(fresh)) = (&self.nats, &mut fresh.nats) {
            keep("nats.prefix", &is.prefix, &mut fresh.prefix, &mut kept);
            keep("nats.buffer", &is.buffer, &mut fresh.buffer, &mut kept);
        } else {
            keep("nats", &self.nats, &mut fresh.nats, &mut kept);
        }
        if self.file.is_none() || fresh.file.is_none() {
            keep("file", &self.file, &mut fresh.file, &mut kept);
        }
        if self.kubernetes.is_none() || fresh.kubernetes.is_none() {
            keep("kubernetes", &self.kubernetes, &mut fresh.kubernetes, &mut kept);
        }
        if let Some(nats) = &fresh.nats
            && !nats.subjects_are_apart()
        {
            return Err(Invalid::new("nats.dlq_prefix", APART));
        }
        Ok((fresh, kept))
    }
}

fn keep<T: Clone + PartialEq>(
    name: &'static str,
    is: &T,
    fresh: &mut T,
    kept: &mut Vec<&'static str>,
) {
    if is != fresh {
        fresh.clone_from(is);
        kept.push(name);
    }
}

/// The `state` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateConfig {
    /// Where the last good state is kept; without it a cold start waits for a source.
    pub dir: Option<PathBuf>,
    /// Ranges in which loopback and private addresses are good, such as `10.0.0.0/8`. Default: the
    /// private networks of RFC 1918, 6598 and 4193; loopback is not among them.
    pub allow: Option<Vec<Cidr>>,
    /// Whether removals are held back. Only this turns it off.
    pub protect: bool,
    /// In which one removal of a service may go untested; 1s to 1h.
    pub protect_window: Duration,
    /// Bytes of all values that are accepted, of all sources together; 1 MiB to 4 GiB.
    pub budget: u64,
    /// `memory.budget` of the modules: a policy that needs more of every VM is refused; 1 MiB to
    /// 512 MiB.
    pub vm_budget: u64,
}

const MIB: u64 = 1 << 20;

impl Default for StateConfig {
    fn default() -> Self {
        let rules = Protection::default();
        Self {
            dir: None,
            allow: None,
            protect: rules.enabled,
            protect_window: rules.window,
            budget: 128 * MIB,
            vm_budget: pintle_policy::select::DEFAULT_BUDGET,
        }
    }
}

impl Settings for StateConfig {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let range = |path: &str, value: Value| {
            let range = value.as_str().and_then(|range| range.parse().ok());
            let accepts = "a range such as 10.0.0.0/8, with no bit set behind its prefix";
            range.ok_or_else(|| Invalid::new(path, accepts).found(&value))
        };
        // Files of before have these two: still good, and without a meaning since removals are
        // tried.
        let _: u8 = keys.whole("protect_percent", 1..=100, 15);
        let _ = keys.duration("protect_grace", Duration::ZERO..=DAY, Duration::ZERO);
        Self {
            dir: path(keys, "dir"),
            allow: keys.list("allow", 0..=1024, range),
            protect: keys.flag("protect", default.protect),
            protect_window: keys.duration("protect_window", SECOND..=HOUR, default.protect_window),
            budget: keys.size("budget", MIB..=4096 * MIB, default.budget),
            vm_budget: keys.size("vm_budget", MIB..=512 * MIB, default.vm_budget),
        }
    }
}

impl StateConfig {
    /// Which addresses endpoints may have.
    #[must_use]
    pub fn addresses(&self) -> AddressPolicy {
        let allow = |allow: &Vec<Cidr>| AddressPolicy { allow: allow.clone() };
        self.allow.as_ref().map_or_else(AddressPolicy::default, allow)
    }

    /// The rules of removal.
    #[must_use]
    pub const fn protection(&self) -> Protection {
        Protection { enabled: self.protect, window: self.protect_window }
    }
}

/// The `file` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileConfig {
    /// A JSON or YAML file of services.
    pub path: PathBuf,
    /// How often it is looked at, 50ms to 1h.
    pub poll: Duration,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), poll: Duration::from_millis(500) }
    }
}

impl Settings for FileConfig {
    fn read(keys: &mut Section) -> Self {
        let file = path(keys, "path");
        keys.ensure(file.is_some(), "path", "a path");
        let poll = MILLISECOND.saturating_mul(50)..=HOUR;
        Self {
            path: file.unwrap_or_default(),
            poll: keys.duration("poll", poll, Self::default().poll),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
