//! The events in JetStream: durable pull consumers of each agent, acknowledged after they are
//! applied.
//!
//! JetStream delivers at least once, in no order worth trusting, and can lose what it confirmed;
//! the state is made for all of it (see [`pintle_state::event`]), so the loop here can be simple
//! and stubborn.
//!
//! At the start of a process the consumers are made anew, a little before the last event that the
//! state on disk holds: at most `max_ack_pending` messages can be out of order, and what is seen
//! twice changes nothing.

use std::convert::Infallible;
use std::sync::Arc;

use async_nats::jetstream::Context as JetStream;
use pintle_state::{PolicyCheck, SavedStream, show};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use self::outgoing::Outbox;
use self::peers::Peers;
use self::session::{Given, Session};
use self::words::{Speaker, Voice};
use super::{Backoff, Context, SourcesConfig};
use crate::link::Reported;

mod clock;
mod config;
pub(crate) mod connect;
mod lanes;
pub(crate) mod letters;
pub(crate) mod outgoing;
mod peers;
mod report;
mod session;
pub(crate) mod setup;
pub(crate) mod words;

pub(crate) use self::config::APART;
pub use self::config::NatsConfig;
pub use self::connect::NatsError;
pub(crate) use self::words::FLEET;

/// Applies events, and publishes transitions, for ever.
pub(crate) async fn run(
    context: Context,
    resume: SavedStream,
    check: PolicyCheck,
    reported: mpsc::Receiver<Reported>,
) {
    let (connection, reader) = watch::channel(None);
    let config = Arc::clone(&context.config.borrow());
    let nats = config.nats.clone().unwrap_or_default();
    let most = usize::try_from(nats.buffer).unwrap_or(usize::MAX);
    let (agent, board) = (config.agent.clone(), context.board.clone());
    let outbox = Outbox::new(agent, nats.prefix, most, board, reader);
    let outgoing = outbox.run(reported, context.shutdown.clone());
    let shutdown = context.shutdown.clone();
    let place = Place { identity: resume.identity, highest: resume.highest, anew: true };
    let me = Speaker::this(&config.agent);
    let consumer = Consumer { context: &context, check, connection, place, me };
    let consume = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = consumer.run() => {}
        }
    };
    tokio::join!(outgoing, consume);
}

/// How far events have been applied.
#[derive(Clone, Copy, Debug)]
struct Place {
    identity: u64,
    highest: u64,
    /// Whether this process has not had its consumers yet.
    anew: bool,
}

/// One session after the other.
struct Consumer<'a> {
    context: &'a Context,
    check: PolicyCheck,
    connection: watch::Sender<Option<JetStream>>,
    place: Place,
    me: Speaker,
}

impl Consumer<'_> {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut reader = self.context.config.clone();
        loop {
            let config = Arc::clone(&reader.borrow_and_update());
            let began = Instant::now();
            let Err(error) = tokio::select! {
                ended = self.session(&config, &mut backoff) => ended,
                changed = reader.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            };
            self.connection.send_replace(None);
            if matches!(error, NatsError::Gone) {
                return;
            }
            self.lost(&error);
            tokio::select! {
                () = sleep_until(backoff.reconnect(began)) => {}
                changed = reader.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One connection, until something ends it.
    async fn session(
        &mut self,
        config: &SourcesConfig,
        backoff: &mut Backoff,
    ) -> Result<Infallible, NatsError> {
        let nats = config.nats.clone().unwrap_or_default();
        let name = format!("pintle-{}", config.agent);
        let link = connect::Connection::open(&nats, &name).await?;
        let voice =
            Voice { client: link.client.clone(), config: nats.clone(), me: self.me.clone() };
        let peers = Peers::new(self.context, &link, voice.clone());
        let given =
            Given { context: self.context, config: &nats, agent: &config.agent, check: self.check };
        let place = &mut self.place;
        let events = async {
            let session = Session::open(given, &link, voice, place).await?;
            self.connection.send_replace(Some(link.js.clone()));
            backoff.reset();
            session.run().await
        };
        tokio::select! {
            ended = events => ended,
            never = peers.run() => match never {},
        }
    }

    fn lost(&self, error: &NatsError) {
        let text = show(error.to_string().as_bytes());
        let mut news = false;
        self.context.board.change(|sources| {
            let nats = &mut sources.nats;
            news = nats.connected || nats.error.as_deref() != Some(text.as_str());
            nats.connected = false;
            nats.error = Some(text.clone());
        });
        if news {
            tracing::warn!(
                error = %text,
                "NATS is away and tried again; nats.servers (--nats) names its servers"
            );
            self.context.tell(format!("NATS is away: {text}"));
        }
    }
}
