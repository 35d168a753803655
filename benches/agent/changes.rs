//! What a change costs the agent, and those who wait behind it:
//!
//! - *removals*: 10,000 endpoints are deleted at once, of one service and of a thousand; how long a
//!   registration beside them takes to the reader at most, while they are tried and go;
//! - *heartbeats*: instances of 10,000 services write again what is there, 1,500 times a second;
//! - *proxies*: 5,000 services, ten readers, a hundred changes a second.
//!
//! The endpoints' ports are closed, so that a trial of them is refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use pintle_tests::{Agent, Error, Etcd, Instance, Result, Server as _};
use serde_json::json;

use crate::{Bound, Figures, PATIENCE, put};
use pintle_benches::reader::Reader;
use pintle_benches::transaction::{OPERATIONS, commit, failed};

/// Of a full run.
const ENDPOINTS: usize = 10_000;
/// From one registration beside the removals to the next.
const EVERY: Duration = Duration::from_millis(100);
/// Writes of one kind.
const WRITES: Duration = Duration::from_secs(10);
/// Readers of the third row.
const PROXIES: usize = 10;

pub async fn measure(figures: &mut Figures, brief: bool) -> Result<()> {
    let (all, time) = if brief { (500, Duration::from_secs(1)) } else { (ENDPOINTS, WRITES) };
    let removed = removals("one", 1, all).await?;
    put(figures, "removals_one_service_s", removed, Bound::AtMost(0.25));
    let removed = removals("many", all / 10, 10).await?;
    put(figures, "removals_s", removed, Bound::AtMost(0.25));
    let share = writes("heartbeats", all, 1, (1, 1_500), time, false).await?;
    put(figures, "heartbeats_cpu_share", share, Bound::AtMost(0.15));
    let share = writes("proxies", all / 2, 10, (PROXIES, 100), time, true).await?;
    put(figures, "proxies_cpu_share", share, Bound::AtMost(0.3));
    Ok(())
}

/// Instance `number` of a service; its place in the text differs by `version`.
fn instance(kind: &str, service: usize, number: usize, version: usize) -> Instance {
    let at = u32::from(Ipv4Addr::new(127, 2, 0, 0)) + (service * 16 + number) as u32 % 60_000;
    let at = SocketAddr::from((Ipv4Addr::from(at), 7_000 + (number / 60_000) as u16));
    let name = format!("{kind}-{service:05}");
    let weight = (1 + version % 100).to_string();
    Instance::new(&name, &format!("{number:05}"), at).metadata("weight", &weight)
}

/// As an instance writes it that came long ago: of a heartbeat its own time alone is new.
fn operation(instance: &Instance) -> TxnOp {
    let mut value = instance.value();
    value["registered_at"] = json!("2026-01-01T00:00:00Z");
    TxnOp::put(instance.key(), value.to_string(), None)
}

/// An agent that holds `services` of `each` endpoints, and its readers that do, too.
async fn filled(
    kind: &str,
    services: usize,
    each: usize,
    readers: usize,
) -> Result<(Etcd, Client, Agent, Vec<Reader>)> {
    let etcd = Etcd::start().await?;
    let mut client = Client::connect([etcd.url()], None).await.map_err(failed)?;
    let places = (0..services).flat_map(|at| (0..each).map(move |number| (at, number)));
    let all: Vec<TxnOp> =
        places.map(|(at, number)| operation(&instance(kind, at, number, 0))).collect();
    commit(&mut client, &all).await?;
    let agent = Agent::builder().etcd(etcd.url()).launch()?;
    let mut held = Vec::new();
    for number in 0..readers {
        let name = format!("bench-{number}");
        let reader = Reader::connect_within(agent.socket(), &name, PATIENCE).await?;
        let whole = reader.until(PATIENCE, |it| it.endpoints() == services * each).await?;
        whole.ok_or_else(|| Error::new("the reader does not hold what is registered"))?;
        held.push(reader);
    }
    Ok((etcd, client, agent, held))
}

/// How long a registration beside removals takes at most, in seconds.
async fn removals(kind: &str, services: usize, each: usize) -> Result<f64> {
    let (_etcd, mut client, _agent, readers) = filled(kind, services, each, 1).await?;
    let [reader] = readers.as_slice() else { return Err(Error::new("one reader is asked for")) };
    let prefix = format!("/services/{kind}-");
    let options = DeleteOptions::new().with_prefix();
    client.delete(prefix, Some(options)).await.map_err(failed)?;
    let began = Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0.. {
        let beside = instance("beside", number, 0, 0);
        client.txn(Txn::new().and_then([operation(&beside)])).await.map_err(failed)?;
        let written = Instant::now();
        let name = format!("beside-{number:05}");
        let came = reader.until(PATIENCE, |held| held.tables.contains_key(&name)).await?;
        let came = came.ok_or_else(|| Error::new("a registration did not come"))?;
        slowest = slowest.max(came - written);
        let left = reader.look(|held| held.tables.keys().any(|name| name.starts_with(kind)));
        if !left {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::new(format!("{kind}: not all are gone after {PATIENCE:?}")));
        }
        tokio::time::sleep(EVERY).await;
    }
    println!("  {kind}: all gone after {:.1?}", began.elapsed());
    Ok(slowest.as_secs_f64())
}

/// The share of a core that the agent uses while instances write `rate` times a second, with a
/// change each or none.
async fn writes(
    kind: &str,
    services: usize,
    each: usize,
    (readers, rate): (usize, usize),
    time: Duration,
    changing: bool,
) -> Result<f64> {
    let (_etcd, mut client, mut agent, readers) = filled(kind, services, each, readers).await?;
    let before = agent.process().cpu_time();
    let began = Instant::now();
    let mut written = 0;
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate as f64) as usize;
        let next = written..due.min(written + OPERATIONS);
        let some: Vec<TxnOp> = next
            .clone()
            .map(|number| {
                let (at, version) = (number * 7 % services, 1 + number / services);
                operation(&instance(kind, at, 0, if changing { version } else { 0 }))
            })
            .collect();
        if !some.is_empty() {
            client.txn(Txn::new().and_then(some)).await.map_err(failed)?;
        }
        written = next.end;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let used = agent.process().cpu_time().saturating_sub(before);
    let received = readers.iter().map(|reader| reader.look(|held| held.received.0));
    let received = received.sum::<u64>() as usize / readers.len().max(1) - services;
    println!("  {kind}: {written} writes, {received} tables at each reader");
    Ok(used.as_secs_f64() / began.elapsed().as_secs_f64())
}
