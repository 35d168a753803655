//! `pintle run`'s configuration: a file, the environment and flags, merged before anything is checked.
//!
//! Each layer is turned into the same tree and laid over the one before (file, environment,
//! flags), and the tree is read once. So a flag wins over the environment and the environment over the
//! file for every key alike, and there is one place that refuses: a key that is not known, a value
//! out of range, a variable `PINTLE_*` that means nothing, each by name with what is accepted.
//!
//! Sections of the sources (`state`, `etcd`, `nats`, `file`, `register`) are theirs; here are those of
//! the servers. Lists are replaced, not appended to.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::registration::RegisterConfig;
use crate::serve::admin::AdminOptions;
use crate::serve::socket::{SocketOptions, group_id};
use crate::serve::transport::TlsFiles;
use crate::source::{Invalid, SourcesConfig, human};

/// Where the admin address is unless said otherwise; the CLI looks there.
pub const ADMIN: &str = "127.0.0.1:19100";
/// Where the socket is unless said otherwise.
pub const SOCKET: &str = "/run/pintle/agent.sock";
/// Bytes of a configuration file.
const MAX_FILE: u64 = 1 << 20;

/// Everything that `pintle run` needs to know, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Sources and state.
    pub sources: SourcesConfig,
    /// The proxies' socket.
    pub socket: SocketOptions,
    /// TCP with mutual TLS, if asked for.
    pub tcp: Option<(SocketAddr, TlsFiles)>,
    /// The admin address.
    pub admin: AdminOptions,
    /// Endpoints with series of their own.
    pub max_endpoint_series: usize,
    /// How to log.
    pub log: LogConfig,
    /// How long a shutdown may take.
    pub deadline: Duration,
    /// Instances that this agent keeps registered.
    pub register: Option<RegisterConfig>,
}

/// The `log` section.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or directives such as
    /// `info,pintle_agent::serve=debug`.
    pub level: String,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// The configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// The file is not YAML (or JSON, which is YAML).
    #[error("{0}: {1}")]
    Parse(PathBuf, serde_yaml_ng::Error),
    /// A key is not known or a value is none of what is accepted.
    #[error("{0}")]
    Invalid(#[from] Invalid),
}

/// One value that can be given outside of the file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `--flag`, without the dashes.
    pub flag: &'static str,
    /// The variable.
    pub env: &'static str,
    /// Where it stands in the file.
    pub path: &'static [&'static str],
    /// A list: repeatable as a flag, comma-separated in the environment.
    pub list: bool,
}

/// What can be given by flag or environment.
pub const KEYS: &[Key] = &[
    key("agent-id", "PINTLE_AGENT_ID", &["agent"], false),
    key("etcd", "PINTLE_ETCD", &["etcd", "endpoints"], true),
    key("prefix", "PINTLE_PREFIX", &["etcd", "services"], false),
    key("nats", "PINTLE_NATS", &["nats", "servers"], true),
    key("file", "PINTLE_FILE", &["file", "path"], false),
    key("state-dir", "PINTLE_STATE_DIR", &["state", "dir"], false),
    key("allow", "PINTLE_ALLOW", &["state", "allow"], true),
    key("socket", "PINTLE_SOCKET", &["socket", "path"], false),
    key("admin", "PINTLE_ADMIN", &["admin", "listen"], false),
    key("log-format", "PINTLE_LOG_FORMAT", &["log", "format"], false),
    key("log-level", "PINTLE_LOG_LEVEL", &["log", "level"], false),
];

/// Variables that mean something beside [`KEYS`].
const OTHER_ENV: &[&str] = &["PINTLE_CONFIG", "PINTLE_OUTPUT"];

const fn key(
    flag: &'static str,
    env: &'static str,
    path: &'static [&'static str],
    list: bool,
) -> Key {
    Key { flag, env, path, list }
}

/// What is laid over the file: flags by name, with their values.
pub type Flags = BTreeMap<&'static str, Vec<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSocket {
    path: PathBuf,
    mode: String,
    group: Option<String>,
    allow_uids: Vec<u32>,
    allow_gids: Vec<u32>,
}

impl Default for RawSocket {
    fn default() -> Self {
        Self {
            path: SOCKET.into(),
            mode: "0600".to_owned(),
            group: None,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
    listen: SocketAddr,
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAdmin {
    listen: SocketAddr,
    allow_remote: bool,
    hosts: Vec<String>,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 19100)),
            allow_remote: false,
            hosts: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawMetrics {
    max_endpoints: usize,
}

impl Default for RawMetrics {
    fn default() -> Self {
        // 10,000 endpoints give about 60,000 series, a large but common size of one target.
        Self { max_endpoints: 10_000 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawShutdown {
    #[serde(with = "human")]
    deadline: Duration,
}

impl Default for RawShutdown {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

const SECTIONS: &[&str] = &[
    "admin", "agent", "etcd", "file", "log", "metrics", "nats", "register", "shutdown", "socket",
    "state", "tcp",
];

// === impl Config ===

impl Config {
    /// Reads the file, if one is named, and lays environment and flags over it.
    ///
    /// # Errors
    /// [`ConfigError`] names what is wrong and what is accepted.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, ConfigError> {
        let tree = match file {
            Some(path) => read(path)?,
            None => Value::Null,
        };
        Ok(Self::merge(tree, env, flags)?)
    }

    /// Lays environment and flags over the tree of a file.
    ///
    /// # Errors
    /// The first field that is not known or out of range.
    pub fn merge(
        tree: Value,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, Invalid> {
        let mut tree = match tree {
            Value::Null => Map::new(),
            Value::Object(map) => map,
            _ => return Err(Invalid::new("the file", "a map of sections")),
        };
        for (name, value) in env {
            if let Some(key) = KEYS.iter().find(|key| key.env == name) {
                lay(&mut tree, key, key.split(&value));
            } else if name.starts_with("PINTLE_") && !is_expected(&name, &tree) {
                let known: Vec<&str> = KEYS.iter().map(|key| key.env).collect();
                return Err(Invalid::new(
                    name,
                    format!("not a variable that means something; known: {}", known.join(", ")),
                ));
            }
        }
        for key in KEYS {
            if let Some(values) = flags.get(key.flag) {
                lay(&mut tree, key, values.clone());
            }
        }
        Self::read(tree)
    }

    /// One section alone, for commands that need no more: environment and flags are laid over it as
    /// for the whole, and the other sections are not looked at.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn part<T: DeserializeOwned + Default>(
        name: &str,
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<T, ConfigError> {
        let mut tree = match file.map(read).transpose()? {
            Some(Value::Object(tree)) => tree,
            _ => Map::new(),
        };
        let env: BTreeMap<String, String> = env.into_iter().collect();
        for key in KEYS {
            if let Some(value) = env.get(key.env) {
                lay(&mut tree, key, key.split(value));
            }
            if let Some(values) = flags.get(key.flag) {
                lay(&mut tree, key, values.clone());
            }
        }
        Ok(section(&mut tree, name)?.unwrap_or_default())
    }

    fn read(mut tree: Map<String, Value>) -> Result<Self, Invalid> {
        if let Some(unknown) = tree.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
            return Err(Invalid::new(
                unknown.clone(),
                format!("not a section; known: {}", SECTIONS.join(", ")),
            ));
        }
        let agent = match tree.remove("agent") {
            None | Some(Value::Null) => hostname(),
            Some(Value::String(agent)) => agent,
            Some(_) => return Err(Invalid::new("agent", "text")),
        };
        let sources = SourcesConfig {
            agent: agent.clone(),
            state: section(&mut tree, "state")?.unwrap_or_default(),
            etcd: section(&mut tree, "etcd")?,
            nats: section(&mut tree, "nats")?,
            file: section(&mut tree, "file")?,
        };
        if sources.etcd.is_none() && sources.file.is_none() {
            return Err(Invalid::new(
                "etcd",
                "a source of services: give etcd (--etcd http://127.0.0.1:2379) or file \
                 (--file services.yaml)",
            ));
        }
        sources.check()?;
        let socket: RawSocket = section(&mut tree, "socket")?.unwrap_or_default();
        let tcp: Option<RawTcp> = section(&mut tree, "tcp")?;
        let admin: RawAdmin = section(&mut tree, "admin")?.unwrap_or_default();
        let metrics: RawMetrics = section(&mut tree, "metrics")?.unwrap_or_default();
        let shutdown: RawShutdown = section(&mut tree, "shutdown")?.unwrap_or_default();
        let log: LogConfig = section(&mut tree, "log")?.unwrap_or_default();
        let mut register: Option<RegisterConfig> = section(&mut tree, "register")?;
        if let Some(register) = &mut register {
            let Some(etcd) = &sources.etcd else {
                return Err(Invalid::new("register", "an etcd section to register in"));
            };
            register.etcd = etcd.clone();
            register.check()?;
        }
        if metrics.max_endpoints > 100_000 {
            return Err(Invalid::new("metrics.max_endpoints", "0 to 100000"));
        }
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(600));
        if !(least..=most).contains(&shutdown.deadline) {
            return Err(Invalid::new("shutdown.deadline", "1s to 10m"));
        }
        if let Some(register) = &register
            && register.drain >= shutdown.deadline
        {
            return Err(Invalid::new("shutdown.deadline", "a duration longer than register.drain"));
        }
        crate::logs::directives(&log.level).map_err(|error| Invalid::new("log.level", error))?;
        Ok(Self {
            socket: socket.check()?,
            tcp: tcp.map(|tcp| {
                let files = TlsFiles { cert: tcp.cert, key: tcp.key, client_ca: tcp.client_ca };
                (tcp.listen, files)
            }),
            admin: AdminOptions {
                agent,
                listen: admin.listen,
                allow_remote: admin.allow_remote,
                hosts: admin.hosts,
            },
            max_endpoint_series: metrics.max_endpoints,
            log,
            deadline: shutdown.deadline,
            register,
            sources,
        })
    }
}

impl Key {
    /// The values in a variable.
    fn split(&self, value: &str) -> Vec<String> {
        if self.list {
            value.split(',').map(|v| v.trim().to_owned()).collect()
        } else {
            vec![value.to_owned()]
        }
    }
}

impl RawSocket {
    fn check(self) -> Result<SocketOptions, Invalid> {
        let mode = u32::from_str_radix(&self.mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600 && mode & 0o007 == 0)
            .ok_or_else(|| {
                Invalid::new(
                    "socket.mode",
                    "octal text such as \"0600\" or \"0660\"; others get nothing",
                )
            })?;
        let group = self.group.map(|group| {
            group_id(&group).ok_or_else(|| {
                Invalid::new("socket.group", format!("a group of this machine, not {group:?}"))
            })
        });
        if !self.path.is_absolute() || self.path.as_os_str().len() > 103 {
            return Err(Invalid::new("socket.path", "an absolute path of at most 103 bytes"));
        }
        Ok(SocketOptions {
            path: self.path,
            mode,
            group: group.transpose()?,
            allow_uids: self.allow_uids,
            allow_gids: self.allow_gids,
        })
    }
}

fn read(path: &Path) -> Result<Value, ConfigError> {
    let fail = |error| ConfigError::Read(path.to_owned(), error);
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(Invalid::new(path.display().to_string(), "a file of at most 1 MiB").into());
    }
    let text = fs::read_to_string(path).map_err(fail)?;
    serde_yaml_ng::from_str(&text).map_err(|error| ConfigError::Parse(path.to_owned(), error))
}

fn section<T: DeserializeOwned>(
    tree: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, Invalid> {
    let value = match tree.remove(name) {
        None => return Ok(None),
        Some(Value::Null) => Value::Object(Map::new()),
        Some(value) => value,
    };
    serde_json::from_value(value).map(Some).map_err(|error| Invalid::new(name, error.to_string()))
}

fn lay(tree: &mut Map<String, Value>, key: &Key, values: Vec<String>) {
    let value = if key.list {
        Value::from(values)
    } else {
        Value::from(values.into_iter().next_back().unwrap_or_default())
    };
    match key.path {
        [name] => {
            tree.insert((*name).to_owned(), value);
        }
        [section, name] => {
            let section = tree.entry(*section).or_insert_with(|| Value::Object(Map::new()));
            if section.is_null() {
                *section = Value::Object(Map::new());
            }
            // A section that is no map is refused when it is read.
            if let Value::Object(section) = section {
                section.insert((*name).to_owned(), value);
            }
        }
        _ => {}
    }
}

/// A variable that is another's to read: named by a secret, or what Kubernetes sets in every pod beside
/// a service that is called `pintle`.
fn is_expected(name: &str, tree: &Map<String, Value>) -> bool {
    fn named(value: &Value, name: &str) -> bool {
        match value {
            Value::Object(map) => map.iter().any(|(key, value)| {
                (key == "env" && value.as_str() == Some(name)) || named(value, name)
            }),
            Value::Array(list) => list.iter().any(|value| named(value, name)),
            _ => false,
        }
    }
    let kubernetes = name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_");
    OTHER_ENV.contains(&name) || kubernetes || tree.values().any(|value| named(value, name))
}

fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(100)
        .collect();
    if name.is_empty() { "pintle".to_owned() } else { name }
}

#[cfg(test)]
mod tests;
