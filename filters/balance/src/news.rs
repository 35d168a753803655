//! Which endpoints may be worth telling the other workers of: of thousands those that were asked or
//! heard of lately, so that nobody looks at the others to find out.

/// By index.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    listed: Vec<u32>,
    /// Whether an endpoint is listed.
    is_listed: Vec<bool>,
}

impl News {
    /// Of so many endpoints none.
    pub(crate) fn of(count: usize) -> Self {
        Self { listed: Vec::new(), is_listed: vec![false; count] }
    }

    /// Something came of the endpoint.
    #[inline]
    pub(crate) fn note(&mut self, index: usize) {
        if let Some(listed) = self.is_listed.get_mut(index)
            && !std::mem::replace(listed, true)
        {
            self.listed.push(index as u32);
        }
    }

    /// Forgets those that are no news any more.
    pub(crate) fn retain(&mut self, is_news: impl Fn(usize) -> bool) {
        let Self { listed, is_listed } = self;
        listed.retain(|&index| {
            let keep = is_news(index as usize);
            if let Some(listed) = is_listed.get_mut(index as usize) {
                *listed = keep;
            }
            keep
        });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.listed.iter().map(|&index| index as usize)
    }
}
