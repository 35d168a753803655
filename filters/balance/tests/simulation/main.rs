//! Selection in virtual time: every scenario of `cargo xtask bench tail`, fairness, and a fleet.
//!
//! Real latencies on a shared machine can't pin a threshold of one per mille; a discrete-event run
//! can, and it repeats from its seed.
//!
//! `cargo test -p pintle-balance --test simulation -- --nocapture` prints the tables.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: what panics here is a failing test"
)]

mod fairness;
mod figures;
mod fleet;
mod grid;
mod kinds;
mod limit;
mod tail;
mod world;
