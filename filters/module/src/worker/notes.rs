//! Notes between workers, and words for the agent.

use super::*;

impl Worker {
    pub(crate) fn on_queue(&mut self) {
        self.drain_notes(host::now());
    }

    pub(super) fn drain_notes(&mut self, now: Now) {
        let Some(queue) = self.place.as_ref().map(|place| place.queue) else { return };
        // A burst names the same table many times; it is loaded once.
        let mut tables = BTreeSet::new();
        for _ in 0..MAX_NOTES {
            match host::dequeue(queue) {
                Ok(Some(bytes)) => match Note::decode(&bytes) {
                    Ok(Note::Table(name)) => {
                        tables.insert(name);
                    }
                    Ok(Note::Breaker((name, id))) => {
                        let name: Rc<str> = name.into();
                        let service = self.services.get(&name);
                        if let Some(index) = service.and_then(|s| s.balancer.index_of(&id)) {
                            self.read_breaker(&name, index, now);
                        }
                    }
                    Ok(Note::Forward(message)) => self.send_up(message),
                    Ok(Note::Index(_)) => self.load_index(now),
                    Err(_) => self.counters.add(Count::SharedRejected),
                },
                Ok(None) => break,
                Err(_) => {
                    self.counters.add(Count::HostError);
                    break;
                }
            }
        }
        for name in tables {
            self.load_table(&name, now);
        }
        self.tell_applied();
    }

    pub(super) fn tell_others(&mut self, note: &Note) {
        let bytes = note.encode();
        for number in self.others.clone() {
            self.tell(number, &bytes);
        }
    }

    pub(super) fn tell(&mut self, number: u32, bytes: &[u8]) {
        let queue = match self.queues.get(&number) {
            Some(queue) => *queue,
            None => match host::resolve_queue(&self.vm_id, &keys::queue(number)) {
                Ok(queue) => {
                    self.queues.insert(number, queue);
                    queue
                }
                Err(_) => return,
            },
        };
        if host::enqueue(queue, bytes).is_err() {
            self.queues.remove(&number);
            self.counters.add(Count::HostError);
        }
    }

    /// Tells the agent which version this worker holds, when that is news.
    pub(super) fn tell_applied(&mut self) {
        if self.version <= self.told_version || self.place.is_none() {
            return;
        }
        self.told_version = self.version;
        let workers = u32::try_from(self.others.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.tell_agent(&Up::Applied(Applied { worker: self.id, workers, version: self.version }));
    }

    /// Sends up the stream if this VM leads, else through the leader's queue.
    pub(super) fn tell_agent(&mut self, message: &Up) {
        let bytes = message.encode();
        match (self.leader_slot, &self.place) {
            (Some(leader), Some(place)) if leader != place.number => {
                self.tell(leader, &Note::Forward(bytes).encode());
            }
            _ => self.send_up(bytes),
        }
    }

    /// Gives the leader what is left from when this VM led, or was taken for it, or nobody led. With the
    /// tick and not at once, so that two VMs that take each other for it do not play ball.
    pub(super) fn hand_over(&mut self) {
        let own = self.place.as_ref().map(|place| place.number);
        let Some(leader) = self.leader_slot.filter(|leader| Some(*leader) != own) else { return };
        for message in std::mem::take(&mut self.outbox) {
            self.tell(leader, &Note::Forward(message).encode());
        }
    }

    pub(super) fn send_up(&mut self, message: Vec<u8>) {
        if self.outbox.len() >= MAX_OUTBOX {
            self.outbox.pop_front();
            self.counters.add(Count::ReportDropped);
        }
        self.outbox.push_back(message);
        self.flush_outbox();
    }

    pub(super) fn flush_outbox(&mut self) {
        let Some(token) = self.stream.token() else { return };
        while let Some(message) = self.outbox.pop_front() {
            if host::send_grpc_message(token, &message).is_err() {
                self.outbox.push_front(message);
                return;
            }
        }
    }

    pub(super) fn report(&mut self, now: Now) {
        let all = (self.ticks / SLOW).is_multiple_of(FULL_REPORT);
        let services: Vec<_> = self
            .services
            .iter_mut()
            .filter_map(|(name, service)| service.report(name, all, now))
            .collect();
        let report = Report {
            worker: self.id,
            version: self.version,
            services,
            counters: self.counters.report(),
        };
        self.tell_agent(&Up::Report(report));
    }
}
