//! Whether leases live whose keys are gone.
//!
//! A key whose lease lives was deleted by somebody; one whose lease does not may have lost it by an
//! outage. etcd's LeaseTimeToLive says which: it answers a TTL of -1 for a lease that it does not
//! know (seen on 3.4.23 and 3.5.16), and without keys asked for it needs no permission but a valid
//! token.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::Client;
use pintle_state::Update;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::updates::Updates;

/// Leases that are asked for after one change, at most; beyond it the endpoints are tried, which
/// takes longer and comes to the same.
const MAX_LEASES: usize = 1_000;
/// Questions at once.
const AT_ONCE: usize = 16;
/// An answer that has not come by then is waited for no longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks beside the watch, and tells the state which leases live.
pub(crate) fn ask(client: Client, leases: Vec<u64>, updates: Updates) {
    if leases.is_empty() {
        return;
    }
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut asked = JoinSet::new();
        for lease in leases.into_iter().take(MAX_LEASES) {
            let (client, places) = (client.clone(), Arc::clone(&places));
            asked.spawn(async move {
                let _place = places.acquire_owned().await.ok()?;
                lives(client, lease).await.then_some(lease)
            });
        }
        let mut live = Vec::new();
        while let Some(answer) = asked.join_next().await {
            live.extend(answer.ok().flatten());
            while let Some(answer) = asked.try_join_next() {
                live.extend(answer.ok().flatten());
            }
            if !live.is_empty() {
                let update = Update::LeasesLive(std::mem::take(&mut live));
                if updates.send(update).await.is_err() {
                    return;
                }
            }
        }
    });
}

async fn lives(client: Client, lease: u64) -> bool {
    let Ok(id) = i64::try_from(lease) else { return false };
    let answer = timeout(PATIENCE, client.lease_client().time_to_live(id, None)).await;
    matches!(answer, Ok(Ok(answer)) if answer.ttl() > 0)
}
