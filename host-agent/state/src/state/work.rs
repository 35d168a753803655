//! What one update changes, and whom it concerns.

use std::collections::BTreeSet;

use crate::update::{Changes, Notice};

/// Notices of one update: a listing of broken values must not become a flood of lines.
const MAX_NOTICES: usize = 32;

/// What one update collects.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) changes: Changes,
    /// Services whose table may be another.
    pub(super) dirty: BTreeSet<String>,
    /// Services of which somebody may have to be held, or let go.
    pub(super) touched: BTreeSet<String>,
}

impl Work {
    pub(super) fn notice(
        &mut self,
        kind: &'static str,
        service: &str,
        endpoint: Option<&str>,
        text: String,
        alarm: bool,
    ) {
        self.push(Notice {
            kind,
            service: Some(service.to_owned()),
            endpoint: endpoint.map(ToOwned::to_owned),
            text,
            alarm,
        });
    }

    pub(super) fn push(&mut self, notice: Notice) {
        if notice.alarm || self.changes.notices.len() < MAX_NOTICES {
            self.changes.notices.push(notice);
            self.changes.notices.truncate(MAX_NOTICES.saturating_mul(2));
        }
    }
}
