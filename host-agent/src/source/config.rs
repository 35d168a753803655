//! The sources' sections of the configuration: `etcd`, `nats`, `file`, `state`. `kubernetes` has its own.
//!
//! Plain text leaves this machine only where `plaintext: true` says so by name.

use std::path::PathBuf;
use std::time::Duration;

use pintle_contract::{AddressPolicy, Cidr};
use pintle_settings::{
    DAY, HOUR, Invalid, MILLISECOND, MINUTE, SECOND, Section, Settings, duration_range,
    parse_duration,
};
use pintle_state::{Protection, Source};
use serde_json::Value;

use super::formats::{SourceConfig, sources_apart};
use super::kubernetes::KubernetesConfig;
use super::settings::{SecretRef, Tls, is_loopback, path, text};

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

    /// `fresh`, but for what the state and the sources were built with, and the names of what would have
    /// been another.
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
    /// `memory.budget` of the modules: a policy that needs more of every VM is refused; 1 MiB to 512 MiB.
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
        // Files of before have these two: still good, and without a meaning since removals are tried.
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

/// The `etcd` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Members of one cluster, `http://host:port` or `https://host:port`, all of one scheme.
    pub endpoints: Vec<String>,
    /// The prefix of services, `/.../`.
    pub services: String,
    /// The prefix of policies, `/.../`.
    pub policies: String,
    /// Prefixes in the formats of other frameworks, beside `services`; at most 32.
    pub sources: Vec<SourceConfig>,
    /// The user, with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretRef>,
    /// TLS; `https` endpoints use it with the system's roots when it is absent.
    pub tls: Tls,
    /// Allows plain text to addresses other than loopback.
    pub plaintext: bool,
    /// How often everything is listed again and compared, 1s to 24h, with a jitter of a tenth.
    pub reconcile: Duration,
    /// How long etcd may be silent, 2s to 60s; it is asked for a sign of life three times as often.
    pub silence: Duration,
    /// Keys of one page of a listing, 1 to 10,000; pages over 4 MiB are asked for again in halves.
    pub page: u32,
}

impl EtcdConfig {
    /// The endpoint of the attempt `attempt`; the members take turns. Empty where none is configured.
    pub(crate) fn member(&self, attempt: usize) -> &str {
        let at = attempt % self.endpoints.len().max(1);
        self.endpoints.get(at).map_or("", String::as_str)
    }
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            services: "/services/".into(),
            policies: "/pintle/policies/".into(),
            sources: Vec::new(),
            user: None,
            password: None,
            tls: Tls::default(),
            plaintext: false,
            reconcile: Duration::from_secs(60),
            silence: Duration::from_secs(6),
            page: 500,
        }
    }
}

impl Settings for EtcdConfig {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let plaintext = keys.flag("plaintext", default.plaintext);
        let (endpoints, secure) = servers(keys, "endpoints", ["http", "https"], plaintext)
            .unwrap_or((default.endpoints, false));
        let tls: Tls = keys.section("tls").unwrap_or_default();
        let goes = secure || tls == Tls::default();
        keys.ensure(goes, "endpoints", "https://host:port when etcd.tls is set");
        let services = prefix(keys, "services").unwrap_or(default.services);
        let policies = prefix(keys, "policies").unwrap_or(default.policies);
        keys.ensure(services != policies, "policies", "another prefix than etcd.services");
        let sources = keys.list("sources", 0..=32, pintle_settings::read).unwrap_or_default();
        keys.accept(sources_apart(&sources, &services, &policies));
        let (user, password) = (text(keys, "user"), SecretRef::named(keys, "password"));
        let both = user.is_some() == password.is_some();
        keys.ensure(both, "password", "set with etcd.user, and only then");
        Self {
            endpoints,
            services,
            policies,
            sources,
            user,
            password,
            tls,
            plaintext,
            reconcile: keys.duration("reconcile", SECOND..=DAY, default.reconcile),
            silence: keys.duration("silence", SECOND.saturating_mul(2)..=MINUTE, default.silence),
            page: keys.whole("page", 1..=10_000, default.page),
        }
    }
}

/// A prefix of keys.
fn prefix(keys: &mut Section, key: &'static str) -> Option<String> {
    keys.parse(key, "a prefix that begins and ends with a slash, at most 128 bytes", |prefix| {
        let good = |prefix: &&str| {
            (2..=128).contains(&prefix.len())
                && prefix.starts_with('/')
                && prefix.ends_with('/')
                && !prefix.chars().any(char::is_control)
        };
        prefix.as_str().filter(good).map(ToOwned::to_owned)
    })
}

/// Servers of one cluster, and whether they are spoken to by TLS.
fn servers(
    keys: &mut Section,
    key: &'static str,
    schemes: [&str; 2],
    plaintext: bool,
) -> Option<(Vec<String>, bool)> {
    let [plain, secure] = schemes;
    let all = keys.list(key, 1..=64, |path, server| {
        // What was found is not repeated: somebody may have written a password into it.
        let server = server.as_str().unwrap_or_default();
        check_server(path, server, schemes, plaintext)?;
        Ok(server.to_owned())
    })?;
    let begins = format!("{secure}://");
    let is_secure = |server: &String| server.starts_with(&begins);
    let any = all.iter().any(is_secure);
    keys.ensure(any == all.iter().all(is_secure), key, format!("all {plain} or all {secure}"));
    Some((all, any))
}

fn check_server(
    path: &str,
    url: &str,
    [plain, secure]: [&str; 2],
    plaintext: bool,
) -> Result<(), Invalid> {
    let accepts = || Invalid::new(path, format!("{plain}://host:port or {secure}://host:port"));
    let (scheme, rest) = url.split_once("://").ok_or_else(accepts)?;
    if scheme != plain && scheme != secure {
        return Err(accepts());
    }
    if rest.contains('@') {
        return Err(Invalid::new(
            path,
            "an address with no secrets in it; use user, password or token",
        ));
    }
    let authority: http::uri::Authority = rest.parse().map_err(|_| accepts())?;
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err(accepts());
    }
    if scheme == plain && !plaintext && !is_loopback(authority.as_str()) {
        let section = path.split('.').next().unwrap_or(path);
        let accepts = format!(
            "{secure}:// for an address other than loopback, unless {section}.plaintext is true"
        );
        return Err(Invalid::new(path, accepts));
    }
    Ok(())
}

/// The `nats` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsConfig {
    /// Servers of one cluster, `nats://host:port` or `tls://host:port`.
    pub servers: Vec<String>,
    /// The JetStream domain, where the streams are behind a leafnode; not with `api_prefix`.
    pub domain: Option<String>,
    /// The prefix of JetStream's requests, where an account imports them; not with `domain`.
    pub api_prefix: Option<String>,
    /// The stream of events.
    pub stream: String,
    /// The first tokens of the events' subjects: `{prefix}.{kind}.>`.
    pub prefix: String,
    /// The stream of dead letters.
    pub dlq_stream: String,
    /// The first tokens of the dead letters' subjects: `{dlq_prefix}.>`.
    pub dlq_prefix: String,
    /// Whether streams that are absent are created. When not, they must be there.
    pub create: bool,
    /// Replicas of a stream that is created, 1 to 5.
    pub replicas: u8,
    /// How long a stream that is created keeps events; at least the longest ttl, 24h, at most 30 days.
    pub max_age: Duration,
    /// Bytes that a stream that is created holds, 1 MiB to 1 TiB.
    pub max_bytes: u64,
    /// How long a message stays with an agent that does not acknowledge it, by attempt; 1 to 16 of them.
    pub backoff: Vec<Duration>,
    /// Attempts per message; more than there are entries in `backoff`, at most 1,000.
    pub max_deliver: u16,
    /// Messages with this agent at once, 1 to 65,536.
    pub max_ack_pending: u32,
    /// An agent's consumer is dropped when it has been away this long; 1m to 30 days.
    pub inactive: Duration,
    /// Transitions kept while NATS is away, 1 to 65,536; the oldest are dropped beyond it.
    pub buffer: u32,
    /// The user, with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretRef>,
    /// A token.
    pub token: Option<SecretRef>,
    /// An nkey's seed.
    pub nkey: Option<SecretRef>,
    /// A credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// TLS; `tls://` servers use it with the system's roots when it is absent.
    pub tls: Tls,
    /// Allows plain text to addresses other than loopback.
    pub plaintext: bool,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".into()],
            domain: None,
            api_prefix: None,
            stream: "PINTLE_EVENTS".into(),
            prefix: "events".into(),
            dlq_stream: "PINTLE_DLQ".into(),
            dlq_prefix: "pintle.dlq".into(),
            create: true,
            replicas: 1,
            max_age: Duration::from_secs(24 * 3600),
            max_bytes: 1 << 30,
            // The first is also how long what was sent into a dead connection stays lost.
            backoff: vec![
                Duration::from_secs(2),
                Duration::from_secs(5),
                Duration::from_secs(15),
                Duration::from_secs(60),
            ],
            max_deliver: 20,
            max_ack_pending: 8192,
            inactive: Duration::from_secs(24 * 3600),
            buffer: 1024,
            user: None,
            password: None,
            token: None,
            nkey: None,
            credentials: None,
            tls: Tls::default(),
            plaintext: false,
        }
    }
}

impl NatsConfig {
    fn subjects_are_apart(&self) -> bool {
        apart(&self.prefix, &self.dlq_prefix)
    }
}

/// Whether no subject is below both prefixes.
fn apart(one: &str, other: &str) -> bool {
    let below = |a: &str, b: &str| format!("{a}.").starts_with(&format!("{b}."));
    !below(one, other) && !below(other, one)
}

const APART: &str = "subjects apart from nats.prefix";

impl Settings for NatsConfig {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let plaintext = keys.flag("plaintext", default.plaintext);
        let (servers, secure) = servers(keys, "servers", ["nats", "tls"], plaintext)
            .unwrap_or((default.servers, false));
        let tls: Tls = keys.section("tls").unwrap_or_default();
        let goes = secure || tls == Tls::default();
        keys.ensure(goes, "servers", "tls://host:port when nats.tls is set");
        let backoff = keys.list("backoff", 1..=16, pause).unwrap_or(default.backoff);
        let least = u16::try_from(backoff.len()).unwrap_or(u16::MAX);
        let max_deliver = keys.whole("max_deliver", 1..=1000, default.max_deliver);
        let more = "more than there are entries in nats.backoff";
        keys.ensure(max_deliver > least, "max_deliver", more);
        let (user, password) = (text(keys, "user"), SecretRef::named(keys, "password"));
        let both = user.is_some() == password.is_some();
        keys.ensure(both, "password", "set with nats.user, and only then");
        let nats = Self {
            servers,
            domain: stream(keys, "domain"),
            api_prefix: api_prefix(keys),
            stream: stream(keys, "stream").unwrap_or(default.stream),
            prefix: subjects(keys, "prefix").unwrap_or(default.prefix),
            dlq_stream: stream(keys, "dlq_stream").unwrap_or(default.dlq_stream),
            dlq_prefix: subjects(keys, "dlq_prefix").unwrap_or(default.dlq_prefix),
            create: keys.flag("create", default.create),
            replicas: keys.whole("replicas", 1..=5, default.replicas),
            max_age: keys.duration("max_age", DAY..=DAY.saturating_mul(30), default.max_age),
            max_bytes: keys.whole("max_bytes", 1 << 20..=1 << 40, default.max_bytes),
            backoff,
            max_deliver,
            max_ack_pending: keys.whole("max_ack_pending", 1..=65_536, default.max_ack_pending),
            inactive: keys.duration("inactive", MINUTE..=DAY.saturating_mul(30), default.inactive),
            buffer: keys.whole("buffer", 1..=65_536, default.buffer),
            user,
            password,
            token: SecretRef::named(keys, "token"),
            nkey: SecretRef::named(keys, "nkey"),
            credentials: path(keys, "credentials"),
            tls,
            plaintext,
        };
        let differ = nats.stream != nats.dlq_stream;
        keys.ensure(differ, "dlq_stream", "another stream than nats.stream");
        keys.ensure(nats.subjects_are_apart(), "dlq_prefix", APART);
        for (key, prefix) in [("prefix", &nats.prefix), ("dlq_prefix", &nats.dlq_prefix)] {
            // A stream over them would keep, and acknowledge, what agents ask each other.
            let good = apart(super::jetstream::FLEET, prefix);
            keys.ensure(good, key, "subjects apart from pintle.fleet");
        }
        let one = nats.domain.is_none() || nats.api_prefix.is_none();
        keys.ensure(one, "api_prefix", "absent where nats.domain is set");
        let ways = [
            nats.user.is_some(),
            nats.token.is_some(),
            nats.nkey.is_some(),
            nats.credentials.is_some(),
        ];
        let one = ways.into_iter().filter(|set| *set).count() <= 1;
        keys.ensure(one, "", "given one of user, token, nkey and credentials");
        nats
    }
}

/// An entry of `nats.backoff`.
fn pause(path: &str, value: Value) -> Result<Duration, Invalid> {
    let range = MILLISECOND.saturating_mul(100)..=HOUR;
    let pause = value.as_str().and_then(|text| parse_duration(text).ok());
    pause
        .filter(|pause| range.contains(pause))
        .ok_or_else(|| Invalid::new(path, duration_range(&range)).found(&value))
}

/// The name of a stream or of a domain.
fn stream(keys: &mut Section, key: &'static str) -> Option<String> {
    keys.parse(key, "1 to 64 characters of [A-Za-z0-9_-]", |name| {
        name.as_str().filter(|name| is_token(name)).map(ToOwned::to_owned)
    })
}

/// The prefix of JetStream's own subjects.
fn api_prefix(keys: &mut Section) -> Option<String> {
    keys.parse("api_prefix", "tokens joined by full stops, no wildcard", |prefix| {
        let prefix = prefix.as_str()?;
        let api = |b: u8| b.is_ascii_graphic() && !matches!(b, b'*' | b'>');
        let good = prefix.len() <= 128
            && prefix.split('.').all(|token| !token.is_empty())
            && prefix.bytes().all(api);
        good.then(|| prefix.to_owned())
    })
}

/// The first tokens of subjects.
fn subjects(keys: &mut Section, key: &'static str) -> Option<String> {
    keys.parse(key, "tokens of [A-Za-z0-9_-] joined by full stops", |prefix| {
        let prefix = prefix.as_str()?;
        let good = prefix.len() <= 255 && prefix.split('.').all(is_token);
        good.then(|| prefix.to_owned())
    })
}

fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
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
