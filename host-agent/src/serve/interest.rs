//! Which services the discovery streams of each proxy ask for, by its node id: where not every
//! proxy is sent all tables, its Watch stream begins with these.
//!
//! A name costs no more than the discovery stream that asked for it, and goes with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pintle_state::Snapshot;
use tokio::sync::watch;

/// Bytes of a node id.
pub(crate) const MAX_NODE: usize = 512;

/// The proxies in sight. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Interests {
    /// Of so many services every proxy is sent all.
    all_up_to: usize,
    proxies: Arc<Mutex<HashMap<String, Weak<Interest>>>>,
}

/// What one proxy asks for, by how many streams.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    names: Mutex<BTreeMap<String, u32>>,
    changed: watch::Sender<()>,
}

/// One discovery stream's part of it.
#[derive(Debug, Default)]
pub(crate) struct Part {
    interest: Option<Arc<Interest>>,
    names: BTreeSet<String>,
}

impl Interests {
    /// Of so many services every proxy is to be sent all.
    pub(crate) fn new(all_up_to: usize) -> Self {
        Self { all_up_to, proxies: Arc::default() }
    }

    /// Whether proxies are sent only what they want.
    pub(crate) const fn count_in(&self, now: &Snapshot) -> bool {
        now.services.len() > self.all_up_to
    }

    /// Of the proxy with this node id.
    pub(crate) fn of(&self, node: &str) -> Arc<Interest> {
        let mut all = self.proxies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(node).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, interest| interest.strong_count() > 0);
        let fresh = Arc::<Interest>::default();
        all.insert(node.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}

impl Interest {
    /// All names.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Says when they have changed.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn change(&self, gone: &[&String], new: &[&String]) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for name in new {
            let count = names.entry((*name).clone()).or_default();
            *count = count.saturating_add(1);
        }
        for name in gone {
            if let Some(count) = names.get_mut(*name) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    names.remove(*name);
                }
            }
        }
        drop(names);
        self.changed.send_replace(());
    }
}

impl Part {
    /// The stream has said whose it is; what it says later changes nothing.
    pub(crate) fn begin(&mut self, interests: &Interests, node: Option<&str>) {
        let node = node.filter(|node| node.len() <= MAX_NODE);
        if let (None, Some(node)) = (&self.interest, node) {
            self.interest = Some(interests.of(node));
        }
    }

    /// The stream asks for these now.
    pub(crate) fn set(&mut self, names: &BTreeSet<String>) {
        let Some(interest) = &self.interest else { return };
        let gone: Vec<&String> = self.names.difference(names).collect();
        let new: Vec<&String> = names.difference(&self.names).collect();
        if !gone.is_empty() || !new.is_empty() {
            interest.change(&gone, &new);
            self.names.clone_from(names);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(&BTreeSet::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_name_is_asked_for_until_the_last_stream_that_did_is_gone() {
        let interests = Interests::new(0);
        Part::default().begin(&interests, Some(&"x".repeat(MAX_NODE + 1)));
        let proxy = interests.of("proxy-1");
        let mut changed = proxy.watch();
        let [mut one, mut two] = [Part::default(), Part::default()];
        one.set(&set(&["unheard"]));
        one.begin(&interests, Some("proxy-1"));
        one.begin(&interests, Some("proxy-2"));
        two.begin(&interests, Some("proxy-1"));
        one.set(&set(&["orders", "users"]));
        two.set(&set(&["orders"]));
        assert_eq!(proxy.names(), set(&["orders", "users"]));
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        two.set(&set(&["orders"]));
        assert!(!changed.has_changed().unwrap(), "the same again");
        drop(one);
        assert_eq!(proxy.names(), set(&["orders"]));
        assert_eq!(interests.of("proxy-2").names(), set(&[]));
        drop(two);
        drop(proxy);
        interests.of("proxy-3");
        assert_eq!(interests.proxies.lock().unwrap().len(), 1, "nobody is left of the others");
    }
}
