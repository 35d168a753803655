//! The contract of agent and filters.
mod time;
mod types;
pub use time::Now;
pub use types::{Endpoint, Force, ForceAction, Health, Opinion, ParseVersionError, Table, Version};
/// Endpoints in one table, at most.
pub const MAX_ENDPOINTS: usize = 10_000;
