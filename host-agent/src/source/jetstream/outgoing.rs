//! Reported transitions on their way to the fleet.
//!
//! They are published one after the other, each with an id made of what it says, so that one that
//! is sent again after a lost confirmation is stored once. While NATS is away a bounded number
//! waits; beyond it the oldest go, because the newest state of a breaker is the one worth knowing.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::context::PublishError;
use pintle_contract::{BreakerState, Now};
use pintle_state::event::{Action, Draft, Target};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh64::xxh64;

use crate::link::Reported;
use crate::publish::Board;
use crate::source::Backoff;

/// What waits at shutdown has this long to go.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A transition says nothing after this long; see the overlay's bound.
const LONGEST: Duration = Duration::from_secs(600);

/// The event for a transition.
pub(crate) fn draft(agent: &str, reported: &Reported) -> Draft {
    let it = &reported.transition;
    let proxy = if reported.proxy.is_empty() { "-" } else { &reported.proxy };
    let proxy: String = proxy.chars().take(128).collect();
    let said = format!(
        "{agent}\n{proxy}\n{}\n{}\n{}\n{}",
        it.service,
        it.endpoint,
        it.to.as_str(),
        it.at.0
    );
    let id =
        format!("breaker-{:016x}{:016x}", xxh64(said.as_bytes(), 0), xxh64(said.as_bytes(), 1));
    let open = it.until.since(it.at).clamp(Duration::from_secs(1), LONGEST);
    Draft {
        id,
        source: agent.to_owned(),
        target: Target { service: it.service.clone(), endpoint: Some(it.endpoint.clone()) },
        action: Action::Transition {
            proxy,
            from: it.from,
            to: it.to,
            reason: it.reason.chars().take(128).collect(),
            trips: it.trips,
        },
        ttl: (it.to == BreakerState::Open)
            .then_some(Duration::from_millis(u64::try_from(open.as_millis()).unwrap_or(u64::MAX))),
    }
}

type Sending = Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send>>;

/// Transitions that wait, and the first of them on its way.
pub(super) struct Outbox {
    agent: String,
    prefix: String,
    /// How many may wait beside the one on its way.
    most: usize,
    board: Board,
    connection: watch::Receiver<Option<JetStream>>,
    waiting: VecDeque<(Draft, Now)>,
    /// It outlives a turn of the loop, or whoever reports faster than NATS confirms would have it
    /// begin anew for ever.
    sending: Option<Sending>,
    backoff: Backoff,
    not_before: Instant,
}

impl Outbox {
    pub(super) fn new(
        agent: String,
        prefix: String,
        most: usize,
        board: Board,
        connection: watch::Receiver<Option<JetStream>>,
    ) -> Self {
        Self {
            agent,
            prefix,
            most,
            board,
            connection,
            waiting: VecDeque::new(),
            sending: None,
            backoff: Backoff::default(),
            not_before: Instant::now(),
        }
    }

    /// Publishes until the senders are gone, or for [`LAST_WORDS`] after shutdown.
    pub(super) async fn run(
        mut self,
        mut reported: mpsc::Receiver<Reported>,
        shutdown: CancellationToken,
    ) {
        let mut connection = self.connection.clone();
        let mut ending: Option<Instant> = None;
        let mut closed = false;
        while !(closed || ending.is_some()) || !self.waiting.is_empty() {
            self.begin();
            let deadline = async {
                match ending {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                sent = sent(&mut self.sending) => self.settle(sent),
                next = reported.recv(), if !closed => match next {
                    Some(next) => self.add(&next),
                    None => closed = true,
                },
                // What was on its way is on its way again, under the same id.
                changed = connection.changed() => match changed {
                    Ok(()) => self.sending = None,
                    Err(_) => break,
                },
                () = shutdown.cancelled(), if ending.is_none() => {
                    ending = Some(Instant::now() + LAST_WORDS);
                    while let Ok(next) = reported.try_recv() {
                        self.add(&next);
                    }
                }
                () = deadline => break,
            }
        }
        // A moment for the last message to leave the client's buffer.
        let js = self.connection.borrow().clone();
        if let Some(js) = js {
            let _ = timeout(Duration::from_millis(500), js.client().flush()).await;
        }
    }

    /// Sends the first that waits, when there is a connection.
    fn begin(&mut self) {
        if self.sending.is_some() {
            return;
        }
        let Some((draft, at)) = self.waiting.front().cloned() else { return };
        let Some(js) = self.connection.borrow().clone() else { return };
        let (prefix, not_before) = (self.prefix.clone(), self.not_before);
        self.sending = Some(Box::pin(async move {
            tokio::time::sleep_until(not_before).await;
            publish(&js, &prefix, &draft, at).await
        }));
    }

    fn settle(&mut self, sent: Result<(), PublishError>) {
        self.sending = None;
        match sent {
            Ok(()) => {
                self.waiting.pop_front();
                self.backoff.reset();
                self.not_before = Instant::now();
            }
            Err(error) => {
                tracing::debug!(%error, "a transition could not be published yet");
                self.not_before = Instant::now() + self.backoff.next();
            }
        }
    }

    /// One more that waits; the oldest goes when there are too many, but not the one on its way.
    fn add(&mut self, next: &Reported) {
        if !next.transition.observed {
            return;
        }
        self.waiting.push_back((draft(&self.agent, next), next.transition.at));
        let first = usize::from(self.sending.is_some());
        if self.waiting.len().saturating_sub(first) <= self.most {
            return;
        }
        self.waiting.remove(first);
        self.board.change(|sources| {
            let dropped = &mut sources.outgoing_dropped;
            *dropped = dropped.saturating_add(1);
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "NATS is away; oldest transitions dropped");
            }
        });
    }
}

/// The outcome of what is on its way; never, when nothing is.
async fn sent(sending: &mut Option<Sending>) -> Result<(), PublishError> {
    match sending {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
}

async fn publish(js: &JetStream, prefix: &str, draft: &Draft, at: Now) -> Result<(), PublishError> {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, draft.id.as_str());
    let payload = draft.encode(at);
    let stored = js.publish_with_headers(draft.subject(prefix), headers, payload.into()).await?;
    stored.await.map(drop)
}
