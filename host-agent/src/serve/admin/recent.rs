//! The last activities, for those who look later, and the coming ones, for those who look now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::view::ActivityJson;
use crate::link::Activity;

/// Remembered; an operator who comes after the fact wants minutes, not the day.
const REMEMBERED: usize = 256;

/// A bounded memory of activities.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    last: Arc<Mutex<VecDeque<ActivityJson>>>,
    coming: broadcast::Sender<ActivityJson>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { last: Arc::default(), coming: broadcast::channel(REMEMBERED).0 }
    }
}

impl Recent {
    /// Remembers one.
    pub(crate) fn push(&self, activity: &Activity) {
        let activity = ActivityJson::of(activity);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= REMEMBERED {
            last.pop_front();
        }
        last.push_back(activity.clone());
        // Sent under the lock, so that a follower has each one exactly once.
        let _ = self.coming.send(activity);
    }

    /// Remembers all that come, until their sender is gone.
    pub(crate) async fn listen(self, mut activities: broadcast::Receiver<Activity>) {
        loop {
            match activities.recv().await {
                Ok(activity) => self.push(&activity),
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "activities not shown");
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// The last ones, oldest first.
    #[must_use]
    pub(crate) fn last(&self) -> Vec<ActivityJson> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.iter().cloned().collect()
    }

    /// The last ones and those that follow on them.
    #[must_use]
    pub(crate) fn follow(&self) -> (Vec<ActivityJson>, broadcast::Receiver<ActivityJson>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        (last.iter().cloned().collect(), self.coming.subscribe())
    }
}
