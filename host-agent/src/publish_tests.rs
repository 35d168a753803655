use std::collections::BTreeMap;

use pintle_contract::AddressPolicy;
use pintle_state::{Change, Listing, Protection, Settings};
use tokio::sync::broadcast;

use super::*;

fn any(_: &serde_json::Value) -> Result<(), pintle_state::BadPolicy> {
    Ok(())
}

fn state() -> State {
    State::new(Settings {
        agent: "a".into(),
        epoch: 1,
        services: "/services/".into(),
        policies: "/pintle/policies/".into(),
        addresses: AddressPolicy::default(),
        budget: 128 << 20,
        protection: Protection::default(),
        decides: pintle_state::Source::Registry,
        check_policy: any,
        demand: |_, _| pintle_policy::select::Demand::default(),
        vm_budget: 256 << 20,
    })
}

fn put(service: &str, id: &str, port: u16, revision: u64) -> Update {
    let value = format!(
        r#"{{"id":"{id}","name":"{service}","address":"10.0.0.1","port":{port},"health":"healthy"}}"#
    );
    Update::Changes(vec![Change {
        key: format!("/services/{service}/{id}").into_bytes(),
        value: Some(value.into_bytes()),
        revision,
        ..Change::default()
    }])
}

struct Bench {
    updates: Updates,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    sources: watch::Receiver<Sources>,
    shutdown: CancellationToken,
    tasks: Tasks,
}

fn bench(disk: Option<Disk>) -> Bench {
    let (board, sources) = Board::new();
    let (activities, _) = broadcast::channel(16);
    let shutdown = CancellationToken::new();
    let clock = Clock::new();
    let mut tasks = Tasks::new();
    let stop = shutdown.clone();
    let (updates, snapshots) = start(state(), clock, disk, board, activities, stop, &mut tasks);
    Bench { updates, snapshots, sources, shutdown, tasks }
}

#[tokio::test(start_paused = true)]
async fn a_lone_change_goes_out_at_once_and_a_flood_at_most_ten_times_in_any_second() {
    let mut bench = bench(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    bench.snapshots.mark_unchanged();
    bench.updates.apply(put("orders", "x", 1, 1)).await.unwrap();
    bench.snapshots.changed().await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1), "{:?}", began.elapsed());

    let mut snapshots = bench.snapshots.clone();
    let counting = tokio::spawn(async move {
        let mut versions = BTreeMap::new();
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            if let Some(service) = snapshot.services.get("orders") {
                versions.entry(service.table.version).or_insert_with(Instant::now);
            }
        }
        versions.into_values().collect::<Vec<_>>()
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 0..2000u16 {
        bench.updates.send(put("orders", "x", n + 2, u64::from(n) + 2)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let last = bench.snapshots.borrow().services["orders"].table.endpoints[0].port;
    assert_eq!(last, 2001, "the last change is never lost");
    bench.shutdown.cancel();
    bench.tasks.join().await;
    drop(bench.snapshots);
    let published = counting.await.unwrap();
    assert!((15..=22).contains(&published.len()), "{}", published.len());
    for from in &published {
        let second = *from..*from + Duration::from_secs(1);
        let within = published.iter().filter(|at| second.contains(at)).count();
        assert!(within <= 10, "{within} within a second");
    }
}

/// The first flush has nothing to say, and what comes within its pace is published without another
/// update.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_tells_right_at_the_start_is_on_disk_though_nothing_changes_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let bench = bench(Some(Disk::new(dir.path())));
    tokio::time::sleep(Duration::from_millis(2)).await;
    bench.updates.apply(Update::Listing(Listing::default())).await.unwrap();
    let written = async {
        while !dir.path().join("state").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
    bench.shutdown.cancel();
    bench.tasks.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_costs_an_alarm_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    // A file where the directory should be: no write can succeed, for root neither.
    std::fs::write(&place, "in the way").unwrap();
    let mut bench = bench(Some(Disk::new(&place)));
    // Before a source has given its all, nothing is written.
    bench.updates.apply(Update::Listing(Listing::default())).await.unwrap();
    bench.updates.apply(put("orders", "x", 1, 1)).await.unwrap();
    bench.sources.wait_for(|s| s.disk_error.is_some()).await.unwrap();
    bench.snapshots.wait_for(|s| s.services.contains_key("orders")).await.unwrap();

    // Nothing changes any more, and the write is repeated.
    std::fs::remove_file(&place).unwrap();
    bench.sources.wait_for(|s| s.disk_error.is_none()).await.unwrap();
    assert!(place.join("state").exists());
    bench.shutdown.cancel();
    bench.tasks.join().await;
}
