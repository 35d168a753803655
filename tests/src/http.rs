//! Single requests, for asking an admin port or for looking at one answer closely. Load is in
//! `load`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::{Error, Result};

/// How long a single request may take, connection included: a hang must end a test, not the run.
pub const BUDGET: Duration = Duration::from_secs(20);

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Its trailers; empty when there were none.
    pub trailers: HeaderMap,
}

impl Reply {
    /// A header as text, when it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        let parsed = serde_json::from_slice(&self.body);
        parsed.map_err(|e| Error::from(e).during(format!("{} {:?}", self.status, self.text())))
    }

    /// From an answer of [`crate::Upstream`]'s echo: the values of one request header, in order.
    pub fn echoed(&self, name: &str) -> Vec<String> {
        let Ok(json) = self.json() else {
            return Vec::new();
        };
        let Some(headers) = json["headers"].as_array() else {
            return Vec::new();
        };
        let named = headers.iter().filter(|pair| pair[0] == name);
        named.filter_map(|pair| Some(pair[1].as_str()?.to_string())).collect()
    }
}

/// `GET path` with the address as authority, over HTTP/1.1 and a connection of its own.
pub async fn get(addr: SocketAddr, path: &str) -> Result<Reply> {
    send(addr, request(&addr.to_string(), "GET", path, "")?).await
}

/// `POST path` with a body, as [`get`].
pub async fn post(addr: SocketAddr, path: &str, body: &str) -> Result<Reply> {
    send(addr, request(&addr.to_string(), "POST", path, body)?).await
}

/// A request whose authority is `host`; more headers can be put into it.
pub fn request(host: &str, method: &str, path: &str, body: &str) -> Result<Request<Full<Bytes>>> {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    Ok(Request::builder().method(method).uri(path).header("host", host).body(body)?)
}

/// Sends a request over HTTP/1.1 on a connection of its own.
pub async fn send(addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<Reply> {
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let reply = read(sender.send_request(request).await?).await;
        driver.abort();
        reply
    };
    bounded(addr, exchange).await
}

/// Sends a request over HTTP/2 without TLS (prior knowledge), on a connection of its own. The
/// `host` header becomes the authority.
pub async fn send_h2(addr: SocketAddr, mut request: Request<Full<Bytes>>) -> Result<Reply> {
    let host = request.headers_mut().remove("host");
    let host = host.and_then(|h| h.to_str().map(str::to_string).ok());
    let authority = host.unwrap_or_else(|| addr.to_string());
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_string();
    *request.uri_mut() =
        Uri::builder().scheme("http").authority(authority).path_and_query(path).build()?;
    let exchange = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        let driver = tokio::spawn(connection);
        let reply = read(sender.send_request(request).await?).await;
        driver.abort();
        reply
    };
    bounded(addr, exchange).await
}

/// Writes bytes as they are and reads until the peer closes or says nothing for `quiet`: for
/// requests that no client library would send.
pub async fn raw(addr: SocketAddr, bytes: &[u8], quiet: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes).await?;
    let mut out = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read) = tokio::time::timeout(quiet, stream.read(&mut buffer)).await {
        match read {
            Ok(0) | Err(_) => break,
            Ok(n) => out.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(out)
}

async fn bounded(addr: SocketAddr, exchange: impl Future<Output = Result<Reply>>) -> Result<Reply> {
    match tokio::time::timeout(BUDGET, exchange).await {
        Ok(reply) => reply.map_err(|e| e.during(addr)),
        Err(_) => Err(Error::new(format!("{addr}: no whole answer within {BUDGET:?}"))),
    }
}

async fn read(response: hyper::Response<hyper::body::Incoming>) -> Result<Reply> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = collected.to_bytes();
    Ok(Reply { status: head.status.as_u16(), headers: head.headers, body, trailers })
}
