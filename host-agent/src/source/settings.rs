//! What the sources' sections of the configuration share: secrets that are named and never written,
//! TLS files.

use std::fmt;
use std::path::{Path, PathBuf};

use pintle_settings::{Found, Invalid, Section, Settings};
use serde_json::Value;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretRef {
    /// Read from this file, again with every new connection.
    File(PathBuf),
    /// Read from this environment variable.
    Env(String),
}

const SECRET_FORM: &str =
    "{file: PATH} or {env: NAME}; secrets are not written into the configuration";

impl SecretRef {
    /// The secret that `key` names. What is refused is not repeated, because it may be the secret
    /// of somebody who wrote it into the configuration.
    pub(crate) fn named(keys: &mut Section, key: &'static str) -> Option<Self> {
        let value = keys.take(key)?;
        let one = value.as_object().filter(|map| map.len() == 1).and_then(|map| map.iter().next());
        let secret = match one {
            Some((way, Value::String(place))) if way == "file" => Some(Self::File(place.into())),
            Some((way, Value::String(place))) if way == "env" => Some(Self::Env(place.clone())),
            _ => None,
        };
        if secret.is_none() {
            keys.refuse(key, SECRET_FORM, Found::Untold);
        }
        secret
    }
}

impl SecretRef {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read; the text names the place and not the secret.
    pub fn read(&self) -> Result<Secret, Unreadable> {
        match self {
            Self::File(path) => read_text(path).map(|text| {
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Secret(text.strip_suffix('\r').unwrap_or(text).to_owned())
            }),
            Self::Env(name) => {
                std::env::var(name).map(Secret).map_err(|_| Unreadable::Variable(name.clone()))
            }
        }
    }
}

/// Why a file or variable that the configuration names gives no text.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The file can't be read.
    #[error("{}: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        why: std::io::Error,
    },
    /// The environment has no such variable.
    #[error("environment variable {0} is not set")]
    Variable(String),
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, Unreadable> {
    std::fs::read_to_string(path).map_err(|why| Unreadable::File { path: path.to_owned(), why })
}

/// TLS. Servers are always verified; without `ca`, against the system's roots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

impl Settings for Tls {
    fn read(keys: &mut Section) -> Self {
        let (cert, key) = (path(keys, "cert"), path(keys, "key"));
        keys.ensure(cert.is_none() || key.is_some(), "key", "set with cert");
        keys.ensure(key.is_none() || cert.is_some(), "cert", "set with key");
        Self { ca: path(keys, "ca"), cert, key, server_name: text(keys, "server_name") }
    }
}

/// A path, not empty.
pub(crate) fn path(keys: &mut Section, key: &'static str) -> Option<PathBuf> {
    let path = |value: &Value| value.as_str().filter(|path| !path.is_empty()).map(PathBuf::from);
    keys.parse(key, "a path", path)
}

/// A text that may be left out.
pub(crate) fn text(keys: &mut Section, key: &'static str) -> Option<String> {
    keys.has(key).then(|| keys.text(key, 1..=MAX_TEXT, None))
}

/// Bytes of a text in the configuration, at most.
const MAX_TEXT: usize = 4096;

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

/// Servers of one cluster, and whether they are spoken to by TLS.
pub(crate) fn servers(
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
