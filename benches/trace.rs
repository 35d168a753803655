//! What does trace propagation cost on a real Envoy, against Envoy's own OpenTelemetry tracer?
//!
//! CPU per request: the processor time of the Envoy process over the requests it served, because on a
//! shared machine latency says who else was running and CPU says what was done. In every round each
//! variant has an Envoy of its own before the same upstream; all of them are warmed, and then loaded in
//! turn in short bursts, forwards and backwards, so that what disturbs the machine disturbs both sides of
//! a ratio. The figure is the median over the rounds. New processes in each round, because two processes of
//! one variant differ by some hundredths for as long as they live, by where their memory lies; one worker,
//! because with two the kernel deals the connections differently each time, and a worker with more of them
//! does more for each waking.
//!
//! Like is compared with like: at each sampling ratio both export to the same collector over the same
//! kind of cluster, and a side that lost spans on the way is refused, since not sending is cheap.
//!
//! `--check` exits with 1 where a figure is out of bounds; `--rounds N` and `--seconds S` change the
//! length; with `--context` every request brings a trace context that is not sampled, as in the middle of a
//! mesh, and there are no bounds; the last line is JSON.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use pintle_artifact::PINTLE_PATH;
use pintle_tests::{Behaviour, Collector, Envoy, EnvoyConfig, Error, Load, Result, Upstream};
use prost::Message as _;
use serde_json::{Value, json};

const ROUNDS: usize = 9;
/// Of load for each variant in each round.
const SECONDS: f64 = 1.35;
/// Of load without a break. Before it, as long as `SETTLE` to have the caches again after another's turn.
const BURST: f64 = 0.15;
const SETTLE: f64 = 0.02;
/// The first requests open connections and have V8 optimise the module, which with 0.6 s goes on into what
/// is measured.
const WARM: f64 = 2.0;
/// As many requests at once as keep a worker busy without a queue in front of it.
const CONNECTIONS: usize = 8;
/// What `--context` sends.
const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
/// Spans in a batch of ours, which the native tracer does not say of its own.
const BATCH: usize = 512;
/// Spans that may be missing at the end, because they wait for a full batch.
const WAITING: usize = 2 * BATCH;

/// What propagates and reports.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tracer {
    /// Nothing.
    Plain,
    /// A module that is none of ours.
    Other(&'static str),
    /// Ours with every part off.
    Idle,
    /// The module without an exporter.
    Propagation,
    /// The module, sampling this share.
    Module(f64),
    /// Envoy's own, sampling this share.
    Native(f64),
}

const VARIANTS: [(&str, Tracer); 14] = [
    ("plain", Tracer::Plain),
    ("empty", Tracer::Other(EMPTY)),
    ("idle", Tracer::Idle),
    ("native_0", Tracer::Native(0.0)),
    ("least_propagation", Tracer::Other(LEAST_PROPAGATION)),
    ("propagation_calls", Tracer::Other(PROPAGATION_CALLS)),
    ("propagation", Tracer::Propagation),
    ("native_1", Tracer::Native(0.01)),
    ("module_1", Tracer::Module(0.01)),
    ("least_spans", Tracer::Other(LEAST_SPANS)),
    ("span_calls", Tracer::Other(SPAN_CALLS)),
    ("native_100", Tracer::Native(1.0)),
    ("module_100", Tracer::Module(1.0)),
    ("plain_again", Tracer::Plain),
];

/// Nothing but the callbacks that ours needs.
const EMPTY: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_log") (param i32))"#;

/// In one callback, asks for the three trace headers and writes a constant one: no propagation costs less.
const LEAST_PROPAGATION: &str = r#"
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $ask (i32.const 16) (i32.const 11))
    (call $ask (i32.const 32) (i32.const 10))
    (call $ask (i32.const 48) (i32.const 7))
    (call $write)
    (i32.const 0))"#;

/// The same calls in the callbacks of ours: what Envoy does for our propagation, without what the module
/// does.
const PROPAGATION_CALLS: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $ask (i32.const 16) (i32.const 11))
    (call $ask (i32.const 32) (i32.const 10))
    (call $ask (i32.const 48) (i32.const 7))
    (call $write)
    (i32.const 0))
  (func (export "proxy_on_log") (param i32))"#;

/// In two callbacks, reads what no span can do without (headers, clock, code) and writes a constant header,
/// but makes no span and sends none: no tracer in Wasm costs less.
const LEAST_SPANS: &str = r#"
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $headers) (call $clock) (call $write)
    (i32.const 0))
  (func (export "proxy_on_log") (param i32)
    (call $clock)
    (call $property (i32.const 64) (i32.const 13)))"#;

/// The callbacks and host calls of ours, and a batch that was encoded beforehand: what Envoy does for our
/// spans, without what the module does.
const SPAN_CALLS: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $headers) (call $clock) (call $write)
    (i32.const 0))
  (func (export "proxy_on_log") (param i32)
    (call $clock)
    (call $property (i32.const 64) (i32.const 13))
    (call $property (i32.const 160) (i32.const 14))
    (call $property (i32.const 192) (i32.const 30))
    (call $property (i32.const 256) (i32.const 14))
    (call $send_each))"#;

/// Where [`batch`] lies in the memory of a module.
const BATCH_AT: usize = 65_536;

/// A module with these callbacks.
fn module(callbacks: &str) -> String {
    let message = batch();
    let escaped: String = message.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let size = message.len();
    format!(
        r#"(module
  (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
  (import "env" "proxy_grpc_call" (func $grpc
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8)
  (global $spans (mut i32) (i32.const 0))
  (data (i32.const 16) "traceparent")
  (data (i32.const 32) "tracestate")
  (data (i32.const 48) "baggage")
  (data (i32.const 64) "response\00code")
  (data (i32.const 96) "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
  (data (i32.const 160) "response\00flags")
  (data (i32.const 192) "upstream\00request_attempt_count")
  (data (i32.const 256) "source\00address")
  (data (i32.const 288) "otlp")
  (data (i32.const 304) "opentelemetry.proto.collector.trace.v1.TraceService")
  (data (i32.const 368) "Export")
  (data (i32.const {BATCH_AT}) "{escaped}")
  (func $ask (param i32 i32)
    (drop (call $get (i32.const 0) (local.get 0) (local.get 1) (i32.const 0) (i32.const 4))))
  (func $write
    (drop (call $set (i32.const 0) (i32.const 16) (i32.const 11) (i32.const 96) (i32.const 55))))
  (func $headers (drop (call $pairs (i32.const 0) (i32.const 0) (i32.const 4))))
  (func $clock (drop (call $now (i32.const 0))))
  (func $property (param i32 i32)
    (drop (call $read (local.get 0) (local.get 1) (i32.const 0) (i32.const 4))))
  (func $send_each
    (global.set $spans (i32.add (global.get $spans) (i32.const 1)))
    (if (i32.eq (global.get $spans) (i32.const {BATCH})) (then
      (global.set $spans (i32.const 0))
      (drop (call $grpc (i32.const 288) (i32.const 4) (i32.const 304) (i32.const 51)
        (i32.const 368) (i32.const 6) (i32.const 0) (i32.const 0)
        (i32.const {BATCH_AT}) (i32.const {size}) (i32.const 10000) (i32.const 0))))))
  (func (export "_initialize"))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  {callbacks})"#
    )
}

/// A batch of spans of the size of ours here, by the published encoder.
fn batch() -> Vec<u8> {
    let text = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        ..KeyValue::default()
    };
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: "GET".into(),
        kind: 2,
        start_time_unix_nano: 1 << 60,
        end_time_unix_nano: 1 << 60,
        flags: 0x103,
        attributes: vec![
            text("http.request.method", "GET"),
            text("url.scheme", "http"),
            text("url.path", "/"),
            text("server.address", "orders"),
            text("client.address", "127.0.0.1"),
            text("network.peer.address", "127.0.0.1"),
            text("network.peer.port", "40000"),
            text("http.response.status_code", "200"),
        ],
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span; BATCH], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// Figures over another one that say how far down the bounds could be reached in Wasm at all.
const FLOORS: [(&str, &str); 4] = [
    ("least_propagation", "native_1"),
    ("propagation_calls", "native_1"),
    ("least_spans", "native_100"),
    ("span_calls", "native_100"),
];

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
    context: bool,
    rounds: usize,
    seconds: f64,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match (runtime, options()) {
        (Ok(runtime), Some(options)) => runtime.block_on(run(&options)),
        _ => {
            eprintln!("usage: trace [--check] [--context] [--rounds N] [--seconds S]");
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
    let mut options = Options { check: false, context: false, rounds, seconds };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--check" => options.check = true,
            "--context" => options.context = true,
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
    let modules = tempfile::tempdir()?;
    let mut subjects = VARIANTS.map(|(name, tracer)| Subject {
        name,
        tracer,
        cpu: Vec::new(),
        requests: 0,
        spans: 0,
        lost: 0,
    });
    for number in 0..options.rounds {
        round(&mut subjects, &upstream, modules.path(), options).await?;
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
    let export = json!({"cluster": "otlp", "service_name": "bench"});
    Ok(match tracer {
        Tracer::Plain => config.without_filter(),
        Tracer::Other(callbacks) => {
            let wasm = wat::parse_str(self::module(callbacks));
            let file = modules.join("other.wasm");
            std::fs::write(&file, wasm.map_err(|e| Error::new(e.to_string()))?)?;
            config.clone().wasm(file).plugin(|all| *all = json!({}))
        }
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

/// An Envoy of a round, with its collector.
struct Running {
    envoy: Envoy,
    collector: Collector,
    load: Load,
    used: Duration,
    measured: usize,
    served: usize,
}

impl Running {
    async fn start(tracer: Tracer, upstream: &Upstream, modules: &Path) -> Result<Self> {
        let collector = Collector::start().await?;
        let config = config(tracer, upstream, &collector, modules)?;
        let envoy = Envoy::start_with(config, 1, &[]).await?;
        let load = Load::to(envoy.addr()).host("orders").closed().connections(CONNECTIONS);
        Ok(Self { envoy, collector, load, used: Duration::ZERO, measured: 0, served: 0 })
    }

    /// The requests that were served.
    async fn load(&mut self, seconds: f64) -> Result<usize> {
        let report = self.load.clone().run_for_secs(seconds).await;
        if report.failed() > 0 {
            return Err(Error::new(report.summary()));
        }
        self.served += report.total();
        Ok(report.total())
    }

    async fn burst(&mut self, seconds: f64) -> Result<()> {
        self.load(SETTLE).await?;
        let (before, _) = self.envoy.usage();
        self.measured += self.load(seconds).await?;
        let (after, _) = self.envoy.usage();
        self.used += after.saturating_sub(before);
        Ok(())
    }
}

/// Loads an Envoy for each subject, in turn, and books what they used.
async fn round(
    subjects: &mut [Subject],
    upstream: &Upstream,
    modules: &Path,
    options: &Options,
) -> Result<()> {
    let seconds = options.seconds;
    let mut all = Vec::new();
    for subject in subjects.iter() {
        let mut running = Running::start(subject.tracer, upstream, modules).await?;
        if options.context {
            running.load = running.load.header("traceparent", CONTEXT);
        }
        running.load(WARM.min(seconds)).await?;
        all.push(running);
        upstream.forget();
    }
    let burst = BURST.min(seconds);
    let turns = (seconds / burst).round() as usize;
    for turn in 0..turns {
        let order: Vec<usize> = match turn % 2 {
            0 => (0..all.len()).collect(),
            _ => (0..all.len()).rev().collect(),
        };
        for at in order {
            all[at].burst(burst).await?;
            upstream.forget();
        }
    }
    // The last full batches.
    tokio::time::sleep(Duration::from_millis(150)).await;
    for (subject, running) in subjects.iter_mut().zip(all) {
        subject.cpu.push(running.used.as_secs_f64() * 1e6 / running.measured as f64);
        let spans = count(&running.collector);
        subject.requests += running.served;
        subject.spans += spans;
        let all_recorded = [Tracer::Module(1.0), Tracer::Native(1.0), Tracer::Other(SPAN_CALLS)];
        if !options.context && all_recorded.contains(&subject.tracer) {
            subject.lost = subject.lost.max(running.served.saturating_sub(spans + WAITING));
        }
    }
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
    for (ours, theirs, most) in BOUNDS.into_iter().filter(|_| !options.context) {
        let value = ratio(ours, theirs);
        let held = value <= most;
        ok &= held;
        let word = if held { "ok" } else { "MISSED" };
        println!("{ours} / {theirs}: {value:.3}, at most {most:.2}: {word}");
        checks.push(json!({"figure": format!("{ours}/{theirs}"), "value": rounded(value),
            "at_most": most, "ok": held}));
    }
    let mut floors = Vec::new();
    for (least, theirs) in FLOORS.into_iter().filter(|_| !options.context) {
        let value = ratio(least, theirs);
        println!("{least} / {theirs}: {value:.3}");
        floors.push(json!({"figure": format!("{least}/{theirs}"), "value": rounded(value)}));
    }
    for line in &lost {
        println!("LOST {line}");
    }
    let json = json!({"bench": "trace", "context": options.context, "rounds": options.rounds, "seconds": options.seconds,
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
