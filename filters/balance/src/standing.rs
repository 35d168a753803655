//! How one endpoint stands before one request, for a person who asks.

use std::time::Duration;

/// What an endpoint costs, and why nothing goes there if nothing does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The balancer's index.
    pub index: usize,
    /// `None` for a candidate.
    pub left_out: Option<LeftOut>,
    /// What makes it clearly ill: nothing but looks goes there while others are well.
    pub ill: Option<Ill>,
    /// What an answer is taken to take; the middle of the service while there was none.
    pub latency: Duration,
    /// The worker's own requests that wait there, per mean weight, which decides among those that
    /// are well.
    pub waiting: f64,
    /// What failures multiply the latency by, 1 for none.
    pub failures: f32,
    /// `latency x failures x (waiting + 1)`, which decides among those that are ill.
    pub cost: Duration,
    /// Requests in flight there, from all workers.
    pub in_flight: u32,
    /// How many there may be.
    pub limit: Option<u32>,
}

/// Why a request does not go to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Its weight is 0.
    Weightless,
    /// Its registry says so.
    Unhealthy,
    /// It takes pinned sessions only.
    Draining,
    /// Its breaker is open.
    Breaker,
    /// Its breaker is owed a probe, and takes nothing else.
    Probe,
    /// It has not what the request asks for.
    Subset,
    /// The service has failed over to others.
    Failover,
    /// It has as many requests in flight as it may have.
    Full,
    /// A tier before its own takes all.
    Tier,
    /// The own zone takes all.
    Zone,
}

/// What makes an endpoint clearly ill beside the middle of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ill {
    /// Its answers.
    Slow,
    /// It owes one for too long.
    Silent,
    /// Its failures.
    Failing,
    /// It asked to be left alone.
    LeftAlone,
    /// The fleet advises against it.
    Advised,
}

impl LeftOut {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Weightless => "weight 0",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining: pinned sessions only",
            Self::Breaker => "breaker open",
            Self::Probe => "breaker half-open: probes only",
            Self::Subset => "not of the subset",
            Self::Failover => "the service is failed over to others",
            Self::Full => "full: max_requests",
            Self::Tier => "a tier before its own takes all",
            Self::Zone => "the own zone takes all",
        }
    }
}

impl Ill {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::Failing => "failing",
            Self::LeftAlone => "asked to be left alone",
            Self::Advised => "advised against by the fleet",
        }
    }
}
