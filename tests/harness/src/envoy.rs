//! The Envoy: its threads, their VMs, and the event loop.
//!
//! Nothing happens by itself. Requests run when the test makes them; everything asynchronous (queue
//! callbacks, what upstreams do, ticks, timeouts) waits until the test turns the event loop with
//! [`Envoy::settle`] or moves the clock with [`Envoy::advance`]. All threads take turns in one
//! order, so a run is the same every time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::abi::LogLevel;
use crate::builder::{Builder, FailurePolicy, Setup};
use crate::error::Error;
use crate::faults::{Calls, Fault};
use crate::metrics::MetricsHandle;
use crate::module::Module;
use crate::shared::{QueuesHandle, SharedDataHandle};
use crate::upstream::{CallKey, Cluster, Kind, UpstreamEvent};
use crate::vm::{Thread, Trap, Vm};
use crate::world::{Event, LogLine, World};

/// Events delivered in one turn of the loop. A guest that answers each event by causing another
/// would otherwise hang the test; the rest waits for the next turn and is on record as a violation.
const MAX_EVENTS: usize = 100_000;

/// An Envoy with one Wasm plugin.
pub struct Envoy {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) setup: Rc<Setup>,
    module: Module,
    configuration: Rc<[u8]>,
    /// The main thread, then the workers.
    pub(crate) slots: Vec<Slot>,
    next_vm: u64,
    stats: VmStats,
}

/// A thread and its VM.
pub(crate) struct Slot {
    pub(crate) vm: Vm,
    pub(crate) root: u32,
    pub(crate) logger: Option<u32>,
    loaded_at: u64,
    /// Events that wait because the thread stands still.
    stalled: Option<Vec<Event>>,
}

/// Envoy's statistics `wasm.*` of the VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmStats {
    /// VMs ever made, canaries included.
    pub created: u64,
    /// `vm_reload_success`
    pub reload_success: u64,
    /// `vm_reload_backoff`: requests that came too early for a reload.
    pub reload_backoff: u64,
    /// `vm_reload_failure`
    pub reload_failure: u64,
}

impl Envoy {
    /// Begins to set up an Envoy for `module`.
    pub fn builder(module: &Module) -> Builder {
        Builder::new(module)
    }

    pub(crate) fn start(
        module: Module,
        setup: Rc<Setup>,
        world: Rc<RefCell<World>>,
        configuration: Vec<u8>,
        workers: usize,
    ) -> Result<Self, Error> {
        let mut envoy = Self {
            world,
            setup,
            module,
            configuration: configuration.into(),
            slots: Vec::with_capacity(1 + workers),
            next_vm: 1,
            stats: VmStats::default(),
        };
        drop(envoy.load(Thread::Canary)?);
        let main = envoy.load(Thread::Main)?;
        envoy.slots.push(main);
        for worker in 0..workers {
            let slot = envoy.load(Thread::Worker(worker))?;
            envoy.slots.push(slot);
        }
        Ok(envoy)
    }

    /// Makes a VM with its plugins.
    fn load(&mut self, thread: Thread) -> Result<Slot, Error> {
        let id = self.next_vm;
        self.next_vm += 1;
        self.stats.created += 1;
        let mut vm = Vm::start(&self.module, &self.world, &self.setup, id, thread)?;
        let root = vm.add_root(Rc::clone(&self.configuration))?;
        let logger = match &self.setup.logger_configuration {
            Some(configuration) => Some(vm.add_root(Rc::clone(configuration))?),
            None => None,
        };
        let loaded_at = self.world.borrow().clock.elapsed;
        Ok(Slot { vm, root, logger, loaded_at, stalled: None })
    }

    /// Makes the worker's VM anew if it is dead and the policy allows it now; whether it lives.
    pub(crate) fn revive(&mut self, slot: usize) -> bool {
        if !self.slots[slot].vm.dead {
            return true;
        }
        let FailurePolicy::Reload(backoff) = self.setup.failure_policy else {
            return false;
        };
        let now = self.world.borrow().clock.elapsed;
        let since = now.saturating_sub(self.slots[slot].loaded_at);
        if u128::from(since) < backoff.as_nanos() {
            self.stats.reload_backoff += 1;
            return false;
        }
        self.slots[slot].loaded_at = now;
        match self.load(self.slots[slot].vm.thread) {
            Ok(new) => {
                // What the dead VM had open is cancelled as it is dropped, now and not before.
                self.slots[slot] = new;
                self.stats.reload_success += 1;
                true
            }
            Err(_) => {
                self.stats.reload_failure += 1;
                false
            }
        }
    }

    /// Gives the plugin another configuration, as an update of the listener does: a canary tries
    /// it, then every living VM gets a new root context and the old one is done and deleted, at
    /// once (in Envoy, when its requests have drained); dead VMs are replaced.
    ///
    /// # Errors
    /// When the canary refuses it: the update is rejected and everything stays as it was.
    pub fn reconfigure(&mut self, configuration: impl AsRef<[u8]>) -> Result<(), Error> {
        let old = std::mem::replace(&mut self.configuration, configuration.as_ref().into());
        if let Err(error) = self.load(Thread::Canary) {
            self.configuration = old;
            return Err(error);
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].vm.dead {
                let new = self.load(self.slots[slot].vm.thread)?;
                self.slots[slot] = new;
                continue;
            }
            let configuration = Rc::clone(&self.configuration);
            let Slot { vm, root, .. } = &mut self.slots[slot];
            let new = vm.add_root(configuration)?;
            let old = std::mem::replace(root, new);
            let done = vm.callbacks.done.clone();
            vm.call(old, "proxy_on_done", done, (old,));
            let delete = vm.callbacks.delete.clone();
            vm.call(old, "proxy_on_delete", delete, (old,));
            vm.guest_mut().roots.retain(|r| r.id != old);
            let id = vm.id;
            self.world.borrow_mut().upstreams.forget_root(id, old);
        }
        Ok(())
    }

    // === time and events ===

    /// Moves the clock, running every tick and timeout on the way, and everything that follows from
    /// them.
    pub fn advance(&mut self, by: Duration) {
        let now = self.world.borrow().clock.elapsed;
        let target = now.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
        self.settle();
        while let Some((at, timer)) = self.next_timer().filter(|(at, _)| *at <= target) {
            {
                let clock = &mut self.world.borrow_mut().clock;
                clock.elapsed = clock.elapsed.max(at);
            }
            match timer {
                Timer::Tick { slot, root } => self.tick(slot, root),
                Timer::Timeout(key) => {
                    let mut world = self.world.borrow_mut();
                    let events = world.upstreams.expire(key);
                    world.events.extend(events);
                }
            }
            self.settle();
        }
        let clock = &mut self.world.borrow_mut().clock;
        clock.elapsed = clock.elapsed.max(target);
    }

    /// Delivers everything that waits for a VM, without moving the clock; how many events that
    /// were.
    pub fn settle(&mut self) -> usize {
        for delivered in 0..MAX_EVENTS {
            let event = self.world.borrow_mut().events.pop_front();
            match event {
                Some(event) => self.deliver(event),
                None => return delivered,
            }
        }
        let what = format!("an event storm: {MAX_EVENTS} events in one turn of the loop");
        self.world.borrow_mut().violations.push(what);
        MAX_EVENTS
    }

    fn next_timer(&self) -> Option<(u64, Timer)> {
        let mut next = None;
        let runs = |slot: &Slot| !slot.vm.dead && slot.stalled.is_none();
        for (slot, Slot { vm, .. }) in self.slots.iter().enumerate().filter(|(_, s)| runs(s)) {
            for root in &vm.guest().roots {
                if let Some(at) = root.next_tick
                    && next.as_ref().is_none_or(|(first, _)| at < *first)
                {
                    next = Some((at, Timer::Tick { slot, root: root.id }));
                }
            }
        }
        let deadline = self.world.borrow().upstreams.next_deadline();
        match deadline {
            Some((at, key)) if next.as_ref().is_none_or(|(first, _)| at < *first) => {
                Some((at, Timer::Timeout(key)))
            }
            _ => next,
        }
    }

    fn tick(&mut self, slot: usize, root: u32) {
        let now = self.world.borrow().clock.elapsed;
        let vm = &mut self.slots[slot].vm;
        if let Some(root) = vm.guest_mut().roots.iter_mut().find(|r| r.id == root) {
            root.next_tick = Some(now.saturating_add(root.tick_nanos));
        }
        let tick = vm.callbacks.tick.clone();
        vm.call(root, "proxy_on_tick", tick, (root,));
    }

    fn deliver(&mut self, event: Event) {
        let is_for = |slot: &Slot| match &event {
            Event::QueueReady { thread, .. } => slot.vm.thread == *thread,
            Event::Upstream { key, .. } => slot.vm.id == key.vm,
        };
        let stalled = self.slots.iter_mut().find(|slot| is_for(slot));
        if let Some(waiting) = stalled.and_then(|slot| slot.stalled.as_mut()) {
            waiting.push(event);
            return;
        }
        match event {
            Event::QueueReady { thread, context, token } => {
                let slot = self.slots.iter_mut().find(|s| s.vm.thread == thread);
                let Some(Slot { vm, .. }) = slot else { return };
                if vm.guest().roots.iter().any(|r| r.id == context) {
                    let ready = vm.callbacks.queue_ready.clone();
                    vm.call(context, "proxy_on_queue_ready", ready, (context, token));
                }
            }
            Event::Upstream { key, what } => self.deliver_upstream(key, what),
        }
    }

    fn deliver_upstream(&mut self, key: CallKey, what: UpstreamEvent) {
        // A call that was cancelled, or whose VM was replaced, is told nothing more.
        let Some(call) = self.world.borrow().upstreams.open.get(&key).cloned() else {
            return;
        };
        let kind = call.borrow().kind;
        let slot = self.slots.iter_mut().find(|s| s.vm.id == key.vm);
        let Some(Slot { vm, .. }) = slot else { return };
        let (root, token) = (key.root, key.token);
        let mut over = false;
        match what {
            UpstreamEvent::InitialMetadata(headers) => {
                let count = headers.len() as u32;
                vm.guest_mut().incoming.initial_metadata = Some(headers);
                let f = vm.callbacks.grpc_initial.clone();
                let name = "proxy_on_grpc_receive_initial_metadata";
                vm.call(root, name, f, (root, token, count));
                vm.guest_mut().incoming.initial_metadata = None;
            }
            UpstreamEvent::Message(message) => {
                let size = message.len() as u32;
                vm.guest_mut().incoming.message = Some(message);
                let f = vm.callbacks.grpc_receive.clone();
                vm.call(root, "proxy_on_grpc_receive", f, (root, token, size));
                vm.guest_mut().incoming.message = None;
                over = kind == Kind::Unary;
            }
            UpstreamEvent::TrailingMetadata(headers) => {
                let count = headers.len() as u32;
                vm.guest_mut().incoming.trailing_metadata = Some(headers);
                let f = vm.callbacks.grpc_trailing.clone();
                let name = "proxy_on_grpc_receive_trailing_metadata";
                vm.call(root, name, f, (root, token, count));
                vm.guest_mut().incoming.trailing_metadata = None;
            }
            UpstreamEvent::Close { status, message } => {
                vm.guest_mut().incoming.status = (status, message);
                let f = vm.callbacks.grpc_close.clone();
                vm.call(root, "proxy_on_grpc_close", f, (root, token, status));
                // The code outlives the callback in Envoy, the message does not.
                vm.guest_mut().incoming.status.1.clear();
                over = true;
            }
            UpstreamEvent::HttpResponse { headers, body, trailers } => {
                let sizes = (headers.len() as u32, body.len() as u32, trailers.len() as u32);
                vm.guest_mut().incoming.http = Some((headers, body, trailers));
                let f = vm.callbacks.http_response.clone();
                let params = (root, token, sizes.0, sizes.1, sizes.2);
                vm.call(root, "proxy_on_http_call_response", f, params);
                vm.guest_mut().incoming.http = None;
                over = true;
            }
            UpstreamEvent::HttpFailure => {
                vm.guest_mut().incoming.status = (11, "reset".into());
                let f = vm.callbacks.http_response.clone();
                vm.call(root, "proxy_on_http_call_response", f, (root, token, 0, 0, 0));
                vm.guest_mut().incoming.status.1.clear();
                over = true;
            }
        }
        if over {
            self.world.borrow_mut().upstreams.open.remove(&key);
        }
    }

    /// The wall clock, since 1970.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.world.borrow().clock.wall())
    }

    /// The time since the start, which no step of the wall clock touches.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.world.borrow().clock.elapsed)
    }

    /// Steps the wall clock by so many nanoseconds, back or forth, without time passing.
    pub fn step_wall_clock(&mut self, nanos: i64) {
        self.world.borrow_mut().clock.wall_offset += i128::from(nanos);
    }

    // === what is around the VMs ===

    /// The shared data of this plugin's vm_id.
    pub fn shared_data(&self) -> SharedDataHandle {
        SharedDataHandle { world: Rc::clone(&self.world), vm_id: self.setup.vm_id.clone() }
    }

    /// The shared queues of this plugin's vm_id.
    pub fn queues(&self) -> QueuesHandle {
        QueuesHandle { world: Rc::clone(&self.world), vm_id: self.setup.vm_id.clone() }
    }

    /// All metrics.
    pub fn metrics(&self) -> MetricsHandle {
        MetricsHandle { world: Rc::clone(&self.world) }
    }

    /// The servers of a cluster; made, and up, if there was none of that name.
    pub fn cluster(&self, name: &str) -> Cluster {
        self.world.borrow_mut().upstreams.add(name);
        Cluster { world: Rc::clone(&self.world), name: name.to_owned() }
    }

    /// All lines that were logged, at most the last 100,000.
    pub fn logs(&self) -> Vec<LogLine> {
        self.world.borrow().logs.iter().cloned().collect()
    }

    /// How many lines of at least that level contain `text`.
    pub fn logged(&self, level: LogLevel, text: &str) -> usize {
        let world = self.world.borrow();
        world.logs.iter().filter(|l| l.level >= level && l.message.contains(text)).count()
    }

    /// Forgets all lines.
    pub fn clear_logs(&mut self) {
        self.world.borrow_mut().logs.clear();
    }

    // === faults and counts ===

    /// Makes a host call fail.
    pub fn inject(&mut self, fault: Fault) {
        self.world.borrow_mut().faults.pending.push(fault);
    }

    /// Lets all host calls work again; how many faults had not been used up.
    pub fn clear_faults(&mut self) -> usize {
        std::mem::take(&mut self.world.borrow_mut().faults.pending).len()
    }

    /// The instructions that the guests have run since the start, by callback, those of callbacks
    /// that trapped left out; none unless the module counts them
    /// ([`Module::with_fuel`](crate::Module::with_fuel)).
    pub fn instructions(&self) -> BTreeMap<&'static str, u64> {
        self.world.borrow().instructions.clone()
    }

    /// The host calls of all VMs since the start, the canary's included.
    pub fn calls(&self) -> Calls {
        self.world.borrow().faults.calls.clone()
    }

    /// All traps of guests since the start.
    pub fn traps(&self) -> Vec<Trap> {
        self.world.borrow().traps.clone()
    }

    /// What the guest did that a real Envoy answers by a crash, a hang or lost data although the
    /// host call says Ok. A good filter has none.
    pub fn violations(&self) -> Vec<String> {
        self.world.borrow().violations.clone()
    }

    /// The statistics of the VMs.
    pub fn stats(&self) -> VmStats {
        self.stats
    }

    /// Kills a thread's VM as a trap would, without one on record.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn kill_vm(&mut self, thread: Thread) {
        self.slot_mut(thread).vm.dead = true;
    }

    /// Lets a thread stand still: its ticks and events wait. Requests must not be given to it
    /// meanwhile.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn stall(&mut self, thread: Thread) {
        self.slot_mut(thread).stalled.get_or_insert_default();
    }

    /// Lets a thread run again: what waited comes, and a tick that was missed with it.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn resume(&mut self, thread: Thread) {
        let waiting = self.slot_mut(thread).stalled.take().unwrap_or_default();
        self.world.borrow_mut().events.extend(waiting);
        self.advance(Duration::ZERO);
    }

    /// Whether a thread's VM is alive.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn is_alive(&self, thread: Thread) -> bool {
        !self.slot(thread).vm.dead
    }

    /// The pages of 64 KiB that a VM's memory has. It never shrinks.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn memory_pages(&self, thread: Thread) -> u64 {
        self.slot(thread).vm.memory_pages()
    }

    /// The stream contexts that a VM has: requests that were begun and not finished.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn open_contexts(&self, thread: Thread) -> usize {
        self.slot(thread).vm.guest().streams.len()
    }

    /// The number of workers.
    pub fn workers(&self) -> usize {
        self.slots.len() - 1
    }

    fn slot(&self, thread: Thread) -> &Slot {
        let slot = self.slots.iter().find(|s| s.vm.thread == thread);
        slot.unwrap_or_else(|| panic!("this Envoy has no {thread}"))
    }

    fn slot_mut(&mut self, thread: Thread) -> &mut Slot {
        let slot = self.slots.iter_mut().find(|s| s.vm.thread == thread);
        slot.unwrap_or_else(|| panic!("this Envoy has no {thread}"))
    }
}

enum Timer {
    Tick { slot: usize, root: u32 },
    Timeout(CallKey),
}
