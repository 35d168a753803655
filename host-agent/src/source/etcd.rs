//! The registry in etcd: a listing at one revision, a watch from the next, and distrust of both.
//!
//! etcd promises an ordered, complete watch, and its own tests have found versions that broke it;
//! and the connection below it may be dead without either end knowing. So:
//!
//! - a listing reads all prefixes in pages at one fixed revision R, and the watch starts at R + 1;
//! - the watch is asked for a sign of life three times within `silence`; none is a dead connection,
//!   unless the link is busy with what it has yet to deliver;
//! - the place from which a watch is resumed moves with what was received, per prefix: with
//!   complete revisions, with progress messages of that very watch, and with the answers to our own
//!   questions only where the server is new enough not to give them too early (etcd issue 15220:
//!   before 3.4.25 and 3.5.8 an answer could overtake events);
//! - compaction, another cluster, or a revision lower than what was seen (a restore) mean a new
//!   listing, which the state compares, so that deletes nobody told of are found;
//! - everything is listed again once in `reconcile` and compared, whatever the watch says; a
//!   listing that fails leaves a healthy watch alone and is tried again;
//! - a prefix that may not be read costs itself: the others are served.
//!
//! One member is talked to at a time; the next one is tried when it fails. `require_leader` makes a
//! member that lost its cluster say so instead of going silent.

use std::convert::Infallible;
use std::time::Duration;

use pintle_state::show;
use rand::RngExt as _;
use tokio::time::{Instant, sleep_until};

mod board;
mod config;
mod connect;
mod intake;
mod list;
mod session;
mod version;
mod watch;

pub use config::EtcdConfig;
pub use connect::connect;
pub(crate) use connect::within;

use self::connect::REQUEST;
use self::session::Session;
use self::watch::Position;
use super::formats::{Translator, groups};
use super::{Backoff, Context, SourceConfig};

/// A member that did not answer in time is given twice as long, up to this.
const PATIENCE: Duration = Duration::from_secs(24);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// etcd or the connection to it said no.
    #[error("{}", words(.0))]
    Client(#[from] etcd_client::Error),
    /// A file or variable that the configuration names.
    #[error("{0}")]
    Config(#[from] super::Unreadable),
    /// The configuration names no server.
    #[error("etcd.endpoints names no server")]
    NoEndpoint,
    /// No answer in time, and nothing else on the connection either.
    #[error("{0}: no answer within {1:?}")]
    Timeout(&'static str, Duration),
    /// Nothing was heard.
    #[error("no sign of life for {0:?}")]
    Silent(Duration),
    /// The watch was ended by the server.
    #[error("the watch was cancelled: {0}")]
    Cancelled(String),
    /// None of the prefixes of instances may be read.
    #[error("no permission to read {0}")]
    Denied(String),
    /// What was seen is not this server's past.
    #[error("{0}; listing again")]
    Relist(&'static str),
    /// The agent is shutting down.
    #[error("shutting down")]
    Gone,
}

/// What the client says; its own display is a status with the types below it.
fn words(error: &etcd_client::Error) -> String {
    use etcd_client::Error::{GRpcStatus, IoError, TransportError};
    match error {
        GRpcStatus(status) => crate::words::of_status(status),
        TransportError(error) => crate::words::of(error),
        IoError(error) => crate::words::of(error),
        other => other.to_string(),
    }
}

/// Keeps the state as the registry is, for ever.
pub(crate) async fn run(context: Context) {
    let shutdown = context.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = sessions(context) => {}
    }
}

/// What outlives a connection.
struct Registry {
    /// The prefixes: those of instances, then that of policies.
    prefixes: Vec<Vec<u8>>,
    sources: Vec<SourceConfig>,
    translator: Translator,
    /// Where the next watch goes on; `None`: list first.
    position: Option<Position>,
    patience: Duration,
}

impl Registry {
    fn new(config: &super::SourcesConfig) -> Self {
        let etcd = config.etcd.clone().unwrap_or_default();
        let groups = groups(&etcd);
        let mut prefixes: Vec<_> = groups.iter().map(|group| group.prefix.clone()).collect();
        prefixes.push(etcd.policies.as_bytes().to_vec());
        let allowed = config.state.addresses();
        let policies = etcd.policies.as_bytes();
        Self {
            prefixes,
            translator: Translator::new(groups, &etcd.services, policies, allowed),
            sources: etcd.sources,
            position: None,
            patience: REQUEST,
        }
    }
}

async fn sessions(context: Context) {
    let mut backoff = Backoff::default();
    let mut reader = context.config.clone();
    let mut member = rand::rng().random_range(0..1024usize);
    let mut registry = Registry::new(&reader.borrow());
    loop {
        let whole = reader.borrow_and_update().clone();
        let config = whole.etcd.clone().unwrap_or_default();
        if config.sources != registry.sources {
            registry = Registry::new(&whole);
        }
        let at = config.member(member);
        let began = Instant::now();
        let ended = tokio::select! {
            ended = follow(&context, &config, member, &mut registry, &mut backoff) => ended,
            changed = reader.changed() => match changed {
                Ok(()) => {
                    context.board.change(|sources| sources.etcd.connected = false);
                    continue;
                }
                Err(_) => return,
            },
        };
        let Err(error) = ended;
        let again = match error {
            EtcdError::Gone => return,
            // The member is well, the place was not: no reason to go elsewhere or to wait.
            EtcdError::Relist(_) => {
                registry.position = None;
                Instant::now() + backoff.next()
            }
            _ => {
                if list::is_too_large(&error) {
                    // The same event would come again; a listing goes around it.
                    registry.position = None;
                }
                if let EtcdError::Timeout(..) = error {
                    registry.patience = registry.patience.saturating_mul(2).min(PATIENCE);
                }
                member = member.wrapping_add(1);
                backoff.reconnect(began)
            }
        };
        let text = show(error.to_string().as_bytes());
        let was_connected = context.etcd_lost(&text);
        if was_connected {
            tracing::warn!(
                endpoint = at, error = %text,
                "etcd is away and tried again; etcd.endpoints (--etcd) names its members"
            );
            context.tell(format!("etcd at {at} is away: {text}"));
        }
        tokio::select! {
            () = sleep_until(again) => {}
            changed = reader.changed() => if changed.is_err() { return },
        }
    }
}

/// One connection to one member, until something ends it.
async fn follow(
    context: &Context,
    config: &EtcdConfig,
    member: usize,
    registry: &mut Registry,
    backoff: &mut Backoff,
) -> Result<Infallible, EtcdError> {
    Session::open(context, config, member, registry, backoff).await?.run().await
}
