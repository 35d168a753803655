//! Streams and consumer: created when absent, verified when present, never replaced.
//!
//! What is there belongs to somebody. Where it differs from what this agent would have made, the
//! difference is named and nothing is done: an operator who shortened a retention by hand and an agent
//! that silently "repairs" it would be at war.

use async_nats::jetstream::Context as JetStream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{ErrorCode, consumer};

use super::connect::{NatsError, failed};
use crate::source::NatsConfig;

/// Within this time a message id published twice is one message.
const DUPLICATES: std::time::Duration = std::time::Duration::from_secs(120);
/// Pull requests that may wait; one is enough for one agent, a reconnect leaves some behind.
const WAITING: i64 = 64;

/// Where a consumer's exhausted messages are told.
pub(crate) fn advisory(config: &NatsConfig, consumer: &str) -> String {
    format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.{consumer}", config.stream)
}

/// The consumer's name. It may hold no full stop, as a node's name does; no id holds the sign that
/// stands for it, so that no two ids meet.
pub(crate) fn durable(agent: &str) -> String {
    format!("pintle-{}", agent.replace('.', "="))
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

/// The stream of events.
pub(crate) async fn events(js: &JetStream, config: &NatsConfig) -> Result<Stream, NatsError> {
    let wanted = stream::Config {
        name: config.stream.clone(),
        subjects: vec![format!("{}.>", config.prefix)],
        max_age: config.max_age,
        ..common(config)
    };
    ensure(js, wanted, config.create).await
}

/// The stream of dead letters: one per origin, for ever within `max_bytes`, and the advisories of
/// exhausted messages until they have become one.
pub(crate) async fn dead_letters(js: &JetStream, config: &NatsConfig) -> Result<Stream, NatsError> {
    let wanted = stream::Config {
        name: config.dlq_stream.clone(),
        subjects: vec![format!("{}.>", config.dlq_prefix), advisory(config, "*")],
        max_messages_per_subject: -1,
        ..common(config)
    };
    ensure(js, wanted, config.create).await
}

async fn ensure(js: &JetStream, wanted: stream::Config, create: bool) -> Result<Stream, NatsError> {
    let name = wanted.name.clone();
    let found = match js.get_stream(&name).await {
        Ok(stream) => stream,
        Err(error) if is_absent(&error) => {
            if !create {
                return Err(NatsError::Absent(name));
            }
            tracing::info!(stream = %name, "creating");
            return js.create_stream(wanted).await.map_err(failed("creating a stream"));
        }
        Err(error) => return Err(failed("looking for a stream")(error)),
    };
    let differences = stream_differences(&found.cached_info().config, &wanted);
    if differences.is_empty() {
        return Ok(found);
    }
    Err(NatsError::Differs { what: "stream", name, differences: differences.join(", ") })
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
    /// Whether an existing consumer is made anew: at the start of a process, whose memory may be older
    /// than what its predecessor acknowledged.
    pub(crate) anew: bool,
}

/// This agent's consumer.
pub(crate) async fn consumer(
    stream: &Stream,
    config: &NatsConfig,
    agent: &str,
    start: Start,
) -> Result<PullConsumer, NatsError> {
    let name = durable(agent);
    let wanted = pull::Config {
        durable_name: Some(name.clone()),
        name: Some(name.clone()),
        deliver_policy: if start.sequence > 1 {
            DeliverPolicy::ByStartSequence { start_sequence: start.sequence }
        } else {
            DeliverPolicy::All
        },
        ack_policy: AckPolicy::Explicit,
        // The server puts the first entry of the back-off in its place.
        ack_wait: config.backoff.first().copied().unwrap_or_default(),
        max_deliver: i64::from(config.max_deliver),
        filter_subject: format!("{}.>", config.prefix),
        max_ack_pending: i64::from(config.max_ack_pending),
        max_waiting: WAITING,
        inactive_threshold: config.inactive,
        backoff: config.backoff.clone(),
        ..pull::Config::default()
    };
    let found = stream.consumer_info(&name).await;
    match found {
        Ok(info) => {
            let differences = consumer_differences(&info.config, &wanted);
            if !differences.is_empty() {
                return Err(NatsError::Differs {
                    what: "consumer",
                    name,
                    differences: differences.join(", "),
                });
            }
            if start.anew {
                stream.delete_consumer(&name).await.map_err(failed("making the consumer anew"))?;
            } else {
                return stream
                    .get_consumer(&name)
                    .await
                    .map_err(failed("looking for the consumer"));
            }
        }
        Err(error) => match error.kind() {
            async_nats::jetstream::context::ConsumerInfoErrorKind::NotFound => {}
            _ => return Err(failed("looking for the consumer")(error)),
        },
    }
    stream.create_consumer(wanted).await.map_err(failed("creating the consumer"))
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
