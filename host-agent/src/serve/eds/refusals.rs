//! What Envoys have refused of discovery, until they take it or leave.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Refusals that are kept; of further ones nothing but their count in the metrics is known.
const MOST: usize = 64;

/// One refusal that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Whose, as the log names it.
    pub peer: String,
    /// `clusters` or `hosts`.
    pub what: &'static str,
    /// Why, in Envoy's words.
    pub why: String,
    /// When.
    pub at: SystemTime,
}

type Standing = BTreeMap<(u64, &'static str), Refusal>;

/// All that stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<Mutex<(u64, Standing)>>);

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, (u64, Standing)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that stand, the longest open stream first.
    pub(crate) fn all(&self) -> Vec<Refusal> {
        self.lock().1.values().cloned().collect()
    }

    /// A stream of `peer`.
    pub(super) fn of(&self, peer: String) -> OfStream {
        let mut all = self.lock();
        all.0 = all.0.wrapping_add(1);
        OfStream { stream: all.0, peer, all: self.clone() }
    }
}

/// The refusals on one stream, which end with it.
#[derive(Debug)]
pub(super) struct OfStream {
    stream: u64,
    peer: String,
    all: Refusals,
}

impl OfStream {
    /// Whose stream it is.
    pub(super) fn peer(&self) -> &str {
        &self.peer
    }

    /// `what` was refused.
    pub(super) fn refused(&self, what: &'static str, why: String) {
        let refusal = Refusal { peer: self.peer.clone(), what, why, at: SystemTime::now() };
        let mut all = self.all.lock();
        if all.1.len() < MOST {
            all.1.insert((self.stream, what), refusal);
        }
    }

    /// `what` was taken.
    pub(super) fn taken(&self, what: &'static str) {
        self.all.lock().1.remove(&(self.stream, what));
    }
}

impl Drop for OfStream {
    fn drop(&mut self) {
        self.all.lock().1.retain(|(stream, _), _| *stream != self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stands_until_it_is_taken_or_the_stream_ends() {
        let all = Refusals::default();
        let (one, other) = (all.of("uid 1".to_owned()), all.of("uid 2".to_owned()));
        one.refused("clusters", "no such filter".to_owned());
        one.refused("hosts", "too many".to_owned());
        other.refused("hosts", "too many".to_owned());
        let shown = || all.all().iter().map(|it| (it.peer.clone(), it.what)).collect::<Vec<_>>();
        let (me, you) = ("uid 1".to_owned(), "uid 2".to_owned());
        assert_eq!(
            shown(),
            [(me.clone(), "clusters"), (me.clone(), "hosts"), (you.clone(), "hosts")]
        );
        one.taken("hosts");
        assert_eq!(shown(), [(me, "clusters"), (you.clone(), "hosts")]);
        drop(one);
        assert_eq!(shown(), [(you, "hosts")]);
        let many: Vec<_> = (0..2 * MOST).map(|_| all.of("many".to_owned())).collect();
        many.iter().for_each(|it| it.refused("hosts", String::new()));
        assert_eq!(all.all().len(), MOST, "they are bounded");
    }
}
