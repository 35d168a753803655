//! The breakers' shared records: read, merged, written with compare-and-swap.

use super::*;

impl Worker {
    pub(super) fn run_breakers(&mut self, now: Now) {
        if !self.config.breaker {
            return;
        }
        let names: Vec<Rc<str>> = self.services.keys().cloned().collect();
        for name in names {
            self.sync_due(&name, now);
        }
    }

    pub(super) fn sync_due(&mut self, name: &Rc<str>, now: Now) {
        let due = self.services.get_mut(name).map(|service| service.due(now)).unwrap_or_default();
        for index in due {
            self.sync_breaker(name, index, false, now);
        }
        if let Some(service) = self.services.get_mut(name) {
            service.judge(None, now);
            service.advise(now);
        }
    }

    /// Reads a breaker's record because another worker, or an earlier VM, wrote it.
    pub(super) fn read_breaker(&mut self, name: &Rc<str>, index: usize, now: Now) {
        let Some(service) = self.services.get_mut(name) else { return };
        let Some(id) = service.balancer.id_of(index) else { return };
        let record = match host::shared_data(&keys::breaker(name, id)) {
            Ok((bytes, _)) if !bytes.is_empty() => Record::decode(&bytes),
            _ => return,
        };
        let Ok(record) = record else { return self.counters.add(Count::SharedRejected) };
        let need = service.mirror_mut(index).map(|mirror| mirror.refresh(record, now));
        service.judge(Some(index), now);
        if need == Some(Need::Sync) {
            self.sync_breaker(name, index, false, now);
        }
    }

    /// Names every breaker that is not quiet to a worker that has come: what was told before it had a
    /// queue, or while it was taken for gone, it has not heard.
    pub(super) fn tell_breakers(&mut self, number: u32) {
        let all = self.services.iter().flat_map(|(name, service)| {
            let note = |id: &str| Note::Breaker((name.to_string(), id.to_owned())).encode();
            service.restless().map(note)
        });
        for note in all.collect::<Vec<_>>() {
            self.tell(number, &note);
        }
    }

    /// Brings what this worker saw of an endpoint into the shared record, and with `claim` takes a
    /// probe slot. Gives up after some lost races; what is pending stays pending.
    pub(crate) fn sync_breaker(
        &mut self,
        name: &Rc<str>,
        index: usize,
        claim: bool,
        now: Now,
    ) -> Option<Ticket> {
        // What Envoy makes to try a configuration ends again, and what it would have to tell with it.
        if self.starting {
            return None;
        }
        let service = self.services.get_mut(name)?;
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
            let fresh = if stored.is_empty() {
                None
            } else {
                let record = Record::decode(&stored).ok();
                if record.is_none() {
                    self.counters.add(Count::SharedRejected);
                }
                record
            };
            let policy = &service.policy.breaker;
            let random = self.dice.next_u32();
            let mirror = service.mirror(index)?;
            let merged = if claim {
                mirror.claim(fresh, policy, service.last_resort(), now, random)
            } else {
                mirror.merge(fresh, policy, now, random)
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
            let transitions = service.mirror_mut(index)?.commit(merged);
            service.judge(Some(index), now);
            if wake {
                self.tell_others(&Note::Breaker((name.to_string(), id.clone())));
            }
            for transition in transitions {
                self.tell_transition(name, &id, &transition);
            }
            return ticket;
        }
        self.counters.add(Count::HostError);
        None
    }

    pub(super) fn tell_transition(
        &mut self,
        service: &str,
        id: &str,
        change: &pintle_breaker::Transition,
    ) {
        if change.to == pintle_breaker::State::Open {
            self.counters.add(Count::BreakerOpened);
        }
        let told = Transition {
            service: service.to_owned(),
            endpoint: id.to_owned(),
            from: state(change.from),
            to: state(change.to),
            reason: change.reason.to_string(),
            observed: change.is_for_the_fleet(),
            at: change.at,
            until: change.until.unwrap_or_default(),
            trips: change.trips,
        };
        host::log(
            Level::Warn,
            &format!(
                "pintle: breaker of {service}/{id}: {} -> {}: {}",
                told.from.as_str(),
                told.to.as_str(),
                told.reason
            ),
        );
        self.tell_agent(&Up::Transition(told));
    }
}

const fn state(state: pintle_breaker::State) -> pintle_contract::BreakerState {
    match state {
        pintle_breaker::State::Closed => pintle_contract::BreakerState::Closed,
        pintle_breaker::State::Open => pintle_contract::BreakerState::Open,
        pintle_breaker::State::HalfOpen => pintle_contract::BreakerState::HalfOpen,
    }
}
