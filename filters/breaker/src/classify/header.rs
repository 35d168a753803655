//! The headers that say how long: `retry-after` of an answer, and a client's own deadline.

use std::time::Duration;

use pintle_contract::Now;

/// How long a client waits, by the `grpc-timeout` of its request: at most eight digits and a unit.
///
/// Specification: "gRPC over HTTP/2", `Timeout`. `None` for anything else.
#[must_use]
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The same by `x-envoy-expected-rq-timeout-ms`, which an Envoy in front of this one writes, or
/// `x-envoy-upstream-rq-timeout-ms`, by which a client sets this Envoy's time-out.
#[must_use]
pub fn parse_timeout_ms(value: &[u8]) -> Option<Duration> {
    if value.is_empty() || value.len() > 10 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let millis = value.iter().fold(0, |sum: u64, digit| sum * 10 + u64::from(digit - b'0'));
    // To Envoy 0 is none at all.
    (millis > 0).then(|| Duration::from_millis(millis))
}

/// The value of a `retry-after` header (RFC 9110, section 10.2.3): seconds, or an IMF-fixdate.
///
/// `None` for anything else; a date in the past is zero. Seconds beyond `u32` are cut to that.
#[must_use]
pub fn parse_retry_after(value: &[u8], now: Now) -> Option<Duration> {
    let text = value.trim_ascii();
    if !text.is_empty() && text.iter().all(u8::is_ascii_digit) {
        let seconds = text.iter().fold(0u64, |sum, digit| {
            (sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'))).min(u32::MAX.into())
        });
        return Some(Duration::from_secs(seconds));
    }
    let at = Duration::from_secs(imf_fixdate(text)?);
    Some(at.saturating_sub(Duration::from_nanos(now.0)))
}

/// Seconds since the Unix epoch of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn imf_fixdate(text: &[u8]) -> Option<u64> {
    const MONTHS: [&[u8]; 12] = [
        b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov",
        b"Dec",
    ];
    let field = |from: usize, to: usize| text.get(from..to);
    let number = |from: usize, to: usize| -> Option<u64> {
        field(from, to)?.iter().try_fold(0u64, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
        })
    };
    let spaced = text.len() == 29
        && field(3, 5)? == b", "
        && field(7, 8)? == b" "
        && field(11, 12)? == b" "
        && field(16, 17)? == b" "
        && field(19, 20)? == b":"
        && field(22, 23)? == b":"
        && field(25, 29)? == b" GMT";
    if !spaced {
        return None;
    }
    let month = MONTHS.iter().position(|name| field(8, 11) == Some(*name))? as u64 + 1;
    let (day, year) = (number(5, 7)?, number(12, 16)?);
    let (hour, minute, second) = (number(17, 19)?, number(20, 22)?, number(23, 25)?);
    if year < 1970 || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from the civil date, counted in years that begin in March so that the leap day is last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        (y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}
