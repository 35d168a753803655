//! What decides how a ring or table comes out, beside who stands in it.

use crate::policy::{HashFunction, Policy, Strategy};

/// What of a policy a ring or table depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) strategy: Strategy,
    pub(crate) function: HashFunction,
    /// Entries, at least and at most.
    pub(crate) ring: (u64, u64),
    /// Places.
    pub(crate) table: u64,
}

impl Shape {
    pub(crate) const fn of(policy: &Policy) -> Self {
        Self {
            strategy: policy.strategy,
            function: policy.hash_function,
            ring: (policy.minimum_ring_size, policy.maximum_ring_size),
            table: policy.table_size,
        }
    }
}
