//! The `etcd` section of the configuration.

use std::time::Duration;

use pintle_settings::{DAY, MINUTE, SECOND, Section, Settings};

use crate::source::formats::{SourceConfig, sources_apart};
use crate::source::settings::{SecretRef, Tls, servers, text};

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
    /// The endpoint of the attempt `attempt`; the members take turns. Empty where none is
    /// configured.
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
