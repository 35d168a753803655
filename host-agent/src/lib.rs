//! The host agent: what is registered and ordered, turned into what the filters read.

pub mod cli;
mod condition;
pub mod config;
mod disk;
pub mod events;
mod exit;
mod fleet;
pub mod link;
mod log_level;
mod logs;
mod nearest;
mod probe;
mod publish;
pub mod registration;
mod run;
mod serve;
pub mod source;
mod tasks;
mod updates;
mod words;
