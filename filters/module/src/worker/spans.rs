//! Batches of spans on their way to the collector.

use super::*;

impl Worker {
    pub(super) fn export(&mut self, now: Now) {
        let (Some(exporter), Some(trace)) = (&mut self.exporter, &self.config.trace) else {
            return;
        };
        let Some(export) = trace.export() else { return };
        let before = exporter.counts();
        if let Some(batch) = exporter.poll(now) {
            let (service, method) = (pintle_trace::SERVICE, pintle_trace::METHOD);
            match host::grpc_call(&export.cluster, service, method, batch, export.timeout) {
                Ok(token) => self.export_call = Some(token),
                Err(_) => exporter.on_answer(Answer::Retry, now),
            }
        }
        let after = exporter.counts();
        self.count_spans(before, after);
    }

    /// The collector's answer to a batch.
    pub(crate) fn on_call_answer(&mut self, token: u32, status: u32, size: usize) {
        if self.export_call != Some(token) {
            return;
        }
        self.export_call = None;
        let response =
            if status == 0 { host::grpc_message(size).unwrap_or_default() } else { Vec::new() };
        let Some(exporter) = &mut self.exporter else { return };
        let before = exporter.counts();
        let now = host::now();
        exporter.on_answer(Answer::from_grpc(status, &response), now);
        let after = exporter.counts();
        self.count_spans(before, after);
        // The next full batch at once: with one a tick, more than 5,000 spans a second would be lost.
        if status == 0 {
            self.export(now);
        }
    }

    pub(crate) fn count_spans(
        &mut self,
        before: pintle_trace::Counts,
        after: pintle_trace::Counts,
    ) {
        let lost =
            |c: pintle_trace::Counts| c.dropped.saturating_add(c.failed).saturating_add(c.rejected);
        self.counters.add_many(Count::SpanDropped, lost(after).saturating_sub(lost(before)));
        self.counters.add_many(Count::SpanExported, after.exported.saturating_sub(before.exported));
    }
}
