//! Which endpoints may be worth telling the other workers of: of thousands those that were asked or
//! heard of lately, so that nobody looks at the others to find out.

/// How long ago something came of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing that is worth telling.
    Past,
    /// So long that it is told of once in a while.
    Known,
    /// So lately that it is told of with every tick.
    Fresh,
}

/// By index.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// Those that are not past.
    known: Vec<u32>,
    /// The fresh among them.
    fresh: Vec<u32>,
    stages: Vec<Stage>,
}

impl News {
    /// Of so many endpoints none.
    pub(crate) fn of(count: usize) -> Self {
        Self { stages: vec![Stage::Past; count], ..Self::default() }
    }

    /// Something came of the endpoint.
    #[inline]
    pub(crate) fn note(&mut self, index: usize) {
        if let Some(stage) = self.stages.get_mut(index)
            && *stage != Stage::Fresh
        {
            if *stage == Stage::Past {
                self.known.push(index as u32);
            }
            self.fresh.push(index as u32);
            *stage = Stage::Fresh;
        }
    }

    /// Something is heard of the endpoint that came a while ago.
    pub(crate) fn note_old(&mut self, index: usize) {
        if let Some(stage) = self.stages.get_mut(index)
            && *stage == Stage::Past
        {
            self.known.push(index as u32);
            *stage = Stage::Known;
        }
    }

    /// Looks at all again: who is no news any more, and who no fresh one.
    pub(crate) fn age(
        &mut self,
        is_news: impl Fn(usize) -> bool,
        is_fresh: impl Fn(usize) -> bool,
    ) {
        let Self { known, fresh, stages } = self;
        let mut keep = |list: &mut Vec<u32>, keeps: &dyn Fn(usize) -> bool, less: Stage| {
            list.retain(|&index| {
                let keep = keeps(index as usize);
                if let Some(stage) = stages.get_mut(index as usize).filter(|_| !keep) {
                    *stage = less;
                }
                keep
            });
        };
        keep(fresh, &is_fresh, Stage::Known);
        keep(known, &is_news, Stage::Past);
    }

    /// Those that may be fresh, with `all` those that may be news.
    pub(crate) fn iter(&self, all: bool) -> impl Iterator<Item = usize> + '_ {
        let list = if all { &self.known } else { &self.fresh };
        list.iter().map(|&index| index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_fresh_then_known_then_past() {
        let mut news = News::of(4);
        let listed = |news: &News| [false, true].map(|all| news.iter(all).collect::<Vec<_>>());
        [2, 0, 2, 9].iter().for_each(|&index| news.note(index));
        assert_eq!(listed(&news), [[2, 0], [2, 0]]);
        news.age(|_| true, |index| index == 0);
        assert_eq!(listed(&news), [vec![0], vec![2, 0]]);
        news.note(2);
        assert_eq!(listed(&news), [[0, 2], [2, 0]], "fresh again, and listed once");
        news.age(|index| index == 2, |_| false);
        assert_eq!(listed(&news), [vec![], vec![2]]);
        news.note(0);
        assert_eq!(listed(&news), [vec![0], vec![2, 0]]);
        [0, 3, 3].iter().for_each(|&index| news.note_old(index));
        assert_eq!(listed(&news), [vec![0], vec![2, 0, 3]]);
    }
}
