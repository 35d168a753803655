//! `cargo xtask test`: every check in one go, cheapest first, stopping at the first that fails.
//!
//! The tests themselves run to the end even when one fails, so that the last line counts all of
//! them.

use std::collections::BTreeSet;
use std::time::Instant;

use pintle_tests::tools::NATIVE;
use pintle_tests::{Error, Result};

use crate::counts::counts;
use crate::setup;
use crate::shell::{output, run, run_reading};

/// What runs inside Envoy, and so must be clean for its target. `pintle-artifact` compiles the
/// module and is itself native.
const IN_PROXY: &str = "-p pintle-contract -p pintle-settings -p pintle-balance -p pintle-breaker \
                        -p pintle-trace -p pintle-policy -p pintle-sync -p pintle-hostcalls \
                        -p pintle-module -p pintle-picks-guest";

/// What decides and calls nobody, and the host that the module is tried in: no server, no Envoy.
const PURE: &str = "-p pintle-contract -p pintle-settings -p pintle-balance -p pintle-breaker \
                    -p pintle-trace -p pintle-policy -p pintle-sync -p pintle-state \
                    -p pintle-harness";

/// What it is called, the command, and variables for it.
type Step<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// Runs every step, of `all` that there are; the error of the first that fails.
fn run_steps(steps: &[Step<'_>], all: usize) -> Result<()> {
    for (number, (what, line, envs)) in steps.iter().enumerate() {
        println!("\n== {} of {all}, {what}: {line}", number + 2);
        let began = Instant::now();
        run(line, envs)?;
        println!("== {what}: {:.1} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The `test` command.
pub fn run_all() -> Result<()> {
    let all = Instant::now();
    println!("== 1 of 10, setup; all ten take about 40 minutes on two cores");
    setup::bring(setup::ALL)?;
    let wasm = format!("cargo clippy {IN_PROXY} --target wasm32-wasip1 -- -D warnings");
    let agent = format!("cargo build {NATIVE} --bin pintle");
    let steps: [Step<'_>; 5] = [
        ("format", "cargo fmt --all -- --check", &[]),
        ("clippy", "cargo clippy --workspace --all-targets -- -D warnings", &[]),
        ("clippy, wasm", &wasm, &[]),
        ("docs", "cargo doc --workspace --no-deps", &[("RUSTDOCFLAGS", "-D warnings")]),
        ("agent", &agent, &[]),
    ];
    run_steps(&steps, 10)?;

    let (mut clean, mut passed, mut failed) = (true, 0, 0);
    for (number, lane) in lanes()?.iter().enumerate() {
        println!("\n== {} of 10, tests, {}: {}", number + 7, lane.what, lane.line);
        let began = Instant::now();
        let (good, counts) = counted(&lane.line, &[("RUST_TEST_THREADS", lane.threads)])?;
        (clean, passed, failed) = (clean && good, passed + counts.0, failed + counts.1);
        println!("== tests, {}: {:.1} s", lane.what, began.elapsed().as_secs_f64());
    }
    println!("\n== 10 of 10, oldest Envoy");
    let began = Instant::now();
    let oldest = crate::matrix::run_oldest()?;
    println!("== oldest Envoy: {:.1} s", began.elapsed().as_secs_f64());
    (passed, failed) = (passed + oldest.0, failed + oldest.1);
    let clean = clean && oldest.1 == 0;

    println!("\n== all: {:.1} s", all.elapsed().as_secs_f64());
    verdict(clean, passed, failed)
}

/// Tests that go side by side, or one at a time.
struct Lane {
    what: &'static str,
    line: String,
    threads: &'static str,
}

/// What runs an Envoy, an agent and a load beside each other and holds them to milliseconds: two
/// such on two cores would measure each other.
const IN_TURNS: [&str; 4] = ["breakers", "e2e", "ledger", "selection"];

/// All tests of what is native; the cdylib has no native test binary, because the host's calls are
/// not there to link. Most wait for servers most of their time, and go side by side.
fn lanes() -> Result<[Lane; 3]> {
    let lane = |what, which: &str, threads| {
        let line = format!("cargo test {NATIVE} --no-fail-fast{which}");
        Lane { what, line, threads }
    };
    let (in_turns, others): (Vec<String>, Vec<String>) =
        integration_tests()?.into_iter().partition(|name| IN_TURNS.contains(&name.as_str()));
    let side_by_side = format!(" --lib --bins{}", named(&others));
    Ok([
        lane("side by side", &side_by_side, "3"),
        lane("in turns", &named(&in_turns), "1"),
        lane("documents", " --doc", "1"),
    ])
}

fn named(tests: &[String]) -> String {
    tests.iter().map(|name| format!(" --test {name}")).collect()
}

/// The names of the workspace's integration tests, each once.
fn integration_tests() -> Result<BTreeSet<String>> {
    let line = "cargo metadata --no-deps --format-version 1";
    let said = output(line).ok_or_else(|| Error::new(format!("`{line}` does not succeed")))?;
    let all: serde_json::Value =
        serde_json::from_str(&said).map_err(|e| Error::new(e.to_string()))?;
    let packages = all["packages"].as_array().into_iter().flatten();
    let targets = packages.filter_map(|package| package["targets"].as_array()).flatten();
    let tests = targets.filter(|target| target["kind"][0] == "test");
    Ok(tests.filter_map(|target| target["name"].as_str().map(str::to_owned)).collect())
}

/// The `test --quick` command: what needs no server, for the minutes between two edits.
pub fn run_quick() -> Result<()> {
    let all = Instant::now();
    println!("== 1 of 3, setup");
    setup::bring(&[setup::Tool::Wasm])?;
    run_steps(&[("format", "cargo fmt --all -- --check", &[])], 3)?;
    let line = format!("cargo test --quiet --no-fail-fast {PURE}");
    println!("\n== 3 of 3, tests: {line}");
    let (clean, (passed, failed)) = counted(&line, &[])?;
    println!("\n== all: {:.1} s", all.elapsed().as_secs_f64());
    verdict(clean, passed, failed)
}

/// Runs tests: whether all is well, and how many passed and failed.
fn counted(line: &str, envs: &[(&str, &str)]) -> Result<(bool, (u64, u64))> {
    let (mut passed, mut failed) = (0, 0);
    let clean = run_reading(line, envs, |line| {
        if let Some(counts) = counts(line) {
            passed += counts.0;
            failed += counts.1;
        }
    })?;
    Ok((clean, (passed, failed)))
}

/// The last line.
fn verdict(clean: bool, passed: u64, failed: u64) -> Result<()> {
    println!("{passed} passed, {failed} failed");
    match clean {
        true => Ok(()),
        // A test binary that did not build or was killed counts nothing and still fails the run.
        false => Err(Error::new("tests failed")),
    }
}

/// The `bench` command.
pub fn bench(args: &[&str]) -> Result<()> {
    setup::bring(setup::SERVERS)?;
    if matches!(args, [] | ["limits", ..]) {
        setup::bring(&[setup::Tool::HaProxy])?;
    }
    let line = match args {
        [] => "cargo bench -p pintle-benches".to_string(),
        [name, rest @ ..] => {
            let rest =
                if rest.is_empty() { String::new() } else { format!(" -- {}", rest.join(" ")) };
            format!("cargo bench -p pintle-benches --bench {name}{rest}")
        }
    };
    println!("== {line}");
    crate::shell::run(&line, &[])
}

#[cfg(test)]
mod tests {
    /// Tables, code and diagrams in comments are as wide as they are.
    #[test]
    fn no_sentence_of_a_comment_is_beyond_100_columns() {
        let files = super::output("git ls-files *.rs").expect("the files");
        let root = pintle_tests::tools::root();
        let mut beyond = Vec::new();
        for file in files.lines() {
            let text = std::fs::read_to_string(root.join(file)).expect("a file");
            let lines = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > 100);
            let sentences = lines.filter(|(_, line)| {
                let said = line.trim_start().trim_start_matches(['/', '!']);
                let comment = said.len() < line.trim_start().len();
                let words = said.split_whitespace().count();
                comment && words > 8 && !said.starts_with(" |") && !said.contains("   ")
            });
            beyond.extend(sentences.map(|(number, _)| format!("{file}:{number}")));
        }
        assert!(beyond.is_empty(), "{beyond:#?}");
    }

    /// A map that names what is not there leads nobody anywhere.
    #[test]
    fn every_path_of_the_code_map_exists_and_every_folder_is_on_it() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("the page");
        let map = page.split("## Code map").nth(1).and_then(|rest| rest.split("\n## ").next());
        let rows = map.expect("a code map").lines().filter(|line| line.starts_with("| `"));
        let paths: Vec<&str> = rows.filter_map(|line| line.split('`').nth(1)).collect();
        assert!(paths.len() >= 15, "{paths:?}");
        for path in &paths {
            assert!(root.join(path).exists(), "{path} is on the map and not in the tree");
        }
        let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
        let members = manifest.lines().map(str::trim).filter(|line| line.ends_with("\","));
        for member in members.filter_map(|line| line.split('"').nth(1)).filter(|m| m.contains('/'))
        {
            assert!(paths.contains(&member), "{member} is in the tree and not on the map");
        }
    }
}
