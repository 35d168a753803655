//! What a user configures: raw text in, checked values out.
//!
//! Two parts, because they change at different times. [`Config`] belongs to the plugin and changes
//! only with Envoy's configuration: formats, trust, the exporter. [`Policy`] belongs to a service
//! and may change at any moment, by the registry or by an event: the ratio, and which spans.
//! Neither can hold a value out of range.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_settings::{Invalid, MILLISECOND, MINUTE, SECOND, Section, Settings, word};

use crate::baggage;
use crate::format::{Format, FormatSet};
use crate::sample::Ratio;
use crate::tracestate;

/// Which spans are exported for a sampled request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// In front of the service that answers: server spans, an error from status 500 on.
    #[default]
    Ingress,
    /// Beside the service that asks: client spans, an error from status 400 on.
    Egress,
}

/// What the plugin configures once.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Pairs of a name and what stands for it.
type Names = Box<[(Box<str>, Box<str>)]>;

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
    pub resource: Names,
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
    /// Headers of each call: the name, and the variable of the environment that has the value.
    pub headers: Names,
}

const SPANS: [(&str, Spans); 3] =
    [("per_request", Spans::PerRequest), ("per_attempt", Spans::PerAttempt), ("off", Spans::Off)];

const BOUNDARIES: [(&str, Boundary); 3] = [
    ("trust", Boundary::Trust),
    ("ignore_sampled", Boundary::IgnoreSampled),
    ("restart", Boundary::Restart),
];

const DIRECTIONS: [(&str, Direction); 2] =
    [("ingress", Direction::Ingress), ("egress", Direction::Egress)];

/// Bytes of a text that goes into spans, at most.
const MAX_TEXT: usize = 255;

impl Default for Policy {
    fn default() -> Self {
        Self { ratio: Ratio::ALWAYS, spans: Spans::PerRequest }
    }
}

impl Settings for Policy {
    fn read(keys: &mut Section) -> Self {
        Self {
            ratio: Ratio::new(keys.real("ratio", 0.0..=1.0, 1.0)).unwrap_or(Ratio::ALWAYS),
            spans: keys.word("spans", &SPANS, Spans::PerRequest),
        }
    }
}

impl Settings for Config {
    fn read(keys: &mut Section) -> Self {
        let extract = formats(keys, "extract");
        let inject = formats(keys, "inject").iter().copied().collect::<FormatSet>();
        Self {
            relevant: extract.iter().copied().collect::<FormatSet>().union(inject),
            extract,
            inject,
            boundary: keys.word("boundary", &BOUNDARIES, Boundary::default()),
            baggage_allow: keys
                .list("baggage_allow", 0..=64, |path, key| match key.as_str() {
                    Some(key) if baggage::is_token(key.as_bytes()) => Ok(key.into()),
                    _ => Err(Invalid::new(path, "an HTTP token").found(&key)),
                })
                .map(Into::into),
            direction: keys.word("direction", &DIRECTIONS, Direction::default()),
            tracestate_member: keys.parse(
                "tracestate_member",
                "a tracestate key: a-z, 0-9, _ - * / @, at most 256",
                |key| key.as_str().filter(|key| tracestate::is_key(key.as_bytes())).map(Into::into),
            ),
            participate: keys.has("participate").then(|| keys.flag("participate", false)),
            export: keys.section("export"),
        }
    }
}

/// The formats of `key`, each at most once.
fn formats(keys: &mut Section, key: &'static str) -> Box<[Format]> {
    let read = |path: &str, value| word(path, &value, &Format::NAMES);
    let formats = keys.list(key, 0..=Format::ALL.len(), read);
    let formats = formats.unwrap_or_else(|| vec![Format::TraceContext, Format::Baggage]);
    for (at, format) in formats.iter().enumerate() {
        let once = !formats.iter().take(at).any(|other| other == format);
        keys.ensure(once, key, "a list with each format at most once");
    }
    formats.into()
}

impl Settings for Export {
    fn read(keys: &mut Section) -> Self {
        let text = |keys: &mut Section, key: &'static str| {
            keys.text(key, 1..=MAX_TEXT, None).into_boxed_str()
        };
        let optional =
            |keys: &mut Section, key: &'static str| keys.has(key).then(|| text(keys, key));
        let queue = keys.whole("queue", 1..=65_536, 2048);
        let batch = keys.whole("batch", 1..=4096, 512);
        keys.ensure(batch <= queue, "batch", "at most queue");
        // A refusal says what it found, and what stands here may be a secret.
        let headers = keys.parse("headers", HEADERS, |value| Some(headers(value)));
        keys.ensure(headers != Some(None), "headers", HEADERS);
        let lasting = MILLISECOND.saturating_mul(50)..=MINUTE;
        Self {
            cluster: text(keys, "cluster"),
            service_name: text(keys, "service_name"),
            service_version: optional(keys, "service_version"),
            environment: optional(keys, "environment"),
            resource: resource(keys),
            batch,
            interval: keys.duration("interval", lasting.clone(), SECOND),
            queue,
            timeout: keys.duration("timeout", lasting, SECOND.saturating_mul(5)),
            retries: keys.whole("retries", 0..=10, 5),
            query: keys.flag("query", false),
            headers: headers.flatten().unwrap_or_default(),
        }
    }
}

/// What [`headers`] takes. Envoy shows a plugin's configuration to whoever asks its admin address.
const HEADERS: &str = "an object of at most 8 header names in lower case, each with {\"env\": \
    \"VARIABLE\"}: a value stands in the environment alone";

/// Names of headers and of the variables with their values.
fn headers(value: &serde_json::Value) -> Option<Names> {
    let is_name = |name: &str| {
        let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        let ours = name.starts_with("grpc-") || ["te", "content-type", "host"].contains(&name);
        (1..=MAX_TEXT).contains(&name.len()) && name.bytes().all(token) && !ours
    };
    let is_variable = |name: &str| {
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        (1..=MAX_TEXT).contains(&name.len()) && name.bytes().all(letter)
    };
    let header = |(name, value): (&String, &serde_json::Value)| {
        let value = value.as_object().filter(|keys| keys.len() == 1)?;
        let variable = value.get("env")?.as_str().filter(|name| is_variable(name))?;
        is_name(name).then(|| (name.as_str().into(), variable.into()))
    };
    let headers = value.as_object().filter(|headers| headers.len() <= 8)?;
    headers.iter().map(header).collect()
}

/// The further attributes, names and values of 1 to [`MAX_TEXT`] bytes.
fn resource(keys: &mut Section) -> Names {
    let attributes: BTreeMap<String, String> = keys.labels("resource", 32).unwrap_or_default();
    let long = |text: &str| !(1..=MAX_TEXT).contains(&text.len());
    let good = !attributes.iter().any(|(key, value)| long(key) || long(value));
    keys.ensure(good, "resource", format!("names and values of 1 to {MAX_TEXT} bytes"));
    attributes.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}
