//! The server's clock, by ours.
//!
//! An age is a difference of two readings of the server's clock: its time at the session's start is
//! asked for by making (and deleting) a consumer, whose answer carries it; from there a monotonic
//! clock runs on.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::Stream;
use tokio::time::Instant;

use super::connect::{Connection, NatsError};

/// One reading of the server's clock, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerClock {
    nanos: i128,
    at: Instant,
}

impl ServerClock {
    /// Asks the server by making a consumer that is gone in a moment.
    pub(super) async fn ask(link: &Connection, stream: &Stream) -> Result<Self, NatsError> {
        let at = Instant::now();
        let probe = stream.create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::None,
            inactive_threshold: Duration::from_secs(5),
            memory_storage: true,
            ..pull::Config::default()
        });
        let probe = link.ask("asking for the server's time", probe).await?;
        let info = probe.cached_info();
        let clock = Self { nanos: info.created.unix_timestamp_nanos(), at: at + at.elapsed() / 2 };
        // It ends by itself if this fails.
        let _ = stream.delete_consumer(&info.name).await;
        Ok(clock)
    }

    /// This machine's clock, for want of a better one.
    pub(super) fn local() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX);
        Self { nanos, at: Instant::now() }
    }

    /// How long ago `published` was.
    pub(super) fn age_of(&self, published: i128) -> Duration {
        let now = self
            .nanos
            .saturating_add(i128::try_from(self.at.elapsed().as_nanos()).unwrap_or(i128::MAX));
        let age = now.saturating_sub(published).max(0);
        Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX))
    }
}
