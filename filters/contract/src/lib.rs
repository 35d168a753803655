//! THE CONTRACT of agent and filters: what they tell each other, and the exact bytes.
//!
//! Everything that crosses a boundary is here and nothing else is: tables down the Watch stream
//! ([`Down`]), reports up ([`Up`]), what the workers of one Envoy share ([`Slot`], [`Index`],
//! [`Lease`], [`Note`]). No I/O, no clock, no opinion about what to do with any of it.
//!
//! Every message is one frame (see [`Message`]). Decoding is total: any bytes give a message or a
//! [`DecodeError`], at a cost bounded by their length; equal messages encode to equal bytes. The
//! schema number changes when a layout does ([`Schema`]), and agent and module speak the older of
//! two for one release; `tests/golden.rs` holds the bytes of all.
//!
//! Bounds: a frame 8 MiB, a table 10,000 endpoints, a policy 64 KiB, a name 253 of
//! `[A-Za-z0-9._:%-]`, 64 tags and 64 metadata entries an endpoint, 4 KiB of text each.

mod address;
mod frame;
mod name;
mod patch;
mod report;
mod shared;
mod time;
mod types;
mod want;
mod wire;

pub use address::{AddressError, AddressPolicy, Cidr, ParseCidrError};
pub use frame::{Down, Initial, Message, Note, Removed, Schema, Up};
pub use name::{encode_name, is_name};
pub use patch::Patch;
pub use report::{
    Applied, BreakerState, EndpointReport, Hello, LATENCY_BUCKETS_MS, METHODS, Report,
    RequestCount, ServiceReport, Transition,
};
pub use shared::{Index, Lease, Load, Loads, Slot};
pub use time::{Now, nanos};
pub use types::{Endpoint, Force, ForceAction, Health, Opinion, ParseVersionError, Table, Version};
pub use want::Want;
pub use wire::DecodeError;

/// Bytes of one frame, at most.
pub const MAX_FRAME: usize = 8 << 20;
/// Endpoints in one table, at most.
pub const MAX_ENDPOINTS: usize = 10_000;
/// Bytes of a policy's JSON, at most.
pub const MAX_POLICY: usize = 64 << 10;
/// Characters of a service's name or an endpoint's id, at most (a DNS name's length).
pub const MAX_NAME: usize = 253;
/// An endpoint's weight, at most.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Tags of an endpoint, at most; likewise metadata entries.
pub const MAX_LABELS: usize = 64;
/// Bytes of a tag, a metadata key, a metadata value or a zone, at most.
pub const MAX_LABEL: usize = 4 << 10;
