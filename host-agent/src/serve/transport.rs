//! One gRPC server for the proxies, over the unix socket and, where asked for, TCP with mutual TLS.
//!
//! Both kinds of connection go through one accept loop each, so that a foreign uid or a client
//! without a certificate never reaches the HTTP/2 server. What a peer holds is on its account
//! ([`super::quota`]); a connection without a stream is closed after [`IDLE_WITHIN`], and HTTP/2
//! pings find a peer that is gone without a word. Certificates are read anew on every
//! [`TlsFiles::load`], and a reload takes effect at the next connection.

use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use xxhash_rust::xxh64::xxh64;

use super::eds::Eds;
use super::eds::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use super::eds::proto::envoy::service::endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryServiceServer;
use super::gate::{Caller, Gated, Peer, Streams};
use super::quota::{Kind, Place, Quotas};
use super::socket::{Credentials, Socket};
use super::sync::Sync;
use crate::fleet::Fleet;
use crate::tasks::{Ended, Tasks};

/// A connection without a stream is closed after this long, whether it has spoken or not: Envoy
/// opens a stream as soon as it is connected, and connects anew when it wants another.
pub(crate) const IDLE_WITHIN: Duration = Duration::from_secs(5);
/// Envoy's own default for its connections; a dead peer is found within 15 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// A handshake that takes longer holds a place for nothing.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// TLS handshakes at once; the next waits in the kernel's queue.
const MAX_HANDSHAKES: usize = 64;

/// Why the server for proxies ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The HTTP/2 server said no.
    #[error(transparent)]
    Server(#[from] tonic::transport::Error),
    /// Nobody accepts at one of the listeners any more, or wakes discovery streams.
    #[error("a task of the proxies' server: {0}")]
    Task(Ended),
}

/// Where the certificates of the TCP listener are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The agent's chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Authorities whose clients may connect, PEM.
    pub client_ca: PathBuf,
}

/// Why certificates could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read as PEM.
    #[error("{path}: {source}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// The key does not fit, or there is nothing in a file.
    #[error("certificate, key or client authority can't be used: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authorities can't verify anything.
    #[error("client authority can't be used: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl TlsFiles {
    /// Reads the files. Clients must show a certificate; HTTP/2 alone is spoken.
    ///
    /// # Errors
    /// [`TlsError`] with the file at fault.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let pem = |path: &PathBuf| {
            let path = path.clone();
            move |source| TlsError::Pem { path, source }
        };
        let certs = |path: &PathBuf| -> Result<Vec<CertificateDer<'static>>, TlsError> {
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(pem(path))
        };
        let mut roots = RootCertStore::empty();
        for cert in certs(&self.client_ca)? {
            roots.add(cert)?;
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(pem(&self.key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certs(&self.cert)?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Io,
    caller: Caller,
    streams: Arc<Streams>,
    idle: Pin<Box<Sleep>>,
    _place: Place,
}

#[derive(Debug)]
enum Io {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl Connection {
    fn new(io: Io, peer: Peer, quotas: &Quotas, place: Place) -> Self {
        let streams = Arc::new(Streams::new());
        Self {
            io,
            caller: Caller::new(peer, quotas.clone(), Arc::clone(&streams)),
            streams,
            idle: Box::pin(sleep(IDLE_WITHIN)),
            _place: place,
        }
    }

    /// Ready when no stream was open for [`IDLE_WITHIN`].
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.idle.as_mut().poll(cx).is_ready() {
            let until = self.streams.idle_since().unwrap_or_else(Instant::now) + IDLE_WITHIN;
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            self.idle.as_mut().reset(until);
        }
        Poll::Pending
    }
}

macro_rules! forward {
    ($self:ident, $io:ident => $call:expr) => {
        match &mut $self.get_mut().io {
            Io::Unix(stream) => {
                let $io = Pin::new(stream);
                $call
            }
            Io::Tls(stream) => {
                let $io = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.poll_idle(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        forward!(self, io => io.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, io => io.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, io => io.poll_shutdown(cx))
    }
}

/// The listeners and what they serve.
#[derive(Debug)]
pub(crate) struct Proxies {
    /// The unix socket.
    pub socket: Socket,
    /// TCP with mutual TLS; the configuration changes on a reload.
    pub tcp: Option<(TcpListener, watch::Receiver<Arc<ServerConfig>>)>,
    /// The Watch stream.
    pub sync: Sync,
    /// Endpoint discovery.
    pub eds: Eds,
    /// Told of refused peers.
    pub fleet: Arc<Fleet>,
    /// What each peer holds.
    pub quotas: Quotas,
}

impl Proxies {
    /// Serves until `stop`, then lets open streams end by themselves.
    ///
    /// # Errors
    /// [`ServeError`], when it can't go on.
    pub(crate) async fn serve(self, stop: CancellationToken) -> Result<(), ServeError> {
        let (tx, rx) = mpsc::channel::<io::Result<Connection>>(16);
        let accept =
            accept_unix(self.socket, tx.clone(), self.quotas.clone(), Arc::clone(&self.fleet));
        let mut tasks = Tasks::new();
        tasks.spawn("socket", until(stop.clone(), accept));
        if let Some((listener, config)) = self.tcp {
            let accept = accept_tls(listener, config, tx, self.quotas, self.fleet);
            tasks.spawn("tcp", until(stop.clone(), accept));
        }
        tasks.spawn("wakes", until(stop.clone(), self.eds.wake()));
        let server = Server::builder()
            .layer(Gated)
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_WITHIN))
            .max_concurrent_streams(Some(256))
            .initial_stream_window_size(Some(256 << 10))
            .initial_connection_window_size(Some(1 << 20))
            .add_service(self.sync)
            .add_service(EndpointDiscoveryServiceServer::new(self.eds.clone()))
            .add_service(AggregatedDiscoveryServiceServer::new(self.eds))
            .serve_with_incoming_shutdown(ReceiverStream::new(rx), stop.cancelled());
        let mut server = pin!(server);
        let ended = tokio::select! {
            served = &mut server => return Ok(served?),
            ended = tasks.ended() => ended,
        };
        if !stop.is_cancelled() {
            return Err(ServeError::Task(ended));
        }
        Ok(server.await?)
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn accept_unix(
    mut socket: Socket,
    tx: mpsc::Sender<io::Result<Connection>>,
    quotas: Quotas,
    fleet: Arc<Fleet>,
) {
    // Whoever may open the file may try as often as it likes: a line a second, and each in the
    // counter.
    let (mut said, mut unsaid) = (None::<Instant>, 0_u64);
    let mut refused = |peer: Credentials| {
        fleet.refused("peer");
        if said.is_some_and(|said| said.elapsed() < Duration::from_secs(1)) {
            unsaid = unsaid.saturating_add(1);
            return;
        }
        tracing::warn!(
            uid = peer.uid,
            gid = peer.gid,
            unsaid,
            "peer refused: socket.allow_uids and socket.allow_gids have neither"
        );
        (said, unsaid) = (Some(Instant::now()), 0);
    };
    loop {
        match socket.accept(&mut refused).await {
            Ok((stream, peer)) => {
                let peer = Peer::Local(peer);
                let Some(place) = place(&quotas, &peer, &fleet) else { continue };
                let connection = Connection::new(Io::Unix(stream), peer, &quotas, place);
                if tx.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
            Err(error) => tired(&error).await,
        }
    }
}

/// A place for a connection of `peer`, unless its quota is used up: then it is hung up on.
fn place(quotas: &Quotas, peer: &Peer, fleet: &Fleet) -> Option<Place> {
    let place = quotas.take(Kind::Connections, peer.owner(), 1);
    if place.is_err() {
        fleet.refused("quota_connections");
    }
    place.ok()
}

async fn accept_tls(
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
    tx: mpsc::Sender<io::Result<Connection>>,
    quotas: Quotas,
    fleet: Arc<Fleet>,
) {
    // Who it is is known after the handshake.
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, address)) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&config.borrow()));
                let (tx, fleet, quotas) = (tx.clone(), Arc::clone(&fleet), quotas.clone());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let stream = timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
                    drop(handshake);
                    match stream {
                        Ok(Ok(stream)) => {
                            let peer = Peer::Remote(address, certificate(&stream));
                            if let Some(place) = place(&quotas, &peer, &fleet) {
                                let io = Io::Tls(Box::new(stream));
                                let connection = Connection::new(io, peer, &quotas, place);
                                let _ = tx.send(Ok(connection)).await;
                            }
                        }
                        Ok(Err(error)) => {
                            fleet.refused("peer");
                            tracing::warn!(%address, %error, "a connection to tcp.listen is refused");
                        }
                        Err(_) => fleet.refused("peer"),
                    }
                });
            }
            Err(error) => tired(&error).await,
        }
    }
}

/// The hash of the client's certificate, by which its account goes.
fn certificate(stream: &TlsStream<TcpStream>) -> u64 {
    let chain = stream.get_ref().1.peer_certificates();
    chain.and_then(<[_]>::first).map_or(0, |certificate| xxh64(certificate, 0))
}

/// No descriptor left, most likely: going round at once would only burn the processor.
async fn tired(error: &io::Error) {
    tracing::warn!(%error, "can't accept a proxy's connection, tried again in 100 ms");
    sleep(Duration::from_millis(100)).await;
}

#[cfg(test)]
mod tests;
