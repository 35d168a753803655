//! The place of one ring or table: what stands there, what is being built for it, and what serves
//! meanwhile.
//!
//! ```text
//!             first request after a change
//!  Unasked ────────────────────────────────▶ the same as before ──────────────────▶ Settled
//!     ▲ │                                    small, and there is memory: built now ─▶ Settled
//!     │ └──────────────────────────────────▶ large, and there is memory ───────────▶ Coming
//!     │                                      no memory ─────────────────────────────▶ Refused
//!     └── a change; Coming: done, or nobody asked for ten seconds; Refused: somebody gave memory
//!         back; Unpaid: there is credit
//! ```
//! A small one costs a request less than a millisecond, once. A large one is built in slices
//! outside of requests ([`crate::Balancer::build`]); until it is done, and where it is refused, the
//! one before serves, with its endpoints as they are now, and without one there is no table. One
//! that is being built when the endpoints change is finished, so that changes that come faster than
//! it can be built never keep it away. One that nobody asks for any more waits as far as it is, and
//! is given up where another needs its memory.

use std::net::SocketAddr;

use pintle_contract::Now;

use crate::bounded::{Build, Hashing, Sites};
use crate::cost::Cost;
use crate::memory::{Building, Hold, Memory, OverBudget};
use crate::pace::Pace;
use crate::policy::Policy;
use crate::shape::Shape;

/// Steps of what is built at once, by the request that first needs it: about a millisecond.
const AT_ONCE: u64 = 100_000;

/// How long after a request for it what is coming is gone on with, ns.
const WANTED: u64 = 10_000_000_000;

/// Rings and tables that the pools of subsets may build, so that values that clients choose cost no
/// more than so many of them: a few at once, and one more for each hundred requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credit(u32);

/// In hundredths of a table.
const TABLE: u32 = 100;
const MOST: u32 = 10 * TABLE;

#[derive(Debug, Default)]
pub(crate) struct Stand {
    table: Option<(Hashing, Hold)>,
    coming: Option<Coming>,
    state: State,
}

#[derive(Debug)]
struct Coming {
    build: Build,
    hold: Hold,
    /// None while it waits.
    building: Option<Building>,
    asked_at: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Unasked,
    Settled,
    Coming,
    Unpaid,
    /// As of so many returns to the account.
    Refused(u64),
}

/// Where a stand's ring or table comes from.
pub(crate) struct Means<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) memory: &'a Memory,
    /// Indices by address.
    pub(crate) places: &'a [(SocketAddr, u32)],
    pub(crate) now: u64,
    /// For the pool of a subset.
    pub(crate) credit: Option<&'a mut Credit>,
    /// Set when one was refused.
    pub(crate) refused: &'a mut Option<OverBudget>,
    /// Set when one is to be built outside of requests.
    pub(crate) building: &'a mut bool,
}

impl Default for Credit {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Credit {
    /// A request asked for a subset.
    pub(crate) fn earn(&mut self) {
        self.0 = (self.0 + 1).min(MOST);
    }

    const fn is_enough(self) -> bool {
        self.0 >= TABLE
    }

    const fn pay(&mut self) {
        self.0 = self.0.saturating_sub(TABLE);
    }
}

impl Stand {
    /// The endpoints or the policy have changed.
    pub(crate) fn outdate(&mut self, shape: Shape) {
        self.state = State::Unasked;
        // Of another policy nobody wants the end.
        self.coming = self.coming.take().filter(|coming| coming.build.has(shape));
    }

    /// Whether there is something to hand on to a stand after an update.
    pub(crate) const fn is_empty(&self) -> bool {
        self.table.is_none() && self.coming.is_none()
    }

    /// Whether something is coming, if only later.
    pub(crate) const fn is_coming(&self) -> bool {
        self.coming.is_some()
    }

    /// Bytes of what is coming, and does not wait.
    pub(crate) fn coming_bytes(&self) -> Option<u64> {
        let coming = self.coming.as_ref().filter(|coming| coming.building.is_some());
        coming.map(|coming| coming.hold.bytes())
    }

    /// What stands there for a request; `hosts` are who should stand in it, with their indices.
    #[inline]
    pub(crate) fn ask(
        &mut self,
        means: &mut Means<'_>,
        hosts: impl FnOnce() -> (Vec<u32>, Sites),
    ) -> Option<&mut Hashing> {
        let again = match self.state {
            State::Settled => false,
            State::Coming => self.go_on(means),
            State::Unasked => true,
            State::Unpaid => means.credit.as_ref().is_none_or(|credit| credit.is_enough()),
            State::Refused(returns) => returns != means.memory.returns(),
        };
        if again {
            self.settle(means, hosts());
        }
        self.table.as_mut().map(|(table, _)| table)
    }

    #[cold]
    #[inline(never)]
    fn settle(&mut self, means: &mut Means<'_>, (hosts, sites): (Vec<u32>, Sites)) {
        let balance = means.policy.hash_balance_factor;
        if let Some((table, _)) = &mut self.table {
            table.seat(&sites, &hosts, means.places, balance);
            if table.is(Shape::of(means.policy), &sites) {
                self.state = State::Settled;
                return;
            }
        }
        if self.coming.is_some() {
            self.state = State::Coming;
            self.go_on(means);
            return;
        }
        if means.credit.as_ref().is_some_and(|credit| !credit.is_enough()) {
            self.state = State::Unpaid;
            return;
        }
        let cost = Cost::of(means.policy, sites.iter().map(|&(_, weight)| weight));
        let hold = match means.memory.take_for_table(cost.bytes, self.table.is_some()) {
            Ok(hold) => hold,
            Err(over) => {
                self.state = State::Refused(means.memory.returns());
                // What another one needs while it is built may do for this one afterwards.
                if means.memory.building() == 0 {
                    *means.refused = Some(over);
                }
                return;
            }
        };
        if let Some(credit) = &mut means.credit {
            credit.pay();
        }
        let mut build = Build::new(means.policy, sites.clone());
        if cost.steps > AT_ONCE {
            let building = Some(means.memory.begin());
            self.coming = Some(Coming { build, hold, building, asked_at: means.now });
            self.state = State::Coming;
            *means.building = true;
        } else if let Some(mut table) = build.advance(&mut Pace::new(&mut || true)) {
            table.seat(&sites, &hosts, means.places, balance);
            self.table = Some((table, hold));
            self.state = State::Settled;
        }
    }

    /// What is coming waits until it is asked for again.
    pub(crate) fn wait(&mut self) {
        if let Some(coming) = &mut self.coming {
            coming.building = None;
        }
    }

    /// Somebody asks for what is coming: should it wait, it waits no longer. There is nothing to
    /// settle.
    fn go_on(&mut self, means: &mut Means<'_>) -> bool {
        if let Some(coming) = &mut self.coming {
            coming.asked_at = means.now;
            coming.building.get_or_insert_with(|| means.memory.begin());
            *means.building = true;
        }
        false
    }

    /// Goes on with what is coming, as long as it is asked for. Once it is done it stands there,
    /// and the next request finds its endpoints in it; if they have changed meanwhile, the next one
    /// is built.
    pub(crate) fn build(&mut self, now: Now, pace: &mut Pace<'_>) {
        let Some(coming) = &mut self.coming else { return };
        if now.0.abs_diff(coming.asked_at) > WANTED {
            coming.building = None;
            if coming.hold.is_missed() {
                self.coming = None;
                self.state = State::Unasked;
            }
        } else if let Some(table) = coming.build.advance(pace)
            && let Some(Coming { hold, .. }) = self.coming.take()
        {
            self.table = Some((table, hold));
            self.state = State::Unasked;
        }
    }
}
