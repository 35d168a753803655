//! HTTP/1.1 to an admin address, plain, small: the agent's, by TCP or its unix socket, or Envoy's.

use std::fmt::Display;
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
use crate::words;

/// Bytes of an answer. Envoy's dump of 1,000 clusters has about 10 MB.
const MAX_BODY: usize = 64 << 20;
/// For a connection and for an answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Who should answer at an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Role {
    name: &'static str,
    /// What to do where nobody does.
    todo: &'static str,
}

/// The running agent.
pub(super) const AGENT: Role = Role {
    name: "the agent's admin address",
    todo: "start it (pintle run), or name its admin address by --admin",
};
/// The same where it takes orders.
pub(super) const ORDERS: Role = Role {
    name: "the agent's socket for orders",
    todo: "it is open to root, the agent's user and admin.groups",
};
/// An Envoy.
pub(super) const ENVOY: Role = Role {
    name: "Envoy's admin address",
    todo: "start Envoy with an admin address, and name it by --envoy (or leave it out by --no-envoy)",
};

/// One address.
#[derive(Clone, Debug)]
pub(super) struct Client {
    address: String,
    role: Role,
}

impl Client {
    pub(super) fn new(address: &str, role: Role) -> Self {
        let address = address.strip_prefix("http://").unwrap_or(address);
        Self { address: address.trim_end_matches('/').to_owned(), role }
    }

    /// The error of an address that does not answer as it should.
    pub(super) fn unreachable(&self, why: impl Display) -> CliError {
        let Role { name, todo } = self.role;
        CliError::Unavailable(format!("{name} at {}: {why}", self.address), todo)
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
        let stream = stream.map_err(|error| self.unreachable(words::of(&error)))?;
        let failed = |error: hyper::Error| self.unreachable(words::of(&error));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(failed)
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
            .map_err(|error| self.unreachable(words::of(&*error)))?;
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
            return Err(match error {
                Some(error) => CliError::No(error.to_owned()),
                None => self.unreachable(format!("it answers {path} with {status}")),
            });
        }
        serde_json::from_slice(&body).map_err(|error| {
            self.unreachable(format!(
                "its answer to {path} is of another server or release: {error}"
            ))
        })
    }

    /// GET.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.json(Method::GET, path).await
    }
}
