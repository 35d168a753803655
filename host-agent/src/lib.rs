//! The host agent: what is registered and ordered, turned into what the filters read.

pub mod fleet;
pub mod link;
pub mod serve;
