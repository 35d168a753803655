//! The task that owns the [`State`]: updates in, snapshots out, at a pace that readers can follow.
//!
//! There is one writer and it owns the state by value. Applying an update is cheap and happens at
//! once for each; building tables is not, and is paced: changes that come alone or a few at a time
//! go out at once, and while they keep coming a service is published at most ten times in any one
//! second and anything at all at most a hundred times. Readers see a `watch` of whole values, so a
//! slow one skips what is superseded and can neither stall this task nor make it queue.
//!
//! When its channel is full, senders wait: etcd's and NATS's own flow control is the buffer.

mod pending;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pintle_state::{Changes, Moment, Notice, Snapshot, State, Trial, Update};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use pending::Pending;

use crate::disk::Disk;
use crate::link::{Activities, Activity, Sources};
use crate::probe::{self, MAX_TRIALS};
use crate::tasks::{BEAT, Pulse, Tasks};
use crate::updates::{Order, Updates};

/// While changes keep coming, a service is published once in this time: close to seven times a
/// second.
const SERVICE_PACE: Duration = Duration::from_millis(150);
/// So much of that time may be used in advance: four changes in a row wait for nothing. What is
/// used so counts in the same second, and `SERVICE_PACE` is what leaves room for it: the eleventh
/// table after such a burst goes out 10 x 150 - 450 = 1,050 ms after the first.
const BURST: Duration = Duration::from_millis(450);
/// Anything is published at most this often. A snapshot is a copy of the map of services, so under
/// churn over many services this bounds the copying; alone, a change still goes out at once.
const PACE: Duration = Duration::from_millis(10);
/// The disk is written at most this often; what is lost in between is asked for again.
const DISK_PACE: Duration = Duration::from_secs(2);
/// A write that failed is repeated after this time though nothing changes: the disk may have room
/// again.
const DISK_RETRY: Duration = Duration::from_secs(5);
/// A write that takes longer is said: a disk that does not answer is as bad as one that is full.
const DISK_PATIENCE: Duration = Duration::from_secs(30);
/// Orders applied before tables are built, for as long as [`PACE`] at most.
const BATCH: usize = 256;

/// Reads both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts now.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Both clocks, now.
    #[must_use]
    pub(crate) fn now(&self) -> Moment {
        Moment { wall: SystemTime::now(), mono: self.start.elapsed() }
    }

    fn instant(&self, mono: Duration) -> Instant {
        // Far enough to be never, near enough for the timer's arithmetic.
        self.start + mono.min(Duration::from_secs(30 * 365 * 86_400))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// The sources' states, written by several tasks.
#[derive(Clone, Debug)]
pub(crate) struct Board(Arc<watch::Sender<Sources>>);

impl Board {
    pub(crate) fn new() -> (Self, watch::Receiver<Sources>) {
        let (sender, receiver) = watch::channel(Sources::default());
        (Self(Arc::new(sender)), receiver)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Sources)) {
        self.0.send_modify(change);
    }

    /// Waits for a write to disk; whether it failed, which a panic in it is as well.
    async fn written(&self, task: tokio::task::JoinHandle<bool>) -> bool {
        match task.await {
            Ok(failed) => failed,
            Err(error) => {
                tracing::error!(%error, "the last good state was not written");
                self.change(|sources| sources.disk_error = Some(error.to_string()));
                true
            }
        }
    }
}

/// Starts the publisher, and the prober beside it.
pub(crate) fn start(
    state: State,
    clock: Clock,
    disk: Option<Disk>,
    board: Board,
    activities: Activities,
    shutdown: CancellationToken,
    tasks: &mut Tasks,
) -> (Updates, watch::Receiver<Arc<Snapshot>>) {
    let (updates, inbox) = Updates::new();
    let (trials, prober) = probe::start(updates.clone(), shutdown.clone());
    let (snapshots, reader) = watch::channel(state.snapshot());
    let publisher = Publisher {
        state,
        clock,
        board,
        activities,
        snapshots,
        pending: Pending::default(),
        used: HashMap::new(),
        last_any: None,
        lists: Some(Instant::now()),
        saver: disk.map(Saver::new),
        trials,
        trying: 0,
        pulse: tasks.pulse("publisher"),
    };
    tasks.spawn("publisher", publisher.run(inbox, shutdown));
    tasks.spawn("prober", prober);
    (updates, reader)
}

struct Publisher {
    state: State,
    clock: Clock,
    board: Board,
    activities: Activities,
    snapshots: watch::Sender<Arc<Snapshot>>,
    pending: Pending,
    /// Up to when a service's pace is used up; may lie [`BURST`] ahead.
    used: HashMap<String, Instant>,
    last_any: Option<Instant>,
    /// When the lists beside the tables are due.
    lists: Option<Instant>,
    saver: Option<Saver>,
    trials: mpsc::Sender<Trial>,
    /// Trials on their way.
    trying: usize,
    pulse: Pulse,
}

impl Publisher {
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>, shutdown: CancellationToken) {
        self.save_soon();
        loop {
            self.pulse.beat();
            let wake = self.wake();
            tokio::select! {
                () = shutdown.cancelled() => break,
                order = inbox.recv() => {
                    let Some(order) = order else { break };
                    let until = Instant::now() + PACE;
                    self.apply(order);
                    for _ in 1..BATCH {
                        if Instant::now() >= until {
                            break;
                        }
                        let Ok(order) = inbox.try_recv() else { break };
                        self.apply(order);
                    }
                }
                () = tokio::time::sleep_until(wake) => self.tick(),
            }
            self.try_endpoints();
            self.flush();
            self.save_if_due().await;
        }
        self.save_now().await;
    }

    /// When something is to be done without an order: at the latest for the next sign of life.
    fn wake(&mut self) -> Instant {
        let paced = self.last_any.map(|at| at + PACE);
        let pending = self.pending.next().into_iter().chain(self.lists).min();
        let pending = pending.map(|at| paced.map_or(at, |paced| at.max(paced)));
        let state = self.state.next_deadline().map(|at| self.clock.instant(at));
        let disk =
            self.saver.as_ref().and_then(|saver| saver.due.into_iter().chain(saver.look).min());
        let far = Instant::now() + BEAT;
        // While all places are taken, a result is what wakes this task.
        let trial = self.state.next_trial().filter(|_| self.trying < MAX_TRIALS);
        let trial = trial.map(|at| self.clock.instant(at));
        [pending, state, disk, trial].into_iter().flatten().min().unwrap_or(far)
    }

    fn tick(&mut self) {
        let now = self.clock.now();
        let changes = self.state.apply(Update::Tick, now);
        self.note(&changes);
    }

    fn apply(&mut self, order: Order) {
        let now = self.clock.now();
        if let Update::Trials(results) = &order.update {
            self.trying = self.trying.saturating_sub(results.len());
        }
        let confirms = matches!(order.update, Update::Progress { .. } | Update::Changes(_));
        let outruns = matches!(order.update, Update::Outrun { .. });
        let changes = self.state.apply(order.update, now);
        self.note(&changes);
        if confirms && changes.services.is_empty() {
            // Readers that ask see how fresh the state is; nobody is woken for it.
            let snapshot = self.state.confirm();
            self.snapshots.send_if_modified(|current| {
                *current = snapshot;
                false
            });
        }
        if outruns {
            self.snapshots.send_replace(self.state.snapshot());
            self.save_soon();
        }
        if let Some(done) = order.done {
            // Whoever asked may have gone.
            let _ = done.send(changes);
        }
    }

    /// Hands out the trials that are due, as far as there is room.
    fn try_endpoints(&mut self) {
        let room = MAX_TRIALS.saturating_sub(self.trying);
        if room == 0 || self.state.next_trial().is_none() {
            return;
        }
        for trial in self.state.take_trials(self.clock.now(), room) {
            // The channel has a place for each; where the task is gone, so is the agent soon.
            if self.trials.try_send(trial).is_ok() {
                self.trying = self.trying.saturating_add(1);
            }
        }
    }

    fn note(&mut self, changes: &Changes) {
        let at = Instant::now();
        for name in &changes.services {
            let used = &self.used;
            self.pending.add(name, || {
                used.get(name).and_then(|used| used.checked_sub(BURST)).unwrap_or(at).max(at)
            });
        }
        if changes.meta && self.lists.is_none() {
            self.lists = Some(self.last_any.map_or(at, |last| (last + SERVICE_PACE).max(at)));
        }
        if changes.meta || !changes.services.is_empty() {
            self.save_soon();
        }
        if changes.held > 0 || !changes.refused.is_empty() {
            self.board.change(|sources| {
                sources.removals_held = sources.removals_held.saturating_add(changes.held);
                for refused in &changes.refused {
                    let count = sources.refused.entry(*refused).or_default();
                    *count = count.saturating_add(1);
                }
            });
        }
        for notice in &changes.notices {
            self.tell(notice);
        }
    }

    fn tell(&self, notice: &Notice) {
        let (service, endpoint) = (notice.service.as_deref(), notice.endpoint.as_deref());
        if notice.alarm {
            tracing::warn!(kind = notice.kind, service, endpoint, "{}", notice.text);
        } else {
            tracing::debug!(kind = notice.kind, service, endpoint, "{}", notice.text);
        }
        // Nobody may be listening.
        let _ = self.activities.send(Activity {
            at: SystemTime::now(),
            kind: notice.kind,
            service: notice.service.clone(),
            endpoint: notice.endpoint.clone(),
            text: notice.text.clone(),
        });
    }

    fn flush(&mut self) {
        let at = Instant::now();
        if self.last_any.is_some_and(|last| at < last + PACE) {
            return;
        }
        let due = self.pending.take_due(at);
        let lists = self.lists.is_some_and(|not_before| not_before <= at);
        if due.is_empty() && !lists {
            return;
        }
        if lists {
            self.lists = None;
        }
        let now = self.clock.now();
        let names = due.iter().map(String::as_str);
        let published = self.state.publish(names, lists, now);
        self.used.retain(|_, used| at < *used);
        for name in due {
            let used = self.used.entry(name).or_insert(at);
            *used += SERVICE_PACE;
        }
        if published {
            self.last_any = Some(at);
            self.snapshots.send_replace(self.state.snapshot());
            // It may be the first that a source has confirmed: before it nothing is written.
            self.save_soon();
        }
    }

    // === disk ===

    fn save_soon(&mut self) {
        if let Some(saver) = &mut self.saver {
            let next = saver.last.map_or_else(Instant::now, |last| last + saver.pace);
            saver.due.get_or_insert(next);
        }
    }

    /// Whether the last write failed and has to be repeated.
    async fn look_back(&mut self) {
        let Some(saver) = &mut self.saver else { return };
        if saver.look.is_none_or(|at| Instant::now() < at) {
            return;
        }
        if saver.writing.as_ref().is_some_and(|task| !task.is_finished()) {
            saver.look = Some(Instant::now() + DISK_RETRY);
            let waited = saver.last.map_or(Duration::ZERO, |last| last.elapsed());
            if waited >= DISK_PATIENCE {
                let seconds = waited.as_secs();
                let error = format!("a write that began {seconds} s ago has not ended");
                self.board.change(|sources| sources.disk_error = Some(error));
            }
            return;
        }
        saver.look = None;
        if let Some(task) = saver.writing.take()
            && self.board.written(task).await
        {
            saver.due.get_or_insert_with(Instant::now);
        }
    }

    async fn save_if_due(&mut self) {
        self.look_back().await;
        let due = self.saver.as_ref().and_then(|saver| saver.due);
        if due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        let Some(saver) = &mut self.saver else { return };
        if saver.writing.as_ref().is_some_and(|task| !task.is_finished()) {
            saver.due = Some(Instant::now() + DISK_PACE);
            return;
        }
        self.begin_save().await;
    }

    async fn begin_save(&mut self) {
        let Some(saver) = &mut self.saver else { return };
        if self.state.snapshot().stale {
            // No source has spoken: what is on disk, or was set aside, knows more.
            saver.due = None;
            return;
        }
        if let Some(task) = saver.writing.take() {
            self.board.written(task).await;
        }
        let began = Instant::now();
        let saved = self.state.save(self.clock.now());
        saver.due = None;
        saver.last = Some(began);
        saver.look = Some(began + DISK_RETRY);
        // Copying the state keeps this task from its work, so it takes a twentieth of the time at
        // most.
        saver.pace = DISK_PACE.max(began.elapsed().saturating_mul(20));
        let (disk, board) = (saver.disk.clone(), self.board.clone());
        saver.writing = Some(tokio::task::spawn_blocking(move || {
            let error = disk.store(&saved).err().map(|e| e.to_string());
            if let Some(error) = &error {
                tracing::warn!(%error, "the last good state cannot be written; serving from memory");
            }
            let failed = error.is_some();
            board.change(|sources| sources.disk_error = error);
            failed
        }));
    }

    async fn save_now(&mut self) {
        self.begin_save().await;
        if let Some(task) = self.saver.as_mut().and_then(|saver| saver.writing.take()) {
            self.board.written(task).await;
        }
    }
}

struct Saver {
    disk: Disk,
    due: Option<Instant>,
    last: Option<Instant>,
    pace: Duration,
    /// Whether it failed.
    writing: Option<tokio::task::JoinHandle<bool>>,
    /// When to look whether it did.
    look: Option<Instant>,
}

impl Saver {
    const fn new(disk: Disk) -> Self {
        Self { disk, due: None, last: None, pace: DISK_PACE, writing: None, look: None }
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
