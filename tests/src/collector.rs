//! An OTLP/gRPC collector that does what it is told.
//!
//! It speaks gRPC's framing over HTTP/2 and leaves the messages as they are, so that whoever
//! asserts decodes them with the published protocol and not with anything of ours, and so that a
//! bench pays for decoding when it likes. Everything that can go wrong with a collector is a
//! [`Manner`]: slow, silent, refusing for now, refusing for good, taking a batch but not all of it;
//! or it is closed, as an [`crate::Upstream`] can be.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::{Port, Result};

/// What the collector does with a call. The default: takes it.
#[derive(Clone, Debug, Default)]
pub enum Manner {
    /// Takes the batch.
    #[default]
    Take,
    /// Takes it, after this time.
    Slow(Duration),
    /// Answers with this gRPC status.
    Refuse(u32),
    /// Takes the batch with this message as its response, for example a partial success.
    Answer(Vec<u8>),
    /// Never answers.
    Hang,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// When its message was whole.
    pub at: Instant,
    /// `/service/method`.
    pub path: String,
    /// The message, without gRPC's framing.
    pub message: Bytes,
    /// Whether it was taken.
    pub taken: bool,
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    port: Port,
    shared: Arc<Shared>,
    serving: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    manner: Mutex<Manner>,
    calls: Mutex<Vec<Call>>,
}

impl Collector {
    /// Listens on a port of its own, on the runtime of the caller.
    pub async fn start() -> Result<Self> {
        let mut collector = Self { port: Port::take()?, shared: Arc::default(), serving: None };
        collector.open().await?;
        Ok(collector)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Changes what happens to calls that arrive from now on.
    pub fn set(&self, manner: Manner) {
        *lock(&self.shared.manner) = manner;
    }

    /// Stops listening and drops every connection: the next one is refused. The port stays
    /// reserved.
    pub async fn close(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Listens again on the same port.
    pub async fn open(&mut self) -> Result<()> {
        self.close().await;
        let listener = TcpListener::bind(self.port.addr()).await?;
        self.serving = Some(tokio::spawn(accept(listener, self.shared.clone())));
        Ok(())
    }

    /// All calls so far, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    /// All calls so far, which are forgotten.
    pub fn drain(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.shared.calls))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        connections.spawn(connection(stream, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(request, shared.clone()));
    let server = http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> hyper::Result<Response<Body>> {
    let path = request.uri().path().to_string();
    let body = request.into_body().collect().await?.to_bytes();
    // One byte that says "not compressed", four of length, the message.
    let message = body.get(5..).map(|m| body.slice_ref(m)).unwrap_or_default();
    let manner = lock(&shared.manner).clone();
    let taken = !matches!(manner, Manner::Refuse(_) | Manner::Hang);
    lock(&shared.calls).push(Call { at: Instant::now(), path, message, taken });
    let (status, reply) = match manner {
        Manner::Take => (0, Vec::new()),
        Manner::Slow(time) => {
            tokio::time::sleep(time).await;
            (0, Vec::new())
        }
        Manner::Refuse(status) => (status, Vec::new()),
        Manner::Answer(message) => (0, message),
        Manner::Hang => std::future::pending().await,
    };
    Ok(grpc(status, &reply))
}

fn grpc(status: u32, message: &[u8]) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(message);
    let data = (status == 0).then(|| Frame::data(Bytes::from(framed)));
    let frames = data.into_iter().chain([Frame::trailers(trailers)]).map(Ok);
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
