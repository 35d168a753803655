//! What does one pick cost in Wasm, and does it cost the same with ten thousand endpoints as with
//! ten?
//!
//! A list of one entry, no failures: the price of the strategy alone; and one row of a list of
//! three, the default, which by `p2c` is four draws. `picks-guest` picks ten thousand times a
//! request in the harness, whose compiler is Cranelift, where Envoy's is V8; `native` is the same
//! code compiled for this machine. A pick needs the endpoints' loads and the draw's table, and with
//! ten thousand of them these are not in the nearest cache.
//!
//! ```text
//! cargo xtask bench picks             # ~2 minutes
//! cargo xtask bench picks --check     # exits 1 where a constant-time strategy takes more than 30 ns in Wasm
//! ```
//! The last line is JSON: medians in ns.

use std::hint::black_box;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use pintle_balance::{Balancer, Dice, Picks, Policy, Request, Sample};
use pintle_contract::{Endpoint, Now};
use pintle_harness::{Envoy, Module, Outcome, RequestBuilder};
use pintle_tests::{Result, tools};
use rand::SeedableRng;
use serde_json::{Value, json};

/// The strategies with the length of the list, and whether [`MOST`] is for them: a ring is
/// searched, and weighted turns are a heap, both in the logarithm of their size.
const STRATEGIES: [(&str, u8, bool); 8] = [
    ("p2c", 1, true),
    ("p2c", 3, false),
    ("least_request", 1, true),
    ("round_robin", 1, true),
    ("weighted_round_robin", 1, false),
    ("random", 1, true),
    ("ring_hash", 1, false),
    ("maglev", 1, true),
];
const COUNTS: [u16; 3] = [10, 1_000, 10_000];
/// `PICKS` of the guest.
const PICKS: u64 = 10_000;
/// ns, in Wasm, with ten thousand endpoints.
const MOST: f64 = 30.0;

fn endpoints(count: u16) -> Vec<Endpoint> {
    let address = |n: u16| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80));
    (0..count).map(|n| Endpoint::new(format!("e-{n:05}"), address(n))).collect()
}

fn native(criterion: &mut Criterion) {
    for (strategy, attempts, _) in STRATEGIES {
        let mut group = criterion.benchmark_group(format!("native-{strategy}-{attempts}"));
        for count in COUNTS {
            let policy = format!(r#"{{"strategy": "{strategy}", "attempts": {attempts}}}"#);
            let policy = serde_json::from_str(&policy).expect("JSON");
            let policy: Policy = pintle_settings::read("select", policy).expect("a policy");
            let now = Now::from_millis(1_000_000);
            let mut balancer = Balancer::new("s", &policy, &endpoints(count), "", 1, now);
            let mut dice = Dice::seed_from_u64(1);
            let mut out = Picks::new();
            // Every endpoint has answered once, so that none is a newcomer.
            for index in 0..usize::from(count) {
                let latency = Some(Duration::from_millis(2 + index as u64 % 7));
                balancer.observed(index, now, Sample { latency, ..Sample::default() });
            }
            let mut hash = 1_u64;
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

fn wasm(criterion: &mut Criterion, module: &Module) {
    for (strategy, attempts, _) in STRATEGIES {
        let mut group = criterion.benchmark_group(format!("wasm-{strategy}-{attempts}"));
        for count in COUNTS {
            let configuration = format!("{strategy} {count} {attempts}");
            let builder = Envoy::builder(module).workers(1).plugin_configuration(configuration);
            let mut envoy = builder.build().expect("the guest starts");
            group.bench_function(BenchmarkId::from_parameter(count), |run| {
                run.iter_custom(|picks| {
                    let requests = picks.div_ceil(PICKS);
                    let began = Instant::now();
                    for _ in 0..requests {
                        let request = envoy.worker(0).request(RequestBuilder::get("s", "/"));
                        assert!(request.continues(), "a pick named nobody");
                        envoy.finish(request, Outcome::ok("10.0.0.1:80"));
                    }
                    began.elapsed().mul_f64(picks as f64 / (requests * PICKS) as f64)
                });
            });
        }
    }
}

/// Builds the guest as the module itself is built.
fn guest() -> Result<Module> {
    let target = tools::root().join("target/module");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(tools::root())
        .args(["build", "--quiet", "--locked", "--package", "pintle-picks-guest"])
        .args(["--target", "wasm32-wasip1", "--profile", "wasm", "--target-dir"])
        .arg(&target)
        .status()?;
    if !status.success() {
        return Err(pintle_tests::Error::new("the guest did not build"));
    }
    let wasm = std::fs::read(target.join("wasm32-wasip1/wasm/pintle_picks_guest.wasm"))?;
    Module::new(&wasm).map_err(|error| pintle_tests::Error::new(error.to_string()))
}

/// The median that criterion left behind.
fn median(results: &Path, group: &str, count: u16) -> Result<f64> {
    let file = results.join(group).join(count.to_string()).join("new/estimates.json");
    let estimates: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let median = estimates["median"]["point_estimate"].as_f64();
    median.ok_or_else(|| pintle_tests::Error::new(format!("no median of {group}")))
}

/// Whether every bound held.
fn measure(results: PathBuf) -> Result<bool> {
    let module = guest()?;
    let mut criterion = Criterion::default()
        .output_directory(&results)
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    wasm(&mut criterion, &module);
    native(&mut criterion);

    println!("\n{:<22} {:>8} {:>8} {:>8}   native {:>8}", "ns in Wasm", 10, 1_000, 10_000, 10_000);
    let (mut table, mut short) = (serde_json::Map::new(), Vec::new());
    for (strategy, attempts, bounded) in STRATEGIES {
        let of =
            |kind: &str, count| median(&results, &format!("{kind}-{strategy}-{attempts}"), count);
        let (few, some, many) = (of("wasm", 10)?, of("wasm", 1_000)?, of("wasm", 10_000)?);
        let here = of("native", 10_000)?;
        let held = !bounded || many <= MOST;
        let name = if attempts == 1 { strategy.into() } else { format!("{strategy}, {attempts}") };
        let word = if held { "" } else { "  SHORT" };
        println!("{name:<22} {few:>8.1} {some:>8.1} {many:>8.1}   {here:>15.1}{word}");
        table.insert(
            name.clone(),
            json!({"10": few, "1000": some, "10000": many, "native_10000": here}),
        );
        if !held {
            short.push(format!("{name}: {many:.1} ns"));
        }
    }
    let met = short.is_empty();
    println!(
        "{}",
        json!({"bench": "picks", "at_most_ns": MOST, "met": met, "short": short, "picks": table})
    );
    Ok(met)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this without the flag: building is the test there.
    if !args.iter().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    if let Some(odd) = args.iter().find(|arg| !matches!(arg.as_str(), "--bench" | "--check")) {
        eprintln!("picks: unknown argument {odd}");
        return ExitCode::from(64);
    }
    match measure(tools::root().join("target/criterion")) {
        Ok(met) => ExitCode::from(u8::from(!met && args.iter().any(|arg| arg == "--check"))),
        Err(error) => {
            eprintln!("picks: {error}");
            ExitCode::FAILURE
        }
    }
}
