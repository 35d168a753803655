//! What the proxy of one stream wants: by its discovery streams, its configuration, its requests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pintle_contract::Want;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::cursor::Cursor;
use crate::serve::interest::Interest;

/// A module that reads this schema says what it holds as soon as it hears of it.
const WITHIN: Duration = Duration::from_secs(5);
/// Services that a configuration names, at most; those of more are told with a first request.
const NAMED: usize = 1_024;

/// The sources of what one stream is to be sent.
pub(super) struct Wants {
    interest: Arc<Interest>,
    changed: watch::Receiver<()>,
    asked: mpsc::Receiver<Want>,
    /// Wanted for as long as the stream is open.
    named: BTreeSet<String>,
    came: u64,
}

impl Wants {
    pub(super) fn new(interest: Arc<Interest>, asked: mpsc::Receiver<Want>) -> Self {
        Self { changed: interest.watch(), interest, asked, named: BTreeSet::new(), came: 0 }
    }

    /// What the proxy says first: what it holds, and what its configuration names. None where it is
    /// late: without it, it would be told that all it holds is gone.
    pub(super) async fn first(&mut self, began: Instant) -> Option<Want> {
        let said = timeout_at(began + WITHIN, self.asked.recv()).await;
        self.came = self.came.saturating_add(1);
        said.ok().flatten()
    }

    /// What it says next; none where its discovery streams ask for something else.
    pub(super) async fn next(&mut self) -> Option<Want> {
        tokio::select! {
            Some(want) = self.asked.recv() => {
                self.came = self.came.saturating_add(1);
                Some(want)
            }
            Ok(()) = self.changed.changed() => None,
            else => std::future::pending().await,
        }
    }

    /// What it has said already.
    pub(super) fn try_next(&mut self) -> Option<Want> {
        let want = self.asked.try_recv().ok()?;
        self.came = self.came.saturating_add(1);
        Some(want)
    }

    /// Tells the cursor what has come: the first thing that the proxy says, in the middle of a
    /// stream, what its requests ask for, or another wish of its discovery streams.
    pub(super) fn tell(&mut self, cursor: &mut Cursor, news: Option<Want>) {
        match news {
            Some(want) if self.came > 1 => cursor.ask(want.services),
            first => cursor.want(self.standing(first.unwrap_or_default().services)),
        }
    }

    /// What is wanted whether it is there or not: what the discovery streams ask for, and `named`.
    pub(super) fn standing(&mut self, named: Vec<String>) -> BTreeSet<String> {
        let room = NAMED.saturating_sub(self.named.len());
        self.named.extend(named.into_iter().take(room));
        self.changed.mark_unchanged();
        let mut all = self.interest.names();
        all.extend(self.named.iter().cloned());
        all
    }
}
