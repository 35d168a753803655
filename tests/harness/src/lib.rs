//! A proxy-wasm host (ABI 0.2.1) on wasmtime: an Envoy with state, for testing any filter.
//!
//! The usual test double for a filter is a script: expect this host call, answer that. Such tests
//! spell out how the filter is written and break with every refactoring. This host has *state*
//! instead, the way Envoy has: headers that the filter reads and changes, shared data with
//! compare-and-swap, queues, metrics, a clock, gRPC servers that the test plays, and several
//! threads with a VM each. A test arranges the state, lets something happen, and looks at the state
//! afterwards; which host calls it took is the filter's own business (and can be counted, for those
//! who care what a request costs).
//!
//! Where a neat model and a real Envoy differ, this host does what Envoy 1.40 does, surprises
//! included: a set with a stale number creates an absent key, gauges wrap below zero, a queue calls
//! its last registrant only, request headers are out of reach in response callbacks, a stream opens
//! even while the server is down, a trapped VM stays dead until the next request and the main
//! thread's for ever. Everything is deterministic: time is virtual, randomness is seeded, threads
//! take turns, and nothing happens but in [`Envoy::settle`], [`Envoy::advance`] and the calls that
//! make requests.
//!
//! What can go wrong in Envoy can be made to: every import can fail with any status ([`Fault`]),
//! servers go down, VMs die, a neighbour writes into the shared data, the wall clock steps. What a
//! real Envoy answers with a crash is on record in [`Envoy::violations`].
//!
//! # Example
//!
//! ```
//! use pintle_harness::{Envoy, Module, Outcome, RequestBuilder};
//!
//! // A filter that adds `x-hello: world` to each request.
//! let wasm = wat::parse_str(r#"(module
//!     (import "env" "proxy_add_header_map_value"
//!         (func $add (param i32 i32 i32 i32 i32) (result i32)))
//!     (memory (export "memory") 1)
//!     (data (i32.const 16) "x-helloworld")
//!     (func (export "proxy_abi_version_0_2_1"))
//!     (func (export "malloc") (param i32) (result i32) (i32.const 1024))
//!     (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
//!         (call $add (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 23) (i32.const 5))))"#)?;
//! let module = Module::new(&wasm)?;
//! let mut envoy = Envoy::builder(&module).workers(2).build()?;
//!
//! let request = envoy.worker(1).request(RequestBuilder::get("svc", "/"));
//! assert!(request.continues());
//! assert_eq!(request.header("x-hello").as_deref(), Some("world"));
//! let response = envoy.finish(request, Outcome::ok("10.0.0.1:80"));
//! assert_eq!(response.status, Some(200));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The cast
//!
//! - [`Module`]: compiled once, shared by all tests. [`Builder`] → [`Envoy`]: the threads and their
//!   VMs.
//! - [`RequestBuilder`] → [`Worker::request`] → [`Request`] → [`Envoy::finish`] with an [`Outcome`]
//!   → [`Response`].
//! - [`Cluster`]: the test as a server, with [`ServerStream`], [`UnaryCall`] and [`HttpCall`].
//! - [`SharedDataHandle`], [`QueuesHandle`], [`MetricsHandle`]: state that VMs share, from outside.
//! - [`Fault`], [`Calls`]: failing and counting host calls.

mod abi;
mod builder;
mod envoy;
mod error;
mod faults;
mod headers;
mod hostcalls;
mod metrics;
mod module;
mod outcome;
mod property;
mod requests;
mod shared;
mod stream;
mod upstream;
mod vm;
mod world;

pub use abi::{Action, HostCall, LogLevel, Status, decode_pairs, encode_pairs};
pub use builder::{Builder, FailurePolicy, ForeignFunction};
pub use envoy::{Envoy, VmStats};
pub use error::Error;
pub use faults::{Calls, Fault};
pub use headers::Headers;
pub use metrics::{Histogram, MetricsHandle};
pub use module::Module;
pub use outcome::{Outcome, Response};
pub use property::Value;
pub use requests::Worker;
pub use shared::{QueuesHandle, SharedDataHandle};
pub use stream::{LocalReply, Request, RequestBuilder};
pub use upstream::{Cluster, HttpCall, ServerStream, UnaryCall};
pub use vm::{Thread, Trap};
pub use world::LogLine;
