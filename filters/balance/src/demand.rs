//! What a service may come to hold of every VM's memory, known where its policy is read. The sums
//! are those of the VM's own account: [`Cost`] of each ring and table, and
//! [`Memory`](crate::Memory)'s room to build the largest anew.

use std::collections::BTreeMap;

use pintle_contract::Endpoint;

use crate::cost::Cost;
use crate::policy::Policy;
use crate::subset::{MAX_POOLS, metadata};
use crate::tier::tier_of;

/// Bytes of a service beside its endpoints.
const SERVICE: u64 = 4_096;
/// Bytes of an endpoint beside its id: its load and history, its breaker, its places in the
/// indices.
const ENDPOINT: u64 = 768;

/// Bytes of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Of its endpoints, whatever the policy says.
    pub endpoints: u64,
    /// Of rings and tables: of each tier, and of each value of a subset that some endpoint has.
    pub tables: u64,
    /// Of the largest of them.
    pub largest: u64,
}

impl Demand {
    /// Of a service with this policy and these endpoints.
    #[must_use]
    pub fn of(policy: &Policy, endpoints: &[Endpoint]) -> Self {
        let mut demand = Self { endpoints: Self::bytes(endpoints), ..Self::default() };
        if !policy.strategy.is_hashing() {
            return demand;
        }
        let serving: Vec<&Endpoint> = endpoints.iter().filter(|it| it.weight > 0).collect();
        demand.add(policy, &serving);
        for selector in &policy.subset {
            let mut values: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
            for endpoint in &serving {
                for value in selector.with.labels(endpoint) {
                    values.entry(value).or_default().push(endpoint);
                }
            }
            for members in values.values().take(MAX_POOLS) {
                demand.add(policy, members);
            }
        }
        demand
    }

    /// Bytes that endpoints come to, apart from what is built of them.
    #[must_use]
    pub fn bytes(endpoints: &[Endpoint]) -> u64 {
        let endpoint = |it: &Endpoint| Self::of_endpoint(&it.id);
        endpoints.iter().map(endpoint).fold(SERVICE, u64::saturating_add)
    }

    /// Bytes of one of them, by its id.
    #[must_use]
    pub const fn of_endpoint(id: &str) -> u64 {
        ENDPOINT.saturating_add(id.len() as u64)
    }

    /// The tables of one pool, one for each of its tiers.
    fn add(&mut self, policy: &Policy, members: &[&Endpoint]) {
        let mut tiers: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
        for endpoint in members {
            let tier = tier_of(metadata(endpoint, "priority"));
            tiers.entry(tier).or_default().push(endpoint.weight);
        }
        for weights in tiers.into_values() {
            let bytes = Cost::of(policy, weights).bytes;
            self.tables = self.tables.saturating_add(bytes);
            self.largest = self.largest.max(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn demand(select: Value, weights: &[u32]) -> Demand {
        let policy: Policy = pintle_settings::read("select", select).unwrap();
        let endpoint = |(i, weight): (u16, &u32)| Endpoint {
            weight: *weight,
            tags: [format!("t{}", i % 2)].into(),
            ..Endpoint::new(format!("e{i}"), ([10, 0, 0, 1], 1 + i).into())
        };
        Demand::of(&policy, &(0..).zip(weights).map(endpoint).collect::<Vec<_>>())
    }

    #[test]
    fn rings_weights_tables_and_subsets_are_known_where_the_policy_is_read() {
        let none = demand(json!({}), &[1; 4]);
        assert_eq!((none.tables, none.largest), (0, 0));
        assert!(none.endpoints > 4 * ENDPOINT);
        let ring =
            demand(json!({"strategy": "ring_hash", "minimum_ring_size": 8_388_608}), &[1; 4]);
        assert!((88_000_000..89_000_000).contains(&ring.tables), "{ring:?}");
        let light = demand(json!({"strategy": "ring_hash"}), &[1, 1_000_000, 0]);
        assert!(light.tables > 10_000_000, "{light:?}");
        let table = json!({"strategy": "maglev", "table_size": 5_000_011});
        let whole = demand(table.clone(), &[1; 4]).tables;
        let mut tagged = table;
        tagged["subset"] = json!([{"header": "x-tag", "tag": true}]);
        let tagged = demand(tagged, &[1; 4]);
        assert!((2 * whole..3 * whole + 1_000).contains(&tagged.tables), "{tagged:?} {whole}");
        assert!(tagged.largest <= whole);
    }
}
