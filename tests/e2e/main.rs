//! The whole way on real parts: etcd, NATS, the agent, the module in a real Envoy with two workers.
//!
//! | file | claims about |
//! |---|---|
//! | `way` | from a registration to the first request; drain; the breaker; the trace |
//! | `gone` | what goes on while the agent, etcd, NATS, all leases or the disk are gone |
//! | `hostile` | requests, registry values and events that are meant to hurt |

mod gone;
mod hostile;
mod support;
mod way;
