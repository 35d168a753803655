//! Where the endpoints of a table were in the one before.
//!
//! What is kept by index goes along ([`Moves::carry`]): who stays keeps what was learned of it, and
//! one of ten thousand that is replaced costs a pass over the others, not their making anew.

/// Of every endpoint, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// By index now, where it was; none where everybody is where it was.
    from: Vec<u32>,
    /// By index before, where it is.
    to: Vec<u32>,
    /// Those that have come, by their indices now, ascending.
    new: Vec<u32>,
    /// Those that have gone, by their indices before, ascending.
    gone: Vec<u32>,
    /// Those that stay are in the order in which they were.
    ordered: bool,
}

/// Of one that has come, or gone.
const NOWHERE: u32 = u32::MAX;
/// Many more are moved one by one sooner than all others for each of them.
const FEW: usize = 16;

impl Moves {
    /// `from`: of every endpoint of the table, where it was among `before`. Who is named twice
    /// comes anew the second time.
    pub(crate) fn new(from: impl Iterator<Item = Option<usize>>, before: usize) -> Self {
        let mut to = vec![NOWHERE; before];
        let from = from.zip(0_u32..).map(|(from, at)| match from.and_then(|it| to.get_mut(it)) {
            Some(place) if *place == NOWHERE => {
                *place = at;
                from.map_or(NOWHERE, |it| it as u32)
            }
            _ => NOWHERE,
        });
        let from: Vec<u32> = from.collect();
        let (new, gone) = (nowhere(&from), nowhere(&to));
        let ordered = from.iter().filter(|&&from| from != NOWHERE).is_sorted();
        Self { from, to, new, gone, ordered }
    }

    /// Everybody is where it was, and nobody else.
    pub(crate) fn none() -> Self {
        Self::new(std::iter::empty(), 0)
    }

    /// Where the endpoint that was at `before` is; `None`: it has gone.
    #[must_use]
    pub fn to(&self, before: usize) -> Option<usize> {
        if self.is_none() {
            return Some(before);
        }
        self.to.get(before).filter(|&&at| at != NOWHERE).map(|&at| at as usize)
    }

    /// Those that have come, by their indices now, ascending.
    pub fn new_ones(&self) -> impl ExactSizeIterator<Item = usize> + Clone {
        self.new.iter().map(|&at| at as usize)
    }

    /// Those that have gone, by their indices before, ascending.
    pub fn gone(&self) -> impl DoubleEndedIterator<Item = usize> + ExactSizeIterator {
        self.gone.iter().map(|&at| at as usize)
    }

    /// Whether everybody is where it was, and nobody else.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.new.is_empty() && self.gone.is_empty() && self.ordered
    }

    const fn are_few(&self) -> bool {
        self.ordered && self.new.len().saturating_add(self.gone.len()) <= FEW
    }

    /// What is kept by index, in the new order. `new`: of those that have come, in their order.
    pub fn carry<T>(&self, mut kept: Vec<T>, mut new: impl Iterator<Item = T>) -> Vec<T> {
        if self.is_none() {
            return kept;
        }
        if self.are_few() && kept.len() == self.to.len() {
            self.gone().rev().for_each(|at| drop(kept.remove(at)));
            self.new_ones().zip(new).for_each(|(at, new)| kept.insert(at, new));
            return kept;
        }
        let mut kept: Vec<Option<T>> = kept.into_iter().map(Some).collect();
        let mut carried = Vec::with_capacity(self.from.len());
        for &from in &self.from {
            let old = kept.get_mut(from as usize).and_then(Option::take);
            carried.extend(old.or_else(|| new.next()));
        }
        carried
    }

    /// The same of a sorted list of indices by something of theirs. Those whose index now is in
    /// `away` leave it; `new`: those that are to be in it beside the rest.
    pub(crate) fn renumber<K: Ord>(
        &self,
        sorted: &mut Vec<(K, u32)>,
        away: &[usize],
        new: impl Iterator<Item = (K, u32)>,
    ) {
        sorted.retain_mut(|(_, at)| {
            if !self.is_none() {
                *at = self.to.get(*at as usize).copied().unwrap_or(NOWHERE);
            }
            *at != NOWHERE && (away.is_empty() || away.binary_search(&(*at as usize)).is_err())
        });
        if self.are_few() && away.len() <= FEW {
            for new in new {
                sorted.insert(sorted.partition_point(|it| *it < new), new);
            }
        } else {
            sorted.extend(new);
            sorted.sort_unstable();
        }
    }
}

fn nowhere(list: &[u32]) -> Vec<u32> {
    list.iter().zip(0..).filter(|&(&at, _)| at == NOWHERE).map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stays_goes_along_and_who_is_named_twice_comes_anew() {
        let moves = Moves::new([Some(2), None, Some(0), Some(2), Some(9)].into_iter(), 3);
        assert_eq!(moves.new_ones().collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(moves.gone().collect::<Vec<_>>(), [1]);
        assert_eq!((moves.to(0), moves.to(1), moves.to(2)), (Some(2), None, Some(0)));
        assert_eq!(moves.carry(vec!["a", "b", "c"], ["n", "o", "p"].into_iter()).concat(), "cnaop");
        let mut sorted = vec![("a", 0), ("b", 1), ("c", 2)];
        moves.renumber(&mut sorted, &[0], [("aa", 1)].into_iter());
        assert_eq!(sorted, [("a", 2), ("aa", 1)]);
    }

    #[test]
    fn few_and_many_come_to_the_same() {
        for from in [vec![None, Some(1), None, Some(3), Some(4)], vec![Some(0), Some(4), None]] {
            let few = Moves::new(from.into_iter(), 5);
            assert!(few.are_few());
            let many = Moves { ordered: false, ..few.clone() };
            let carried = |it: &Moves| it.carry(vec![10, 11, 12, 13, 14], [20, 21].into_iter());
            assert_eq!(carried(&few), carried(&many));
            let renumbered = |it: &Moves| {
                let mut sorted = vec![(7, 3), (7, 4), (8, 1), (9, 0), (9, 2)];
                it.renumber(&mut sorted, &[1], it.new_ones().map(|at| (8, at as u32)));
                sorted
            };
            assert_eq!(renumbered(&few), renumbered(&many));
        }
        let all = |from: std::ops::Range<usize>| Moves::new(from.map(Some), 40);
        assert!(!all(20..40).are_few() && all(0..40).are_few() && all(1..40).are_few());
    }

    #[test]
    fn where_nobody_moves_everything_stays() {
        let moves = Moves::new([Some(0), Some(1)].into_iter(), 2);
        assert!(moves.is_none());
        assert_eq!(Moves::none().to(7), Some(7));
        assert_eq!(Moves::none().carry(vec![1], [2].into_iter()), [1]);
        assert_eq!(moves.carry(vec![4, 5], std::iter::empty()), [4, 5]);
        assert!(!Moves::new([Some(0)].into_iter(), 2).is_none());
        assert!(!Moves::new([Some(0), None].into_iter(), 1).is_none());
    }
}
