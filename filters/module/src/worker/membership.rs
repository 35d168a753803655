//! The place of this VM among the workers of its Envoy, and how they wake each other.
//!
//! Keys: `pintle/w/{slot}` and `pintle/l/{slot}`, of which it writes its own and reads the others';
//! the queues `pintle/q/{slot}`, of which it drains its own and fills the others'.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use pintle_contract::{Load, Loads, Message, Note, Now, Slot};
use pintle_hostcalls::{self as host, Queue, Status};
use pintle_sync::MAX_SLOTS;

use crate::counters::{Count, Counters};
use crate::keys;

/// Envoy's property with the id that the shared data and queues belong to.
const VM_ID: &[u8] = b"plugin_vm_id";

/// This VM's slot and queue, and the other workers'.
pub(crate) struct Membership {
    id: u64,
    vm_id: Vec<u8>,
    held: Option<Held>,
    /// Queues of the other workers by slot, as far as they were needed.
    queues: HashMap<u32, Queue>,
    /// Slots of the other live workers.
    peers: BTreeSet<u32>,
}

struct Held {
    number: u32,
    queue: Queue,
}

/// What a round over the slots found.
pub(crate) struct Round {
    /// The slots of the other live workers.
    pub(crate) peers: Vec<(u32, Slot)>,
    /// Those of them that were not there a round before.
    pub(crate) joined: Vec<u32>,
    /// Slots whose workers are gone since the round before.
    pub(crate) left: Vec<u32>,
    /// Whether this VM can be woken from now on: what came before, it was not told.
    pub(crate) registered: bool,
}

impl Membership {
    pub(crate) fn new() -> Self {
        Self {
            // Zero stands for nobody, in a slot or a lease. The standard library draws its keys
            // from the host's entropy, so that each VM gets another number.
            id: RandomState::new().hash_one(0u8).max(1),
            vm_id: host::property(VM_ID).unwrap_or_default(),
            held: None,
            queues: HashMap::new(),
            peers: BTreeSet::new(),
        }
    }

    /// The random id of this VM.
    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// The slot that this VM holds.
    pub(crate) fn slot(&self) -> Option<u32> {
        self.held.as_ref().map(|held| held.number)
    }

    /// How many live workers there are, this one included.
    pub(crate) fn workers(&self) -> u32 {
        u32::try_from(self.peers.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Reads the slots, and renews this VM's or claims the first free one. `None` when the host
    /// refuses: everything stays as it was.
    pub(crate) fn renew(&mut self, now: Now, counters: &mut Counters) -> Option<Round> {
        let held = self.slot();
        let mut mine = None;
        let mut vacant = None;
        let mut peers = Vec::new();
        for number in 0..MAX_SLOTS {
            let (slot, cas) = match host::shared_data(&keys::slot(number)) {
                Ok((bytes, cas)) => (Slot::decode(&bytes).ok(), cas),
                Err(Status::NOT_FOUND) => {
                    vacant = vacant.or(Some((number, None)));
                    break;
                }
                Err(_) => {
                    counters.add(Count::HostError);
                    return None;
                }
            };
            if !pintle_sync::is_free(slot.as_ref(), self.id, now) {
                peers.extend(slot.map(|slot| (number, slot)));
            } else if held == Some(number) {
                mine = Some((number, Some(cas)));
            } else {
                vacant = vacant.or(Some((number, Some(cas))));
            }
        }
        let live: BTreeSet<u32> = peers.iter().map(|(number, _)| *number).collect();
        let joined = live.difference(&self.peers).copied().collect();
        let left = self.peers.difference(&live).copied().collect();
        self.peers = live;
        if mine.is_none() {
            self.held = None;
        }
        let registered = mine.or(vacant).is_some_and(|(number, cas)| {
            let slot = pintle_sync::renewed(self.id, now);
            self.write_slot(number, cas, &slot, counters)
        });
        Some(Round { peers, joined, left, registered })
    }

    /// Whether the queue was registered with it.
    fn write_slot(
        &mut self,
        number: u32,
        cas: Option<host::Cas>,
        slot: &Slot,
        counters: &mut Counters,
    ) -> bool {
        let key = keys::slot(number);
        // A key that nobody has written takes any CAS: make it first, then compete for it.
        let cas = cas.or_else(|| {
            host::set_shared_data(&key, b"", None).ok()?;
            let (bytes, cas) = host::shared_data(&key).ok()?;
            bytes.is_empty().then_some(cas)
        });
        let Some(cas) = cas else { return false };
        if host::set_shared_data(&key, &slot.encode(), Some(cas)).is_err() {
            self.held = None;
            return false;
        }
        if self.held.is_some() {
            return false;
        }
        match host::register_queue(&keys::queue(number)) {
            Ok(queue) => self.held = Some(Held { number, queue }),
            Err(_) => counters.add(Count::HostError),
        }
        self.held.is_some()
    }

    /// Tells the other workers what this one knows of the load.
    pub(crate) fn tell_load(&self, services: Vec<(String, Vec<Load>)>, counters: &mut Counters) {
        let Some(number) = self.slot() else { return };
        let loads = Loads { worker: self.id, services };
        if host::set_shared_data(&keys::load(number), &loads.encode(), None).is_err() {
            counters.add(Count::HostError);
        }
    }

    /// What the holder of a slot knows of the load; nothing where it has told nothing yet, or is a
    /// module of another version.
    pub(crate) fn load_of(
        number: u32,
        slot: &Slot,
        counters: &mut Counters,
    ) -> Vec<(String, Vec<Load>)> {
        let Ok((bytes, _)) = host::shared_data(&keys::load(number)) else { return Vec::new() };
        match Loads::decode(&bytes) {
            Ok(loads) if loads.worker == slot.worker => loads.services,
            Ok(_) => Vec::new(),
            Err(_) => {
                counters.add(Count::SharedRejected);
                Vec::new()
            }
        }
    }

    /// Of the notes that wait in this VM's queue the first, at most `most`.
    pub(crate) fn notes(&self, most: usize, counters: &mut Counters) -> Vec<Note> {
        let mut notes = Vec::new();
        let Some(held) = &self.held else { return notes };
        for _ in 0..most {
            match host::dequeue(held.queue) {
                Ok(Some(bytes)) => match Note::decode(&bytes) {
                    Ok(note) => notes.push(note),
                    Err(_) => counters.add(Count::SharedRejected),
                },
                Ok(None) => break,
                Err(_) => {
                    counters.add(Count::HostError);
                    break;
                }
            }
        }
        notes
    }

    /// Puts a note into the queue of every other worker.
    pub(crate) fn notify_all(&mut self, note: &Note, counters: &mut Counters) {
        let bytes = note.encode();
        for number in self.peers.clone() {
            self.enqueue(number, &bytes, counters);
        }
    }

    /// Puts a note into the queue of one worker.
    pub(crate) fn notify(&mut self, slot: u32, note: &Note, counters: &mut Counters) {
        self.enqueue(slot, &note.encode(), counters);
    }

    fn enqueue(&mut self, slot: u32, bytes: &[u8], counters: &mut Counters) {
        let known = self.queues.get(&slot).copied();
        let resolve = || host::resolve_queue(&self.vm_id, &keys::queue(slot)).ok();
        let Some(queue) = known.or_else(resolve) else { return };
        if host::enqueue(queue, bytes).is_ok() {
            self.queues.insert(slot, queue);
        } else {
            self.queues.remove(&slot);
            counters.add(Count::HostError);
        }
    }
}
