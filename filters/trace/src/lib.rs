//! Trace propagation, sampling and spans, as pure functions over bytes.
//!
//! Three steps, each usable alone. [`propagate`] turns a request's headers into a [`Context`] and a
//! few header [`Edits`], on the way in. [`Span`] is what is known when the request is done, and
//! [`Exporter`] encodes it at once into OTLP's protobuf form, queues the bytes and hands out
//! batches with back-off. Nothing here knows a clock, a socket or the proxy: time comes as [`Now`],
//! ids from the caller's generator, headers as byte slices.
//!
//! ```
//! use pintle_trace::{Config, Edit, Edits, Policy, propagate};
//! use rand::{SeedableRng, rngs::StdRng};
//! use serde_json::json;
//!
//! let config: Config = pintle_settings::read("trace", json!({"participate": true}))?;
//! let caller: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
//! let headers: [(&[u8], &[u8]); 1] = [(b"traceparent", caller)];
//! let (mut dice, mut edits) = (StdRng::seed_from_u64(1), Edits::new());
//! let context = propagate(&config, &Policy::default(), headers, &mut dice, &mut edits);
//!
//! assert!(context.sampled && !context.new_root);          // the caller's trace goes on,
//! let sent = edits.iter().find_map(|edit| match edit {
//!     Edit::Set { name: "traceparent", value } => Some(value.to_vec()),
//!     _ => None,
//! });
//! let sent = sent.ok_or("no traceparent")?;
//! assert_eq!(sent.get(..36), caller.get(..36));
//! assert_ne!(sent, caller);                               // with the proxy as the parent
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Now`]: pintle_contract::Now

mod b3;
mod baggage;
mod carrier;
mod context;
mod datadog;
mod edits;
mod export;
mod format;
mod grpc;
mod hex;
mod jaeger;
mod kept;
mod otlp;
mod policy;
mod propagate;
mod proto;
mod sample;
mod span;
mod tracestate;
mod w3c;
mod xray;

pub use context::{Context, Link};
pub use edits::{Edit, Edits, is_field_value};
pub use export::{Answer, Counts, Exporter, METHOD, SERVICE};
pub use format::{Format, FormatSet};
pub use kept::Kept;
pub use policy::{Boundary, Config, Direction, Export, Policy, Spans};
pub use propagate::propagate;
pub use sample::Ratio;
pub use span::{Attempt, Decision, Outcome, Span};
