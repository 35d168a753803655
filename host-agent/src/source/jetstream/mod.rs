//! The events in JetStream: a durable pull consumer per agent, acknowledged after they are applied.
//!
//! JetStream delivers at least once, in no order worth trusting, and can lose what it confirmed; the
//! state is made for all of it (see [`pintle_state::event`]), so the loop here can be simple and
//! stubborn. What is good is applied in batches and acknowledged then. What is poison is written to
//! the dead letters first and terminated then, so that it costs one delivery. What cannot be written
//! is asked for again later with a *delayed* NAK, since a bare one comes back at once and burns its
//! deliveries within milliseconds. What ran out of deliveries is told by an advisory, which the stream
//! of dead letters keeps until its consumer's agent has made a letter of it.
//!
//! An age is a difference of two readings of the server's clock: its time at the session's start is
//! asked for by making (and deleting) a consumer, whose answer carries it; from there a monotonic
//! clock runs on.
//!
//! At the start of a process the consumer is made anew, a little before the last event that the state
//! on disk holds: at most `max_ack_pending` messages can be out of order, and what is seen twice
//! changes nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::stream::{RawMessageErrorKind as RawKind, Stream};
use async_nats::jetstream::{AckKind, Context as JetStream, Message};
use futures::{FutureExt as _, StreamExt as _};
use pintle_contract::Now;
use pintle_state::event::{self, Event, Origin};
use pintle_state::{Outcome, PolicyCheck, SavedStream, Update, show};
use tokio::sync::{mpsc, watch};
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep, sleep_until};

use self::letters::Letter;
use super::{Context, NatsConfig};
use crate::link::Reported;

mod connect;
pub(crate) mod letters;
mod outgoing;
pub(crate) mod setup;

pub use self::connect::NatsError;
pub(crate) use self::connect::{connect, failed, jetstream};

/// Events applied at once: large enough for 20,000 a second, small enough for the state's task.
const BATCH: usize = 512;
/// The server's sign of life on a pull; two missed are an error.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Errors among the messages, one after the other, until the consumer is given up.
const SILENT_MOST: u32 = 3;
/// How long a pull waits at the server.
const EXPIRES: Duration = Duration::from_secs(30);
/// How often exhausted messages are looked for beside the advisories.
const SWEEP: Duration = Duration::from_secs(30);
/// Advisories made into letters in one sweep.
const SWEEP_MOST: usize = 1000;

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
    let outgoing = outgoing::run(
        config.agent.clone(),
        nats.prefix,
        usize::try_from(nats.buffer).unwrap_or(usize::MAX),
        reported,
        reader,
        context.board.clone(),
        context.shutdown.clone(),
    );
    let shutdown = context.shutdown.clone();
    let consume = async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sessions(&context, resume, check, &connection) => {}
        }
    };
    tokio::join!(outgoing, consume);
}

async fn sessions(
    context: &Context,
    resume: SavedStream,
    check: PolicyCheck,
    connection: &watch::Sender<Option<JetStream>>,
) {
    let mut backoff = super::Backoff::default();
    let mut reader = context.config.clone();
    let mut place = Place { identity: resume.identity, highest: resume.highest, anew: true };
    loop {
        let config = Arc::clone(&reader.borrow_and_update());
        let nats = config.nats.clone().unwrap_or_default();
        let session = Session { context, config: &nats, agent: &config.agent, check, connection };
        let began = Instant::now();
        let ended = tokio::select! {
            ended = session.run(&mut place, &mut backoff) => ended,
            changed = reader.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Err(error) = ended;
        connection.send_replace(None);
        if matches!(error, NatsError::Gone) {
            return;
        }
        let text = show(error.to_string().as_bytes());
        let mut news = false;
        context.board.change(|sources| {
            let nats = &mut sources.nats;
            news = nats.connected || nats.error.as_deref() != Some(text.as_str());
            nats.connected = false;
            nats.error = Some(text.clone());
        });
        if news {
            tracing::warn!(error = %text, "nats lost");
            context.tell(format!("nats lost: {text}"));
        }
        tokio::select! {
            () = sleep_until(backoff.reconnect(began)) => {}
            changed = reader.changed() => if changed.is_err() { return },
        }
    }
}

/// How far events have been applied.
#[derive(Clone, Copy, Debug)]
struct Place {
    identity: u64,
    highest: u64,
    /// Whether this process has not had a consumer yet.
    anew: bool,
}

struct Session<'a> {
    context: &'a Context,
    config: &'a NatsConfig,
    agent: &'a str,
    check: PolicyCheck,
    connection: &'a watch::Sender<Option<JetStream>>,
}

/// The server's clock, by ours.
#[derive(Clone, Copy, Debug)]
struct ServerClock {
    nanos: i128,
    at: Instant,
}

impl ServerClock {
    /// Asks by making a consumer that is gone in a moment.
    async fn ask(stream: &Stream) -> Result<Self, NatsError> {
        let at = Instant::now();
        let probe = stream
            .create_consumer(pull::Config {
                deliver_policy: DeliverPolicy::New,
                ack_policy: AckPolicy::None,
                inactive_threshold: Duration::from_secs(5),
                memory_storage: true,
                ..pull::Config::default()
            })
            .await
            .map_err(failed("asking for the server's time"))?;
        let info = probe.cached_info();
        let clock = Self { nanos: info.created.unix_timestamp_nanos(), at: at + at.elapsed() / 2 };
        // It ends by itself if this fails.
        let _ = stream.delete_consumer(&info.name).await;
        Ok(clock)
    }

    fn age_of(&self, published: i128) -> Duration {
        let now = self
            .nanos
            .saturating_add(i128::try_from(self.at.elapsed().as_nanos()).unwrap_or(i128::MAX));
        let age = now.saturating_sub(published).max(0);
        Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX))
    }
}

impl Session<'_> {
    /// One connection, until something ends it.
    async fn run(
        &self,
        place: &mut Place,
        backoff: &mut super::Backoff,
    ) -> Result<std::convert::Infallible, NatsError> {
        let lost = connect::Lost::default();
        let name = setup::durable(self.agent);
        let client = connect(self.config, &name, Arc::clone(&lost)).await?;
        let js = jetstream(client.clone());
        let events = setup::events(&js, self.config).await?;
        let letters = setup::dead_letters(&js, self.config).await?;
        let identity = events.cached_info().created.unix_timestamp_nanos();
        let identity = u64::try_from(identity).unwrap_or(0);
        if identity != place.identity {
            *place = Place { identity, highest: 0, anew: true };
        }
        self.apply(Update::Stream { identity }).await?;
        let clock = ServerClock::ask(&events).await?;
        let overlap = u64::from(self.config.max_ack_pending);
        let start = setup::Start {
            sequence: place.highest.saturating_sub(overlap).saturating_add(1),
            anew: place.anew,
        };
        let consumer = setup::consumer(&events, self.config, self.agent, start).await?;
        place.anew = false;
        let mut exhausted = client
            .subscribe(setup::advisory(self.config, &setup::durable(self.agent)))
            .await
            .map_err(failed("listening for advisories"))?;
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(BATCH * 4)
            .heartbeat(HEARTBEAT)
            .expires(EXPIRES)
            .messages()
            .await
            .map_err(failed("pulling"))?;
        self.connection.send_replace(Some(js.clone()));
        self.connected(&client, place);
        backoff.reset();

        let mut sweep = Box::pin(sleep(Duration::ZERO));
        let mut silent = 0u32;
        loop {
            tokio::select! {
                first = messages.next() => match first {
                    None => return Err(NatsError::Lost("the messages ended".into())),
                    Some(Ok(first)) => {
                        silent = 0;
                        let mut batch = vec![first];
                        let mut broken = None;
                        while batch.len() < BATCH {
                            // Tokio's budget of 128 messages for a task would end every batch there.
                            match unconstrained(messages.next()).now_or_never() {
                                Some(Some(Ok(message))) => batch.push(message),
                                Some(Some(Err(error))) => {
                                    broken = Some(error);
                                    break;
                                }
                                _ => break,
                            }
                        }
                        self.take(&js, batch, place, clock).await?;
                        if let Some(error) = broken {
                            self.survive(&events, &error, &mut silent).await?;
                        }
                    }
                    Some(Err(error)) => self.survive(&events, &error, &mut silent).await?,
                },
                () = lost.notified() => {
                    return Err(NatsError::Lost("the connection ended".into()));
                }
                Some(_) = exhausted.next() => {
                    // The stream of dead letters gets the advisory at the same time as we do.
                    sweep.set(sleep(Duration::from_millis(200)));
                }
                () = &mut sweep => {
                    sweep.set(sleep(SWEEP));
                    if let Err(error) = self.sweep(&js, &events, &letters, place.identity).await {
                        tracing::warn!(%error, "exhausted messages could not be looked for");
                    }
                }
            }
        }
    }

    fn connected(&self, client: &async_nats::Client, place: &Place) {
        let info = client.server_info();
        let endpoint = format!("{}:{}", info.host, info.port);
        tracing::info!(%endpoint, stream = %self.config.stream, "nats connected");
        self.context.tell(format!("nats connected at {endpoint}"));
        self.context.board.change(|sources| {
            let nats = &mut sources.nats;
            nats.connected = true;
            nats.error = None;
            nats.endpoint = endpoint;
            nats.position = place.highest;
            nats.connects = nats.connects.saturating_add(1);
            nats.last_seen = Some(SystemTime::now());
        });
    }

    /// Errors among the messages: most of them end nothing, as long as the server still answers.
    async fn survive(
        &self,
        events: &Stream,
        error: &pull::MessagesError,
        silent: &mut u32,
    ) -> Result<(), NatsError> {
        tracing::debug!(%error, "among the messages");
        let lost = |how: &str| NatsError::Lost(format!("{how}: {error}"));
        if matches!(
            error.kind(),
            MessagesErrorKind::ConsumerDeleted
                | MessagesErrorKind::PushBasedConsumer
                | MessagesErrorKind::RequestLimitExceeded
        ) {
            return Err(lost("the consumer cannot be used"));
        }
        *silent = silent.saturating_add(1);
        if *silent >= SILENT_MOST {
            return Err(lost("the consumer gives no sign of life"));
        }
        match tokio::time::timeout(HEARTBEAT, events.get_info()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(lost("no sign of life")),
        }
    }

    async fn apply(&self, update: Update) -> Result<pintle_state::Changes, NatsError> {
        let applied = self.context.updates.apply(update).await;
        applied.map_err(|_| NatsError::Gone)
    }

    /// Applies what is good, then acknowledges it; buries what is not.
    async fn take(
        &self,
        js: &JetStream,
        batch: Vec<Message>,
        place: &mut Place,
        clock: ServerClock,
    ) -> Result<(), NatsError> {
        let mut good: Vec<Event> = Vec::with_capacity(batch.len());
        let mut read: Vec<Message> = Vec::with_capacity(batch.len());
        let mut poison: Vec<(Message, Letter)> = Vec::new();
        for message in batch {
            let Ok(info) = message.info() else { continue };
            let (sequence, deliveries) = (info.stream_sequence, info.delivered);
            let published = info.published.unix_timestamp_nanos();
            let origin = Origin {
                stream: place.identity,
                sequence,
                age: clock.age_of(published),
                published: Now(u64::try_from(published).unwrap_or(0)),
            };
            let subject = message.subject.as_str();
            let payload = &message.payload;
            match event::parse(&self.config.prefix, subject, payload, origin, self.check) {
                Ok(event) => {
                    good.push(event);
                    read.push(message);
                }
                Err(reject) => {
                    let letter = Letter {
                        reason: reject.reason(),
                        detail: reject.to_string(),
                        subject: subject.to_owned(),
                        origin: (place.identity, sequence),
                        deliveries,
                        payload: payload.clone(),
                    };
                    poison.push((message, letter));
                }
            }
        }
        let highest = good.iter().map(|event| event.origin.sequence).max();
        if !good.is_empty() {
            let changes = self.apply(Update::Events(good)).await?;
            place.highest = place.highest.max(highest.unwrap_or(0));
            let (mut applied, mut duplicate) = (0u64, 0u64);
            for (message, outcome) in read.iter().zip(&changes.outcomes) {
                match outcome {
                    Outcome::Full => {
                        // There may be room when some have ended.
                        let later = self.later(message);
                        ack(message, AckKind::Nak(Some(later))).await;
                        continue;
                    }
                    Outcome::Duplicate => duplicate = duplicate.saturating_add(1),
                    _ => applied = applied.saturating_add(1),
                }
                ack(message, AckKind::Ack).await;
            }
            self.context.board.change(|sources| {
                sources.events_applied = sources.events_applied.saturating_add(applied);
                sources.events_duplicate = sources.events_duplicate.saturating_add(duplicate);
                sources.nats.position = place.highest;
                sources.nats.last_seen = Some(SystemTime::now());
                sources.nats.connected = true;
                sources.nats.error = None;
            });
        }
        if !poison.is_empty() {
            self.bury(js, poison).await?;
        }
        Ok(())
    }

    /// Writes letters beside the loop, so that good messages do not wait for them.
    async fn bury(&self, js: &JetStream, poison: Vec<(Message, Letter)>) -> Result<(), NatsError> {
        for (_, letter) in &poison {
            let update = Update::Refused {
                source: "event",
                key: letter.subject.clone(),
                reason: letter.reason,
                detail: letter.detail.clone(),
            };
            self.context.updates.send(update).await.map_err(|_| NatsError::Gone)?;
        }
        let (js, config, agent) = (js.clone(), self.config.clone(), self.agent.to_owned());
        let board = self.context.board.clone();
        let laters: Vec<_> = poison.iter().map(|(message, _)| self.later(message)).collect();
        // Bounded by max_ack_pending: what is not terminated is pending.
        tokio::spawn(async move {
            for ((message, letter), later) in poison.into_iter().zip(laters) {
                match letters::write(&js, &config, &agent, &letter).await {
                    Ok(stored) => {
                        ack(&message, AckKind::Term).await;
                        board.change(|sources| {
                            let count = &mut sources.events_dead_lettered;
                            *count = count.saturating_add(stored.into());
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a dead letter could not be written yet");
                        ack(&message, AckKind::Nak(Some(later))).await;
                    }
                }
            }
        });
        Ok(())
    }

    /// When a message that failed should come again.
    fn later(&self, message: &Message) -> Duration {
        let delivered = message.info().map_or(1, |info| info.delivered);
        let at = usize::try_from(delivered.saturating_sub(1)).unwrap_or(0);
        let backoff = &self.config.backoff;
        let later = backoff.get(at).or_else(|| backoff.last());
        later.copied().unwrap_or(HEARTBEAT)
    }

    /// Makes letters of the messages that ran out of deliveries.
    async fn sweep(
        &self,
        js: &JetStream,
        events: &Stream,
        letters: &Stream,
        identity: u64,
    ) -> Result<(), NatsError> {
        let subject = setup::advisory(self.config, &setup::durable(self.agent));
        for _ in 0..SWEEP_MOST {
            let told = match letters.get_next_raw_message_by_subject(&subject).await {
                Ok(told) => told,
                Err(error) if error.kind() == RawKind::NoMessageFound => return Ok(()),
                Err(error) => return Err(failed("looking for advisories")(error)),
            };
            let advisory: serde_json::Value =
                serde_json::from_slice(&told.payload).unwrap_or_default();
            let number = |field: &str| advisory.get(field).and_then(serde_json::Value::as_u64);
            if let Some(sequence) = number("stream_seq") {
                let deliveries = number("deliveries").unwrap_or(0);
                // Aged out of the stream, there is nothing left to keep but the fact.
                let (of, payload) = match events.get_raw_message(sequence).await {
                    Ok(message) => (message.subject.to_string(), message.payload),
                    Err(_) => (String::from("-"), bytes::Bytes::new()),
                };
                let letter = Letter {
                    reason: "max_deliveries",
                    detail: format!("not acknowledged after {deliveries} deliveries"),
                    subject: of,
                    origin: (identity, sequence),
                    deliveries: i64::try_from(deliveries).unwrap_or(i64::MAX),
                    payload,
                };
                let stored = letters::write(js, self.config, self.agent, &letter).await?;
                self.context.board.change(|sources| {
                    let count = &mut sources.events_dead_lettered;
                    *count = count.saturating_add(stored.into());
                });
            }
            letters.delete_message(told.sequence).await.map_err(failed("ending an advisory"))?;
        }
        Ok(())
    }
}

/// A failure here means a redelivery, which changes nothing.
async fn ack(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(%error, "an acknowledgement was not sent");
    }
}
