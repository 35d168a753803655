//! A connection to NATS, verified and authenticated as configured.
//!
//! The client reconnects by itself for a moment; a connection that stays away longer is given up and
//! made anew by the session's loop, which reads secrets and certificates again. So a rotated token or
//! certificate needs no restart, and there is one place that waits and jitters.

use std::time::Duration;

use async_nats::jetstream::{self, Context as JetStream};
use async_nats::{Client, ConnectOptions};
use pintle_state::show;

use crate::source::NatsConfig;
use crate::source::settings::read_text;

/// Connecting, and every request, may take this long.
pub(crate) const REQUEST: Duration = Duration::from_secs(5);
/// The client gives a connection up after the third unanswered ping.
const PING: Duration = Duration::from_secs(2);

/// Why NATS is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// A file or variable that the configuration names.
    #[error("{0}")]
    Config(String),
    /// No connection.
    #[error("connecting: {0}")]
    Connect(String),
    /// A request was refused or not answered.
    #[error("{what}: {why}")]
    Request {
        /// What was asked.
        what: &'static str,
        /// What came back.
        why: String,
    },
    /// What is there has been set up in another way.
    #[error(
        "{what} {name} exists and differs: {differences}; change it or the configuration, nothing is replaced"
    )]
    Differs {
        /// `stream` or `consumer`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Field by field.
        differences: String,
    },
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

/// Maps any error of a request.
pub(crate) fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> NatsError {
    move |why| NatsError::Request {
        what,
        why: show(why.to_string().as_bytes()),
    }
}

/// Connects to one of the servers. Secrets and certificates are read anew each time.
///
/// # Errors
/// What stands in the way.
pub(crate) async fn connect(config: &NatsConfig, name: &str) -> Result<Client, NatsError> {
    // Several crates bring rustls; whoever is first names the provider for all.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut options = ConnectOptions::new()
        .name(name)
        .connection_timeout(REQUEST)
        .request_timeout(Some(REQUEST))
        .ping_interval(PING)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempt| {
            let mut backoff = crate::source::Backoff::default();
            (0..attempt.min(6))
                .map(|_| backoff.next())
                .last()
                .unwrap_or_default()
        })
        .event_callback(|event| async move {
            tracing::debug!(event = %show(event.to_string().as_bytes()), "nats");
        });
    let read = |secret: &crate::source::SecretRef| secret.read().map_err(NatsError::Config);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        options = options.user_and_password(user.clone(), read(password)?.expose().to_owned());
    }
    if let Some(token) = &config.token {
        options = options.token(read(token)?.expose().to_owned());
    }
    if let Some(seed) = &config.nkey {
        options = options.nkey(read(seed)?.expose().trim().to_owned());
    }
    if let Some(path) = &config.credentials {
        let text = read_text(path).map_err(NatsError::Config)?;
        options = options
            .credentials(&text)
            .map_err(|e| NatsError::Config(format!("{}: {e}", path.display())))?;
    }
    if config
        .servers
        .iter()
        .any(|server| server.starts_with("tls://"))
    {
        options = options.require_tls(true);
        if let Some(ca) = &config.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&config.tls.cert, &config.tls.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    let connecting = options.connect(config.servers.clone());
    match tokio::time::timeout(REQUEST, connecting).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => {
            // The kind alone says "io error"; what is below it says which.
            let source = std::error::Error::source(&error).map(|e| format!(": {e}"));
            let text = format!("{error}{}", source.unwrap_or_default());
            Err(NatsError::Connect(show(text.as_bytes())))
        }
        Err(_) => Err(NatsError::Connect("no answer in time".into())),
    }
}

/// JetStream over a connection.
pub(crate) fn jetstream(client: Client) -> JetStream {
    let mut context = jetstream::new(client);
    context.set_timeout(REQUEST);
    context
}
