//! How one service wants its endpoints chosen: the `select` section, checked.
//!
//! [`RawPolicy`] mirrors what a user writes, every key optional, unknown keys refused; [`Policy`] holds
//! only values that can be served, so nothing after this file has to doubt them. An error names the
//! field and the accepted range, because it is read by whoever put a policy into etcd and can't see the
//! code. Durations are human text (`"30s"`, `"1h 30m"`).
//!
//! A policy is small and cloned on every table change, never per request.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

/// Entries of the ordered list, at most. Envoy takes one per attempt; nobody retries 16 times.
pub const MAX_ATTEMPTS: usize = 16;
/// Ring entries, at most: Envoy's own bound.
pub const MAX_RING_SIZE: u64 = 8_388_608;
/// Maglev table size, at most: Envoy's own bound.
pub const MAX_TABLE_SIZE: u64 = 5_000_011;
/// Subset selectors, at most: each asked for combination costs a pool.
pub const MAX_SELECTORS: usize = 8;
/// Parts of a hash key, at most.
pub const MAX_HASH_KEYS: usize = 16;

/// How to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Two weighted draws, the lower cost wins.
    #[default]
    P2c,
    /// A few uniform draws, the highest `weight / (active + 1)^bias` wins.
    LeastRequest,
    /// Equal turns, whatever the weights.
    RoundRobin,
    /// Turns in proportion to the weights, without bursts.
    WeightedRoundRobin,
    /// Weighted chance.
    Random,
    /// Envoy's ketama ring.
    RingHash,
    /// Envoy's Maglev table.
    Maglev,
}

impl Strategy {
    /// The name in configuration, logs and spans.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P2c => "p2c",
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::Random => "random",
            Self::RingHash => "ring_hash",
            Self::Maglev => "maglev",
        }
    }

    /// Whether requests are placed by a hash key.
    #[must_use]
    pub const fn is_hashing(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// The function that places endpoints on the ring. Request keys are always xxHash64, as in Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashFunction {
    /// xxHash64, seed 0.
    #[default]
    Xxhash64,
    /// The 64-bit murmur 2 of libstdc++'s `std::hash`.
    Murmur2,
}

/// A cookie that this proxy sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// A token of RFC 6265.
    pub name: String,
    /// `None`: never generated, only read. Zero: a session cookie.
    pub ttl: Option<Duration>,
    /// Empty: the attribute is left out.
    pub path: String,
}

/// One part of the hash key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashKeyPart {
    /// Where the part comes from.
    pub source: HashSource,
    /// With a hash in hand after this part, the following parts are not looked at.
    pub terminal: bool,
}

/// Where a part of the hash key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSource {
    /// A request header's value, lower-case name; `:path` and `:authority` are headers too.
    Header(String),
    /// A cookie, generated when absent and a ttl is given.
    Cookie(Cookie),
    /// The first query parameter of that name, undecoded.
    Query(String),
    /// The path without its query.
    Path,
    /// The client's address without the port.
    SourceAddress,
}

/// What a request may ask of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The request header that carries the wanted value, lower-case; empty when only the shell asks.
    pub header: String,
    /// What is compared with it.
    pub with: SelectorTarget,
}

/// The attribute of an endpoint that a [`Selector`] compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorTarget {
    /// The value of this metadata key.
    Metadata(String),
    /// One of the tags.
    Tag,
}

/// What happens when no endpoint at all has what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubsetFallback {
    /// Nothing is chosen; Envoy's default.
    #[default]
    None,
    /// Any endpoint of the service.
    Any,
    /// The endpoints that match `subset_default`, or nothing.
    Default,
}

/// What `subset_default` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SubsetDefault {
    /// Metadata keys with the value each must have.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Tags that must all be there.
    pub tags: Vec<String>,
}

/// Where the pin of a session is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// In a cookie, set on the first response.
    Cookie(Cookie),
    /// In a header, lower-case, on request and response.
    Header(String),
}

/// How fast a newcomer gets its full share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// 1 s to 1 d; counted from the registration.
    pub window: Duration,
    /// 0.1 to 100; above 1 gives more at the beginning.
    pub aggression: f64,
    /// 0.01 to 1.
    pub min_fraction: f64,
}

/// How one service's endpoints are chosen. Every field is within its documented range.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "RawPolicy")]
pub struct Policy {
    /// How to choose. Default `p2c`.
    pub strategy: Strategy,
    /// `least_request`: how many are compared, 2 to 100. Default 2.
    pub choice_count: u32,
    /// `least_request`: the exponent, 0 to 100. Default 1.0.
    pub active_request_bias: f64,
    /// What is hashed, at most [`MAX_HASH_KEYS`] parts. Default none.
    pub hash_key: Vec<HashKeyPart>,
    /// `ring_hash`: default xxhash64.
    pub hash_function: HashFunction,
    /// `ring_hash`: 1 to [`MAX_RING_SIZE`]. Default 1024.
    pub minimum_ring_size: u64,
    /// `ring_hash`: `minimum_ring_size` to [`MAX_RING_SIZE`]. Default [`MAX_RING_SIZE`].
    pub maximum_ring_size: u64,
    /// `maglev`: a prime, 2 to [`MAX_TABLE_SIZE`]. Default 65,537.
    pub table_size: u64,
    /// Bounded load of both hashes in percent of the mean: 0 (off), or 100 to 10,000. Default 0.
    pub hash_balance_factor: u32,
    /// Default off.
    pub slow_start: Option<SlowStart>,
    /// 0 (off) to 100. Default 50.
    pub panic_percent: u32,
    /// The own zone first. Default true; without a zone of its own the proxy ignores zones.
    pub zone_aware: bool,
    /// What requests may ask for, at most [`MAX_SELECTORS`]. Default none.
    pub subset: Vec<Selector>,
    /// Default `none`.
    pub subset_fallback: SubsetFallback,
    /// For the fallback `default`.
    pub subset_default: SubsetDefault,
    /// Default off.
    pub sticky: Option<Sticky>,
    /// Length of the ordered list, 1 to [`MAX_ATTEMPTS`]. Default 3.
    pub attempts: usize,
    /// How fast a slow answer is forgotten, 100 ms to 1 h. Default 10 s.
    pub ewma_decay: Duration,
    /// By how much one fresh failure multiplies the cost, 0 to 1,000. Default 50.
    pub failure_penalty: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            strategy: Strategy::P2c,
            choice_count: 2,
            active_request_bias: 1.0,
            hash_key: Vec::new(),
            hash_function: HashFunction::Xxhash64,
            minimum_ring_size: 1024,
            maximum_ring_size: MAX_RING_SIZE,
            table_size: 65_537,
            hash_balance_factor: 0,
            slow_start: None,
            panic_percent: 50,
            zone_aware: true,
            subset: Vec::new(),
            subset_fallback: SubsetFallback::None,
            subset_default: SubsetDefault::default(),
            sticky: None,
            attempts: 3,
            ewma_decay: Duration::from_secs(10),
            failure_penalty: 50.0,
        }
    }
}

/// Why a policy was refused: the field, and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The key as the user writes it, with a full stop between levels.
    pub field: &'static str,
    /// The accepted range or form.
    pub expected: &'static str,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}", self.field, self.expected)
    }
}

impl std::error::Error for PolicyError {}

/// The `select` section as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPolicy {
    strategy: Option<Strategy>,
    choice_count: Option<u32>,
    active_request_bias: Option<f64>,
    hash_key: Option<Vec<RawHashKeyPart>>,
    hash_function: Option<HashFunction>,
    minimum_ring_size: Option<u64>,
    maximum_ring_size: Option<u64>,
    table_size: Option<u64>,
    hash_balance_factor: Option<u32>,
    slow_start: Option<RawSlowStart>,
    panic_percent: Option<u32>,
    zone_aware: Option<bool>,
    subset: Option<Vec<RawSelector>>,
    subset_fallback: Option<SubsetFallback>,
    subset_default: Option<SubsetDefault>,
    sticky: Option<RawSticky>,
    attempts: Option<usize>,
    ewma_decay: Option<String>,
    failure_penalty: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHashKeyPart {
    header: Option<String>,
    cookie: Option<RawCookie>,
    query: Option<String>,
    path: Option<bool>,
    source_address: Option<bool>,
    terminal: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCookie {
    name: String,
    ttl: Option<String>,
    path: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSlowStart {
    window: Option<String>,
    aggression: Option<f64>,
    min_weight_percent: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSelector {
    header: Option<String>,
    metadata: Option<String>,
    tag: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSticky {
    cookie: Option<RawCookie>,
    header: Option<String>,
}

// === impl Policy ===

impl TryFrom<RawPolicy> for Policy {
    type Error = PolicyError;

    fn try_from(raw: RawPolicy) -> Result<Self, PolicyError> {
        let d = Self::default();
        let minimum_ring_size = within(
            "minimum_ring_size",
            raw.minimum_ring_size.unwrap_or(d.minimum_ring_size),
            1,
            MAX_RING_SIZE,
            "1 to 8388608",
        )?;
        let maximum_ring_size = within(
            "maximum_ring_size",
            raw.maximum_ring_size.unwrap_or(d.maximum_ring_size),
            minimum_ring_size,
            MAX_RING_SIZE,
            "minimum_ring_size to 8388608",
        )?;
        let table_size = raw.table_size.unwrap_or(d.table_size);
        if table_size > MAX_TABLE_SIZE || !is_prime(table_size) {
            return Err(refuse("table_size", "a prime from 2 to 5000011"));
        }
        let hash_balance_factor = raw.hash_balance_factor.unwrap_or(d.hash_balance_factor);
        if hash_balance_factor != 0 && !(100..=10_000).contains(&hash_balance_factor) {
            return Err(refuse("hash_balance_factor", "0, or 100 to 10000"));
        }
        let ewma_decay = match raw.ewma_decay {
            None => d.ewma_decay,
            Some(text) => duration(
                "ewma_decay",
                &text,
                Duration::from_millis(100),
                Duration::from_secs(3600),
                "a duration from 100ms to 1h",
            )?,
        };
        let hash_key = raw.hash_key.unwrap_or_default();
        if hash_key.len() > MAX_HASH_KEYS {
            return Err(refuse("hash_key", "at most 16 parts"));
        }
        let subset = raw.subset.unwrap_or_default();
        if subset.len() > MAX_SELECTORS {
            return Err(refuse("subset", "at most 8 selectors"));
        }
        Ok(Self {
            strategy: raw.strategy.unwrap_or(d.strategy),
            choice_count: within(
                "choice_count",
                raw.choice_count.unwrap_or(d.choice_count),
                2,
                100,
                "2 to 100",
            )?,
            active_request_bias: within(
                "active_request_bias",
                raw.active_request_bias.unwrap_or(d.active_request_bias),
                0.0,
                100.0,
                "0 to 100",
            )?,
            hash_key: hash_key.into_iter().map(HashKeyPart::try_from).collect::<Result<_, _>>()?,
            hash_function: raw.hash_function.unwrap_or(d.hash_function),
            minimum_ring_size,
            maximum_ring_size,
            table_size,
            hash_balance_factor,
            slow_start: raw.slow_start.map(SlowStart::try_from).transpose()?,
            panic_percent: within(
                "panic_percent",
                raw.panic_percent.unwrap_or(d.panic_percent),
                0,
                100,
                "0 to 100",
            )?,
            zone_aware: raw.zone_aware.unwrap_or(d.zone_aware),
            subset: subset.into_iter().map(Selector::try_from).collect::<Result<_, _>>()?,
            subset_fallback: raw.subset_fallback.unwrap_or(d.subset_fallback),
            subset_default: raw.subset_default.unwrap_or_default(),
            sticky: raw.sticky.map(Sticky::try_from).transpose()?,
            attempts: within(
                "attempts",
                raw.attempts.unwrap_or(d.attempts),
                1,
                MAX_ATTEMPTS,
                "1 to 16",
            )?,
            ewma_decay,
            failure_penalty: within(
                "failure_penalty",
                raw.failure_penalty.unwrap_or(d.failure_penalty),
                0.0,
                1000.0,
                "0 to 1000",
            )?,
        })
    }
}

// === impl parts ===

impl TryFrom<RawHashKeyPart> for HashKeyPart {
    type Error = PolicyError;

    fn try_from(raw: RawHashKeyPart) -> Result<Self, PolicyError> {
        let one_of = || {
            refuse(
                "hash_key",
                "parts with exactly one of header, cookie, query, path, source_address",
            )
        };
        let source = match (raw.header, raw.cookie, raw.query, raw.path, raw.source_address) {
            (Some(name), None, None, None, None) => {
                HashSource::Header(header_name("hash_key.header", name)?)
            }
            (None, Some(cookie), None, None, None) => {
                HashSource::Cookie(cookie.check("hash_key.cookie")?)
            }
            (None, None, Some(name), None, None) if !name.is_empty() && name.len() <= 256 => {
                HashSource::Query(name)
            }
            (None, None, None, Some(true), None) => HashSource::Path,
            (None, None, None, None, Some(true)) => HashSource::SourceAddress,
            _ => return Err(one_of()),
        };
        Ok(Self { source, terminal: raw.terminal })
    }
}

impl RawCookie {
    fn check(self, field: &'static str) -> Result<Cookie, PolicyError> {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if self.name.is_empty() || self.name.len() > 128 || !self.name.bytes().all(token) {
            return Err(refuse(field, "named by a token of 1 to 128 characters"));
        }
        let path = self.path.unwrap_or_default();
        if path.len() > 1024 || !path.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b';') {
            return Err(refuse(field, "given a path of printable characters without ';'"));
        }
        let ttl = self
            .ttl
            .map(|text| {
                duration(
                    field,
                    &text,
                    Duration::ZERO,
                    Duration::from_secs(400 * 86_400),
                    "given a ttl from 0s to 400d",
                )
            })
            .transpose()?;
        Ok(Cookie { name: self.name, ttl, path })
    }
}

impl TryFrom<RawSlowStart> for SlowStart {
    type Error = PolicyError;

    fn try_from(raw: RawSlowStart) -> Result<Self, PolicyError> {
        let range = "a duration from 1s to 1d";
        let Some(window) = raw.window else {
            return Err(refuse("slow_start.window", range));
        };
        let percent = within(
            "slow_start.min_weight_percent",
            raw.min_weight_percent.unwrap_or(10),
            1,
            100,
            "1 to 100",
        )?;
        Ok(Self {
            window: duration(
                "slow_start.window",
                &window,
                Duration::from_secs(1),
                Duration::from_secs(86_400),
                range,
            )?,
            aggression: within(
                "slow_start.aggression",
                raw.aggression.unwrap_or(1.0),
                0.1,
                100.0,
                "0.1 to 100",
            )?,
            min_fraction: f64::from(percent) / 100.0,
        })
    }
}

impl TryFrom<RawSelector> for Selector {
    type Error = PolicyError;

    fn try_from(raw: RawSelector) -> Result<Self, PolicyError> {
        let with = match (raw.metadata, raw.tag) {
            (Some(key), None) if !key.is_empty() => SelectorTarget::Metadata(key),
            (None, Some(true)) => SelectorTarget::Tag,
            _ => {
                return Err(refuse(
                    "subset",
                    "selectors with either a metadata key or \"tag\": true",
                ));
            }
        };
        let header = match raw.header {
            None => String::new(),
            Some(name) => header_name("subset.header", name)?,
        };
        Ok(Self { header, with })
    }
}

impl TryFrom<RawSticky> for Sticky {
    type Error = PolicyError;

    fn try_from(raw: RawSticky) -> Result<Self, PolicyError> {
        match (raw.cookie, raw.header) {
            (Some(cookie), None) => Ok(Self::Cookie(cookie.check("sticky.cookie")?)),
            (None, Some(name)) => Ok(Self::Header(header_name("sticky.header", name)?)),
            _ => Err(refuse("sticky", "either a cookie or a header")),
        }
    }
}

// === helpers ===

const fn refuse(field: &'static str, expected: &'static str) -> PolicyError {
    PolicyError { field, expected }
}

/// NaN is refused as well: it is within nothing.
fn within<T: PartialOrd>(
    field: &'static str,
    value: T,
    low: T,
    high: T,
    expected: &'static str,
) -> Result<T, PolicyError> {
    if value >= low && value <= high { Ok(value) } else { Err(refuse(field, expected)) }
}

fn duration(
    field: &'static str,
    text: &str,
    low: Duration,
    high: Duration,
    expected: &'static str,
) -> Result<Duration, PolicyError> {
    let value = humantime::parse_duration(text).map_err(|_| refuse(field, expected))?;
    within(field, value, low, high, expected)
}

fn header_name(field: &'static str, name: String) -> Result<String, PolicyError> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let rest = name.strip_prefix(':').unwrap_or(&name);
    if rest.is_empty() || rest.len() > 256 || !rest.bytes().all(token) {
        return Err(refuse(field, "a header name of 1 to 256 characters"));
    }
    Ok(name.to_ascii_lowercase())
}

/// Trial division; the bound is `MAX_TABLE_SIZE`, so at most 1,118 divisions.
const fn is_prime(n: u64) -> bool {
    if n < 4 {
        return n >= 2;
    }
    if n.is_multiple_of(2) {
        return false;
    }
    let mut d = 3;
    while d * d <= n {
        if n.is_multiple_of(d) {
            return false;
        }
        d += 2;
    }
    true
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
