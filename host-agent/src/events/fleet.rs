//! What a command asks all agents at once: how each is and what it serves, and the release of
//! removals that each holds back.
//!
//! An agent that is there says so ([`About::Names`]) and answers the question itself if its release
//! knows it; those that only say that they are there are counted as silent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::order::{Listener, OrderError, QUIET};
use super::{Events, NatsError};
use crate::source::jetstream::words::{About, Report, Said};

/// What the agents answered, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers<T> {
    /// Those that answered.
    pub said: BTreeMap<String, T>,
    /// Those that are there and did not.
    pub silent: BTreeSet<String>,
}

/// What one agent released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// Removals, by service.
    Gone(BTreeMap<String, u64>),
    /// The service is not registered there; names that look like it.
    Unknown(Vec<String>),
}

impl Events {
    /// Asks every agent to let the held removals of a service go, or those of all services.
    ///
    /// # Errors
    /// No agent is there.
    pub async fn release(
        &self,
        service: Option<&str>,
        wait: Duration,
    ) -> Result<Answers<Released>, OrderError> {
        let about = About::Release { service: service.map(str::to_owned) };
        let take = |said| match said {
            Said::Released { services } => Some(Released::Gone(services)),
            Said::Unknown { nearest } => {
                let nearest = nearest.iter().map(|name| pintle_state::show(name.as_bytes()));
                Some(Released::Unknown(nearest.collect()))
            }
            _ => None,
        };
        self.question(about, wait, take).await
    }

    /// Asks every agent how it is and what it serves.
    ///
    /// # Errors
    /// No agent is there.
    pub async fn fleet(&self, wait: Duration) -> Result<Answers<Report>, OrderError> {
        let take = |said| match said {
            Said::Report(report) => Some(*report),
            _ => None,
        };
        self.question(About::Report, wait, take).await
    }

    async fn question<T>(
        &self,
        about: About,
        wait: Duration,
        take: impl Fn(Said) -> Option<T>,
    ) -> Result<Answers<T>, OrderError> {
        let mut listener: Listener = self.listen().await?;
        self.ask(&listener.token, About::Names).await?;
        self.ask(&listener.token, about).await?;
        let mut answers = Answers { said: BTreeMap::new(), silent: BTreeSet::new() };
        let deadline = Instant::now() + wait;
        let mut until = deadline;
        while let Some(word) = listener.next(until).await {
            let agent = pintle_state::show(word.by.agent.as_bytes());
            match word.said {
                Said::Here => {
                    if !answers.said.contains_key(&agent) {
                        answers.silent.insert(agent);
                    }
                }
                said => {
                    if let Some(said) = take(said) {
                        answers.silent.remove(&agent);
                        answers.said.insert(agent, said);
                    }
                }
            }
            // All that are there have answered: others would have by now.
            let all = answers.silent.is_empty();
            until = if all { deadline.min(Instant::now() + QUIET) } else { deadline };
        }
        if !answers.said.is_empty() || !answers.silent.is_empty() {
            return Ok(answers);
        }
        let server = self.link.server.clone();
        if let Some(what) = self.link.denied() {
            return Err(NatsError::Denied { server, what }.into());
        }
        Err(OrderError::NoAgent { stream: self.config.stream.clone(), server, wait })
    }
}
