//! Trace propagation, sampling and spans, as pure functions over bytes.
//!
//! Three steps, each usable alone. [`propagate`] turns a request's headers into a [`Context`] and a
//! few header [`Edits`], on the way in. [`Span`] is what is known when the request is done, and
//! [`Exporter`] encodes it at once into OTLP's protobuf form, queues the bytes and hands out batches
//! with back-off. Nothing here knows a clock, a socket or the proxy: time comes as [`Now`], ids from
//! the caller's generator, headers as byte slices.
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
