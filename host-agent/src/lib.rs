//! The host agent: what is registered and ordered, turned into what the filters read.

mod disk;
pub mod events;
pub mod link;
pub mod publish;
pub mod registry;
pub mod source;
