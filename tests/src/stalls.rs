//! Stalls of the machine, so that what came late by one is not charged to who is measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

type Spans = Arc<Mutex<Vec<(Instant, Instant)>>>;

/// A thread on every core that wakes each half a millisecond and writes down when it could not:
/// then somebody else had the core.
#[derive(Debug)]
pub struct Stalls {
    seen: Spans,
    done: Arc<AtomicBool>,
}

impl Stalls {
    /// Watches from now until this is dropped.
    pub fn watch() -> Self {
        let stalls = Self { seen: Arc::default(), done: Arc::default() };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for core in 0..cores {
            let (seen, done) = (stalls.seen.clone(), stalls.done.clone());
            std::thread::spawn(move || {
                stay_on(core);
                let mut last = Instant::now();
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_micros(500));
                    let now = Instant::now();
                    if now - last > Duration::from_micros(1_500) {
                        lock(&seen).push((last, now));
                    }
                    last = now;
                }
            });
        }
        stalls
    }

    /// Whether a core was taken at any time between the two.
    pub fn between(&self, from: Instant, to: Instant) -> bool {
        self.longest(from, to) > Duration::ZERO
    }

    /// The longest time for which a core was taken that touches the time between the two.
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        let seen = lock(&self.seen);
        let touching = seen.iter().filter(|(began, ended)| *began < to && *ended > from);
        touching.map(|(began, ended)| *ended - *began).max().unwrap_or_default()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

fn lock(spans: &Spans) -> std::sync::MutexGuard<'_, Vec<(Instant, Instant)>> {
    spans.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stay_on(core: usize) {
    // SAFETY: a set of cores is plain bits, of which all zero is one, and it outlives both calls.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, std::mem::size_of_val(&set), &set);
    }
}
