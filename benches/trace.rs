//! What does trace propagation cost on a real Envoy, against Envoy's own OpenTelemetry tracer? And
//! what everything together, against what Envoy itself has for that: least request, outlier
//! detection, tracer?
//!
//! CPU per request: the processor time of the Envoy process over the requests it served, because on
//! a shared machine latency says who else was running and CPU says what was done. In every round
//! each variant has an Envoy of its own before the same upstream; all of them are warmed, and then
//! loaded in turn in short bursts, forwards and backwards, so that what disturbs the machine
//! disturbs both sides of a ratio. The figure is the median over the rounds. New processes in each
//! round, because two processes of one variant differ by some hundredths for as long as they live,
//! by where their memory lies; one worker, because with two the kernel deals the connections
//! differently each time, and a worker with more of them does more for each waking.
//!
//! Like is compared with like: at each sampling ratio both export to the same collector over the
//! same kind of cluster, and a side that lost spans on the way is refused, since not sending is
//! cheap.
//!
//! `--check` exits with 1 where a figure is out of bounds; `--rounds N` and `--seconds S` change
//! the length; `--all` measures everything together alone, `--trace` the tracers alone,
//! `--before FILE` an earlier release's module beside ours; with `--context` every request brings a
//! trace context that is not sampled, as in the middle of a mesh, and there are no bounds; the last
//! line is JSON.

#[path = "trace/modules.rs"]
mod modules;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use pintle_artifact::PINTLE_PATH;
use pintle_tests::{
    Agent, Behaviour, Collector, Envoy, EnvoyConfig, Error, Etcd, Instance, Load, Result, Upstream,
    Written,
};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::modules::{
    ALL_CALLS, BATCH, EMPTY, LEAST_PROPAGATION, LEAST_SPANS, PROPAGATION_CALLS, SPAN_CALLS,
};

const ROUNDS: usize = 9;
/// Of load for each variant in each round.
const SECONDS: f64 = 1.35;
/// Of load without a break. Before it, as long as `SETTLE` to have the caches again after another's
/// turn.
const BURST: f64 = 0.15;
const SETTLE: f64 = 0.02;
/// The first requests open connections and have V8 optimise the module, which with 0.6 s goes on
/// into what is measured.
const WARM: f64 = 2.0;
/// As many requests at once as keep a worker busy without a queue in front of it.
const CONNECTIONS: usize = 8;
/// What `--context` sends.
const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
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
    /// Selection by a table, breakers and spans, sampling this share.
    All(f64),
    /// The same by the module of an earlier release, sampling 1 %.
    Before,
    /// The callbacks and host calls of these for a request that goes well, without a span.
    AllCalls,
    /// Least request, outlier detection and Envoy's own tracer, sampling this share.
    NativeAll(f64),
}

impl Tracer {
    /// Whether every request has a span.
    fn records_all(self) -> bool {
        let always = [Self::Module, Self::Native, Self::All, Self::NativeAll].map(|all| all(1.0));
        always.contains(&self) || self == Self::Other(SPAN_CALLS)
    }
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

/// Measured in rounds of their own: so many Envoys at once would only wait for each other's memory.
const EVERYTHING: [(&str, Tracer); 8] = [
    ("plain_all", Tracer::Plain),
    ("native_all_1", Tracer::NativeAll(0.01)),
    ("all_calls", Tracer::AllCalls),
    ("all_1", Tracer::All(0.01)),
    ("before_1", Tracer::Before),
    ("native_all_100", Tracer::NativeAll(1.0)),
    ("all_100", Tracer::All(1.0)),
    ("plain_all_again", Tracer::Plain),
];

/// Figures over another one that are told: how far down the bounds could be reached in Wasm at all,
/// and what everything costs beside Envoy's own.
const FLOORS: [(&str, &str); 7] = [
    ("least_propagation", "native_1"),
    ("propagation_calls", "native_1"),
    ("least_spans", "native_100"),
    ("span_calls", "native_100"),
    ("all_calls", "native_all_1"),
    ("all_1", "native_all_1"),
    ("all_100", "native_all_100"),
];

/// A figure, over another one, and the most that may be.
const BOUNDS: [(&str, &str, f64); 5] = [
    ("propagation", "native_1", 1.0),
    ("module_1", "native_1", 1.0),
    ("module_100", "native_100", 0.80),
    ("all_1", "all_calls", 1.20),
    ("all_1", "before_1", 1.03),
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
    sets: Vec<&'static [(&'static str, Tracer)]>,
    /// A module to compare with.
    before: Option<PathBuf>,
    rounds: usize,
    seconds: f64,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match (runtime, options()) {
        (Ok(runtime), Some(options)) => runtime.block_on(run(&options)),
        _ => {
            eprintln!(
                "usage: trace [--check] [--context] [--all | --trace] [--before FILE] [--rounds N] \
                 [--seconds S]"
            );
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
    let sets = vec![&VARIANTS[..], &EVERYTHING[..]];
    let mut options = Options { check: false, context: false, sets, before: None, rounds, seconds };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {}
            "--check" => options.check = true,
            "--context" => options.context = true,
            "--before" => options.before = Some(words.next()?.into()),
            "--all" => options.sets = vec![&EVERYTHING],
            "--trace" => options.sets = vec![&VARIANTS],
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
    let etcd = Etcd::start().await?;
    let agent = Agent::builder().etcd(etcd.url()).start().await?;
    let instance = Instance::new("orders", "orders-1", upstream.addr());
    let written = etcd.register(&instance).await?;
    let modules = tempfile::tempdir()?;
    let before = options.before.clone();
    let stage = Stage { upstream, agent, written, modules, before };
    let mut all = Vec::new();
    for set in &options.sets {
        let subject = |&(name, tracer): &(&'static str, Tracer)| Subject {
            name,
            tracer,
            cpu: Vec::new(),
            requests: 0,
            spans: 0,
            lost: 0,
        };
        let there =
            |(_, tracer): &&(&str, Tracer)| *tracer != Tracer::Before || options.before.is_some();
        let mut subjects: Vec<Subject> = set.iter().filter(there).map(subject).collect();
        for number in 0..options.rounds {
            round(&mut subjects, &stage, options).await?;
            let line: Vec<String> = subjects
                .iter()
                .map(|s| format!("{} {:.1}", s.name, s.cpu.last().copied().unwrap_or_default()))
                .collect();
            println!("round {}: us/request: {}", number + 1, line.join(", "));
        }
        all.extend(subjects);
    }
    Ok(report(&all, options))
}

/// What the Envoys have in common.
struct Stage {
    upstream: Upstream,
    agent: Agent,
    /// The registration of the upstream.
    written: Written,
    modules: TempDir,
    before: Option<PathBuf>,
}

fn config(tracer: Tracer, stage: &Stage, collector: &Collector) -> Result<EnvoyConfig> {
    let upstream = stage.upstream.addr();
    let shipped = EnvoyConfig::shipped()?.clusters_from("tracing.yaml")?;
    let shipped = shipped.static_hosts("otlp", &[collector.addr()]);
    let config = shipped.clone().static_hosts("orders", &[upstream]);
    // As everywhere in the fixtures: another build can be measured against this one.
    let path = std::env::var_os("PINTLE_WASM").unwrap_or_else(|| PINTLE_PATH.into());
    let module = |plugin: Value| config.clone().wasm(&path).plugin(|all| *all = plugin);
    let export = json!({"cluster": "otlp", "service_name": "bench"});
    let other = |callbacks: &str| {
        let wasm = wat::parse_str(modules::module(callbacks, upstream));
        let file = stage.modules.path().join("other.wasm");
        std::fs::write(&file, wasm.map_err(|e| Error::new(e.to_string()))?)?;
        Ok::<_, Error>(config.clone().wasm(file).plugin(|all| *all = json!({})))
    };
    Ok(match tracer {
        Tracer::Plain => config.without_filter(),
        Tracer::Other(callbacks) => other(callbacks)?,
        Tracer::AllCalls => other(ALL_CALLS)?,
        Tracer::Idle => module(json!({})),
        Tracer::Propagation => module(json!({"trace": {}})),
        Tracer::Module(ratio) => module(json!({"trace": {"ratio": ratio, "export": export}})),
        Tracer::Native(ratio) => traced(config.clone().without_filter(), ratio),
        Tracer::All(_) | Tracer::Before => {
            let (file, ratio) = match (tracer, &stage.before) {
                (Tracer::Before, Some(file)) => (file.clone().into_os_string(), 0.01),
                (Tracer::All(ratio), _) => (path.clone(), ratio),
                _ => return Err(Error::new("no module to compare with")),
            };
            let trace = json!({"ratio": ratio, "export": export});
            let config = shipped.agent_socket(stage.agent.socket()).wasm(file);
            config.plugin(|plugin| plugin["trace"] = trace)
        }
        Tracer::NativeAll(ratio) => {
            let config = config.clone().without_filter();
            let mut config = config.native_policy("orders", "least_request", &json!({}));
            config.cluster("orders")["outlier_detection"] = json!({});
            // Nobody has to take a header away.
            let options = "/typed_extension_protocol_options/\
                envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            let options = config.cluster("orders").pointer_mut(options);
            if let Some(options) = options.and_then(Value::as_object_mut) {
                options.remove("http_filters");
            }
            traced(config, ratio)
        }
    })
}

/// With Envoy's own tracer.
fn traced(mut config: EnvoyConfig, ratio: f64) -> EnvoyConfig {
    config.http_connection_manager()["tracing"] = json!({
        "random_sampling": {"value": ratio * 100.0},
        "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "service_name": "bench",
            "grpc_service": {"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "5s"}}}});
    config
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
    async fn start(tracer: Tracer, stage: &Stage) -> Result<Self> {
        let collector = Collector::start().await?;
        let config = config(tracer, stage, &collector)?;
        let envoy = Envoy::start_with(config, 1, &[]).await?;
        if matches!(tracer, Tracer::All(_) | Tracer::Before) {
            stage.agent.settled(stage.written).await?;
        }
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
async fn round(subjects: &mut [Subject], stage: &Stage, options: &Options) -> Result<()> {
    let seconds = options.seconds;
    let upstream = &stage.upstream;
    let mut all = Vec::new();
    for subject in subjects.iter() {
        let mut running = Running::start(subject.tracer, stage).await?;
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
        if matches!(subject.tracer, Tracer::All(_) | Tracer::Before) {
            let unknown = running.envoy.stat("wasmcustom.pintle_unknown_service_total").await;
            if unknown.unwrap_or_default() > 0 {
                return Err(Error::new(format!("{}: {unknown:?} without a table", subject.name)));
            }
        }
        if !options.context && subject.tracer.records_all() {
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
        let with_all = EVERYTHING.iter().any(|(name, _)| *name == s.name);
        let plain = ratio(s.name, if with_all { "plain_all" } else { "plain" });
        let cpu = median(s.cpu.clone());
        println!("{:<18} {cpu:>10.1} {plain:>9.3} {:>9} {:>9}", s.name, s.requests, s.spans);
        let row = json!({"cpu_us": rounded(cpu), "x_plain": rounded(plain),
            "requests": s.requests, "spans": s.spans});
        table.insert(s.name.to_string(), row);
    }
    let mut ok = lost.is_empty();
    let mut checks = Vec::new();
    for (ours, theirs, most) in BOUNDS.into_iter().filter(|_| !options.context) {
        let value = ratio(ours, theirs);
        if find(ours).is_none() || find(theirs).is_none() {
            continue;
        }
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
        if find(least).is_none() {
            continue;
        }
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
