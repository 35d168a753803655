//! What commands and agents say to each other over core NATS, beside the stream.
//!
//! ```text
//!   pintle.fleet.{stream}.ask           a question to all agents of the fleet
//!   pintle.fleet.{stream}.word.{token}  what an agent says, to whoever made up the token
//! ```
//! An event may carry a token in its header [`ANSWER`]; then every agent says what became of it.
//! The token is the last part of a subject of ours and never a subject, so that no publisher of an
//! event makes agents write elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use pintle_contract::is_name;
use pintle_state::event::Target;
use serde::{Deserialize, Serialize};

pub use super::report::{Digest, Report};
use crate::source::NatsConfig;

/// The first tokens of the subjects.
pub(crate) const FLEET: &str = "pintle.fleet";
/// The header of an event whose publisher waits for the agents' words: a token.
pub(crate) const ANSWER: &str = "Pintle-Answer";
/// An event older than this has nobody waiting.
pub(crate) const WAITED_FOR: Duration = Duration::from_secs(60);
/// Bytes of a question or a word, at most; nats-server's own limit is 1 MiB.
pub(crate) const MAX_WORDS: usize = 512 << 10;

/// The subject of questions.
pub(crate) fn ask_subject(config: &NatsConfig) -> String {
    format!("{FLEET}.{}.ask", config.stream)
}

/// The subject of words for `token`.
pub(crate) fn word_subject(config: &NatsConfig, token: &str) -> String {
    format!("{FLEET}.{}.word.{token}", config.stream)
}

/// Whether a text may be the last part of a subject.
pub(crate) fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Where the words go.
    pub(crate) token: String,
    /// Who asks, when it is an agent.
    #[serde(default)]
    pub(crate) by: Option<Speaker>,
    /// What is asked.
    pub(crate) about: About,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum About {
    /// Who is there.
    Names,
    /// How each agent is and what it serves.
    Report,
    /// An order: let held removals go.
    Release {
        /// Of this service; of all where none is named.
        service: Option<String>,
    },
    /// Whether this is known.
    Target {
        /// The service.
        service: String,
        /// The endpoint's id, if one.
        endpoint: Option<String>,
    },
}

impl About {
    /// A question about an event's target.
    pub(crate) fn target(target: &Target) -> Self {
        Self::Target { service: target.service.clone(), endpoint: target.endpoint.clone() }
    }

    /// Whether its names are names.
    pub(crate) fn is_good(&self) -> bool {
        match self {
            Self::Names | Self::Report => true,
            Self::Release { service } => service.as_deref().is_none_or(is_name),
            Self::Target { service, endpoint } => {
                is_name(service) && endpoint.as_deref().is_none_or(is_name)
            }
        }
    }
}

/// Which agent speaks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Speaker {
    /// Its name in the fleet.
    pub(crate) agent: String,
    /// A random number of its process: two agents of one name differ in it.
    pub(crate) instance: u64,
    /// Its machine and process, for people.
    pub(crate) place: String,
}

/// What an agent says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Word {
    /// Who.
    pub(crate) by: Speaker,
    /// What.
    pub(crate) said: Said,
}

/// What an agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// It is there.
    Here,
    /// How it is.
    Report(Box<Report>),
    /// What it let go, by service.
    Released {
        /// Removals.
        services: BTreeMap<String, u64>,
    },
    /// What was asked about is registered there.
    Known,
    /// It is not.
    Unknown {
        /// Names that look like it, the likeliest first.
        nearest: Vec<String>,
    },
    /// An event is in force, or has ended what was.
    Applied {
        /// The event's sequence.
        sequence: u64,
        /// Until when it is in force, RFC 3339; absent when it ended something.
        until: Option<String>,
    },
    /// An event is not in force there.
    Refused {
        /// The event's sequence.
        sequence: u64,
        /// Why not.
        why: String,
    },
}

impl Speaker {
    /// This process, as the agent `agent`.
    pub(crate) fn this(agent: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let place = format!("host {}, process {}", host.trim(), std::process::id());
        Self {
            agent: agent.to_owned(),
            instance: rand::random(),
            place: pintle_state::show(place.as_bytes()),
        }
    }
}

/// An agent's voice on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    pub(crate) client: Client,
    pub(crate) config: NatsConfig,
    pub(crate) me: Speaker,
}

impl Voice {
    /// Says something to whoever made up the token. What can't be said costs its listener a wait.
    pub(crate) async fn say(&self, token: &str, said: Said) {
        if !is_token(token) {
            return;
        }
        let word = Word { by: self.me.clone(), said };
        let Ok(text) = serde_json::to_vec(&word) else { return };
        let subject = word_subject(&self.config, token);
        if let Err(error) = self.client.publish(subject, text.into()).await {
            tracing::debug!(%error, "a word was not said");
        }
    }

    /// Asks all agents; the words come to `token`.
    pub(crate) async fn ask(&self, token: &str, about: About) {
        let ask = Ask { token: token.to_owned(), by: Some(self.me.clone()), about };
        let Ok(text) = serde_json::to_vec(&ask) else { return };
        if let Err(error) = self.client.publish(ask_subject(&self.config), text.into()).await {
            tracing::debug!(%error, "a question was not asked");
        }
    }
}

/// Reads a question or a word; `None` when it is none.
pub(crate) fn read<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> Option<T> {
    (payload.len() <= MAX_WORDS).then(|| serde_json::from_slice(payload).ok()).flatten()
}

/// A token that nobody else has.
pub(crate) fn new_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}
