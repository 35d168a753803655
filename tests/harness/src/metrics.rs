//! Metrics: atomics of the whole process, shared by name over all VMs, modules and vm_ids.
//!
//! What a real Envoy does and a neat model would not: every definition gives a new id (steps of
//! four, the low bits are the type); a name may be a counter, a gauge and a histogram at once; a
//! gauge wraps below zero; a counter refuses an increment that is not positive but *adds* what is
//! recorded; a histogram can neither be incremented nor read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::abi::Status;
use crate::world::World;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

impl Kind {
    pub(crate) const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Counter,
            1 => Self::Gauge,
            2 => Self::Histogram,
            _ => return None,
        })
    }
}

/// Samples that a histogram keeps one by one; further ones are only counted and summed, so that a
/// long bench does not grow without bound.
const KEPT_SAMPLES: usize = 65_536;

/// What was recorded into a histogram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many samples.
    pub count: u64,
    /// Their sum, saturating.
    pub sum: u64,
    /// The first 65,536 of them in order.
    pub samples: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct Metrics {
    index: BTreeMap<(Kind, Vec<u8>), usize>,
    cells: Vec<Cell>,
}

enum Cell {
    Number(u64),
    Histogram(Histogram),
}

impl Metrics {
    pub(crate) fn define(&mut self, kind: Kind, name: &[u8]) -> usize {
        *self.index.entry((kind, name.to_vec())).or_insert_with(|| {
            self.cells.push(match kind {
                Kind::Histogram => Cell::Histogram(Histogram::default()),
                Kind::Counter | Kind::Gauge => Cell::Number(0),
            });
            self.cells.len() - 1
        })
    }

    pub(crate) fn increment(&mut self, kind: Kind, cell: usize, by: i64) -> Result<(), Status> {
        match (kind, self.cells.get_mut(cell)) {
            (Kind::Counter, _) if by <= 0 => Err(Status::BadArgument),
            (Kind::Counter | Kind::Gauge, Some(Cell::Number(n))) => {
                *n = n.wrapping_add_signed(by);
                Ok(())
            }
            _ => Err(Status::BadArgument),
        }
    }

    pub(crate) fn record(&mut self, kind: Kind, cell: usize, value: u64) -> Result<(), Status> {
        match self.cells.get_mut(cell) {
            Some(Cell::Number(n)) if kind == Kind::Counter => *n = n.wrapping_add(value),
            Some(Cell::Number(n)) => *n = value,
            Some(Cell::Histogram(h)) => {
                h.count += 1;
                h.sum = h.sum.saturating_add(value);
                if h.samples.len() < KEPT_SAMPLES {
                    h.samples.push(value);
                }
            }
            None => return Err(Status::NotFound),
        }
        Ok(())
    }

    pub(crate) fn get(&self, cell: usize) -> Result<u64, Status> {
        match self.cells.get(cell) {
            Some(Cell::Number(n)) => Ok(*n),
            Some(Cell::Histogram(_)) => Err(Status::BadArgument),
            None => Err(Status::NotFound),
        }
    }

    fn find(&self, kind: Kind, name: &[u8]) -> Option<&Cell> {
        self.cells.get(*self.index.get(&(kind, name.to_vec()))?)
    }
}

/// All metrics, from outside: what `/stats` shows under `wasmcustom.`.
#[derive(Clone)]
pub struct MetricsHandle {
    pub(crate) world: Rc<RefCell<World>>,
}

impl MetricsHandle {
    /// A counter's value; `None` when nobody defined it.
    pub fn counter(&self, name: impl AsRef<[u8]>) -> Option<u64> {
        self.number(Kind::Counter, name.as_ref())
    }

    /// A gauge's value; one decremented below zero shows as 2^64 - n.
    pub fn gauge(&self, name: impl AsRef<[u8]>) -> Option<u64> {
        self.number(Kind::Gauge, name.as_ref())
    }

    /// What a histogram holds.
    pub fn histogram(&self, name: impl AsRef<[u8]>) -> Option<Histogram> {
        match self.world.borrow().metrics.find(Kind::Histogram, name.as_ref()) {
            Some(Cell::Histogram(h)) => Some(h.clone()),
            _ => None,
        }
    }

    /// Sets a gauge from outside, as any other plugin can.
    pub fn set_gauge(&self, name: impl AsRef<[u8]>, value: u64) {
        let metrics = &mut self.world.borrow_mut().metrics;
        let cell = metrics.define(Kind::Gauge, name.as_ref());
        if let Some(Cell::Number(n)) = metrics.cells.get_mut(cell) {
            *n = value;
        }
    }

    /// The names of all metrics that were ever defined, sorted, each once.
    pub fn names(&self) -> Vec<String> {
        let world = self.world.borrow();
        let names = world.metrics.index.keys().map(|(_, n)| String::from_utf8_lossy(n).into());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.dedup();
        names
    }

    fn number(&self, kind: Kind, name: &[u8]) -> Option<u64> {
        match self.world.borrow().metrics.find(kind, name) {
            Some(Cell::Number(n)) => Some(*n),
            _ => None,
        }
    }
}
