//! `pintle.wasm`: the shell around the pure crates, one context per request.
//!
//! ```text
//!   plugin    what Envoy calls outside of requests
//!     └ worker    tables, place among the workers, line to the agent      (ticks, queue, stream)
//!         └ service   one service: balancer, breakers, counts
//!   request   read, decide, apply                                         (headers, log)
//! ```
//! Whatever has a branch worth testing is decided in `balance`, `breaker`, `trace`, `policy` and
//! `sync`; what is here reads, asks them, and carries out. It is tested as a whole: in the harness
//! (`tests/wasm`) and on a real Envoy (`tests/e2e`).

#![expect(missing_docs, reason = "the SDK's macro makes a public function and no line about it")]

mod counters;
mod keys;
mod plugin;
mod request;
mod service;
mod worker;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(plugin::Plugin::default()));
}}
