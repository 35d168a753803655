//! What all VMs of one Envoy share: the clock, shared data, metrics, upstreams, logs, and the
//! events on their way to a VM.
//!
//! One value owns it all and every VM and every handle of a test holds a counted reference to it. A
//! host call borrows it for as long as it takes and never while the guest runs, so no borrow can
//! meet another. Events are data: whatever would reach a VM later in Envoy (a queue's callback, a
//! gRPC message) waits in one list and is delivered in order when the test lets the event loop
//! turn.

use std::collections::{BTreeMap, VecDeque};

use crate::abi::LogLevel;
use crate::faults::Faults;
use crate::metrics::Metrics;
use crate::shared::{Queues, SharedData};
use crate::upstream::{CallKey, UpstreamEvent, Upstreams};
use crate::vm::{Thread, Trap};

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) shared: SharedData,
    pub(crate) queues: Queues,
    pub(crate) metrics: Metrics,
    pub(crate) upstreams: Upstreams,
    pub(crate) faults: Faults,
    pub(crate) events: VecDeque<Event>,
    pub(crate) logs: VecDeque<LogLine>,
    pub(crate) traps: Vec<Trap>,
    /// By callback, where the module counts them.
    pub(crate) instructions: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
    pub(crate) next_connection_id: u64,
}

impl World {
    pub(crate) fn new(start_nanos: u64, step_nanos: u64, seed: u64) -> Self {
        Self {
            clock: Clock { elapsed: 0, wall_offset: i128::from(start_nanos), step: step_nanos },
            random: Random(seed),
            shared: SharedData::default(),
            queues: Queues::default(),
            metrics: Metrics::default(),
            upstreams: Upstreams::default(),
            faults: Faults::default(),
            events: VecDeque::new(),
            logs: VecDeque::new(),
            traps: Vec::new(),
            instructions: BTreeMap::new(),
            violations: Vec::new(),
            next_connection_id: 1,
        }
    }

    pub(crate) fn log(&mut self, thread: Thread, level: LogLevel, message: String) {
        if self.logs.len() == KEPT_LINES {
            self.logs.pop_front();
        }
        let at = self.clock.elapsed;
        self.logs.push_back(LogLine { thread, level, message, at_nanos: at });
    }
}

/// Log lines kept; the oldest go first. Enough for any test, bounded for a long bench.
const KEPT_LINES: usize = 100_000;

/// A line that the guest logged or printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The thread of the VM.
    pub thread: Thread,
    /// The level; stdout is info, stderr is error.
    pub level: LogLevel,
    /// The text; bytes that are not UTF-8 are replaced.
    pub message: String,
    /// Virtual nanoseconds since the Envoy was started.
    pub at_nanos: u64,
}

/// What is on its way to a VM.
pub(crate) enum Event {
    QueueReady { thread: Thread, context: u32, token: u32 },
    Upstream { key: CallKey, what: UpstreamEvent },
}

/// The virtual clock. It stands still unless it is advanced, or stepped at each reading.
pub(crate) struct Clock {
    /// Monotonic nanoseconds since the start.
    pub(crate) elapsed: u64,
    /// What the wall clock adds to it; a step of the wall clock changes this alone.
    pub(crate) wall_offset: i128,
    step: u64,
}

impl Clock {
    pub(crate) fn wall(&self) -> u64 {
        let wall = self.wall_offset + i128::from(self.elapsed);
        wall.clamp(0, i128::from(u64::MAX)) as u64
    }

    pub(crate) fn read_wall(&mut self) -> u64 {
        self.elapsed += self.step;
        self.wall()
    }

    pub(crate) fn read_monotonic(&mut self) -> u64 {
        self.elapsed += self.step;
        self.elapsed
    }
}

/// SplitMix64: small, seeded, good enough to stand in for the system's randomness.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
