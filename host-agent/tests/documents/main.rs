//! What users read, held against what it speaks of: pages, paths and links; the tables of keys.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test, helpers included"
)]

mod blocks;
mod configuration;
mod pages;
