//! `cargo xtask rolling`: everything rolled under load in its long form, three rounds with drains
//! that are long enough for a module by LDS, and with the agent of the release before, which is
//! built of its commit.

use pintle_tests::{Result, tools};

use crate::setup;
use crate::shell::run;

/// The commit that was 0.1.0, whose module is `tests/skew/pintle-0.1.0.wasm.gz`.
const BEFORE: &str = "60c7988";

pub fn run_long() -> Result<()> {
    setup::bring(setup::SERVERS)?;
    let older = tools::target_dir().join("older");
    let (source, archive) = (older.join("source"), older.join("source.tar"));
    std::fs::create_dir_all(&source)?;
    let (source, archive) = (source.display(), archive.display());
    run(&format!("git archive --format tar --output {archive} {BEFORE}"), &[])?;
    run(&format!("tar -xf {archive} -C {source}"), &[])?;
    let target = older.join("target");
    run(
        &format!(
            "cargo build --locked -p pintle-agent --bin pintle --manifest-path {source}/Cargo.toml \
             --target-dir {}",
            target.display()
        ),
        &[],
    )?;
    let agent = target.join("debug/pintle").display().to_string();
    let line = format!("cargo test {} --test e2e rolling:: -- --nocapture", tools::NATIVE);
    run(&line, &[("ROLLING_ROUNDS", "3"), ("ROLLING_OLDER_AGENT", &agent)])
}
