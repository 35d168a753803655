//! What traces keep in a VM: the edits of the current request, and spans on their way to the
//! collector.
//!
//! Keys: none.

use std::hash::{BuildHasher, RandomState};

use pintle_contract::Now;
use pintle_hostcalls::{self as host, Level};
use pintle_policy::Config;
use pintle_trace::{Answer, Counts, Edits, Export, Exporter, Span};
use rand::Rng;

use crate::counters::{Count, Counters};

/// The tracing half of a worker.
pub(crate) struct Tracer {
    /// What the last request's headers were changed to; reused from one to the next.
    pub(crate) edits: Edits,
    /// Whether the last request brought a trace context, as the next one then probably does.
    pub(crate) continued: bool,
    exporter: Option<Exporter>,
    /// Of each call to the collector.
    headers: Vec<(Box<str>, String)>,
    /// The call that carries the exporter's batch.
    call: Option<u32>,
}

impl Tracer {
    pub(crate) fn new(config: &Config) -> Self {
        let seed = RandomState::new().hash_one(1u8);
        let exporter = config.trace.as_ref().and_then(|trace| Exporter::new(trace, seed));
        let export = config.trace.as_ref().and_then(|trace| trace.export());
        let headers = export.map(headers).unwrap_or_default();
        Self { edits: Edits::new(), continued: false, exporter, headers, call: None }
    }

    /// Queues a span. Of a full queue one is dropped and counted.
    pub(crate) fn push<R: Rng>(
        &mut self,
        span: &Span<'_>,
        rng: &mut R,
        now: Now,
        counters: &mut Counters,
    ) {
        let Some(exporter) = &mut self.exporter else { return };
        let before = exporter.counts();
        if !exporter.push(span, rng, now) {
            count(before, exporter.counts(), counters);
        }
    }

    /// Sends a batch if one is due.
    pub(crate) fn export(&mut self, config: &Config, now: Now, counters: &mut Counters) {
        let (Some(exporter), Some(trace)) = (&mut self.exporter, &config.trace) else { return };
        let Some(export) = trace.export() else { return };
        let before = exporter.counts();
        if let Some(batch) = exporter.poll(now) {
            let (service, method) = (pintle_trace::SERVICE, pintle_trace::METHOD);
            let headers = self.headers.iter().map(|(name, value)| (&**name, value.as_bytes()));
            let headers = headers.collect();
            match host::grpc_call(&export.cluster, service, method, headers, batch, export.timeout)
            {
                Ok(token) => self.call = Some(token),
                Err(_) => exporter.on_answer(Answer::Retry, now),
            }
        }
        count(before, exporter.counts(), counters);
    }

    /// The collector's answer to a batch.
    pub(crate) fn on_answer(
        &mut self,
        (token, status, size): (u32, u32, usize),
        config: &Config,
        now: Now,
        counters: &mut Counters,
    ) {
        if self.call != Some(token) {
            return;
        }
        self.call = None;
        let response =
            if status == 0 { host::grpc_message(size).unwrap_or_default() } else { Vec::new() };
        let Some(exporter) = &mut self.exporter else { return };
        let before = exporter.counts();
        exporter.on_answer(Answer::from_grpc(status, &response), now);
        count(before, exporter.counts(), counters);
        // The next full batch at once: with one a tick, more than 5,000 spans a second would be
        // lost.
        if status == 0 {
            self.export(config, now, counters);
        }
    }
}

/// Reads the values, which Envoy's `host_env_keys` pass. Without one the header is left out, and
/// said so.
fn headers(export: &Export) -> Vec<(Box<str>, String)> {
    let header = |(name, variable): &(Box<str>, Box<str>)| {
        let value = std::env::var(&**variable).ok();
        let is_text = |value: &String| {
            !value.is_empty() && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        };
        let value = value.filter(is_text);
        if value.is_none() {
            let what = format!(
                "pintle: no header {name} for the collector: {variable} is not passed by \
                 host_env_keys, or no text"
            );
            host::log(Level::Warn, &what);
        }
        Some((name.clone(), value?))
    };
    export.headers.iter().filter_map(header).collect()
}

fn count(before: Counts, after: Counts, counters: &mut Counters) {
    let lost = |c: Counts| c.dropped.saturating_add(c.failed).saturating_add(c.rejected);
    counters.add_many(Count::SpanDropped, lost(after).saturating_sub(lost(before)));
    counters.add_many(Count::SpanExported, after.exported.saturating_sub(before.exported));
}
