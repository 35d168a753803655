//! The breaker on a real Envoy 1.40 with two workers, a real agent, etcd and NATS.
//!
//! | file | claims about |
//! |---|---|
//! | `classify` | what counts as a failure of an endpoint: every way in which a request can end |
//! | `shared` | one state per Envoy: the trip, the probe, a new plugin configuration |
//! | `triggers` | slow calls, rates, 429, and a policy that changes while requests run |
//! | `refusal` | the local answer when nothing is eligible, and the way back |
//! | `fleet` | opinions between two Envoys: how fast, how strong, how long, and how far a liar gets |
//! | `seen` | metrics, log lines, the table and the orders of an operator |
//! | `reload` | a VM that traps: breakers, probe slots and counts behind it |
//! | `leaks` | streams that end at every phase leave nothing behind |

mod classify;
mod fleet;
mod leaks;
mod refusal;
mod reload;
mod seen;
mod shared;
mod support;
mod triggers;
