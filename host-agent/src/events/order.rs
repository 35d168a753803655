//! An order to the fleet: published once it is known to somebody, done when an agent says so.
//!
//! ```text
//!   command ── ask: is orders/orders-1 known? ──▶ agents      (core NATS)
//!   command ◀── known / unknown, nearest names ── agents
//!   command ── the event, with a token ──▶ stream ──▶ agents
//!   command ◀── in force until ... / refused ───── agents
//! ```
//! The first agent that knows the target lets the event go; further ones are counted meanwhile. All
//! of it is bounded by [`How::wait`], and what nobody said in that time is an error, not a success.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::{HeaderMap, Subscriber};
use futures::StreamExt as _;
use tokio::time::{Instant, timeout_at};

use super::{Draft, Events, NatsError, Published};
use crate::nearest::but;
use crate::source::jetstream::words::{self, ANSWER, About, Ask, Said, Word};

/// Without a further word for so long, all agents have spoken.
pub(super) const QUIET: Duration = Duration::from_millis(250);

/// How an order is given.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// How long the agents' words are waited for, at each of the two steps.
    pub wait: Duration,
    /// Whether it goes out though no agent knows the service or the endpoint.
    pub force: bool,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What the stream said.
    pub published: Published,
    /// The agents on which it is in force, by name.
    pub applied: BTreeMap<String, Applied>,
    /// The agents on which it is not, and why.
    pub refused: BTreeMap<String, String>,
    /// Agents that were there and have not said what became of it.
    pub silent: BTreeSet<String>,
}

/// One agent's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Until when it is in force, RFC 3339; absent when it ended something.
    pub until: Option<String>,
}

/// Why an order is not in force.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// No agent answers.
    #[error(
        "no agent of stream {stream} at {server} answered within {wait:?}; nothing was ordered \
         (--no-wait orders without asking)"
    )]
    NoAgent {
        /// The stream of events.
        stream: String,
        /// The server.
        server: String,
        /// How long it was waited for.
        wait: Duration,
    },
    /// No agent knows the service or the endpoint.
    #[error(
        "{target} is not registered at {}{}; nothing was ordered (add --force if it is still to come)",
        asked(*.agents),
        but(.nearest)
    )]
    Unknown {
        /// `SERVICE` or `SERVICE/ID`.
        target: String,
        /// How many agents said so.
        agents: usize,
        /// Names that look like it.
        nearest: Vec<String>,
    },
    /// It is in the stream, and no agent said that it is in force.
    #[error("event {sequence} is published, but in force on no agent: {}", why(.refused, .wait))]
    NotApplied {
        /// Its sequence.
        sequence: u64,
        /// What the agents said instead.
        refused: BTreeMap<String, String>,
        /// How long it was waited for.
        wait: Duration,
    },
}

fn asked(agents: usize) -> String {
    match agents {
        1 => "the one agent that answered".to_owned(),
        _ => format!("any of the {agents} agents that answered"),
    }
}

fn why(refused: &BTreeMap<String, String>, wait: &Duration) -> String {
    if refused.is_empty() {
        return format!("none said a word within {wait:?}");
    }
    let said = refused.iter().map(|(agent, why)| format!("{agent}: {why}"));
    said.collect::<Vec<_>>().join("; ")
}

/// The agents' words on one token.
pub(super) struct Listener {
    words: Subscriber,
    pub(super) token: String,
}

impl Listener {
    /// The next word; `None` when there was none until then.
    pub(super) async fn next(&mut self, until: Instant) -> Option<Word> {
        loop {
            let message = timeout_at(until, self.words.next()).await.ok()??;
            if let Some(word) = words::read::<Word>(&message.payload) {
                return Some(word);
            }
        }
    }
}

/// What the agents said so far.
#[derive(Default)]
struct Heard {
    known: BTreeSet<String>,
    unknown: BTreeMap<String, Vec<String>>,
    applied: BTreeMap<String, Applied>,
    refused: BTreeMap<String, String>,
}

impl Heard {
    fn take(&mut self, word: Word) {
        let agent = pintle_state::show(word.by.agent.as_bytes());
        match word.said {
            Said::Known => {
                self.known.insert(agent);
            }
            Said::Unknown { nearest } => {
                let nearest = nearest.iter().map(|name| pintle_state::show(name.as_bytes()));
                self.unknown.insert(agent, nearest.collect());
            }
            Said::Applied { until, .. } => {
                self.applied.insert(agent, Applied { until });
            }
            Said::Refused { why, .. } => {
                self.refused.insert(agent, pintle_state::show(why.as_bytes()));
            }
            Said::Here | Said::Report(_) | Said::Released { .. } => {}
        }
    }

    /// Agents that were there and have not said what became of the event.
    fn silent(&self) -> BTreeSet<String> {
        let there = self.known.iter().chain(self.unknown.keys());
        let spoke = |agent: &&String| {
            self.applied.contains_key(*agent) || self.refused.contains_key(*agent)
        };
        there.filter(|agent| !spoke(agent)).cloned().collect()
    }

    fn nearest(&self) -> Vec<String> {
        let mut nearest: Vec<String> = Vec::new();
        for name in self.unknown.values().flatten() {
            if !nearest.contains(name) {
                nearest.push(name.clone());
            }
        }
        nearest.truncate(3);
        nearest
    }
}

impl Events {
    /// Publishes a draft and waits for the agents' words on it. Check it first ([`Draft::check`]).
    ///
    /// # Errors
    /// [`OrderError`]: it is not in force on any agent.
    pub async fn order(&self, draft: &Draft, how: How) -> Result<Done, OrderError> {
        let mut listener = self.listen().await?;
        let mut heard = Heard::default();
        self.ask(&listener.token, About::target(&draft.target)).await?;
        self.hear_of_target(&mut listener, &mut heard, draft, how).await?;
        let mut headers = HeaderMap::new();
        headers.insert(ANSWER, listener.token.as_str());
        let published = self.publish_with(draft, headers).await?;
        // The agents have had it, and their words have gone to whoever published it.
        if !published.duplicate {
            hear_of_event(&mut listener, &mut heard, how.wait).await;
            if heard.applied.is_empty() {
                return Err(OrderError::NotApplied {
                    sequence: published.sequence,
                    refused: heard.refused,
                    wait: how.wait,
                });
            }
        }
        let silent = heard.silent();
        Ok(Done { published, applied: heard.applied, refused: heard.refused, silent })
    }

    pub(super) async fn listen(&self) -> Result<Listener, NatsError> {
        let token = words::new_token();
        let subject = words::word_subject(&self.config, &token);
        let words = self.link.ask("listening for the agents", self.link.client.subscribe(subject));
        Ok(Listener { words: words.await?, token })
    }

    pub(super) async fn ask(&self, token: &str, about: About) -> Result<(), NatsError> {
        let what = "asking the agents";
        let ask = Ask { token: token.to_owned(), by: None, about };
        let text = serde_json::to_vec(&ask).map_err(|error| self.link.failed(what, error))?;
        let subject = words::ask_subject(&self.config);
        let asked = self.link.client.publish(subject, text.into()).await;
        asked.map_err(|error| self.link.failed(what, error))?;
        let flushed = self.link.client.flush().await;
        flushed.map_err(|error| self.link.failed(what, error))
    }

    /// Until an agent knows the target, or all have said that they don't.
    async fn hear_of_target(
        &self,
        listener: &mut Listener,
        heard: &mut Heard,
        draft: &Draft,
        how: How,
    ) -> Result<(), OrderError> {
        let deadline = Instant::now() + how.wait;
        let mut until = deadline;
        while let Some(word) = listener.next(until).await {
            heard.take(word);
            if !heard.known.is_empty() || (how.force && !heard.unknown.is_empty()) {
                return Ok(());
            }
            until = deadline.min(Instant::now() + QUIET);
        }
        if heard.unknown.is_empty() {
            if let Some(what) = self.link.denied() {
                let server = self.link.server.clone();
                return Err(NatsError::Denied { server, what }.into());
            }
            let (stream, server) = (self.config.stream.clone(), self.link.server.clone());
            return Err(OrderError::NoAgent { stream, server, wait: how.wait });
        }
        Err(OrderError::Unknown {
            target: draft.target.subject(),
            agents: heard.unknown.len(),
            nearest: heard.nearest(),
        })
    }
}

/// Until every agent that was there has said what became of the event, and none else has for a
/// while.
async fn hear_of_event(listener: &mut Listener, heard: &mut Heard, wait: Duration) {
    let deadline = Instant::now() + wait;
    loop {
        let all = !heard.applied.is_empty() && heard.silent().is_empty();
        let until = if all { deadline.min(Instant::now() + QUIET) } else { deadline };
        let Some(word) = listener.next(until).await else { return };
        heard.take(word);
    }
}
