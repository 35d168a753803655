//! Who is woken by what.

use std::time::Duration;

use pintle_contract::{Table, Version};
use pintle_state::{Service, Snapshot};

use super::*;

fn snapshot(sequence: u64, services: &[(&str, u64)]) -> Arc<Snapshot> {
    let version = Version { epoch: 1, sequence };
    let mut snapshot = Snapshot { version, ..Snapshot::default() };
    for (name, sequence) in services {
        snapshot.services.insert(table(name, *sequence));
    }
    Arc::new(snapshot)
}

fn table(name: &str, sequence: u64) -> Arc<Service> {
    let version = Version { epoch: 1, sequence };
    let service = name.to_owned();
    Arc::new(Service::of(Table { service, version, endpoints: Vec::new(), policy: String::new() }))
}

async fn is_woken(wake: &mut Wake) -> bool {
    tokio::time::timeout(Duration::from_millis(50), wake.changed()).await.is_ok()
}

#[tokio::test]
async fn a_change_wakes_those_who_wait_for_it_and_the_first_snapshot_all() {
    let (tx, rx) = watch::channel(Arc::new(Snapshot::default()));
    let wakes = Wakes::default();
    let following = tokio::spawn(wakes.clone().follow(rx));
    let (mut orders, mut ledger) = (wakes.of("orders"), wakes.of("ledger"));
    let mut nobody = wakes.of("nobody");
    tokio::task::yield_now().await;
    let first = snapshot(1, &[("ledger", 1), ("orders", 1)]);
    assert!(is_loaded(&first));
    tx.send_replace(Arc::clone(&first));
    for wake in [&mut orders, &mut ledger, &mut nobody] {
        assert!(is_woken(wake).await, "{}", wake.service());
        assert!(!is_woken(wake).await, "{}", wake.service());
    }

    let mut second = Snapshot::clone(&first);
    second.version.sequence = 2;
    second.services.insert(table("orders", 2));
    tx.send_replace(Arc::new(second));
    assert!(is_woken(&mut orders).await);
    assert!(!is_woken(&mut ledger).await && !is_woken(&mut nobody).await);

    // Who has looked meanwhile is not woken again.
    let mut third = snapshot(3, &[("ledger", 3)]);
    tx.send_replace(Arc::clone(&third));
    tokio::time::sleep(Duration::from_millis(20)).await;
    ledger.reset();
    assert!(!is_woken(&mut ledger).await);
    assert!(is_woken(&mut orders).await, "it is gone");

    // Names that nobody waits for are not kept.
    let again = wakes.of("orders");
    drop((orders, nobody));
    assert_eq!(wakes.lock().len(), 2);
    drop((again, ledger));
    assert!(wakes.lock().is_empty());
    Arc::make_mut(&mut third).version.sequence = 4;
    drop(tx);
    following.await.expect("it ends with the snapshots");
}
