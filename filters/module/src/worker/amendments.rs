//! What changed of large tables since they lay whole in shared data, as their leader keeps it.
//!
//! Of ten thousand endpoints one changes ten times a second, and to write all of them anew each
//! time keeps requests of this worker waiting. So patches gather beside the whole table, as one,
//! and are brought into it once a second, or as soon as they name [`Patch::LARGE`] endpoints:
//!
//! ```text
//!   pintle/t/{service}  table 7 ───────────────────────────────▶ table 10
//!   pintle/p/{service}            7 to 8 · 7 to 9 · 7 to 10 ──── (stays) ──▶ 10 to 11
//! ```
//! Whoever holds a table from 7 to 9 comes to 10 by what is gathered; who holds none reads both.
//! A module that knows no patches is behind by that second.
//!
//! Keys: `pintle/t/{service}` and `pintle/p/{service}`, written by the leader.

use std::collections::BTreeMap;

use pintle_contract::{Down, Message as _, Patch, Version};
use pintle_hostcalls as host;

use crate::counters::{Count, Counters};
use crate::keys;

/// By service; of those that are changed by patches.
#[derive(Default)]
pub(crate) struct Amendments {
    open: BTreeMap<String, Open>,
}

struct Open {
    /// Of the table that lies whole in shared data.
    whole: Version,
    /// What leads from there to the newest.
    gathered: Option<Patch>,
}

impl Amendments {
    /// Another VM may have written since: what lies in shared data is read again.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }

    /// Lets the other workers find what changed. `false`: it is of a table that does not lie there.
    pub(crate) fn add(&mut self, patch: &Patch, counters: &mut Counters) -> bool {
        let name = patch.service.as_str();
        let Some(Open { whole, gathered }) = self.open.remove(name).or_else(|| find(name)) else {
            return false;
        };
        let gathered = match gathered {
            Some(before) => before.then(patch),
            None => (whole == patch.from).then(|| patch.clone()),
        };
        let Some(gathered) = gathered else { return false };
        let much = gathered.endpoints.len().saturating_add(gathered.gone.len()) >= Patch::LARGE;
        let frame = Down::Patch(gathered.clone()).encode();
        if host::set_shared_data(&keys::patch(name), &frame, None).is_err() {
            counters.add(Count::HostError);
            return false;
        }
        let mut open = Open { whole, gathered: Some(gathered) };
        let written = !much || settle(name, &mut open, counters);
        if written {
            self.open.insert(name.to_owned(), open);
        }
        written
    }

    /// Brings what has gathered into the whole tables.
    pub(crate) fn settle(&mut self, counters: &mut Counters) {
        self.open.retain(|name, open| settle(name, open, counters));
    }

    /// A whole table came, or none is there any more: whoever holds the one before must not stop at
    /// what was gathered.
    pub(crate) fn forget(&mut self, name: &str, counters: &mut Counters) {
        self.open.remove(name);
        if host::set_shared_data(&keys::patch(name), b"", None).is_err() {
            counters.add(Count::HostError);
        }
    }

    /// Whether patches have come of this service.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.open.contains_key(name)
    }
}

/// What leads to the newest table of a service, if it came as patches.
pub(crate) fn gathered(name: &str) -> Option<Patch> {
    let (bytes, _) = host::shared_data(&keys::patch(name)).ok()?;
    match Down::decode(&bytes) {
        Ok(Down::Patch(patch)) if patch.service == name => Some(patch),
        _ => None,
    }
}

fn find(name: &str) -> Option<Open> {
    let (bytes, _) = host::shared_data(&keys::table(name)).ok()?;
    let (_, whole) = Down::table_head(&bytes).ok().filter(|(service, _)| *service == name)?;
    Some(Open { whole, gathered: gathered(name).filter(|patch| patch.from == whole) })
}

/// Whether the whole table is the newest now.
fn settle(name: &str, open: &mut Open, counters: &mut Counters) -> bool {
    let Some(patch) = open.gathered.take() else { return true };
    let key = keys::table(name);
    let whole = host::shared_data(&key).ok().and_then(|(bytes, _)| patch.apply(&bytes).ok());
    let written = whole.is_some_and(|whole| host::set_shared_data(&key, &whole, None).is_ok());
    if written {
        open.whole = patch.version;
    } else {
        counters.add(Count::HostError);
    }
    written
}
