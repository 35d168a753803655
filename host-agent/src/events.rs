//! Events for people and agents: the format is [`pintle_state::event`]; publishing and dead letters are here.
pub use pintle_state::event::{Action, Draft, Event, MAX_TTL, MIN_TTL, Target};
