//! What a breaker tells the balancer of an endpoint.

/// What the breaker says of an endpoint. It has applied its own ejection bound already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Closed: takes traffic.
    #[default]
    Pass,
    /// Open: takes none outside panic.
    Blocked,
    /// Half-open and owed a probe: named first, once, with [`crate::Picks::probe`] set.
    Probe,
}
