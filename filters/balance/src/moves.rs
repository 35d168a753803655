//! Where the endpoints of a table were in the one before.
//!
//! What is kept by index goes along ([`Moves::carry`]): who stays keeps what was learned of it, and
//! one of ten thousand that is replaced costs a pass over the others, not their making anew.

/// Of every endpoint, both ways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// By index now, where it was.
    from: Vec<u32>,
    /// By index before, where it is.
    to: Vec<u32>,
    /// Whether few have come or gone, and the others are in the order in which they were.
    few: bool,
}

/// Many more are moved one by one sooner than all others for each of them.
const FEW: usize = 16;

/// Of one that has come, or gone.
const NOWHERE: u32 = u32::MAX;

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
        let mut moves = Self { from: from.collect(), to, few: false };
        let changes = moves.new_ones().chain(moves.gone()).take(FEW + 1).count();
        moves.few = changes <= FEW
            && moves.from.iter().filter(|&&from| from != NOWHERE).is_sorted_by(|a, b| a < b);
        moves
    }

    /// Where the endpoint that was at `before` is; `None`: it has gone.
    #[must_use]
    pub fn to(&self, before: usize) -> Option<usize> {
        self.to.get(before).filter(|&&at| at != NOWHERE).map(|&at| at as usize)
    }

    /// Those that have come, by their indices now, ascending.
    pub fn new_ones(&self) -> impl Iterator<Item = usize> + Clone {
        nowhere(&self.from)
    }

    /// Those that have gone, by their indices before, ascending.
    pub fn gone(&self) -> impl Iterator<Item = usize> + Clone {
        nowhere(&self.to)
    }

    /// Whether everybody is where it was, and nobody else.
    pub(crate) fn is_none(&self) -> bool {
        self.from.len() == self.to.len() && self.from.iter().zip(0..).all(|(&from, at)| from == at)
    }

    /// What is kept by index, in the new order. `new`: of those that have come, in their order.
    pub fn carry<T>(&self, mut kept: Vec<T>, mut new: impl Iterator<Item = T>) -> Vec<T> {
        if self.few && kept.len() == self.to.len() {
            let gone: Vec<usize> = self.gone().collect();
            gone.into_iter().rev().for_each(|at| drop(kept.remove(at)));
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

    /// The same of a sorted list of indices by something of theirs, without those whose index now is
    /// `away`; `new`: of all others that are to be in it.
    pub(crate) fn renumber<K: Ord>(
        &self,
        sorted: &mut Vec<(K, u32)>,
        away: &[usize],
        new: impl Iterator<Item = (K, u32)>,
    ) {
        sorted.retain_mut(|(_, at)| {
            *at = self.to.get(*at as usize).copied().unwrap_or(NOWHERE);
            *at != NOWHERE && (away.is_empty() || away.binary_search(&(*at as usize)).is_err())
        });
        if self.few && away.len() <= FEW {
            for new in new {
                sorted.insert(sorted.partition_point(|it| *it < new), new);
            }
        } else {
            sorted.extend(new);
            sorted.sort_unstable();
        }
    }
}

fn nowhere(list: &[u32]) -> impl Iterator<Item = usize> + Clone {
    list.iter().enumerate().filter(|&(_, &at)| at == NOWHERE).map(|(at, _)| at)
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
            assert!(few.few);
            let many = Moves { few: false, ..few.clone() };
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
        assert!(!all(20..40).few && all(0..40).few && all(1..40).few);
    }

    #[test]
    fn where_nobody_moves_everything_stays() {
        let moves = Moves::new([Some(0), Some(1)].into_iter(), 2);
        assert!(moves.is_none());
        assert_eq!(moves.carry(vec![4, 5], std::iter::empty()), [4, 5]);
        assert!(!Moves::new([Some(0)].into_iter(), 2).is_none());
        assert!(!Moves::new([Some(0), None].into_iter(), 1).is_none());
    }
}
