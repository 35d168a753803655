//! What the workers of one Envoy tell each other through shared data and queues.
//!
//! Neighbours with the same vm_id may write the same keys, so what is read back is as untrusted as
//! the stream.

use crate::wire::{Reader, Wire, wire_struct};
use crate::{DecodeError, Now, Version};

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

/// How busy one endpoint is, as one worker saw it with its last tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Stable hash of service and endpoint id.
    pub endpoint: u64,
    /// Requests in flight.
    pub in_flight: u32,
    /// Those of them whose response's head has not come.
    pub waiting: u32,
    /// Estimated latency, in microseconds.
    pub latency_us: u32,
    /// Failure score, in thousandths.
    pub failures_milli: u32,
    /// When it last answered; 0 while it did not.
    pub sampled_at: Now,
    /// Until when it asked to be left alone.
    pub retry_at: Now,
}
wire_struct!(Load {
    endpoint,
    in_flight,
    waiting,
    latency_us,
    failures_milli,
    sampled_at,
    retry_at,
});

/// What one worker knows of the load.
///
/// Not in its [`Slot`]: while a module is replaced, workers of both share the slots, so what a slot
/// looks like must not change with what is known of the load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// The VM that wrote it.
    pub worker: u64,
    /// By service, the endpoints with something to say.
    pub services: Vec<(String, Vec<Load>)>,
}
wire_struct!(Loads { worker, services });

/// A worker's place: its claim on a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The VM that holds the slot.
    pub worker: u64,
    /// When it wrote the slot.
    pub at: Now,
    /// Another VM may take the slot after that.
    pub expires_at: Now,
}

/// An endpoint's load as 0.1 has it in a slot.
struct FormerLoad;

impl Wire for FormerLoad {
    fn put(&self, _: &mut Vec<u8>) {}

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        (0..4).try_for_each(|_| u64::take(reader).map(drop))?;
        Ok(Self)
    }
}

impl Wire for Slot {
    fn put(&self, out: &mut Vec<u8>) {
        self.worker.put(out);
        self.at.put(out);
        self.expires_at.put(out);
        Vec::<(String, Vec<FormerLoad>)>::new().put(out);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (worker, at, expires_at) = (u64::take(reader)?, Now::take(reader)?, Now::take(reader)?);
        Vec::<(String, Vec<FormerLoad>)>::take(reader)?;
        Ok(Self { worker, at, expires_at })
    }
}
