//! `pintle.wasm`: the shell around the pure crates, one context per request.
//!
//! ```text
//!   plugin    what Envoy calls outside of requests
//!     └ worker    one VM: its place, leadership              (ticks)
//!         ├ stream, tables, breakers, notes, spans           (stream, queue, shared data, calls)
//!         └ service   one service: balancer, breakers, counts
//!   streams   which root serves a request, and which of them are under way
//!   request   read, decide, apply                            (headers)
//!     ├ naming    whose request it is, what else the policy asks
//!     └ end, span     how it ended, who is charged, what its span says   (log)
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
mod streams;
mod worker;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|id| Box::new(plugin::Plugin { id }));
    pintle_hostcalls::streams::serve(streams::STREAMS);
}}
