//! The servers: what proxies and people connect to.
//!
//! Proxies come over the unix socket ([`socket`]), or over TCP with mutual TLS where an operator
//! asked for it, and speak gRPC: the Watch stream ([`sync`]) and Envoy's discovery of endpoints
//! ([`eds`]) and clusters ([`clusters`]). People and Prometheus come to the admin address
//! ([`admin`]), read-only but for one confirmation.
//!
//! All of them read the same snapshots and the same [`crate::fleet::Fleet`]; none of them decides
//! anything about endpoints.

pub(crate) mod admin;
pub(crate) mod clusters;
pub(crate) mod descriptors;
pub(crate) mod eds;
pub(crate) mod gate;
pub(crate) mod interest;
mod messages;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod quota;
pub(crate) mod recall;
pub(crate) mod socket;
pub(crate) mod sync;
pub(crate) mod transport;
mod wakes;
