//! Dead letters: what could not be applied, kept with the reason.
//!
//! A poison message comes to every agent, and each of them finds it out. The letter's subject is
//! made of the stream's identity and the origin's sequence, and is written only while nothing
//! stands there, so that there is one letter per origin however many agents found it. The original
//! bytes are the letter's body and everything else is in its headers; a body that would not fit is
//! cut and says so.

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::context::PublishErrorKind;
use pintle_state::show;

use super::connect::{Connection, NatsError};
use crate::source::NatsConfig;

pub(crate) const REASON: &str = "Pintle-Reason";
pub(crate) const DETAIL: &str = "Pintle-Detail";
pub(crate) const STREAM: &str = "Pintle-Origin-Stream";
pub(crate) const SUBJECT: &str = "Pintle-Origin-Subject";
pub(crate) const SEQUENCE: &str = "Pintle-Origin-Sequence";
pub(crate) const DELIVERIES: &str = "Pintle-Deliveries";
pub(crate) const AGENT: &str = "Pintle-Agent";
pub(crate) const CUT: &str = "Pintle-Cut";
/// Room for headers below the server's limit of a message.
const HEADERS: usize = 8 << 10;

/// A message that will never be applied.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
    pub(crate) subject: String,
    /// The stream's identity and the sequence in it.
    pub(crate) origin: (u64, u64),
    pub(crate) deliveries: i64,
    pub(crate) payload: bytes::Bytes,
}

/// Writes the letter, which is stored when this returns; whether it was not before.
pub(crate) async fn write(
    link: &Connection,
    config: &NatsConfig,
    agent: &str,
    letter: &Letter,
) -> Result<bool, NatsError> {
    let (identity, sequence) = letter.origin;
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    headers.insert(REASON, letter.reason);
    headers.insert(DETAIL, plain(&letter.detail));
    headers.insert(STREAM, config.stream.as_str());
    headers.insert(SUBJECT, plain(&letter.subject));
    headers.insert(SEQUENCE, sequence.to_string());
    headers.insert(DELIVERIES, letter.deliveries.to_string());
    headers.insert(AGENT, agent);
    let most = link.client.server_info().max_payload.saturating_sub(HEADERS);
    let mut payload = letter.payload.clone();
    if payload.len() > most {
        headers.insert(CUT, payload.len().to_string());
        payload.truncate(most);
    }
    let subject = format!("{}.{identity}.{sequence}", config.dlq_prefix);
    let what = "writing a dead letter";
    let stored = link.js.publish_with_headers(subject, headers, payload).await;
    let stored = stored.map_err(|error| link.failed(what, error))?;
    match stored.await {
        Ok(_) => Ok(true),
        // Another agent was faster, or this one has been here before.
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
        Err(error) => Err(link.failed(what, error)),
    }
}

/// What a header may hold: one line of ASCII.
fn plain(text: &str) -> String {
    let ascii = show(text.as_bytes());
    ascii.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
