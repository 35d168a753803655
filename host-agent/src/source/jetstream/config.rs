//! The `nats` section of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use pintle_settings::{
    DAY, HOUR, Invalid, MILLISECOND, MINUTE, Section, Settings, duration_range, parse_duration,
};
use serde_json::Value;

use crate::source::settings::{SecretRef, Tls, path, servers, text};

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
    /// How long a stream that is created keeps events; at least the longest ttl, 24h, at most 30
    /// days.
    pub max_age: Duration,
    /// Bytes that a stream that is created holds, 1 MiB to 1 TiB.
    pub max_bytes: u64,
    /// How long a message stays with an agent that does not acknowledge it, by attempt; 1 to 16 of
    /// them.
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
    pub(crate) fn subjects_are_apart(&self) -> bool {
        apart(&self.prefix, &self.dlq_prefix)
    }
}

/// Whether no subject is below both prefixes.
fn apart(one: &str, other: &str) -> bool {
    let below = |a: &str, b: &str| format!("{a}.").starts_with(&format!("{b}."));
    !below(one, other) && !below(other, one)
}

/// What `nats.dlq_prefix` accepts.
pub(crate) const APART: &str = "subjects apart from nats.prefix";

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
            let good = apart(super::FLEET, prefix);
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
