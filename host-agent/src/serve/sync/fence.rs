//! One stream per Envoy: the newest leader's.
//!
//! A worker VM that trapped leaves its stream open until something replaces the VM, so the agent
//! cannot wait for the old leader to hang up. Each leader carries a fence that grows with every
//! change of leader; the highest one has the stream.
//!
//! The fence lives in the Envoy's shared data and starts over with the process, therefore it is
//! compared only with a stream that is open now, and only within one process: who the peer is
//! ([`crate::serve::gate::Caller::identity`]) is part of the name, so a hot restart (two processes,
//! one node id) does not fight, and a neighbour that uses another's node id cuts nobody off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Streams in force, by proxy and peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fences {
    held: Arc<Mutex<HashMap<String, Holder>>>,
}

#[derive(Debug)]
struct Holder {
    fence: u64,
    superseded: CancellationToken,
}

/// A stream's hold; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Hold {
    fences: Fences,
    name: String,
    /// Cancelled when a newer leader has come.
    pub superseded: CancellationToken,
}

/// A stream with a higher fence is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fence {held} is in force")]
pub(crate) struct Fenced {
    /// The fence in force.
    pub held: u64,
}

impl Fences {
    /// Takes the stream of `name` over; the older one is told. An equal fence is the same leader on
    /// a new stream.
    ///
    /// # Errors
    /// [`Fenced`] when a newer leader holds it.
    pub(crate) fn take(&self, name: &str, fence: u64) -> Result<Hold, Fenced> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = held.get(name) {
            if holder.fence > fence {
                return Err(Fenced { held: holder.fence });
            }
            holder.superseded.cancel();
        }
        let superseded = CancellationToken::new();
        held.insert(name.to_owned(), Holder { fence, superseded: superseded.clone() });
        Ok(Hold { fences: self.clone(), name: name.to_owned(), superseded })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A superseded hold's place belongs to its successor.
        if !self.superseded.is_cancelled() {
            let mut held = self.fences.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.remove(&self.name);
        }
    }
}
