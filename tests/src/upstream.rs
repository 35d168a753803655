//! A sample upstream that does what it is told, HTTP/1.1 and HTTP/2 on one port.
//!
//! In this process, so that a test reads its counters and changes its behaviour between two
//! requests without a protocol for that, and so that arrival times and a test's own clock are the
//! same clock. Every answer carries `x-upstream: name`; the default body is the request's headers
//! as JSON, so that what reached the wire can be asserted. `/healthz` answers for health checks and
//! counts nowhere.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::{Identity, Port, Result};

/// How many requests are kept with their headers. Arrival times are kept of all.
const KEPT: usize = 4_096;

/// What an upstream does with a request. The default: 200 at once, request headers as the body.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// How long a request takes, once it has a slot.
    pub latency: Latency,
    /// The status of answers that do not fail.
    pub status: u16,
    /// The share of requests, 0..=1, that meet the fault.
    pub fail_ratio: f64,
    /// What happens to those.
    pub fault: Fault,
    /// How many requests are worked on at once; the others queue. `None`: any number.
    pub capacity: Option<usize>,
    /// Answer as a gRPC server, with this status.
    pub grpc: Option<Grpc>,
    /// Headers added to every answer.
    pub headers: Vec<(String, String)>,
    /// A body of so many bytes in place of the echo.
    pub body_bytes: Option<usize>,
    /// What `/healthz` says: 200 or 503.
    pub healthy: bool,
}

/// How long a request takes.
#[derive(Clone, Copy, Debug)]
pub enum Latency {
    /// No waiting at all.
    None,
    /// Always the same.
    Fixed(Duration),
    /// Anything between the two, equally likely.
    Uniform(Duration, Duration),
    /// Log-normal: half of the requests below `median`; `sigma` 0.5 puts the 99th percentile at 3.2
    /// x.
    LogNormal {
        /// The median.
        median: Duration,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
    /// A share of the requests takes `slow`, the others `fast`.
    Mixed {
        /// The share, 0..=1, of slow ones.
        ratio: f64,
        /// Their time.
        slow: Duration,
        /// The time of the others.
        fast: Duration,
    },
}

/// What happens to a request that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another status code, after the latency.
    Status(u16),
    /// A gRPC status, after the latency.
    Grpc(Grpc),
    /// No answer, ever.
    Hang,
    /// The connection is reset (HTTP/2: the stream) before any header.
    Reset,
    /// 200, half of the body that the headers promise, then the end.
    CloseMidBody,
    /// This long instead of the latency.
    Slow(Duration),
}

/// A gRPC answer's status and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// The code; 0 is OK.
    pub status: u32,
    /// In the trailers after an empty message; otherwise in the headers alone ("trailers-only").
    pub in_trailers: bool,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When its headers were read.
    pub at: Instant,
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The HTTP version that Envoy spoke.
    pub version: Version,
    /// All headers.
    pub headers: HeaderMap,
}

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    port: Port,
    shared: Arc<Shared>,
    /// Dropping the sender ends the task, and every connection before it.
    serving: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
    tls: Option<Identity>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    active: Mutex<Arc<Active>>,
    dice: AtomicU64,
    log: Mutex<Log>,
    answered: AtomicU64,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
}

/// A behaviour and the slots that belong to it: new ones with every change.
#[derive(Debug)]
struct Active {
    behaviour: Behaviour,
    slots: Option<Arc<Semaphore>>,
}

#[derive(Debug, Default)]
struct Log {
    arrivals: Vec<Instant>,
    seen: VecDeque<Seen>,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            latency: Latency::None,
            status: 200,
            fail_ratio: 0.0,
            fault: Fault::Status(500),
            capacity: None,
            grpc: None,
            headers: Vec::new(),
            body_bytes: None,
            healthy: true,
        }
    }
}

impl Behaviour {
    /// Everything fails this way.
    pub fn failing(fault: Fault) -> Self {
        Self { fail_ratio: 1.0, fault, ..Self::default() }
    }

    /// Everything succeeds, after this.
    pub fn slow(latency: Latency) -> Self {
        Self { latency, ..Self::default() }
    }

    /// A gRPC server that succeeds.
    pub fn grpc() -> Self {
        Self { grpc: Some(Grpc { status: 0, in_trailers: true }), ..Self::default() }
    }
}

impl Upstream {
    /// Listens on a port of its own, on the runtime of the caller.
    pub async fn start(name: &str) -> Result<Self> {
        Self::launch(name, None).await
    }

    /// The same behind TLS (HTTP/1.1 or HTTP/2 by ALPN).
    pub async fn start_tls(name: &str, identity: &Identity) -> Result<Self> {
        Self::launch(name, Some(identity.clone())).await
    }

    async fn launch(name: &str, tls: Option<Identity>) -> Result<Self> {
        // The seed is the name: a run's dice are the same every time.
        let seed = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
        });
        let shared = Shared {
            name: name.to_string(),
            active: Mutex::new(Arc::new(Active { behaviour: Behaviour::default(), slots: None })),
            dice: AtomicU64::new(seed),
            log: Mutex::default(),
            answered: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        };
        let port = Port::take()?;
        let mut upstream = Self { port, shared: Arc::new(shared), serving: None, tls };
        upstream.open().await?;
        Ok(upstream)
    }

    /// Its name: the value of `x-upstream`.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Changes what happens to requests that arrive from now on.
    pub fn set(&self, behaviour: Behaviour) {
        let slots = behaviour.capacity.map(|n| Arc::new(Semaphore::new(n)));
        *lock(&self.shared.active) = Arc::new(Active { behaviour, slots });
    }

    /// What happens to requests now.
    pub fn behaviour(&self) -> Behaviour {
        lock(&self.shared.active).behaviour.clone()
    }

    /// Stops listening and drops every connection: the next one is refused, and none is left when
    /// this returns. The port stays reserved.
    pub async fn close(&mut self) {
        if let Some((end, serving)) = self.serving.take() {
            drop(end);
            let _ = serving.await;
        }
    }

    /// Listens again on the same port.
    pub async fn open(&mut self) -> Result<()> {
        self.close().await;
        let listener = TcpListener::bind(self.port.addr()).await?;
        let acceptor = self.tls.as_ref().map(Identity::acceptor).transpose()?;
        let (end, ended) = oneshot::channel();
        let serving = tokio::spawn(accept(listener, acceptor, self.shared.clone(), ended));
        self.serving = Some((end, serving));
        Ok(())
    }

    /// Requests that arrived since the start (or [`Upstream::forget`]).
    pub fn requests(&self) -> usize {
        lock(&self.shared.log).arrivals.len()
    }

    /// Requests that arrived at or after this moment.
    pub fn requests_since(&self, moment: Instant) -> usize {
        lock(&self.shared.log).arrivals.iter().rev().take_while(|at| **at >= moment).count()
    }

    /// Requests whose answer's headers were handed to the connection.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Requests being worked on or queued now.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// The most that were ever in flight at once.
    pub fn peak_in_flight(&self) -> usize {
        self.shared.peak.load(Ordering::Relaxed)
    }

    /// When the first request arrived.
    pub fn first_at(&self) -> Option<Instant> {
        lock(&self.shared.log).arrivals.first().copied()
    }

    /// When the last request arrived.
    pub fn last_at(&self) -> Option<Instant> {
        lock(&self.shared.log).arrivals.last().copied()
    }

    /// The last requests (4,096 at most) with their headers, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.log).seen.iter().cloned().collect()
    }

    /// Starts counting anew.
    pub fn forget(&self) {
        *lock(&self.shared.log) = Log::default();
        self.shared.answered.store(0, Ordering::Relaxed);
        self.shared.peak.store(0, Ordering::Relaxed);
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut ended => break,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        connections.spawn(connection(stream, tls.clone(), shared.clone()));
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Open for as long as the service below runs: it runs inside this connection's task.
    let fd = stream.as_raw_fd();
    let service = service_fn(move |request| answer(request, shared.clone(), fd));
    let server = auto::Builder::new(TokioExecutor::new());
    // How a connection ended is the client's business; what is measured here is requests.
    match tls {
        None => drop(server.serve_connection(TokioIo::new(stream), service).await),
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    fd: RawFd,
) -> io::Result<Response<Body>> {
    let active = lock(&shared.active).clone();
    let behaviour = &active.behaviour;
    if request.uri().path() == "/healthz" {
        let status = if behaviour.healthy { 200 } else { 503 };
        return Ok(plain(status, Bytes::new()));
    }
    let _held = InFlight::enter(&shared);
    shared.record(&request);
    let _slot = slot(&active).await;

    let fault = (shared.roll() < behaviour.fail_ratio).then_some(behaviour.fault);
    let pause = match fault {
        Some(Fault::Slow(pause)) => pause,
        _ => shared.draw(behaviour.latency),
    };
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    let mut response = match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Reset) => {
            if request.version() < Version::HTTP_2 {
                reset_on_close(fd);
            }
            return Err(io::Error::other("reset"));
        }
        Some(Fault::CloseMidBody) => half(),
        Some(Fault::Status(status)) => plain(status, Bytes::new()),
        Some(Fault::Grpc(status)) => grpc(status),
        Some(Fault::Slow(_)) | None => match (behaviour.grpc, behaviour.body_bytes) {
            (Some(status), _) => grpc(status),
            (None, Some(size)) => plain(behaviour.status, Bytes::from(vec![b'x'; size])),
            (None, None) => plain(behaviour.status, echo(&shared.name, &request)),
        },
    };
    let added = behaviour.headers.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    for (key, value) in added.chain([("x-upstream", shared.name.as_str())]) {
        let name = http::HeaderName::from_bytes(key.as_bytes()).map_err(io::Error::other)?;
        response
            .headers_mut()
            .insert(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    }
    // Read the body, so that a kept-alive connection stays usable.
    let _ = request.into_body().collect().await;
    shared.answered.fetch_add(1, Ordering::Relaxed);
    Ok(response)
}

async fn slot(active: &Active) -> Option<OwnedSemaphorePermit> {
    match &active.slots {
        Some(slots) => slots.clone().acquire_owned().await.ok(),
        None => None,
    }
}

fn plain(status: u16, body: Bytes) -> Response<Body> {
    let mut response = Response::new(boxed(Full::new(body)));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}

fn half() -> Response<Body> {
    let data = stream::iter([Ok(Frame::data(Bytes::from_static(&[b'x'; 512])))]);
    // hyper flushes when the body has nothing ready, and drops what it has buffered at an error.
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::other("closed in the middle of the body"))
    });
    let mut response = Response::new(StreamBody::new(data.chain(end)).boxed_unsync());
    response.headers_mut().insert("content-length", HeaderValue::from_static("1024"));
    response
}

fn grpc(grpc: Grpc) -> Response<Body> {
    let status = HeaderValue::from(grpc.status);
    let mut response = if grpc.in_trailers {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status)]);
        // One empty message: not compressed, length 0.
        let frames: [io::Result<Frame<Bytes>>; 2] =
            [Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
        Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync())
    } else {
        let mut response = plain(200, Bytes::new());
        response.headers_mut().insert("grpc-status", status);
        response
    };
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}

fn boxed(body: impl hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static) -> Body {
    body.map_err(|never| match never {}).boxed_unsync()
}

fn echo(name: &str, request: &Request<Incoming>) -> Bytes {
    let headers: Vec<[String; 2]> = request
        .headers()
        .iter()
        .map(|(k, v)| [k.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()])
        .collect();
    let json = serde_json::json!({
        "upstream": name,
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map_or("/", |p| p.as_str()),
        "version": format!("{:?}", request.version()),
        "authority": request.uri().authority().map(ToString::to_string),
        "headers": headers,
    });
    Bytes::from(json.to_string())
}

/// Makes the coming close of this socket an RST, which a plain close is not.
fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the pointer and the size describe `linger`, which outlives the call; the descriptor
    // is open, since its connection is what is calling.
    unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Shared ===

impl Shared {
    fn record(&self, request: &Request<Incoming>) {
        let at = Instant::now();
        let seen = Seen {
            at,
            method: request.method().to_string(),
            path: request.uri().path_and_query().map_or("/", |p| p.as_str()).to_string(),
            version: request.version(),
            headers: request.headers().clone(),
        };
        let mut log = lock(&self.log);
        log.arrivals.push(at);
        if log.seen.len() == KEPT {
            log.seen.pop_front();
        }
        log.seen.push_back(seen);
    }

    /// A number in 0..1 (SplitMix64).
    fn roll(&self) -> f64 {
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut z = self.dice.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / 2f64.powi(64)
    }

    fn draw(&self, latency: Latency) -> Duration {
        match latency {
            Latency::None => Duration::ZERO,
            Latency::Fixed(time) => time,
            Latency::Uniform(low, high) => low + high.saturating_sub(low).mul_f64(self.roll()),
            Latency::LogNormal { median, sigma } => {
                // Box and Muller; 1 - roll keeps the logarithm finite.
                let radius = (-2.0 * (1.0 - self.roll()).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * self.roll()).cos();
                median.mul_f64((sigma * normal).exp())
            }
            Latency::Mixed { ratio, slow, fast } => {
                if self.roll() < ratio {
                    slow
                } else {
                    fast
                }
            }
        }
    }
}

/// Counts a request in flight until dropped, which a client that goes away does too.
struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    fn enter(shared: &'a Shared) -> Self {
        let now = shared.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        shared.peak.fetch_max(now, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
