//! What was refused: the newest for people, and all of it in short, so that a registry which is
//! read again is not counted again.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{MAX_LISTED, MAX_TOTAL};
use crate::snapshot::Rejected;

/// A source, and the key as it is shown.
type Place = (&'static str, String);

#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// At most [`MAX_TOTAL`]; what is refused beyond them is counted whenever it is read.
    known: BTreeMap<Place, Known>,
    /// The newest [`MAX_LISTED`], by number.
    shown: BTreeMap<u64, Rejected>,
    last_number: u64,
    /// How many listings have begun.
    listings: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    number: u64,
    /// Of reason and detail.
    hash: u64,
    /// The listing in which it was last refused.
    listing: u64,
}

impl Refusals {
    /// Takes one in; whether it is news. An event's always is.
    pub(super) fn add(&mut self, rejected: Rejected) -> bool {
        let mut hasher = DefaultHasher::new();
        (rejected.reason, &rejected.detail).hash(&mut hasher);
        let number = self.last_number.saturating_add(1);
        let fresh = Known { number, hash: hasher.finish(), listing: self.listings };
        if rejected.source != "event" {
            let place = (rejected.source, rejected.key.clone());
            let has_room = self.known.len() < MAX_TOTAL;
            match self.known.get_mut(&place) {
                Some(known) if known.hash == fresh.hash => {
                    known.listing = self.listings;
                    return false;
                }
                Some(known) => {
                    self.shown.remove(&known.number);
                    *known = fresh;
                }
                None if has_room => {
                    self.known.insert(place, fresh);
                }
                None => {}
            }
        }
        self.last_number = number;
        self.shown.insert(number, rejected);
        if self.shown.len() > MAX_LISTED {
            self.shown.pop_first();
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Forgets one that is good or gone; whether it was there.
    pub(super) fn remove(&mut self, source: &'static str, key: String) -> bool {
        let known = self.known.remove(&(source, key));
        known.map(|known| self.shown.remove(&known.number)).is_some()
    }

    /// Forgets those that `keep` does not name by source and key; whether any was there.
    pub(super) fn retain(&mut self, keep: impl Fn(&'static str, &str) -> bool) -> bool {
        self.retain_known(|(source, key), _| keep(source, key))
    }

    /// A listing begins: what is refused from now on is there.
    pub(super) const fn begin(&mut self) {
        self.listings = self.listings.saturating_add(1);
    }

    /// The listing has ended: what of it was not refused again is gone; whether any was.
    pub(super) fn end(&mut self, without_policies: bool) -> bool {
        let listing = self.listings;
        self.retain_known(|(source, _), known| match *source {
            "registry" => known.listing == listing,
            "policy" => without_policies || known.listing == listing,
            _ => true,
        })
    }

    /// For people, the newest last.
    pub(super) fn list(&self) -> Vec<Rejected> {
        self.shown.values().cloned().collect()
    }

    fn retain_known(&mut self, keep: impl Fn(&Place, &Known) -> bool) -> bool {
        let before = self.known.len();
        let shown = &mut self.shown;
        self.known.retain(|place, known| {
            let stays = keep(place, known);
            if !stays {
                shown.remove(&known.number);
            }
            stays
        });
        self.known.len() < before
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn refused(key: usize, detail: &str) -> Rejected {
        Rejected {
            source: "registry",
            key: format!("/services/{key:06}"),
            reason: "json",
            detail: detail.to_owned(),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn many_that_are_read_again_are_no_news_and_the_newest_are_shown() {
        let mut refusals = Refusals::default();
        let many = 3 * MAX_LISTED;
        for round in 0..3 {
            refusals.begin();
            let news = (0..many).filter(|key| refusals.add(refused(*key, "cut"))).count();
            assert_eq!(news, if round == 0 { many } else { 0 });
            assert!(!refusals.end(false));
        }
        assert_eq!(refusals.list().len(), MAX_LISTED);
        assert!(refusals.add(refused(7, "deep")), "it is wrong in another way");
        refusals.begin();
        assert!(!refusals.add(refused(8, "cut")));
        assert!(refusals.end(false), "all but one are gone");
        assert_eq!(refusals.known.len(), 1);
        assert!(refusals.list().is_empty(), "it was not among the newest");
        assert!(refusals.remove("registry", "/services/000008".into()) && refusals.is_empty());
    }
}
