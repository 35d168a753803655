//! How every setting is read: of the module, of a service's policy, of an event and of the agent.
//!
//! A type that can be configured implements [`Settings`]: it takes its keys from a [`Section`],
//! each with its range and default. [`read`] runs it and refuses what it left over, so that a value
//! of the type has been checked and a misspelt key is never silently the default. Every refusal is
//! an
//! [`Invalid`]: the key with its whole path, what it accepts, what was found.
//!
//! The keys come as a tree of JSON, whatever they were written in. `null` is a key left out, as in
//! the merge patches (RFC 7386) that policies are made of.
//!
//! ```
//! use std::time::Duration;
//! use pintle_settings::{SECOND, HOUR, Section, Settings};
//!
//! struct Lease { ttl: Duration }
//!
//! impl Settings for Lease {
//!     fn read(keys: &mut Section) -> Self {
//!         Self { ttl: keys.duration("ttl", SECOND..=HOUR, Duration::from_secs(30)) }
//!     }
//! }
//!
//! let refused = |value| pintle_settings::read::<Lease>("lease", value).err().unwrap().to_string();
//! assert_eq!(
//!     refused(serde_json::json!({"ttl": 60})),
//!     "lease.ttl must be a duration from 1s to 1h, found 60",
//! );
//! assert_eq!(
//!     refused(serde_json::json!({"tll": "60s"})),
//!     "unknown key lease.tll, accepted are ttl",
//! );
//! ```

mod duration;
mod invalid;
mod json;
mod section;
mod size;

pub use duration::{
    DAY, DurationError, HOUR, MILLISECOND, MINUTE, SECOND, duration_text, parse_duration,
};
pub use invalid::{Found, Invalid};
pub use json::{JsonError, MAX_DEPTH, parse_json};
pub use section::{Section, Settings, duration_range, read, read_with, whole, word};
pub use size::size_text;
