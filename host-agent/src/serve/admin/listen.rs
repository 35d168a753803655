//! The listeners of the admin address, and how many connections each may hold.
//!
//! TCP on loopback is for looking; the unix socket is for orders as well, because there the kernel
//! says who asks. Both serve the same router.
//!
//! Every connection takes one of [`Places`]. When all are taken, a further one is served all the
//! same, with health and readiness alone, in one of [`PROBES`] places that belong to the newest:
//! what holds the others open, a probe is answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use axum::{Extension, http::StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::deadline::Deadline;
use super::{Admin, Asker, fail, healthz, readyz};
use crate::serve::socket::{Credentials, Socket};

/// Connections beyond the places, for health alone; the next one ends the oldest.
const PROBES: usize = 8;
/// The head of a request must be there by then.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of a head.
const MAX_HEAD: usize = 16 << 10;

/// Places for connections, shared by both listeners.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Semaphore>);

impl Places {
    pub(super) fn new(connections: usize) -> Self {
        Self(Arc::new(Semaphore::new(connections)))
    }

    fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

impl Admin {
    /// Serves who comes by TCP, until the parts' `stop`.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let stop = self.inner.stop.clone();
        let mut server = Server::new(self);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => server.connected(stream, Asker::Network),
                Err(error) => tired(&error).await,
            }
        }
    }

    /// Serves who comes by the unix socket, until the parts' `stop`.
    pub(crate) async fn serve_unix(self, mut socket: Socket) {
        let stop = self.inner.stop.clone();
        let mut server = Server::new(self);
        let refused = |peer: Credentials| {
            tracing::warn!(
                uid = peer.uid,
                gid = peer.gid,
                "a connection to the socket for orders is refused: root, the agent's user and admin.groups may"
            );
        };
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept(refused) => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => server.connected(stream, Asker::Local(peer)),
                Err(error) => tired(&error).await,
            }
        }
    }

    fn probes(&self) -> Router {
        Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .fallback(|| async {
                fail(StatusCode::SERVICE_UNAVAILABLE, "too many connections; try again")
            })
            .with_state(self.clone())
    }
}

/// No descriptor left, most likely: going round at once would only burn the processor.
async fn tired(error: &std::io::Error) {
    tracing::warn!(%error, "can't accept on the admin address, tried again in 100 ms");
    sleep(Duration::from_millis(100)).await;
}

/// What one listener serves with.
struct Server {
    router: Router,
    probes: Router,
    places: Places,
    oldest: VecDeque<AbortHandle>,
    stop: CancellationToken,
}

impl Server {
    fn new(admin: Admin) -> Self {
        Self {
            router: admin.router(),
            probes: admin.probes(),
            places: admin.inner.places.clone(),
            oldest: VecDeque::new(),
            stop: admin.inner.stop.clone(),
        }
    }

    fn connected<S>(&mut self, stream: S, asker: Asker)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stop = self.stop.clone();
        if let Some(place) = self.places.take() {
            let router = self.router.clone().layer(Extension(asker));
            tokio::spawn(async move {
                serve(stream, router, HEAD_WITHIN, true, stop).await;
                drop(place);
            });
            return;
        }
        self.oldest.retain(|probe| !probe.is_finished());
        if self.oldest.len() >= PROBES
            && let Some(oldest) = self.oldest.pop_front()
        {
            oldest.abort();
        }
        let probe = serve(stream, self.probes.clone(), PROBE_WITHIN, false, stop);
        self.oldest.push_back(tokio::spawn(probe).abort_handle());
    }
}

async fn serve<S>(
    stream: S,
    router: Router,
    head_within: Duration,
    keep_alive: bool,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_within)
        .keep_alive(keep_alive)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Deadline::new(stream)), service);
    tokio::select! {
        // A client that hangs up, speaks nonsense or reads nothing is its own affair.
        _ = connection => {}
        () = late(&stop) => {}
    }
}

/// After the stop, what is being answered may finish.
async fn late(stop: &CancellationToken) {
    stop.cancelled().await;
    sleep(Duration::from_secs(1)).await;
}
