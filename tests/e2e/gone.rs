//! What is gone for a moment, or from the start: `minute.rs` has what lasts.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pintle_tests::{Agent, Instance, NetworkFault, Port, Server as _, assert_eventually, http};

use crate::support::{PATIENCE, World, everybody_serves, in_turns, millis, quick};

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_without_etcd_serves_what_was_last_known() {
    let mut world = World::with(in_turns).await;
    let _all = world.orders(2).await;
    // What is on disk may lag behind what is served by the time of one write.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.agent.kill9();
    world.etcd.kill9();
    world.nats.kill9();
    world.agent.relaunch().expect("the agent");
    world.agent.wait_ready(PATIENCE).await.expect("ready without etcd");
    world.envoy.restart().await.expect("Envoy");
    assert_eventually!(PATIENCE, world.get("/").await == 200);
    let report = world.load(100.0).run_for_secs(2.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    assert_eq!(report.by_upstream().len(), 2, "{}", report.summary());
}

/// An agent without its last good state, and a registry in which one of ten has registered again.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_comes_back_with_one_of_ten_does_not_send_all_traffic_there() {
    let mut world = World::with(in_turns).await;
    let all = world.orders(10).await;
    world.chosen().await;
    let load = world.load(300.0).start();
    everybody_serves(&all).await;
    world.agent.kill9();
    std::fs::remove_dir_all(world.agent.state_dir()).expect("its state");
    for number in 2..=10 {
        let name = format!("orders-{number}");
        world.etcd.deregister("orders", &name).await.expect("a loss");
    }
    world.agent.restart().await.expect("the agent");
    let started = Instant::now();
    // Longer than it listens, and than Envoy takes to ask for its hosts again.
    while started.elapsed() < Duration::from_secs(4) {
        everybody_serves(&all).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let hosts = world.envoy.stat("cluster.orders.membership_total").await;
    assert_eq!(hosts, Some(10), "Envoy keeps its hosts, too");
    for upstream in &all[1..5] {
        world.etcd.register(&Instance::of("orders", upstream)).await.expect("a registration");
    }
    assert!(started.elapsed() < Duration::from_secs(13), "the machine stood still");
    let half = Instant::now();
    assert_eventually!(PATIENCE, {
        let from = Instant::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        all[5..].iter().all(|gone| gone.requests_since(from) == 0)
    });
    println!("half of them are enough after {:.0} ms", millis(half.elapsed()));
    everybody_serves(&all[..5]).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

/// Ten ids of one dead address, and a service that a put moves to where nobody listens.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_one_endpoint_and_a_move_to_nowhere_moves_nobody() {
    let world = World::with(in_turns).await;
    let all = world.orders(2).await;
    let nobody = Port::take().expect("a port");
    let ids: Vec<String> = (0..10).map(|number| format!("dead-{number}")).collect();
    for id in &ids {
        let dead = Instance::new("orders", id, nobody.addr());
        world.etcd.register(&dead).await.expect("a registration");
    }
    let several = async || world.agent.metric("pintle_endpoints_with_several_ids", &[]).await;
    assert_eventually!(PATIENCE, several().await == Some(1.0));
    world.chosen().await;
    let report = world.load(200.0).run_for_secs(1.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    let admin = world.agent.admin().to_string();
    let services = async || {
        let args = ["services", "orders", "--admin", &admin];
        let said = Agent::command(&args).await.expect("pintle");
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let said = services().await;
    assert_eq!(said.matches(&nobody.addr().to_string()).count(), 1, "{said}");
    assert!(ids.iter().all(|id| said.contains(id.as_str())), "{said}");
    // An order by any of its ids is for the endpoint.
    let order = ["drain", "orders/dead-3", "--ttl", "1m", "--nats", &world.nats.url()];
    let done = Agent::command(&order).await.expect("pintle");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eventually!(PATIENCE, services().await.matches("draining").count() == 1);

    let load = world.load(200.0).start();
    for id in ["orders-1", "orders-2"] {
        let nowhere = Port::take().expect("a port");
        let moved = Instance::new("orders", id, nowhere.addr());
        world.etcd.register(&moved).await.expect("a move");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let moved = Instant::now();
    assert_eventually!(PATIENCE, all.iter().any(|it| it.requests_since(moved) > 50));
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

/// What the registry loses while no agent looks may be a mistake: of those that answer one goes in
/// a window of time, and a restart of the agent does not begin it anew.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_go_untested_is_remembered_over_restarts_of_the_agent() {
    let mut world = World::with(in_turns).await;
    let all = world.orders(6).await;
    for number in 1..=3 {
        // What is on disk may lag behind what is served by the time of one write.
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.agent.kill9();
        world.etcd.deregister("orders", &format!("orders-{number}")).await.expect("a loss");
        world.agent.restart().await.expect("the agent");
        assert_eventually!(PATIENCE, world.held().await >= f64::from(number - 1));
    }
    world.chosen().await;
    let from = Instant::now();
    let report = world.load(200.0).run_for_secs(1.0).await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    let serving = all.iter().filter(|it| it.requests_since(from) > 0).count();
    assert!(serving >= 5, "{serving} of six");
}

/// A rolling deployment, then a scale-down, by deletions without a drain.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_seen_at_once() {
    let world = World::with(in_turns).await;
    let lease = world.etcd.grant(60).await.expect("a lease");
    let register = async |name: &str| {
        let upstream = quick(name).await;
        let instance = Instance::of("orders", &upstream);
        let value = instance.value().to_string();
        world.etcd.put_leased(&instance.key(), &value, &lease).await.expect("a registration");
        upstream
    };
    let mut all = Vec::new();
    for number in 0..10 {
        all.push(register(&format!("orders-{number}")).await);
    }
    world.chosen().await;
    let load = world.load(300.0).start();
    everybody_serves(&all).await;
    let mut gone = Vec::new();
    for number in 0..5 {
        let newcomer = register(&format!("orders-new-{number}")).await;
        assert_eventually!(PATIENCE, newcomer.first_at().is_some());
        all.push(newcomer);
        let name = format!("orders-{number}");
        world.etcd.deregister("orders", &name).await.expect("a deletion");
        gone.push((number, Instant::now()));
    }
    for number in 5..13 {
        let name = if number < 10 {
            format!("orders-{number}")
        } else {
            format!("orders-new-{}", number - 10)
        };
        world.etcd.deregister("orders", &name).await.expect("a deletion");
        gone.push((number, Instant::now()));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    for (number, deleted) in gone {
        let late = all[number].requests_since(deleted + Duration::from_millis(300));
        assert_eq!(late, 0, "{number} of {:?}", report.summary());
    }
    assert_eq!(world.held().await, 0.0);
    world.no_traps().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_while_the_agent_is_away_removes_what_went_and_nothing_else() {
    let (world, to_etcd, _to_nats) = World::linked(in_turns).await;
    let all = world.orders(4).await;
    let load = world.load(300.0).start();
    to_etcd.set(NetworkFault::Refuse);
    assert_eventually!(PATIENCE, !world.connected("etcd").await);
    let newcomer = quick("orders-5").await;
    world.etcd.deregister("orders", "orders-2").await.expect("a removal");
    let mut last = 0;
    for _ in 0..50 {
        let written = world.etcd.register(&Instance::of("orders", &newcomer)).await;
        last = written.expect("a registration").revision;
    }
    world.etcd.compact(last).await.expect("a compaction");
    to_etcd.set(NetworkFault::None);
    let back = Instant::now();
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    println!("listed again {:.0} ms after the return", millis(back.elapsed()));
    // What was chosen before may still be on its way.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let settled = Instant::now();
    everybody_serves(&[&all[0], &all[2], &all[3], &newcomer]).await;
    assert_eq!(all[1].requests_since(settled), 0, "its removal was found by comparing");
    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

/// RELIABILITY R23, on a file system of its own that is then full and then read-only.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_or_read_only_costs_an_alarm_and_no_request() {
    let script = "mkdir -p {dir}/state && mount -t tmpfs -o size=256k pintle {dir}/state \
                  && exec \"$0\" \"$@\"";
    // A mount that only the agent sees, and that goes with it.
    let apart: &[&str] = if is_root() { &["--mount"] } else { &["--mount", "--map-root-user"] };
    let under = [&["unshare"], apart, &["sh", "-c", script]].concat();
    let mut world = World::changed(|agent| agent.under(&under), in_turns).await;
    let disk = Disk { pid: world.agent.pid(), dir: world.agent.state_dir() };
    let mut all = world.orders(2).await;
    let load = world.load(300.0).start();
    let state = || std::fs::read(disk.inside().join("state")).expect("the last good state");
    assert_eventually!(PATIENCE, contains(&state(), "orders-2"));

    let filler = disk.inside().join("filler");
    let full = std::fs::write(&filler, vec![0; 1 << 20]).expect_err("it is full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let before = state();
    all.push(alarmed(&world, "orders-3", "No space left").await);
    everybody_serves(&all).await;
    assert_eq!(state(), before, "the old file is as it was");
    std::fs::remove_file(&filler).expect("room");
    recovered(&world).await;
    assert_eventually!(PATIENCE, contains(&state(), "orders-3"));

    disk.remount("ro");
    let before = state();
    all.push(alarmed(&world, "orders-4", "Read-only file system").await);
    everybody_serves(&all).await;
    assert_eq!(state(), before, "the old file is as it was");
    disk.remount("rw");
    recovered(&world).await;
    assert_eventually!(PATIENCE, contains(&state(), "orders-4"));

    let report = load.stop().await;
    assert_eq!(report.failed(), 0, "{}", report.summary());
    world.no_traps().await;
}

/// A change that cannot be written: it is served, and why it is not kept is said.
async fn alarmed(world: &World, name: &str, why: &str) -> pintle_tests::Upstream {
    let newcomer = world.newcomer(name).await;
    assert_eventually!(PATIENCE, newcomer.first_at().is_some());
    assert_eventually!(PATIENCE, unwritable(world).await == Some(1.0));
    let sources = http::get(world.agent.admin(), "/v1/sources").await.expect("the sources");
    assert!(sources.text().contains(why), "{}", sources.text());
    newcomer
}

async fn recovered(world: &World) {
    assert_eventually!(PATIENCE, unwritable(world).await == Some(0.0), "it is tried again");
}

async fn unwritable(world: &World) -> Option<f64> {
    world.agent.metric("pintle_state_unwritable", &[]).await
}

/// The file system that one process has at `dir`.
struct Disk {
    pid: u32,
    dir: PathBuf,
}

impl Disk {
    fn inside(&self) -> PathBuf {
        let dir = self.dir.strip_prefix("/").expect("an absolute path");
        Path::new(&format!("/proc/{}/root", self.pid)).join(dir)
    }

    fn remount(&self, mode: &str) {
        let user: &[&str] = if is_root() { &[] } else { &["--user", "--preserve-credentials"] };
        let done = Command::new("nsenter")
            .args(["--mount", "--target", &self.pid.to_string()])
            .args(user)
            .args(["mount", "-o", &format!("remount,{mode}")])
            .arg(&self.dir)
            .output()
            .expect("nsenter");
        assert!(done.status.success(), "{done:?}");
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(text)
}
