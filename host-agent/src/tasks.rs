//! The tasks that live as long as the agent, each by a name, and what is done when one does not.
//!
//! ```text
//!   ends, fails or panics:  a source is started again, any other ends the agent with a reason
//!   stalls:                 the watchdog, a thread that no task can hold up, ends the process
//! ```
//! What serves the connection of one peer is no such task: it may end at any time, and ends alone.

use std::any::Any;
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

mod fault;
mod watchdog;

pub(crate) use watchdog::{BEAT, Pulse, Stalled, patience, watch};

/// From the end of a source's task to its next start.
const RESTART_AFTER: Duration = Duration::from_secs(1);

type Failure = Box<dyn Error + Send + Sync>;

/// A task has ended that should not have.
#[derive(Debug, thiserror::Error)]
#[error("{task} {why}")]
pub struct Ended {
    /// Its name.
    pub task: &'static str,
    /// Why.
    pub why: Why,
    /// Tasks are numbered as they are started.
    number: u64,
}

impl Ended {
    /// Whether this is rather the cause of the other's end than the other way round.
    #[must_use]
    pub const fn precedes(&self, other: &Self) -> bool {
        match (self.why.is_none(), other.why.is_none()) {
            (false, true) => true,
            (true, false) => false,
            _ => self.number < other.number,
        }
    }
}

/// Why a task ended.
#[derive(Debug)]
pub enum Why {
    /// It returned.
    Returned,
    /// It returned an error.
    Failed(Failure),
    /// It panicked, with these words.
    Panicked(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned => f.write_str("ended without a reason"),
            Self::Failed(error) => {
                write!(f, "failed: {error}")?;
                let mut source = error.source();
                while let Some(error) = source {
                    write!(f, ": {error}")?;
                    source = error.source();
                }
                Ok(())
            }
            Self::Panicked(words) => write!(f, "panicked: {words}"),
        }
    }
}

impl Why {
    const fn is_none(&self) -> bool {
        matches!(self, Self::Returned)
    }

    fn of(ended: Result<Result<(), Failure>, JoinError>) -> Self {
        match ended {
            Ok(Ok(())) => Self::Returned,
            Ok(Err(error)) => Self::Failed(error),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Self::Panicked(words(panic.as_ref())),
                Err(cancelled) => Self::Failed(cancelled.into()),
            },
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no words").to_owned()
}

/// Tasks that run; they are cut off when this is dropped.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<Result<(), Failure>>,
    names: HashMap<Id, (u64, &'static str)>,
    pulses: Vec<(&'static str, Pulse)>,
}

impl Tasks {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_fallible(name, async {
            task.await;
            Ok::<_, Failure>(())
        });
    }

    /// Starts a task that can fail.
    pub fn spawn_fallible<E: Into<Failure>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let task = fault::inject(name, async { task.await.map_err(Into::into) });
        let handle = self.running.spawn(task);
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        self.names.insert(handle.id(), (number, name));
    }

    /// The signs of life that the task of this name is going to give.
    pub fn pulse(&mut self, name: &'static str) -> Pulse {
        let pulse = Pulse::default();
        self.pulses.push((name, pulse.clone()));
        pulse
    }

    /// The signs of life of all that give them.
    #[must_use]
    pub fn pulses(&self) -> Vec<(&'static str, Pulse)> {
        self.pulses.clone()
    }

    /// The first task to end; pends while there are none. Cancel-safe.
    pub async fn ended(&mut self) -> Ended {
        let Some(ended) = self.running.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let (id, ended) = match ended {
            Ok((id, done)) => (id, Ok(done)),
            Err(error) => (error.id(), Err(error)),
        };
        let (number, task) = self.names.remove(&id).unwrap_or((u64::MAX, "a task"));
        Ended { task, why: Why::of(ended), number }
    }

    /// Waits until all have ended, which they do after shutdown; one that panics then is logged.
    pub async fn join(mut self) {
        while !self.running.is_empty() {
            let Ended { task, why, .. } = self.ended().await;
            if !why.is_none() {
                tracing::error!(task, "{why}");
            }
        }
    }
}

/// Runs what `start` makes until shutdown, and starts it again whenever it ends before: for tasks
/// that find out by themselves where they were. `told` hears of each end.
pub(crate) async fn restarting<F>(
    name: &'static str,
    shutdown: CancellationToken,
    told: impl Fn(&Why),
    start: impl Fn() -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        // A set, so that it ends with this one.
        let mut one = Tasks::new();
        one.spawn(name, start());
        let ended = one.ended().await;
        if shutdown.is_cancelled() {
            return;
        }
        tracing::error!("{ended}; it is started again");
        told(&ended.why);
        tokio::select! {
            () = sleep(RESTART_AFTER) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[tokio::test]
    async fn the_first_to_end_is_named_with_its_reason() {
        let mut tasks = Tasks::new();
        tasks.spawn("idle", std::future::pending());
        tasks.spawn("hasty", async {});
        assert_eq!(tasks.ended().await.to_string(), "hasty ended without a reason");
        tasks.spawn("ill", async { panic!("of {}", 7) });
        assert_eq!(tasks.ended().await.to_string(), "ill panicked: of 7");
        tasks.spawn_fallible("poor", async { Err::<(), _>("no money") });
        assert_eq!(tasks.ended().await.to_string(), "poor failed: no money");
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_panics_is_started_again_until_shutdown() {
        let (starts, ends) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
        let shutdown = CancellationToken::new();
        let start = || {
            let (starts, shutdown) = (Arc::clone(&starts), shutdown.clone());
            async move {
                assert!(starts.fetch_add(1, Ordering::Relaxed) >= 2, "not yet");
                shutdown.cancel();
            }
        };
        let told = |why: &Why| {
            assert!(matches!(why, Why::Panicked(words) if words == "not yet"), "{why}");
            ends.fetch_add(1, Ordering::Relaxed);
        };
        restarting("source", shutdown.clone(), told, start).await;
        assert_eq!((starts.load(Ordering::Relaxed), ends.load(Ordering::Relaxed)), (3, 2));
    }
}
