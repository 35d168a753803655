//! Which endpoint a request goes to: a policy, a table and what is known of the load become an
//! ordered list of endpoints.
//!
//! The crate is pure. It calls no host function, reads no clock and holds no source of chance:
//! `Now` and a generator are arguments, so a whole benchmark runs in virtual time in a unit test
//! (`tests/simulation.rs`) and a choice can be repeated from its seed. Nothing allocates per pick,
//! nothing is sized by what a request says, and a pick costs the same with ten endpoints as with
//! ten thousand wherever the strategy allows it.
//!
//! ```text
//! Policy ─┐                  set_verdict (breaker)
//! Table  ─┼─▶ Balancer ◀──── started / finished / abandoned (own worker)
//! zone   ─┘      │    ◀───── set_remote_load (other workers)
//!                ▼
//!   pick(Request, now, rng) ─▶ Picks: best first, then where a retry may go
//! ```
//!
//! ```
//! use std::time::Duration;
//! use pintle_balance::{Balancer, Dice, Picks, Policy, Request, Sample};
//! use pintle_contract::{Endpoint, Now};
//! use rand::SeedableRng;
//!
//! let (now, mut dice) = (Now::from_millis(1_700_000_000_000), Dice::seed_from_u64(1));
//! let endpoints = [
//!     Endpoint::new("orders-1", "10.0.7.4:8001".parse()?),
//!     Endpoint::new("orders-2", "10.0.7.5:8001".parse()?),
//! ];
//! let mut orders = Balancer::new("orders", &Policy::default(), &endpoints, "eu-1a", 7, now);
//! let mut picks = Picks::new();
//! orders.pick(&Request::default(), now, &mut dice, &mut picks);
//! assert_eq!(picks.as_slice().len(), 3);                  // one per attempt, best first
//!
//! let best = picks.first().ok_or("nobody")?;
//! let ticket = orders.started(best, now).ok_or("gone")?;  // kept with the request
//! let answer = Sample { latency: Some(Duration::from_millis(3)), ..Sample::default() };
//! orders.finished(ticket, now.after(Duration::from_millis(3)), answer);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One file per strategy, one per concern: [`Policy`] is what was asked for, `load.rs` what is
//! known, `eligible.rs` who may be chosen, `zone.rs`, `subset.rs`, `slow_start.rs` and `sticky.rs`
//! what narrows it, `hash.rs` what a request hashes to.

mod adaptive;
mod alias;
mod balancer;
mod baseline;
mod bounded;
mod chunks;
mod clock;
mod cost;
mod deck;
mod demand;
mod eligible;
mod hash;
mod history;
mod least_request;
mod load;
mod looks;
mod maglev;
mod max_requests;
mod meanwhile;
mod memory;
mod middle;
mod moves;
mod news;
mod p2c;
mod pace;
mod policy;
mod pool;
mod random;
mod ring_hash;
mod round_robin;
mod service;
mod shape;
mod site;
mod slow_start;
mod stand;
mod standing;
mod state;
mod sticky;
mod subset;
mod tier;
mod told;
mod turns;
mod types;
mod verdict;
mod weighted_round_robin;
mod workers;
mod zone;

pub use balancer::Balancer;
pub use cost::Cost;
pub use demand::Demand;
pub use hash::{HashKey, RequestView, hash_key};
pub use max_requests::MaxRequests;
pub use memory::{DEFAULT_BUDGET, Hold, Memory, OverBudget};
pub use moves::Moves;
pub use policy::{
    Cookie, Failover, HashFunction, HashKeyPart, HashSource, MAX_ATTEMPTS, MAX_HASH_KEYS,
    MAX_RING_SIZE, MAX_SELECTORS, MAX_TABLE_SIZE, Policy, Selector, SelectorTarget, SlowStart,
    Sticky, Strategy, SubsetDefault, SubsetFallback,
};
pub use rand::rngs::Xoshiro256PlusPlus as Dice;
pub use standing::{Ill, LeftOut, Standing};
pub use sticky::{Pin, pin};
pub use subset::{Want, Wants};
pub use tier::{tier_of, tier_shares};
pub use told::LoadEntry;
pub use types::{Choice, Nothing, Picks, Request, Sample, Ticket};
pub use verdict::Verdict;
