//! What stands beside the tables, for people: refusals, removals held, overlays.
//!
//! Every list is bounded and copied with the snapshot; the counters, which are not bounded by
//! anything, live in the agent. Text from outside passes [`show`] before it is kept, so that no
//! reader of it, a log, a terminal or a page, has to think of control characters.

use std::collections::BTreeSet;

use super::{MAX_LISTED, State, Work};
use crate::entry::Reject;
use crate::overlay::{Key, Slot};
use crate::snapshot::{Held, Overlay, Rejected};
use crate::update::{Moment, Notice, Unread};

impl State {
    pub(super) fn reject(
        &mut self,
        source: &'static str,
        key: &[u8],
        reject: &Reject,
        now: Moment,
        work: &mut Work,
    ) {
        self.refuse(source, key, reject.reason(), reject.to_string(), now, work);
    }

    pub(super) fn refuse(
        &mut self,
        source: &'static str,
        key: &[u8],
        reason: &'static str,
        detail: String,
        now: Moment,
        work: &mut Work,
    ) {
        let detail = show(detail.as_bytes());
        let rejected = Rejected { source, key: show(key), reason, detail, at: now.wall };
        let text = format!("refused {}: {}", rejected.key, rejected.detail);
        // A registry or a file that is read again says the same again, and nobody need hear it
        // twice.
        if !self.refusals.add(rejected) {
            return;
        }
        work.changes.refused.push((source, reason));
        work.changes.meta = true;
        let kind = if source == "event" { "event" } else { "registry" };
        work.push(Notice { kind, service: None, endpoint: None, text, alarm: true });
    }

    /// Keys of other frameworks, which their source reads.
    pub(super) fn take_unread(&mut self, unread: Unread, now: Moment, work: &mut Work) {
        const SOURCE: &str = "foreign";
        if unread.whole {
            let keys: BTreeSet<String> = unread.refused.iter().map(|it| show(&it.key)).collect();
            work.changes.meta |=
                self.refusals.retain(|source, key| source != SOURCE || keys.contains(key));
        }
        for key in &unread.read {
            self.accept(SOURCE, key, work);
        }
        for it in unread.refused {
            self.refuse(SOURCE, &it.key, it.reason, it.detail, now, work);
        }
    }

    /// What was refused before is good or gone now.
    pub(super) fn accept(&mut self, source: &'static str, key: &[u8], work: &mut Work) {
        if !self.refusals.is_empty() {
            work.changes.meta |= self.refusals.remove(source, show(key));
        }
    }

    pub(super) fn list_held(&self, now: Moment) -> Vec<Held> {
        let mut list = Vec::new();
        for name in &self.holding {
            let Some(model) = self.services.get(name) else {
                continue;
            };
            let room = MAX_LISTED.saturating_mul(10).saturating_sub(list.len());
            list.extend(model.held_back(room).into_iter().map(|held| Held {
                service: name.clone(),
                endpoint: held.endpoint,
                since: held.since,
                reason: held.reason.to_owned(),
                until: held.until.map(|at| now.wall_after(at.saturating_sub(now.mono))),
            }));
        }
        list
    }

    pub(super) fn list_rejected(&self) -> Vec<Rejected> {
        self.refusals.list()
    }

    /// Orders first: there may be more opinions than are listed.
    pub(super) fn list_overlays(&self) -> Vec<Overlay> {
        let is_order = |(_, key, _): &(&str, &Key, &Slot)| !matches!(key, Key::Reporter { .. });
        let orders = self.overlays.iter().filter(is_order);
        let opinions = self.overlays.iter().filter(|slot| !is_order(slot));
        let in_force = orders.chain(opinions).filter_map(|(service, key, slot)| {
            let (kind, action) = slot.effect.as_ref()?.describe(key);
            Some(Overlay {
                kind,
                service: service.to_owned(),
                endpoint: key.endpoint().map(ToOwned::to_owned),
                action,
                source: show(slot.source.as_bytes()),
                until: slot.until_wall,
            })
        });
        in_force.take(MAX_LISTED).collect()
    }
}

/// Characters of a text that is shown.
const SHOWN: usize = 256;
/// What ends one that was longer.
const CUT: &str = " ...";

/// Bytes from outside, made safe to show: one line, no control characters, at most 256 characters.
/// A longer one is cut between two words where it has some, and says so.
#[must_use]
pub fn show(bytes: &[u8]) -> String {
    let head = bytes.get(..1024).unwrap_or(bytes);
    let text = String::from_utf8_lossy(head);
    let safe = text.chars().map(|c| {
        // Marks that reorder or hide text are as bad in a terminal as control characters.
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if c.is_control() || hidden { '\u{fffd}' } else { c }
    });
    let mut shown: String = safe.take(SHOWN).collect();
    if shown.chars().count() == SHOWN && (text.chars().count() > SHOWN || head.len() < bytes.len())
    {
        let end = shown.char_indices().nth(SHOWN - CUT.len()).map_or(shown.len(), |(at, _)| at);
        let word = shown.get(..end).and_then(|text| text.rfind(' ')).filter(|at| *at > end / 2);
        shown.truncate(word.unwrap_or(end));
        shown.push_str(CUT);
    }
    shown
}
