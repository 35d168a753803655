//! Commands, printed as a person would type them.
//!
//! Children share our process group, so that a Ctrl-C reaches cargo and everything below it directly.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};

use pintle_tests::{Error, Result, tools};

/// Runs a command in the root with its output going where ours goes; not succeeding is an error.
pub fn run(line: &str, envs: &[(&str, &str)]) -> Result<()> {
    let status = command(line, envs).status().map_err(|e| Error::from(e).during(line))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(format!("`{line}` ended with {status}"))),
    }
}

/// As [`run`], and hands every line of standard output to `each` after printing it.
pub fn run_reading(line: &str, envs: &[(&str, &str)], each: impl FnMut(&str)) -> Result<bool> {
    let child = command(line, envs).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| Error::from(e).during(line))?;
    read_each(child.stdout.take(), each)?;
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
    read_each(child.stderr.take(), each)?;
    Ok(child.wait()?.success())
}

fn read_each(from: Option<impl Read>, mut each: impl FnMut(&str)) -> Result<()> {
    if let Some(from) = from {
        for line in BufReader::new(from).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
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
