//! The servers: what proxies and people connect to.
//!
//! Proxies come over the unix socket ([`socket`]), or over TCP with mutual TLS where an operator
//! asked for it, and speak gRPC: the Watch stream ([`sync`]) and Envoy's endpoint discovery
//! ([`eds`]). People and Prometheus come to the admin address ([`admin`]), read-only but for one
//! confirmation.
//!
//! All of them read the same snapshots and the same [`crate::fleet::Fleet`]; none of them decides
//! anything about endpoints.

pub mod admin;
pub mod descriptors;
pub mod eds;
pub mod gate;
pub mod metrics;
pub mod page;
pub mod quota;
pub mod socket;
pub mod sync;
pub mod transport;
