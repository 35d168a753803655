//! The plugin's configuration: what a user writes, and what the module needs.
//!
//! ```json
//! { "service": {"from": ["cluster_metadata", {"cluster": "*"}]},
//!   "sync":    {"cluster": "pintle_agent"},
//!   "select":  {"via": "override_host", ... selection policy ...},
//!   "breaker": {... breaker policy ...},
//!   "trace":   {... propagation and export ..., "ratio": 1.0},
//!   "mode":    "active", "bypass": false,
//!   "memory":  {"budget": "256MiB"},
//!   "debug":   {"token_env": "PINTLE_DEBUG_TOKEN"},
//!   "services": {"orders": {"select": {"strategy": "maglev"}}} }
//! ```
//! A part that is absent does nothing. Keys of a part that may differ by service are its policy,
//! and are the lowest layer of [`crate::Policy`]; the others belong to the plugin as a whole.
//! Unknown keys are refused by name, because a misspelt limit must not silently be the default.

use std::collections::BTreeMap;

use pintle_contract::{AddressPolicy, Cidr};
use pintle_settings::{Found, Invalid, JsonError, Section, Settings};
use serde_json::{Map, Value};

use crate::{Policy, Switches};

mod structure;

/// How the chosen endpoint reaches Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// A header with the whole list, for clusters with the `override_host` policy.
    #[default]
    OverrideHost,
    /// Filter state with the first address, for `ORIGINAL_DST` clusters.
    OriginalDst,
}

/// What to do with a request whose service has no table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// Leave it to Envoy.
    #[default]
    Pass,
    /// Answer 503, unless no cluster of ours is asked for.
    Reject,
}

/// Where the name of a request's service is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `filter_metadata.pintle.service` of the cluster.
    ClusterMetadata,
    /// `filter_metadata.pintle.service` of the route.
    RouteMetadata,
    /// The cluster's name.
    Cluster(Pattern),
    /// `:authority` without the port.
    Authority(Pattern),
    /// A request header.
    Header(String),
}

impl Source {
    /// Whether a name from here says that the request is for one of our services. Every cluster has
    /// a name.
    #[must_use]
    pub fn claims(&self) -> bool {
        !matches!(self, Self::Cluster(pattern) if pattern.is_whole())
    }
}

/// `prefix*suffix`: the service is what the star stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    prefix: String,
    suffix: String,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let (prefix, suffix) = text.split_once('*')?;
        (!suffix.contains('*'))
            .then(|| Self { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
    }

    fn is_whole(&self) -> bool {
        self.prefix.is_empty() && self.suffix.is_empty()
    }

    /// What the star stands for in `text`, if the rest matches and it is not empty.
    pub fn of<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        let rest = text.strip_prefix(self.prefix.as_bytes())?;
        rest.strip_suffix(self.suffix.as_bytes()).filter(|name| !name.is_empty())
    }
}

/// What `select` says beside its policy.
#[derive(Clone, Debug)]
pub struct Select {
    /// How the choice reaches Envoy.
    pub via: Via,
    /// The header of [`Via::OverrideHost`], lower-case.
    pub header: String,
    /// What to do where there is no table.
    pub unknown: Unknown,
}

/// The header by which who brings a token is told why a request goes where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugHeader {
    /// Of the request, with the token, and of the answer; lower-case.
    pub header: String,
    /// The environment variable that holds the token.
    pub token_env: String,
}

/// The whole configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// Where a request's service is looked for, in order.
    pub sources: Vec<Source>,
    /// The cluster of the agent's socket; `None`: no table ever comes.
    pub agent: Option<String>,
    /// Endpoint selection, if it is on.
    pub select: Option<Select>,
    /// Whether breakers are on.
    pub breaker: bool,
    /// Trace propagation, if it is on.
    pub trace: Option<pintle_trace::Config>,
    /// Bytes that the tables of all services may hold in one VM.
    pub memory: u64,
    /// Whether requests are explained to who asks for it.
    pub debug: Option<DebugHeader>,
    /// The second check of every endpoint's address.
    pub addresses: AddressPolicy,
    /// The lowest layer of every service's policy.
    base: Value,
    /// The layer above it, by service.
    services: BTreeMap<String, Value>,
    /// What these layers say of the traces of a service, for as long as it has no table.
    traces: BTreeMap<String, pintle_trace::Policy>,
    /// The policy of a service about which nobody else says anything.
    pub default_policy: Policy,
}

impl Config {
    /// Reads the plugin's configuration: JSON, or the bytes of a `Struct`; nothing at all is `{}`.
    ///
    /// # Errors
    /// The first key that is refused, and what it accepts.
    pub fn parse(text: &[u8]) -> Result<Self, Invalid> {
        let text = if text.trim_ascii().is_empty() { b"{}" } else { text };
        let json = pintle_settings::parse_json(text);
        let refused = |found: String| Invalid {
            found: Found::Value(found),
            ..Invalid::new("the configuration", "a JSON object, or a google.protobuf.Struct")
        };
        let tree = json.or_else(|error| match (&error, structure::decode(text)) {
            (JsonError::Syntax(_), Some(tree)) => Ok(tree),
            (JsonError::Syntax(_), None) if is_yaml(text) => Err(refused("text in YAML".into())),
            _ => Err(refused(error.to_string())),
        })?;
        let empty =
            tree.as_object().and_then(|keys| keys.iter().find(|(_, value)| value.is_null()));
        if let Some((key, null)) = empty {
            return Err(Invalid::new(key, "a value, or left out to be off").found(null));
        }
        pintle_settings::read("", tree)
    }

    /// The parts that it turns on.
    #[must_use]
    pub fn parts_on(&self) -> Vec<&'static str> {
        let parts = [
            (self.select.is_some(), "select"),
            (self.breaker, "breaker"),
            (self.trace.is_some(), "trace"),
        ];
        parts.into_iter().filter_map(|(on, part)| on.then_some(part)).collect()
    }

    /// What an accepted configuration cannot do, and why.
    #[must_use]
    pub fn remarks(&self) -> Vec<&'static str> {
        let remarks = [
            (
                self.breaker && self.select.is_none(),
                "breaker does nothing without select, which asks the breakers",
            ),
            (
                self.select.is_some() && self.agent.is_none(),
                "select does nothing without sync.cluster: no table will come",
            ),
        ];
        remarks.into_iter().filter_map(|(amiss, remark)| amiss.then_some(remark)).collect()
    }
}

/// Whether the first line that says something is a key as YAML writes it, bare and with a colon.
fn is_yaml(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#') && *line != "---");
    let bare = first.unwrap_or_default().trim_start_matches(['{', '-', ' ']);
    let key = bare.split_once(':').map(|(key, _)| key.trim());
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    key.is_some_and(|key| !key.is_empty() && key.bytes().all(word))
}

impl Settings for Config {
    fn read(keys: &mut Section) -> Self {
        let switches = ["bypass", "mode"].into_iter();
        let written = |key: &str| Some((key.to_owned(), keys.rest().get(key)?.clone()));
        let mut base: Map<String, Value> = switches.filter_map(written).collect();
        Switches::read(keys);
        // Of each part the plugin's keys are taken first; what is left then is the policy's layer.
        // It is read from here once, so that a key that is unknown is told all the known ones.
        let mut layer = |part: &str, keys: &Section| {
            base.insert(part.to_owned(), Value::Object(keys.rest().clone()));
        };
        let select = keys.section_with("select", |keys| {
            let select = Select::read(keys);
            layer("select", keys);
            pintle_balance::Policy::read(keys);
            select
        });
        let breaker = keys.section_with("breaker", |keys| {
            layer("breaker", keys);
            pintle_breaker::Policy::read(keys);
        });
        let trace = keys.section_with("trace", |keys| {
            let trace = pintle_trace::Config::read(keys);
            layer("trace", keys);
            pintle_trace::Policy::read(keys);
            trace
        });
        let base = Value::Object(base);
        let default_policy = Policy::resolve([&base]).and_then(|policy| within(policy, &select));
        let default_policy = keys.accept(default_policy).unwrap_or_default();
        let mut services = BTreeMap::new();
        let mut traces = BTreeMap::new();
        for (service, patch) in objects(keys, "services") {
            let refused = |error: Invalid| error.below(&format!("services.{service}"));
            let policy = Policy::resolve([&base, &patch]);
            let policy = policy.and_then(|policy| within(policy, &select)).map_err(refused);
            if let Some(policy) = keys.accept(policy)
                && policy.trace != default_policy.trace
            {
                traces.insert(service.clone(), policy.trace);
            }
            services.insert(service, patch);
        }
        let sources = keys.section_with("service", |keys| keys.list("from", 1..=16, source_of));
        let agent = keys.section_with("sync", |keys| keys.text("cluster", 1..=1024, None));
        Self {
            sources: sources.flatten().unwrap_or_else(default_sources),
            agent,
            select,
            breaker: breaker.is_some(),
            trace,
            memory: memory(keys),
            debug: keys.section("debug"),
            addresses: addresses(keys),
            base,
            services,
            traces,
            default_policy,
        }
    }
}

const VIAS: [(&str, Via); 2] =
    [("override_host", Via::OverrideHost), ("original_dst", Via::OriginalDst)];

const UNKNOWN: [(&str, Unknown); 2] = [("pass", Unknown::Pass), ("reject", Unknown::Reject)];

impl Settings for Select {
    fn read(keys: &mut Section) -> Self {
        let header = keys.parse("header", HEADER_NAME, header_name);
        Self {
            via: keys.word("via", &VIAS, Via::default()),
            header: header.unwrap_or_else(|| "x-pintle-endpoints".to_owned()),
            unknown: keys.word("unknown_service", &UNKNOWN, Unknown::default()),
        }
    }
}

impl Settings for DebugHeader {
    fn read(keys: &mut Section) -> Self {
        const VARIABLE: &str = "the name of an environment variable, at most 64 characters";
        let header = keys.parse("header", HEADER_NAME, header_name);
        let token_env = keys.parse("token_env", VARIABLE, |value| {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let name = value.as_str()?;
            ((1..=64).contains(&name.len()) && name.bytes().all(word)).then(|| name.to_owned())
        });
        Self {
            header: header.unwrap_or_else(|| "pintle-debug".to_owned()),
            token_env: token_env.unwrap_or_else(|| "PINTLE_DEBUG_TOKEN".to_owned()),
        }
    }
}

const HEADER_NAME: &str = "a lower-case header name of at most 64 characters";

fn header_name(value: &Value) -> Option<String> {
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let name = value.as_str()?;
    ((1..=64).contains(&name.len()) && name.bytes().all(token)).then(|| name.to_owned())
}

fn default_sources() -> Vec<Source> {
    let whole = Pattern { prefix: String::new(), suffix: String::new() };
    vec![Source::ClusterMetadata, Source::Cluster(whole)]
}

fn source_of(path: &str, value: Value) -> Result<Source, Invalid> {
    const ACCEPTS: &str = "\"cluster_metadata\", \"route_metadata\", \"cluster\", \"authority\", \
        {\"cluster\": \"prefix*suffix\"}, {\"authority\": \"prefix*suffix\"} or \
        {\"header\": \"x-name\"}";
    let source = match &value {
        Value::String(word) => match word.as_str() {
            "cluster_metadata" => Some(Source::ClusterMetadata),
            "route_metadata" => Some(Source::RouteMetadata),
            "cluster" => Pattern::parse("*").map(Source::Cluster),
            "authority" => Pattern::parse("*").map(Source::Authority),
            _ => None,
        },
        Value::Object(pairs) => match pairs.iter().next() {
            Some((key, value)) if pairs.len() == 1 => match (key.as_str(), value.as_str()) {
                ("cluster", Some(text)) => Pattern::parse(text).map(Source::Cluster),
                ("authority", Some(text)) => Pattern::parse(text).map(Source::Authority),
                ("header", _) => header_name(value).map(Source::Header),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    source.ok_or_else(|| Invalid::new(path, ACCEPTS).found(&value))
}

/// `memory.budget`. Envoy lets a VM have 1 GiB, and a root that is replaced holds its own for a
/// while.
fn memory(keys: &mut Section) -> u64 {
    const DEFAULT: u64 = pintle_balance::DEFAULT_BUDGET;
    let budget =
        keys.section_with("memory", |keys| keys.size("budget", 1 << 20..=512 << 20, DEFAULT));
    budget.unwrap_or(DEFAULT)
}

/// The values of an object of objects.
fn objects(keys: &mut Section, key: &'static str) -> Map<String, Value> {
    keys.parse(key, "an object of keys", |value| value.as_object().cloned()).unwrap_or_default()
}

/// Without a list of its own the filter trusts the agent's, and still refuses what is refused
/// always.
fn addresses(keys: &mut Section) -> AddressPolicy {
    let range = |path: &str, range: Value| {
        let parsed = range.as_str().and_then(|range| range.parse::<Cidr>().ok());
        let accepts = "a range of addresses such as 10.0.0.0/8, with no bit set behind its prefix";
        parsed.ok_or_else(|| Invalid::new(path, accepts).found(&range))
    };
    keys.section_with("addresses", |keys| AddressPolicy {
        allow: keys.list("allow", 0..=MAX_RANGES, range).unwrap_or_default(),
    })
    .unwrap_or_else(AddressPolicy::trusting)
}

/// The policy, unless it leaves to Envoy what nobody there would decide.
fn within(policy: Policy, select: &Option<Select>) -> Result<Policy, Invalid> {
    const ACCEPTS: &str = "left out under select.via original_dst, where Envoy has no policy of its own to leave it to";
    let original = select.as_ref().is_some_and(|select| select.via == Via::OriginalDst);
    match policy.switches.leaving_to_envoy().filter(|_| original) {
        Some(key) => Err(Invalid::new(key, ACCEPTS)),
        None => Ok(policy),
    }
}

/// Ranges of addresses, at most.
const MAX_RANGES: usize = 1024;

impl Config {
    /// Whether spans are exported.
    #[must_use]
    pub fn exports(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.export().is_some())
    }

    /// Whether some service's traces have a policy of their own, so that a request's service has to
    /// be known even where nothing else asks for it.
    #[must_use]
    pub fn traces_by_service(&self) -> bool {
        self.trace.is_some() && !self.traces.is_empty()
    }

    /// The services that it names.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// The policy of the traces of a service that has no table: nobody but this configuration
    /// speaks of it.
    #[must_use]
    pub fn trace_policy(&self, service: Option<&str>) -> pintle_trace::Policy {
        let own = service.and_then(|service| self.traces.get(service));
        own.copied().unwrap_or(self.default_policy.trace)
    }

    /// The policy of `service` with what its table says on top.
    ///
    /// # Errors
    /// As [`Policy::resolve`].
    pub fn policy(&self, service: &str, table: &str) -> Result<Policy, Invalid> {
        let own = self.services.get(service);
        if table.is_empty() && own.is_none() {
            return Ok(self.default_policy.clone());
        }
        let patch: Option<Value> = match table {
            "" => None,
            json => {
                let refused = |error: JsonError| Invalid {
                    found: Found::Value(error.to_string()),
                    ..Invalid::new("the policy", "a JSON object")
                };
                Some(pintle_settings::parse_json(json.as_bytes()).map_err(refused)?)
            }
        };
        let layers = [Some(&self.base), own, patch.as_ref()];
        within(Policy::resolve(layers.into_iter().flatten())?, &self.select)
    }
}

#[cfg(test)]
mod tests;
