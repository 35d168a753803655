//! One connection's life: streams and consumers found, events applied and acknowledged, what is
//! broken kept as dead letters.
//!
//! What is good is applied in batches and acknowledged then. What is poison is written to the dead
//! letters first and terminated then, so that it costs one delivery. What cannot be written is
//! asked for again later with a *delayed* NAK, since a bare one comes back at once and burns its
//! deliveries within milliseconds. What ran out of deliveries is told by an advisory, which the
//! stream of dead letters keeps until its consumer's agent has made a letter of it.
//!
//! What is missing is said and done without ([`Context::warn`]): without dead letters poison is
//! terminated and only logged, and a kind of events whose consumer can't be made is looked for
//! again.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::{RawMessageErrorKind as RawKind, Stream};
use async_nats::jetstream::{AckKind, Message};
use futures::{FutureExt as _, StreamExt as _};
use pintle_contract::Now;
use pintle_state::event::{self, Event, Origin};
use pintle_state::{Changes, GAVE_WAY, MAX_OPINIONS, Outcome, PolicyCheck, Update};
use tokio::task::unconstrained;
use tokio::time::sleep;

use super::Place;
use super::clock::ServerClock;
use super::connect::{Connection, NatsError};
use super::lanes::{Failure, Lanes, Next};
use super::letters::{self, Letter};
use super::setup::{self, KINDS, Start};
use super::words::{ANSWER, Said, Voice, WAITED_FOR};
use crate::source::{Context, NatsConfig};

/// Events applied at once: large enough for 20,000 a second, small enough for the state's task.
const BATCH: usize = 512;
/// How often exhausted messages, and what is missing, are looked for beside the advisories.
const SWEEP: Duration = Duration::from_secs(30);
/// Advisories made into letters in one sweep.
const SWEEP_MOST: usize = 1000;
/// An opinion with more messages behind it than there may be opinions gives way unread, so that
/// orders to breakers do not wait behind a flood.
const OPINIONS: u64 = MAX_OPINIONS as u64;
/// What our agents' transitions have in them; nobody else's order has, unless it is written so.
const TRANSITION: &[u8] = br#""action":"transition""#;
/// A wait before a message comes again, where the configuration has none.
const LATER: Duration = Duration::from_secs(2);

/// What a session is given.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) context: &'a Context,
    pub(super) config: &'a NatsConfig,
    pub(super) agent: &'a str,
    pub(super) check: PolicyCheck,
}

/// One connection with everything that was found on it.
pub(super) struct Session<'a> {
    given: Given<'a>,
    link: &'a Connection,
    voice: Voice,
    place: &'a mut Place,
    clock: ServerClock,
    events: Stream,
    letters: Option<Stream>,
    lanes: Lanes,
}

/// A message that will never be applied, and when to try its letter again.
struct Poison {
    message: Message,
    letter: Letter,
    later: Duration,
}

/// Who waits for the word on an event.
struct Waiting {
    token: String,
    sequence: u64,
    /// How long the event is in force; none when it ends something.
    left: Option<Duration>,
}

impl<'a> Session<'a> {
    /// Finds streams and consumers, or makes them.
    pub(super) async fn open(
        given: Given<'a>,
        link: &'a Connection,
        voice: Voice,
        place: &'a mut Place,
    ) -> Result<Self, NatsError> {
        let found = setup::events(link, given.config).await?;
        given.context.warn("events", found.note);
        let events = found.stream;
        let identity = events.cached_info().created.unix_timestamp_nanos();
        let identity = u64::try_from(identity).unwrap_or(0);
        if identity != place.identity {
            *place = Place { identity, highest: 0, anew: true };
        }
        let applied = given.context.updates.apply(Update::Stream { identity }).await;
        applied.map_err(|_| NatsError::Gone)?;
        let clock = match ServerClock::ask(link, &events).await {
            Ok(clock) => clock,
            Err(error) => {
                tracing::warn!(%error, "NATS does not say its time; ages of events are told by this machine's clock");
                ServerClock::local()
            }
        };
        let mut session =
            Self { given, link, voice, place, clock, events, letters: None, lanes: Lanes::new() };
        session.find_letters().await;
        session.find_lanes().await?;
        if std::mem::take(&mut session.place.anew) {
            setup::forget_earlier(&session.events, given.agent).await;
        }
        Ok(session)
    }

    /// Looks for the stream of dead letters; without it poison is only logged.
    async fn find_letters(&mut self) {
        if self.letters.is_some() {
            return;
        }
        let warning = match setup::dead_letters(self.link, self.given.config).await {
            Ok(found) => {
                self.letters = Some(found.stream);
                found.note
            }
            Err(error) => Some(format!("broken events are not kept: {error}")),
        };
        self.given.context.warn("dead_letters", warning);
    }

    /// Looks for the consumers that are not there yet; one suffices to go on.
    async fn find_lanes(&mut self) -> Result<(), NatsError> {
        let overlap = u64::from(self.given.config.max_ack_pending);
        let start = Start {
            sequence: self.place.highest.saturating_sub(overlap).saturating_add(1),
            anew: self.place.anew,
        };
        let Given { config, agent, context, .. } = self.given;
        let (link, events) = (self.link, &self.events);
        let missing: Vec<_> = KINDS.into_iter().filter(|kind| !self.lanes.has(kind)).collect();
        let found = missing.into_iter().map(async |kind| {
            let consumer = setup::consumer(link, events, config, agent, kind, start).await?;
            Ok((kind, Lanes::pull(link, consumer, kind).await?))
        });
        let mut refused = Vec::new();
        for found in futures::future::join_all(found).await {
            match found {
                Ok((kind, messages)) => self.lanes.add(kind, messages),
                Err(error) => refused.push(error),
            }
        }
        let missing: Vec<_> = KINDS.into_iter().filter(|kind| !self.lanes.has(kind)).collect();
        match refused.into_iter().next() {
            None => context.warn("consumer", None),
            Some(error) if missing.len() == KINDS.len() => return Err(error),
            Some(error) => {
                let missing = missing.join(", ");
                context.warn("consumer", Some(format!("no events of kind {missing}: {error}")));
            }
        }
        Ok(())
    }

    /// Applies events until something ends the connection.
    pub(super) async fn run(mut self) -> Result<Infallible, NatsError> {
        let exhausted = setup::advisory(self.given.config, "*");
        let listening = self.link.client.subscribe(exhausted);
        let mut exhausted = self.link.ask("listening for advisories", listening).await?;
        self.connected();
        let mut sweep = Box::pin(sleep(Duration::ZERO));
        loop {
            tokio::select! {
                next = self.lanes.next() => self.came(next).await?,
                () = self.link.lost() => {
                    return Err(NatsError::Lost("the connection ended".into()));
                }
                Some(_) = exhausted.next() => {
                    // The stream of dead letters gets the advisory at the same time as we do.
                    sweep.set(sleep(Duration::from_millis(200)));
                }
                () = &mut sweep => {
                    sweep.set(sleep(SWEEP));
                    self.look_around().await?;
                }
            }
        }
    }

    fn connected(&self) {
        let (context, endpoint) = (self.given.context, self.link.server.clone());
        tracing::info!(%endpoint, stream = %self.given.config.stream, "nats connected");
        context.tell(format!("nats connected at {endpoint}"));
        context.board.change(|sources| {
            let nats = &mut sources.nats;
            nats.connected = true;
            nats.error = None;
            nats.endpoint = endpoint;
            nats.position = self.place.highest;
            nats.connects = nats.connects.saturating_add(1);
            nats.hear();
        });
    }

    /// A message, with those that are there behind it, or an error among them.
    async fn came(&mut self, next: Next) -> Result<(), NatsError> {
        let first = match next {
            Ok(first) => first,
            Err(failure) => return self.survive(&failure).await,
        };
        let mut batch = vec![first];
        let mut broken = None;
        while batch.len() < BATCH {
            // Tokio's budget of 128 messages for a task would end every batch there.
            match unconstrained(self.lanes.next()).now_or_never() {
                Some(Ok(message)) => batch.push(message),
                Some(Err(failure)) => {
                    broken = Some(failure);
                    break;
                }
                None => break,
            }
        }
        self.take(batch).await?;
        match broken {
            Some(failure) => self.survive(&failure).await,
            None => Ok(()),
        }
    }

    /// Errors among the messages: most of them end nothing, as long as the server still answers.
    async fn survive(&mut self, failure: &Failure) -> Result<(), NatsError> {
        tracing::debug!(%failure, "among the messages");
        let lost = |how: &str| NatsError::Lost(format!("{how}: {failure}"));
        if failure.is_final() {
            return Err(lost("the consumer cannot be used"));
        }
        if self.lanes.is_silent(failure) {
            return Err(lost("the consumer gives no sign of life"));
        }
        match tokio::time::timeout(super::lanes::HEARTBEAT, self.events.get_info()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(lost("no sign of life")),
        }
    }

    async fn apply(&mut self, update: Update) -> Result<Changes, NatsError> {
        let applied = self.given.context.updates.apply(update).await;
        applied.map_err(|_| NatsError::Gone)
    }

    /// Applies what is good, then acknowledges it; buries what is not.
    async fn take(&mut self, batch: Vec<Message>) -> Result<(), NatsError> {
        let mut good: Vec<Event> = Vec::with_capacity(batch.len());
        let mut read: Vec<(Message, Option<Waiting>)> = Vec::with_capacity(batch.len());
        let mut poison: Vec<Poison> = Vec::new();
        let mut gave_way = 0u64;
        for message in batch {
            let Ok(info) = message.info() else { continue };
            if info.pending > OPINIONS && is_opinion(&message.payload) {
                gave_way = gave_way.saturating_add(1);
                ack(&message, AckKind::Ack).await;
                continue;
            }
            let (sequence, deliveries) = (info.stream_sequence, info.delivered);
            let published = info.published.unix_timestamp_nanos();
            let origin = Origin {
                stream: self.place.identity,
                sequence,
                age: self.clock.age_of(published),
                published: Now(u64::try_from(published).unwrap_or(0)),
            };
            let (subject, payload) = (message.subject.as_str(), &message.payload);
            let prefix = &self.given.config.prefix;
            match event::parse(prefix, subject, payload, origin, self.given.check) {
                Ok(event) => {
                    let waiting = waiting(&message, &event);
                    good.push(event);
                    read.push((message, waiting));
                }
                Err(reject) => {
                    if let Some(token) = token(&message, origin.age) {
                        let why = reject.to_string();
                        self.voice.say(&token, Said::Refused { sequence, why }).await;
                    }
                    let letter = Letter {
                        reason: reject.reason(),
                        detail: reject.to_string(),
                        subject: subject.to_owned(),
                        origin: (self.place.identity, sequence),
                        deliveries,
                        payload: payload.clone(),
                    };
                    let later = self.later(&message);
                    poison.push(Poison { message, letter, later });
                }
            }
        }
        if gave_way > 0 {
            self.given.context.board.change(|sources| {
                let count = sources.refused.entry(GAVE_WAY).or_default();
                *count = count.saturating_add(gave_way);
            });
        }
        if !good.is_empty() {
            let highest = good.iter().map(|event| event.origin.sequence).max();
            let changes = self.apply(Update::Events(good)).await?;
            self.place.highest = self.place.highest.max(highest.unwrap_or(0));
            self.acknowledge(&read, &changes.outcomes).await;
        }
        if !poison.is_empty() {
            self.bury(poison).await?;
        }
        Ok(())
    }

    async fn acknowledge(&mut self, read: &[(Message, Option<Waiting>)], outcomes: &[Outcome]) {
        let (mut applied, mut duplicate) = (0u64, 0u64);
        for ((message, waiting), outcome) in read.iter().zip(outcomes) {
            if let Some(waiting) = waiting {
                self.voice.say(&waiting.token, waiting.said(*outcome)).await;
            }
            match outcome {
                Outcome::Full => {
                    // There may be room when some have ended.
                    ack(message, AckKind::Nak(Some(self.later(message)))).await;
                    continue;
                }
                Outcome::Duplicate => duplicate = duplicate.saturating_add(1),
                _ => applied = applied.saturating_add(1),
            }
            ack(message, AckKind::Ack).await;
        }
        self.given.context.board.change(|sources| {
            sources.events_applied = sources.events_applied.saturating_add(applied);
            sources.events_duplicate = sources.events_duplicate.saturating_add(duplicate);
            sources.nats.position = self.place.highest;
            sources.nats.hear();
            sources.nats.connected = true;
            sources.nats.error = None;
        });
    }

    /// Writes letters beside the loop, so that good messages do not wait for them.
    async fn bury(&mut self, poison: Vec<Poison>) -> Result<(), NatsError> {
        for Poison { letter, .. } in &poison {
            let update = Update::Refused {
                source: "event",
                key: letter.subject.clone(),
                reason: letter.reason,
                detail: letter.detail.clone(),
            };
            self.given.context.updates.send(update).await.map_err(|_| NatsError::Gone)?;
        }
        let writer = Undertaker {
            link: self.link.clone(),
            config: self.given.config.clone(),
            agent: self.given.agent.to_owned(),
            board: self.given.context.board.clone(),
            has_letters: self.letters.is_some(),
        };
        // Bounded by max_ack_pending: what is not terminated is pending.
        tokio::spawn(async move {
            for poison in poison {
                writer.bury(poison).await;
            }
        });
        Ok(())
    }

    /// When a message that failed should come again.
    fn later(&self, message: &Message) -> Duration {
        let delivered = message.info().map_or(1, |info| info.delivered);
        let at = usize::try_from(delivered.saturating_sub(1)).unwrap_or(0);
        let backoff = &self.given.config.backoff;
        let later = backoff.get(at).or_else(|| backoff.last());
        later.copied().unwrap_or(LATER)
    }

    /// Looks for what is missing, and makes letters of what ran out of deliveries.
    async fn look_around(&mut self) -> Result<(), NatsError> {
        if self.lanes.len() < KINDS.len() {
            self.find_lanes().await?;
        }
        self.find_letters().await;
        for kind in KINDS {
            if let Err(error) = self.sweep(kind).await {
                tracing::warn!(%error, "events that ran out of deliveries could not be looked for; done again in 30 s");
            }
        }
        Ok(())
    }

    /// Makes letters of one consumer's messages that ran out of deliveries.
    async fn sweep(&mut self, kind: &str) -> Result<(), NatsError> {
        let Some(letters) = &self.letters else { return Ok(()) };
        let Given { config, agent, .. } = self.given;
        let subject = setup::advisory(config, &setup::durable(agent, kind));
        for _ in 0..SWEEP_MOST {
            let told = match letters.get_next_raw_message_by_subject(&subject).await {
                Ok(told) => told,
                Err(error) if error.kind() == RawKind::NoMessageFound => return Ok(()),
                Err(error) => return Err(self.link.failed("looking for advisories", error)),
            };
            let advisory: serde_json::Value =
                serde_json::from_slice(&told.payload).unwrap_or_default();
            let number = |field: &str| advisory.get(field).and_then(serde_json::Value::as_u64);
            if let Some(sequence) = number("stream_seq") {
                let deliveries = number("deliveries").unwrap_or(0);
                // Aged out of the stream, there is nothing left to keep but the fact.
                let (of, payload) = match self.events.get_raw_message(sequence).await {
                    Ok(message) => (message.subject.to_string(), message.payload),
                    Err(_) => (String::from("-"), bytes::Bytes::new()),
                };
                let letter = Letter {
                    reason: "max_deliveries",
                    detail: format!("not acknowledged after {deliveries} deliveries"),
                    subject: of,
                    origin: (self.place.identity, sequence),
                    deliveries: i64::try_from(deliveries).unwrap_or(i64::MAX),
                    payload,
                };
                let stored = letters::write(self.link, config, agent, &letter).await?;
                self.given.context.board.change(|sources| {
                    let count = &mut sources.events_dead_lettered;
                    *count = count.saturating_add(stored.into());
                });
            }
            let ended = letters.delete_message(told.sequence).await;
            ended.map_err(|error| self.link.failed("ending an advisory", error))?;
        }
        Ok(())
    }
}

/// Writes dead letters beside the session.
struct Undertaker {
    link: Connection,
    config: NatsConfig,
    agent: String,
    board: crate::publish::Board,
    has_letters: bool,
}

impl Undertaker {
    async fn bury(&self, poison: Poison) {
        let Poison { message, letter, later } = poison;
        if !self.has_letters {
            let Letter { reason, detail, subject, origin, .. } = &letter;
            let (sequence, subject) = (origin.1, pintle_state::show(subject.as_bytes()));
            tracing::warn!(reason, detail, sequence, subject, "a broken event is not kept");
            ack(&message, AckKind::Term).await;
            return;
        }
        match letters::write(&self.link, &self.config, &self.agent, &letter).await {
            Ok(stored) => {
                ack(&message, AckKind::Term).await;
                self.board.change(|sources| {
                    let count = &mut sources.events_dead_lettered;
                    *count = count.saturating_add(stored.into());
                });
            }
            Err(error) => {
                let subject = pintle_state::show(letter.subject.as_bytes());
                tracing::warn!(%error, subject, "a dead letter could not be written, tried again");
                ack(&message, AckKind::Nak(Some(later))).await;
            }
        }
    }
}

impl Waiting {
    fn said(&self, outcome: Outcome) -> Said {
        let sequence = self.sequence;
        let refused = |why: &str| Said::Refused { sequence, why: why.to_owned() };
        match outcome {
            Outcome::Applied | Outcome::Own => {
                let until = self.left.and_then(|left| SystemTime::now().checked_add(left));
                Said::Applied { sequence, until: until.map(show_time) }
            }
            Outcome::Duplicate => refused("a later order of this kind is in force"),
            Outcome::Expired => refused("its ttl is over"),
            Outcome::Stale => refused("the stream was made anew meanwhile"),
            Outcome::Full => refused("there are too many orders in force already"),
        }
    }
}

fn show_time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| format!("{at:.0}")).unwrap_or_default()
}

/// The token of whoever waits for the word on a message, while somebody may.
fn token(message: &Message, age: Duration) -> Option<String> {
    let token = message.headers.as_ref()?.get(ANSWER)?.as_str();
    (age <= WAITED_FOR).then(|| token.to_owned())
}

fn waiting(message: &Message, event: &Event) -> Option<Waiting> {
    let left = event.ttl.saturating_sub(event.origin.age);
    Some(Waiting {
        token: token(message, event.origin.age)?,
        sequence: event.origin.sequence,
        left: (!event.action.ends()).then_some(left),
    })
}

fn is_opinion(payload: &[u8]) -> bool {
    payload.windows(TRANSITION.len()).any(|window| window == TRANSITION)
}

/// A failure here means a redelivery, which changes nothing.
async fn ack(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        tracing::debug!(%error, "an acknowledgement was not sent");
    }
}
