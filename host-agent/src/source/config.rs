//! The sources' sections of the configuration: `etcd`, `nats`, `file`, `state`.
//!
//! As the user wrote them, with the defaults; `check` says which field accepts what. Plain text leaves
//! this machine only where `plaintext: true` says so by name.

use std::path::PathBuf;
use std::time::Duration;

use pintle_contract::{AddressPolicy, Cidr};
use pintle_state::Protection;
use serde::Deserialize;

use super::settings::{Invalid, SecretRef, Tls, human, human_list, is_loopback, within};

/// Everything that [`super::start`] needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourcesConfig {
    /// This agent's id: 1 to 100 of `[A-Za-z0-9._-]`, unique in the fleet; names its consumer.
    pub agent: String,
    /// The merged state.
    pub state: StateConfig,
    /// The registry.
    pub etcd: Option<EtcdConfig>,
    /// The events.
    pub nats: Option<NatsConfig>,
    /// The file of services.
    pub file: Option<FileConfig>,
}

impl SourcesConfig {
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !(1..=100).contains(&self.agent.len()) || !self.agent.bytes().all(named) {
            return Err(Invalid::new("agent", "1 to 100 characters of [A-Za-z0-9._-]"));
        }
        self.state.check()?;
        self.etcd.as_ref().map_or(Ok(()), EtcdConfig::check)?;
        self.nats.as_ref().map_or(Ok(()), NatsConfig::check)?;
        self.file.as_ref().map_or(Ok(()), FileConfig::check)
    }

    /// `fresh`, but for what the state and the sources were built with, and the names of what would have
    /// been another.
    #[must_use]
    pub fn take_over(&self, mut fresh: Self) -> (Self, Vec<&'static str>) {
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
        (fresh, kept)
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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateConfig {
    /// Where the last good state is kept; without it a cold start waits for a source.
    pub dir: Option<PathBuf>,
    /// Ranges in which loopback and private addresses are good, such as `10.0.0.0/8`. Default: the
    /// private networks of RFC 1918, 6598 and 4193; loopback is not among them.
    pub allow: Option<Vec<String>>,
    /// Whether removals are held back. Only this turns it off.
    pub protect: bool,
    /// Percent of a service's endpoints that may go within `protect_window`, 1 to 100.
    pub protect_percent: u8,
    /// 1s to 1h.
    #[serde(with = "human")]
    pub protect_window: Duration,
    /// How long a service's last endpoint stays after its removal; 0s to 24h.
    #[serde(with = "human")]
    pub protect_grace: Duration,
}

impl Default for StateConfig {
    fn default() -> Self {
        let rules = Protection::default();
        Self {
            dir: None,
            allow: None,
            protect: rules.enabled,
            protect_percent: rules.percent,
            protect_window: rules.window,
            protect_grace: rules.grace,
        }
    }
}

impl StateConfig {
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        self.addresses()?;
        if !(1..=100).contains(&self.protect_percent) {
            return Err(Invalid::new("state.protect_percent", "a number from 1 to 100"));
        }
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
        within("state.protect_window", self.protect_window, Duration::from_secs(1), hour)?;
        within("state.protect_grace", self.protect_grace, Duration::ZERO, day)
    }

    /// Which addresses endpoints may have.
    ///
    /// # Errors
    /// A range is not one.
    pub fn addresses(&self) -> Result<AddressPolicy, Invalid> {
        let Some(allow) = &self.allow else {
            return Ok(AddressPolicy::default());
        };
        let parsed = allow.iter().map(|range| {
            range
                .parse::<Cidr>()
                .map_err(|e| Invalid::new("state.allow", format!("{range:?}: {e}")))
        });
        Ok(AddressPolicy { allow: parsed.collect::<Result<_, _>>()? })
    }

    /// The rules of removal.
    #[must_use]
    pub const fn protection(&self) -> Protection {
        Protection {
            enabled: self.protect,
            percent: self.protect_percent,
            window: self.protect_window,
            grace: self.protect_grace,
        }
    }
}

/// The `etcd` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdConfig {
    /// Members of one cluster, `http://host:port` or `https://host:port`, all of one scheme.
    pub endpoints: Vec<String>,
    /// The prefix of services, `/.../`.
    pub services: String,
    /// The prefix of policies, `/.../`.
    pub policies: String,
    /// The user, with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<SecretRef>,
    /// TLS; `https` endpoints use it with the system's roots when it is absent.
    pub tls: Tls,
    /// Allows plain text to addresses other than loopback.
    pub plaintext: bool,
    /// How often everything is listed again and compared, 1s to 24h, with a jitter of a tenth.
    #[serde(with = "human")]
    pub reconcile: Duration,
    /// How long etcd may be silent, 2s to 60s; it is asked for a sign of life three times as often.
    #[serde(with = "human")]
    pub silence: Duration,
    /// Keys of one page of a listing, 1 to 10,000; pages over 4 MiB are asked for again in halves.
    pub page: u32,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            services: "/services/".into(),
            policies: "/pintle/policies/".into(),
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

impl EtcdConfig {
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.endpoints.is_empty() {
            return Err(Invalid::new("etcd.endpoints", "at least one http(s)://host:port"));
        }
        let secure = self.endpoints.iter().any(|e| e.starts_with("https://"));
        for endpoint in &self.endpoints {
            check_server("etcd", "etcd.endpoints", endpoint, &["http", "https"], self.plaintext)?;
            if secure != endpoint.starts_with("https://") {
                return Err(Invalid::new("etcd.endpoints", "all http or all https"));
            }
        }
        if !secure && self.tls != Tls::default() {
            return Err(Invalid::new("etcd.endpoints", "https://host:port when etcd.tls is set"));
        }
        for (field, prefix) in
            [("etcd.services", &self.services), ("etcd.policies", &self.policies)]
        {
            let good = prefix.len() >= 2
                && prefix.len() <= 128
                && prefix.starts_with('/')
                && prefix.ends_with('/')
                && !prefix.chars().any(char::is_control);
            if !good {
                return Err(Invalid::new(
                    field,
                    "a prefix that begins and ends with a slash, at most 128 bytes",
                ));
            }
        }
        if self.services == self.policies {
            return Err(Invalid::new("etcd.policies", "another prefix than etcd.services"));
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(Invalid::new("etcd.password", "must be set with etcd.user, and only then"));
        }
        if !(1..=10_000).contains(&self.page) {
            return Err(Invalid::new("etcd.page", "a number from 1 to 10000"));
        }
        let seconds = Duration::from_secs;
        within("etcd.reconcile", self.reconcile, seconds(1), seconds(86_400))?;
        within("etcd.silence", self.silence, seconds(2), seconds(60))?;
        self.tls.check("etcd")
    }
}

fn check_server(
    section: &str,
    field: &str,
    url: &str,
    schemes: &[&str; 2],
    plaintext: bool,
) -> Result<(), Invalid> {
    let [plain, secure] = schemes;
    let accepts = || Invalid::new(field, format!("{plain}://host:port or {secure}://host:port"));
    let (scheme, rest) = url.split_once("://").ok_or_else(accepts)?;
    if !schemes.contains(&scheme) {
        return Err(accepts());
    }
    if rest.contains('@') {
        return Err(Invalid::new(field, "no secrets in the address; use user, password or token"));
    }
    let authority: http::uri::Authority = rest.parse().map_err(|_| accepts())?;
    if authority.port_u16().is_none_or(|port| port == 0) {
        return Err(accepts());
    }
    if scheme == *plain && !plaintext && !is_loopback(authority.as_str()) {
        return Err(Invalid::new(
            field,
            format!(
                "{secure}:// for an address other than loopback, unless {section}.plaintext is true"
            ),
        ));
    }
    Ok(())
}

/// The `nats` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
    #[serde(with = "human")]
    pub max_age: Duration,
    /// Bytes that a stream that is created holds, 1 MiB to 1 TiB.
    pub max_bytes: u64,
    /// How long a message stays with an agent that does not acknowledge it, by attempt; 1 to 16 of them.
    #[serde(with = "human_list")]
    pub backoff: Vec<Duration>,
    /// Attempts per message; more than there are entries in `backoff`, at most 1,000.
    pub max_deliver: u16,
    /// Messages with this agent at once, 1 to 65,536.
    pub max_ack_pending: u32,
    /// An agent's consumer is dropped when it has been away this long; 1m to 30 days.
    #[serde(with = "human")]
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
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.servers.is_empty() {
            return Err(Invalid::new("nats.servers", "at least one nats://host:port"));
        }
        let secure = self.servers.iter().any(|s| s.starts_with("tls://"));
        for server in &self.servers {
            check_server("nats", "nats.servers", server, &["nats", "tls"], self.plaintext)?;
            if secure != server.starts_with("tls://") {
                return Err(Invalid::new("nats.servers", "all nats or all tls"));
            }
        }
        if !secure && self.tls != Tls::default() {
            return Err(Invalid::new("nats.servers", "tls://host:port when nats.tls is set"));
        }
        let token = |text: &str| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        for (field, name) in [("nats.stream", &self.stream), ("nats.dlq_stream", &self.dlq_stream)]
        {
            if !token(name) {
                return Err(Invalid::new(field, "1 to 64 characters of [A-Za-z0-9_-]"));
            }
        }
        if self.stream == self.dlq_stream {
            return Err(Invalid::new("nats.dlq_stream", "another stream than nats.stream"));
        }
        for (field, prefix) in
            [("nats.prefix", &self.prefix), ("nats.dlq_prefix", &self.dlq_prefix)]
        {
            if !prefix.split('.').all(token) {
                return Err(Invalid::new(field, "tokens of [A-Za-z0-9_-] joined by full stops"));
            }
        }
        if self.domain.is_some() && self.api_prefix.is_some() {
            return Err(Invalid::new("nats.api_prefix", "not set with nats.domain"));
        }
        if self.domain.as_deref().is_some_and(|domain| !token(domain)) {
            return Err(Invalid::new("nats.domain", "1 to 64 characters of [A-Za-z0-9_-]"));
        }
        let api = |b: u8| b.is_ascii_graphic() && !matches!(b, b'*' | b'>');
        let is_api = |prefix: &str| {
            prefix.len() <= 128
                && prefix.split('.').all(|t| !t.is_empty())
                && prefix.bytes().all(api)
        };
        if self.api_prefix.as_deref().is_some_and(|prefix| !is_api(prefix)) {
            return Err(Invalid::new(
                "nats.api_prefix",
                "tokens joined by full stops, no wildcard",
            ));
        }
        let below = |a: &str, b: &str| format!("{a}.").starts_with(&format!("{b}."));
        for (field, prefix) in
            [("nats.prefix", &self.prefix), ("nats.dlq_prefix", &self.dlq_prefix)]
        {
            // A stream over them would keep, and acknowledge, what agents ask each other.
            if below(super::jetstream::FLEET, prefix) || below(prefix, super::jetstream::FLEET) {
                return Err(Invalid::new(field, "subjects apart from pintle.fleet"));
            }
        }
        if below(&self.prefix, &self.dlq_prefix) || below(&self.dlq_prefix, &self.prefix) {
            return Err(Invalid::new("nats.dlq_prefix", "subjects apart from nats.prefix"));
        }
        let (seconds, day) = (Duration::from_secs, Duration::from_secs(86_400));
        within("nats.max_age", self.max_age, day, day.saturating_mul(30))?;
        within("nats.inactive", self.inactive, seconds(60), day.saturating_mul(30))?;
        if !(1..=16).contains(&self.backoff.len()) {
            return Err(Invalid::new("nats.backoff", "1 to 16 durations"));
        }
        for pause in &self.backoff {
            within("nats.backoff", *pause, Duration::from_millis(100), seconds(3600))?;
        }
        if usize::from(self.max_deliver) <= self.backoff.len() || self.max_deliver > 1000 {
            return Err(Invalid::new(
                "nats.max_deliver",
                "more than there are entries in nats.backoff, at most 1000",
            ));
        }
        for (field, value, range) in [
            ("nats.replicas", u64::from(self.replicas), 1..=5),
            ("nats.max_bytes", self.max_bytes, 1 << 20..=1 << 40),
            ("nats.max_ack_pending", u64::from(self.max_ack_pending), 1..=65_536),
            ("nats.buffer", u64::from(self.buffer), 1..=65_536),
        ] {
            if !range.contains(&value) {
                let accepts = format!("a number from {} to {}", range.start(), range.end());
                return Err(Invalid::new(field, accepts));
            }
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(Invalid::new("nats.password", "must be set with nats.user, and only then"));
        }
        let ways = [
            self.user.is_some(),
            self.token.is_some(),
            self.nkey.is_some(),
            self.credentials.is_some(),
        ];
        if ways.into_iter().filter(|set| *set).count() > 1 {
            return Err(Invalid::new("nats", "one of user, token, nkey and credentials"));
        }
        self.tls.check("nats")
    }
}

/// The `file` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// A JSON or YAML file of services.
    pub path: PathBuf,
    /// How often it is looked at, 50ms to 1h.
    #[serde(with = "human")]
    pub poll: Duration,
}

impl Default for FileConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), poll: Duration::from_millis(500) }
    }
}

impl FileConfig {
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.path.as_os_str().is_empty() {
            return Err(Invalid::new("file.path", "a path"));
        }
        within("file.poll", self.poll, Duration::from_millis(50), Duration::from_secs(3600))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
