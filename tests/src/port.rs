//! Ports that stay ours while a server is down.
//!
//! The usual trick, bind to port 0 and let go, hands out ephemeral ports: between a kill and a
//! restart the kernel may give that port to any outgoing connection, and two tests may draw the
//! same one. So these come from below the ephemeral range (Linux begins at 32768), and each is held
//! by a lock on a file named after it, which the kernel drops with the process that held it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Error, Result};

const FIRST: u32 = 14_000;
const COUNT: u32 = 18_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A TCP port on 127.0.0.1 that no other fixture of any process takes while this value lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a port on which nothing listens now.
    pub fn take() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("pintle-ports-{}", effective_user()));
        std::fs::create_dir_all(&dir)?;
        // Processes begin at different places, so that they rarely meet.
        let start = std::process::id().wrapping_mul(2_654_435_761) % COUNT;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = (FIRST + (start + step) % COUNT) as u16;
            let lock = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(dir.join(number.to_string()))?;
            let free =
                lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
            if free {
                return Ok(Self { number, _lock: lock });
            }
        }
        Err(Error::new("no free port between 14000 and 31999 on 127.0.0.1"))
    }

    /// The number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// 127.0.0.1 with this port.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}
