//! What a user sets up and types, on the real parts that it leads to.
//!
//! | file | claims about |
//! |---|---|
//! | `pages` | what `docs/by-hand.md` says to type, and what the compose files run |
//! | `init` | what `pintle init` writes, booted |
//! | `gateway` | the objects for Envoy Gateway, in what its translator would send to a real Envoy |
//! | `istio` | the objects for Istio and Kubernetes, in a sidecar or a gateway that is a real Envoy |
//! | `users` | who may connect to the socket, by users of a range as OpenShift gives them |

mod gateway;
mod init;
mod istio;
mod pages;
mod users;

use std::time::Duration;

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);
