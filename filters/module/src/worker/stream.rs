//! The line to the agent: opened, heard, carried out.

use super::*;

impl Worker {
    pub(super) fn run_stream(&mut self, leading: Option<u64>, now: Now) {
        let Some(cluster) = self.config.agent.clone() else { return };
        match self.stream.tick(leading.is_some(), now, self.dice.next_u32()) {
            Action::Nothing => {}
            Action::Cancel(token) => {
                let _ = host::cancel_grpc(token);
            }
            Action::Open => {
                let opened = host::open_grpc_stream(&cluster, "pintle.v1.Sync", "Watch");
                self.stream.opened(opened.ok(), now, self.dice.next_u32());
                let inbox = self.inbox.get_or_insert_default();
                inbox.begin();
                if let (Ok(token), Some(fence)) = (opened, leading) {
                    let hello = Hello {
                        proxy: self.proxy.clone(),
                        worker: self.id,
                        fence,
                        have: inbox.version(),
                    };
                    let _ = host::send_grpc_message(token, &Up::Hello(hello).encode());
                    self.told_version = Version::default();
                    self.tell_applied();
                }
            }
        }
        self.flush_outbox();
    }

    /// A message of the agent's.
    pub(crate) fn on_message(&mut self, token: u32, size: usize) {
        let now = host::now();
        if !self.stream.heard(token, now) {
            return;
        }
        let Ok(bytes) = host::grpc_message(size) else {
            return self.counters.add(Count::HostError);
        };
        self.confirmed_at = now;
        let Some(inbox) = &mut self.inbox else { return };
        match inbox.frame(&bytes) {
            Err(refused) => {
                self.counters.add(Count::FrameRejected);
                host::log(
                    Level::Warn,
                    &format!("pintle: frame from the agent refused: {}", refused.reason()),
                );
            }
            Ok(effects) => {
                for effect in effects {
                    self.carry_out(effect, &bytes, now);
                }
            }
        }
    }

    pub(crate) fn on_stream_closed(&mut self, token: u32) {
        self.stream.closed(token, host::now(), self.dice.next_u32());
    }

    pub(super) fn carry_out(&mut self, effect: Effect, frame: &[u8], now: Now) {
        match effect {
            Effect::Store(table) => {
                if host::set_shared_data(&keys::table(&table.service), frame, None).is_err() {
                    self.counters.add(Count::HostError);
                }
                self.index_dirty = true;
                let name = table.service.clone();
                self.take_table(table, now);
                self.tell_others(&Note::Table(name));
                self.tell_applied();
            }
            Effect::Remove(name) => {
                if host::set_shared_data(&keys::table(&name), b"", None).is_err() {
                    self.counters.add(Count::HostError);
                }
                self.index_dirty = true;
                self.services.swap_remove(name.as_str());
                self.tell_others(&Note::Table(name));
            }
            Effect::Complete(version) => {
                // Without any table this is all that the others hear of.
                let news = version > self.version;
                self.version = self.version.max(version);
                self.index_dirty |= news;
                self.flush_index(true);
                if news {
                    self.tell_others(&Note::Index(self.version));
                }
                self.tell_applied();
            }
        }
    }
}
