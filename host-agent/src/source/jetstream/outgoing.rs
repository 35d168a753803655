//! Reported transitions on their way to the fleet.
//!
//! They are published one after the other, each with an id made of what it says, so that one that is
//! sent again after a lost confirmation is stored once. While NATS is away a bounded number waits;
//! beyond it the oldest go, because the newest state of a breaker is the one worth knowing.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use async_nats::jetstream::Context as JetStream;
use pintle_contract::{BreakerState, Now};
use pintle_state::event::{Action, Draft, Target};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
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

type Sending = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Publishes until the senders are gone.
pub(crate) async fn run(
    agent: String,
    prefix: String,
    most: usize,
    mut reported: mpsc::Receiver<Reported>,
    mut connection: watch::Receiver<Option<JetStream>>,
    board: Board,
    shutdown: tokio_util::sync::CancellationToken,
) {
    let mut waiting: VecDeque<(Draft, Now)> = VecDeque::new();
    // The first of them on its way. It outlives a turn of the loop, or whoever reports faster than
    // NATS confirms would have it begin anew for ever.
    let mut sending: Option<Sending> = None;
    let mut backoff = Backoff::default();
    let mut not_before = Instant::now();
    let mut ending: Option<Instant> = None;
    loop {
        if sending.is_none()
            && let Some((draft, at)) = waiting.front().cloned()
            && let Some(js) = connection.borrow_and_update().clone()
        {
            let prefix = prefix.clone();
            sending = Some(Box::pin(async move {
                tokio::time::sleep_until(not_before).await;
                publish(&js, &prefix, &draft, at).await
            }));
        }
        let send = async {
            match &mut sending {
                Some(sending) => sending.await,
                None => std::future::pending().await,
            }
        };
        let deadline = async {
            match ending {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            sent = send => {
                sending = None;
                match sent {
                    Ok(()) => {
                        waiting.pop_front();
                        backoff.reset();
                        not_before = Instant::now();
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a transition could not be published yet");
                        not_before = Instant::now() + backoff.next();
                    }
                }
            }
            next = reported.recv(), if ending.is_none() => {
                let Some(next) = next else { break };
                if !next.transition.observed {
                    continue;
                }
                let at = next.transition.at;
                waiting.push_back((draft(&agent, &next), at));
                // The one on its way does not wait.
                let first = usize::from(sending.is_some());
                if waiting.len().saturating_sub(first) > most {
                    waiting.remove(first);
                    board.change(|sources| {
                        sources.outgoing_dropped = sources.outgoing_dropped.saturating_add(1);
                        if sources.outgoing_dropped.is_power_of_two() {
                            tracing::warn!(dropped = sources.outgoing_dropped, "NATS is away; oldest transitions dropped");
                        }
                    });
                }
            }
            changed = connection.changed() => {
                if changed.is_err() {
                    break;
                }
                sending = None;
            }
            () = shutdown.cancelled(), if ending.is_none() => {
                ending = Some(Instant::now() + LAST_WORDS);
                while let Ok(next) = reported.try_recv() {
                    if next.transition.observed {
                        waiting.push_back((draft(&agent, &next), next.transition.at));
                    }
                }
            }
            () = deadline => break,
        }
        if ending.is_some() && waiting.is_empty() {
            break;
        }
    }
    // A moment for the last message to leave the client's buffer.
    let js = connection.borrow().clone();
    if let Some(js) = js {
        let _ = timeout(Duration::from_millis(500), js.client().flush()).await;
    }
}

async fn publish(js: &JetStream, prefix: &str, draft: &Draft, at: Now) -> Result<(), String> {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(async_nats::header::NATS_MESSAGE_ID, draft.id.as_str());
    let payload = draft.encode(at);
    let stored = js
        .publish_with_headers(draft.subject(prefix), headers, payload.into())
        .await
        .map_err(|e| e.to_string())?;
    stored.await.map(drop).map_err(|e| e.to_string())
}
