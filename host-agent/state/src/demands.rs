//! What all services together hold of every VM, so that a policy that asks for too much is refused
//! where it is read and not where requests are.

use std::collections::BTreeMap;

use pintle_balance::Demand;

use crate::entry::Reject;

/// By service.
#[derive(Debug, Default)]
pub(crate) struct Demands {
    of: BTreeMap<String, Demand>,
    /// Of their endpoints and tables.
    sum: u64,
}

const fn bytes(demand: &Demand) -> u64 {
    demand.endpoints.saturating_add(demand.tables)
}

impl Demands {
    /// Notes what a service holds from now on.
    pub(crate) fn set(&mut self, service: &str, demand: Option<Demand>) {
        let before = self.of.remove(service);
        self.sum = self.sum.saturating_sub(before.as_ref().map_or(0, bytes));
        if let Some(demand) = demand {
            self.sum = self.sum.saturating_add(bytes(&demand));
            self.of.insert(service.to_owned(), demand);
        }
    }

    /// How many services are noted.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether a VM holds what the service would come to, beside the others.
    pub(crate) fn fits(&self, service: &str, demand: &Demand, budget: u64) -> Result<(), Reject> {
        let held = self.of.get(service);
        let others = self.sum.saturating_sub(held.map_or(0, bytes));
        let largest = self.of.iter().filter(|(name, _)| name.as_str() != service);
        let largest = largest.map(|(_, it)| it.largest).fold(demand.largest, u64::max);
        let sum = others.saturating_add(bytes(demand)).saturating_add(largest);
        // What costs no more than before is no reason: the one before it stands already.
        if sum <= budget || demand.tables <= held.map_or(0, |held| held.tables) {
            return Ok(());
        }
        Err(Reject::TooCostly { tables: demand.tables, others, largest, budget })
    }
}
