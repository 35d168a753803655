//! The names of what the workers share. One prefix for all, because a neighbour's plugin may have the
//! same vm_id.

/// The leader's lease.
pub(crate) const LEADER: &[u8] = b"pintle/leader";
/// When the agent last spoke to the leader, in nanoseconds, little-endian.
pub(crate) const CONFIRMED: &[u8] = b"pintle/confirmed";
/// Which services have a table.
pub(crate) const INDEX: &[u8] = b"pintle/index";

/// The table of a service, as the frame that came from the agent; empty when it is gone.
pub(crate) fn table(service: &str) -> Vec<u8> {
    format!("pintle/t/{service}").into_bytes()
}

/// The breaker of an endpoint.
pub(crate) fn breaker(service: &str, endpoint: &str) -> Vec<u8> {
    format!("pintle/b/{service}/{endpoint}").into_bytes()
}

/// A worker's place.
pub(crate) fn slot(number: u32) -> Vec<u8> {
    format!("pintle/w/{number}").into_bytes()
}

/// The queue of that place.
pub(crate) fn queue(number: u32) -> Vec<u8> {
    format!("pintle/q/{number}").into_bytes()
}

// Paths of properties.

pub(crate) const VM_ID: &[u8] = b"plugin_vm_id";
pub(crate) const NODE_ID: &[u8] = b"xds\0node\0id";
pub(crate) const ZONE: &[u8] = b"xds\0node\0locality\0zone";
pub(crate) const CLUSTER: &[u8] = b"xds\0cluster_name";
pub(crate) const CLUSTER_SERVICE: &[u8] =
    b"xds\0cluster_metadata\0filter_metadata\0pintle\0service";
pub(crate) const ROUTE_SERVICE: &[u8] = b"xds\0route_metadata\0filter_metadata\0pintle\0service";
/// With the metadata key of a subset behind it.
pub(crate) const ROUTE_SUBSET: &[u8] = b"xds\0route_metadata\0filter_metadata\0pintle\0subset\0";
pub(crate) const SOURCE_ADDRESS: &[u8] = b"source\0address";
pub(crate) const UPSTREAM_ADDRESS: &[u8] = b"upstream\0address";
pub(crate) const ATTEMPTS: &[u8] = b"upstream\0request_attempt_count";
pub(crate) const CODE: &[u8] = b"response\0code";
pub(crate) const FLAGS: &[u8] = b"response\0flags";
pub(crate) const DETAILS: &[u8] = b"response\0code_details";
pub(crate) const GRPC_STATUS: &[u8] = b"response\0grpc_status";
pub(crate) const BACKEND_LATENCY: &[u8] = b"response\0backend_latency";
