//! What the operator may ask of the breaker, checked.
//!
//! `RawPolicy` mirrors what was written and owns the defaults; [`Policy`] has none of its own and cannot
//! hold a value that the machine has no answer for. Every key may be left out, unknown keys are
//! refused (a misspelt limit must not silently be the default), and an error names the key and the
//! range that would have been accepted. Durations are text such as `250ms`, `10s` or `1m30s`.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::record::MAX_PROBES;

/// When a breaker opens, for how long, and how it closes again. `serde` reads it from an object with
/// the field names below; the default of each is given there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawPolicy")]
#[non_exhaustive]
pub struct Policy {
    /// Failures in a row that open it. 5; 0 to 1,000,000, 0 = never.
    pub consecutive_failures: u32,
    /// The share of failures that opens it. 50 % of at least 10 requests; percent 0 = never.
    pub failure_rate: Rate,
    /// The sliding window of both rates, in ten buckets, and the length of the clean interval after
    /// which one trip is forgiven. 10 s; 1 s to 10 min.
    pub window: Duration,
    /// The share of slow calls that opens it. Absent = never.
    pub slow_call: Option<SlowCall>,
    /// How long the first trip keeps it open; each further one doubles it. 30 s; 100 ms to 1 h. While
    /// nobody of the service is eligible and panic is off it is tried each half second all the same.
    pub open: Duration,
    /// The most that doubling reaches, before jitter. 300 s; `open` to 24 h.
    pub open_max: Duration,
    /// Up to this share is added to the time open, at random. 50; 0 to 100.
    pub jitter_percent: u8,
    /// How an open breaker is tried.
    pub half_open: HalfOpen,
    /// The share of a service's endpoints that breakers may take. 50; 0 to 100.
    pub max_ejection_percent: u8,
    /// Status codes of an endpoint that are failures, `"500-599"` or `"503"`; at most 16 entries of
    /// 400 to 599. 500-599.
    pub failure_codes: Codes,
    /// What the opinions of other proxies do. `advise`.
    pub fleet: Fleet,
    /// The most that an opinion of the fleet counts for after it was seen. 60 s; 1 s to 1 h.
    pub fleet_ttl: Duration,
    /// The most of an endpoint's `retry-after` that is honoured, and the most that a local answer
    /// says. 30 s; 1 s to 1 h.
    pub retry_after: Duration,
}

/// A share of at least so many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 0 to 100; 0 turns it off.
    pub percent: u8,
    /// Fewer than these in the window never trip. 1 to 1,000,000.
    pub min_requests: u32,
}

impl Rate {
    /// Whether `part` of `total` reaches the rate.
    #[must_use]
    pub fn reached(self, part: u32, total: u32) -> bool {
        self.percent > 0
            && total >= self.min_requests
            && u64::from(part) * 100 >= u64::from(self.percent) * u64::from(total)
    }
}

/// When successes are too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowCall {
    /// A success that took at least this is slow. 1 ms to 1 h.
    pub threshold: Duration,
    /// The share of slow ones that opens the breaker.
    pub rate: Rate,
}

/// How an open breaker is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// Probes at once. 1; 1 to 8.
    pub probes: u8,
    /// Successes that close it. 2; 1 to 100.
    pub successes: u8,
    /// An unanswered probe has failed after this. 10 s; 100 ms to 5 min.
    pub timeout: Duration,
}

/// What the opinions of other proxies do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fleet {
    /// Nothing.
    Off,
    /// While one holds, the endpoint costs more and one failure opens its breaker.
    Advise,
    /// It opens the breaker at once.
    Enforce,
}

/// A set of status codes from 100 to 611, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codes([u64; 8]);

impl Codes {
    /// Whether `code` is in the set.
    #[must_use]
    pub fn contains(&self, code: u16) -> bool {
        let Some(bit) = code.checked_sub(100) else {
            return false;
        };
        self.0.get(usize::from(bit / 64)).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    fn insert(&mut self, code: u16) {
        if let Some(bit) = code.checked_sub(100)
            && let Some(word) = self.0.get_mut(usize::from(bit / 64))
        {
            *word |= 1 << (bit % 64);
        }
    }
}

/// A policy was refused: the key, and what would have been accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The key, with dots between levels.
    pub field: &'static str,
    /// What the key accepts.
    pub expected: &'static str,
    /// What was written.
    pub found: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}, found {}", self.field, self.expected, self.found)
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// The policy of an operator who wrote nothing.
    ///
    /// There is no `Default`: whoever needs a policy should say that it is this one.
    #[must_use]
    pub fn unconfigured() -> Self {
        Self {
            consecutive_failures: 5,
            failure_rate: Rate { percent: 50, min_requests: 10 },
            window: Duration::from_secs(10),
            slow_call: None,
            open: Duration::from_secs(30),
            open_max: Duration::from_secs(300),
            jitter_percent: 50,
            half_open: HalfOpen { probes: 1, successes: 2, timeout: Duration::from_secs(10) },
            max_ejection_percent: 50,
            failure_codes: server_errors(),
            fleet: Fleet::Advise,
            fleet_ttl: Duration::from_secs(60),
            retry_after: Duration::from_secs(30),
        }
    }

    /// How long the `trips`th trip in a row keeps the breaker open: `open * 2^(trips - 1)`, at most
    /// `open_max`, plus a share of it between nothing and `jitter_percent` that `random` picks.
    ///
    /// Jitter comes on top of the limit: without it, breakers at the limit would probe in step.
    #[must_use]
    pub fn open_for(&self, trips: u32, random: u32) -> Duration {
        let doublings = trips.saturating_sub(1).min(31);
        let base = self.open.saturating_mul(1 << doublings).min(self.open_max);
        let span = base.as_nanos().saturating_mul(u128::from(self.jitter_percent)) / 100;
        let jitter = span.saturating_mul(u128::from(random)) / u128::from(u32::MAX);
        base.saturating_add(Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX)))
    }

    /// The longest that [`Policy::open_for`] can say.
    #[must_use]
    pub fn open_at_most(&self) -> Duration {
        self.open_for(u32::MAX, u32::MAX)
    }
}

// === what the operator wrote ===

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    consecutive_failures: Option<RawNumber>,
    failure_rate: Option<RawRate>,
    window: Option<RawText>,
    slow_call: Option<RawSlowCall>,
    open: Option<RawText>,
    open_max: Option<RawText>,
    jitter_percent: Option<RawNumber>,
    half_open: Option<RawHalfOpen>,
    max_ejection_percent: Option<RawNumber>,
    failure_codes: Option<Vec<RawCodes>>,
    fleet: Option<RawText>,
    fleet_ttl: Option<RawText>,
    retry_after: Option<RawText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    percent: Option<RawNumber>,
    min_requests: Option<RawNumber>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSlowCall {
    threshold: Option<RawText>,
    percent: Option<RawNumber>,
    min_requests: Option<RawNumber>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHalfOpen {
    probes: Option<RawNumber>,
    successes: Option<RawNumber>,
    timeout: Option<RawText>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawCodes {
    One(u64),
    Text(String),
    Other(IgnoredAny),
}

/// A number, or what else was written in its place: `serde`'s own error would not name the key.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawNumber {
    Whole(i64),
    Other(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawText {
    Text(String),
    Other(IgnoredAny),
}

/// What an error says was found when it was of another kind.
const OTHER: &str = "another kind of value";

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// The longest `half_open.timeout`.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest `retry_after`.
pub(crate) const MAX_RETRY_AFTER: Duration = HOUR;
const DAY: Duration = Duration::from_secs(24 * 3600);

impl TryFrom<RawPolicy> for Policy {
    type Error = PolicyError;

    fn try_from(raw: RawPolicy) -> Result<Self, PolicyError> {
        let default = Self::unconfigured();
        let (rate_percent, rate_min) =
            raw.failure_rate.map_or((None, None), |rate| (rate.percent, rate.min_requests));
        let failure_rate = Rate {
            percent: percent("failure_rate.percent", rate_percent, default.failure_rate.percent)?,
            min_requests: min_requests("failure_rate.min_requests", rate_min)?,
        };
        let open =
            duration("open", raw.open, default.open, Duration::from_millis(100)..=HOUR, OPEN)?;
        let open_max = match raw.open_max {
            // The default limit follows a base that lies above it.
            None => default.open_max.max(open),
            written => duration("open_max", written, open, open..=DAY, OPEN_MAX)?,
        };
        Ok(Self {
            consecutive_failures: number(
                "consecutive_failures",
                raw.consecutive_failures,
                default.consecutive_failures,
                0..=1_000_000,
                "between 0 (off) and 1000000",
            )?,
            failure_rate,
            window: duration(
                "window",
                raw.window,
                default.window,
                SECOND..=Duration::from_secs(600),
                "between 1s and 10m",
            )?,
            slow_call: raw.slow_call.map(slow_call).transpose()?,
            open,
            open_max,
            jitter_percent: percent("jitter_percent", raw.jitter_percent, default.jitter_percent)?,
            half_open: raw
                .half_open
                .map_or(Ok(default.half_open), |raw| half_open(raw, default.half_open))?,
            max_ejection_percent: percent(
                "max_ejection_percent",
                raw.max_ejection_percent,
                default.max_ejection_percent,
            )?,
            failure_codes: raw.failure_codes.map_or(Ok(default.failure_codes), codes)?,
            fleet: fleet(raw.fleet, default.fleet)?,
            fleet_ttl: duration(
                "fleet_ttl",
                raw.fleet_ttl,
                default.fleet_ttl,
                SECOND..=HOUR,
                "between 1s and 1h",
            )?,
            retry_after: duration(
                "retry_after",
                raw.retry_after,
                default.retry_after,
                SECOND..=MAX_RETRY_AFTER,
                "between 1s and 1h",
            )?,
        })
    }
}

const OPEN: &str = "between 100ms and 1h";
const OPEN_MAX: &str = "between open and 24h";

fn slow_call(raw: RawSlowCall) -> Result<SlowCall, PolicyError> {
    Ok(SlowCall {
        threshold: duration(
            "slow_call.threshold",
            raw.threshold,
            SECOND,
            Duration::from_millis(1)..=HOUR,
            "between 1ms and 1h",
        )?,
        rate: Rate {
            percent: percent("slow_call.percent", raw.percent, 50)?,
            min_requests: min_requests("slow_call.min_requests", raw.min_requests)?,
        },
    })
}

fn half_open(raw: RawHalfOpen, default: HalfOpen) -> Result<HalfOpen, PolicyError> {
    Ok(HalfOpen {
        probes: number(
            "half_open.probes",
            raw.probes,
            default.probes,
            1..=MAX_PROBES as u64,
            "between 1 and 8",
        )?,
        successes: number(
            "half_open.successes",
            raw.successes,
            default.successes,
            1..=100,
            "between 1 and 100",
        )?,
        timeout: duration(
            "half_open.timeout",
            raw.timeout,
            default.timeout,
            Duration::from_millis(100)..=MAX_TIMEOUT,
            "between 100ms and 5m",
        )?,
    })
}

fn min_requests(field: &'static str, raw: Option<RawNumber>) -> Result<u32, PolicyError> {
    number(field, raw, 10, 1..=1_000_000, "between 1 and 1000000")
}

fn percent(field: &'static str, raw: Option<RawNumber>, default: u8) -> Result<u8, PolicyError> {
    number(field, raw, default, 0..=100, "between 0 and 100")
}

fn number<T: TryFrom<u64>>(
    field: &'static str,
    raw: Option<RawNumber>,
    default: T,
    accepted: std::ops::RangeInclusive<u64>,
    expected: &'static str,
) -> Result<T, PolicyError> {
    let refused = |found| PolicyError { field, expected, found };
    match raw {
        None => Ok(default),
        Some(RawNumber::Other(_)) => Err(refused(OTHER.to_owned())),
        Some(RawNumber::Whole(found)) => u64::try_from(found)
            .ok()
            .filter(|found| accepted.contains(found))
            .and_then(|found| T::try_from(found).ok())
            .ok_or_else(|| refused(found.to_string())),
    }
}

fn duration(
    field: &'static str,
    raw: Option<RawText>,
    default: Duration,
    accepted: std::ops::RangeInclusive<Duration>,
    expected: &'static str,
) -> Result<Duration, PolicyError> {
    let refused = |found| PolicyError { field, expected, found };
    match raw {
        None => Ok(default),
        Some(RawText::Other(_)) => Err(refused(OTHER.to_owned())),
        Some(RawText::Text(found)) => parse_duration(&found)
            .filter(|duration| accepted.contains(duration))
            .ok_or_else(|| refused(quoted(&found))),
    }
}

fn fleet(raw: Option<RawText>, default: Fleet) -> Result<Fleet, PolicyError> {
    let expected = "off, advise or enforce";
    let refused = |found| PolicyError { field: "fleet", expected, found };
    match raw {
        None => Ok(default),
        Some(RawText::Other(_)) => Err(refused(OTHER.to_owned())),
        Some(RawText::Text(found)) => match found.as_str() {
            "off" => Ok(Fleet::Off),
            "advise" => Ok(Fleet::Advise),
            "enforce" => Ok(Fleet::Enforce),
            _ => Err(refused(quoted(&found))),
        },
    }
}

/// `1h`, `90s`, `1m30s`, `250ms`, `500us`: whole numbers, each with a unit, added up.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at_checked(digits)?;
        let number: u32 = number.parse().ok()?;
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(letters)?;
        let unit = match unit {
            "us" => Duration::from_micros(1),
            "ms" => Duration::from_millis(1),
            "s" => SECOND,
            "m" => Duration::from_secs(60),
            "h" => HOUR,
            _ => return None,
        };
        sum = sum.checked_add(unit.checked_mul(number)?)?;
        rest = next.trim_start();
    }
    Some(sum)
}

/// Codes in one list, at most.
const MAX_CODES: usize = 16;

const CODES: &str = "at most 16 codes or ranges between 400 and 599, such as \"500-599\"";

fn codes(raw: Vec<RawCodes>) -> Result<Codes, PolicyError> {
    let refused = |found| PolicyError { field: "failure_codes", expected: CODES, found };
    if raw.len() > MAX_CODES {
        return Err(refused(format!("{} entries", raw.len())));
    }
    let mut set = Codes::default();
    for entry in raw {
        let text = match entry {
            RawCodes::One(code) => code.to_string(),
            RawCodes::Text(text) => text,
            RawCodes::Other(_) => return Err(refused(OTHER.to_owned())),
        };
        let (low, high) = text.split_once('-').unwrap_or((&text, &text));
        let parse = |part: &str| part.trim().parse::<u16>().ok().filter(is_error);
        match (parse(low), parse(high)) {
            (Some(low), Some(high)) if low <= high => {
                (low..=high).for_each(|code| set.insert(code));
            }
            _ => return Err(refused(quoted(&text))),
        }
    }
    Ok(set)
}

fn is_error(code: &u16) -> bool {
    (400..=599).contains(code)
}

fn server_errors() -> Codes {
    let mut set = Codes::default();
    (500..=599).for_each(|code| set.insert(code));
    set
}

/// What the operator wrote, cut to a length that fits a log line.
fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(40).collect();
    format!("{cut:?}")
}

#[cfg(test)]
mod tests;
