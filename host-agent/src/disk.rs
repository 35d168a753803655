//! The last good state on disk: written whole, or not at all.
//!
//! One line says form, checksum and length, then comes the JSON of [`Saved`]. A new file is written
//! beside the old one, flushed, and renamed over it, so that whoever reads finds one or the other;
//! the checksum finds what a disk did later. What is not a whole file of this form is not taken:
//! starting empty is worse than starting stale, and both are better than starting wrong. It is set
//! aside under another name, because a person or another release may make something of it. A disk
//! that is full costs an alarm and leaves the old file alone.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use pintle_state::Saved;
use xxhash_rust::xxh64::Xxh64;

const MAGIC: &str = "pintle-state-1";
/// 100,000 values of 64 KiB are more than this; what an agent can serve is far less.
const MAX_BYTES: u64 = 1 << 30;
/// Bytes of the first line, at most.
const MAX_HEAD: u64 = 128;
/// So many are set aside; those of the first starts are kept.
const MAX_ASIDE: u32 = 9;

/// Why the file was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It could not be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not whole.
    #[error("{0}")]
    Corrupt(&'static str),
}

/// Where the state is kept.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    /// Whether something that could not be taken is still in the file's place.
    blocked: bool,
    /// Held for as long as this process may write.
    lock: Arc<OnceLock<File>>,
}

impl Disk {
    /// Keeps the state in `dir`, which is made (0700) when it is absent.
    #[must_use]
    pub(crate) fn new(dir: &Path) -> Self {
        Self { path: dir.join("state"), blocked: false, lock: Arc::default() }
    }

    /// Reads what was kept, and sets aside what cannot be taken; `None` when there is nothing to go
    /// on from. Until what is in the file's place can be moved, nothing is stored.
    pub(crate) fn resume(&mut self) -> Option<Saved> {
        let error = match self.load() {
            Ok(saved) => return saved,
            Err(error) => error,
        };
        let path = self.path.display();
        match self.set_aside() {
            Ok(aside) => tracing::warn!(
                %error, %path, aside = %aside.display(),
                "the last good state on disk is not usable and was set aside"
            ),
            Err(refused) => {
                self.blocked = true;
                tracing::error!(
                    %error, %path, %refused,
                    "the last good state on disk is not usable and cannot be set aside; none is written"
                );
            }
        }
        None
    }

    /// Moves what is in the file's place to the first name that is free; of the last one the place
    /// is taken.
    fn set_aside(&self) -> io::Result<PathBuf> {
        let name = |number| self.path.with_extension(format!("refused.{number}"));
        let free = (1..MAX_ASIDE).map(name).find(|aside| fs::symlink_metadata(aside).is_err());
        let aside = free.unwrap_or_else(|| name(MAX_ASIDE));
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    fn load(&self) -> Result<Option<Saved>, LoadError> {
        // Opening a FIFO waits for its writer.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let corrupt = LoadError::Corrupt;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(corrupt("not a file"));
        }
        if metadata.len() > MAX_BYTES {
            return Err(corrupt("more than 1 GiB"));
        }
        let mut reader = BufReader::new(&file);
        let mut head = Vec::new();
        reader.by_ref().take(MAX_HEAD).read_until(b'\n', &mut head)?;
        let line = head.strip_suffix(b"\n").ok_or(corrupt("no header"))?;
        let line = std::str::from_utf8(line).map_err(|_| corrupt("not a header"))?;
        if !line.starts_with(MAGIC) {
            return Err(corrupt("another form"));
        }
        let mut sum = Sum::new();
        io::copy(&mut reader.take(MAX_BYTES), &mut sum)?;
        if line != sum.head() {
            return Err(corrupt("wrong checksum or length"));
        }
        let mut body = &file;
        body.seek(SeekFrom::Start(u64::try_from(head.len()).unwrap_or(0)))?;
        let saved = serde_json::from_reader(BufReader::new(body));
        saved.map(Some).map_err(|_| corrupt("not a state"))
    }

    /// Two agents that were given one directory would take each other's state for their own. The
    /// lock is on the directory itself: a file open for writing keeps a disk from being remounted
    /// read-only.
    fn lock(&self, dir: &Path) -> io::Result<()> {
        if self.lock.get().is_some() {
            return Ok(());
        }
        let place = File::open(dir)?;
        if matches!(place.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(io::Error::other("another agent writes to this directory"));
        }
        // A file system without locks keeps nobody apart. Whoever was first in this process has it
        // as well.
        let _ = self.lock.set(place);
        Ok(())
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The old file is still there, untouched.
    pub(crate) fn store(&self, saved: &Saved) -> io::Result<()> {
        if self.blocked {
            return Err(io::Error::other("what is in the file's place cannot be set aside"));
        }
        // Made twice, so that it is never whole in memory.
        let mut sum = Sum::new();
        write(&mut sum, saved)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        self.lock(dir)?;
        let beside = self.path.with_extension("new");
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(sum.head().as_bytes())?;
            file.write_all(b"\n")?;
            write(&mut file, saved)?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)?;
            File::open(dir)?.sync_all()
        })();
        if written.is_err() {
            // Half a file would only take room on a disk that may be full.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn write(to: impl Write, saved: &Saved) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(64 << 10, to);
    serde_json::to_writer(&mut to, saved)?;
    to.flush()
}

/// Takes a body in, and knows its head.
struct Sum {
    hash: Xxh64,
    length: u64,
}

impl Sum {
    const fn new() -> Self {
        Self { hash: Xxh64::new(0), length: 0 }
    }

    /// The line before the body.
    fn head(&self) -> String {
        format!("{MAGIC} {:016x} {}", self.hash.digest(), self.length)
    }
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.length = self.length.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Saved {
        Saved { form: 1, epoch: 7, ..Saved::default() }
    }

    #[test]
    fn what_was_stored_is_loaded_and_every_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
        assert!(disk.load().unwrap().is_none());
        disk.store(&sample()).unwrap();
        assert_eq!(disk.load().unwrap(), Some(sample()));
        let good = fs::read(&disk.path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&disk.path, &bad).unwrap();
            assert!(disk.load().is_err(), "bit flipped at {at}");
            fs::write(&disk.path, &good[..at]).unwrap();
            assert!(disk.load().is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_cannot_be_taken_is_set_aside_and_the_first_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(dir.path());
        let aside = |number: u32| dir.path().join(format!("state.refused.{number}"));
        fs::write(&disk.path, "pintle-state-2 of a later release").unwrap();
        assert!(disk.resume().is_none());
        assert_eq!(fs::read(aside(1)).unwrap(), b"pintle-state-2 of a later release");
        fs::create_dir(&disk.path).unwrap();
        assert!(disk.resume().is_none());
        assert!(aside(2).is_dir());
        let made = std::process::Command::new("mkfifo").arg(&disk.path).status().unwrap();
        assert!(made.success() && disk.resume().is_none());
        File::create(&disk.path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(disk.resume().is_none());
        for number in 5..20 {
            fs::write(&disk.path, number.to_string()).unwrap();
            assert!(disk.resume().is_none());
        }
        assert_eq!(fs::read(aside(5)).unwrap(), b"5");
        assert_eq!(fs::read(aside(MAX_ASIDE)).unwrap(), b"19");
        disk.store(&sample()).unwrap();
        assert_eq!(disk.resume(), Some(sample()));
    }

    #[test]
    fn two_agents_do_not_write_to_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [Disk::new(dir.path()), Disk::new(dir.path())];
        one.store(&sample()).unwrap();
        one.clone().store(&sample()).unwrap();
        assert!(two.store(&sample()).unwrap_err().to_string().contains("another agent"));
        drop(one);
        // A process that another test starts has the lock until it executes its program.
        assert!((0..1_000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            two.store(&sample()).is_ok()
        }));
    }

    #[test]
    fn nothing_is_stored_over_what_cannot_be_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = Disk::new(dir.path());
        fs::write(&disk.path, "another form").unwrap();
        for number in 1..=MAX_ASIDE {
            // A directory that is not empty gives no file its place, not even to root.
            fs::create_dir_all(dir.path().join(format!("state.refused.{number}/kept"))).unwrap();
        }
        assert!(disk.resume().is_none());
        assert!(disk.store(&sample()).is_err());
        assert_eq!(fs::read(&disk.path).unwrap(), b"another form");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path());
        disk.store(&sample()).unwrap();
        // A directory in the new file's place fails the write for root, too.
        fs::create_dir(dir.path().join("state.new")).unwrap();
        let newer = Saved { epoch: 8, ..sample() };
        assert!(disk.store(&newer).is_err());
        assert_eq!(disk.load().unwrap(), Some(sample()));
    }
}
