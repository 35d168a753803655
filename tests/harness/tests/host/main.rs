//! The harness against small guests: each claim is a sentence about a real Envoy.
//!
//! Guests are WebAssembly text, a handful of lines each, so that what a test asserts about the host
//! cannot be an accident of an SDK. What a guest learns it notes in gauges, which the test reads.

mod faults;
mod guest;
mod requests;
mod shared;
mod upstream;
mod vms;
