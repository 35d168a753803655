//! Streams and consumers: created when absent, compared when present.
//!
//! A stream that is there belongs to somebody. Where it differs from what this agent would have
//! made, it is used as it is and the difference is said ([`Found::note`]): an operator who
//! shortened a retention by hand and an agent that silently "repairs" it would be at war, and an
//! agent that did without it would apply no order. A consumer is this agent's own and is made anew
//! when it differs.
//!
//! There is one consumer a kind of event, so that orders are never behind a flood of breakers'
//! transitions. One consumer with several filters would need nats-server 2.10.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{ErrorCode, consumer};

use super::connect::{Connection, NatsError};
use crate::source::NatsConfig;

/// The kinds of events, most urgent first; breakers' transitions may come in floods and are last.
pub(crate) const KINDS: [&str; 4] = ["endpoint", "service", "trace", BREAKER];
/// The kind of breakers' orders and transitions.
pub(crate) const BREAKER: &str = "breaker";

/// Within this time a message id published twice is one message.
const DUPLICATES: Duration = Duration::from_secs(120);
/// Pull requests that may wait; one is enough for one agent, a reconnect leaves some behind.
const WAITING: i64 = 64;

/// Where exhausted messages of a consumer of the stream are told. The server names the subject; see
/// `JSAdvisoryConsumerMaxDeliveryExceedPre` in nats-server.
pub(crate) fn advisory(config: &NatsConfig, consumer: &str) -> String {
    format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.{consumer}", config.stream)
}

/// The consumer's name. It may hold no full stop, as a node's name does; no id holds the signs that
/// stand for it and for the kind, so that no two names meet.
pub(crate) fn durable(agent: &str, kind: &str) -> String {
    format!("{}:{kind}", earlier(agent))
}

/// The name of the one consumer that an agent of an earlier release had.
fn earlier(agent: &str) -> String {
    format!("pintle-{}", agent.replace('.', "="))
}

/// A stream, and what it has that was not wanted.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) stream: Stream,
    /// How it differs, and what to do about it.
    pub(crate) note: Option<String>,
}

fn common(config: &NatsConfig) -> stream::Config {
    stream::Config {
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_bytes: i64::try_from(config.max_bytes).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        num_replicas: usize::from(config.replicas),
        duplicate_window: DUPLICATES,
        ..stream::Config::default()
    }
}

/// The stream of events. It takes the subjects of our kinds alone: a stream acknowledges whatever
/// it takes, to the sender's reply subject, and would answer another application's requests.
pub(crate) async fn events(link: &Connection, config: &NatsConfig) -> Result<Found, NatsError> {
    let wanted = stream::Config {
        name: config.stream.clone(),
        subjects: KINDS.iter().map(|kind| format!("{}.{kind}.>", config.prefix)).collect(),
        max_age: config.max_age,
        ..common(config)
    };
    ensure(link, wanted, config.create).await
}

/// The stream of dead letters: one per origin, for ever within `max_bytes`, and the advisories of
/// exhausted messages until they have become one.
pub(crate) async fn dead_letters(
    link: &Connection,
    config: &NatsConfig,
) -> Result<Found, NatsError> {
    let wanted = stream::Config {
        name: config.dlq_stream.clone(),
        subjects: vec![format!("{}.>", config.dlq_prefix), advisory(config, "*")],
        ..common(config)
    };
    ensure(link, wanted, config.create).await
}

async fn ensure(
    link: &Connection,
    wanted: stream::Config,
    create: bool,
) -> Result<Found, NatsError> {
    let name = wanted.name.clone();
    let what = &format!("looking for stream {name}");
    let asked = async { Ok::<_, GetStreamError>(link.js.get_stream(&name).await) };
    let found = match link.ask(what, asked).await? {
        Ok(stream) => stream,
        Err(error) if is_absent(&error) => {
            if !create {
                return Err(NatsError::Absent(name));
            }
            tracing::info!(stream = %name, "the stream is not there and is created");
            let stream =
                link.ask(&format!("creating stream {name}"), link.js.create_stream(wanted)).await?;
            return Ok(Found { stream, note: None });
        }
        Err(error) => return Err(link.failed(what, error)),
    };
    let differences = stream_differences(&found.cached_info().config, &wanted);
    let note = (!differences.is_empty()).then(|| note(&name, &differences, &wanted.subjects));
    Ok(Found { stream: found, note })
}

fn note(name: &str, differences: &[String], subjects: &[String]) -> String {
    let differences = differences.join(", ");
    if differences.starts_with("subjects") {
        let subjects = subjects.join(",");
        return format!(
            "stream {name} differs and is used as it is: {differences}; it takes what is not an \
             event, or misses some: nats stream edit {name} --subjects '{subjects}'"
        );
    }
    format!(
        "stream {name} differs and is used as it is: {differences}; change it by nats stream edit \
         {name}, or the configuration"
    )
}

fn is_absent(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Zero and -1 both mean "no limit".
const fn limit(value: i64) -> i64 {
    if value <= 0 { -1 } else { value }
}

macro_rules! differ {
    ($list:ident, $($field:literal: $is:expr, $wanted:expr;)*) => {
        $(if $is != $wanted {
            $list.push(format!("{} is {:?}, wanted {:?}", $field, $is, $wanted));
        })*
    };
}

fn stream_differences(is: &stream::Config, wanted: &stream::Config) -> Vec<String> {
    let mut list = Vec::new();
    let sorted = |subjects: &[String]| {
        let mut subjects = subjects.to_vec();
        subjects.sort_unstable();
        subjects
    };
    differ! { list,
        "subjects": sorted(&is.subjects), sorted(&wanted.subjects);
        "retention": is.retention, wanted.retention;
        "storage": is.storage, wanted.storage;
        "discard": is.discard, wanted.discard;
        "max_age": is.max_age, wanted.max_age;
        "max_bytes": limit(is.max_bytes), limit(wanted.max_bytes);
        "max_msgs": limit(is.max_messages), limit(wanted.max_messages);
        "max_msgs_per_subject": limit(is.max_messages_per_subject), limit(wanted.max_messages_per_subject);
        "num_replicas": is.num_replicas, wanted.num_replicas;
        "duplicate_window": is.duplicate_window, wanted.duplicate_window;
        "no_ack": is.no_ack, false;
        "sealed": is.sealed, false;
    }
    list
}

/// Where a consumer that is made now has to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The first sequence; at least 1.
    pub(crate) sequence: u64,
    /// Whether an existing consumer is made anew: at the start of a process, whose memory may be
    /// older than what its predecessor acknowledged.
    pub(crate) anew: bool,
}

/// This agent's consumer of one kind of events. One that is there begins where what it has
/// acknowledged ends, or at `start`, whichever is earlier: kinds do not advance in step.
pub(crate) async fn consumer(
    link: &Connection,
    stream: &Stream,
    config: &NatsConfig,
    agent: &str,
    kind: &str,
    start: Start,
) -> Result<PullConsumer, NatsError> {
    let name = durable(agent, kind);
    let what = &format!("looking for consumer {name}");
    let mut wanted = wanted(config, &name, kind);
    let mut first = start.sequence;
    match stream.consumer_info(&name).await {
        Ok(info) => {
            let differences = consumer_differences(&info.config, &wanted);
            if !start.anew && differences.is_empty() {
                return link.ask(what, stream.get_consumer(&name)).await;
            }
            if !differences.is_empty() {
                let differences = differences.join(", ");
                tracing::info!(
                    consumer = name,
                    differences,
                    "the consumer differs and is made anew as configured"
                );
            }
            first = first.min(info.ack_floor.stream_sequence.saturating_add(1));
            link.ask(&format!("deleting consumer {name}"), stream.delete_consumer(&name)).await?;
        }
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
        Err(error) => return Err(link.failed(what, error)),
    }
    if first > 1 {
        wanted.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: first };
    }
    link.ask(&format!("creating consumer {name}"), stream.create_consumer(wanted)).await
}

fn wanted(config: &NatsConfig, name: &str, kind: &str) -> pull::Config {
    pull::Config {
        durable_name: Some(name.to_owned()),
        name: Some(name.to_owned()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        // The server puts the first entry of the back-off in its place.
        ack_wait: config.backoff.first().copied().unwrap_or_default(),
        max_deliver: i64::from(config.max_deliver),
        filter_subject: format!("{}.{kind}.>", config.prefix),
        max_ack_pending: i64::from(config.max_ack_pending),
        max_waiting: WAITING,
        inactive_threshold: config.inactive,
        backoff: config.backoff.clone(),
        ..pull::Config::default()
    }
}

/// Takes the consumer of an earlier release away, which nobody pulls from any more.
pub(crate) async fn forget_earlier(stream: &Stream, agent: &str) {
    // It goes by itself when it has been idle for `inactive`.
    let _ = stream.delete_consumer(&earlier(agent)).await;
}

fn consumer_differences(is: &consumer::Config, wanted: &pull::Config) -> Vec<String> {
    let mut list = Vec::new();
    differ! { list,
        "deliver_subject": is.deliver_subject.as_deref().unwrap_or(""), "";
        "ack_policy": is.ack_policy, wanted.ack_policy;
        "max_deliver": is.max_deliver, wanted.max_deliver;
        "filter_subject": is.filter_subject, wanted.filter_subject;
        "max_ack_pending": is.max_ack_pending, wanted.max_ack_pending;
        "inactive_threshold": is.inactive_threshold, wanted.inactive_threshold;
        "backoff": is.backoff, wanted.backoff;
    }
    list
}
