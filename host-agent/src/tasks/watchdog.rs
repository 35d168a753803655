//! A thread that ends a process whose work stands still.
//!
//! A task gives a sign each time that it goes round ([`Pulse`]), at least every [`BEAT`]. The
//! thread looks ten times within its patience, and counts the looks at which nothing had moved, not
//! the time: a process that was stopped for an hour, or a machine that slept, has missed one look
//! and not an hour.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::fault;

/// A task that is watched goes round at least once in this time.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// A task that gives no sign for so long stands still. The longest honest round builds the tables
/// of 100,000 endpoints, which takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOKS: u32 = 10;

/// A task's signs of life.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// Gives a sign.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A task stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{task} has given no sign of life for {for_} s")]
pub(crate) struct Stalled {
    /// Its name.
    pub task: &'static str,
    /// For so many seconds.
    pub for_: u64,
}

/// For how long a task may give no sign.
#[must_use]
pub(crate) fn patience() -> Duration {
    fault::patience().unwrap_or(PATIENCE)
}

/// Starts the thread; `stalled` is called once, on it. It ends within a look after `stop`.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn watch(
    pulses: Vec<(&'static str, Pulse)>,
    patience: Duration,
    stop: CancellationToken,
    stalled: impl FnOnce(Stalled) + Send + 'static,
) -> std::io::Result<()> {
    let look = move || {
        let mut seen: Vec<(u64, u32)> = vec![(0, 0); pulses.len()];
        loop {
            std::thread::sleep(patience / LOOKS);
            if stop.is_cancelled() {
                return;
            }
            for ((task, pulse), (beats, still)) in pulses.iter().zip(&mut seen) {
                let now = pulse.0.load(Ordering::Relaxed);
                *still = if now == *beats { still.saturating_add(1) } else { 0 };
                *beats = now;
                if *still >= LOOKS {
                    return stalled(Stalled { task, for_: patience.as_secs() });
                }
            }
        }
    };
    std::thread::Builder::new().name("watchdog".into()).spawn(look).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;

    #[test]
    fn a_pulse_that_stops_is_told_and_one_that_beats_is_not() {
        let (well, ill) = (Pulse::default(), Pulse::default());
        let (sender, told) = channel();
        let stop = CancellationToken::new();
        let pulses = vec![("well", well.clone()), ("ill", ill.clone())];
        let patience = Duration::from_secs(2);
        watch(pulses, patience, stop, move |stalled| sender.send(stalled).unwrap()).unwrap();
        for _ in 0..30 {
            well.beat();
            ill.beat();
            let tick = told.recv_timeout(Duration::from_millis(100));
            assert_eq!(tick, Err(RecvTimeoutError::Timeout));
        }
        let stalled = loop {
            well.beat();
            match told.recv_timeout(Duration::from_millis(100)) {
                Ok(stalled) => break stalled,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the thread is gone"),
            }
        };
        assert_eq!(stalled.to_string(), "ill has given no sign of life for 2 s");
    }

    #[test]
    fn after_the_stop_nothing_is_told() {
        let (sender, told) = channel();
        let stop = CancellationToken::new();
        stop.cancel();
        let pulses = vec![("ill", Pulse::default())];
        watch(pulses, Duration::from_millis(100), stop, move |it| sender.send(it).unwrap())
            .unwrap();
        assert!(told.recv().is_err());
    }
}
