//! Leader election by a lease that is written with compare-and-swap.

use std::time::Duration;

use pintle_contract::{Lease, Now, Slot};

use crate::LEASE;

/// How long after its lease ran out a leader is waited for that has not been seen to give up. With
/// the lease itself and a tick it makes the longest time without a leader's stream.
const HANDOVER: Duration = Duration::from_millis(200);

/// What to do about the lease that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Somebody else leads.
    Follow,
    /// Write this lease over the one that was read, and tell [`Election::written`] how it went.
    Write(Lease),
}

/// One VM's part in the election.
#[derive(Clone, Copy, Debug)]
pub struct Election {
    worker: u64,
    held: Option<Lease>,
    /// The lease that was taken from another VM, and when, until that VM is known to have given up.
    taken: Option<(Lease, Now)>,
    /// Which write of a lease of a newer schema was read last, and since when.
    newer: Option<(u32, Now)>,
}

impl Election {
    /// `worker` is this VM's random id.
    #[must_use]
    pub const fn new(worker: u64) -> Self {
        Self { worker, held: None, taken: None, newer: None }
    }

    /// This VM's random id.
    #[must_use]
    pub const fn worker(&self) -> u64 {
        self.worker
    }

    /// Whether a module of a newer schema leads, whose lease can't be read: as long as it is
    /// written anew, which `write`, the number of the write that was read, tells.
    pub fn leaves_to_newer(&mut self, write: u32, now: Now) -> bool {
        let since = match self.newer {
            Some((last, since)) if last == write => since,
            _ => now,
        };
        self.newer = Some((write, since));
        let waits = since <= now && now < since.after(LEASE).after(HANDOVER);
        if waits {
            self.held = None;
        }
        waits
    }

    /// Looks at the lease in shared data; `None` when there is none or it cannot be read.
    pub fn decide(&mut self, current: Option<&Lease>, slot: u32, now: Now) -> Step {
        let fence = match current {
            Some(lease) if lease.worker == self.worker => lease.fence,
            Some(lease) if in_force(lease, now) => {
                self.held = None;
                return Step::Follow;
            }
            Some(lease) => {
                self.taken = Some((*lease, now));
                lease.fence.saturating_add(1)
            }
            None => self.held.map_or(1, |held| held.fence.saturating_add(1)),
        };
        Step::Write(Lease { worker: self.worker, slot, expires_at: now.after(LEASE), fence })
    }

    /// How the write of `lease` went: `false` when somebody else wrote in between.
    pub const fn written(&mut self, lease: Lease, won: bool) {
        self.held = if won { Some(lease) } else { None };
    }

    /// Whether the leader before has no stream open any more, as far as can be told from `slots`:
    /// its VM has run a tick since it lost the lease, in which it ends its stream, or it is gone.
    /// One that does neither is waited for no longer than `HANDOVER`: a VM that trapped never will.
    pub fn is_alone<'a>(
        &mut self,
        slots: impl IntoIterator<Item = (u32, &'a Slot)>,
        now: Now,
    ) -> bool {
        let Some((lease, at)) = self.taken else { return true };
        let waits = lease.expires_at <= at && at <= now && now < lease.expires_at.after(HANDOVER);
        let holds = |slot: &Slot| slot.worker == lease.worker && slot.at <= at;
        let found = || slots.into_iter().any(|(n, slot)| n == lease.slot && holds(slot));
        let alone = !(waits && found());
        if alone {
            self.taken = None;
        }
        alone
    }

    /// The fence under which this VM leads at `now`, if it does.
    #[must_use]
    pub fn leads(&self, now: Now) -> Option<u64> {
        self.held.filter(|lease| in_force(lease, now)).map(|lease| lease.fence)
    }
}

/// Not expired, and not further ahead than a lease can be (the clock stepped, or a neighbour lies).
#[must_use]
pub fn in_force(lease: &Lease, now: Now) -> bool {
    lease.expires_at > now && lease.expires_at <= now.after(LEASE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Now {
        Now::from_millis(1_000_000 + millis)
    }

    fn elect(election: &mut Election, current: Option<&Lease>, now: Now) -> Lease {
        match election.decide(current, 0, now) {
            Step::Write(lease) => {
                election.written(lease, true);
                lease
            }
            Step::Follow => unreachable!("expected to write"),
        }
    }

    #[test]
    fn a_lease_is_followed_until_it_expires_and_then_taken_with_a_higher_fence() {
        let (mut a, mut b) = (Election::new(1), Election::new(2));
        let first = elect(&mut a, None, at(0));
        assert_eq!(b.decide(Some(&first), 0, at(499)), Step::Follow);
        let second = elect(&mut b, Some(&first), at(500));
        assert_eq!(second.fence, first.fence + 1);
        assert_eq!(a.leads(at(500)), None, "an expired lease leads nothing, even unseen");
        assert_eq!(b.leads(at(501)), Some(second.fence));
    }

    #[test]
    fn renewal_keeps_the_fence() {
        let mut a = Election::new(1);
        let first = elect(&mut a, None, at(0));
        let renewed = elect(&mut a, Some(&first), at(100));
        assert_eq!(renewed.fence, first.fence);
        assert_eq!(renewed.expires_at, at(600));
    }

    #[test]
    fn a_leader_that_is_late_is_waited_for_until_it_has_run_or_is_taken_for_dead() {
        let slot = |worker, millis| Slot { worker, at: at(millis), expires_at: at(millis + 1_000) };
        let late = slot(1, 0);
        let ticked = slot(1, 610);
        let another = slot(3, 0);
        let table = [
            ("late", vec![(0, &late)], 600, false),
            ("late, and waited for to the end", vec![(0, &late)], 699, false),
            ("taken for dead", vec![(0, &late)], 700, true),
            ("ran a tick", vec![(0, &ticked)], 620, true),
            ("gone", vec![], 600, true),
            ("replaced in its slot", vec![(0, &another)], 600, true),
            ("in another slot", vec![(1, &late)], 600, true),
            ("the clock stepped back", vec![(0, &late)], 100, true),
        ];
        for (name, slots, now, alone) in table {
            let (mut a, mut b) = (Election::new(1), Election::new(2));
            let first = elect(&mut a, None, at(0));
            assert!(a.is_alone([], at(0)), "nobody led before");
            elect(&mut b, Some(&first), at(600));
            assert_eq!(b.is_alone(slots.clone(), at(now)), alone, "{name}");
            assert_eq!(b.is_alone(slots, at(now)), alone, "{name}: and stays so");
        }
    }

    #[test]
    fn a_newer_module_keeps_its_lease_as_long_as_it_renews_it() {
        let mut older = Election::new(1);
        elect(&mut older, None, at(0));
        for (write, millis) in [(7, 0), (8, 400), (8, 1_099)] {
            assert!(older.leaves_to_newer(write, at(millis)), "{write} at {millis}");
            assert_eq!(older.leads(at(millis)), None);
        }
        assert!(!older.leaves_to_newer(8, at(1_100)), "it is gone");
        assert!(older.leaves_to_newer(9, at(1_200)), "or was only slow");
        assert!(!older.leaves_to_newer(9, at(0)), "the clock stepped back");
    }

    #[test]
    fn a_lost_race_is_not_leadership() {
        let mut a = Election::new(1);
        let Step::Write(lease) = a.decide(None, 0, at(0)) else { panic!("expected to write") };
        a.written(lease, false);
        assert_eq!(a.leads(at(1)), None);
    }

    #[test]
    fn a_lease_from_the_far_future_is_taken() {
        let mut a = Election::new(1);
        let forged = Lease {
            worker: 9,
            slot: 0,
            expires_at: at(0).after(Duration::from_secs(3600)),
            fence: 7,
        };
        assert_eq!(elect(&mut a, Some(&forged), at(0)).fence, 8);
    }

    proptest! {
        /// Random candidates act on one store; whoever leads by its own account holds the highest
        /// fence, and never do two lead at one instant.
        #[test]
        fn never_two_leaders(steps in prop::collection::vec((0usize..4, 0u64..300), 1..200)) {
            let mut store: Option<Lease> = None;
            let mut candidates: Vec<_> = (0..4).map(|id| Election::new(id + 1)).collect();
            let mut now = at(0);
            for (who, wait) in steps {
                now = now.after(Duration::from_millis(wait));
                if let Step::Write(lease) = candidates[who].decide(store.as_ref(), 0, now) {
                    store = Some(lease);
                    candidates[who].written(lease, true);
                }
                let leaders = candidates.iter().filter(|c| c.leads(now).is_some()).count();
                prop_assert!(leaders <= 1, "{leaders} leaders");
            }
        }
    }
}
