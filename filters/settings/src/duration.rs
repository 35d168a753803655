//! Durations as people write them: the one grammar, that of the crate `humantime`.
//!
//! `250ms`, `90sec`, `1h 30m`, `1s500ms`, `1.5s`, `1d`; a number needs a unit, but for `0`.

use std::fmt;
use std::time::Duration;

/// 1 ms.
pub const MILLISECOND: Duration = Duration::from_millis(1);
/// 1 s.
pub const SECOND: Duration = Duration::from_secs(1);
/// 1 min.
pub const MINUTE: Duration = Duration::from_secs(60);
/// 1 h.
pub const HOUR: Duration = Duration::from_secs(3600);
/// 24 h.
pub const DAY: Duration = Duration::from_secs(86_400);

/// A text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationError;

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a duration such as 250ms, 10s or 1h 30m")
    }
}

impl std::error::Error for DurationError {}

/// Reads a duration.
///
/// # Errors
/// The text is none; `humantime`'s own reason is left out, because it counts bytes of the text.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    humantime::parse_duration(text).map_err(|_| DurationError)
}

/// The shortest text of one number and one unit, from `ns` to `d`, that [`parse_duration`] reads as
/// `duration`; 0 is `0s`.
#[must_use]
pub fn duration_text(duration: Duration) -> String {
    const UNITS: [(u128, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let exact = UNITS.into_iter().find(|(unit, _)| nanos.is_multiple_of(*unit));
    let (unit, name) = exact.unwrap_or((1, "ns"));
    let number = nanos / unit;
    format!("{number}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_humantimes() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250_000_000),
            ("90sec", 90_000_000_000),
            ("1s500ms", 1_500_000_000),
            ("1.5s", 1_500_000_000),
            ("1h 30m", 5_400_000_000_000),
            ("1d", 86_400_000_000_000),
        ] {
            let expect = Duration::from_nanos(nanos);
            assert_eq!(parse_duration(text), Ok(expect), "{text}");
        }
        for text in ["", " ", "10", "-1s", "s", "1 parsec", "1s!", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }

    #[test]
    fn a_text_has_the_largest_unit_that_is_exact() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1500ns"),
            (250_000_000, "250ms"),
            (90_000_000_000, "90s"),
            (3_600_000_000_000, "1h"),
            (86_400_000_000_000, "1d"),
            (34_560_000_000_000_000, "400d"),
        ] {
            assert_eq!(duration_text(Duration::from_nanos(nanos)), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_again(nanos: u64) {
            let duration = Duration::from_nanos(nanos);
            proptest::prop_assert_eq!(parse_duration(&duration_text(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_a_duration_or_is_refused(text: String) {
            let _ = parse_duration(&text);
        }
    }
}
