//! The agent's state, pure: updates in, an immutable snapshot out.

mod snapshot;

pub use snapshot::{Held, Overlay, Rejected, Service, Snapshot};
