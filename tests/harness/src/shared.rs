//! Shared data and shared queues, as proxy-wasm-cpp-host keeps them for the whole process.
//!
//! Shared data is a map per vm_id; compare-and-swap numbers are drawn from one counter for all of
//! them and never 0. On an absent key the number given is ignored, so a set with a stale one
//! creates the key. Nothing is ever removed: a set to nothing leaves an empty value. Queues have
//! one consumer: the context, on the thread, that registered the name last; what lies in the queue
//! stays when it changes hands.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use crate::abi::Status;
use crate::vm::Thread;
use crate::world::{Event, World};

#[derive(Default)]
pub(crate) struct SharedData {
    by_vm_id: HashMap<String, Keys>,
    last_cas: u32,
}

/// The keys of one vm_id: value and compare-and-swap number.
type Keys = BTreeMap<Vec<u8>, (Vec<u8>, u32)>;

impl SharedData {
    pub(crate) fn get(&self, vm_id: &str, key: &[u8]) -> Option<&(Vec<u8>, u32)> {
        self.by_vm_id.get(vm_id)?.get(key)
    }

    pub(crate) fn set(
        &mut self,
        vm_id: &str,
        key: &[u8],
        value: Vec<u8>,
        cas: u32,
    ) -> Result<u32, Status> {
        let data = self.by_vm_id.entry(vm_id.to_owned()).or_default();
        if let Some((_, current)) = data.get(key)
            && cas != 0
            && cas != *current
        {
            return Err(Status::CasMismatch);
        }
        self.last_cas = self.last_cas.checked_add(1).unwrap_or(1);
        data.insert(key.to_vec(), (value, self.last_cas));
        Ok(self.last_cas)
    }
}

/// The shared data of one vm_id, from outside: what another plugin of that vm_id could read and
/// write.
#[derive(Clone)]
pub struct SharedDataHandle {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) vm_id: String,
}

impl SharedDataHandle {
    /// The value and its compare-and-swap number.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<(Vec<u8>, u32)> {
        self.world.borrow().shared.get(&self.vm_id, key.as_ref()).cloned()
    }

    /// Sets a value whatever is there; the new compare-and-swap number.
    pub fn set(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> u32 {
        self.cas(key, value, 0).unwrap_or(0)
    }

    /// Sets a value if its number is `cas`, or if the key is absent; the new number.
    ///
    /// # Errors
    /// [`Status::CasMismatch`] when the key's number is another one.
    pub fn cas(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        cas: u32,
    ) -> Result<u32, Status> {
        let value = value.as_ref().to_vec();
        self.world.borrow_mut().shared.set(&self.vm_id, key.as_ref(), value, cas)
    }

    /// All keys in order. A guest has no such call.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let world = self.world.borrow();
        let data = world.shared.by_vm_id.get(&self.vm_id);
        data.map(|d| d.keys().cloned().collect()).unwrap_or_default()
    }

    /// Forgets everything, as Envoy does when the last VM with this vm_id goes away.
    pub fn wipe(&self) {
        self.world.borrow_mut().shared.by_vm_id.remove(&self.vm_id);
    }
}

#[derive(Default)]
pub(crate) struct Queues {
    tokens: BTreeMap<(String, Vec<u8>), u32>,
    queues: BTreeMap<u32, Queue>,
}

struct Queue {
    items: VecDeque<Vec<u8>>,
    thread: Thread,
    context: u32,
}

impl Queues {
    pub(crate) fn register(
        &mut self,
        vm_id: &str,
        name: &[u8],
        thread: Thread,
        context: u32,
    ) -> u32 {
        // The canary lives on the main thread: its queue's callbacks go to whatever VM is there
        // later.
        let thread = if thread == Thread::Canary { Thread::Main } else { thread };
        let next = self.tokens.len() as u32 + 1;
        let token = *self.tokens.entry((vm_id.to_owned(), name.to_vec())).or_insert(next);
        let queue = self.queues.entry(token).or_insert_with(|| Queue {
            items: VecDeque::new(),
            thread,
            context,
        });
        (queue.thread, queue.context) = (thread, context);
        token
    }

    pub(crate) fn resolve(&self, vm_id: &str, name: &[u8]) -> Option<u32> {
        self.tokens.get(&(vm_id.to_owned(), name.to_vec())).copied()
    }

    pub(crate) fn enqueue(&mut self, token: u32, item: Vec<u8>) -> Result<Event, Status> {
        let queue = self.queues.get_mut(&token).ok_or(Status::NotFound)?;
        queue.items.push_back(item);
        Ok(Event::QueueReady { thread: queue.thread, context: queue.context, token })
    }

    pub(crate) fn dequeue(&mut self, token: u32) -> Result<Vec<u8>, Status> {
        let queue = self.queues.get_mut(&token).ok_or(Status::NotFound)?;
        queue.items.pop_front().ok_or(Status::Empty)
    }
}

/// The shared queues of one vm_id, from outside.
#[derive(Clone)]
pub struct QueuesHandle {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) vm_id: String,
}

impl QueuesHandle {
    /// The names of all registered queues, in order.
    pub fn names(&self) -> Vec<Vec<u8>> {
        let world = self.world.borrow();
        let names = world.queues.tokens.keys().filter(|(vm_id, _)| *vm_id == self.vm_id);
        names.map(|(_, name)| name.clone()).collect()
    }

    /// How many items lie in a queue; `None` when nobody registered it.
    pub fn len(&self, name: impl AsRef<[u8]>) -> Option<usize> {
        let world = self.world.borrow();
        let token = world.queues.resolve(&self.vm_id, name.as_ref())?;
        world.queues.queues.get(&token).map(|q| q.items.len())
    }

    /// Whether a queue is registered and empty.
    pub fn is_empty(&self, name: impl AsRef<[u8]>) -> bool {
        self.len(name) == Some(0)
    }

    /// The thread whose VM is told of a new item: the last one that registered the name.
    pub fn consumer(&self, name: impl AsRef<[u8]>) -> Option<Thread> {
        let world = self.world.borrow();
        let token = world.queues.resolve(&self.vm_id, name.as_ref())?;
        world.queues.queues.get(&token).map(|q| q.thread)
    }

    /// Adds an item; the consumer is told at the next [`settle`](crate::Envoy::settle).
    ///
    /// # Errors
    /// [`Status::NotFound`] when nobody registered the queue.
    pub fn enqueue(&self, name: impl AsRef<[u8]>, item: impl AsRef<[u8]>) -> Result<(), Status> {
        let mut world = self.world.borrow_mut();
        let token = world.queues.resolve(&self.vm_id, name.as_ref()).ok_or(Status::NotFound)?;
        let event = world.queues.enqueue(token, item.as_ref().to_vec())?;
        world.events.push_back(event);
        Ok(())
    }

    /// Takes the oldest item.
    pub fn dequeue(&self, name: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        let mut world = self.world.borrow_mut();
        let token = world.queues.resolve(&self.vm_id, name.as_ref())?;
        world.queues.dequeue(token).ok()
    }
}
