//! Which endpoint a request goes to: a policy, a table and what is known of the load become an
//! ordered list of endpoints.
//!
//! The crate is pure. It calls no host function, reads no clock and holds no source of chance: `Now` and
//! a generator are arguments, so a whole benchmark runs in virtual time in a unit test
//! (`tests/simulation.rs`) and a choice can be repeated from its seed. Nothing allocates per pick,
//! nothing is sized by what a request says, and a pick costs the same with ten endpoints as with ten
//! thousand wherever the strategy allows it.
//!
//! ```text
//! Policy ─┐                  set_verdict (breaker)
//! Table  ─┼─▶ Balancer ◀──── started / finished / abandoned (own worker)
//! zone   ─┘      │    ◀───── set_remote_load (other workers)
//!                ▼
//!   pick(Request, now, rng) ─▶ Picks: best first, then where a retry may go
//! ```
//!
//! One file per strategy, one per concern: [`Policy`] is what was asked for, `load.rs` what is known,
//! `eligible.rs` who may be chosen, `zone.rs`, `subset.rs`, `slow_start.rs` and `sticky.rs` what narrows
//! it, `hash.rs` what a request hashes to.

mod alias;
mod balancer;
mod baseline;
mod bounded;
mod eligible;
mod hash;
mod least_request;
mod load;
mod looks;
mod maglev;
mod middle;
mod p2c;
mod policy;
mod pool;
mod random;
mod ring_hash;
mod round_robin;
mod site;
mod slow_start;
mod sticky;
mod subset;
mod tier;
mod turns;
mod types;
mod verdict;
mod weighted_round_robin;
mod workers;
mod zone;

pub use balancer::Balancer;
pub use hash::{HashKey, RequestView, hash_key};
pub use load::LoadEntry;
pub use policy::{
    Cookie, Failover, HashFunction, HashKeyPart, HashSource, MAX_ATTEMPTS, MAX_HASH_KEYS,
    MAX_RING_SIZE, MAX_SELECTORS, MAX_TABLE_SIZE, Policy, Selector, SelectorTarget, SlowStart,
    Sticky, Strategy, SubsetDefault, SubsetFallback,
};
pub use rand::rngs::Xoshiro256PlusPlus as Dice;
pub use sticky::{Pin, pin};
pub use subset::{Want, Wants};
pub use tier::{tier_of, tier_shares};
pub use types::{Choice, Nothing, Picks, Request, Sample, Ticket};
pub use verdict::Verdict;
