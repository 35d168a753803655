//! The whole way on real parts: etcd, NATS, the agent, the module in a real Envoy with two workers.
//!
//! | file | claims about |
//! |---|---|
//! | `way` | from a registration to the first request; drain; the breaker; the trace |
//! | `gone` | what goes on after a cold start, a compaction, and with a disk that takes nothing |
//! | `minute` | what goes on while the agent, etcd, NATS, the network or all leases are gone for a minute |
//! | `clock` | a wall clock that steps by an hour |
//! | `commands` | the command line, and `pintle check` |
//! | `check` | mistakes that are planted, and what `pintle check` says of them |
//! | `page` | the status page in a browser |
//! | `observe` | the alerts and the dashboard, on a Prometheus |
//! | `hostile` | requests, registry values and events that are meant to hurt |
//! | `descriptors` | an agent that may open 64 files, while peers take all of them |
//! | `switches` | a service that is bypassed or in shadow, by a command and back |
//! | `skew` | modules of the release before, beside this agent and in one Envoy with this module |
//! | `rolling` | everything replaced in turn under one load |
//! | `quota` | how many proxies one agent takes over TCP, and how it says that it takes no more |

mod check;
mod clock;
mod commands;
mod descriptors;
mod gone;
mod hostile;
mod minute;
mod observe;
mod page;
mod quota;
mod rolling;
mod skew;
mod support;
mod switches;
mod way;
