//! `cargo xtask fuzz`: the targets of `fuzz/` under libFuzzer, one after the other.
//!
//! Without a sanitizer: nothing that is fuzzed is unsafe, so a finding is a panic or a broken
//! promise, and the toolchain that builds everything else will do. What a run finds new goes below
//! the target directory. A finding is kept by moving it to `fuzz/corpus/{target}/` under a name
//! that says what it was, where every test run replays it.

use pintle_tests::{Error, Result, tools};

use crate::shell::{output, run, run_reading_errors};

/// How long a target runs when nothing is said.
const LIMIT: &str = "-max_total_time=60";
/// Seconds for one input, at most; the slowest takes milliseconds.
const TIMEOUT: u32 = 10;
/// Bytes of an input, at most: enough for a hundred steps, and ten times as fast as the most there
/// could be.
const LENGTH: u32 = 1024;
/// The release that the flags below are of.
const VERSION: &str = "0.13.2";

/// What libFuzzer said of a target.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    runs: u64,
    edges: u64,
}

/// The `fuzz` command: one target or all, for so many runs or seconds each.
pub fn run_fuzz(args: &[&str]) -> Result<()> {
    let (target, limit) = read(args)?;
    let all = targets()?;
    let chosen: Vec<&String> =
        all.iter().filter(|t| target.is_none_or(|name| name == *t)).collect();
    if chosen.is_empty() {
        return Err(Error::new(format!("no such target, there are {}", all.join(", "))));
    }
    let tools = tools::target_dir().join("tools");
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", tools.join("bin").display());
    bring(&tools)?;

    let fuzz = tools::target_dir().join("fuzz");
    let mut lines = Vec::new();
    let mut crashes = 0;
    for name in chosen {
        let (new, findings) = (fuzz.join("corpus").join(name), fuzz.join("findings").join(name));
        std::fs::create_dir_all(&new)?;
        std::fs::create_dir_all(&findings)?;
        let line = format!(
            "cargo fuzz run --fuzz-dir fuzz --target-dir {} --sanitizer none --features libfuzzer any \
             {} fuzz/corpus/{name} -- {limit} -timeout={TIMEOUT} -max_len={LENGTH} \
             -print_final_stats=1 -artifact_prefix={}/",
            fuzz.display(),
            new.display(),
            findings.display(),
        );
        println!("\n== {name}: FUZZ_TARGET={name} {line}");
        let mut said = Said::default();
        let envs = [("FUZZ_TARGET", name.as_str()), ("PATH", &path)];
        let clean = run_reading_errors(&line, &envs, |line| said.hear(line))?;
        let Said { runs, edges } = said;
        if !clean && runs == 0 {
            return Err(Error::new(format!("{name} did not run")));
        }
        // libFuzzer ends with the first.
        let crashed = u32::from(!clean);
        crashes += crashed;
        lines.push(format!("{name}: {runs} runs, {edges} edges, {crashed} crashes"));
    }
    println!("\n{}", lines.join("\n"));
    match crashes {
        0 => Ok(()),
        _ => Err(Error::new(format!("findings are in {}", fuzz.join("findings").display()))),
    }
}

/// The target, if one is named, and libFuzzer's flag for the limit.
fn read<'a>(args: &[&'a str]) -> Result<(Option<&'a str>, String)> {
    let (target, rest) = match args {
        [name, rest @ ..] if !name.starts_with('-') => (Some(*name), rest),
        rest => (None, rest),
    };
    let limit = match rest {
        [] => Some(LIMIT.to_string()),
        ["--runs", n] => n.parse::<u64>().ok().map(|n| format!("-runs={n}")),
        ["--seconds", n] => n.parse::<u64>().ok().map(|n| format!("-max_total_time={n}")),
        _ => None,
    };
    let limit = limit.ok_or_else(|| Error::new("expected [TARGET] [--runs N | --seconds N]"))?;
    Ok((target, limit))
}

/// By their corpora: `fuzz/tests/corpus.rs` holds the two lists together.
fn targets() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(tools::root().join("fuzz/corpus"))?;
    let names = entries.filter_map(|e| e.ok()).map(|e| e.file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn bring(tools: &std::path::Path) -> Result<()> {
    let there = output(&format!("{}/bin/cargo-fuzz --version", tools.display()));
    if there.is_some_and(|said| said.contains(VERSION)) {
        return Ok(());
    }
    let root = tools.display();
    run(&format!("cargo install cargo-fuzz --version {VERSION} --locked --root {root}"), &[])
}

impl Said {
    /// `#4096 pulse cov: 812 ft: ...` and `stat::number_of_executed_units: 4096`.
    fn hear(&mut self, line: &str) {
        let after = |mark: &str| {
            let (_, rest) = line.split_once(mark)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        if line.starts_with('#') {
            self.edges = after(" cov: ").unwrap_or(self.edges);
        }
        self.runs = after("stat::number_of_executed_units: ").unwrap_or(self.runs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_edges_are_read_from_libfuzzers_lines() {
        let mut said = Said::default();
        for line in [
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#1000\tDONE   cov: 310 ft: 1200 corp: 90/4Kb lim: 4096 exec/s: 500 rss: 40Mb",
            "cov: 1 in somebody's output",
            "stat::number_of_executed_units: 1000",
            "stat::average_exec_per_sec:     500",
        ] {
            said.hear(line);
        }
        assert_eq!(said, Said { runs: 1000, edges: 310 });
    }

    #[test]
    fn a_target_and_one_limit_are_understood_and_nothing_else() {
        let flag = |args: &[&str]| {
            read(args).ok().map(|(target, limit)| (target.map(str::to_owned), limit))
        };
        let all = |limit: &str| Some((None, limit.to_owned()));
        assert_eq!(flag(&[]), all(LIMIT));
        assert_eq!(flag(&["--runs", "5"]), all("-runs=5"));
        assert_eq!(
            flag(&["a", "--seconds", "9"]),
            Some((Some("a".into()), "-max_total_time=9".into()))
        );
        for wrong in
            [&["--runs"][..], &["--runs", "x"], &["a", "b"], &["--runs", "1", "--seconds", "1"]]
        {
            assert_eq!(flag(wrong), None, "{wrong:?}");
        }
    }
}
