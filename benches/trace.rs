//! What does trace propagation cost on a real Envoy, against Envoy's own OpenTelemetry tracer?
//!
//! CPU per request: the processor time of the Envoy process over the requests it served, because on a
//! shared machine latency says who else was running and CPU says what was done. In every round each
//! variant gets an Envoy of its own, one after the other, forwards and then backwards, before the same
//! upstream, and is compared with the others of that round, so that what disturbs one round disturbs both
//! sides of a ratio. The figure is the median over the rounds. A new process each time, because two
//! processes of one variant differ by up to a tenth for as long as they live, by where their memory
//! lies; one worker, because with two the kernel deals the connections differently each time, and a worker
//! with more of them does more for each waking.
//!
//! Like is compared with like: at each sampling ratio both export to the same collector over the same
//! kind of cluster, and a side that lost spans on the way is refused, since not sending is cheap.
//!
//! `--check` exits with 1 where a figure is out of bounds; `--rounds N` and `--seconds S` change the
//! length; the last line is JSON.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Behaviour, Collector, Envoy, EnvoyConfig, Error, Load, Result, Upstream};
use prost::Message as _;
use serde_json::{Value, json};

const ROUNDS: usize = 9;
const SECONDS: f64 = 1.5;
/// The first requests open connections and have V8 optimise the module, which with 0.6 s goes on into what
/// is measured.
const WARM: f64 = 2.0;
/// As many requests at once as keep a worker busy without a queue in front of it.
const CONNECTIONS: usize = 8;
/// Spans that may be missing at the end, because they wait for a full batch: 512 in either.
const WAITING: usize = 1_024;

/// What propagates and reports.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tracer {
    /// Nothing.
    Plain,
    /// A module of nothing but the three callbacks that a request needs: what Wasm costs at the least.
    Empty,
    /// One that asks for the three trace headers and writes a constant one: no propagation costs less.
    LeastPropagation,
    /// One that reads what no span can do without (headers, clock, code) and writes a constant header, but
    /// makes no span and sends none: no tracer in Wasm costs less.
    LeastSpans,
    /// Ours with every part off.
    Idle,
    /// The module without an exporter.
    Propagation,
    /// The module, sampling this share.
    Module(f64),
    /// Envoy's own, sampling this share.
    Native(f64),
}

const VARIANTS: [(&str, Tracer); 10] = [
    ("plain", Tracer::Plain),
    ("empty", Tracer::Empty),
    ("idle", Tracer::Idle),
    ("least_propagation", Tracer::LeastPropagation),
    ("propagation", Tracer::Propagation),
    ("native_1", Tracer::Native(0.01)),
    ("module_1", Tracer::Module(0.01)),
    ("native_100", Tracer::Native(1.0)),
    ("least_spans", Tracer::LeastSpans),
    ("module_100", Tracer::Module(1.0)),
];

/// A module with these bodies of its callbacks.
fn module(headers: &str, log: &str) -> String {
    format!(
        r#"(module
  (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 16) "traceparent")
  (data (i32.const 32) "tracestate")
  (data (i32.const 48) "baggage")
  (data (i32.const 64) "response\00code")
  (data (i32.const 96) "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
  (func (export "_initialize"))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    {headers} (i32.const 0))
  (func (export "proxy_on_log") (param i32) {log}))"#
    )
}

/// Each asks for a trace header.
const ASK: [&str; 3] = [
    "(drop (call $get (i32.const 0) (i32.const 16) (i32.const 11) (i32.const 0) (i32.const 4)))",
    "(drop (call $get (i32.const 0) (i32.const 32) (i32.const 10) (i32.const 0) (i32.const 4)))",
    "(drop (call $get (i32.const 0) (i32.const 48) (i32.const 7) (i32.const 0) (i32.const 4)))",
];
const WRITE: &str =
    "(drop (call $set (i32.const 0) (i32.const 16) (i32.const 11) (i32.const 96) (i32.const 55)))";
const READ: &str = "(drop (call $pairs (i32.const 0) (i32.const 0) (i32.const 4)))";
const TIME: &str = "(drop (call $now (i32.const 0)))";
const CODE: &str =
    "(drop (call $property (i32.const 64) (i32.const 13) (i32.const 0) (i32.const 4)))";

/// The modules that are not ours, written to `dir`.
fn write_modules(dir: &Path) -> Result<()> {
    let modules = [
        ("empty", module("", "")),
        ("least_propagation", module(&format!("{}{WRITE}", ASK.concat()), "")),
        ("least_spans", module(&format!("{READ}{TIME}{WRITE}"), &format!("{TIME}{CODE}"))),
    ];
    for (name, text) in modules {
        let wasm = wat::parse_str(text).map_err(|e| Error::new(e.to_string()))?;
        std::fs::write(dir.join(name), wasm)?;
    }
    Ok(())
}

/// Figures over another one that say how far down the bounds could be reached in Wasm at all.
const FLOORS: [(&str, &str); 2] =
    [("least_propagation", "native_1"), ("least_spans", "native_100")];

/// A figure, over another one, and the most that may be.
const BOUNDS: [(&str, &str, f64); 3] = [
    ("propagation", "native_1", 1.0),
    ("module_1", "native_1", 1.0),
    ("module_100", "native_100", 0.80),
];

struct Subject {
    name: &'static str,
    tracer: Tracer,
    /// Microseconds of CPU per request, by round.
    cpu: Vec<f64>,
    requests: usize,
    spans: usize,
    /// Spans that should have come, in the worst round.
    lost: usize,
}

struct Options {
    check: bool,
    rounds: usize,
    seconds: f64,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match (runtime, options()) {
        (Ok(runtime), Some(options)) => runtime.block_on(run(&options)),
        _ => {
            eprintln!("usage: trace [--check] [--rounds N] [--seconds S]");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("trace: {e}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Option<Options> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this, too, only to see that it still does.
    let bench = args.iter().any(|arg| arg == "--bench");
    let (rounds, seconds) = if bench { (ROUNDS, SECONDS) } else { (1, 0.2) };
    let mut options = Options { check: false, rounds, seconds };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--check" => options.check = true,
            "--rounds" => options.rounds = words.next()?.parse().ok().filter(|n| *n > 0)?,
            "--seconds" => options.seconds = words.next()?.parse().ok().filter(|s| *s > 0.0)?,
            _ => return None,
        }
    }
    Some(options)
}

/// Whether every bound held, or nobody asked.
async fn run(options: &Options) -> Result<bool> {
    let upstream = Upstream::start("upstream").await?;
    upstream.set(Behaviour { body_bytes: Some(128), ..Behaviour::default() });
    let dir = tempfile::tempdir()?;
    write_modules(dir.path())?;
    let mut subjects = VARIANTS.map(|(name, tracer)| Subject {
        name,
        tracer,
        cpu: Vec::new(),
        requests: 0,
        spans: 0,
        lost: 0,
    });
    for number in 0..options.rounds {
        let backwards = number % 2 == 1;
        for at in 0..subjects.len() {
            let at = if backwards { subjects.len() - 1 - at } else { at };
            round(&mut subjects[at], &upstream, dir.path(), options.seconds).await?;
        }
        let line: Vec<String> = subjects
            .iter()
            .map(|s| format!("{} {:.1}", s.name, s.cpu.last().copied().unwrap_or_default()))
            .collect();
        println!("round {}: us/request: {}", number + 1, line.join(", "));
    }
    Ok(report(&subjects, options))
}

fn config(
    tracer: Tracer,
    upstream: &Upstream,
    collector: &Collector,
    modules: &Path,
) -> Result<EnvoyConfig> {
    let config = EnvoyConfig::shipped()?.clusters_from("tracing.yaml")?;
    let config = config.static_hosts("orders", &[upstream.addr()]);
    let config = config.static_hosts("otlp", &[collector.addr()]);
    // As everywhere in the fixtures: another build can be measured against this one.
    let path = std::env::var_os("PINTLE_WASM").unwrap_or_else(|| PINTLE_PATH.into());
    let module = |plugin: Value| config.clone().wasm(path).plugin(|all| *all = plugin);
    let other = |name: &str| config.clone().wasm(modules.join(name)).plugin(|all| *all = json!({}));
    let export = json!({"cluster": "otlp", "service_name": "bench"});
    Ok(match tracer {
        Tracer::Plain => config.without_filter(),
        Tracer::Empty => other("empty"),
        Tracer::LeastPropagation => other("least_propagation"),
        Tracer::LeastSpans => other("least_spans"),
        Tracer::Idle => module(json!({})),
        Tracer::Propagation => module(json!({"trace": {}})),
        Tracer::Module(ratio) => module(json!({"trace": {"ratio": ratio, "export": export}})),
        Tracer::Native(ratio) => {
            let mut config = config.clone().without_filter();
            config.http_connection_manager()["tracing"] = json!({
                "random_sampling": {"value": ratio * 100.0},
                "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "service_name": "bench",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "5s"}}}});
            config
        }
    })
}

/// Loads one Envoy and books what it used.
async fn round(
    subject: &mut Subject,
    upstream: &Upstream,
    modules: &Path,
    seconds: f64,
) -> Result<()> {
    let collector = Collector::start().await?;
    let config = config(subject.tracer, upstream, &collector, modules)?;
    let envoy = Envoy::start_with(config, 1, &[]).await?;
    let load = Load::to(envoy.addr()).host("orders").closed().connections(CONNECTIONS);
    let warm = load.clone().run_for_secs(WARM.min(seconds)).await;
    let (before, _) = envoy.usage();
    let report = load.run_for_secs(seconds).await;
    // The last full batch is part of the price.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let (after, _) = envoy.usage();
    if warm.failed() + report.failed() > 0 {
        return Err(Error::new(format!("{}: {}", subject.name, report.summary())));
    }
    let used = after.saturating_sub(before).as_secs_f64();
    subject.cpu.push(used * 1e6 / report.total() as f64);
    let (requests, spans) = (warm.total() + report.total(), count(&collector));
    subject.requests += requests;
    subject.spans += spans;
    if matches!(subject.tracer, Tracer::Module(1.0) | Tracer::Native(1.0)) {
        subject.lost = subject.lost.max(requests.saturating_sub(spans + WAITING));
    }
    upstream.forget();
    Ok(())
}

fn count(collector: &Collector) -> usize {
    let spans = |message: &[u8]| {
        let request = ExportTraceServiceRequest::decode(message).ok()?;
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        Some(scopes.map(|scope| scope.spans.len()).sum::<usize>())
    };
    collector.drain().iter().filter_map(|call| spans(&call.message)).sum()
}

fn report(subjects: &[Subject], options: &Options) -> bool {
    let lost: Vec<String> = subjects
        .iter()
        .filter(|s| s.lost > 0)
        .map(|s| format!("{}: {} spans did not come", s.name, s.lost))
        .collect();
    let find = |name: &str| subjects.iter().find(|s| s.name == name);
    let ratio = |a: &str, b: &str| match (find(a), find(b)) {
        (Some(a), Some(b)) => median(a.cpu.iter().zip(&b.cpu).map(|(a, b)| a / b).collect()),
        _ => f64::NAN,
    };
    let mut table = serde_json::Map::new();
    println!("\n{:<18} {:>10} {:>9} {:>9} {:>9}", "", "us/request", "x plain", "requests", "spans");
    for s in subjects {
        let (cpu, plain) = (median(s.cpu.clone()), ratio(s.name, "plain"));
        println!("{:<18} {cpu:>10.1} {plain:>9.3} {:>9} {:>9}", s.name, s.requests, s.spans);
        let row = json!({"cpu_us": rounded(cpu), "x_plain": rounded(plain),
            "requests": s.requests, "spans": s.spans});
        table.insert(s.name.to_string(), row);
    }
    let mut ok = lost.is_empty();
    let mut checks = Vec::new();
    for (ours, theirs, most) in BOUNDS {
        let value = ratio(ours, theirs);
        let held = value <= most;
        ok &= held;
        let word = if held { "ok" } else { "MISSED" };
        println!("{ours} / {theirs}: {value:.3}, at most {most:.2}: {word}");
        checks.push(json!({"figure": format!("{ours}/{theirs}"), "value": rounded(value),
            "at_most": most, "ok": held}));
    }
    let floors = FLOORS.map(|(least, theirs)| {
        let value = ratio(least, theirs);
        println!("{least} / {theirs}: {value:.3}");
        json!({"figure": format!("{least}/{theirs}"), "value": rounded(value)})
    });
    for line in &lost {
        println!("LOST {line}");
    }
    let json = json!({"bench": "trace", "rounds": options.rounds, "seconds": options.seconds,
        "variants": table, "checks": checks, "floors": floors, "lost": lost, "ok": ok});
    println!("{json}");
    ok || !options.check
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(upper), 0) => (upper + values.get(middle - 1).unwrap_or(upper)) / 2.0,
        (Some(value), _) => *value,
        (None, _) => f64::NAN,
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
