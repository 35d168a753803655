//! The contract of agent and filters.
mod time;
pub use time::Now;
