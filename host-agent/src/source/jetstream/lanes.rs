//! The messages of this agent's consumers: orders first, breakers' transitions when there are none.

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::{MessagesError, MessagesErrorKind};
use futures::StreamExt as _;
use futures::stream::{BoxStream, SelectAll, once};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::connect::{Connection, NatsError};
use super::setup::BREAKER;

/// Messages asked for at once.
const PULLED: usize = 2048;
/// The server's sign of life on a pull; two missed are an error.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
/// Errors among the messages, one after the other, until the consumer is given up.
const SILENT_MOST: u32 = 3;
/// How long a pull waits at the server.
const EXPIRES: Duration = Duration::from_secs(30);

/// What comes next.
pub(super) type Next = Result<Message, Failure>;
/// One consumer's messages.
pub(super) type Messages = BoxStream<'static, (&'static str, Next)>;

/// An error among the messages of one kind.
#[derive(Debug)]
pub(super) struct Failure {
    kind: &'static str,
    /// None: the messages ended.
    error: Option<MessagesError>,
}

/// All consumers' messages.
pub(super) struct Lanes {
    orders: SelectAll<Messages>,
    breakers: SelectAll<Messages>,
    /// Errors in a row, by kind.
    silent: BTreeMap<&'static str, u32>,
}

impl Lanes {
    pub(super) fn new() -> Self {
        let (orders, breakers) = (SelectAll::new(), SelectAll::new());
        Self { orders, breakers, silent: BTreeMap::new() }
    }

    /// Begins to pull.
    pub(super) async fn pull(
        link: &Connection,
        consumer: PullConsumer,
        kind: &'static str,
    ) -> Result<Messages, NatsError> {
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULLED)
            .heartbeat(HEARTBEAT)
            .expires(EXPIRES)
            .messages();
        let messages = link.ask("pulling", messages).await?;
        let messages =
            messages.map(move |next| next.map_err(|error| Failure { kind, error: Some(error) }));
        let ended = once(std::future::ready(Err(Failure { kind, error: None })));
        Ok(messages.chain(ended).map(move |next| (kind, next)).boxed())
    }

    pub(super) fn add(&mut self, kind: &'static str, messages: Messages) {
        self.silent.insert(kind, 0);
        if kind == BREAKER { self.breakers.push(messages) } else { self.orders.push(messages) }
    }

    pub(super) fn has(&self, kind: &str) -> bool {
        self.silent.contains_key(kind)
    }

    pub(super) fn len(&self) -> usize {
        self.silent.len()
    }

    /// The next message: an order, where one is there.
    pub(super) async fn next(&mut self) -> Next {
        let (kind, next) = tokio::select! {
            biased;
            Some(next) = self.orders.next() => next,
            Some(next) = self.breakers.next() => next,
            else => std::future::pending().await,
        };
        if next.is_ok() {
            self.silent.insert(kind, 0);
        }
        next
    }

    /// Whether this was one error too many in a row.
    pub(super) fn is_silent(&mut self, failure: &Failure) -> bool {
        let silent = self.silent.entry(failure.kind).or_default();
        *silent = silent.saturating_add(1);
        *silent >= SILENT_MOST
    }
}

impl Failure {
    /// Whether the consumer can't be used any more.
    pub(super) fn is_final(&self) -> bool {
        self.error.as_ref().is_none_or(|error| {
            matches!(
                error.kind(),
                MessagesErrorKind::ConsumerDeleted
                    | MessagesErrorKind::PushBasedConsumer
                    | MessagesErrorKind::RequestLimitExceeded
            )
        })
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => write!(f, "{} events: {error}", self.kind),
            None => write!(f, "{} events: the messages ended", self.kind),
        }
    }
}
