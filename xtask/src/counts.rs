//! What cargo says of a test binary, as numbers.

/// `test result: ok. 41 passed; 0 failed; ...` as numbers.
pub fn counts(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = counts.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn counts_are_read_from_cargos_own_line_and_from_no_other() {
        let rows = [
            ("test result: ok. 41 passed; 0 failed; 0 ignored; 0 measured", Some((41, 0))),
            ("test result: FAILED. 39 passed; 2 failed; 0 ignored; 0 measured", Some((39, 2))),
            ("test envoy::it_works ... ok", None),
            ("it said: test result: ok. 1 passed; 0 failed;", None),
        ];
        for (line, expected) in rows {
            assert_eq!(counts(line), expected, "{line}");
        }
    }
}
