//! The exchange of the breakers with shared data: read, merged, written with compare-and-swap.
//!
//! Keys: `pintle/b/{service}/{endpoint}`, read and written by every worker.

use std::rc::Rc;

use pintle_breaker::{Need, Record, State, Ticket};
use pintle_contract::{BreakerState, Note, Transition, Up};
use pintle_hostcalls::{self as host, Level, Status};
use rand::Rng as _;

use super::services::{Replaced, Services};
use super::turn::Turn;
use crate::counters::{Count, Counters};
use crate::keys;

/// Tries to write a breaker's record, at most. Each lost one means that another worker wrote.
const MAX_TRIES: usize = 16;

/// What is to be sent once the callback's work is done.
pub(crate) enum Outgoing {
    /// To every other worker.
    Workers(Note),
    /// To the agent.
    Agent(Up),
}

/// The breakers' way to the other workers; the records themselves lie with their services.
pub(crate) struct Breakers {
    enabled: bool,
    /// Whether records are written. A VM that Envoy makes to try a configuration never ticks, and
    /// what it would have to tell would go with it.
    started: bool,
    outgoing: Vec<Outgoing>,
}

impl Breakers {
    pub(crate) const fn new(enabled: bool) -> Self {
        Self { enabled, started: false, outgoing: Vec::new() }
    }

    /// From now on records are written.
    pub(crate) const fn start(&mut self) {
        self.started = true;
    }

    /// What has to be sent since the last time.
    pub(crate) fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// What every tick has to do: counts to be brought in, probes that may have expired.
    pub(crate) fn run(&mut self, services: &mut Services, turn: &mut Turn<'_>) {
        if self.enabled {
            for name in services.names() {
                self.sync_due(services, &name, turn);
            }
        }
    }

    /// Reads the records of endpoints that have come, and obeys what the new table says of all.
    pub(crate) fn follow_table(
        &mut self,
        services: &mut Services,
        replaced: &Replaced,
        turn: &mut Turn<'_>,
    ) {
        if self.enabled {
            for index in &replaced.new {
                self.read(services, &replaced.name, *index, turn);
            }
            self.sync_due(services, &replaced.name, turn);
        }
    }

    fn sync_due(&mut self, services: &mut Services, name: &Rc<str>, turn: &mut Turn<'_>) {
        let due = services.get_mut(name).map(|service| service.need_sync(turn.now));
        for index in due.unwrap_or_default() {
            self.sync(services, name, index, false, turn);
        }
        if let Some(service) = services.get_mut(name) {
            service.update_verdicts(None, turn.now);
            service.apply_advice(turn.now);
        }
    }

    /// Reads a breaker's record because another worker, or an earlier VM, wrote it.
    pub(crate) fn read(
        &mut self,
        services: &mut Services,
        name: &Rc<str>,
        index: usize,
        turn: &mut Turn<'_>,
    ) {
        let Some(service) = services.get_mut(name) else { return };
        let Some(id) = service.balancer.id_of(index) else { return };
        let record = match host::shared_data(&keys::breaker(name, id)) {
            Ok((bytes, _)) if !bytes.is_empty() => Record::decode(&bytes),
            _ => return,
        };
        let Ok(record) = record else { return turn.counters.add(Count::SharedRejected) };
        service.watch(index);
        let need = service.breaker_mut(index).map(|breaker| breaker.refresh(record, turn.now));
        service.update_verdicts(Some(index), turn.now);
        if need == Some(Need::Sync) {
            self.sync(services, name, index, false, turn);
        }
    }

    /// Names every breaker that is not quiet, for a worker that has come: what was told before it
    /// had a queue, or while it was taken for gone, it has not heard.
    pub(crate) fn unquiet(services: &Services) -> Vec<Note> {
        let all = services.iter().flat_map(|(name, service)| {
            let note = |id: &str| Note::Breaker((name.to_string(), id.to_owned()));
            service.unquiet().map(note)
        });
        all.collect()
    }

    /// Brings what this worker saw of an endpoint into the shared record, and with `claim` takes a
    /// probe slot. Gives up after [`MAX_TRIES`] lost races; what is pending stays pending.
    pub(crate) fn sync(
        &mut self,
        services: &mut Services,
        name: &Rc<str>,
        index: usize,
        claim: bool,
        turn: &mut Turn<'_>,
    ) -> Option<Ticket> {
        if !self.started {
            return None;
        }
        let service = services.get_mut(name)?;
        service.watch(index);
        let id = service.balancer.id_of(index)?.to_owned();
        let key = keys::breaker(name, &id);
        let mut bytes = Vec::new();
        for _ in 0..MAX_TRIES {
            let (stored, cas) = match host::shared_data(&key) {
                Ok(read) => read,
                Err(Status::NOT_FOUND) => {
                    // A key that nobody has written takes any CAS: make it first.
                    if host::set_shared_data(&key, b"", None).is_err() {
                        break;
                    }
                    continue;
                }
                Err(_) => break,
            };
            let record = decode(&stored, turn.counters);
            let policy = &service.policy.breaker;
            let random = turn.rng.next_u32();
            let breaker = service.breaker(index)?;
            let merged = if claim {
                breaker.claim(record, policy, service.is_last_resort(), turn.now, random)
            } else {
                breaker.merge(record, policy, turn.now, random)
            };
            if merged.changed {
                bytes.clear();
                merged.record.encode(&mut bytes);
                match host::set_shared_data(&key, &bytes, Some(cas)) {
                    Ok(()) => {}
                    Err(Status::CAS_MISMATCH) => continue,
                    Err(_) => break,
                }
            }
            let (wake, ticket) = (merged.wake, merged.ticket);
            let shadow = service.policy.switches.shadow;
            let transitions = service.breaker_mut(index)?.commit(merged);
            service.update_verdicts(Some(index), turn.now);
            if wake {
                let note = Note::Breaker((name.to_string(), id.clone()));
                self.outgoing.push(Outgoing::Workers(note));
            }
            for transition in &transitions {
                let mut told = announce(name, &id, transition, turn.counters);
                told.observed &= !shadow;
                self.outgoing.push(Outgoing::Agent(Up::Transition(told)));
            }
            return ticket;
        }
        turn.counters.add(Count::HostError);
        None
    }
}

/// The stored record; `None` where there is none, or none that can be read.
fn decode(stored: &[u8], counters: &mut Counters) -> Option<Record> {
    if stored.is_empty() {
        return None;
    }
    let record = Record::decode(stored).ok();
    if record.is_none() {
        counters.add(Count::SharedRejected);
    }
    record
}

/// Logs and counts a transition, and gives it the agent's form.
fn announce(
    service: &str,
    id: &str,
    transition: &pintle_breaker::Transition,
    counters: &mut Counters,
) -> Transition {
    if transition.to == State::Open {
        counters.add(Count::BreakerOpened);
    }
    let told = Transition {
        service: service.to_owned(),
        endpoint: id.to_owned(),
        from: told_state(transition.from),
        to: told_state(transition.to),
        reason: transition.reason.to_string(),
        observed: transition.is_for_the_fleet(),
        at: transition.at,
        until: transition.until.unwrap_or_default(),
        trips: transition.trips,
    };
    let (from, to, reason) = (told.from.as_str(), told.to.as_str(), &told.reason);
    host::log(Level::Warn, &format!("pintle: breaker of {service}/{id}: {from} -> {to}: {reason}"));
    told
}

/// A breaker's state as the contract has it.
pub(crate) const fn told_state(state: State) -> BreakerState {
    match state {
        State::Closed => BreakerState::Closed,
        State::Open => BreakerState::Open,
        State::HalfOpen => BreakerState::HalfOpen,
    }
}
