//! Counting and failing host calls.
//!
//! Every call of the guest passes here first. Counting shows what a request costs, since crossings
//! are what costs in Envoy. Failing answers a call without doing it, the way Envoy answers a call
//! outside of the allowed capabilities: nothing is written to the guest's memory, and the status is
//! what the test said, which may be one that the specification does not know.

use crate::abi::HostCall;
use crate::vm::Thread;

/// A host call that will fail: which one, how, when and how often.
#[derive(Clone, Debug)]
pub struct Fault {
    call: HostCall,
    status: u32,
    skip: u64,
    times: u64,
    thread: Option<Thread>,
}

impl Fault {
    /// The next call of `call` answers `status` (a [`Status`](crate::Status), or any number), once.
    /// For a WASI call the number is the errno.
    pub fn new(call: HostCall, status: impl Into<u32>) -> Self {
        Self { call, status: status.into(), skip: 0, times: 1, thread: None }
    }

    /// Lets `calls` calls pass first.
    #[must_use]
    pub fn after(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Fails `times` calls.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Fails all calls, until [`Envoy::clear_faults`](crate::Envoy::clear_faults).
    #[must_use]
    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    /// Only counts and fails calls on one thread.
    #[must_use]
    pub fn on(mut self, thread: Thread) -> Self {
        self.thread = Some(thread);
        self
    }
}

/// How often each host call was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls([u64; HostCall::ALL.len()]);

impl Default for Calls {
    fn default() -> Self {
        Self([0; HostCall::ALL.len()])
    }
}

impl Calls {
    /// How often `call` was made.
    pub fn get(&self, call: HostCall) -> u64 {
        self.0[call as usize]
    }

    /// All calls together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What was called since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut calls = self.clone();
        for (now, then) in calls.0.iter_mut().zip(earlier.0) {
            *now = now.saturating_sub(then);
        }
        calls
    }

    /// The calls that were made at all, with their number, in the order of [`HostCall::ALL`].
    pub fn made(&self) -> Vec<(HostCall, u64)> {
        let all = HostCall::ALL.iter().copied().zip(self.0);
        all.filter(|(_, n)| *n > 0).collect()
    }
}

#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) calls: Calls,
    pub(crate) pending: Vec<Fault>,
}

impl Faults {
    /// Counts a call; the status to answer instead of doing it.
    pub(crate) fn enter(&mut self, call: HostCall, thread: Thread) -> Option<u32> {
        self.calls.0[call as usize] += 1;
        if self.pending.is_empty() {
            return None;
        }
        let mut answer = None;
        for fault in &mut self.pending {
            if fault.call != call || fault.thread.is_some_and(|t| t != thread) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if answer.is_none() && fault.times > 0 {
                fault.times = if fault.times == u64::MAX { u64::MAX } else { fault.times - 1 };
                answer = Some(fault.status);
            }
        }
        self.pending.retain(|f| f.times > 0);
        answer
    }
}
