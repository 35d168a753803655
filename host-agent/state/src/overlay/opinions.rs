//! Which opinions there are, in the order in which they came: the oldest give way when there are
//! too many, of one source or in all.

use std::collections::{BTreeMap, BTreeSet};

use super::Key;

/// Opinions in all, at most.
pub const MAX_OPINIONS: usize = 20_000;
/// Opinions of one agent, at most: one that floods drives out its own.
const MAX_OF_ONE: usize = 5_000;

/// Opinions by number; a later one has a higher number.
#[derive(Debug, Default)]
pub(super) struct Opinions {
    all: BTreeMap<u64, (String, Key)>,
    by_agent: BTreeMap<String, BTreeSet<u64>>,
}

impl Opinions {
    pub(super) fn add(&mut self, number: u64, service: &str, key: &Key, agent: &str) {
        self.all.insert(number, (service.to_owned(), key.clone()));
        match self.by_agent.get_mut(agent) {
            Some(numbers) => numbers.insert(number),
            None => self.by_agent.entry(agent.to_owned()).or_default().insert(number),
        };
    }

    pub(super) fn remove(&mut self, number: u64, agent: &str) {
        self.all.remove(&number);
        if let Some(numbers) = self.by_agent.get_mut(agent) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_agent.remove(agent);
            }
        }
    }

    /// The one that has to go before another of this agent is added, if one has to.
    pub(super) fn in_the_way(&self, agent: &str) -> Option<(String, Key)> {
        let own = self.by_agent.get(agent).filter(|numbers| numbers.len() >= MAX_OF_ONE);
        let number = match own {
            Some(numbers) => numbers.first()?,
            None if self.all.len() >= MAX_OPINIONS => self.all.first_key_value()?.0,
            None => return None,
        };
        self.all.get(number).cloned()
    }
}
