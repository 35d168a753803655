//! What the sources' sections of the configuration share: durations as people write them, secrets
//! that are named and never written, TLS files, and the errors that say which field accepts what.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// A field outside of what it accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {accepts}")]
pub struct Invalid {
    /// The field, from the top of the configuration, such as `etcd.endpoints`.
    pub field: String,
    /// What it accepts.
    pub accepts: String,
}

impl Invalid {
    /// A field and what it accepts.
    pub fn new(field: impl Into<String>, accepts: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            accepts: accepts.into(),
        }
    }
}

/// Durations as `500ms`, `10s`, `5m`.
pub mod human {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// The text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text)
            .map_err(|e| de::Error::custom(format!("{text:?} is not a duration like 10s: {e}")))
    }
}

/// Lists of durations as `["100ms", "1s"]`.
pub mod human_list {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// A text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        Vec::<String>::deserialize(from)?
            .iter()
            .map(|text| {
                humantime::parse_duration(text).map_err(|e| {
                    de::Error::custom(format!("{text:?} is not a duration like 10s: {e}"))
                })
            })
            .collect()
    }
}

/// Fails unless `value` lies in `range`.
pub(crate) fn within(
    field: &str,
    value: Duration,
    least: Duration,
    most: Duration,
) -> Result<(), Invalid> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let text = humantime::format_duration;
    Err(Invalid::new(
        field,
        format!("a duration from {} to {}", text(least), text(most)),
    ))
}

/// A secret, kept out of every log: its text is reached by [`Secret::expose`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into custody.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one who needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a secret is: a file (its last line break is not part of it) or an environment variable.
/// Never the configuration itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// Read from this file, again with every new connection.
    File(PathBuf),
    /// Read from this environment variable.
    Env(String),
}

impl SecretRef {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read; the text names the place and not the secret.
    pub fn read(&self) -> Result<Secret, String> {
        match self {
            Self::File(path) => read_text(path).map(|text| {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Secret(text.strip_suffix('\r').unwrap_or(text).to_owned())
            }),
            Self::Env(name) => std::env::var(name)
                .map(Secret)
                .map_err(|_| format!("environment variable {name} is not set")),
        }
    }
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// TLS. Servers are always verified; without `ca`, against the system's roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// PEM file of the authorities that may sign the server's certificate.
    pub ca: Option<PathBuf>,
    /// PEM file of this client's certificate, for mutual TLS; with `key`.
    pub cert: Option<PathBuf>,
    /// PEM file of this client's key.
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the one connected to. etcd only.
    pub server_name: Option<String>,
}

impl Tls {
    /// # Errors
    /// A certificate without a key or the other way round.
    pub(crate) fn check(&self, section: &str) -> Result<(), Invalid> {
        match (&self.cert, &self.key) {
            (Some(_), None) => Err(Invalid::new(
                format!("{section}.tls.key"),
                "must be set with cert",
            )),
            (None, Some(_)) => Err(Invalid::new(
                format!("{section}.tls.cert"),
                "must be set with key",
            )),
            _ => Ok(()),
        }
    }
}

/// Whether the host of `authority` (`host`, `host:port`, `[v6]:port`) is this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => match authority.rsplit_once(':') {
            Some((host, _)) if !host.contains(':') => host,
            _ => authority,
        },
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (authority, expect) in [
            ("127.0.0.1:2379", true),
            ("127.9.9.9", true),
            ("[::1]:2379", true),
            ("::1", true),
            ("localhost:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost.example.com:1", false),
            ("10.0.0.1:2379", false),
            ("[2001:db8::1]:2379", false),
        ] {
            assert_eq!(is_loopback(authority), expect, "{authority}");
        }
    }
}
