//! The unix socket: who may find it, who may speak on it, and what becomes of an old one.
//!
//! Its directory is 0700 and its file 0600 unless configured, and every connection's uid is checked
//! with what the kernel says of the peer (`SO_PEERCRED`): permissions of a path can be loosened by
//! a mount or a umask, the kernel's word can't.
//!
//! A socket file outlives its server. The new one is bound beside it, given its mode, and renamed over
//! it, so there is no moment without a file, and none with a file of the wrong mode. A lock file
//! beside it says that an agent is alive; a second agent is refused rather than robbed.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Where the socket is and who may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// The file. Its directory is made when absent (0700).
    pub path: PathBuf,
    /// Mode of the file, such as 0o600.
    pub mode: u32,
    /// Group of the file and of a directory that is made.
    pub group: Option<u32>,
    /// Uids that may connect, beside root and the agent's own.
    pub allow_uids: Vec<u32>,
    /// Gids that may connect whatever their uid.
    pub allow_gids: Vec<u32>,
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent holds it.
    #[error("another agent serves {0}")]
    InUse(PathBuf),
    /// There is something else than a socket.
    #[error("{0} is there and is no socket; it is left alone")]
    NotASocket(PathBuf),
    /// Others could replace the file.
    #[error("{0} can be written by everybody; give it mode 0700 or name another directory")]
    OpenDirectory(PathBuf),
    /// The path has no directory, or is longer than the kernel's 107 bytes.
    #[error("{0} can't be the path of a socket (at most 107 bytes, inside a directory)")]
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
pub struct Socket {
    listener: UnixListener,
    options: SocketOptions,
    own_uid: u32,
    inode: u64,
    _lock: File,
}

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

/// The agent's own uid, from the owner of its `/proc` entry.
///
/// # Errors
/// Where `/proc` is not mounted.
pub fn own_uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// The gid of a group by number or by its name in `/etc/group`.
#[must_use]
pub fn group_id(group: &str) -> Option<u32> {
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
    pub fn bind(options: SocketOptions) -> Result<Self, BindError> {
        let path = options.path.clone();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| BindError::Io { path, source }
        };
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .ok_or_else(|| BindError::Path(path.clone()))?;
        // The temporary name is longer by at most this much.
        if path.as_os_str().len() > 107 - 4 {
            return Err(BindError::Path(path));
        }
        prepare(dir, options.group)?;
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BindError::InUse(path)),
            Err(TryLockError::Error(source)) => {
                return Err(BindError::Io {
                    path: lock_path,
                    source,
                });
            }
        }
        match fs::symlink_metadata(&path) {
            Ok(there) if !there.file_type().is_socket() => return Err(BindError::NotASocket(path)),
            _ => {}
        }
        let fresh = path.with_extension("new");
        match fs::symlink_metadata(&fresh) {
            Ok(there) if !there.file_type().is_socket() => {
                return Err(BindError::NotASocket(fresh));
            }
            Ok(_) => fs::remove_file(&fresh).map_err(io(&fresh))?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(io(&fresh))?;
        fs::set_permissions(&fresh, Permissions::from_mode(options.mode)).map_err(io(&fresh))?;
        if options.group.is_some() {
            chown(&fresh, None, options.group).map_err(io(&fresh))?;
        }
        let inode = fs::symlink_metadata(&fresh).map_err(io(&fresh))?.ino();
        fs::rename(&fresh, &path).map_err(io(&path))?;
        Ok(Self {
            listener,
            own_uid: own_uid().map_err(io(Path::new("/proc/self")))?,
            options,
            inode,
            _lock: lock,
        })
    }

    /// The next peer that may speak; others are hung up on, and told to `refused`.
    ///
    /// # Errors
    /// What the system says when it can't accept, such as no file descriptor left.
    pub async fn accept(
        &self,
        mut refused: impl FnMut(Credentials),
    ) -> io::Result<(UnixStream, Credentials)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let peer = stream.peer_cred()?;
            let peer = Credentials {
                uid: peer.uid(),
                gid: peer.gid(),
                pid: peer.pid().unwrap_or(0),
            };
            if self.options.allows(peer, self.own_uid) {
                return Ok((stream, peer));
            }
            refused(peer);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let path = &self.options.path;
        if fs::symlink_metadata(path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(path);
        }
    }
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
            || self.allow_uids.contains(&peer.uid)
            || self.allow_gids.contains(&peer.gid)
    }
}

fn prepare(dir: &Path, group: Option<u32>) -> Result<(), BindError> {
    let io = |source| BindError::Io {
        path: dir.to_owned(),
        source,
    };
    match fs::metadata(dir) {
        Ok(there) => {
            // A sticky directory (/tmp) keeps others from replacing the file.
            let mode = there.mode();
            if mode & 0o002 != 0 && mode & 0o1000 == 0 {
                return Err(BindError::OpenDirectory(dir.to_owned()));
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = if group.is_some() { 0o750 } else { 0o700 };
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(dir)
                .map_err(io)?;
            if group.is_some() {
                chown(dir, None, group).map_err(io)?;
            }
            Ok(())
        }
        Err(error) => Err(io(error)),
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
        let first = Socket::bind(SocketOptions::at(&path)).unwrap();
        let second = Socket::bind(SocketOptions::at(&path));
        assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
        let client = UnixStream::connect(&path).await.unwrap();
        let (_, peer) = first.accept(|_| {}).await.unwrap();
        assert_eq!(peer.uid, own_uid().unwrap());
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        drop(client);
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
        options.allow_uids = vec![1337];
        options.allow_gids = vec![500];
        let peer = |uid, gid| Credentials { uid, gid, pid: 7 };
        for (uid, gid, expect) in [
            (0, 0, true),
            (101, 101, true),
            (1337, 9, true),
            (8, 500, true),
            (8, 8, false),
            (500, 1337, false),
        ] {
            assert_eq!(options.allows(peer(uid, gid), 101), expect, "{uid}:{gid}");
        }
    }
}
