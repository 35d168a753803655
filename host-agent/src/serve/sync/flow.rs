//! How fast reports are taken: a token a message and one more per 4 KiB, from the accounts of the
//! process and of the user.
//!
//! Whoever overdraws an account waits, and flow control slows the sender; nothing is lost by
//! waiting, because reports are cumulative. One stream pays from the same accounts as the next of
//! its process, so that opening more of them gains nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::serve::quota::{Owner, User};

/// Tokens a second of one process. Ten workers that report 1,000 services each second need about
/// 500.
pub(super) const FLOW: u32 = 4_000;
/// Tokens that a process saves up at most.
pub(super) const BURST: u32 = 20_000;
/// Processes at full speed that one user may have: a machine's Envoys often share their user.
const PROCESSES: u32 = 8;

/// The accounts in use. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Flows {
    accounts: Arc<Mutex<Accounts>>,
}

type Accounts = HashMap<(User, Option<i32>), Weak<Mutex<Flow>>>;

/// The accounts that one stream pays from.
#[derive(Debug)]
pub(super) struct Paid(Vec<Arc<Mutex<Flow>>>);

/// A token bucket that is paid after the fact: it may go into debt by one message.
#[derive(Debug)]
pub(super) struct Flow {
    tokens: f64,
    at: Instant,
    rate: u32,
    burst: u32,
}

impl Flows {
    /// The accounts of `owner`.
    pub(super) fn of(&self, owner: Owner, now: Instant) -> Paid {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|_, account| account.strong_count() > 0);
        let mut account = |process: Option<i32>, times: u32| {
            let key = (owner.user, process);
            accounts.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let fresh = Arc::new(Mutex::new(Flow::new(FLOW * times, BURST * times, now)));
                accounts.insert(key, Arc::downgrade(&fresh));
                fresh
            })
        };
        let mut paid = vec![account(None, PROCESSES)];
        paid.extend(owner.process.map(|process| account(Some(process), 1)));
        Paid(paid)
    }
}

impl Paid {
    /// Until when to wait, if at all.
    pub(super) fn pay(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let pay = |flow: &Arc<Mutex<Flow>>| {
            flow.lock().unwrap_or_else(PoisonError::into_inner).pay(bytes, now)
        };
        // All pay, also where the first has to wait.
        self.0.iter().map(pay).fold(None, Option::max)
    }
}

impl Flow {
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self { tokens: f64::from(burst), at: now, rate, burst }
    }

    /// Until when to wait, if at all.
    pub(super) fn pay(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let burst = f64::from(self.burst);
        self.tokens = (self.tokens + passed * f64::from(self.rate)).min(burst);
        self.tokens -= 1.0 + (bytes / 4096) as f64;
        let debt = -self.tokens / f64::from(self.rate);
        (self.tokens < 0.0).then(|| now + Duration::from_secs_f64(debt))
    }
}
