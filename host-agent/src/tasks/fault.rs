//! Faults that a test puts into one task, in builds for development alone: a release has none.
//!
//! `TEST_PINTLE_FAULT=publisher=panic` (or `end`, `stall`) lets that task do so once, two seconds
//! after its start; what stalls is then found within seconds.

use std::time::Duration;

#[cfg(not(debug_assertions))]
pub(super) async fn inject<E>(
    _: &'static str,
    task: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    task.await
}

#[cfg(not(debug_assertions))]
pub(super) const fn patience() -> Option<Duration> {
    None
}

#[cfg(debug_assertions)]
pub(super) use wanted::{inject, patience};

#[cfg(debug_assertions)]
mod wanted {
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::sleep;

    use super::Duration;

    /// Long enough for whatever the task has to do at first, and for the watchdog's looks.
    const AFTER: Duration = Duration::from_secs(2);
    /// Five times what a task that is well takes for a round.
    const STALLED_AFTER: Duration = Duration::from_secs(5);

    fn fault(name: &str) -> Option<String> {
        let wanted = std::env::var("TEST_PINTLE_FAULT").ok()?;
        let (task, fault) = wanted.split_once('=')?;
        (task == name).then(|| fault.to_owned())
    }

    pub(in crate::tasks) fn patience() -> Option<Duration> {
        let wanted = std::env::var("TEST_PINTLE_FAULT").ok()?;
        wanted.ends_with("=stall").then_some(STALLED_AFTER)
    }

    #[expect(clippy::panic, reason = "what is wanted of it")]
    pub(in crate::tasks) async fn inject<E>(
        name: &'static str,
        task: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        static DONE: AtomicBool = AtomicBool::new(false);
        let Some(fault) = fault(name) else { return task.await };
        let mut task = pin!(task);
        tokio::select! {
            done = &mut task => return done,
            () = sleep(AFTER) => {}
        }
        if DONE.swap(true, Ordering::Relaxed) {
            return task.await;
        }
        match fault.as_str() {
            "panic" => panic!("as a test wants it"),
            "end" => Ok(()),
            _ => std::future::pending().await,
        }
    }
}
