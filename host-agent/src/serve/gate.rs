//! What stands between a connection and the services: whose it is, and how many streams it may
//! open.
//!
//! A [`Caller`] comes with every connection. The layer ([`Gated`]) takes a place for each stream on
//! the caller's account and gives it back when the response ends. It counts the streams that are
//! open as well, because a connection without one holds a place for nothing and is closed
//! ([`Streams::idle_since`]).

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tower::Layer;
use xxhash_rust::xxh64::xxh64;

use crate::serve::messages::Messages;
use crate::serve::quota::{Full, Kind, Owner, Place, Quotas, User};
use crate::serve::socket::Credentials;

/// The request header (gRPC metadata) with the token that the module was given in its environment.
pub(crate) const TOKEN_HEADER: &str = "x-pintle-token";
/// Bytes of a token that count.
const MAX_TOKEN: usize = 256;

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process on this machine.
    Local(Credentials),
    /// A client whose certificate an allowed authority signed, and the certificate's hash.
    Remote(SocketAddr, u64),
    /// No connection of this server's (tests).
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(peer) => write!(f, "uid {}, pid {}", peer.uid, peer.pid),
            Self::Remote(address, _) => write!(f, "{address} by TLS"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Who speaks on a stream, and the accounts that it is on.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The other end of the connection.
    pub peer: Peer,
    quotas: Quotas,
    streams: Arc<Streams>,
    token: Option<u64>,
}

/// The open streams of one connection.
#[derive(Debug)]
pub(in crate::serve) struct Streams(Mutex<(usize, Instant)>);

/// What tells one Envoy from the next: credentials and, where the kernel's word is not enough, a
/// token. It is no secret itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity(String);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Streams ===

impl Streams {
    pub(in crate::serve) fn new() -> Self {
        Self(Mutex::new((0, Instant::now())))
    }

    /// Since when no stream is open; none while one is.
    pub(in crate::serve) fn idle_since(&self) -> Option<Instant> {
        let (open, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (open == 0).then_some(since)
    }

    fn add(&self, opened: bool) {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = if opened { streams.0.saturating_add(1) } else { streams.0.saturating_sub(1) };
        *streams = (open, Instant::now());
    }
}

// === impl Caller ===

impl Caller {
    pub(in crate::serve) fn new(peer: Peer, quotas: Quotas, streams: Arc<Streams>) -> Self {
        Self { peer, quotas, streams, token: None }
    }

    /// Nobody that this server knows, with accounts of its own (tests).
    #[must_use]
    pub(crate) fn unknown() -> Self {
        Self::new(Peer::Unknown, Quotas::new(1), Arc::new(Streams::new()))
    }

    /// On whose account it is.
    #[must_use]
    pub(crate) fn owner(&self) -> Owner {
        self.peer.owner()
    }

    /// Takes `units` on its account.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn take(&self, kind: Kind, units: usize) -> Result<Place, Full> {
        self.quotas.take(kind, self.owner(), units)
    }

    /// What tells it from others with the same node id.
    #[must_use]
    pub(crate) fn identity(&self) -> Identity {
        let token = self.token.unwrap_or(0);
        Identity(match &self.peer {
            Peer::Local(it) => format!("{}:{}:{}:{token:x}", it.uid, it.gid, it.pid),
            Peer::Remote(_, certificate) => format!("{certificate:016x}:{token:x}"),
            Peer::Unknown => format!("{token:x}"),
        })
    }
}

impl Peer {
    /// On whose account it is.
    #[must_use]
    pub(crate) fn owner(&self) -> Owner {
        match self {
            Self::Local(peer) => {
                Owner { user: User::Uid(peer.uid), process: (peer.pid > 0).then_some(peer.pid) }
            }
            Self::Remote(_, certificate) => {
                Owner { user: User::Certificate(*certificate), process: None }
            }
            Self::Unknown => Owner { user: User::Unknown, process: None },
        }
    }
}

/// The gRPC status of a limit that is reached.
impl From<Full> for Status {
    fn from(full: Full) -> Self {
        Self::resource_exhausted(full.to_string())
    }
}

// === the layer ===

/// Gates every request of the server.
#[derive(Clone, Copy, Debug)]
pub(in crate::serve) struct Gated;

impl<S> Layer<S> for Gated {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub(in crate::serve) struct Gate<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(mut caller) = request.extensions().get::<Caller>().cloned() else {
            return Box::pin(self.inner.call(request));
        };
        let token = request.headers().get(TOKEN_HEADER).map(http::HeaderValue::as_bytes);
        caller.token =
            token.filter(|it| (1..=MAX_TOKEN).contains(&it.len())).map(|token| xxh64(token, 0));
        let watch = request.uri().path().starts_with("/pintle.");
        let place = caller.take(if watch { Kind::Watches } else { Kind::Discoveries }, 1);
        let place = match place {
            Ok(place) => place,
            Err(full) => return Box::pin(std::future::ready(Ok(Status::from(full).into_http()))),
        };
        let open = Open::new(Arc::clone(&caller.streams), place);
        request.extensions_mut().insert(caller);
        if !watch {
            let messages = Messages::new(std::mem::take(request.body_mut()));
            request.extensions_mut().insert(messages.clone());
            *request.body_mut() = Body::new(messages);
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Body::new(Held { body, _open: open })))
        })
    }
}

/// A stream that is open.
struct Open {
    streams: Arc<Streams>,
    _place: Place,
}

impl Open {
    fn new(streams: Arc<Streams>, place: Place) -> Self {
        streams.add(true);
        Self { streams, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.streams.add(false);
    }
}

/// A response's body, with the place of its stream.
struct Held {
    body: Body,
    _open: Open,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
