//! The names of what the workers share. One prefix for all, because a neighbour's plugin may have
//! the same vm_id. Who reads and writes which is said at the head of each part of the worker.

/// The leader's lease.
pub(crate) const LEADER: &[u8] = b"pintle/leader";
/// The leader whose module sends on reports of any schema that the workers write; eight bytes,
/// little-endian.
pub(crate) const FITS: &[u8] = b"pintle/fits";
/// The leader whose agent tells only what is wanted; eight bytes, little-endian, or none.
pub(crate) const LAZY: &[u8] = b"pintle/lazy";
/// When the agent last spoke to the leader, in nanoseconds, little-endian.
pub(crate) const CONFIRMED: &[u8] = b"pintle/confirmed";
/// Which services have a table.
pub(crate) const INDEX: &[u8] = b"pintle/index";

/// The table of a service, as the frame that came from the agent; empty when it is gone.
pub(crate) fn table(service: &str) -> Vec<u8> {
    format!("pintle/t/{service}").into_bytes()
}

/// What changed of a service's table since the whole one was written, as a frame.
pub(crate) fn patch(service: &str) -> Vec<u8> {
    format!("pintle/p/{service}").into_bytes()
}

/// The breaker's record of an endpoint.
pub(crate) fn breaker(service: &str, endpoint: &str) -> Vec<u8> {
    format!("pintle/b/{service}/{endpoint}").into_bytes()
}

/// A worker's slot.
pub(crate) fn slot(number: u32) -> Vec<u8> {
    format!("pintle/w/{number}").into_bytes()
}

/// What the holder of that slot knows of the load.
pub(crate) fn load(number: u32) -> Vec<u8> {
    format!("pintle/l/{number}").into_bytes()
}

/// The queue that wakes the holder of that slot.
pub(crate) fn queue(number: u32) -> Vec<u8> {
    format!("pintle/q/{number}").into_bytes()
}
