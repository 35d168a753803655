//! How one service wants its endpoints chosen: the `select` section, checked.
//!
//! [`Policy`] holds only values that can be served, so nothing after this file has to doubt them.
//! It is small and cloned on every table change, never per request.

use std::time::Duration;

use pintle_contract::{MAX_LABEL, MAX_LABELS};
use pintle_settings::{DAY, HOUR, MILLISECOND, SECOND, Section, Settings};

use crate::max_requests::MaxRequests;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    /// Each with its name in configuration, logs and spans.
    pub const NAMES: [(&str, Self); 7] = [
        ("p2c", Self::P2c),
        ("least_request", Self::LeastRequest),
        ("round_robin", Self::RoundRobin),
        ("weighted_round_robin", Self::WeightedRoundRobin),
        ("random", Self::Random),
        ("ring_hash", Self::RingHash),
        ("maglev", Self::Maglev),
    ];

    /// The name in configuration, logs and spans.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, strategy)| *strategy == self).map_or("", |(name, _)| name)
    }

    /// Whether requests are placed by a hash key.
    #[must_use]
    pub const fn is_hashing(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// The function that places endpoints on the ring. Request keys are always xxHash64, as in Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    /// The request header that carries the wanted value, lower-case; empty when only the shell
    /// asks.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubsetDefault {
    /// Metadata keys with the value each must have.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Tags that must all be there.
    pub tags: Vec<String>,
}

/// Which endpoints a service is moved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failover {
    /// Those with this tag.
    Tag(String),
    /// Those whose metadata `region` is this.
    Region(String),
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
#[derive(Clone, Debug, PartialEq)]
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
    /// While somebody eligible matches it, everything goes there. Default off.
    pub failover: Option<Failover>,
    /// Default any number.
    pub max_requests: MaxRequests,
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
            failover: None,
            max_requests: MaxRequests::Any,
            sticky: None,
            attempts: 3,
            ewma_decay: Duration::from_secs(10),
            failure_penalty: 50.0,
        }
    }
}

// === impl Settings ===

impl Settings for Policy {
    fn read(keys: &mut Section) -> Self {
        let default = Self::default();
        let minimum_ring_size =
            keys.whole("minimum_ring_size", 1..=MAX_RING_SIZE, default.minimum_ring_size);
        let maximum_ring_size =
            keys.whole("maximum_ring_size", 1..=MAX_RING_SIZE, default.maximum_ring_size);
        keys.ensure(
            minimum_ring_size <= maximum_ring_size,
            "maximum_ring_size",
            "at least minimum_ring_size",
        );
        let table_size = keys.whole("table_size", 2..=MAX_TABLE_SIZE, default.table_size);
        keys.ensure(is_prime(table_size), "table_size", "a prime");
        let hash_balance_factor =
            keys.whole("hash_balance_factor", 0..=10_000, default.hash_balance_factor);
        let bounds_load = hash_balance_factor == 0 || hash_balance_factor >= 100;
        keys.ensure(bounds_load, "hash_balance_factor", "0, or 100 to 10000");
        Self {
            strategy: keys.word("strategy", &Strategy::NAMES, default.strategy),
            choice_count: keys.whole("choice_count", 2..=100, default.choice_count),
            active_request_bias: keys.real(
                "active_request_bias",
                0.0..=100.0,
                default.active_request_bias,
            ),
            hash_key: keys
                .list("hash_key", 0..=MAX_HASH_KEYS, pintle_settings::read)
                .unwrap_or_default(),
            hash_function: keys.word("hash_function", &HASH_FUNCTIONS, default.hash_function),
            minimum_ring_size,
            maximum_ring_size,
            table_size,
            hash_balance_factor,
            slow_start: keys.section("slow_start"),
            panic_percent: keys.whole("panic_percent", 0..=100, default.panic_percent),
            zone_aware: keys.flag("zone_aware", default.zone_aware),
            subset: keys
                .list("subset", 0..=MAX_SELECTORS, pintle_settings::read)
                .unwrap_or_default(),
            subset_fallback: keys.word("subset_fallback", &FALLBACKS, default.subset_fallback),
            subset_default: keys.section("subset_default").unwrap_or_default(),
            failover: keys
                .section_with("failover", |keys| {
                    let mut word = |key| keys.has(key).then(|| keys.text(key, 1..=MAX_LABEL, None));
                    let ways =
                        [word("tag").map(Failover::Tag), word("region").map(Failover::Region)];
                    one_of(keys, ways, "either a tag or a region")
                })
                .flatten(),
            max_requests: MaxRequests::read(keys),
            sticky: keys
                .section_with("sticky", |keys| {
                    let cookie = keys.section("cookie").map(Sticky::Cookie);
                    let header = header_name(keys).map(Sticky::Header);
                    one_of(keys, [cookie, header], "either a cookie or a header")
                })
                .flatten(),
            attempts: keys.whole("attempts", 1..=MAX_ATTEMPTS, default.attempts),
            ewma_decay: keys.duration(
                "ewma_decay",
                MILLISECOND.saturating_mul(100)..=HOUR,
                default.ewma_decay,
            ),
            failure_penalty: keys.real("failure_penalty", 0.0..=1000.0, default.failure_penalty),
        }
    }
}

const HASH_FUNCTIONS: [(&str, HashFunction); 2] =
    [("xxhash64", HashFunction::Xxhash64), ("murmur2", HashFunction::Murmur2)];

const FALLBACKS: [(&str, SubsetFallback); 3] = [
    ("none", SubsetFallback::None),
    ("any", SubsetFallback::Any),
    ("default", SubsetFallback::Default),
];

impl Settings for HashKeyPart {
    fn read(keys: &mut Section) -> Self {
        let sources = [
            header_name(keys).map(HashSource::Header),
            keys.section("cookie").map(HashSource::Cookie),
            keys.has("query").then(|| HashSource::Query(keys.text("query", 1..=256, None))),
            keys.flag("path", false).then_some(HashSource::Path),
            keys.flag("source_address", false).then_some(HashSource::SourceAddress),
        ];
        let accepts = "a part with exactly one of header, cookie, query, path, source_address";
        let source = one_of(keys, sources, accepts);
        Self { source: source.unwrap_or(HashSource::Path), terminal: keys.flag("terminal", false) }
    }
}

impl Settings for Cookie {
    fn read(keys: &mut Section) -> Self {
        let accepts = "a token of 1 to 128 characters";
        let name = keys.required("name", accepts, |name| {
            name.as_str().filter(|name| is_token(name, 128)).map(ToOwned::to_owned)
        });
        let path = keys.parse("path", "at most 1024 printable characters without ';'", |path| {
            let printable = |b: u8| (0x20..0x7f).contains(&b) && b != b';';
            let path = path.as_str()?;
            (path.len() <= 1024 && path.bytes().all(printable)).then(|| path.to_owned())
        });
        let ttl = keys.has("ttl").then(|| {
            keys.duration("ttl", Duration::ZERO..=DAY.saturating_mul(400), Duration::ZERO)
        });
        Self { name: name.unwrap_or_default(), ttl, path: path.unwrap_or_default() }
    }
}

impl Settings for SlowStart {
    fn read(keys: &mut Section) -> Self {
        let percent: u32 = keys.whole("min_weight_percent", 1..=100, 10);
        Self {
            window: keys.duration("window", SECOND..=DAY, None),
            aggression: keys.real("aggression", 0.1..=100.0, 1.0),
            min_fraction: f64::from(percent) / 100.0,
        }
    }
}

impl Settings for Selector {
    fn read(keys: &mut Section) -> Self {
        let metadata = keys
            .has("metadata")
            .then(|| SelectorTarget::Metadata(keys.text("metadata", 1..=MAX_LABEL, None)));
        let tag = keys.flag("tag", false).then_some(SelectorTarget::Tag);
        let accepts = "a selector with either a metadata key or \"tag\": true";
        let with = one_of(keys, [metadata, tag], accepts);
        let header = header_name(keys);
        // A route asks for metadata, and for no tag.
        let asked = header.is_some() || with != Some(SelectorTarget::Tag);
        keys.ensure(asked, "header", HEADER);
        Self { header: header.unwrap_or_default(), with: with.unwrap_or(SelectorTarget::Tag) }
    }
}

impl Settings for SubsetDefault {
    fn read(keys: &mut Section) -> Self {
        Self {
            metadata: keys.labels("metadata", MAX_LABELS).unwrap_or_default(),
            tags: keys.texts("tags", 0..=MAX_LABELS).unwrap_or_default(),
        }
    }
}

// === helpers ===

/// The only one of several ways that was written.
fn one_of<T, const N: usize>(
    keys: &mut Section,
    ways: [Option<T>; N],
    accepts: &'static str,
) -> Option<T> {
    let mut written = ways.into_iter().flatten();
    let one = written.next();
    keys.ensure(one.is_some() && written.next().is_none(), "", accepts);
    one
}

const HEADER: &str = "a header name of 1 to 256 characters";

/// The key `header`, lower-case.
fn header_name(keys: &mut Section) -> Option<String> {
    keys.parse("header", HEADER, |name| {
        let name = name.as_str()?;
        let plain = name.strip_prefix(':').unwrap_or(name);
        is_token(plain, 256).then(|| name.to_ascii_lowercase())
    })
}

/// A token of RFC 9110 of at most so many bytes.
fn is_token(text: &str, most: usize) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=most).contains(&text.len()) && text.bytes().all(token)
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
