//! The values that go into a pick and come out of it.

use std::time::Duration;

use crate::policy::MAX_ATTEMPTS;
use crate::sticky::Pin;
use crate::subset::Want;

/// What a request brings to its pick.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// From [`crate::hash_key`]; only the hashing strategies look at it.
    pub hash: Option<u64>,
    /// The endpoint that the session is pinned to.
    pub pinned: Option<Pin>,
    /// The subset asked for; empty: any endpoint.
    pub subset: &'a [Want<'a>],
    /// Whether this request may be a probe; false after a probe's claim was lost with nothing left.
    pub may_probe: bool,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self { hash: None, pinned: None, subset: &[], may_probe: true }
    }
}

/// How a list came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// From eligible endpoints.
    Eligible {
        /// How many there were.
        candidates: u32,
    },
    /// Too few were eligible: from all but the draining ones, whatever health and breaker say; from
    /// these where there is nobody else.
    Panic {
        /// How many there were.
        candidates: u32,
    },
    /// There is no list.
    None(Nothing),
}

/// Why there is no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// The service has no endpoint.
    Empty,
    /// No endpoint has what the request asked for, and the policy has no fallback.
    Subset,
    /// None is eligible, and panic is off.
    Ineligible,
    /// Who may be chosen has as many requests in flight as [`crate::Policy::max_requests`] allows.
    Full,
}

/// The ordered list, as indices into the balancer's endpoints. Reused from request to request.
#[derive(Clone, Debug)]
pub struct Picks {
    items: [u32; MAX_ATTEMPTS + 1],
    len: usize,
    probe: bool,
    pinned: bool,
    strays: bool,
    failover_missed: bool,
    table_missed: bool,
}

impl Default for Picks {
    fn default() -> Self {
        Self {
            items: [0; MAX_ATTEMPTS + 1],
            len: 0,
            probe: false,
            pinned: false,
            strays: false,
            failover_missed: false,
            table_missed: false,
        }
    }
}

impl Picks {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Best first, one per attempt. With [`Self::probe`] there is one more.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        self.items.get(..self.len).unwrap_or_default()
    }

    /// The best one.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.as_slice().first().map(|&i| i as usize)
    }

    /// Whether the first one is a probe: claim it from the breaker, or call [`Self::lose_probe`].
    #[must_use]
    pub const fn probe(&self) -> bool {
        self.probe
    }

    /// Whether the first one is the one the session was pinned to.
    #[must_use]
    pub const fn pinned(&self) -> bool {
        self.pinned
    }

    /// Whether the session's endpoint is only full now: this request goes elsewhere, and the pin
    /// stays.
    #[must_use]
    pub const fn strays(&self) -> bool {
        self.strays
    }

    /// Whether nobody eligible matches [`crate::Policy::failover`], so that it was not applied.
    #[must_use]
    pub const fn failover_missed(&self) -> bool {
        self.failover_missed
    }

    /// Whether the request has a hash, and the ring or table that would place it is not there: the
    /// choice was made as by `p2c`.
    #[must_use]
    pub const fn table_missed(&self) -> bool {
        self.table_missed
    }

    /// Takes the probe off the list after another worker claimed it. `false`: nothing is left, pick
    /// again with [`Request::may_probe`] off.
    pub fn lose_probe(&mut self) -> bool {
        if self.probe {
            let lost = self.items.first().copied();
            let mut kept = 0;
            for at in 0..self.len {
                let item = self.items.get(at).copied();
                if item != lost
                    && let (Some(item), Some(place)) = (item, self.items.get_mut(kept))
                {
                    *place = item;
                    kept += 1;
                }
            }
            self.len = kept;
            self.probe = false;
        }
        self.len > 0
    }

    pub(crate) const fn clear(&mut self) {
        self.len = 0;
        self.probe = false;
        self.pinned = false;
        self.strays = false;
        self.failover_missed = false;
        self.table_missed = false;
    }

    pub(crate) const fn miss_table(&mut self) {
        self.table_missed = true;
    }

    pub(crate) const fn miss_failover(&mut self) {
        self.failover_missed = true;
    }

    pub(crate) const fn stray(&mut self) {
        self.strays = true;
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn contains(&self, index: u32) -> bool {
        // Empty for every first place, and that is most draws.
        self.len > 0 && self.holds(index)
    }

    #[inline(never)]
    fn holds(&self, index: u32) -> bool {
        self.as_slice().contains(&index)
    }

    #[inline]
    pub(crate) fn push(&mut self, index: u32) {
        if let Some(place) = self.items.get_mut(self.len) {
            *place = index;
            self.len += 1;
        }
    }

    pub(crate) fn push_probe(&mut self, index: u32) {
        self.push(index);
        self.probe = true;
    }

    pub(crate) fn push_pinned(&mut self, index: u32) {
        self.push(index);
        self.pinned = true;
    }

    /// Repeats what is there until `want` are: Envoy's own policy takes over when the list runs
    /// out, and it knows nothing of breakers. A probe is not repeated while there is anything else.
    pub(crate) fn repeat_to(&mut self, want: usize) {
        let start = usize::from(self.probe && self.len > 1);
        let distinct = self.len;
        let mut from = start;
        while self.len < want && distinct > 0 {
            let Some(item) = self.items.get(from).copied() else {
                return;
            };
            self.push(item);
            from = if from + 1 < distinct { from + 1 } else { start };
        }
    }
}

/// What became of a request, or of one attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// From sending to the response's head; of a failure, to its end. `None` when not measured.
    pub latency: Option<Duration>,
    /// Whether the breaker would call it a failure.
    pub failed: bool,
    /// The endpoint asked to be left alone that long; at most 60 s are honoured.
    pub retry_after: Option<Duration>,
}

/// A request in flight: names its endpoint across table changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(crate) index: u32,
    pub(crate) generation: u32,
    pub(crate) key: u64,
    /// Requests in flight there when it was sent, itself among them.
    pub(crate) crowd: u32,
}
