//! A connection to NATS, verified and authenticated as configured.
//!
//! The client would reconnect by itself; a session does not wait for that but ends with its
//! connection ([`Connection::lost`]), and the loop around it makes another, which reads secrets and
//! certificates again. So a rotated token or certificate needs no restart, and there is one place
//! that waits and jitters.
//!
//! The server does not answer a request on a subject that it denies: it says so beside the answers,
//! and the request would only time out. [`Connection::ask`] ends with that word instead.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context as JetStream};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use pintle_state::show;
use tokio::sync::{Notify, watch};

use super::FLEET;
use crate::source::NatsConfig;
use crate::source::settings::read_text;
use crate::words;

/// Every request may take this long.
const REQUEST: Duration = Duration::from_secs(5);
/// Connecting may take this long: short, since whoever waits for a black hole misses its end.
const CONNECT: Duration = Duration::from_secs(2);
/// The client gives a connection up after the third unanswered ping.
const PING: Duration = Duration::from_secs(2);

/// Why NATS is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// A file or variable that the configuration names.
    #[error("{0}")]
    Config(#[from] crate::source::Unreadable),
    /// The file of credentials holds none.
    #[error("{}: {why}", .path.display())]
    Credentials {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        #[source]
        why: std::io::Error,
    },
    /// No connection.
    #[error("connecting to {servers}: {why}")]
    Connect {
        /// The servers that were tried.
        servers: String,
        /// What came back.
        why: String,
    },
    /// The server keeps this user from a subject.
    #[error("{server} denies {what}; allow it for this user")]
    Denied {
        /// The server.
        server: String,
        /// `publish to "subject"` or `subscription to "subject"`.
        what: String,
    },
    /// Nobody answers for JetStream.
    #[error(
        "JetStream is off at {server} for this account, or {prefix} is not its prefix here; \
         start the server with -js, or set nats.domain ({why})"
    )]
    NoJetStream {
        /// The server.
        server: String,
        /// The prefix of JetStream's requests.
        prefix: String,
        /// What came back.
        why: String,
    },
    /// A request was refused or not answered.
    #[error("{what} at {server}: {why}")]
    Request {
        /// What was asked.
        what: String,
        /// The server.
        server: String,
        /// What came back.
        why: String,
    },
    /// A dead letter cannot be replayed.
    #[error("dead letter {0} {1}")]
    Replay(u64, &'static str),
    /// It is not there, and may not be created.
    #[error("stream {0} does not exist and nats.create is false")]
    Absent(String),
    /// The messages ended or heartbeats failed.
    #[error("{0}")]
    Lost(String),
    /// The agent is shutting down.
    #[error("shutting down")]
    Gone,
}

/// A connection, and what the server says on it beside answers.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) js: JetStream,
    /// `host:port` of the server.
    pub(crate) server: String,
    prefix: String,
    signs: Arc<Signs>,
}

#[derive(Debug, Default)]
struct Signs {
    lost: Notify,
    denied: watch::Sender<Option<String>>,
}

impl Signs {
    fn hear(&self, event: &Event) {
        tracing::debug!(event = %show(event.to_string().as_bytes()), "nats");
        match event {
            Event::Disconnected | Event::Closed => self.lost.notify_one(),
            Event::ServerError(ServerError::Other(text)) => {
                if let Some(what) = denied(text) {
                    self.denied.send_replace(Some(what));
                }
            }
            _ => {}
        }
    }
}

/// What is denied, of the server's `Permissions Violation for Publish to "subject"` (nats-server
/// 2.9).
fn denied(text: &str) -> Option<String> {
    let (_, what) = text.split_once("ermissions Violation for ")?;
    let what = what.replacen("Publish", "publish", 1).replacen("Subscription", "subscription", 1);
    Some(show(what.trim_end_matches('\'').as_bytes()))
}

impl Connection {
    /// Connects to one of the servers. Secrets and certificates are read anew each time.
    ///
    /// # Errors
    /// What stands in the way.
    pub(crate) async fn open(config: &NatsConfig, name: &str) -> Result<Self, NatsError> {
        let signs = Arc::new(Signs::default());
        let ears = Arc::clone(&signs);
        let options = options(config)?.name(name).event_callback(move |event| {
            ears.hear(&event);
            std::future::ready(())
        });
        let servers = config.servers.join(", ");
        let refused = |why: String| NatsError::Connect { servers, why };
        let connecting = options.connect(config.servers.clone());
        let silent = format!("no answer within {} s", CONNECT.as_secs());
        let client = match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) if error.kind() == ConnectErrorKind::TimedOut => {
                return Err(refused(silent));
            }
            Ok(Err(error)) => {
                let mut text = show(words::of(&error).as_bytes());
                if text.to_lowercase().contains("authorization") {
                    text.push_str("; the user, the account or the secret is not known there");
                }
                return Err(refused(text));
            }
            Err(_) => return Err(refused(silent)),
        };
        let server = match config.servers.as_slice() {
            // As it is configured: what the server says of itself may be an address of its own net.
            [one] => one.split_once("://").map_or(one.as_str(), |(_, at)| at).to_owned(),
            _ => {
                let info = client.server_info();
                format!("{}:{}", info.host, info.port)
            }
        };
        let (mut js, prefix) = match (&config.domain, &config.api_prefix) {
            (Some(domain), _) => {
                (jetstream::with_domain(client.clone(), domain), format!("$JS.{domain}.API"))
            }
            (None, Some(prefix)) => {
                (jetstream::with_prefix(client.clone(), prefix), prefix.clone())
            }
            (None, None) => (jetstream::new(client.clone()), "$JS.API".to_owned()),
        };
        js.set_timeout(REQUEST);
        Ok(Self { client, js, server, prefix, signs })
    }

    /// Waits until the connection has ended.
    pub(crate) async fn lost(&self) {
        self.signs.lost.notified().await;
    }

    /// Does a request; ends at once when the server denies a subject meanwhile.
    ///
    /// # Errors
    /// [`NatsError::Denied`], [`NatsError::NoJetStream`] or [`NatsError::Request`].
    pub(crate) async fn ask<T, E: Display>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, NatsError> {
        let mut denied = self.signs.denied.subscribe();
        let denied = async {
            let about_it = |what: &Option<String>| {
                // What agents ask each other goes on beside this request.
                what.as_ref().is_some_and(|what| !what.contains(FLEET))
            };
            let what = denied.wait_for(about_it).await.ok().and_then(|what| what.clone());
            match what {
                Some(what) => what,
                None => std::future::pending().await,
            }
        };
        self.signs.denied.send_if_modified(|last| last.take().is_some());
        tokio::select! {
            biased;
            answer = request => answer.map_err(|why| self.failed(what, why)),
            what = denied => Err(NatsError::Denied { server: self.server.clone(), what }),
        }
    }

    /// What the server has denied since the last [`Connection::ask`], if anything.
    pub(crate) fn denied(&self) -> Option<String> {
        self.signs.denied.borrow().clone()
    }

    /// The error of a request.
    pub(crate) fn failed(&self, what: &str, why: impl Display) -> NatsError {
        let (server, why) = (self.server.clone(), show(why.to_string().as_bytes()));
        // As async-nats 0.51 and nats-server 2.9 (codes 10039 and 10076) say it.
        let off = ["no responders", "not enabled"].iter().any(|text| why.contains(text));
        if off {
            NatsError::NoJetStream { server, prefix: self.prefix.clone(), why }
        } else {
            let why = words::meaning(&why).map_or(why, ToOwned::to_owned);
            NatsError::Request { what: what.to_owned(), server, why }
        }
    }
}

fn options(config: &NatsConfig) -> Result<ConnectOptions, NatsError> {
    // Several crates bring rustls; whoever is first names the provider for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut options = ConnectOptions::new()
        .connection_timeout(CONNECT)
        .request_timeout(Some(REQUEST))
        .ping_interval(PING);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        options = options.user_and_password(user.clone(), password.read()?.expose().to_owned());
    }
    if let Some(token) = &config.token {
        options = options.token(token.read()?.expose().to_owned());
    }
    if let Some(seed) = &config.nkey {
        options = options.nkey(seed.read()?.expose().trim().to_owned());
    }
    if let Some(path) = &config.credentials {
        options = options
            .credentials(&read_text(path)?)
            .map_err(|why| NatsError::Credentials { path: path.clone(), why })?;
    }
    if config.servers.iter().any(|server| server.starts_with("tls://")) {
        options = options.require_tls(true);
        if let Some(ca) = &config.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denied_subject_is_read_out_of_the_servers_words() {
        let said = "Permissions Violation for Publish to \"$JS.API.STREAM.INFO.X\"";
        assert_eq!(denied(said).as_deref(), Some("publish to \"$JS.API.STREAM.INFO.X\""));
        assert_eq!(denied("Authorization Violation"), None);
    }
}
