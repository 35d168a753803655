//! The plugin's configuration: what a user writes, and what the module needs.
//!
//! ```json
//! { "service": {"from": ["cluster_metadata", {"cluster": "*"}]},
//!   "sync":    {"cluster": "pintle_agent"},
//!   "select":  {"via": "override_host", ... selection policy ...},
//!   "breaker": {... breaker policy ...},
//!   "trace":   {... propagation and export ..., "ratio": 1.0},
//!   "services": {"orders": {"select": {"strategy": "maglev"}}} }
//! ```
//! A part that is absent does nothing. Keys of a part that may differ by service are its policy, and
//! are the lowest layer of [`crate::Policy`]; the others belong to the plugin as a whole.
//! Unknown keys are refused by name, because a misspelt limit must not silently be the default.

use std::collections::BTreeMap;
use std::fmt;

use crate::Policy;
use pintle_contract::{AddressPolicy, Cidr};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How the chosen endpoint reaches Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// A header with the whole list, for clusters with the `override_host` policy.
    #[default]
    OverrideHost,
    /// Filter state with the first address, for `ORIGINAL_DST` clusters.
    OriginalDst,
}

/// What to do with a request whose service has no table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// Leave it to Envoy.
    #[default]
    Pass,
    /// Answer 503.
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

/// Why the configuration was refused.
#[derive(Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn refuse<T>(why: impl fmt::Display) -> Result<T, ConfigError> {
    Err(ConfigError(why.to_string()))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    service: RawService,
    sync: Option<RawSync>,
    select: Option<Map<String, Value>>,
    breaker: Option<Map<String, Value>>,
    trace: Option<Map<String, Value>>,
    addresses: Option<RawAddresses>,
    services: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawService {
    from: Vec<RawSource>,
}

impl Default for RawService {
    fn default() -> Self {
        let word = |word: &str| RawSource::Word(word.to_owned());
        Self { from: vec![word("cluster_metadata"), word("cluster")] }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawSource {
    Word(String),
    With(BTreeMap<String, String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSync {
    cluster: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAddresses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSelect {
    via: Via,
    header: String,
    unknown_service: Unknown,
}

impl Default for RawSelect {
    fn default() -> Self {
        Self {
            via: Via::default(),
            header: "x-pintle-endpoints".to_owned(),
            unknown_service: Unknown::default(),
        }
    }
}

/// Keys of `select` and `trace` that are not, or that are, the policy's.
const SELECT_PLUGIN: [&str; 3] = ["via", "header", "unknown_service"];
const TRACE_POLICY: [&str; 2] = ["ratio", "spans"];

impl Config {
    /// Reads the plugin's configuration. Nothing at all is `{}`.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let json = if json.trim_ascii().is_empty() { b"{}" } else { json };
        // By way of a map: a struct would be read from an array, too, field by field.
        let object: Map<String, Value> = serde_json::from_slice(json).or_else(refuse)?;
        let raw: Raw = serde_json::from_value(Value::Object(object)).or_else(refuse)?;
        let mut base = Map::new();

        let select = raw.select.map(|keys| split(keys, |key| SELECT_PLUGIN.contains(&key)));
        let select = match select {
            None => None,
            Some((plugin, policy)) => {
                base.insert("select".to_owned(), policy);
                Some(select_of(plugin)?)
            }
        };
        let trace = raw.trace.map(|keys| split(keys, |key| !TRACE_POLICY.contains(&key)));
        let trace = match trace {
            None => None,
            Some((plugin, policy)) => {
                base.insert("trace".to_owned(), policy);
                let trace = serde_json::from_value(plugin);
                Some(trace.or_else(|error| refuse(format_args!("trace: {error}")))?)
            }
        };
        let breaker = raw.breaker.is_some();
        if let Some(policy) = raw.breaker {
            base.insert("breaker".to_owned(), Value::Object(policy));
        }

        let base = Value::Object(base);
        let default_policy = Policy::resolve([&base]).or_else(refuse)?;
        let mut traces = BTreeMap::new();
        for (service, patch) in &raw.services {
            match Policy::resolve([&base, patch]) {
                Ok(policy) if policy.trace != default_policy.trace => {
                    traces.insert(service.clone(), policy.trace);
                }
                Ok(_) => {}
                Err(error) => return refuse(format_args!("services.{service}: {error}")),
            }
        }
        Ok(Self {
            sources: raw.service.from.iter().map(source_of).collect::<Result<_, _>>()?,
            agent: raw.sync.map(|sync| sync.cluster),
            select,
            breaker,
            trace,
            addresses: addresses_of(raw.addresses)?,
            base,
            services: raw.services,
            traces,
            default_policy,
        })
    }

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

    /// The policy of the traces of a service that has no table: nobody but this configuration speaks
    /// of it.
    #[must_use]
    pub fn trace_policy(&self, service: Option<&str>) -> pintle_trace::Policy {
        let own = service.and_then(|service| self.traces.get(service));
        own.copied().unwrap_or(self.default_policy.trace)
    }

    /// The policy of `service` with what its table says on top.
    pub fn policy(&self, service: &str, table: &str) -> Result<Policy, ConfigError> {
        let own = self.services.get(service);
        if table.is_empty() && own.is_none() {
            return Ok(self.default_policy.clone());
        }
        let patch: Option<Value> = match table {
            "" => None,
            json => Some(serde_json::from_str(json).or_else(refuse)?),
        };
        let layers = [Some(&self.base), own, patch.as_ref()];
        Policy::resolve(layers.into_iter().flatten()).or_else(refuse)
    }
}

/// The keys for the plugin, and the policy's, each as an object.
fn split(keys: Map<String, Value>, plugin: impl Fn(&str) -> bool) -> (Value, Value) {
    let (mine, policy): (Map<_, _>, Map<_, _>) = keys.into_iter().partition(|(k, _)| plugin(k));
    (Value::Object(mine), Value::Object(policy))
}

fn select_of(plugin: Value) -> Result<Select, ConfigError> {
    let raw: RawSelect =
        serde_json::from_value(plugin).or_else(|error| refuse(format_args!("select: {error}")))?;
    if !is_header_name(&raw.header) {
        return refuse("select.header must be a lower-case header name of at most 64 characters");
    }
    Ok(Select { via: raw.via, header: raw.header, unknown: raw.unknown_service })
}

fn is_header_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn source_of(raw: &RawSource) -> Result<Source, ConfigError> {
    const EXPECTED: &str = "service.from accepts \"cluster_metadata\", \"route_metadata\", \"cluster\", \
        \"authority\", {\"cluster\": \"prefix*suffix\"}, {\"authority\": \"prefix*suffix\"} and \
        {\"header\": \"x-name\"}";
    let pattern = |text: &str| Pattern::parse(text).map_or_else(|| refuse(EXPECTED), Ok);
    match raw {
        RawSource::Word(word) => match word.as_str() {
            "cluster_metadata" => Ok(Source::ClusterMetadata),
            "route_metadata" => Ok(Source::RouteMetadata),
            "cluster" => Ok(Source::Cluster(pattern("*")?)),
            "authority" => Ok(Source::Authority(pattern("*")?)),
            _ => refuse(EXPECTED),
        },
        RawSource::With(pairs) => match pairs.iter().next() {
            Some((key, text)) if pairs.len() == 1 => match key.as_str() {
                "cluster" => Ok(Source::Cluster(pattern(text)?)),
                "authority" => Ok(Source::Authority(pattern(text)?)),
                "header" if is_header_name(text) => Ok(Source::Header(text.clone())),
                _ => refuse(EXPECTED),
            },
            _ => refuse(EXPECTED),
        },
    }
}

/// Without a list of its own the filter trusts the agent's, and still refuses what is refused always.
fn addresses_of(raw: Option<RawAddresses>) -> Result<AddressPolicy, ConfigError> {
    let Some(raw) = raw else { return Ok(AddressPolicy::trusting()) };
    let range = |text: &String| {
        text.parse::<Cidr>()
            .or_else(|error| refuse(format_args!("addresses.allow: {text:?}: {error}")))
    };
    Ok(AddressPolicy { allow: raw.allow.iter().map(range).collect::<Result<_, _>>()? })
}
