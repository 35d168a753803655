//! Does one agent carry a large registry, and how fast?
//!
//! A real etcd with 10,000 endpoints in 1,000 services, a real nats-server, the agent as it is
//! released, and a reader of its Watch stream that stands where an Envoy would:
//!
//! - *cold*: from the agent's start without a state on disk until the reader holds everything;
//! - *churn*: 1,000 registry changes a second for a minute; how often each service's table reaches
//!   the reader in any one second, and whether the reader ends with exactly what a model of the
//!   writes says;
//! - *formats*: the same number of instances as six frameworks write them; from the agent's start
//!   until the reader holds them all;
//! - *deployments*: before a real Envoy under load, a rolling deployment, a scale-down, and nodes
//!   that are lost; when the last request came after a deletion, and how many failed;
//! - *changes*: removals of 10,000 at once, heartbeats that change nothing, changes for ten
//!   proxies;
//! - *events*: a stream that was filled while the agent was away; how fast it is applied, from the
//!   first that is seen to the last, and whether the reader ends with the last weight of each
//!   endpoint.
//!
//! The writers, etcd, nats-server and the reader share the machine with the agent, so times hold
//! for the whole; what the agent alone used is its CPU time. Memory is the highest that the kernel
//! counted.
//!
//! `--check` exits with 1 where a figure is out of bounds; `--quick` takes ten seconds instead of
//! sixty; `--registries` measures formats and deployments alone, `--changes` what changes cost; the
//! last line is JSON. That duplicated and reordered events end in the model's state is a test, not
//! a figure: `host-agent/state/src/tests/order.rs`.

#[path = "agent/changes.rs"]
mod changes;
#[path = "agent/deployments.rs"]
mod deployments;
#[path = "agent/formats.rs"]
mod formats;
#[path = "agent/registry.rs"]
mod registry;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use etcd_client::Client;
use pintle_tests::{Agent, Error, Etcd, Nats, Result, Server as _, http, text};
use serde_json::{Value, json};

use pintle_benches::reader::{self, Reader};
use pintle_benches::transaction::failed;

use crate::registry::{EACH, Model, Random, SERVICES};

/// Changes a second.
const RATE: f64 = 1_000.0;
/// Cold starts; the figure is their median.
const STARTS: usize = 5;
/// Far above every bound.
const PATIENCE: Duration = Duration::from_secs(60);
/// The agent's name, and so its consumer's.
const NAME: &str = "bench";

#[derive(Clone, Copy)]
struct Options {
    check: bool,
    /// Formats and deployments alone.
    registries: bool,
    /// What changes cost alone.
    changes: bool,
    /// Of these one each, only to see that they still run.
    brief: bool,
    churn: Duration,
    events: usize,
}

/// A figure and its bound.
struct Figure {
    name: &'static str,
    value: f64,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Told, not judged.
    None,
}

type Figures = Vec<Figure>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match (runtime, options()) {
        (Ok(runtime), Some(options)) => runtime.block_on(run(options)),
        _ => {
            eprintln!("usage: agent [--check] [--quick] [--registries] [--changes]");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("agent: {e}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Option<Options> {
    let (mut check, mut quick, mut registries, mut changes) = (false, true, false, false);
    let brief = !std::env::args().any(|arg| arg == "--bench");
    let args: Vec<String> = std::env::args().skip(1).collect();
    for word in &args {
        match word.as_str() {
            // `cargo test --benches` runs this, too, only to see that it still does.
            "--bench" => quick = false,
            "--check" => check = true,
            "--quick" => {}
            "--registries" => registries = true,
            "--changes" => changes = true,
            _ => return None,
        }
    }
    quick |= args.iter().any(|word| word == "--quick");
    let (seconds, events) = if quick { (10, 50_000) } else { (60, 200_000) };
    Some(Options { check, registries, changes, brief, churn: Duration::from_secs(seconds), events })
}

async fn run(options: Options) -> Result<bool> {
    // Built before anything is timed.
    pintle_tests::tools::agent()?;
    let mut figures = Figures::new();
    if options.changes {
        changes::measure(&mut figures, options.brief).await?;
        return Ok(report(&figures, options) || !options.check);
    }
    formats::measure(&mut figures, options.brief).await?;
    deployments::measure(&mut figures, options.brief).await?;
    if options.registries {
        return Ok(report(&figures, options) || !options.check);
    }
    let (etcd, mut nats) = tokio::try_join!(Etcd::start(), Nats::start())?;
    let client = Client::connect([etcd.url()], None).await.map_err(failed)?;
    let model = registry::fill(&client).await?;
    println!("{} endpoints in {SERVICES} services", model.len());
    let (agent, reader) = cold(&etcd, &model, &mut figures).await?;
    let model = churn(agent, reader, &client, model, options, &mut figures).await?;
    events(&etcd, &mut nats, &model, options, &mut figures).await?;
    changes::measure(&mut figures, options.brief).await?;
    Ok(report(&figures, options) || !options.check)
}

/// The last of the agents it started, and its reader.
async fn cold(etcd: &Etcd, model: &Model, figures: &mut Figures) -> Result<(Agent, Reader)> {
    let wanted = registry::tables(model);
    let (mut times, mut used) = (Vec::new(), Vec::new());
    for number in 1.. {
        let began = Instant::now();
        let mut agent = Agent::builder().etcd(etcd.url()).arg("--agent-id").arg(NAME).launch()?;
        let reader = Reader::connect_within(agent.socket(), "bench", PATIENCE).await?;
        let whole = reader.until(PATIENCE, |held| held.initial.is_some()).await?;
        let Some(at) = whole.and(reader.look(|held| held.initial)) else {
            return Err(Error::new("the start of the stream did not end"));
        };
        if reader.look(|held| held.tables != wanted) {
            let here = reader.look(|held| held.endpoints());
            return Err(Error::new(format!("{here} endpoints at the end of the start")));
        }
        times.push((at - began).as_secs_f64());
        used.push(agent.process().cpu_time().as_secs_f64());
        println!("cold start {number}: {:.3} s", (at - began).as_secs_f64());
        if number == STARTS {
            put(figures, "cold_start_s", median(times), Bound::AtMost(1.0));
            put(figures, "cold_cpu_s", median(used), Bound::None);
            put(figures, "cold_rss_mib", peak(&mut agent), Bound::AtMost(128.0));
            return Ok((agent, reader));
        }
    }
    unreachable!("the loop has no other end")
}

async fn churn(
    mut agent: Agent,
    reader: Reader,
    client: &Client,
    model: Model,
    options: Options,
    figures: &mut Figures,
) -> Result<Model> {
    reader.look(|held| held.arrivals = Some(Default::default()));
    let before = agent.process().cpu_time();
    let churned = registry::churn(client, model, RATE, options.churn).await?;
    let written = Instant::now();
    let wanted = registry::tables(&churned.model);
    let equal = reader.until(PATIENCE, |held| held.tables == wanted).await?;
    let used = agent.process().cpu_time().saturating_sub(before);
    let took = churned.took.as_secs_f64();
    put(figures, "changes_per_s", churned.changes as f64 / took, Bound::AtLeast(0.99 * RATE));
    let arrivals = reader.look(|held| held.arrivals.take()).unwrap_or_default();
    let busiest = arrivals.values().map(|times| most_in_a_second(times)).max().unwrap_or(0);
    put(figures, "tables_per_s_and_service", busiest as f64, Bound::AtMost(10.0));
    put(figures, "tables", arrivals.values().map(Vec::len).sum::<usize>() as f64, Bound::None);
    put(figures, "churn_equal", flag(equal.is_some()), Bound::AtLeast(1.0));
    if let Some(at) = equal {
        put(figures, "churn_settled_s", (at - written).as_secs_f64(), Bound::None);
    } else {
        say_difference(&reader, &wanted);
    }
    let backwards = reader.look(|held| held.backwards);
    put(figures, "versions_back", backwards as f64, Bound::AtMost(0.0));
    put(figures, "churn_cpu_share", used.as_secs_f64() / took, Bound::None);
    put(figures, "churn_rss_mib", peak(&mut agent), Bound::AtMost(128.0));
    Ok(churned.model)
}

async fn events(
    etcd: &Etcd,
    nats: &mut Nats,
    model: &Model,
    options: Options,
    figures: &mut Figures,
) -> Result<()> {
    let mut agent = Agent::with(etcd, nats).arg("--agent-id").arg(NAME).start().await?;
    let client = async_nats::connect(nats.url()).await.map_err(told)?;
    let js = jetstream::new(client.clone());
    // The agent makes stream and consumer; then it is away.
    let consumer = format!("pintle-{NAME}:endpoint");
    let began = Instant::now();
    loop {
        if let Ok(stream) = js.get_stream("PINTLE_EVENTS").await
            && stream.consumer_info(&consumer).await.is_ok()
        {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::new("the agent made no consumer"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    agent.terminate(PATIENCE).await?;
    let model = publish(&client, &js, model, options.events).await?;

    let (launched, served) = (Instant::now(), nats.process().cpu_time());
    agent.relaunch()?;
    let reader = Reader::connect_within(agent.socket(), "bench", PATIENCE).await?;
    let last = options.events as u64;
    let mut first = None;
    let (from, to) = loop {
        let sources = http::get(agent.admin(), "/v1/sources").await.and_then(|reply| reply.json());
        // It begins to answer meanwhile.
        let applied = sources.ok().and_then(|it| it["events_applied"].as_u64()).unwrap_or(0);
        let now = Instant::now();
        if applied > 0 && first.is_none() {
            first = Some((applied, now));
        }
        if let Some(first) = first.filter(|_| applied >= last) {
            break (first, now);
        }
        if launched.elapsed() > PATIENCE {
            return Err(Error::new(format!("{applied} of {last} events after {PATIENCE:?}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let rate = (last - from.0) as f64 / (to - from.1).as_secs_f64();
    put(figures, "events_per_s", rate, Bound::AtLeast(20_000.0));
    put(figures, "events_all_s", (to - launched).as_secs_f64(), Bound::None);
    let wanted = registry::tables(&model);
    let equal = reader.until(PATIENCE, |held| held.tables == wanted).await?;
    put(figures, "events_equal", flag(equal.is_some()), Bound::AtLeast(1.0));
    if equal.is_none() {
        say_difference(&reader, &wanted);
    }
    put(figures, "events_cpu_s", agent.process().cpu_time().as_secs_f64(), Bound::None);
    let served = nats.process().cpu_time().saturating_sub(served);
    put(figures, "events_nats_cpu_s", served.as_secs_f64(), Bound::None);
    put(figures, "events_rss_mib", peak(&mut agent), Bound::AtMost(128.0));
    Ok(())
}

/// Publishes weights for random endpoints, and waits until the stream has them all.
async fn publish(
    client: &async_nats::Client,
    js: &jetstream::Context,
    model: &Model,
    count: usize,
) -> Result<Model> {
    let mut model = model.clone();
    let places: Vec<_> = model.keys().copied().collect();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let timestamp = text::now_rfc3339();
    for number in 0..count {
        let place = places[random.below(places.len())];
        let weight = 1 + random.below(100) as u32;
        model.insert(place, weight);
        let subject = format!("{}/{}", registry::service(place.0), registry::id(place.1));
        let event = json!({
            "id": format!("bench-{number}"), "type": "endpoint", "source": "bench",
            "subject": subject, "data": {"action": "weight", "weight": weight, "ttl": "1h"},
            "metadata": {}, "timestamp": timestamp, "version": "1",
        });
        let subject = format!("events.endpoint.{subject}");
        client.publish(subject, event.to_string().into()).await.map_err(told)?;
        if number % 1_000 == 999 {
            client.flush().await.map_err(told)?;
        }
    }
    client.flush().await.map_err(told)?;
    let began = Instant::now();
    loop {
        let stream = js.get_stream("PINTLE_EVENTS").await.map_err(told)?;
        let state = &stream.cached_info().state;
        if state.last_sequence >= count as u64 {
            println!("{} events in the stream", state.messages);
            return Ok(model);
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::new(format!("the stream has {} of {count}", state.messages)));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn told(e: impl std::fmt::Display) -> Error {
    Error::new(format!("nats: {e}"))
}

/// Some of what the reader holds and the model does not, and the other way round.
fn say_difference(reader: &Reader, wanted: &reader::Tables) {
    reader.look(|held| {
        let names = held.tables.keys().chain(wanted.keys());
        let different = names.filter(|name| held.tables.get(*name) != wanted.get(*name));
        for name in different.take(5) {
            println!("{name}: {:?}, wanted {:?}", held.tables.get(name), wanted.get(name));
        }
    });
}

/// The most that lie within one second.
fn most_in_a_second(times: &[Instant]) -> usize {
    let second = Duration::from_secs(1);
    let mut from = 0;
    let mut most = 0;
    for (to, at) in times.iter().enumerate() {
        while times.get(from).is_some_and(|first| *at - *first >= second) {
            from += 1;
        }
        most = most.max(to + 1 - from);
    }
    most
}

fn peak(agent: &mut Agent) -> f64 {
    pintle_benches::peak_mib(agent.process().pid())
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn put(figures: &mut Figures, name: &'static str, value: f64, bound: Bound) {
    println!("  {name}: {value:.3}");
    figures.push(Figure { name, value, bound });
}

fn report(figures: &Figures, options: Options) -> bool {
    let mut ok = true;
    let mut checks = Vec::new();
    let mut all = serde_json::Map::new();
    println!("\n{:<26} {:>12}  {:<18}", "figure", "value", "bound");
    for figure in figures {
        let (held, bound) = match figure.bound {
            Bound::AtMost(most) => (figure.value <= most, format!("at most {most}")),
            Bound::AtLeast(least) => (figure.value >= least, format!("at least {least}")),
            Bound::None => (true, String::new()),
        };
        let word = match (figure.bound, held) {
            (Bound::None, _) => "",
            (_, true) => "ok",
            (_, false) => "MISSED",
        };
        println!("{:<26} {:>12.3}  {bound:<18} {word}", figure.name, figure.value);
        ok &= held;
        let value = rounded(figure.value);
        all.insert(figure.name.into(), value.clone());
        if !bound.is_empty() {
            checks.push(json!({"figure": figure.name, "value": value, "bound": bound, "ok": held}));
        }
    }
    let endpoints = SERVICES * EACH;
    let json = json!({"bench": "agent", "endpoints": endpoints, "services": SERVICES,
        "churn_s": options.churn.as_secs(), "events": options.events,
        "figures": all, "checks": checks, "ok": ok});
    println!("\n{json}");
    ok
}

fn rounded(value: f64) -> Value {
    json!((value * 1_000.0).round() / 1_000.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
