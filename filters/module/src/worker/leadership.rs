//! Whether this VM leads the workers of its Envoy, and what the leader keeps of the tables.
//!
//! Keys: `pintle/leader`, written with compare-and-swap; `pintle/index`, `pintle/fits` and
//! `pintle/lazy`, written by the leader alone.

use pintle_contract::{DecodeError, Index, Lease, Message, Now, Slot, Version};
use pintle_hostcalls::{self as host, Cas};
use pintle_sync::{Effect, Election, Inbox, Refused, Step};

use crate::counters::{Count, Counters};
use crate::keys;

/// This VM's part in the election, and the leader's memory.
pub(crate) struct Leadership {
    election: Election,
    /// The leader's slot, as of the last tick.
    leader: Option<u32>,
    inbox: Inbox,
    /// The term that the inbox belongs to.
    fence: Option<u64>,
    index_changed: bool,
    /// Whether another leader's module knows reports of this one's schema.
    fits: bool,
    /// Whether another leader's agent tells only what is wanted.
    lazy: bool,
    /// What the others were told of this leader's agent.
    said_lazy: bool,
}

/// What this VM is after an election.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Follower,
    /// Leader, under this fence; `new` in its first tick.
    Leader {
        fence: u64,
        new: bool,
    },
}

impl Role {
    pub(crate) const fn fence(self) -> Option<u64> {
        match self {
            Self::Follower => None,
            Self::Leader { fence, .. } => Some(fence),
        }
    }
}

impl Leadership {
    pub(crate) fn new(worker: u64) -> Self {
        Self {
            election: Election::new(worker),
            leader: None,
            inbox: Inbox::default(),
            fence: None,
            index_changed: false,
            fits: false,
            lazy: false,
            said_lazy: false,
        }
    }

    /// Renews or takes the lease for the VM that holds `slot`; without one it can't lead.
    pub(crate) fn elect(&mut self, slot: Option<u32>, now: Now, counters: &mut Counters) -> Role {
        let Some(slot) = slot else { return Role::Follower };
        let (current, cas) = match host::shared_data(keys::LEADER) {
            Ok((bytes, cas)) => match Lease::decode(&bytes) {
                Err(DecodeError::Schema(_)) if self.election.leaves_to_newer(cas.number(), now) => {
                    self.leader = None;
                    return Role::Follower;
                }
                read => {
                    // Empty is what the next lines leave; all else is somebody's who shares our
                    // vm_id.
                    if read.is_err() && !bytes.is_empty() {
                        counters.add(Count::SharedRejected);
                    }
                    (read.ok(), cas)
                }
            },
            Err(_) => {
                // Made empty first, so that the next tick can compete for it.
                let _ = host::set_shared_data(keys::LEADER, b"", None);
                return Role::Follower;
            }
        };
        match self.election.decide(current.as_ref(), slot, now) {
            Step::Follow => {}
            Step::Write(lease) => {
                let won = host::set_shared_data(keys::LEADER, &lease.encode(), Some(cas)).is_ok();
                self.election.written(lease, won);
            }
        }
        let Some(fence) = self.election.leads(now) else {
            // Whoever led before is gone, and what is put into its queue with it.
            let current = current.filter(|lease| pintle_sync::in_force(lease, now));
            self.leader = current.map(|lease| lease.slot);
            self.fits = current.is_some_and(|lease| is_of(keys::FITS, lease.worker));
            self.lazy = current.is_some_and(|lease| is_of(keys::LAZY, lease.worker));
            return Role::Follower;
        };
        self.leader = Some(slot);
        // A lease that ran out and was renewed is the same term, with its stream in the middle of
        // whatever it was telling.
        let new = self.fence.replace(fence) != Some(fence);
        if new {
            counters.add(Count::LeaderElected);
            if host::set_shared_data(keys::FITS, &self.election.worker().to_le_bytes(), None)
                .is_err()
            {
                counters.add(Count::HostError);
            }
            let index = read_index(None, counters);
            self.inbox = Inbox::resume(index.map(|(index, _)| index).unwrap_or_default());
        }
        Role::Leader { fence, new }
    }

    /// Whether the stream of the leader before has ended, going by the other workers' slots.
    pub(crate) fn is_alone(&mut self, peers: &[(u32, Slot)], now: Now) -> bool {
        self.election.is_alone(peers.iter().map(|(number, slot)| (*number, slot)), now)
    }

    /// Whether the lease is this VM's and has not run out.
    pub(crate) fn leads(&self, now: Now) -> bool {
        self.election.leads(now).is_some()
    }

    /// The leader's slot, if another VM than the one in slot `own` leads.
    pub(crate) fn other_leader(&self, own: Option<u32>) -> Option<u32> {
        self.leader.filter(|leader| Some(*leader) != own)
    }

    /// Whether whoever sends on what this worker in slot `own` tells the agent knows its schema.
    pub(crate) fn fits(&self, own: Option<u32>) -> bool {
        self.fits || self.other_leader(own).is_none()
    }

    /// Whether another VM leads whose agent tells only what is wanted.
    pub(crate) fn is_lazy(&self, own: Option<u32>) -> bool {
        self.lazy && self.other_leader(own).is_some()
    }

    /// Tells the other workers whether this leader's agent tells only what is wanted.
    pub(crate) fn say_lazy(&mut self, lazy: bool, counters: &mut Counters) {
        if self.said_lazy == lazy {
            return;
        }
        let worker = self.election.worker().to_le_bytes();
        let value: &[u8] = if lazy { &worker } else { b"" };
        match host::set_shared_data(keys::LAZY, value, None) {
            Ok(()) => self.said_lazy = lazy,
            Err(_) => counters.add(Count::HostError),
        }
    }

    /// The services that have a table.
    pub(crate) fn held(&self) -> Vec<String> {
        self.inbox.index().services.into_iter().map(|(name, _)| name).collect()
    }

    /// A stream begins; the version that it may go on from.
    pub(crate) fn begin_stream(&mut self) -> Version {
        self.inbox.begin();
        self.inbox.version()
    }

    /// Up to which version everything was received.
    pub(crate) const fn version(&self) -> Version {
        self.inbox.version()
    }

    /// What a frame of the agent's changes.
    pub(crate) fn receive(&mut self, frame: &[u8]) -> Result<Vec<Effect>, Refused> {
        self.inbox.frame(frame)
    }

    /// What is held of this service is not what the agent takes it for.
    pub(crate) fn forget(&mut self, service: &str) {
        self.inbox.forget(service);
    }

    /// The index in shared data is not what the inbox holds any more.
    pub(crate) const fn change_index(&mut self) {
        self.index_changed = true;
    }

    /// Writes the index if it changed and this VM leads.
    pub(crate) fn write_index(&mut self, leading: bool, counters: &mut Counters) {
        if !leading || !std::mem::take(&mut self.index_changed) {
            return;
        }
        if host::set_shared_data(keys::INDEX, &self.inbox.index().encode(), None).is_err() {
            counters.add(Count::HostError);
        }
    }
}

/// Whether this key says something of the module or the agent of this leader.
fn is_of(key: &[u8], leader: u64) -> bool {
    let said = host::shared_data(key).ok().map(|(bytes, _)| bytes);
    said.is_some_and(|said| said == leader.to_le_bytes())
}

/// Which services have a table, and up to which version, unless it is the index that was `seen`.
pub(crate) fn read_index(seen: Option<Cas>, counters: &mut Counters) -> Option<(Index, Cas)> {
    let (bytes, cas) = host::shared_data(keys::INDEX).ok()?;
    if seen == Some(cas) {
        return None;
    }
    let index = Index::decode(&bytes);
    if index.is_err() && !bytes.is_empty() {
        counters.add(Count::SharedRejected);
    }
    Some((index.ok()?, cas))
}
