//! What one who draws sees of an endpoint.

/// Who may be drawn, the best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Eligible.
    #[default]
    Open,
    /// Eligible as a probe only.
    Probe,
    /// Not eligible.
    Shut,
    /// Whatever it was, it has as many requests in flight as it may have: drawn by nobody, and not
    /// in a panic. Only draws see this; what is counted is what it was.
    Full,
}
