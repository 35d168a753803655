//! What a worker has asked the agent for, where the agent tells only what is wanted.
//!
//! A name is asked for at most once in [`AGAIN`], and so many names are remembered that a client
//! who makes names up costs that many questions a second and no more.

use std::collections::BTreeMap;
use std::time::Duration;

use pintle_contract::Now;

/// For how long a request may wait for the table of its service.
pub const PATIENCE: Duration = Duration::from_millis(250);
/// How soon a name is asked for again, whatever the answer was.
const AGAIN: Duration = Duration::from_secs(1);
/// Names that are remembered, at most; while they all are newer than that, no other is asked for.
const MAX_ASKED: usize = 128;

/// What came of a request's service that has no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The agent has to be asked.
    Now,
    /// It was asked just before, and has not answered.
    Open,
    /// There is none, as it said just before; or too much was asked.
    Vain,
}

/// The names that were asked for, and when.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    asked: BTreeMap<Box<str>, Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Now,
    answered: bool,
}

impl Asked {
    /// A time to come is one of a clock that stepped back.
    fn is_recent(self, now: Now) -> bool {
        self.at <= now && now.since(self.at) < AGAIN
    }
}

impl Wanted {
    /// A request has come for a service without a table.
    pub fn ask(&mut self, name: &str, now: Now) -> Ask {
        match self.asked.get(name).filter(|asked| asked.is_recent(now)) {
            Some(Asked { answered: true, .. }) => return Ask::Vain,
            Some(_) => return Ask::Open,
            None => {}
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.retain(|_, asked| asked.is_recent(now));
            if self.asked.len() >= MAX_ASKED {
                return Ask::Vain;
            }
        }
        self.asked.insert(name.into(), Asked { at: now, answered: false });
        Ask::Now
    }

    /// The agent has said something of a service: its table, or that there is none.
    pub fn answered(&mut self, name: &str) {
        if let Some(asked) = self.asked.get_mut(name) {
            asked.answered = true;
        }
    }

    /// Whether an answer is still to come.
    #[must_use]
    pub fn is_open(&self, name: &str) -> bool {
        self.asked.get(name).is_some_and(|asked| !asked.answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now::from_millis(1_000_000 + millis)
    }

    #[test]
    fn a_name_is_asked_for_once_a_second_whatever_the_answer() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.ask("orders", at(0)), Ask::Now);
        assert_eq!(wanted.ask("orders", at(999)), Ask::Open);
        assert!(wanted.is_open("orders"));
        wanted.answered("orders");
        assert!(!wanted.is_open("orders"));
        assert_eq!(wanted.ask("orders", at(999)), Ask::Vain);
        assert_eq!(wanted.ask("orders", at(1_000)), Ask::Now);
        assert_eq!(wanted.ask("orders", at(0)), Ask::Now, "the clock stepped back");
    }

    #[test]
    fn names_that_somebody_makes_up_cost_a_bounded_number_of_questions() {
        let mut wanted = Wanted::default();
        let mut asked = 0;
        for number in 0..100_000u64 {
            // A second in all.
            let ask = wanted.ask(&format!("made-up-{number}"), at(number / 100));
            asked += usize::from(ask == Ask::Now);
        }
        assert_eq!(asked, MAX_ASKED);
        assert_eq!(wanted.asked.len(), MAX_ASKED);
        assert_eq!(wanted.ask("orders", at(2_000)), Ask::Now, "and those after it are heard");
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_not_remembered() {
        let mut wanted = Wanted::default();
        wanted.answered("orders");
        assert!(wanted.asked.is_empty());
    }
}
