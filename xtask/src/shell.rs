//! Commands, printed as a person would type them.
//!
//! Children share our process group, so that a Ctrl-C reaches cargo and everything below it
//! directly.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pintle_tests::{Error, Result, tools};

/// Runs a command in the root with its output going where ours goes; not succeeding is an error.
pub fn run(line: &str, envs: &[(&str, &str)]) -> Result<()> {
    let status = command(line, envs).status().map_err(|e| Error::from(e).during(line))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(format!("`{line}` ended with {status}"))),
    }
}

/// As [`run`], with all that it says appended to a file; an error has the last lines of it.
pub fn run_logged(line: &str, envs: &[(&str, &str)], log: &Path) -> Result<()> {
    std::fs::create_dir_all(log.parent().unwrap_or(log))?;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
    let (out, err) = (Stdio::from(file.try_clone()?), Stdio::from(file));
    let status = command(line, envs).stdin(Stdio::null()).stdout(out).stderr(err).status();
    let status = status.map_err(|e| Error::from(e).during(line))?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    let last: Vec<&str> = said.lines().rev().take(20).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Error::new(format!("`{line}` ended with {status}:\n{}", last.join("\n"))))
}

/// How often a build says how far it is.
const EVERY: Duration = Duration::from_secs(10);

/// Runs a cargo build whose own lines would be hundreds, and says how many of about `total` crates
/// it has, every few seconds.
pub fn build(line: &str, total: usize) -> Result<()> {
    let line = format!("{line} --quiet --message-format json-render-diagnostics");
    let child = command(&line, &[]).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| Error::from(e).during(&line))?;
    let (began, mut said) = (Instant::now(), Instant::now());
    // One that is built for the machine and for its build scripts is one.
    let mut done = BTreeSet::new();
    read_each(child.stdout.take(), |message| {
        let message: serde_json::Value = serde_json::from_str(message).unwrap_or_default();
        let kind = &message["target"]["kind"][0];
        if message["reason"] == "compiler-artifact" && kind != "custom-build" {
            done.insert(message["package_id"].to_string());
        }
        if said.elapsed() >= EVERY {
            said = Instant::now();
            let (done, seconds) = (done.len(), began.elapsed().as_secs());
            println!("  {done} of about {total} crates, {seconds} s");
        }
    })?;
    match child.wait()?.success() {
        true => Ok(()),
        false => Err(Error::new(format!("`{line}` did not succeed"))),
    }
}

/// As [`run`], and hands every line of standard output to `each` after printing it.
pub fn run_reading(line: &str, envs: &[(&str, &str)], each: impl FnMut(&str)) -> Result<bool> {
    let child = command(line, envs).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| Error::from(e).during(line))?;
    read_each(child.stdout.take(), printing(each))?;
    Ok(child.wait()?.success())
}

/// The same of standard error, where libFuzzer says everything.
pub fn run_reading_errors(
    line: &str,
    envs: &[(&str, &str)],
    each: impl FnMut(&str),
) -> Result<bool> {
    let child = command(line, envs).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| Error::from(e).during(line))?;
    read_each(child.stderr.take(), printing(each))?;
    Ok(child.wait()?.success())
}

fn printing(mut each: impl FnMut(&str)) -> impl FnMut(&str) {
    move |line| {
        println!("{line}");
        each(line);
    }
}

fn read_each(from: Option<impl Read>, mut each: impl FnMut(&str)) -> Result<()> {
    if let Some(from) = from {
        for line in BufReader::new(from).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            each(&line);
        }
    }
    Ok(())
}

/// What a command prints; `None` when it cannot be run or does not succeed.
pub fn output(line: &str) -> Option<String> {
    let done = command(line, &[]).stderr(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

fn command(line: &str, envs: &[(&str, &str)]) -> Command {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.current_dir(tools::root()).args(words).envs(envs.iter().copied());
    // Set by the cargo that runs us for this package; a cargo below must not inherit it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") {
            command.env_remove(&name);
        }
    }
    command
}
