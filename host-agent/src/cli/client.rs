//! HTTP/1.1 to an admin address, plain, small: the agent's, by TCP or its unix socket, or Envoy's.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::CliError;

/// Bytes of an answer. Envoy's dump of 1,000 clusters has about 10 MB.
const MAX_BODY: usize = 64 << 20;
/// For a connection and for an answer.
const WITHIN: Duration = Duration::from_secs(5);

/// One address.
#[derive(Clone, Debug)]
pub(super) struct Client {
    address: String,
    what: &'static str,
}

impl Client {
    /// `what` is who should answer there, for the error.
    pub(super) fn new(address: &str, what: &'static str) -> Self {
        let address = address.strip_prefix("http://").unwrap_or(address);
        Self { address: address.trim_end_matches('/').to_owned(), what }
    }

    fn unreachable(&self, error: impl std::fmt::Display) -> CliError {
        CliError::Unavailable(format!("{} at {}: {error}", self.what, self.address))
    }

    /// A response whose body has not been read.
    pub(super) async fn open(
        &self,
        method: Method,
        path: &str,
    ) -> Result<http::Response<Incoming>, CliError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, if self.is_unix() { "localhost" } else { &self.address })
            .header(crate::serve::admin::REQUEST_HEADER, "1")
            .body(Empty::<Bytes>::new())
            .map_err(|error| CliError::Usage(format!("{path}: {error}")))?;
        let answer = async {
            if self.is_unix() {
                let stream = UnixStream::connect(&self.address).await;
                self.send(stream, request).await
            } else {
                let stream = TcpStream::connect(&self.address).await;
                self.send(stream, request).await
            }
        };
        timeout(WITHIN, answer).await.map_err(|_| self.unreachable("no answer within 5 s"))?
    }

    async fn send<S>(
        &self,
        stream: std::io::Result<S>,
        request: Request<Empty<Bytes>>,
    ) -> Result<http::Response<Incoming>, CliError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| self.unreachable(error))
    }

    /// A path is a unix socket.
    fn is_unix(&self) -> bool {
        self.address.starts_with('/')
    }

    /// Status and body.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Bytes), CliError> {
        let response = self.open(method, path).await?;
        let status = response.status();
        let body = timeout(WITHIN, Limited::new(response.into_body(), MAX_BODY).collect())
            .await
            .map_err(|_| self.unreachable("no answer within 5 s"))?
            .map_err(|error| self.unreachable(error))?;
        Ok((status, body.to_bytes()))
    }

    /// The answer's JSON; what the server says where it is no 2xx.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, CliError> {
        let (status, body) = self.ask(method, path).await?;
        if !status.is_success() {
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let error = said.get("error").and_then(|error| error.as_str());
            return Err(CliError::No(
                error.map_or_else(|| format!("{path}: {status}"), ToOwned::to_owned),
            ));
        }
        serde_json::from_slice(&body)
            .map_err(|error| self.unreachable(format!("not the expected answer: {error}")))
    }

    /// GET.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.json(Method::GET, path).await
    }
}
