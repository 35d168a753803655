//! The way of finished spans to the collector: a bounded queue and one call at a time.
//!
//! ```text
//!           push                 poll: full, or the interval is over
//!   span ─────────▶ queue (bytes) ─────────────────────▶ batch ──────▶ Sent
//!                     │ full: drop the newest, count       ▲            │ accepted: count, Idle
//!                     ▼                                    │ poll       │ refused, or too often: count, Idle
//!                                                       Waiting ◀───────┘ may pass: back-off
//! ```
//!
//! One call and not several, because a collector that is slow is not helped by more of them, and
//! what waits here is bounded and cheap while what waits in the proxy's buffers is neither. The
//! newest spans are dropped rather than the oldest: those that wait are the beginning of the
//! trouble, which is what someone will look for. A call that is never answered (the proxy lost it)
//! counts as failed after its timeout and a grace, so the queue cannot stall for ever.
//!
//! The machine has no clock: a host clock that steps back restarts a wait instead of prolonging it
//! by the step.

use std::collections::VecDeque;
use std::time::Duration;

use pintle_contract::Now;
use rand::Rng;

use crate::otlp::{self, Head, MAX_ATTEMPTS, Style};
use crate::policy::{Config, Export, Spans};
use crate::span::Span;

/// gRPC service of an OTLP collector.
pub const SERVICE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";
/// Its method for spans.
pub const METHOD: &str = "Export";

/// Bytes that wait, at most, however many spans they are: the default queue of 2048 at 2 KiB each.
const MAX_QUEUE: usize = 4 * 1024 * 1024;
/// Bytes of a batch, about: a gRPC server refuses 4 MiB by default, and Wasm copies what it sends.
const MAX_BATCH: usize = 1024 * 1024;
/// The first pause after a failure, as in OpenTelemetry's exporters.
const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// The longest pause: a collector that is back is found within half a minute.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long after its timeout a call is still waited for.
const GRACE: Duration = Duration::from_secs(1);

/// What became of spans, counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Spans that the collector accepted.
    pub exported: u64,
    /// Spans that found the queue full.
    pub dropped: u64,
    /// Spans in batches that were given up.
    pub failed: u64,
    /// Spans that the collector accepted the batch of and rejected all the same.
    pub rejected: u64,
    /// Batches that were sent again.
    pub retries: u64,
}

/// What the collector said to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It took the batch, except for this many spans.
    Accepted {
        /// Spans that the collector did not want; not to be sent again.
        rejected: u64,
    },
    /// It failed in a way that may pass.
    Retry,
    /// It will not take this batch at any time.
    Refused,
}

impl Answer {
    /// From a gRPC status code and the response message, which is only read if the code is 0.
    ///
    /// The codes that may pass are those of the OTLP specification ("OTLP/gRPC Response"):
    /// cancelled, deadline exceeded, aborted, out of range, unavailable, data loss. Resource
    /// exhausted may pass only if the collector says when, which the proxy does not show.
    #[must_use]
    pub fn from_grpc(status: u32, response: &[u8]) -> Self {
        match status {
            0 => Self::Accepted { rejected: otlp::rejected(response) },
            1 | 4 | 10 | 11 | 14 | 15 => Self::Retry,
            _ => Self::Refused,
        }
    }
}

/// The spans of one VM on their way to the collector.
#[derive(Debug)]
pub struct Exporter {
    style: Style,
    head: Head,
    limits: Limits,
    queue: Queue,
    batch: Batch,
    state: State,
    counts: Counts,
    jitter: u64,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    batch: usize,
    queue: usize,
    interval: Duration,
    timeout: Duration,
    retries: u32,
}

/// Encoded spans in a row.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    sizes: VecDeque<usize>,
    /// When the oldest came.
    since: Now,
}

#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    spans: u64,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Sent { since: Now },
    Waiting { since: Now, pause: Duration },
}

impl Exporter {
    /// An empty queue for the exporter that `config` describes; `None` if it describes none.
    /// `seed` spreads the pauses of many VMs; any number will do, if it is not the same in each.
    #[must_use]
    pub fn new(config: &Config, seed: u64) -> Option<Self> {
        let export: &Export = config.export()?;
        Some(Self {
            style: Style { direction: config.direction(), query: export.query },
            head: Head::new(export),
            limits: Limits {
                batch: export.batch,
                queue: export.queue,
                interval: export.interval,
                timeout: export.timeout,
                retries: export.retries,
            },
            queue: Queue::default(),
            batch: Batch::default(),
            state: State::Idle,
            counts: Counts::default(),
            jitter: seed | 1,
        })
    }

    /// Encodes the span, and one for each attempt if the policy asked for that, and queues them.
    /// `false` if any of them was dropped, because as many wait as may. A span of a request that is
    /// not recorded is not an error and not queued. `rng` gives the ids of the attempts' spans.
    pub fn push<R: Rng + ?Sized>(&mut self, span: &Span<'_>, rng: &mut R, now: Now) -> bool {
        if !span.context.is_recorded() {
            return true;
        }
        let style = self.style;
        let mut all = self.queue(now, |out| otlp::write_span(out, span, style));
        if span.context.spans == Spans::PerAttempt {
            for (at, attempt) in span.attempts.iter().take(MAX_ATTEMPTS).enumerate() {
                all &= self.queue(now, |out| otlp::write_attempt(out, span, attempt, at, rng));
            }
        }
        all
    }

    fn queue(&mut self, now: Now, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let start = self.queue.bytes.len();
        if self.queue.sizes.len() < self.limits.queue && start < MAX_QUEUE {
            write(&mut self.queue.bytes);
            let size = self.queue.bytes.len().saturating_sub(start);
            if self.queue.sizes.is_empty() {
                self.queue.since = now;
            }
            self.queue.sizes.push_back(size);
            true
        } else {
            self.counts.dropped = self.counts.dropped.saturating_add(1);
            false
        }
    }

    /// The bytes of an `ExportTraceServiceRequest` that is to be sent now, if there is one. To be
    /// asked at each tick, and again after [`Self::on_answer`]. Whoever gets bytes calls
    /// [`SERVICE`]`/`[`METHOD`] with them and reports by [`Self::on_answer`]; until then there are
    /// no others.
    pub fn poll(&mut self, now: Now) -> Option<&[u8]> {
        match &mut self.state {
            State::Sent { since } => {
                *since = now.min(*since);
                if now.since(*since) > self.limits.timeout.saturating_add(GRACE) {
                    self.on_answer(Answer::Retry, now);
                }
                None
            }
            State::Waiting { since, pause } => {
                *since = now.min(*since);
                if now.since(*since) < *pause {
                    return None;
                }
                self.counts.retries = self.counts.retries.saturating_add(1);
                self.state = State::Sent { since: now };
                Some(&self.batch.bytes)
            }
            State::Idle => {
                self.queue.since = now.min(self.queue.since);
                let waiting = self.queue.sizes.len();
                let due = waiting >= self.limits.batch
                    || now.since(self.queue.since) >= self.limits.interval;
                if waiting == 0 || !due {
                    return None;
                }
                self.fill(now);
                self.state = State::Sent { since: now };
                Some(&self.batch.bytes)
            }
        }
    }

    /// Time that the collector has for its answer to a batch.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Reports what became of the batch that [`Self::poll`] gave out. A call that could not even be
    /// made is an [`Answer::Retry`]. Without such a batch nothing happens: a late answer to a call
    /// that was given up is of no use.
    pub fn on_answer(&mut self, answer: Answer, now: Now) {
        if !matches!(self.state, State::Sent { .. }) {
            return;
        }
        let spans = self.batch.spans;
        match answer {
            Answer::Accepted { rejected } => {
                let rejected = rejected.min(spans);
                self.counts.rejected = self.counts.rejected.saturating_add(rejected);
                let taken = spans.saturating_sub(rejected);
                self.counts.exported = self.counts.exported.saturating_add(taken);
                self.state = State::Idle;
            }
            Answer::Retry if self.batch.failures < self.limits.retries => {
                let pause = self.pause();
                self.batch.failures = self.batch.failures.saturating_add(1);
                self.state = State::Waiting { since: now, pause };
            }
            Answer::Retry | Answer::Refused => {
                self.counts.failed = self.counts.failed.saturating_add(spans);
                self.state = State::Idle;
            }
        }
    }

    /// What became of spans so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Spans that wait, without those of the batch that is under way.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.sizes.len()
    }

    /// Moves the oldest spans into the batch.
    fn fill(&mut self, now: Now) {
        let mut bytes = 0_usize;
        let mut spans = 0_usize;
        for size in self.queue.sizes.iter().take(self.limits.batch) {
            bytes = bytes.saturating_add(*size);
            spans = spans.saturating_add(1);
            if bytes >= MAX_BATCH {
                break;
            }
        }
        self.batch.bytes.clear();
        let encoded = self.queue.bytes.get(..bytes).unwrap_or_default();
        self.head.write(&mut self.batch.bytes, encoded);
        self.batch.spans = spans as u64;
        self.batch.failures = 0;
        self.queue.bytes.drain(..bytes.min(self.queue.bytes.len()));
        self.queue.sizes.drain(..spans);
        self.queue.since = now;
    }

    /// Doubling from one second to thirty, of which a random part of up to a half is taken away.
    fn pause(&mut self) -> Duration {
        let whole = BACKOFF_BASE.saturating_mul(1 << self.batch.failures.min(5)).min(BACKOFF_MAX);
        // Xorshift: spreads calls, guards nothing.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let half = whole / 2;
        let share = u32::try_from(self.jitter % 1024).unwrap_or_default();
        half.saturating_add(half.saturating_mul(share) / 1024)
    }
}
