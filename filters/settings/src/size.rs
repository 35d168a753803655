//! Sizes as people write them: a whole number and `KiB`, `MiB` or `GiB`, or bytes without a unit.

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads a size in bytes; `None`: the text is none.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let unit = UNITS.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let number = number.trim_end();
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| number.parse::<u64>().ok()?.checked_mul(unit)).flatten()
}

/// The text with the largest unit that is exact.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    let exact = |(_, unit): &(&str, u64)| bytes > 0 && bytes.is_multiple_of(*unit);
    match UNITS.into_iter().find(exact) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_a_unit() {
        for (text, bytes) in [
            ("256MiB", Some(256 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("64KiB", Some(65_536)),
            ("1000", Some(1_000)),
            ("", None),
            ("MiB", None),
            ("-1MiB", None),
            ("1.5GiB", None),
            ("1MB", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for bytes in [0, 1, 1_000, 1 << 20, 3 << 30, (1 << 20) + 1] {
            assert_eq!(parse_size(&size_text(bytes)), Some(bytes));
        }
    }
}
