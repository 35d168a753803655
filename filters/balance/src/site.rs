//! One endpoint of a service, but for its load.

use std::net::SocketAddr;

use pintle_contract::{Health, Now};

use crate::sticky::Pin;
use crate::verdict::Verdict;

/// What does not change between updates, of one endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    /// As chosen by: the registered one, or 1 when the whole service has none.
    pub(crate) weight: u32,
    pub(crate) health: Health,
    pub(crate) local: bool,
    /// Its tier, 0 first.
    pub(crate) priority: u8,
    pub(crate) registered_at: Now,
    pub(crate) verdict: Verdict,
    pub(crate) key: u64,
    pub(crate) pin: Pin,
    /// The generation it came with.
    pub(crate) born: u32,
}
