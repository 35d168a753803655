//! The host agent: what is registered and ordered, turned into what the filters read.

pub mod cli;
pub mod condition;
pub mod config;
mod disk;
pub mod events;
mod exit;
pub mod fleet;
pub mod link;
pub mod log_level;
pub mod logs;
mod probe;
pub mod publish;
pub mod registration;
pub mod run;
pub mod serve;
pub mod source;
pub mod tasks;
pub mod updates;
