//! What an agent says of itself to a command that asks the fleet.

use std::collections::BTreeMap;

use pintle_contract::Table;
use pintle_state::Snapshot;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh64::xxh64;

use crate::link::Standing;

/// Services whose digests are said: about 60 bytes each, so that the whole stays within a message.
const MAX_DIGESTS: usize = 5_000;
/// Troubles and proxies that are named.
const MAX_NAMED: usize = 20;

/// How an agent is and what it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its release.
    pub version: String,
    /// The version of what it serves.
    pub snapshot: String,
    /// Envoys that hold a stream.
    pub connected: usize,
    /// Those of them whose workers all hold the newest tables.
    pub current: usize,
    /// Some of the others, by node id.
    pub behind: Vec<String>,
    /// Services.
    pub services: usize,
    /// Endpoints.
    pub endpoints: usize,
    /// Removals that it holds back.
    pub held: usize,
    /// Entries, policies and events that it has refused.
    pub rejected: usize,
    /// What is wrong, the worst first.
    pub troubles: Vec<String>,
    /// What it serves, by service; of the first ones by name where there are very many.
    pub digests: BTreeMap<String, Digest>,
}

/// What an agent serves of one service, for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Its endpoints: ids, addresses, weights, health.
    pub endpoints: u32,
    /// Its policy.
    pub policy: u32,
}

impl Digest {
    /// Of a table. What proxies say of breakers is left out: it differs for moments everywhere.
    fn of(table: &Table) -> Self {
        let rows = table.endpoints.iter().map(|it| {
            format!("{} {} {} {:?} {}\n", it.id, it.socket_addr(), it.weight, it.health, it.zone)
        });
        Self { endpoints: short(&rows.collect::<String>()), policy: short(&table.policy) }
    }
}

fn short(text: &str) -> u32 {
    // The low half is as good as any.
    (xxh64(text.as_bytes(), 0) & u64::from(u32::MAX)) as u32
}

impl Report {
    /// Of what an agent serves, and who takes it.
    pub(super) fn of(snapshot: &Snapshot, standing: &Standing) -> Self {
        let tables = || snapshot.services.values().map(|service| &service.table);
        let digests = tables().take(MAX_DIGESTS);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            snapshot: snapshot.version.to_string(),
            connected: standing.connected,
            current: standing.current,
            behind: standing.behind.iter().take(MAX_NAMED).cloned().collect(),
            services: snapshot.services.len(),
            endpoints: tables().map(|table| table.endpoints.len()).sum(),
            held: snapshot.held.len(),
            rejected: snapshot.rejected.len(),
            troubles: standing.troubles.iter().take(MAX_NAMED).cloned().collect(),
            digests: digests.map(|table| (table.service.clone(), Digest::of(table))).collect(),
        }
    }
}
