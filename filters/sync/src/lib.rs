//! Who holds the Watch stream, when it is opened again, and what an arriving frame changes: as
//! values, without a stream.
//!
//! Every VM of an Envoy (each worker's and the main thread's) runs this. One is the leader by a
//! lease in shared data: any of them can be, because a trapped VM's ticks stop at once and the main
//! thread's VM is never reloaded, so no fixed choice survives. The leader alone opens the stream
//! and writes shared data; the others are woken through the queue of their slot.
//!
//! ```text
//!   tick ─▶ slot    ─▶ claim or renew my place and queue
//!        ─▶ election ─▶ follow | write the lease (CAS)
//!        ─▶ stream  ─▶ nothing | open | cancel            (opened here only, with back-off)
//!   frame ─▶ inbox  ─▶ store the table, wake the workers | refuse, by reason
//!   request ─▶ wanted ─▶ nothing | ask the agent            (where it tells only what is wanted)
//! ```
//!
//! ```
//! use pintle_contract::Now;
//! use pintle_sync::{Election, LEASE, Step};
//!
//! let now = Now::from_millis(1_700_000_000_000);
//! let (mut first, mut second) = (Election::new(1), Election::new(2));
//! let Step::Write(lease) = first.decide(None, 0, now) else { unreachable!() };
//! first.written(lease, true);                             // by compare-and-swap
//! assert_eq!(first.leads(now), Some(lease.fence));
//! assert_eq!(second.decide(Some(&lease), 1, now), Step::Follow);
//!
//! let later = now.after(LEASE);                           // the first has not renewed it
//! let Step::Write(taken) = second.decide(Some(&lease), 1, later) else { unreachable!() };
//! assert!(taken.fence > lease.fence && first.leads(later).is_none());
//! ```
//!
//! Time and randomness are arguments, and a clock that steps is survived: whatever lies further in
//! the future than it could have been put there counts as past.

mod election;
mod inbox;
mod slot;
mod stream;
mod wanted;

use std::time::Duration;

pub use election::{Election, Step, in_force};
pub use inbox::{Effect, Inbox, Refused};
pub use slot::{MAX_SLOTS, is_free, is_live, renewed};
pub use stream::{Action, Stream};
pub use wanted::{Ask, PATIENCE, Wanted};

/// How often every VM looks around, but for one that nobody asks: that does half as often. A dead
/// leader is replaced within [`LEASE`] and one look.
pub const TICK: Duration = Duration::from_millis(100);
/// How long a leader leads without renewing. Five ticks, so that a busy worker does not lose it.
pub const LEASE: Duration = Duration::from_millis(500);
