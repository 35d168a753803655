//! Services that requests have come for and that have no table, where the agent tells only what is
//! wanted.
//!
//! Keys: none.

use pintle_contract::{Message as _, Note, Now, Up, Want, is_name};
use pintle_sync::{Ask, Wanted};

use super::Worker;

/// What is asked of the agent, and whether there is one to ask.
#[derive(Default)]
pub(crate) struct Wants {
    open: bool,
    wanted: Wanted,
    outgoing: Vec<String>,
}

impl Wants {
    /// Whether there is an agent that tells only what is wanted.
    pub(crate) const fn is_open(&self) -> bool {
        self.open
    }

    /// There is such an agent, or there is none any more.
    pub(crate) const fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// A request has come for a service without a table. Whether an answer is to come.
    pub(crate) fn ask(&mut self, name: &str, now: Now) -> bool {
        if !self.open || !is_name(name) {
            return false;
        }
        match self.wanted.ask(name, now) {
            Ask::Now => {
                self.outgoing.push(name.to_owned());
                true
            }
            Ask::Open => true,
            Ask::Vain => false,
        }
    }

    /// The agent has told a table, or that there is none.
    pub(crate) fn answered(&mut self, name: &str) {
        self.wanted.answered(name);
    }

    /// Whether an answer is still to come.
    pub(crate) fn is_waiting(&self, name: &str) -> bool {
        self.open && self.wanted.is_open(name)
    }

    /// What the agent is to be asked for, since the last time.
    pub(crate) fn take_outgoing(&mut self) -> Vec<String> {
        std::mem::take(&mut self.outgoing)
    }
}

impl Worker {
    /// Whether there is an agent that tells only what is wanted.
    pub(super) fn look_for_wants(&mut self, leading: bool) {
        let lazy = leading && self.uplink.is_lazy();
        if leading {
            self.leadership.say_lazy(lazy, &mut self.local.counters);
        }
        let another = self.leadership.is_lazy(self.membership.slot());
        self.local.wants.set_open(lazy || another && !leading);
    }

    /// The agent tells only what is wanted: that is what is held, and what the configuration names.
    pub(super) fn say_wants(&mut self) {
        let services = self.local.config.named().map(ToOwned::to_owned).collect();
        let want = Up::Want(Want { held: self.leadership.held(), services });
        self.uplink.send(want.encode(), &mut self.local.counters);
        self.look_for_wants(true);
    }

    /// Asks the agent for what requests came for, through the leader's queue also where that is
    /// this VM's own: nothing can be sent to the agent from the callback of a request.
    pub(super) fn ask(&mut self) {
        let services = self.local.wants.take_outgoing();
        let own = self.membership.slot();
        let leader = self.leadership.other_leader(own).or(own);
        let Some(leader) = leader.filter(|_| !services.is_empty()) else { return };
        let want = Up::Want(Want { held: Vec::new(), services }).encode();
        self.membership.notify(leader, &Note::Forward(want), &mut self.local.counters);
    }
}
