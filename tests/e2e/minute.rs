//! Faults that last a minute. Each has an installation of its own, and all run side by side, so
//! that together they take little more than one of them. With `PINTLE_OUTAGE_SECONDS` the agent,
//! etcd, NATS and the links to them are gone for as long as that.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use pintle_tests::{
    Agent, Instance, Load, NetworkFault, Port, Proxy, Server as _, Stalls, Upstream,
    assert_eventually, most_within,
};
use tokio::task::{LocalSet, spawn_local};

use crate::support::{PATIENCE, World, everybody_serves, first_after, in_turns, millis, quick};

type Linked = (World, Proxy, Proxy);

const MINUTE: Duration = Duration::from_secs(60);
static OUTAGE: LazyLock<Duration> = LazyLock::new(|| {
    let seconds = std::env::var("PINTLE_OUTAGE_SECONDS").ok();
    seconds.map_or(MINUTE, |text| Duration::from_secs(text.parse().expect("whole seconds")))
});
static STALLS: LazyLock<Stalls> = LazyLock::new(Stalls::watch);

/// How long after `moment` the upstream got its first request, without the time in which nobody
/// could run: there are eight installations on this machine.
async fn caught_up(upstream: &Upstream, moment: Instant) -> Duration {
    let took = first_after(upstream, moment).await;
    took.saturating_sub(STALLS.longest(moment, moment + took))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_a_minute_fails_a_request() {
    let wrong = LocalSet::new().run_until(all_of_them()).await;
    assert!(wrong.is_empty(), "{wrong:?}; what failed is said above");
}

/// The names of those that failed.
async fn all_of_them() -> Vec<&'static str> {
    // One after another, so that nobody's start is measured as somebody else's return.
    LazyLock::force(&STALLS);
    let faults = [
        ("agent killed", spawn_local(agent_killed(World::with(in_turns).await))),
        ("agent killed again and again", spawn_local(agent_restarted(World::with(in_turns).await))),
        ("agent stopped", spawn_local(agent_stopped(World::with(in_turns).await))),
        ("etcd gone", spawn_local(etcd_gone(World::linked(in_turns).await))),
        ("NATS gone", spawn_local(nats_gone(World::with(in_turns).await))),
        ("black holes", spawn_local(black_holes(World::linked(in_turns).await))),
        ("leases expired", spawn_local(leases_expired(World::with(in_turns).await))),
        ("lossy network", spawn_local(lossy_network(World::linked(in_turns).await))),
    ];
    let mut wrong = Vec::new();
    for (name, fault) in faults {
        if fault.await.is_err() {
            wrong.push(name);
        }
    }
    wrong
}

/// Light: there are eight of them on one machine.
fn load(world: &World) -> Load {
    world.load(50.0)
}

async fn until(moment: Instant) {
    tokio::time::sleep_until(moment.into()).await;
}

/// RELIABILITY R1.
async fn agent_killed(mut world: World) {
    let mut all = world.orders(3).await;
    // Its breaker opens before the fault and is tried again, and opens again, during it.
    let nobody = Port::take().expect("a port");
    let dead = Instance::new("orders", "orders-dead", nobody.addr());
    world.etcd.register(&dead).await.expect("a registration");
    let load = load(&world).start();
    assert_eventually!(PATIENCE, world.opened().await > 0);
    let before = world.opened().await;
    world.agent.kill9();
    let killed = Instant::now();
    until(killed + *OUTAGE / 2).await;
    let newcomer = world.newcomer("orders-4").await;
    until(killed + *OUTAGE).await;
    assert!(world.opened().await > before, "breakers live without the agent");
    assert_eq!(newcomer.first_at(), None, "nobody told Envoy");
    everybody_serves(&all).await;
    let returned = Instant::now();
    world.agent.relaunch().expect("the agent");
    let took = caught_up(&newcomer, returned).await;
    println!("agent killed: caught up {:.0} ms after its return", millis(took));
    assert!(took <= Duration::from_secs(1), "{took:?}");
    all.push(newcomer);
    everybody_serves(&all).await;
    finish("agent killed", &world, load).await;
}

/// RELIABILITY R1: the return, twenty times.
async fn agent_restarted(mut world: World) {
    let _all = world.orders(3).await;
    // So many that each endpoint's turn comes soon, even when there are twenty.
    let load = world.load(200.0).start();
    let mut took = Vec::new();
    let mut newcomers = Vec::new();
    for round in 1..=20 {
        let began = Instant::now();
        world.agent.kill9();
        let newcomer = world.newcomer(&format!("orders-r{round}")).await;
        until(began + Duration::from_secs(1)).await;
        let returned = Instant::now();
        world.agent.relaunch().expect("the agent");
        took.push(millis(caught_up(&newcomer, returned).await));
        newcomers.push(newcomer);
        until(began + MINUTE / 20).await;
    }
    let worst = took.iter().copied().fold(0.0, f64::max);
    println!("agent killed again and again: caught up within {worst:.0} ms, {took:.0?}");
    assert!(worst <= 1_000.0, "{took:.0?}");
    finish("agent killed again and again", &world, load).await;
}

/// RELIABILITY R2.
async fn agent_stopped(mut world: World) {
    let all = world.orders(2).await;
    let load = load(&world).start();
    // Until the workers have settled: what grows after that grows for ever.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let heap = world.envoy.wasm_pages();
    world.agent.stop();
    let stopped = Instant::now();
    let mut calls = 0;
    let (mut terms, mut changed) = (None, None);
    while stopped.elapsed() < *OUTAGE {
        let stats = world.envoy.stats().await.expect("Envoy's statistics");
        let active = stats["cluster.pintle_agent.upstream_rq_active"];
        // A leader whose thread stands still has a stream that nobody else can end, and after
        // half a second another VM leads: for so long as a thread may stand still there are both.
        let elected = stats.get("wasmcustom.pintle_leader_elected_total").copied();
        if terms.replace(elected).is_some_and(|before| before != elected) {
            changed = Some(Instant::now());
        }
        let both = changed.is_some_and(|at| at.elapsed() < Duration::from_secs(2));
        calls = calls.max(active.saturating_sub(u64::from(both)));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let grown = world.envoy.wasm_pages() - heap;
    println!("agent stopped: at most {calls} calls at once, {grown} pages more than {heap}");
    // The leader's stream and Envoy's own for EDS.
    assert!(calls <= 2, "{calls} calls");
    assert!(heap > 0 && grown <= 1, "{grown} pages more than {heap}");
    let newcomer = world.newcomer("orders-3").await;
    everybody_serves(&all).await;
    assert_eq!(newcomer.first_at(), None, "nobody told Envoy");
    world.agent.cont();
    let took = caught_up(&newcomer, Instant::now()).await;
    println!("agent stopped: caught up {:.0} ms after its continuation", millis(took));
    assert!(took <= Duration::from_secs(1), "{took:?}");
    finish("agent stopped", &world, load).await;
    // What was counted while nobody listened is told now, and none of it twice. Before its first
    // table came, the module knew of no service to count for; before its first hosts, Envoy had
    // nobody to ask.
    let early = world.envoy.stat("wasmcustom.pintle_unknown_service_total").await.unwrap_or(0);
    let unserved = world.envoy.stat("http.http.downstream_rq_5xx").await.unwrap_or(0);
    let served = all.iter().chain([&newcomer]).map(Upstream::requests).sum::<usize>() as f64;
    let expected = served + unserved as f64 - early as f64;
    let counted = async || world.agent.metric("http_requests_total", &[]).await;
    assert_eventually!(
        PATIENCE,
        counted().await == Some(expected),
        "{served} served, {unserved} not, {early} before the first table, {:?} counted",
        counted().await
    );
}

/// RELIABILITY R6.
async fn etcd_gone((mut world, to_etcd, _to_nats): Linked) {
    let all = world.orders(3).await;
    let load = load(&world).start();
    world.etcd.kill9();
    let fell = Instant::now();
    until(fell + *OUTAGE).await;
    let tries: Vec<Instant> = to_etcd.accepted().into_iter().filter(|at| *at > fell).collect();
    let per_minute = tries.len() as f64 / OUTAGE.as_secs_f64() * 60.0;
    let per_second = most_within(&tries, Duration::from_secs(1));
    println!("etcd gone: {per_minute:.0} tries a minute, {per_second} in a second at most");
    assert!((20.0..=60.0).contains(&per_minute), "{per_minute} tries a minute");
    assert!(per_second <= 2, "{per_second} in a second");
    let age = world.agent.metric("pintle_snapshot_age_seconds", &[]).await;
    assert!(age >= Some(OUTAGE.as_secs_f64() - 5.0), "its age is told: {age:?}");
    assert_eq!(world.held().await, 0.0);
    assert_eq!(endpoints(&world).await, 3);
    everybody_serves(&all).await;
    world.etcd.restart().await.expect("etcd");
    let returned = Instant::now();
    let newcomer = world.newcomer("orders-4").await;
    let took = caught_up(&newcomer, returned).await;
    println!("etcd gone: fresh {:.0} ms after its return", millis(took));
    assert!(took <= Duration::from_secs(3), "{took:?}");
    finish("etcd gone", &world, load).await;
}

/// RELIABILITY R15.
async fn nats_gone(mut world: World) {
    let all = world.orders(3).await;
    let load = load(&world).start();
    world.nats.kill9();
    let fell = Instant::now();
    assert_eventually!(Duration::from_secs(10), !world.connected("nats").await);
    until(fell + *OUTAGE / 2).await;
    let put = Instant::now();
    let newcomer = world.newcomer("orders-4").await;
    let took = caught_up(&newcomer, put).await;
    assert!(took <= Duration::from_secs(1), "the registry alone: {took:?}");
    until(fell + *OUTAGE).await;
    everybody_serves(&all).await;
    world.nats.restart().await.expect("nats");
    let returned = Instant::now();
    let ttl = Duration::from_secs(600);
    // Not asked for an agent's word: that it reads the stream again is what is measured.
    Agent::drain_unasked(&world.nats.url(), "orders", "orders-2", ttl).await.expect("a drain");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let last = all[1].last_at().expect("it had requests");
    let took = last.saturating_duration_since(returned);
    let took = took.saturating_sub(STALLS.longest(returned, last));
    println!("NATS gone: an event in force {:.0} ms after its return", millis(took));
    assert!(took <= Duration::from_secs(3), "{took:?}");
    finish("NATS gone", &world, load).await;
}

/// RELIABILITY R8.
async fn black_holes((world, to_etcd, to_nats): Linked) {
    let all = world.orders(3).await;
    let load = load(&world).start();
    assert!(world.connected("etcd").await && world.connected("nats").await);
    to_etcd.set(NetworkFault::Blackhole);
    to_nats.set(NetworkFault::Blackhole);
    let fell = Instant::now();
    for source in ["etcd", "nats"] {
        let left = Duration::from_secs(10).saturating_sub(fell.elapsed());
        assert_eventually!(left, !world.connected(source).await, "{source} is noticed");
        println!("black holes: {source} noticed after {:.1} s", fell.elapsed().as_secs_f64());
    }
    let newcomer = world.newcomer("orders-4").await;
    until(fell + *OUTAGE).await;
    assert_eq!(newcomer.first_at(), None, "nobody could tell the agent");
    everybody_serves(&all).await;
    to_etcd.set(NetworkFault::None);
    to_nats.set(NetworkFault::None);
    let healed = Instant::now();
    let took = caught_up(&newcomer, healed).await;
    assert_eventually!(PATIENCE, world.connected("nats").await);
    let resumed = healed.elapsed();
    let resumed = resumed.saturating_sub(STALLS.longest(healed, healed + resumed));
    println!("black holes: etcd {took:?}, NATS {resumed:?} after the links healed");
    assert!(took <= Duration::from_secs(3), "{took:?}");
    assert!(resumed <= Duration::from_secs(3), "{resumed:?}");
    finish("black holes", &world, load).await;
}

/// RELIABILITY R11: nobody who answers goes.
async fn leases_expired(world: World) {
    let lease = world.etcd.grant(3).await.expect("a lease");
    let mut all: Vec<Upstream> = Vec::new();
    for number in 1..=10 {
        let upstream = quick(&format!("orders-{number:02}")).await;
        let instance = Instance::of("orders", &upstream);
        let value = instance.value().to_string();
        world.etcd.put_leased(&instance.key(), &value, &lease).await.expect("a registration");
        all.push(upstream);
    }
    assert_eventually!(PATIENCE, world.get("/").await == 200);
    let load = load(&world).start();
    assert_eventually!(
        PATIENCE,
        world.etcd.list("/services/orders/").await.expect("etcd").is_empty()
    );
    let expired = Instant::now();
    assert_eventually!(Duration::from_secs(5), world.held().await >= 10.0, "the alarm");
    println!("leases expired: the alarm after {:.0} ms", millis(expired.elapsed()));
    until(expired + MINUTE - Duration::from_secs(5)).await;
    let late = Instant::now();
    until(expired + MINUTE).await;
    let serving = all.iter().filter(|upstream| upstream.requests_since(late) > 0).count();
    println!("leases expired: {serving} of 10 serve after a minute");
    assert_eq!(world.held().await, 10.0, "nobody went");
    assert_eq!(endpoints(&world).await, 10);
    assert_eq!(serving, 10, "all of them get requests");
    finish("leases expired", &world, load).await;
}

/// RELIABILITY R25.
async fn lossy_network((world, to_etcd, to_nats): Linked) {
    let mut all = world.orders(3).await;
    let load = load(&world).start();
    to_etcd.set(NetworkFault::Lossy);
    to_nats.set(NetworkFault::Lossy);
    let began = Instant::now();
    for round in 1..6 {
        until(began + MINUTE / 6 * round).await;
        all.push(world.newcomer(&format!("orders-l{round}")).await);
    }
    until(began + MINUTE).await;
    let late = world.newcomer("orders-late").await;
    to_etcd.set(NetworkFault::None);
    to_nats.set(NetworkFault::None);
    let healed = Instant::now();
    let took = caught_up(&late, healed).await;
    println!("lossy network: fresh {:.0} ms after it healed", millis(took));
    assert!(took <= Duration::from_secs(5), "{took:?}");
    assert_eq!(world.held().await, 0.0);
    everybody_serves(&all).await;
    finish("lossy network", &world, load).await;
}

async fn finish(name: &str, world: &World, load: pintle_tests::Running) {
    let report = load.stop().await;
    println!("{name}: {}", report.summary());
    assert_eq!(report.failed(), 0, "{name}: {}", report.summary());
    world.no_traps().await;
}

async fn endpoints(world: &World) -> usize {
    let services = world.agent.services().await.expect("the services");
    services["services"][0]["endpoints"].as_array().map_or(0, Vec::len)
}
