//! A patch changes the table that a VM has read, and the whole one that lies beside it.

use std::time::Duration;

use pintle_artifact::PINTLE;
use pintle_contract::{Down, Endpoint, Health, Message as _, Patch, Table, Up, Version};
use pintle_harness::{Module, Outcome};

use crate::cost::instructions;
use crate::support::{ALL, Run, builder_of, get, list};

const SERVICE: &str = "catalogue";

fn endpoint(number: u8) -> Endpoint {
    let address = std::net::SocketAddr::from(([10, 7, 0, number], 80));
    Endpoint::new(format!("c-{number:03}"), address)
}

fn addresses(run: &mut Run, worker: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..20 {
        let request = run.envoy.worker(worker).request(get(SERVICE));
        all.extend(list(&request));
        run.envoy.finish(request, Outcome::ok("10.7.0.1:80"));
    }
    all.sort_unstable();
    all.dedup();
    all
}

impl Run {
    fn patch(&mut self, from: Version, endpoints: Vec<Endpoint>, gone: &[&str]) {
        self.sequence += 1;
        let gone = gone.iter().map(|id| (*id).to_owned()).collect();
        let (service, version) = (SERVICE.to_owned(), self.version());
        let patch = Patch { service, from, version, endpoints, gone };
        self.send(&Down::Patch(patch));
    }

    /// The table as a module of any schema reads it.
    fn whole(&self) -> Table {
        let stored = self.envoy.shared_data().get(format!("pintle/t/{SERVICE}").as_bytes());
        match Down::decode(&stored.unwrap_or_default().0) {
            Ok(Down::Table(table)) => table,
            other => panic!("no table: {other:?}"),
        }
    }
}

#[test]
fn what_changed_reaches_who_has_read_the_table_and_who_has_not() {
    let mut run = Run::start(ALL);
    let all: Vec<Endpoint> = (1..=200).map(endpoint).collect();
    run.table(SERVICE, all.clone());
    run.complete();
    assert!(addresses(&mut run, 0).len() > 10);

    let drained = |it: &Endpoint| Endpoint { health: Health::Draining, ..it.clone() };
    let mut expected: Vec<Endpoint> = all.iter().map(drained).collect();
    expected[99].health = Health::Healthy;
    let mut changed = expected.clone();
    changed.remove(99);
    let from = run.version();
    run.patch(from, changed, &[]);
    assert_eq!(run.whole().endpoints, expected);
    for worker in [0, 1] {
        assert_eq!(addresses(&mut run, worker), ["10.7.0.100:80"], "worker {worker}");
    }

    // One goes and another comes, which the indices of all others follow.
    let from = run.version();
    let new = Endpoint { id: "c-000".into(), ..endpoint(255) };
    run.patch(from, vec![new], &["c-100"]);
    for worker in [0, 1] {
        assert_eq!(addresses(&mut run, worker), ["10.7.0.255:80"], "worker {worker}");
    }
    // For those that know no patches.
    run.live(Duration::from_secs(2));
    assert_eq!((run.whole().endpoints.len(), run.whole().version), (200, run.version()));
    assert!(run.envoy.traps().is_empty());
}

/// Few endpoints, as one of ten thousand that changes ten times a second: the whole table is not
/// written for each, and whoever comes meanwhile has what came since.
#[test]
fn patches_gather_and_lead_everybody_to_the_newest() {
    let mut run = Run::start(ALL);
    run.table(SERVICE, (1..=200).map(endpoint).collect());
    run.complete();
    assert!(addresses(&mut run, 0).len() > 10);
    let written = run.whole().version;
    let down = |it| Endpoint { health: Health::Draining, ..endpoint(it) };
    for number in 1..=30 {
        let from = run.version();
        run.patch(from, vec![down(number)], &[]);
    }
    // As many as there must not be to go on gathering.
    assert_eq!(run.whole().version, written, "what is whole was not written anew");
    for worker in [0, 1] {
        let all = addresses(&mut run, worker);
        let drained = |at: &String| (1..=30).any(|it| *at == format!("10.7.0.{it}:80"));
        assert!(all.len() > 10 && !all.iter().any(drained), "worker {worker}: {all:?}");
    }
    for number in 31..=199 {
        let from = run.version();
        run.patch(from, vec![down(number)], &[]);
    }
    assert!(run.whole().version > written);
    for worker in [0, 1] {
        assert_eq!(addresses(&mut run, worker), ["10.7.0.200:80"], "worker {worker}");
    }
    run.live(Duration::from_secs(2));
    assert_eq!(run.whole().version, run.version());
    assert!(run.envoy.traps().is_empty());
}

/// A worker that has slept through two changes, and a whole table after a patch.
#[test]
fn who_missed_a_patch_reads_the_whole_table() {
    let mut run = Run::start(ALL);
    run.table(SERVICE, (1..=100).map(endpoint).collect());
    run.complete();
    assert!(addresses(&mut run, 1).len() > 10);
    for health in [Health::Draining, Health::Unhealthy, Health::Draining] {
        let from = run.version();
        let changed = (2..=100).map(|it| Endpoint { health, ..endpoint(it) }).collect();
        run.patch(from, changed, &[]);
    }
    assert_eq!(addresses(&mut run, 1), ["10.7.0.1:80"]);
    run.table(SERVICE, (1..=100).map(endpoint).collect());
    assert!(addresses(&mut run, 1).len() > 10);
}

#[test]
fn a_patch_of_another_table_is_asked_for_whole() {
    let mut run = Run::start(ALL);
    run.table(SERVICE, (1..=100).map(endpoint).collect());
    run.complete();
    run.received();
    let from = Version { epoch: 1, sequence: 77 };
    run.sequence = 90;
    run.patch(from, vec![endpoint(200)], &[]);
    assert!(addresses(&mut run, 0).len() > 10, "the table is as it was");
    run.reconnect();
    let hello = run.received().into_iter().find_map(|up| match up {
        Up::Hello(hello) => Some(hello),
        _ => None,
    });
    assert_eq!(hello.expect("a hello").have, Version::default());
    run.table(SERVICE, vec![endpoint(3)]);
    run.complete();
    assert_eq!(addresses(&mut run, 0), ["10.7.0.3:80"]);
}

/// One of ten thousand is replaced, as in a deployment: the others are not made anew, nor read.
#[test]
fn one_of_many_that_is_replaced_costs_what_changed() {
    let module = Module::with_fuel(PINTLE).expect("the module loads");
    let number = |i: u16| {
        let [high, low] = i.to_be_bytes();
        Endpoint::new(format!("c-{i:05}"), std::net::SocketAddr::from(([10, 7, high, low], 80)))
    };
    for strategy in ["p2c", "weighted_round_robin", "ring_hash", "maglev"] {
        let builder = builder_of(&module, ALL).workers(1).clock_step(Duration::from_micros(2));
        let mut run = Run::of(builder.build().expect("it starts"));
        let policy = format!(
            r#"{{"select": {{"strategy": "{strategy}", "hash_key": [{{"path": true}}],
                "subset": [{{"header": "x-tag", "tag": true}}]}}}}"#
        );
        run.table_with(SERVICE, (0..10_000).map(number).collect(), &policy);
        run.complete();
        let ask = |run: &mut Run| {
            let request = run.envoy.worker(0).request(get(SERVICE));
            let first = list(&request).first().cloned().expect("a list");
            run.envoy.finish(request, Outcome::ok(first));
        };
        ask(&mut run);
        run.live(Duration::from_secs(5));
        ask(&mut run);
        let callbacks = ["proxy_on_grpc_receive", "proxy_on_queue_ready"];
        let requests = ["proxy_on_request_headers"];
        let before = [instructions(&run, &callbacks), instructions(&run, &requests)];
        for at in 0..10 {
            let from = run.version();
            run.patch(from, vec![number(10_000 + at)], &[&number(at * 7).id]);
            ask(&mut run);
            run.live(Duration::from_millis(100));
        }
        let after = [instructions(&run, &callbacks), instructions(&run, &requests)];
        let [patch, request] = [0, 1].map(|at| (after[at] - before[at]) / 10);
        println!(
            "{strategy}: {patch} instructions a patch in all VMs, {request} a request after it"
        );
        assert!((1..=30_000_000).contains(&patch), "{strategy}: {patch} a patch");
        assert!((1..=16_000_000).contains(&request), "{strategy}: {request} a request");
    }
}
