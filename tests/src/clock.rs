//! A wall clock that a test can step, for the servers that are started with it.
//!
//! Stepping the machine's own clock needs root and hits everything that runs. So a library that is
//! loaded before libc's answers for the wall clock (`clock/preload.rs`), with an offset that it
//! reads from a shared file; the monotonic clock is the kernel's. Debian's libfaketime would do the
//! same, but allocates when the clock is first read, and Envoy's allocator reads the clock when it
//! is first asked: both wait for each other for ever.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::{Error, Result, tools};

/// The clock; servers that were started with it keep what it last said.
#[derive(Debug)]
pub struct Clock {
    dir: TempDir,
}

impl Clock {
    /// As the machine's.
    pub fn new() -> Result<Self> {
        let clock = Self { dir: TempDir::with_prefix("pintle-clock-")? };
        clock.step(0)?;
        Ok(clock)
    }

    /// The environment of a server that is to go by it.
    pub fn envs(&self) -> Result<[(String, String); 2]> {
        let library = library()?.display().to_string();
        Ok([
            ("LD_PRELOAD".into(), library),
            ("STEPPED_CLOCK".into(), self.file().display().to_string()),
        ])
    }

    /// So many seconds away from the machine's clock, from now on.
    pub fn step(&self, seconds: i64) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        // In place: a file that is written anew is not the one that was mapped.
        let file =
            std::fs::File::options().create(true).truncate(false).write(true).open(self.file())?;
        Ok(file.write_all_at(&seconds.to_ne_bytes(), 0)?)
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("offset")
    }
}

/// Compiled once per process, by the compiler that compiles everything here.
fn library() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let source = tools::root().join("tests/src/clock/preload.rs");
        let library = tools::target_dir().join("libsteppedclock.so");
        // Under another name first: a server of another test may be loading it.
        let fresh = library.with_extension(std::process::id().to_string());
        let compiled = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
            .args(["--edition", "2024", "--crate-type", "cdylib", "-O", "-Cpanic=abort"])
            .args(["-Cstrip=symbols", "-o"])
            .args([&fresh, &source])
            .output()
            .map_err(|e| format!("rustc: {e}"))?;
        match compiled.status.success() {
            true => std::fs::rename(&fresh, &library).map_err(|e| e.to_string())?,
            false => return Err(String::from_utf8_lossy(&compiled.stderr).into_owned()),
        }
        Ok(library)
    });
    built.clone().map_err(Error::new)
}
