//! What the operator may ask of the breaker, checked.
//!
//! [`Policy`] cannot hold a value that the machine has no answer for. Every key may be left out.

use std::ops::RangeInclusive;
use std::time::Duration;

use pintle_settings::{DAY, HOUR, Invalid, MILLISECOND, MINUTE, SECOND, Section, Settings};
use serde_json::Value;

use crate::charge::Retries;

/// Probe slots of one record, at most.
pub const MAX_PROBES: usize = 8;

/// When a breaker opens, for how long, and how it closes again. It is read from an object with the
/// field names below; the default of each is given there.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// How long the first trip keeps it open; each further one doubles it. 30 s; 100 ms to 1 h.
    /// While nobody of the service is eligible and panic is off it is tried each half second all
    /// the same.
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
    /// Why requests have several attempts. `failures`.
    pub retries: Retries,
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
            retries: Retries::Failures,
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

/// The longest `half_open.timeout`.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// The longest `retry_after`.
pub(crate) const MAX_RETRY_AFTER: Duration = HOUR;
const TENTH: Duration = MILLISECOND.saturating_mul(100);

impl Settings for Policy {
    fn read(keys: &mut Section) -> Self {
        let default = Self::unconfigured();
        let open = keys.duration("open", TENTH..=HOUR, default.open);
        // The default limit follows a base that lies above it.
        let open_max = keys.duration("open_max", TENTH..=DAY, default.open_max.max(open));
        keys.ensure(open <= open_max, "open_max", "at least open");
        Self {
            consecutive_failures: keys.whole(
                "consecutive_failures",
                0..=1_000_000,
                default.consecutive_failures,
            ),
            failure_rate: keys.section("failure_rate").unwrap_or(default.failure_rate),
            window: keys.duration("window", SECOND..=MINUTE.saturating_mul(10), default.window),
            slow_call: keys.section("slow_call"),
            open,
            open_max,
            jitter_percent: keys.whole("jitter_percent", 0..=100, default.jitter_percent),
            half_open: keys.section("half_open").unwrap_or(default.half_open),
            max_ejection_percent: keys.whole(
                "max_ejection_percent",
                0..=100,
                default.max_ejection_percent,
            ),
            failure_codes: codes(keys).unwrap_or(default.failure_codes),
            retries: keys.word("retries", &RETRIES, default.retries),
            fleet: keys.word("fleet", &FLEET, default.fleet),
            fleet_ttl: keys.duration("fleet_ttl", SECOND..=HOUR, default.fleet_ttl),
            retry_after: keys.duration(
                "retry_after",
                SECOND..=MAX_RETRY_AFTER,
                default.retry_after,
            ),
        }
    }
}

const RETRIES: [(&str, Retries); 3] =
    [("failures", Retries::Failures), ("any", Retries::Any), ("logged", Retries::Logged)];
const FLEET: [(&str, Fleet); 3] =
    [("off", Fleet::Off), ("advise", Fleet::Advise), ("enforce", Fleet::Enforce)];

impl Settings for Rate {
    fn read(keys: &mut Section) -> Self {
        Self {
            percent: keys.whole("percent", 0..=100, 50),
            min_requests: keys.whole("min_requests", 1..=1_000_000, 10),
        }
    }
}

impl Settings for SlowCall {
    fn read(keys: &mut Section) -> Self {
        Self {
            threshold: keys.duration("threshold", MILLISECOND..=HOUR, SECOND),
            rate: Rate::read(keys),
        }
    }
}

impl Settings for HalfOpen {
    fn read(keys: &mut Section) -> Self {
        let default = Policy::unconfigured().half_open;
        Self {
            probes: keys.whole("probes", 1..=MAX_PROBES as u8, default.probes),
            successes: keys.whole("successes", 1..=100, default.successes),
            timeout: keys.duration("timeout", TENTH..=MAX_TIMEOUT, default.timeout),
        }
    }
}

/// Codes or ranges in one list, at most.
const MAX_CODES: usize = 16;

fn codes(keys: &mut Section) -> Option<Codes> {
    let ranges = keys.list("failure_codes", 0..=MAX_CODES, code_range)?;
    let mut set = Codes::default();
    ranges.into_iter().flatten().for_each(|code| set.insert(code));
    Some(set)
}

fn code_range(path: &str, entry: Value) -> Result<RangeInclusive<u16>, Invalid> {
    let text = entry.as_str().map_or_else(|| entry.to_string(), ToOwned::to_owned);
    let (low, high) = text.split_once('-').unwrap_or((&text, &text));
    let parse = |part: &str| part.trim().parse().ok().filter(|code| (400..=599).contains(code));
    match (parse(low), parse(high)) {
        (Some(low), Some(high)) if low <= high => Ok(low..=high),
        _ => {
            let accepts = "a code or a range between 400 and 599, such as 503 or \"500-599\"";
            Err(Invalid::new(path, accepts).found(&entry))
        }
    }
}

fn server_errors() -> Codes {
    let mut set = Codes::default();
    (500..=599).for_each(|code| set.insert(code));
    set
}

#[cfg(test)]
mod tests;
