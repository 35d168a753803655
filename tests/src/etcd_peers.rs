//! The network between the members of an etcd cluster, in which one of them can be cut off from the
//! others while clients still reach all of them.
//!
//! Each member is known to the others by the address of a link in front of it. Every connection
//! between members begins with a request that says who opened it (`X-Server-From`), so a link knows
//! both ends.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::Result;

/// Who is cut off: the address of its link, and the id by which it calls itself.
type Cut = Option<(SocketAddr, String)>;

/// All the links.
#[derive(Debug)]
pub(crate) struct Peers {
    cut: watch::Sender<Cut>,
    links: Vec<JoinHandle<()>>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        Self { cut: watch::channel(None).0, links: Vec::new() }
    }

    /// A link at `at` in front of the member at `target`.
    pub(crate) async fn link(&mut self, at: SocketAddr, target: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(at).await?;
        let cut = self.cut.subscribe();
        self.links.push(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, at, target, cut.clone()));
                while connections.try_join_next().is_some() {}
            }
        }));
        Ok(())
    }

    /// Nothing passes any more from or to the member with this link and this id.
    pub(crate) fn cut_off(&self, link: SocketAddr, id: u64) {
        self.cut.send_replace(Some((link, format!("{id:x}"))));
    }

    /// Everything passes.
    pub(crate) fn heal(&self) {
        self.cut.send_replace(None);
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.links.iter().for_each(JoinHandle::abort);
    }
}

async fn connection(
    mut from: TcpStream,
    at: SocketAddr,
    target: SocketAddr,
    mut cut: watch::Receiver<Cut>,
) {
    let Some(who) = opened_by(&from).await else { return };
    let concerned = |cut: &Cut| cut.as_ref().is_some_and(|(link, id)| *link == at || *id == who);
    let forward = async {
        let mut to = TcpStream::connect(target).await?;
        copy_bidirectional(&mut from, &mut to).await
    };
    tokio::select! {
        biased;
        _ = cut.wait_for(concerned) => {}
        _ = forward => {}
    }
}

/// The id of the member that sent the first request, which stays on the stream; empty if it does
/// not say.
async fn opened_by(stream: &TcpStream) -> Option<String> {
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let read = stream.peek(&mut buffer).await.ok()?;
        let text = String::from_utf8_lossy(buffer.get(..read)?);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let from = head.lines().find_map(|line| line.strip_prefix("X-Server-From: "));
            return Some(from.unwrap_or_default().to_owned());
        }
        if matches!(read, 0 | 8192) {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
