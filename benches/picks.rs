//! What does one pick cost, and does it cost the same with ten thousand endpoints as with ten?
//!
//! Native, a list of one entry, no failures: the price of the strategy alone. In Wasm it is one to three
//! times as much (`cargo bench -p pintle-benches --bench picks`).

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pintle_balance::{Balancer, Dice, Picks, Policy, Request, Sample};
use pintle_snapshot::{Endpoint, Now};
use rand::SeedableRng;

const STRATEGIES: [&str; 7] = [
    "p2c",
    "least_request",
    "round_robin",
    "weighted_round_robin",
    "random",
    "ring_hash",
    "maglev",
];

fn endpoints(count: u16) -> Vec<Endpoint> {
    let address = |n: u16| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80));
    (0..count).map(|n| Endpoint::new(format!("e-{n:05}"), address(n))).collect()
}

fn picks(bench: &mut Criterion) {
    for strategy in STRATEGIES {
        let mut group = bench.benchmark_group(strategy);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for count in [10, 1_000, 10_000] {
            let policy = format!(r#"{{"strategy": "{strategy}", "attempts": 1}}"#);
            let policy: Policy = serde_json::from_str(&policy).expect("a policy");
            let now = Now::from_millis(1_000_000);
            let mut balancer = Balancer::new("s", &policy, &endpoints(count), "", 1, now);
            let mut dice = Dice::seed_from_u64(1);
            let mut out = Picks::new();
            // Every endpoint has answered once, so that none is a newcomer.
            for index in 0..usize::from(count) {
                let latency = Some(Duration::from_millis(2 + index as u64 % 7));
                balancer.observed(index, now, Sample { latency, ..Sample::default() });
            }
            let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
            group.bench_function(BenchmarkId::from_parameter(count), |run| {
                run.iter(|| {
                    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                    let request = Request { hash: Some(hash), ..Request::default() };
                    balancer.pick(&request, now, &mut dice, &mut out);
                    black_box(out.first())
                });
            });
        }
    }
}

criterion_group!(benches, picks);
criterion_main!(benches);
