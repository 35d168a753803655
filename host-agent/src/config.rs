//! `pintle run`'s configuration: a file, the environment and flags, merged before anything is
//! checked.
//!
//! Each layer is turned into the same tree and laid over the one before (file, environment, flags),
//! and the tree is read once. So a flag wins over the environment and the environment over the file
//! for every key alike, and there is one place that refuses: a key that is not known, a value out
//! of range, a variable `PINTLE_*` that means nothing, each by name with what is accepted.
//!
//! Sections of the sources (`state`, `etcd`, `nats`, `file`, `register`) are theirs; here are those
//! of the servers. Lists are replaced, not appended to.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pintle_settings::{Invalid, MINUTE, SECOND, Section, Settings};
use serde_json::{Map, Value};

use crate::registration::RegisterConfig;
use crate::serve::admin::AdminOptions;
use crate::serve::clusters::Template;
use crate::serve::socket::{SocketOptions, group_id};
use crate::serve::transport::TlsFiles;
use crate::source::SourcesConfig;

/// Where the admin address is unless said otherwise; the CLI looks there.
pub const ADMIN: &str = "127.0.0.1:19100";
/// Where the socket is unless said otherwise.
pub const SOCKET: &str = "/run/pintle/agent.sock";
/// Services of which every proxy is sent all, unless said otherwise: their names take 200 KiB of a
/// VM.
const ALL_UP_TO: usize = 2_000;
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
    /// The fleet's name in metrics.
    pub fleet: String,
    /// How to log.
    pub log: LogConfig,
    /// How long a shutdown may take.
    pub deadline: Duration,
    /// What clusters are made of, where the agent serves them.
    pub clusters: Option<Template>,
    /// Of so many services every proxy is sent all; of more, what it wants.
    pub all_up_to: usize,
    /// Instances that this agent keeps registered.
    pub register: Option<RegisterConfig>,
}

/// The `log` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or directives such as
    /// `info,pintle_agent::serve=debug`.
    pub level: String,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
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

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

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
            other => return Err(Invalid::new("the file", "a map of sections").found(&other)),
        };
        for (name, value) in env {
            if let Some(key) = KEYS.iter().find(|key| key.env == name) {
                lay(&mut tree, key, key.split(&value));
            } else if name.starts_with("PINTLE_") && !is_expected(&name, &tree) {
                let known: Vec<&str> = KEYS.iter().map(|key| key.env).collect();
                let accepts = format!("unset, or one of {}", known.join(", "));
                return Err(Invalid::new(name, accepts));
            }
        }
        for key in KEYS {
            if let Some(values) = flags.get(key.flag) {
                lay(&mut tree, key, values.clone());
            }
        }
        for (name, section) in &mut tree {
            // A section that is named and empty has its defaults.
            if section.is_null() && name != "agent" {
                *section = Value::Object(Map::new());
            }
        }
        pintle_settings::read("", Value::Object(tree))
    }

    /// One section alone, for commands that need no more: environment and flags are laid over it as
    /// for the whole, and the other sections are not looked at.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn part<T: Settings>(
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
        Ok(pintle_settings::read(name, tree.remove(name).unwrap_or_default())?)
    }
}

impl Settings for Config {
    fn read(keys: &mut Section) -> Self {
        if !keys.has("agent") {
            keys.preset("agent", hostname().into());
        }
        let sources = SourcesConfig::read(keys);
        let agent = sources.agent.clone();
        keys.ensure(
            sources.etcd.is_some() || sources.file.is_some() || sources.kubernetes.is_some(),
            "etcd",
            "there, or file, or kubernetes: a source of services \
             (--etcd http://127.0.0.1:2379 or --file services.yaml)",
        );
        let registers = keys.has("register");
        keys.ensure(!registers || sources.etcd.is_some(), "register", "beside an etcd section");
        let register = keys.section("register").and_then(|register: RegisterConfig| {
            keys.accept(register.within(sources.etcd.clone().unwrap_or_default()))
        });
        let deadline = SECOND.saturating_mul(10);
        let deadline = keys
            .section_with("shutdown", |keys| {
                keys.duration("deadline", SECOND..=MINUTE.saturating_mul(10), deadline)
            })
            .unwrap_or(deadline);
        let drains = register.as_ref().is_none_or(|register| register.drain < deadline);
        keys.ensure(drains, "shutdown.deadline", "longer than register.drain");
        let socket = keys.section_or_default("socket", socket);
        // 10,000 endpoints give about 60,000 series, a large but common size of one target.
        let (max_endpoint_series, fleet) = keys
            .section_with("metrics", |keys| {
                let most = keys.whole("max_endpoints", 0..=100_000, 10_000);
                (most, keys.text("fleet", 0..=100, String::new()))
            })
            .unwrap_or_else(|| (10_000, String::new()));
        let (clusters, all_up_to) = keys
            .section_with("serve", |keys| {
                (clusters(keys), keys.whole("all_up_to", 0..=100_000, ALL_UP_TO))
            })
            .unwrap_or((None, ALL_UP_TO));
        Self {
            clusters,
            all_up_to,
            admin: keys.section_or_default("admin", |keys| admin(keys, agent, &socket.path)),
            socket,
            tcp: keys.section_with("tcp", tcp),
            max_endpoint_series,
            fleet,
            log: keys.section_or_default("log", LogConfig::read),
            deadline,
            register,
            sources,
        }
    }
}

impl Settings for LogConfig {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let level = keys.parse("level", crate::log_level::LEVELS, |level| {
            level
                .as_str()
                .filter(|level| crate::log_level::directives(level).is_ok())
                .map(str::to_owned)
        });
        Self {
            format: keys.word("format", &formats, default.format),
            level: level.unwrap_or(default.level),
        }
    }
}

fn socket(keys: &mut Section) -> SocketOptions {
    let mode = keys.parse(
        "mode",
        "octal text: \"0600\", \"0660\", or \"0666\" for all that are admitted",
        |mode| {
            let mode = u32::from_str_radix(mode.as_str()?, 8).ok()?;
            // Of others all may ask, and whom the kernel names is admitted or not; or none.
            let good = mode == 0o666 || mode <= 0o777 && mode & 0o600 == 0o600 && mode & 0o007 == 0;
            good.then_some(mode)
        },
    );
    let path = keys.parse("path", "an absolute path of at most 103 bytes", |path| {
        let path = PathBuf::from(path.as_str()?);
        (path.is_absolute() && path.as_os_str().len() <= 103).then_some(path)
    });
    SocketOptions {
        path: path.unwrap_or_else(|| SOCKET.into()),
        mode: mode.unwrap_or(0o600),
        group: keys.parse("group", "a group of this machine", |name| group_id(name.as_str()?)),
        allow_uids: users(keys),
        allow_gids: groups(keys),
    }
}

/// Uids, and ranges of them as OpenShift writes them: the first, and how many.
fn users(keys: &mut Section) -> Vec<RangeInclusive<u32>> {
    let accepts = "a number of a user, or \"1000660000/10000\" for so many from there on";
    let user = |path: &str, value: Value| {
        let range = match &value {
            Value::String(text) => text.split_once('/').and_then(|(first, count)| {
                let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
                Some(first..=first.checked_add(count.checked_sub(1)?)?)
            }),
            _ => number(&value).map(|uid| uid..=uid),
        };
        range.ok_or_else(|| Invalid::new(path, accepts).found(&value))
    };
    keys.list("allow_uids", 0..=1024, user).unwrap_or_default()
}

fn groups(keys: &mut Section) -> Vec<u32> {
    let group = |path: &str, value: Value| {
        number(&value).ok_or_else(|| Invalid::new(path, "a number of a group").found(&value))
    };
    keys.list("allow_gids", 0..=1024, group).unwrap_or_default()
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn tcp(keys: &mut Section) -> (SocketAddr, TlsFiles) {
    let mut file = |key| {
        let path = keys.required(key, "a path", |path| path.as_str().map(PathBuf::from));
        path.unwrap_or_default()
    };
    let files = TlsFiles { cert: file("cert"), key: file("key"), client_ca: file("client_ca") };
    let listen = keys.required("listen", ADDRESS, address);
    (listen.unwrap_or(DEFAULT_ADMIN), files)
}

fn clusters(keys: &mut Section) -> Option<Template> {
    let patch = keys.take("clusters")?;
    keys.accept(Template::read("serve.clusters", &patch))
}

fn admin(keys: &mut Section, agent: String, proxies: &Path) -> AdminOptions {
    AdminOptions {
        agent,
        listen: keys.parse("listen", ADDRESS, address).unwrap_or(DEFAULT_ADMIN),
        allow_remote: keys.flag("allow_remote", false),
        hosts: keys.texts("hosts", 0..=64).unwrap_or_default(),
        socket: orders(keys, proxies),
    }
}

/// The socket for orders, beside the proxies' one unless it is named.
fn orders(keys: &mut Section, proxies: &Path) -> SocketOptions {
    let accepts = "an absolute path of at most 103 bytes that is not socket.path";
    let path = keys.parse("socket", accepts, |path| {
        let path = PathBuf::from(path.as_str()?);
        (path.is_absolute() && path.as_os_str().len() <= 103 && path != proxies).then_some(path)
    });
    let beside = || {
        let stem = proxies.file_stem().unwrap_or_default().to_string_lossy();
        proxies.with_file_name(format!("{stem}-admin.sock"))
    };
    let group = |path: &str, value: Value| {
        let id = value.as_str().and_then(group_id);
        id.ok_or_else(|| Invalid::new(path, "a group of this machine").found(&value))
    };
    let allow_gids = keys.list("groups", 0..=64, group).unwrap_or_default();
    // A file has one group; who of several may connect is told from the process that does.
    let mode = match allow_gids.len() {
        0 => 0o600,
        1 => 0o660,
        _ => 0o666,
    };
    let group = if mode == 0o660 { allow_gids.first().copied() } else { None };
    let path = path.unwrap_or_else(beside);
    SocketOptions { path, mode, group, allow_uids: Vec::new(), allow_gids }
}

const DEFAULT_ADMIN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 19_100));

const ADDRESS: &str = "an address and a port, such as 127.0.0.1:19100";

fn address(value: &Value) -> Option<SocketAddr> {
    value.as_str()?.parse().ok()
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

fn read(path: &Path) -> Result<Value, ConfigError> {
    let fail = |error| ConfigError::Read(path.to_owned(), error);
    let size = fs::metadata(path).map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(Invalid::new(path.display().to_string(), "a file of at most 1 MiB").into());
    }
    let text = fs::read_to_string(path).map_err(fail)?;
    serde_yaml_ng::from_str(&text).map_err(|error| ConfigError::Parse(path.to_owned(), error))
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

/// A variable that is another's to read: named by a secret, or what Kubernetes sets in every pod
/// beside a service that is called `pintle`.
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
