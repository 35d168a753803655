//! What is written to etcd, and a model of what every reader must hold afterwards.
//!
//! A key belongs to one writer, which waits for each of its writes: so the last one is known per
//! key, whatever order etcd gives to writes of different keys. Half of the changes go to ten
//! services, where they come far faster than anybody is told, the other half to all of them.
//! Removals among them are held or take effect, as the agent's protection has it; an endpoint that
//! was removed is put back before the end, so that the model does not depend on which.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use etcd_client::{Client, TxnOp};
use pintle_tests::{Error, Instance, Result};

use pintle_benches::reader::Tables;
use pintle_benches::transaction::{commit, failed};

/// Services, and endpoints of each.
pub const SERVICES: usize = 1_000;
/// Endpoints of a service.
pub const EACH: usize = 10;
/// Services that half of all changes go to.
const HOT: usize = 10;
/// Services, the last ones, of which nothing is removed before the end.
const QUIET: usize = 100;
/// Writers.
const WRITERS: usize = 32;

/// An endpoint by number.
pub type Place = (usize, usize);

/// Weights of the endpoints that are there.
pub type Model = BTreeMap<Place, u32>;

/// The name of a service.
pub fn service(number: usize) -> String {
    format!("svc-{number:04}")
}

/// The id of an endpoint.
pub fn id(number: usize) -> String {
    format!("ep-{number:02}")
}

fn address((service, endpoint): Place) -> SocketAddr {
    let [.., high, low] = (service as u32).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 8_000 + endpoint as u16))
}

fn instance(place: Place, weight: u32) -> Instance {
    Instance::new(&service(place.0), &id(place.1), address(place))
        .metadata("weight", &weight.to_string())
        .metadata("zone", "zone-a")
}

/// The tables that a reader of this model holds.
pub fn tables(model: &Model) -> Tables {
    let mut tables = Tables::new();
    for (place, weight) in model {
        let table = tables.entry(service(place.0)).or_default();
        table.insert(id(place.1), (address(*place), *weight));
    }
    tables
}

/// Registers everything, each with weight 1.
pub async fn fill(client: &Client) -> Result<Model> {
    let places = (0..SERVICES).flat_map(|service| (0..EACH).map(move |id| (service, id)));
    let model: Model = places.map(|place| (place, 1)).collect();
    let mut client = client.clone();
    let puts: Vec<TxnOp> = model.keys().map(|place| put(*place, 1)).collect();
    commit(&mut client, &puts).await?;
    Ok(model)
}

fn put(place: Place, weight: u32) -> TxnOp {
    let instance = instance(place, weight);
    TxnOp::put(instance.key(), instance.value().to_string(), None)
}

/// What the writers did.
#[derive(Debug)]
pub struct Churned {
    /// Changes written.
    pub changes: u64,
    /// How long that took.
    pub took: Duration,
    /// What is registered now.
    pub model: Model,
}

/// Writes so many changes a second for so long.
pub async fn churn(client: &Client, model: Model, rate: f64, time: Duration) -> Result<Churned> {
    let began = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let own = model.iter().filter(|(place, _)| (place.0 * EACH + place.1) % WRITERS == number);
        let own: Vec<(Place, Option<u32>)> = own.map(|(p, weight)| (*p, Some(*weight))).collect();
        let hot = own.partition_point(|(place, _)| place.0 < HOT);
        // An odd number: the generator's lowest bit must not be stuck.
        let random = Random(0x9e37_79b9_7f4a_7c15 ^ (number as u64 * 2 + 1));
        let writer = Writer { client: client.clone(), own, hot, random, changes: 0 };
        let every = Duration::from_secs_f64(WRITERS as f64 / rate);
        let first = began + every.mul_f64(number as f64 / WRITERS as f64);
        writers.spawn(writer.write(first, every, began + time));
    }
    let (mut changes, mut took, mut model) = (0, Duration::ZERO, Model::new());
    while let Some(written) = writers.join_next().await {
        let (count, at, own) = written.map_err(|e| Error::new(e.to_string()))??;
        changes += count;
        took = took.max(at.duration_since(began));
        model.extend(own);
    }
    // One endpoint of a service may always go at once.
    let mut client = client.clone();
    for service in SERVICES - QUIET..SERVICES {
        model.remove(&(service, 0));
        client.delete(instance((service, 0), 1).key(), None).await.map_err(failed)?;
    }
    Ok(Churned { changes, took, model })
}

struct Writer {
    client: Client,
    /// The hot ones first; `None` for what is not registered now.
    own: Vec<(Place, Option<u32>)>,
    hot: usize,
    random: Random,
    changes: u64,
}

impl Writer {
    /// Writes at its own times, without a pause when it is late, then puts back what it removed.
    async fn write(
        mut self,
        first: Instant,
        every: Duration,
        end: Instant,
    ) -> Result<(u64, Instant, Model)> {
        let mut due = first;
        while due < end {
            tokio::time::sleep_until(due.into()).await;
            due += every;
            let at = match self.random.below(2) {
                0 if self.hot > 0 => self.random.below(self.hot),
                _ => self.random.below(self.own.len()),
            };
            let (place, weight) = self.own[at];
            let removable = weight.is_some() && place.0 < SERVICES - QUIET;
            if removable && self.random.below(5) == 0 {
                let key = instance(place, 1).key();
                self.client.delete(key, None).await.map_err(failed)?;
                self.own[at].1 = None;
            } else {
                self.put(at).await?;
            }
            self.changes += 1;
        }
        let at = Instant::now();
        for at in 0..self.own.len() {
            if self.own[at].1.is_none() {
                self.put(at).await?;
            }
        }
        let own = self.own.iter().filter_map(|(place, weight)| Some((*place, (*weight)?)));
        Ok((self.changes, at, own.collect()))
    }

    async fn put(&mut self, at: usize) -> Result<()> {
        let (place, before) = self.own[at];
        let mut weight = 1 + self.random.below(100) as u32;
        if before == Some(weight) {
            // Every write is a change.
            weight += 1;
        }
        let instance = instance(place, weight);
        let value = instance.value().to_string();
        self.client.put(instance.key(), value, None).await.map_err(failed)?;
        self.own[at].1 = Some(weight);
        Ok(())
    }
}

/// An xorshift: the same changes in every run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// From 0 to below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}
