//! What was on disk becomes state again.

use std::time::Duration;

use super::sources::KeyValue;
use super::{State, Work};
use crate::service::Raw;
use crate::update::{Moment, Source};

impl State {
    /// One value from disk, as if its source had just said it.
    pub(crate) fn restore_endpoint(
        &mut self,
        source: Source,
        (name, id): (&str, &str),
        value: &str,
        created: u64,
        now: Moment,
    ) {
        let mut work = Work::default();
        let held = KeyValue { bytes: value.as_bytes(), created, ..KeyValue::default() };
        // What is not good under today's configuration is not served from yesterday's disk.
        let _ = self.put_endpoint(source, (name, id), held, now, &mut work);
    }

    /// An endpoint that was held before a restart is held again.
    pub(crate) fn restore_departure(&mut self, name: &str, id: &str, value: &str, now: Moment) {
        let read = crate::entry::parse(name, id, value.as_bytes(), &self.settings.addresses);
        let Ok(endpoint) = read else { return };
        let model = self.services.entry(name.to_owned()).or_default();
        let (before, bytes) = (model.count(), model.bytes());
        model.restore_departure(endpoint, Raw::of(value.as_bytes()), now);
        self.total = self.total.saturating_sub(before).saturating_add(model.count());
        self.bytes = self.bytes.saturating_sub(bytes).saturating_add(model.bytes());
    }

    /// When an endpoint of the service last went untested, `ago` before now.
    pub(crate) fn restore_untested(&mut self, name: &str, ago: Duration, now: Moment) {
        let window = self.settings.protection.window;
        if let Some(model) = self.services.get_mut(name).filter(|_| ago < window) {
            model.remember_untested(now.mono.saturating_sub(ago));
        }
    }

    /// Who was about to go is so again.
    pub(crate) fn settle_restored(&mut self, names: &[String], now: Moment) {
        let mut work = Work { touched: names.iter().cloned().collect(), ..Work::default() };
        self.settle(now, &mut work);
    }

    pub(crate) fn restore_policy(&mut self, source: Source, name: &str, value: &str) {
        let mut work = Work::default();
        let held = KeyValue { bytes: value.as_bytes(), ..KeyValue::default() };
        let _ = self.put_policy(source, name, held, &mut work);
    }
}
