//! A TCP link that can break in the ways that networks do.
//!
//! Put between two real servers, where a firewall rule would need root and would hit other tests.
//! The fault can change while connections are open: bytes already on their way meet the new fault.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::{Port, Result};

/// What happens to bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: forward.
    None,
    /// Connections are accepted and stay open, and not one byte passes: a firewall that drops.
    Blackhole,
    /// Every chunk of bytes is this late, each way.
    Delay(Duration),
    /// So many bytes a second, each way.
    Rate(u32),
    /// 75 +- 50 ms, and every second packet is lost: over TCP that is the time until it was sent
    /// again, 200 ms at first and twice as long each time.
    Lossy,
    /// Open connections end and new ones are refused: a host without the service.
    Refuse,
    /// Open connections end and new ones end at once: a proxy whose target is gone.
    Drop,
}

type Accepted = Arc<Mutex<Vec<Instant>>>;

/// The link.
#[derive(Debug)]
pub struct Proxy {
    port: Port,
    fault: watch::Sender<Fault>,
    accepted: Accepted,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// A link to `target` on a port of its own, forwarding.
    pub async fn to(target: SocketAddr) -> Result<Self> {
        let port = Port::take()?;
        let listener = TcpListener::bind(port.addr()).await?;
        let (fault, faults) = watch::channel(Fault::None);
        let accepted = Accepted::default();
        let moments = Arc::clone(&accepted);
        let serving = tokio::spawn(serve(port.addr(), listener, target, faults, moments));
        Ok(Self { port, fault, accepted, serving })
    }

    /// Where to connect.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// When each connection came, those included that led nowhere.
    pub fn accepted(&self) -> Vec<Instant> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the fault, for open connections too.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

/// The most of these moments, which are in order, that lie within any stretch of so long.
pub fn most_within(moments: &[Instant], time: Duration) -> usize {
    let stretches = moments.iter().enumerate().map(|(at, from)| {
        let rest = moments.get(at..).unwrap_or_default();
        rest.partition_point(|moment| *moment < *from + time)
    });
    stretches.max().unwrap_or(0)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(
    addr: SocketAddr,
    listener: TcpListener,
    target: SocketAddr,
    mut faults: watch::Receiver<Fault>,
    moments: Accepted,
) {
    let mut listener = Some(listener);
    let mut links = JoinSet::new();
    loop {
        let fault = *faults.borrow_and_update();
        if matches!(fault, Fault::Refuse | Fault::Drop) {
            links.abort_all();
        }
        match (fault, &listener) {
            (Fault::Refuse, _) => listener = None,
            (_, None) => listener = TcpListener::bind(addr).await.ok(),
            _ => {}
        }
        tokio::select! {
            changed = faults.changed() => if changed.is_err() { return },
            accepted = accept(listener.as_ref()) => {
                moments.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                if let (Some(client), true) = (accepted, fault != Fault::Drop) {
                    links.spawn(link(client, target, faults.clone()));
                }
            }
        }
        while links.try_join_next().is_some() {}
    }
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.ok().map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn link(client: TcpStream, target: SocketAddr, mut faults: watch::Receiver<Fault>) {
    // A black hole does not reach the target either.
    if faults.wait_for(|f| *f != Fault::Blackhole).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = pump(client_in, server_out, faults.clone()) => {}
        () = pump(server_in, client_out, faults) => {}
    }
}

async fn pump(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut faults: watch::Receiver<Fault>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let fault = *faults.borrow();
        match fault {
            Fault::Delay(late) => tokio::time::sleep(late).await,
            Fault::Lossy => tokio::time::sleep(lossy()).await,
            Fault::Rate(bytes) => {
                let seconds = read as f64 / f64::from(bytes.max(1));
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
            _ => {}
        }
        if faults.wait_for(|f| *f != Fault::Blackhole).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// How late one chunk is. Every hasher that is made is keyed otherwise: all the chance needed here.
fn lossy() -> Duration {
    let number = RandomState::new().hash_one(());
    let late = Duration::from_millis(25 + number % 101);
    let losses = (number >> 32).trailing_ones().min(4);
    late + Duration::from_millis(200) * ((1 << losses) - 1)
}
