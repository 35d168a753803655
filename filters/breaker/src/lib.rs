//! The circuit breaker: outcomes over time in, a verdict per endpoint out.
//!
//! Envoy runs one copy of the filter per worker thread, and the copies share nothing but a
//! key-value store with compare-and-swap. So the machine's whole state is one small value, the
//! [`Record`], that lives in that store: a trip in one worker holds in all of them, a probe slot
//! has one owner, and a reloaded VM finds the breakers as it left them. What a worker adds to the
//! record waits in its [`Mirror`], which also decides when the store has to be touched at all: a
//! success at a quiet endpoint touches nothing, because at full load that would cost more than the
//! request.
//!
//! ```
//! use pintle_breaker::{FailureKind, Mirror, Need, Outcome, Policy, Record, State};
//! use pintle_contract::Now;
//!
//! let (policy, now) = (Policy::unconfigured(), Now::from_millis(1_700_000_000_000));
//! let mut stored = Vec::new();             // the shared store's value
//! let mut mirror = Mirror::default();      // this worker's view of the endpoint
//! for _ in 0..5 {
//!     let ticket = mirror.record().ticket();              // kept with the request
//!     let outcome = Outcome::Failure(FailureKind::Connect);
//!     if mirror.observe(ticket, outcome, &policy, now) == Need::Sync {
//!         let merged = mirror.merge(Record::decode(&stored).ok(), &policy, now, 7);
//!         if merged.changed {
//!             merged.record.encode(&mut stored);          // by compare-and-swap; on a mismatch, again
//!         }
//!         for transition in mirror.commit(merged) {
//!             assert_eq!(transition.to, State::Open);     // log, count, tell the fleet
//!         }
//!     }
//! }
//! assert_eq!(mirror.record().state(), State::Open);
//! ```
//!
//! Nothing here reads a clock, draws a random number or calls the host; all of it is passed in. The
//! state diagram is in [`machine`], what counts as a failure in [`mod@classify`], and the promise
//! that breakers never take more than their share of a service in [`honour`].

mod cap;
mod charge;
pub mod classify;
mod codec;
pub mod machine;
mod mirror;
mod policy;
mod record;
mod window;
mod words;

pub use cap::{Severity, allowed, honour, retry_after};
pub use charge::{Answered, Attempts, Logged, Retries};
pub use classify::{FailureKind, Outcome, Report, classify};
pub use codec::{DecodeError, RECORD_BYTES};
pub use machine::{Context, Input, Reason, Transition, WATCH_BEFORE_RATE};
pub use mirror::{Merged, Mirror, Need};
pub use policy::{Codes, Fleet, HalfOpen, MAX_PROBES, Policy, Rate, SlowCall};
pub use record::{LAST_RESORT, Origin, Record, State, Ticket, Verdict};
pub use window::{BUCKETS, Counts, Window};
