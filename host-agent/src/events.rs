//! Events and dead letters, for people: what `pintle publish`, `drain`, `events` and `dlq` do.
//!
//! The format is [`pintle_state::event`]. A publication is confirmed by the stream and carries a
//! message id, so that the same draft sent twice within two minutes is one event. Dead letters are
//! found by their place in the stream of dead letters; replaying one publishes the original bytes
//! on the original subject again, under a new sequence, and then takes the letter away.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageErrorKind, Stream};
use pintle_state::{now_of, show};
use rand::RngExt as _;

pub use pintle_state::event::{Action, Draft, Event, MAX_TTL, MIN_TTL, Origin, Target, parse};

use crate::source::NatsConfig;
pub use crate::source::jetstream::NatsError;
use crate::source::jetstream::connect::Connection;
use crate::source::jetstream::{letters, setup};

mod fleet;
mod order;

pub use crate::source::jetstream::words::{Digest, Report};
pub use fleet::{Answers, Released};
pub use order::{Applied, Done, How, OrderError};

/// A connection for commands.
#[derive(Clone, Debug)]
pub struct Events {
    link: Connection,
    config: NatsConfig,
}

/// What the stream said to a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Its sequence.
    pub sequence: u64,
    /// Whether the stream had it already.
    pub duplicate: bool,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sequence in the stream of dead letters: its number.
    pub number: u64,
    /// When it was written.
    pub at: SystemTime,
    /// A stable word.
    pub reason: String,
    /// In words.
    pub detail: String,
    /// The stream that the message came from.
    pub stream: String,
    /// Its sequence there.
    pub sequence: u64,
    /// Its subject there.
    pub subject: String,
    /// How often it had been delivered.
    pub deliveries: u64,
    /// The agent that wrote the letter.
    pub agent: String,
    /// How long the original was, where it did not fit; such a letter cannot be replayed.
    pub cut: Option<u64>,
    /// The original bytes.
    pub payload: Vec<u8>,
}

/// An id for a draft that a person makes.
#[must_use]
pub fn new_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

impl Events {
    /// Connects.
    ///
    /// # Errors
    /// What stands in the way.
    pub async fn connect(config: &NatsConfig) -> Result<Self, NatsError> {
        let link = Connection::open(config, "pintle").await?;
        Ok(Self { link, config: config.clone() })
    }

    /// Publishes a draft, and waits until the stream has confirmed it. Check it first
    /// ([`Draft::check`]); what is wrong with it would only be found by every agent.
    ///
    /// # Errors
    /// The stream is not there and may not be created, or did not confirm.
    pub async fn publish(&self, draft: &Draft) -> Result<Published, NatsError> {
        self.publish_with(draft, HeaderMap::new()).await
    }

    async fn publish_with(
        &self,
        draft: &Draft,
        mut headers: HeaderMap,
    ) -> Result<Published, NatsError> {
        setup::events(&self.link, &self.config).await?;
        headers.insert(NATS_MESSAGE_ID, draft.id.as_str());
        let payload = draft.encode(now_of(SystemTime::now()));
        let subject = draft.subject(&self.config.prefix);
        self.send(subject, headers, payload).await
    }

    async fn send(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Vec<u8>,
    ) -> Result<Published, NatsError> {
        let what = &format!("publishing to {subject}");
        let sent = self.link.js.publish_with_headers(subject, headers, payload.into()).await;
        let sent = sent.map_err(|error| self.link.failed(what, error))?;
        let ack = self.link.ask(what, sent.into_future()).await?;
        Ok(Published { sequence: ack.sequence, duplicate: ack.duplicate })
    }

    /// The sequence of the newest event; 0 when there is none.
    ///
    /// # Errors
    /// The stream is not there or did not answer.
    pub async fn newest(&self) -> Result<u64, NatsError> {
        let stream = setup::events(&self.link, &self.config).await?.stream;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// The dead letters from number `from` on, at most `limit`, oldest first.
    ///
    /// # Errors
    /// The stream is not there or did not answer.
    pub async fn dead_letters(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, NatsError> {
        let stream = setup::dead_letters(&self.link, &self.config).await?.stream;
        let subject = format!("{}.>", self.config.dlq_prefix);
        let mut list = Vec::new();
        let mut next = from;
        while list.len() < limit {
            let Some(found) = self.next_message(&stream, next, &subject).await? else {
                break;
            };
            next = found.sequence.saturating_add(1);
            list.push(letter(found));
        }
        Ok(list)
    }

    /// One dead letter; `None` when there is none of this number.
    ///
    /// # Errors
    /// The stream is not there or did not answer.
    pub async fn dead_letter(&self, number: u64) -> Result<Option<DeadLetter>, NatsError> {
        let found = self.dead_letters(number, 1).await?;
        Ok(found.into_iter().find(|letter| letter.number == number))
    }

    /// Publishes the original of a dead letter again, and takes the letter away.
    ///
    /// # Errors
    /// There is none of this number, it was cut, or the stream did not confirm.
    pub async fn replay(&self, number: u64) -> Result<Published, NatsError> {
        let letter = self.dead_letter(number).await?;
        let refused = |why| NatsError::Replay(number, why);
        let letter = letter.ok_or(refused("is not there; pintle dlq list shows all"))?;
        if letter.cut.is_some() {
            return Err(refused("holds only the beginning of its message, which was too long"));
        }
        if !letter.subject.starts_with(&format!("{}.", self.config.prefix)) {
            return Err(refused("has no original: it had left the stream before it was kept"));
        }
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, format!("replay-{}-{number}", letter.sequence));
        let published = self.send(letter.subject.clone(), headers, letter.payload).await?;
        self.purge(Some(number)).await?;
        Ok(published)
    }

    /// Takes one dead letter away, or all of them; how many went.
    ///
    /// # Errors
    /// The stream is not there or did not answer.
    pub async fn purge(&self, number: Option<u64>) -> Result<u64, NatsError> {
        let stream = setup::dead_letters(&self.link, &self.config).await?.stream;
        match number {
            // The server says of an absent one what it says of its own trouble.
            Some(number) if self.dead_letter(number).await?.is_none() => Ok(0),
            Some(number) => {
                let deleted = stream.delete_message(number).await;
                deleted.map(u64::from).map_err(|error| self.link.failed("purging", error))
            }
            None => {
                let purge = stream.purge().filter(format!("{}.>", self.config.dlq_prefix));
                Ok(self.link.ask("purging", purge.into_future()).await?.purged)
            }
        }
    }

    async fn next_message(
        &self,
        stream: &Stream,
        from: u64,
        subject: &str,
    ) -> Result<Option<StreamMessage>, NatsError> {
        let request = stream.raw_message_builder().sequence(from.max(1)).next_by_subject(subject);
        match request.send().await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.link.failed("reading", error)),
        }
    }
}

fn letter(found: StreamMessage) -> DeadLetter {
    let text = |name: &str| {
        let value = found.headers.get(name).map(|value| value.as_str());
        show(value.unwrap_or("").as_bytes())
    };
    let number = |name: &str| text(name).parse::<u64>().ok();
    DeadLetter {
        number: found.sequence,
        at: wall(found.time.unix_timestamp_nanos()),
        reason: text(letters::REASON),
        detail: text(letters::DETAIL),
        stream: text(letters::STREAM),
        sequence: number(letters::SEQUENCE).unwrap_or(0),
        subject: found
            .headers
            .get(letters::SUBJECT)
            .map(|value| value.as_str().to_owned())
            .unwrap_or_default(),
        deliveries: number(letters::DELIVERIES).unwrap_or(0),
        agent: text(letters::AGENT),
        cut: number(letters::CUT),
        payload: found.payload.to_vec(),
    }
}

fn wall(nanos: i128) -> SystemTime {
    let since = Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX));
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}
