//! Tables and their index: from shared data into what requests see.

use super::*;

impl Worker {
    pub(super) fn read_index(&mut self) -> Option<Index> {
        let (bytes, _) = host::shared_data(keys::INDEX).ok()?;
        let index = Index::decode(&bytes);
        if index.is_err() && !bytes.is_empty() {
            self.counters.add(Count::SharedRejected);
        }
        index.ok()
    }

    pub(super) fn flush_index(&mut self, leading: bool) {
        if let (true, true, Some(inbox)) = (leading, self.index_dirty, &self.inbox) {
            self.index_dirty = false;
            if host::set_shared_data(keys::INDEX, &inbox.index().encode(), None).is_err() {
                self.counters.add(Count::HostError);
            }
        }
    }

    /// Loads what the index names and this VM has not, and drops what it does not name.
    pub(super) fn load_index(&mut self, now: Now) {
        let Some(index) = self.read_index() else { return };
        for (name, version) in &index.services {
            if self.services.get(name.as_str()).is_none_or(|held| held.version < *version) {
                self.load_table(name, now);
            }
        }
        let named = |name: &Rc<str>| {
            index.services.binary_search_by(|(other, _)| other.as_str().cmp(name)).is_ok()
        };
        // The leader writes the index with its next tick: a table that is newer came after it.
        self.services.retain(|name, held| named(name) || held.version > index.version);
        self.version = self.version.max(index.version);
        self.tell_applied();
    }

    pub(super) fn load_table(&mut self, name: &str, now: Now) {
        match host::shared_data(&keys::table(name)) {
            Ok((bytes, _)) if bytes.is_empty() => {
                self.services.swap_remove(name);
            }
            Ok((bytes, _)) => match pintle_contract::Down::decode(&bytes) {
                Ok(pintle_contract::Down::Table(table)) if table.service == name => {
                    self.take_table(table, now);
                }
                _ => self.counters.add(Count::SharedRejected),
            },
            Err(Status::NOT_FOUND) => {}
            Err(_) => self.counters.add(Count::HostError),
        }
    }

    /// Makes a table the one that requests see. Older than what is held: nothing.
    pub(super) fn take_table(&mut self, mut table: Table, now: Now) {
        if self
            .services
            .get(table.service.as_str())
            .is_some_and(|held| table.version < held.version)
        {
            return;
        }
        let before = table.endpoints.len();
        let addresses = &self.config.addresses;
        table.endpoints.retain(|endpoint| addresses.check(endpoint.address).is_ok());
        let refused = before.saturating_sub(table.endpoints.len());
        self.counters.add_many(Count::AddressRejected, refused as u64);

        let policy = match self.config.policy(&table.service, &table.policy) {
            Ok(policy) => Some(policy),
            Err(error) => {
                self.counters.add(Count::PolicyRejected);
                host::log(
                    Level::Warn,
                    &format!("pintle: policy of {} refused: {error}", table.service),
                );
                None
            }
        };
        self.version = self.version.max(table.version);
        let name: Rc<str> = table.service.as_str().into();
        let fresh = match self.services.get_mut(&name) {
            Some(service) => service.update(&table, policy, &self.zone, now),
            None => {
                let own = || self.config.policy(&table.service, "").ok();
                let policy = policy.or_else(own);
                let policy = policy.unwrap_or_else(|| self.config.default_policy.clone());
                let service = Service::new(&table, policy, &self.zone, self.dice.next_u64(), now);
                self.services.insert(name.clone(), service);
                (0..table.endpoints.len()).collect()
            }
        };
        if self.config.breaker {
            for index in fresh {
                self.read_breaker(&name, index, now);
            }
            self.sync_due(&name, now);
        }
    }
}
