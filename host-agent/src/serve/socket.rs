//! The unix socket: who may find it, who may speak on it, and what becomes of an old one.
//!
//! Its directory is 0700 and its file 0600 unless configured, and every connection's uid is checked
//! with what the kernel says of the peer (`SO_PEERCRED`): permissions of a path can be loosened by
//! a mount or a umask, the kernel's word can't.
//!
//! A socket file outlives its server, so what a dead agent left is replaced. The mode is set before
//! the file exists (Linux makes it with the mode of the socket, `unix_bind_bsd`), so there is no
//! moment with a wrong one. A lock file beside it says that an agent is alive; a second agent is
//! refused rather than robbed.
//!
//! A file can also be swept away under a running agent, by a cleaner of /tmp or a volume that is
//! mounted anew. Envoys that are connected notice nothing, one that restarts finds no agent. So the
//! file is looked at every second, and made anew with its directory and lock.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Connections that the kernel keeps waiting; beyond them it refuses.
const BACKLOG: u32 = 1024;
/// Bytes of the path; the kernel takes 107.
const MAX_PATH: usize = 103;

/// Where the socket is and who may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// The file. Its directory is made when absent (0700).
    pub path: PathBuf,
    /// Mode of the file, such as 0o600.
    pub mode: u32,
    /// Group of the file and of a directory that is made.
    pub group: Option<u32>,
    /// Uids that may connect, beside root and the agent's own, each first and last of a range.
    pub allow_uids: Vec<RangeInclusive<u32>>,
    /// Gids that may connect whatever their uid; also as a supplementary group, where the process
    /// is in the agent's pid namespace.
    pub allow_gids: Vec<u32>,
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// Another agent holds it.
    #[error("another agent serves {0}")]
    InUse(PathBuf),
    /// There is something else than a socket.
    #[error("{0} is there and is no socket; it is left alone")]
    NotASocket(PathBuf),
    /// Others could replace the file.
    #[error("{0} can be written by everybody; give it mode 0700 or name another directory")]
    OpenDirectory(PathBuf),
    /// Its owner could replace the file.
    #[error(
        "{0} belongs to uid {1}, who could replace the socket; give it to root or to the agent's \
         user, or list that uid in socket.allow_uids"
    )]
    ForeignDirectory(PathBuf, u32),
    /// The path has no directory, or is longer than 103 bytes (the kernel takes 107).
    #[error("{0} can't be the path of a socket (at most 103 bytes, inside a directory)")]
    Path(PathBuf),
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was worked on.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A bound socket; dropping it takes the file away.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    options: SocketOptions,
    own_uid: u32,
    file: FileId,
    lock: File,
    look: Interval,
    status: watch::Sender<SocketStatus>,
}

/// How the socket's file is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketStatus {
    /// Why the file is not there, while it is not.
    pub error: Option<String>,
    /// Times that it was made anew since the start.
    pub renewed: u64,
}

/// Which file it is, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

/// What the kernel says of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Effective uid when it connected.
    pub uid: u32,
    /// Effective gid when it connected.
    pub gid: u32,
    /// Its process; 0 when it is in another pid namespace.
    pub pid: i32,
}

impl Credentials {
    /// The supplementary groups of the process, which the kernel leaves out of a socket's
    /// credentials; none when it is gone or in another pid namespace.
    fn groups(&self) -> Vec<u32> {
        let status = match self.pid {
            ..=0 => String::new(),
            pid => fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(),
        };
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
        line.split_whitespace().filter_map(|gid| gid.parse().ok()).collect()
    }
}

/// The agent's own uid, from the owner of its `/proc` entry.
///
/// # Errors
/// Where `/proc` is not mounted.
pub(crate) fn own_uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// The gid of a group by number or by its name in `/etc/group`.
#[must_use]
pub(crate) fn group_id(group: &str) -> Option<u32> {
    if let Ok(id) = group.parse() {
        return Some(id);
    }
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    })
}

// === impl Socket ===

impl Socket {
    /// Binds, replacing what a dead agent left.
    ///
    /// # Errors
    /// [`BindError`] says what stands in the way.
    pub(crate) fn bind(options: SocketOptions) -> Result<Self, BindError> {
        let own_uid = own_uid().map_err(io_at(Path::new("/proc/self")))?;
        prepare(&options, own_uid)?;
        let lock = lock(&options.path)?;
        let (listener, file) = listen(&options)?;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let status = watch::Sender::default();
        Ok(Self { listener, options, own_uid, file, lock, look, status })
    }

    /// How the file is, from now on.
    #[must_use]
    pub(crate) fn status(&self) -> watch::Receiver<SocketStatus> {
        self.status.subscribe()
    }

    /// The next peer that may speak; others are hung up on, and told to `refused`. The file is
    /// looked after meanwhile.
    ///
    /// # Errors
    /// What the system says when it can't accept, such as no file descriptor left.
    pub(crate) async fn accept(
        &mut self,
        mut refused: impl FnMut(Credentials),
    ) -> io::Result<(UnixStream, Credentials)> {
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted?.0,
                _ = self.look.tick() => {
                    self.look_after();
                    continue;
                }
            };
            let peer = stream.peer_cred()?;
            let peer =
                Credentials { uid: peer.uid(), gid: peer.gid(), pid: peer.pid().unwrap_or(0) };
            if self.options.allows(peer, self.own_uid) {
                return Ok((stream, peer));
            }
            refused(peer);
        }
    }

    /// Makes the file anew when it is no longer there.
    fn look_after(&mut self) {
        let path = self.options.path.display().to_string();
        let there = fs::symlink_metadata(&self.options.path);
        if there.is_ok_and(|there| FileId::of(&there) == self.file) {
            if self.status.borrow().error.is_some() {
                self.status.send_modify(|status| status.error = None);
            }
            return;
        }
        match self.renew() {
            Ok(()) => {
                tracing::warn!(path, "the socket's file was gone and is made anew");
                self.status.send_modify(|status| {
                    status.error = None;
                    status.renewed = status.renewed.saturating_add(1);
                });
            }
            Err(error) => {
                let error = error.to_string();
                if self.status.borrow().error.as_ref() != Some(&error) {
                    tracing::error!(path, error, "the socket's file is gone");
                    self.status.send_modify(|status| status.error = Some(error));
                }
            }
        }
    }

    fn renew(&mut self) -> Result<(), BindError> {
        prepare(&self.options, self.own_uid)?;
        let path = lock_path(&self.options.path);
        let held = self.lock.metadata().map(|held| FileId::of(&held));
        let there = fs::symlink_metadata(&path).map(|there| FileId::of(&there));
        if !matches!((held, there), (Ok(held), Ok(there)) if held == there) {
            self.lock = lock(&self.options.path)?;
        }
        (self.listener, self.file) = listen(&self.options)?;
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let path = &self.options.path;
        if fs::symlink_metadata(path).is_ok_and(|there| FileId::of(&there) == self.file) {
            let _ = fs::remove_file(path);
        }
    }
}

impl FileId {
    fn of(there: &fs::Metadata) -> Self {
        Self(there.dev(), there.ino())
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |source| BindError::Io { path, source }
}

fn lock_path(path: &Path) -> PathBuf {
    path.with_extension("lock")
}

/// The lock beside `path`, taken.
fn lock(path: &Path) -> Result<File, BindError> {
    let lock_path = lock_path(path);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&lock_path)
        .map_err(io_at(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BindError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(BindError::Io { path: lock_path, source }),
    }
}

/// Binds and listens, in place.
fn listen(options: &SocketOptions) -> Result<(UnixListener, FileId), BindError> {
    let path = options.path.as_path();
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(io_at(path))?,
        Err(_) => {}
    }
    let mode = Permissions::from_mode(options.mode);
    let socket = UnixSocket::new_stream().map_err(io_at(path))?;
    let handle = socket.as_fd().try_clone_to_owned().map_err(io_at(path))?;
    File::from(handle).set_permissions(mode.clone()).map_err(io_at(path))?;
    socket.bind(path).map_err(io_at(path))?;
    // The umask took its share.
    fs::set_permissions(path, mode).map_err(io_at(path))?;
    if options.group.is_some() {
        chown(path, None, options.group).map_err(io_at(path))?;
    }
    let file = FileId::of(&fs::symlink_metadata(path).map_err(io_at(path))?);
    Ok((socket.listen(BACKLOG).map_err(io_at(path))?, file))
}

impl SocketOptions {
    /// Mode 0600, for root and the agent's own uid.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            mode: 0o600,
            group: None,
            allow_uids: Vec::new(),
            allow_gids: Vec::new(),
        }
    }

    /// Whether a peer may speak to an agent that runs as `own_uid`.
    #[must_use]
    pub fn allows(&self, peer: Credentials, own_uid: u32) -> bool {
        peer.uid == 0
            || peer.uid == own_uid
            || self.lists(peer.uid)
            || self.allow_gids.contains(&peer.gid)
            || !self.allow_gids.is_empty()
                && peer.groups().iter().any(|gid| self.allow_gids.contains(gid))
    }

    fn lists(&self, uid: u32) -> bool {
        self.allow_uids.iter().any(|range| range.contains(&uid))
    }
}

/// Sees to the directory: made when absent, refused when somebody else could replace the file in
/// it.
fn prepare(options: &SocketOptions, own_uid: u32) -> Result<(), BindError> {
    let path = &options.path;
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty() && path.as_os_str().len() <= MAX_PATH)
        .ok_or_else(|| BindError::Path(path.clone()))?;
    match fs::metadata(dir) {
        Ok(there) => {
            let (mode, owner) = (there.mode(), there.uid());
            if owner != 0 && owner != own_uid && !options.lists(owner) {
                return Err(BindError::ForeignDirectory(dir.to_owned(), owner));
            }
            // A sticky directory (/tmp) keeps others from replacing the file.
            if mode & 0o002 != 0 && mode & 0o1000 == 0 {
                return Err(BindError::OpenDirectory(dir.to_owned()));
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = if options.group.is_some() { 0o750 } else { 0o700 };
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
            made.map_err(io_at(dir))?;
            if options.group.is_some() {
                chown(dir, None, options.group).map_err(io_at(dir))?;
            }
            Ok(())
        }
        Err(error) => Err(io_at(dir)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_directory_is_0700_and_the_file_0600_and_both_go_back_to_order() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run/agent.sock");
        let socket = Socket::bind(SocketOptions::at(&path)).unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_dead_agent_left_is_replaced_and_a_living_one_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a closed listener leaves its file");
        let mut first = Socket::bind(SocketOptions::at(&path)).unwrap();
        let second = Socket::bind(SocketOptions::at(&path));
        assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
        let client = UnixStream::connect(&path).await.unwrap();
        let (_, peer) = first.accept(|_| {}).await.unwrap();
        assert_eq!(peer.uid, own_uid().unwrap());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        drop(client);
    }

    #[tokio::test]
    async fn a_file_or_a_directory_that_is_swept_away_is_made_anew() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run/agent.sock");
        let mut socket = Socket::bind(SocketOptions::at(&path)).unwrap();
        let mut status = socket.status();
        let server = tokio::spawn(async move { while socket.accept(|_| {}).await.is_ok() {} });
        let sweeps: [fn(&Path); 3] = [
            |path| fs::remove_file(path).unwrap(),
            |path| fs::remove_dir_all(path.parent().unwrap()).unwrap(),
            |path| {
                fs::remove_file(path).unwrap();
                drop(std::os::unix::net::UnixListener::bind(path).unwrap());
            },
        ];
        for (renewed, sweep) in (1..).zip(sweeps) {
            sweep(&path);
            let soon = Duration::from_secs(20);
            let made = status.wait_for(|status| status.renewed == renewed);
            let made = tokio::time::timeout(soon, made).await;
            assert_eq!(made.unwrap().unwrap().error, None);
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            UnixStream::connect(&path).await.unwrap();
            let second = Socket::bind(SocketOptions::at(&path));
            assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        let refused = Socket::bind(SocketOptions::at(&path));
        assert!(matches!(refused, Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_directory_that_everybody_writes_to_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), Permissions::from_mode(0o777)).unwrap();
        let refused = Socket::bind(SocketOptions::at(temp.path().join("agent.sock")));
        assert!(matches!(refused, Err(BindError::OpenDirectory(_))));
    }

    #[test]
    fn root_the_own_uid_and_those_named_may_connect() {
        let mut options = SocketOptions::at("/run/pintle/agent.sock");
        options.allow_uids = vec![1337..=1337, 1_000_660_000..=1_000_669_999];
        options.allow_gids = vec![500];
        let peer = |uid, gid| Credentials { uid, gid, pid: 7 };
        for (uid, gid, expect) in [
            (0, 0, true),
            (101, 101, true),
            (1337, 9, true),
            (8, 500, true),
            (1_000_660_000, 0, true),
            (1_000_669_999, 0, true),
            (1_000_670_000, 0, false),
            (8, 8, false),
            (500, 1337, false),
        ] {
            assert_eq!(options.allows(peer(uid, gid), 101), expect, "{uid}:{gid}");
        }
    }
}
