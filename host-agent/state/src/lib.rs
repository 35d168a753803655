//! The agent's state, pure: updates in, an immutable snapshot out.
//!
//! [`State`] owns everything that the agent knows; [`Update`] is everything that can happen to it and
//! [`Snapshot`] everything that anybody may read of it. No socket, no clock, no task: a [`Moment`] is an
//! argument, so that every rule about time (removals held, overlays ended) is tested by saying what
//! time it is. Input is bounded and never trusted ([`entry`], [`event`], [`json`]): what is wrong is
//! refused with a reason, and everything beside it is kept.

mod agenda;
pub mod entry;
pub mod event;
pub mod json;
mod overlay;
mod restore;
mod saved;
mod service;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod update;

pub use overlay::MAX_OPINIONS;
pub use saved::{Saved, SavedEffect, SavedKey, SavedOverlay, SavedService, SavedStream};
pub use snapshot::{Held, Overlay, PolicyLayer, Rejected, Service, Snapshot};
pub use state::{GAVE_WAY, MAX_TOTAL, State, show};
pub use update::{
    BadPolicy, Change, Changes, Item, Listing, Moment, Notice, Outcome, PolicyCheck, Protection,
    Settings, Source, Told, Trial, Tried, Unread, UnreadKey, Update, now_of,
};
