//! The other agents of the fleet and the commands: questions answered, a second agent of this name
//! noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connect::{Connection, NatsError};
use super::report::Report;
use super::words::{self, About, Ask, Said, Voice, Word};
use crate::nearest::nearest;
use crate::source::Context;

/// How often this agent asks who is there.
const LOOK: Duration = Duration::from_secs(30);
/// Questions answered in a second; further ones are left out.
const ASKS: u32 = 200;
/// Services that an answer names: it stays within a message.
const MOST_RELEASED: usize = 2_000;

/// The key of the warning about a second agent of this name.
const NAME: &str = "name";

/// Answers on one connection.
pub(super) struct Peers<'a> {
    pub(super) context: &'a Context,
    pub(super) link: &'a Connection,
    pub(super) voice: Voice,
    /// When the second began, and the questions answered in it.
    second: (Instant, u32),
    /// When the other agent of this name was heard last.
    namesake: Option<Instant>,
}

impl<'a> Peers<'a> {
    pub(super) fn new(context: &'a Context, link: &'a Connection, voice: Voice) -> Self {
        Self { context, link, voice, second: (Instant::now(), 0), namesake: None }
    }

    /// Answers until the connection ends; without the permissions it only says which are missing.
    pub(super) async fn run(mut self) -> Infallible {
        if let Err(error) = self.serve().await {
            self.context.warn("fleet", Some(format!("orders are not confirmed: {error}")));
        }
        std::future::pending().await
    }

    async fn serve(&mut self) -> Result<(), NatsError> {
        let what = "listening for questions";
        let token = words::new_token();
        let asks = words::ask_subject(&self.voice.config);
        let words = words::word_subject(&self.voice.config, &token);
        let client = self.link.client.clone();
        let mut asks = self.link.ask(what, client.subscribe(asks)).await?;
        let mut words = self.link.ask(what, client.subscribe(words)).await?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ask = asks.next() => {
                    let Some(ask) = ask else { return Ok(()) };
                    if let Some(ask) = words::read::<Ask>(&ask.payload) {
                        self.answer(&ask).await;
                    }
                }
                word = words.next() => {
                    let Some(word) = word else { return Ok(()) };
                    if let Some(word) = words::read::<Word>(&word.payload) {
                        self.met(&word.by);
                    }
                }
                _ = look.tick() => self.look(&token).await,
            }
        }
    }

    /// Asks who is there, and says what the server keeps from this agent.
    async fn look(&mut self, token: &str) {
        if self.namesake.is_some_and(|heard| heard.elapsed() > LOOK * 3) {
            self.namesake = None;
            self.context.warn(NAME, None);
        }
        let denied = self.link.denied().filter(|what| what.contains(words::FLEET));
        let denied = denied
            .map(|what| format!("orders are not confirmed: {} denies {what}", self.link.server));
        self.context.warn("fleet", denied);
        self.voice.ask(token, About::Names).await;
    }

    async fn answer(&mut self, ask: &Ask) {
        if let Some(by) = &ask.by {
            self.met(by);
        }
        if !ask.about.is_good() || !self.has_time() {
            return;
        }
        let said = match &ask.about {
            About::Names => Said::Here,
            About::Report => self.report(),
            About::Release { service } => match self.release(service.as_deref()).await {
                Some(said) => said,
                None => return,
            },
            About::Target { service, endpoint } => self.look_up(service, endpoint.as_deref()),
        };
        self.voice.say(&ask.token, said).await;
    }

    fn report(&self) -> Said {
        let snapshot = self.context.snapshots.borrow().clone();
        let standing = self.context.standing.borrow().clone();
        Said::Report(Box::new(Report::of(&snapshot, &standing)))
    }

    /// Lets held removals go; `None` when the agent shuts down.
    async fn release(&self, service: Option<&str>) -> Option<Said> {
        let snapshot = self.context.snapshots.borrow().clone();
        let held = |name: &str| snapshot.held.iter().any(|held| held.service == name);
        let wanted: BTreeSet<String> = match service {
            Some(name) if !snapshot.services.contains_key(name) && !held(name) => {
                let names = snapshot.services.keys().map(String::as_str);
                return Some(Said::Unknown { nearest: nearest(name, names) });
            }
            Some(name) => [name.to_owned()].into(),
            None => snapshot.held.iter().map(|held| held.service.clone()).collect(),
        };
        let mut services = BTreeMap::new();
        for name in wanted {
            let count = self.context.updates.release(&name).await.ok()?;
            tracing::info!(service = name, removals = count, "released by a command");
            if services.len() < MOST_RELEASED {
                services.insert(name, u64::try_from(count).unwrap_or(u64::MAX));
            }
        }
        Some(Said::Released { services })
    }

    fn has_time(&mut self) -> bool {
        let now = Instant::now();
        if now.saturating_duration_since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
        }
        self.second.1 = self.second.1.saturating_add(1);
        if self.second.1 == ASKS {
            tracing::warn!(
                most = ASKS,
                "more questions of commands and agents a second than are answered: some get no word"
            );
        }
        self.second.1 <= ASKS
    }

    /// Somebody spoke: another process of this agent's name shares its consumers, and each of them
    /// misses events.
    fn met(&mut self, by: &words::Speaker) {
        let me = &self.voice.me;
        if by.agent != me.agent || by.instance == me.instance {
            return;
        }
        self.namesake = Some(Instant::now());
        let place = pintle_state::show(by.place.as_bytes());
        let text = format!(
            "two agents are called {}: this one and {place}; each misses events, give one another \
             name (agent)",
            me.agent
        );
        self.context.warn(NAME, Some(text));
    }

    fn look_up(&self, service: &str, endpoint: Option<&str>) -> Said {
        let snapshot = self.context.snapshots.borrow().clone();
        let Some(known) = snapshot.services.get(service) else {
            let names = snapshot.services.keys().map(String::as_str);
            return Said::Unknown { nearest: nearest(service, names) };
        };
        match endpoint {
            Some(id) if !known.has(id) => {
                let ids = known.table.endpoints.iter().map(|endpoint| endpoint.id.as_str());
                let nearest = nearest(id, ids);
                Said::Unknown {
                    nearest: nearest.iter().map(|id| format!("{service}/{id}")).collect(),
                }
            }
            _ => Said::Known,
        }
    }
}
