//! Endpoint selection on a real Envoy, with the shipped configuration, the real agent and etcd.
//!
//! | file | claim |
//! |---|---|
//! | `native` | ring_hash and maglev name what Envoy's own policies name, under load too |
//! | `migration` | what the table of `docs/migration/native.md` says is the same, is |
//! | `strategies` | each strategy by configuration and by etcd, and how it spreads |
//! | `shares` | equal shares in every window, also after an illness |
//! | `keys` | what a request is hashed by |
//! | `eligible` | sticky sessions, subsets, zones, slow start, panic |
//! | `configuration` | a `Struct` is read; what is refused, and why, is in the log |
//! | `debug` | who brings the token is told why a request went where it went |
//! | `limit` | `max_requests`: full endpoints are passed over, and all full is said |
//! | `tiers` | spill as by Envoy's own priorities; the failover of a service |
//! | `attempts` | retries walk the list; nothing of it reaches the wire |
//! | `clusters` | clusters that the agent serves: services come and go, Envoy's files stay |
//! | `protocols` | HTTP/1.1, gRPC, TLS, and `ORIGINAL_DST` |
//! | `wanted` | an agent that sends what is wanted: at start by EDS, all else at first use |
//! | `fallback` | without the module, without tables, after a trap |
//! | `scale` | a thousand services; what one worker learns, all know; failures attract nobody |
//!
//! Two workers everywhere: what is shared between workers is what most often breaks.

mod attempts;
mod clusters;
mod configuration;
mod debug;
mod eligible;
mod fallback;
mod keys;
mod limit;
mod migration;
mod native;
mod protocols;
mod scale;
mod shares;
mod strategies;
mod support;
mod tiers;
mod wanted;
