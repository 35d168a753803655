//! Who is charged with what of a request's attempts, of which Envoy tells how many there were, and
//! where the last one went.
//!
//! Envoy takes one entry of the list an attempt, skips those that are no hosts of its cluster, and
//! beyond the list goes where its fallback policy sends it. Whoever answered has the outcome. An
//! attempt before that is charged with what the router has logged of it, by a policy that says so;
//! or, to the entry whose turn it was, only where the list was followed and the policy says that
//! retries follow failures. What is left is unknown, and counted.

use crate::{FailureKind, Outcome};

/// Why Envoy makes a further attempt, as the service's routes have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// The one before has failed.
    Failures,
    /// Also after answers that are no failures, such as 404 or 409.
    Any,
    /// The router's `upstream_log` tells of each attempt.
    Logged,
}

/// Where the last attempt went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// To the entry of the list at this position.
    Entry(usize),
    /// To an endpoint of the table that is not in the list, by the key that names it.
    Other(u64),
    /// To a host that is in no table.
    Stranger,
    /// To none, or nobody knows.
    Nowhere,
}

/// An attempt that the router has logged, because another one follows it or took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Where it went.
    pub to: Answered,
    /// What it says of whoever it went to.
    pub outcome: Outcome,
}

/// The attempts of one request.
#[derive(Clone, Copy, Debug)]
pub struct Attempts<'a> {
    /// How many there were; zero where another filter answered.
    pub made: u32,
    /// Entries of the list.
    pub listed: usize,
    /// Where the last one went.
    pub answered: Answered,
    /// What the last one says of whoever it went to.
    pub last: Outcome,
    /// Why there are several.
    pub retries: Retries,
    /// Those before the last, by [`Retries::Logged`].
    pub logged: &'a [Logged],
}

impl Attempts<'_> {
    /// What the entry of the list at `position` is charged with; [`Outcome::Ignored`] frees a probe
    /// slot that was taken for it.
    #[must_use]
    pub fn entry(&self, position: usize) -> Outcome {
        match self.answered {
            Answered::Entry(at) if self.made > 0 && position == at => self.last,
            _ if position < self.listed && self.has_failed(position) => {
                Outcome::Failure(FailureKind::Attempt)
            }
            _ => self.logged_at(position).map_or(Outcome::Ignored, |(_, it)| it.outcome),
        }
    }

    /// Whether the entry of the list at `position` has had a request, whatever came of it.
    #[must_use]
    pub fn was_asked(&self, position: usize) -> bool {
        let last = self.answered == Answered::Entry(position) && self.made > 0;
        last || self.entry(position) != Outcome::Ignored || self.logged_at(position).is_some()
    }

    /// The logged attempts that [`Self::entry`] tells nothing of: those at endpoints outside the
    /// list, and further ones at the same entry.
    pub fn others(&self) -> impl Iterator<Item = &Logged> {
        let told = |at: usize, logged: &Logged| match logged.to {
            Answered::Entry(position) => {
                self.logged_at(position).is_some_and(|(first, _)| first == at)
            }
            Answered::Other(_) | Answered::Stranger | Answered::Nowhere => false,
        };
        let logged = self.logged().iter().enumerate();
        logged.filter(move |(at, logged)| !told(*at, logged)).map(|(_, logged)| logged)
    }

    fn logged(&self) -> &[Logged] {
        if self.retries == Retries::Logged { self.logged } else { &[] }
    }

    /// The first logged attempt at an entry, where it was not the last of all.
    fn logged_at(&self, position: usize) -> Option<(usize, &Logged)> {
        let to = Answered::Entry(position);
        let mut logged = self.logged().iter().enumerate();
        if self.answered == to { None } else { logged.find(|(_, logged)| logged.to == to) }
    }

    /// What the endpoint outside the list that answered is charged with.
    #[must_use]
    pub fn other(&self) -> Outcome {
        match self.answered {
            Answered::Other(_) if self.made > 0 => self.last,
            _ => Outcome::Ignored,
        }
    }

    /// Attempts that are charged to nobody, or to another endpoint than the one whose turn it was.
    #[must_use]
    pub fn unknown(&self) -> u32 {
        let failed = (0..self.listed).filter(|&position| self.has_failed(position)).count();
        let followed = |it: &&Logged| matches!(it.to, Answered::Entry(at) if !self.within(at));
        let logged = self.logged().iter().filter(followed).count();
        let last = match self.answered {
            // Further down than the attempts reach: the ones before were no choice of Envoy's.
            Answered::Entry(at) => !self.within(at),
            // The list was used up, so that Envoy chose.
            Answered::Other(_) => !self.within(self.listed),
            Answered::Stranger => false,
            // None was made, for all that is known.
            Answered::Nowhere => self.last == Outcome::Ignored,
        };
        let known = u32::try_from(failed.saturating_add(logged)).unwrap_or(u32::MAX);
        let known = known.saturating_add(last.into());
        self.made.saturating_sub(known)
    }

    /// Whether the entry had its turn before the one that answered.
    fn has_failed(&self, position: usize) -> bool {
        let Answered::Entry(at) = self.answered else { return false };
        // Of entries before one that lies further down than the attempts reach, some were skipped.
        // One behind it was asked beside it, by a hedge, or before, when the list was used up.
        self.retries == Retries::Failures
            && !self.within(at)
            && (position < at || (position > at && !self.within(self.listed)))
    }

    /// Whether there are no more attempts than `entries`.
    fn within(&self, entries: usize) -> bool {
        usize::try_from(self.made).unwrap_or(usize::MAX) <= entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIED: Outcome = Outcome::Failure(FailureKind::Attempt);
    const LAST: Outcome = Outcome::Success { slow: false };
    const NONE: Outcome = Outcome::Ignored;

    const ONE: Attempts<'static> = Attempts {
        made: 1,
        listed: 2,
        answered: Answered::Entry(0),
        last: LAST,
        retries: Retries::Failures,
        logged: &[],
    };

    fn charged(
        made: u32,
        listed: usize,
        answered: Answered,
        retries: Retries,
    ) -> (Vec<Outcome>, u32) {
        let attempts = Attempts { made, listed, answered, last: LAST, retries, logged: &[] };
        ((0..listed).map(|position| attempts.entry(position)).collect(), attempts.unknown())
    }

    #[test]
    fn earlier_attempts_failed_where_the_list_was_followed() {
        use Answered::{Entry, Nowhere, Other, Stranger};
        for (made, listed, answered, expect, unknown) in [
            (0, 2, Entry(0), vec![NONE, NONE], 0),
            (1, 1, Entry(0), vec![LAST], 0),
            (1, 3, Entry(0), vec![LAST, NONE, NONE], 0),
            (2, 3, Entry(1), vec![TRIED, LAST, NONE], 0),
            (3, 3, Entry(2), vec![TRIED, TRIED, LAST], 0),
            // The first of a hedge answers while the second is asked; the second, or the second of
            // three.
            (2, 2, Entry(0), vec![LAST, NONE], 1),
            (3, 3, Entry(1), vec![TRIED, LAST, NONE], 1),
            // The fallback policy chose where the last ones went.
            (5, 3, Entry(1), vec![TRIED, LAST, TRIED], 2),
            (3, 2, Entry(0), vec![LAST, TRIED], 1),
            (5, 3, Other(7), vec![NONE, NONE, NONE], 4),
            (u32::MAX, 1, Entry(0), vec![LAST], u32::MAX - 1),
            // Skipped, because they are no hosts of the cluster.
            (1, 3, Entry(1), vec![NONE, LAST, NONE], 1),
            (2, 3, Entry(2), vec![NONE, NONE, LAST], 2),
            // The list was not followed.
            (1, 2, Other(7), vec![NONE, NONE], 1),
            (2, 2, Other(7), vec![NONE, NONE], 2),
            (1, 2, Stranger, vec![NONE, NONE], 1),
            (3, 2, Stranger, vec![NONE, NONE], 3),
            (2, 2, Nowhere, vec![NONE, NONE], 2),
            (1, 0, Stranger, vec![], 1),
        ] {
            let found = charged(made, listed, answered, Retries::Failures);
            assert_eq!(found, (expect, unknown), "{made} over {listed}, {answered:?}");
        }
    }

    #[test]
    fn nothing_is_known_of_earlier_attempts_where_retries_follow_anything() {
        for (made, listed, at, unknown) in [(1, 3, 0, 0), (3, 3, 2, 2), (5, 3, 1, 4), (2, 2, 0, 1)]
        {
            let (found, left) = charged(made, listed, Answered::Entry(at), Retries::Any);
            let expect: Vec<_> = (0..listed).map(|p| if p == at { LAST } else { NONE }).collect();
            assert_eq!((found, left), (expect, unknown), "{made} over {listed}, {at}");
        }
    }

    #[test]
    fn whoever_answered_outside_the_list_has_the_outcome() {
        for answered in
            [Answered::Entry(0), Answered::Stranger, Answered::Nowhere, Answered::Other(7)]
        {
            let attempts = Attempts { answered, ..ONE };
            let expect = if answered == Answered::Other(7) { LAST } else { NONE };
            assert_eq!(attempts.other(), expect, "{answered:?}");
        }
    }

    #[test]
    fn an_attempt_that_reached_nobody_is_no_unknown_one() {
        let attempts =
            Attempts { made: 3, listed: 3, answered: Answered::Nowhere, last: NONE, ..ONE };
        assert_eq!(attempts.unknown(), 2);
    }

    #[test]
    fn what_the_router_has_logged_is_charged_as_it_was() {
        use Answered::{Entry, Nowhere, Other, Stranger};
        const RESET: Outcome = Outcome::Failure(FailureKind::Reset);
        let logged = |to, outcome| Logged { to, outcome };
        // A 404 that was no failure, a reset, an outrun hedge, one beyond the list, one at the
        // first again.
        let all = [
            logged(Entry(0), LAST),
            logged(Entry(1), RESET),
            logged(Entry(2), NONE),
            logged(Other(7), RESET),
            logged(Stranger, RESET),
            logged(Entry(0), RESET),
        ];
        for (count, answered, expect, asked, others, unknown) in [
            (0, Entry(0), [LAST, NONE, NONE], [true, false, false], vec![], 0),
            (1, Entry(1), [LAST, LAST, NONE], [true, true, false], vec![], 0),
            (2, Entry(2), [LAST, RESET, LAST], [true, true, true], vec![], 0),
            // The first answers after all.
            (1, Entry(0), [LAST, NONE, NONE], [true, false, false], vec![all[0]], 0),
            (3, Entry(1), [LAST, LAST, NONE], [true, true, true], vec![all[1]], 0),
            (6, Nowhere, [LAST, RESET, NONE], [true, true, true], all[3..].to_vec(), 3),
        ] {
            let attempts = Attempts {
                made: count as u32 + 1,
                listed: 3,
                answered,
                logged: &all[..count],
                retries: Retries::Logged,
                ..ONE
            };
            let found = [0, 1, 2].map(|position| attempts.entry(position));
            assert_eq!(found, expect, "{count}");
            assert_eq!([0, 1, 2].map(|position| attempts.was_asked(position)), asked, "{count}");
            assert_eq!(attempts.others().copied().collect::<Vec<_>>(), others, "{count}");
            assert_eq!(attempts.unknown(), unknown, "{count}");
        }
        // What the log has not told is unknown.
        let attempts = Attempts { made: 3, answered: Entry(2), logged: &all[..1], ..ONE };
        assert_eq!(Attempts { retries: Retries::Logged, ..attempts }.unknown(), 1);
        // By another policy nobody listens to it.
        let attempts = Attempts { made: 2, answered: Entry(1), logged: &all[..1], ..ONE };
        assert_eq!(attempts.entry(0), TRIED);
        assert_eq!(attempts.others().count(), 0);
    }

    proptest::proptest! {
        #[test]
        fn every_attempt_is_charged_or_unknown(
            made in 0..20u32, listed in 0..16usize, at in 0..16usize, any: bool, listed_one: bool,
        ) {
            let answered = match listed_one {
                true if listed > 0 => Answered::Entry(at % listed),
                true => Answered::Stranger,
                false => Answered::Other(7),
            };
            let retries = if any { Retries::Any } else { Retries::Failures };
            let attempts = Attempts { made, listed, answered, retries, ..ONE };
            let charged = (0..listed).filter(|p| attempts.entry(*p) != NONE).count() as u32;
            let elsewhere = u32::from(attempts.other() != NONE);
            let skipped = matches!(answered, Answered::Entry(at) if made as usize <= at);
            let replaced = u32::from(made > 0 && (skipped || elsewhere > 0 && made as usize <= listed));
            proptest::prop_assert_eq!(charged + elsewhere + attempts.unknown(), made + replaced);
        }
    }
}
