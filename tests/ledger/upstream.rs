//! An upstream that does what a request's path says and keeps a log of it.
//!
//! | act | what it does |
//! |---|---|
//! | `moved/ok` | 302 to the act behind it, on the same host |
//! | `ok`, `status/404` | answers with 200 or that status |
//! | `slow/150/ok` | waits 150 ms, then acts as the rest says |
//! | `held/ok` | waits for [`Upstream::release`], then acts as the rest says |
//! | `hang` | never answers |
//! | `reset` | closes the connection (HTTP/2: resets the stream) without an answer |
//! | `half` | a head that promises 1024 bytes, half of them, the end of the connection |
//! | `stall`, `stall/500` | a head and one piece of the body, then silence |
//! | `large` | 200 and 16 MiB, more than all buffers on the way hold |
//! | `trailers` | a chunked body and a trailer |
//! | `sse/2000` | one event each 100 ms for 2 s |
//! | `ws/server`, `ws/client`, `ws/drop` | a WebSocket that echoes one message; closed by either side, or cut |
//! | `grpc/14`, `grpc/trailers/14` | that status in the headers alone; or after a message, in the trailers |
//! | `grpc/stream/2000` | one message each 100 ms for 2 s, then status 0 |
//! | `grpc/echo` | every message back as it comes, then status 0 |
//! | `raw/garbage`, `raw/hints`, `raw/long-head`, `raw/old`, `raw/early` | bytes that no library of servers sends: see [`RAW`] |
//! | `grpc/deadline` | works until the request's `grpc-timeout` and says status 4 |

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use pintle_tests::Port;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it asked for.
    pub act: String,
    /// The headers that reached the upstream.
    pub headers: HeaderMap,
    /// What was answered.
    pub said: Said,
}

/// An upstream's own view of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// No head went out.
    Nothing,
    /// A good one.
    Well,
    /// 5xx, a gRPC status of a server's fault, no answer at all, or half of one.
    Badly,
}

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    port: Port,
    shared: Arc<Shared>,
    serving: Option<tokio::task::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    /// Answers that need not be held.
    released: Semaphore,
    always: Mutex<Option<String>>,
    log: Mutex<Vec<Entry>>,
}

impl Upstream {
    pub async fn start(name: &str) -> Self {
        let port = Port::take().expect("a port");
        let shared = Arc::new(Shared {
            name: name.into(),
            released: Semaphore::new(0),
            always: Mutex::default(),
            log: Mutex::default(),
        });
        let listener = TcpListener::bind(port.addr()).await.expect("listens");
        let serving = Some(tokio::spawn(accept(listener, shared.clone())));
        Self { port, shared, serving }
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Acts so from now on, whatever is asked.
    pub fn always(&self, act: &str) {
        *lock(&self.shared.always) = Some(act.into());
    }

    /// Lets one request go on that is held.
    pub fn release(&self) {
        self.shared.released.add_permits(1);
    }

    /// Every request so far.
    pub fn log(&self) -> Vec<Entry> {
        lock(&self.shared.log).clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        connections.spawn(connection(stream, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Answers as bytes, by name, and whether each is a good one. All end with the connection.
const RAW: [(&str, &str, bool); 4] = [
    ("garbage", "SSH-2.0-OpenSSH_9.2\r\n", false),
    (
        "hints",
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        true,
    ),
    // A body that ends with the connection, as servers of before chunks send it.
    ("old", "HTTP/1.0 200 OK\r\n\r\nok", true),
    // Before the request's body has come.
    (
        "early",
        "HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        true,
    ),
];

/// The name behind `/raw/` in the head of a request, if that is what comes.
async fn raw(stream: &TcpStream) -> Option<String> {
    let mut head = [0; 256];
    let read = stream.peek(&mut head).await.ok()?;
    let line = String::from_utf8_lossy(&head[..read]).into_owned();
    let (_, name) = line.lines().next()?.split_once(" /raw/")?;
    name.split(' ').next().map(str::to_owned)
}

async fn answer_raw(name: &str, mut stream: TcpStream, shared: &Shared) {
    let (answer, well) = match RAW.iter().find(|(it, ..)| *it == name) {
        Some((_, answer, well)) => ((*answer).to_owned(), *well),
        // More than the 60 KiB that Envoy takes of a head by default.
        None => (format!("HTTP/1.1 200 OK\r\nx-long: {}\r\n\r\n", "x".repeat(100_000)), false),
    };
    let said = if well { Said::Well } else { Said::Badly };
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(read) if read > 0) {
            return;
        }
    }
    let headers = HeaderMap::new();
    lock(&shared.log).push(Entry { act: format!("raw/{name}"), headers, said });
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
    // What is still on its way is read, or the kernel would answer it with a reset.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    if let Some(name) = raw(&stream).await {
        return answer_raw(&name, stream, &shared).await;
    }
    let service = service_fn(move |request| answer(request, shared.clone()));
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let asked = request.headers().get("x-act").and_then(|act| act.to_str().ok());
    let asked = asked.unwrap_or(request.uri().path()).trim_start_matches('/').to_owned();
    let act = lock(&shared.always).clone().unwrap_or(asked);
    let at = {
        let mut log = lock(&shared.log);
        let headers = request.headers().clone();
        log.push(Entry { act: act.clone(), headers, said: Said::Nothing });
        log.len() - 1
    };
    let mut act = act.as_str();
    while let Some((millis, rest)) = act.strip_prefix("slow/").and_then(|a| a.split_once('/')) {
        tokio::time::sleep(Duration::from_millis(number(millis).into())).await;
        act = rest;
    }
    if let Some(rest) = act.strip_prefix("held/") {
        shared.released.acquire().await.map_err(io::Error::other)?.forget();
        act = rest;
    }
    if act == "grpc/deadline" {
        let limit = request.headers().get("grpc-timeout").and_then(|v| v.to_str().ok());
        let millis = limit.and_then(|v| v.strip_suffix('m')).map_or(0, number);
        tokio::time::sleep(Duration::from_millis(millis.into())).await;
    }
    let say = |said| {
        if let Some(entry) = lock(&shared.log).get_mut(at) {
            entry.said = said;
        }
    };
    if act == "hang" {
        std::future::pending::<()>().await;
    }
    if act == "reset" {
        say(Said::Badly);
        return Err(io::Error::other("reset"));
    }
    let (response, well) = respond(act, request).await;
    say(if well { Said::Well } else { Said::Badly });
    let (mut head, body) = response.into_parts();
    head.headers.insert("x-upstream", shared.name.parse().map_err(io::Error::other)?);
    Ok(Response::from_parts(head, body))
}

/// The answer, and whether it is a good one.
async fn respond(act: &str, mut request: Request<Incoming>) -> (Response<Body>, bool) {
    let parts: Vec<&str> = act.split('/').collect();
    // A stream's request may go on; everything else is read whole, so that the connection can be
    // kept.
    if !matches!(parts[..], ["grpc", "echo"] | ["ws", _]) {
        let _ = (&mut request).collect().await;
    }
    match parts[..] {
        ["status", status] => {
            let status = number(status);
            (plain(status, ""), status < 500)
        }
        ["moved", ..] => {
            let host = request.headers().get("host").cloned();
            let host = host.and_then(|host| host.to_str().map(str::to_owned).ok());
            let mut response = plain(302, "");
            let to = format!("http://{}/{}", host.unwrap_or_default(), parts[1..].join("/"));
            response.headers_mut().extend(to.parse().map(|to| (hyper::header::LOCATION, to)));
            (response, true)
        }
        ["half"] => {
            let cut = cut(Bytes::from_static(&[b'x'; 512]));
            let mut response = plain(200, "").map(|_| cut);
            response.headers_mut().insert("content-length", 1024.into());
            (response, false)
        }
        ["stall", ..] => {
            let some = stream::iter([Ok(Frame::data(Bytes::from_static(b"some")))]);
            let status = parts.get(1).map_or(200, |status| number(status));
            let mut response = streamed(some.chain(stream::pending()));
            *response.status_mut() = plain(status, "").status();
            (response, status < 500)
        }
        ["kept"] => {
            let mut response = plain(200, "ok");
            response.headers_mut().insert("cache-control", typed("max-age=60"));
            (response, true)
        }
        ["large"] => (plain(200, "x".repeat(16 << 20)), true),
        ["trailers"] => {
            let trailers = HeaderMap::from_iter([(
                hyper::header::HeaderName::from_static("x-sum"),
                hyper::header::HeaderValue::from_static("1"),
            )]);
            let frames =
                [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
            (streamed(stream::iter(frames)), true)
        }
        ["sse", millis] => {
            let events = every(number(millis), Bytes::from_static(b"data: tick\n\n"));
            let mut response = streamed(events);
            response.headers_mut().insert("content-type", typed("text/event-stream"));
            (response, true)
        }
        ["ws", closer] => (websocket(closer, request), true),
        ["grpc", "deadline"] => (grpc(4, stream::empty(), false), false),
        ["grpc", "echo"] => {
            let echoed = request.into_body().into_data_stream();
            let echoed = echoed.map(|piece| piece.map(Frame::data).map_err(io::Error::other));
            (grpc(0, echoed, true), true)
        }
        ["grpc", "stream", millis] => (grpc(0, every(number(millis), message()), true), true),
        ["grpc", "trailers", status] => {
            let status = number(status);
            let one = stream::iter([Ok(Frame::data(message()))]);
            (grpc(status, one, true), !failed(status))
        }
        ["grpc", status] => {
            let status = number(status);
            (grpc(status, stream::empty(), false), !failed(status))
        }
        _ => (plain(200, "ok"), true),
    }
}

/// The gRPC statuses that are a server's fault.
fn failed(status: u16) -> bool {
    matches!(status, 2 | 4 | 13 | 14 | 15)
}

/// A message of the type String, in gRPC's framing.
fn message() -> Bytes {
    Bytes::from_static(&[0, 0, 0, 0, 4, 0x0a, 2, b'o', b'k'])
}

fn grpc(
    status: u16,
    frames: impl futures::Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static,
    in_trailers: bool,
) -> Response<Body> {
    let value = hyper::header::HeaderValue::from(status);
    let trailers = HeaderMap::from_iter([(
        hyper::header::HeaderName::from_static("grpc-status"),
        value.clone(),
    )]);
    let end = in_trailers.then(|| Ok(Frame::trailers(trailers)));
    let mut response = match in_trailers {
        true => streamed(frames.chain(stream::iter(end))),
        false => plain(200, ""),
    };
    if !in_trailers {
        response.headers_mut().insert("grpc-status", value);
    }
    response.headers_mut().insert("content-type", typed("application/grpc"));
    response
}

/// One piece each 100 ms for so long.
fn every(millis: u16, piece: Bytes) -> impl futures::Stream<Item = io::Result<Frame<Bytes>>> {
    let ticks = u32::from(millis / 100);
    stream::unfold(0, move |done| {
        let piece = piece.clone();
        async move {
            if done >= ticks {
                return None;
            }
            if done > 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Some((Ok(Frame::data(piece)), done + 1))
        }
    })
}

fn websocket(closer: &str, mut request: Request<Incoming>) -> Response<Body> {
    let key =
        request.headers().get("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes()));
    let closer = closer.to_owned();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(io) = upgrade.await else { return };
        let io = TokioIo::new(io);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() {
                break;
            }
            let _ = socket.send(message).await;
            match closer.as_str() {
                "server" => return drop(socket.close(None).await),
                "drop" => return,
                _ => {}
            }
        }
    });
    let mut response = plain(101, "");
    let headers = response.headers_mut();
    headers.insert("connection", typed("upgrade"));
    headers.insert("upgrade", typed("websocket"));
    if let Some(accept) = key.and_then(|key| key.parse().ok()) {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}

fn plain(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    response
}

fn streamed(
    frames: impl futures::Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static,
) -> Response<Body> {
    Response::new(StreamBody::new(frames).boxed_unsync())
}

/// This much of a body, and then no more of it.
fn cut(data: Bytes) -> Body {
    // hyper flushes when the body has nothing ready, and drops what it has buffered at an error.
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::other("closed in the middle of the body"))
    });
    StreamBody::new(stream::iter([Ok(Frame::data(data))]).chain(end)).boxed_unsync()
}

fn typed(text: &'static str) -> hyper::header::HeaderValue {
    hyper::header::HeaderValue::from_static(text)
}

fn number(text: &str) -> u16 {
    text.parse().unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
