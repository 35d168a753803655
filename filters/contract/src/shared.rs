//! What the workers of one Envoy tell each other through shared data and queues.
//!
//! Neighbours with the same vm_id may write the same keys, so what is read back is as untrusted as the
//! stream.

use crate::wire::wire_struct;
use crate::{Now, Version};

/// The leader's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The VM that leads.
    pub worker: u64,
    /// The slot of its queue.
    pub slot: u32,
    /// Leads until then, unless renewed.
    pub expires_at: Now,
    /// Grows by one with every change of leader.
    pub fence: u64,
}
wire_struct!(Lease { worker, slot, expires_at, fence });

/// Which services have a table, and how new each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The newest version of all.
    pub version: Version,
    /// Sorted by name.
    pub services: Vec<(String, Version)>,
}
wire_struct!(Index { version, services });

/// How busy one endpoint is, as one worker saw it when it wrote its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Stable hash of service and endpoint id.
    pub endpoint: u64,
    /// Requests in flight.
    pub in_flight: u32,
    /// Estimated latency, in microseconds.
    pub latency_us: u32,
    /// Failure score, in thousandths.
    pub failures_milli: u32,
}
wire_struct!(Load { endpoint, in_flight, latency_us, failures_milli });

/// A worker's place: its claim on a queue, and its view of the load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The VM that holds the slot.
    pub worker: u64,
    /// When it wrote the slot.
    pub at: Now,
    /// Another VM may take the slot after that.
    pub expires_at: Now,
    /// By service, the endpoints with something to say.
    pub load: Vec<(String, Vec<Load>)>,
}
wire_struct!(Slot { worker, at, expires_at, load });
