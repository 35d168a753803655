//! The agent's state, pure: updates in, an immutable snapshot out.
//!
//! [`State`] owns everything that the agent knows; [`Update`] is everything that can happen to it
//! and [`Snapshot`] everything that anybody may read of it. No socket, no clock, no task: a
//! [`Moment`] is an argument, so that every rule about time (removals held, overlays ended) is
//! tested by saying what time it is. Input is bounded and never trusted ([`entry`], [`event`],
//! [`json`]): what is wrong is refused with a reason, and everything beside it is kept.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use pintle_state::{Change, Moment, Protection, Settings, Source, State, Update};
//!
//! let now = Moment { wall: SystemTime::UNIX_EPOCH, mono: Duration::ZERO };
//! let mut state = State::new(Settings {
//!     agent: "edge-1".into(),
//!     epoch: 1_700_000_000_000,
//!     services: "/services/".into(),
//!     policies: "/pintle/policies/".into(),
//!     addresses: pintle_contract::AddressPolicy::default(),
//!     budget: 128 << 20,
//!     protection: Protection::default(),
//!     decides: Source::Registry,
//!     check_policy: |_| Ok(()),
//!     demand: |_, _| pintle_balance::Demand::default(),
//!     vm_budget: 256 << 20,
//! });
//! let value = r#"{"name": "orders", "id": "orders-1", "address": "10.0.7.4", "port": 8001,
//!     "health": "healthy"}"#;
//! let key = b"/services/orders/orders-1".to_vec();
//! let put = Change { key, value: Some(value.into()), revision: 7, created: 7, lease: 1 };
//! let changes = state.apply(Update::Changes(vec![put]), now);
//! assert_eq!(changes.services, ["orders"]);               // whose tables have to be made anew
//!
//! state.publish(changes.services.iter().map(String::as_str), true, now);
//! let orders = &state.snapshot().services["orders"];      // what proxies and people are told
//! assert_eq!(orders.table.endpoints.len(), 1);
//! ```

mod agenda;
mod demands;
pub mod entry;
pub mod event;
pub mod json;
mod overlay;
mod published;
mod restore;
mod saved;
mod service;
mod services;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod update;

pub use overlay::MAX_OPINIONS;
pub use published::{Frame, Patched, PolicyLayer, Service};
pub use saved::{
    Saved, SavedEffect, SavedKey, SavedOverlay, SavedService, SavedStream, SavedValue,
};
pub use services::Services;
pub use snapshot::{Held, Overlay, Rejected, Snapshot};
pub use state::{GAVE_WAY, MAX_TOTAL, State, show};
pub use update::{
    BadPolicy, Change, Changes, Item, Listed, Listing, Moment, Notice, Outcome, Page, PolicyCheck,
    PolicyDemand, Protection, Settings, Source, Told, Trial, Tried, Unread, UnreadKey, Update,
    now_of,
};
