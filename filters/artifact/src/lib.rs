//! `pintle.wasm`, built from the sources as they are now, for tests, benches and the distribution.
//!
//! Depend on this package and never on a file that some earlier command left behind: what is tested
//! here is what was just written.

/// The module's bytes.
pub const PINTLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pintle.wasm"));

/// Where the module lies, for an Envoy that loads it by file name.
pub const PINTLE_PATH: &str = concat!(env!("OUT_DIR"), "/pintle.wasm");
