//! Questions of speed and endurance, one file each; here is how each of them begins and ends.

pub mod reader;
pub mod transaction;

use std::process::ExitCode;

use clap::Parser;
use pintle_tests::Result;
use serde_json::{Value, json};

/// What every bench is asked.
#[derive(Debug, clap::Args)]
#[command(about = None, long_about = None)]
pub struct Run {
    /// End with 1 where a figure falls short
    #[arg(long)]
    check: bool,
    /// Said by `cargo bench`; `cargo test --benches` does not say it, for which building is the
    /// test.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Runs a bench by its options and tells what came of it: whatever falls short, then the figures as
/// a last line of JSON. The code is 0, or 1 when it falls short and `--check` minds, 64 for options
/// that are none.
pub async fn conclude<O: Parser>(
    name: &str,
    run: impl Fn(&O) -> &Run,
    measure: impl AsyncFnOnce(&O) -> Result<(Value, Vec<String>)>,
) -> ExitCode {
    let options = match O::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let run = run(&options);
    if !run.bench {
        return ExitCode::SUCCESS;
    }
    match measure(&options).await {
        Ok((mut figures, short)) => {
            short.iter().for_each(|short| println!("SHORT: {short}"));
            figures["bench"] = json!(name);
            figures["met"] = json!(short.is_empty());
            figures["short"] = json!(short);
            println!("{figures}");
            ExitCode::from(u8::from(run.check && !short.is_empty()))
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The highest resident memory of a process so far, in MiB.
#[must_use]
pub fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or(f64::INFINITY, |kib| kib / 1024.0)
}
