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
wire_struct!(Lease {
    worker,
    slot,
    expires_at,
    fence
});

/// Which services have a table, and how new each is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The newest version of all.
    pub version: Version,
    /// Sorted by name.
    pub services: Vec<(String, Version)>,
}
wire_struct!(Index { version, services });

/// How busy one endpoint is, as one worker sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Stable hash of service and endpoint id.
    pub endpoint: u64,
    /// Requests in flight.
    pub in_flight: u32,
    /// Estimated latency at `at`, in nanoseconds.
    pub latency_ns: u64,
    /// When the estimate was made.
    pub at: Now,
}
wire_struct!(Load {
    endpoint,
    in_flight,
    latency_ns,
    at
});

/// A worker's place: its claim on a queue, and its view of the load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The VM that holds the slot.
    pub worker: u64,
    /// Another VM may take the slot after that.
    pub expires_at: Now,
    /// By service, the endpoints with something to say.
    pub load: Vec<(String, Vec<Load>)>,
}
wire_struct!(Slot {
    worker,
    expires_at,
    load
});
