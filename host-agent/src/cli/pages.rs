//! `pintle man`: the man pages, made of what `--help` says.

use std::fs;
use std::io::{Write, stdout};
use std::path::Path;

use super::CliError;

/// Writes `pintle.1` and a page for each command, such as `pintle-check.1`.
pub(super) fn write(command: clap::Command, dir: &Path) -> Result<(), CliError> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)?;
    let pages = fs::read_dir(dir)?.filter_map(Result::ok);
    let pages = pages.filter(|page| page.path().extension().is_some_and(|it| it == "1")).count();
    writeln!(stdout(), "{pages} man pages in {}", dir.display())?;
    Ok(())
}
