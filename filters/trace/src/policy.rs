//! What a user configures: raw text in, checked values out.
//!
//! Two parts, because they change at different times. [`Config`] belongs to the plugin and changes
//! only with Envoy's configuration: formats, trust, the exporter. [`Policy`] belongs to a service
//! and may change at any moment, by the registry or by an event: the ratio, and which spans. The
//! raw types mirror the JSON and own the defaults; the checked ones have no defaults and cannot
//! hold a value out of range. Unknown keys are refused by name.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::baggage;
use crate::format::{Format, FormatSet};
use crate::sample::Ratio;
use crate::w3c;

/// Which spans are exported for a sampled request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spans {
    /// One span for the request.
    #[default]
    PerRequest,
    /// One span for the request, and one below it for each attempt.
    PerAttempt,
    /// None.
    Off,
}

/// What may differ by service and change by event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawPolicy")]
pub struct Policy {
    /// The share of new traces that is sampled.
    pub ratio: Ratio,
    /// Which spans are exported.
    pub spans: Spans,
}

impl Policy {
    /// The same policy with another ratio, as a `trace` event asks for.
    #[must_use]
    pub const fn with_ratio(self, ratio: Ratio) -> Self {
        Self { ratio, ..self }
    }
}

/// What to believe of a context that comes from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// All of it.
    #[default]
    Trust,
    /// The ids, not the sampling decision.
    IgnoreSampled,
    /// Nothing: a new trace begins, which links to the old one.
    Restart,
}

/// On which side of a service the proxy stands; the kind of its spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// In front of the service that answers: server spans, an error from status 500 on.
    #[default]
    Ingress,
    /// Beside the service that asks: client spans, an error from status 400 on.
    Egress,
}

/// What the plugin configures once.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawConfig")]
pub struct Config {
    pub(crate) extract: Box<[Format]>,
    pub(crate) inject: FormatSet,
    pub(crate) relevant: FormatSet,
    pub(crate) boundary: Boundary,
    pub(crate) baggage_allow: Option<Box<[Box<str>]>>,
    pub(crate) direction: Direction,
    pub(crate) tracestate_member: Option<Box<str>>,
    pub(crate) participate: Option<bool>,
    pub(crate) export: Option<Export>,
}

impl Config {
    /// Where spans go; `None` if none are exported.
    #[must_use]
    pub const fn export(&self) -> Option<&Export> {
        self.export.as_ref()
    }

    /// On which side of the service the proxy stands.
    #[must_use]
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// The headers that decide everything, where they are few enough to be asked for one by one: a
    /// proxy answers "absent" without handing anything over, which is far cheaper than all headers.
    /// Empty: all headers have to be read. A request without any of these is, for [`propagate`],
    /// a request without headers.
    ///
    /// [`propagate`]: crate::propagate
    #[must_use]
    pub fn probes(&self) -> &'static [&'static str] {
        let only = |formats: &[Format]| self.relevant == formats.iter().copied().collect();
        if only(&[Format::TraceContext, Format::Baggage]) {
            &["traceparent", "tracestate", "baggage"]
        } else if only(&[Format::TraceContext]) {
            &["traceparent", "tracestate"]
        } else if only(&[Format::B3]) {
            &["b3"]
        } else {
            &[]
        }
    }

    /// Whether the proxy is a span of its own in the traces of a service with this policy. By
    /// default it is when its spans are exported: a span id that nobody ever sees would only break
    /// the chain from the caller to the upstream.
    #[must_use]
    pub fn participates(&self, policy: &Policy) -> bool {
        self.participate.unwrap_or(self.export.is_some() && policy.spans != Spans::Off)
    }
}

/// Where and how spans are exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The Envoy cluster of the OTLP collector.
    pub cluster: Box<str>,
    /// Resource attribute `service.name`.
    pub service_name: Box<str>,
    /// Resource attribute `service.version`.
    pub service_version: Option<Box<str>>,
    /// Resource attribute `deployment.environment.name`.
    pub environment: Option<Box<str>>,
    /// Further resource attributes.
    pub resource: Box<[(Box<str>, Box<str>)]>,
    /// Spans in a batch, at most.
    pub batch: usize,
    /// Time after which a batch that is not full goes out.
    pub interval: Duration,
    /// Spans that wait, at most; later ones are dropped and counted.
    pub queue: usize,
    /// Time that the collector has for an answer.
    pub timeout: Duration,
    /// How often a batch is sent again after a failure that may pass.
    pub retries: u32,
    /// Whether spans carry `url.query`.
    pub query: bool,
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field, by its JSON path below the trace configuration.
    pub field: &'static str,
    /// What the field accepts.
    pub accepted: &'static str,
    /// What it held.
    pub found: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trace: {} is {}, accepted is {}", self.field, self.found, self.accepted)
    }
}

impl std::error::Error for ConfigError {}

/// The JSON of [`Policy`], with its defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    ratio: f64,
    spans: Spans,
}

impl Default for RawPolicy {
    fn default() -> Self {
        Self { ratio: 1.0, spans: Spans::default() }
    }
}

impl TryFrom<RawPolicy> for Policy {
    type Error = ConfigError;

    fn try_from(raw: RawPolicy) -> Result<Self, ConfigError> {
        let ratio = Ratio::new(raw.ratio).ok_or_else(|| ConfigError {
            field: "ratio",
            accepted: "0.0 to 1.0",
            found: raw.ratio.to_string(),
        })?;
        Ok(Self { ratio, spans: raw.spans })
    }
}

/// The JSON of [`Config`], with its defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    extract: Vec<Format>,
    inject: Vec<Format>,
    boundary: Boundary,
    baggage_allow: Option<Vec<String>>,
    direction: Direction,
    tracestate_member: Option<String>,
    participate: Option<bool>,
    export: Option<RawExport>,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            extract: vec![Format::TraceContext, Format::Baggage],
            inject: vec![Format::TraceContext, Format::Baggage],
            boundary: Boundary::default(),
            baggage_allow: None,
            direction: Direction::default(),
            tracestate_member: None,
            participate: None,
            export: None,
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExport {
    cluster: String,
    service_name: String,
    service_version: Option<String>,
    environment: Option<String>,
    #[serde(default)]
    resource: BTreeMap<String, String>,
    #[serde(default = "batch")]
    batch: u64,
    #[serde(default = "interval")]
    interval: String,
    #[serde(default = "queue")]
    queue: u64,
    #[serde(default = "timeout")]
    timeout: String,
    #[serde(default = "retries")]
    retries: u64,
    #[serde(default)]
    query: bool,
}

fn batch() -> u64 {
    512
}
fn interval() -> String {
    "1s".into()
}
fn queue() -> u64 {
    2048
}
fn timeout() -> String {
    "5s".into()
}
fn retries() -> u64 {
    5
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let once = |field, formats: &[Format]| {
            let twice = formats
                .iter()
                .enumerate()
                .find(|(at, f)| formats.iter().take(*at).any(|o| o == *f));
            twice.map_or(Ok(()), |(_, format)| {
                let accepted = "each format at most once";
                Err(ConfigError { field, accepted, found: format!("with {format:?} twice") })
            })
        };
        once("extract", &raw.extract)?;
        once("inject", &raw.inject)?;
        if let Some(keys) = &raw.baggage_allow {
            check(keys.len() <= 64, "baggage_allow", "at most 64 keys", || keys.len().to_string())?;
            for key in keys {
                let accepted = "keys that are HTTP tokens";
                check(baggage::is_token(key.as_bytes()), "baggage_allow", accepted, || {
                    quoted(key)
                })?;
            }
        }
        if let Some(key) = &raw.tracestate_member {
            let accepted = "a tracestate key: a-z, 0-9, _ - * / @, at most 256";
            check(w3c::is_key(key.as_bytes()), "tracestate_member", accepted, || quoted(key))?;
        }
        let inject = raw.inject.iter().copied().collect::<FormatSet>();
        Ok(Self {
            relevant: raw.extract.iter().copied().collect::<FormatSet>().union(inject),
            extract: raw.extract.into(),
            inject,
            boundary: raw.boundary,
            baggage_allow: raw.baggage_allow.map(|keys| keys.into_iter().map(Into::into).collect()),
            direction: raw.direction,
            tracestate_member: raw.tracestate_member.map(Into::into),
            participate: raw.participate,
            export: raw.export.map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<RawExport> for Export {
    type Error = ConfigError;

    fn try_from(raw: RawExport) -> Result<Self, ConfigError> {
        let text = |field, text: String| {
            let ok = !text.is_empty() && text.len() <= 255;
            check(ok, field, "1 to 255 bytes", || quoted(&text))?;
            Ok(text.into_boxed_str())
        };
        let optional = |field, value: Option<String>| value.map(|v| text(field, v)).transpose();
        let long = raw.resource.len();
        check(long <= 32, "export.resource", "at most 32 attributes", || long.to_string())?;
        let resource = raw
            .resource
            .into_iter()
            .map(|(k, v)| Ok((text("export.resource", k)?, text("export.resource", v)?)))
            .collect::<Result<_, ConfigError>>()?;
        let queue = count("export.queue", raw.queue, 65_536, "1 to 65536")?;
        let batch = count("export.batch", raw.batch, 4096, "1 to 4096")?;
        let found = || format!("{batch} with a queue of {queue}");
        check(batch <= queue, "export.batch", "at most export.queue", found)?;
        let tries = raw.retries;
        check(tries <= 10, "export.retries", "0 to 10", || tries.to_string())?;
        Ok(Self {
            cluster: text("export.cluster", raw.cluster)?,
            service_name: text("export.service_name", raw.service_name)?,
            service_version: optional("export.service_version", raw.service_version)?,
            environment: optional("export.environment", raw.environment)?,
            resource,
            batch,
            interval: duration("export.interval", &raw.interval)?,
            queue,
            timeout: duration("export.timeout", &raw.timeout)?,
            retries: u32::try_from(tries).unwrap_or(10),
            query: raw.query,
        })
    }
}

fn check(
    ok: bool,
    field: &'static str,
    accepted: &'static str,
    found: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if ok { Ok(()) } else { Err(ConfigError { field, accepted, found: found() }) }
}

fn quoted(text: &str) -> String {
    // A wrong value is quoted for the reader, not repeated at any length.
    format!("{:?}", text.chars().take(64).collect::<String>())
}

fn count(
    field: &'static str,
    value: u64,
    max: usize,
    accepted: &'static str,
) -> Result<usize, ConfigError> {
    match usize::try_from(value) {
        Ok(n) if (1..=max).contains(&n) => Ok(n),
        _ => Err(ConfigError { field, accepted, found: value.to_string() }),
    }
}

/// Reads `250ms`, `30s`, `5m`: whole numbers with a unit.
fn duration(field: &'static str, text: &str) -> Result<Duration, ConfigError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let millis = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let millis = millis.and_then(|unit| number.parse::<u64>().ok()?.checked_mul(unit));
    match millis {
        Some(millis @ 50..=60_000) => Ok(Duration::from_millis(millis)),
        _ => Err(ConfigError { field, accepted: "50ms to 60s", found: quoted(text) }),
    }
}
