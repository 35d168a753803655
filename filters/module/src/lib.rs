//! `pintle.wasm`: the shell around the pure crates, one context per request.
//!
//! ```text
//!   plugin    what Envoy calls outside of requests
//!     └ worker    one VM: the order of a tick
//!         ├ membership   this VM's slot and queue, and the other workers'
//!         ├ leadership   the lease, and what the leader keeps of the tables
//!         ├ uplink       the stream to the agent
//!         └ local        what requests use: services, breakers, tracer, counters
//!   service   one service: balancer, breakers, counts
//!   streams   which root serves a request, and which of them are under way
//!   request   read, decide, apply over a boundary                 (headers)
//!     ├ question, choice   whose request it is, and which endpoints may serve it
//!     ├ attempt            what the router's log says of an attempt      (log)
//!     └ end, span          how it ended, who is charged, what its span says   (delete)
//!   boundary  what a request needs of the proxy; `wasm`: by host calls
//! ```
//! Whatever has a branch worth testing is decided in `balance`, `breaker`, `trace`, `policy` and
//! `sync`; what is here reads, asks them, and carries out. It is tested as a whole: in the harness
//! (`tests/wasm`) and on a real Envoy (`tests/e2e`).

#![expect(missing_docs, reason = "the SDK's macro makes a public function and no line about it")]

mod boundary;
mod counters;
mod keys;
mod plugin;
mod request;
mod service;
mod streams;
mod token;
mod wasm;
mod worker;

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|id| Box::new(plugin::Plugin { id }));
    pintle_hostcalls::streams::serve(streams::STREAMS);
}}
