//! The story that the demo tells, one function per scene. Each says what it does, does it to the
//! real servers, watches what arrives at the upstreams (which is where the truth is), and prints
//! that.

use std::time::{Duration, Instant};

use pintle_tests::{
    Agent, Behaviour, Error, Fault, Instance, Load, Process, Report, Result, Server as _, Upstream,
    http, pause,
};

use crate::stage::{Figures, SECOND, World, quick};

/// The service of the story, as in the shipped configuration.
const FIRST: &str = "orders";

const RATE: f64 = 1000.0;
const ROUNDS: usize = 25;
const AGENT_GONE: Duration = Duration::from_secs(10);
/// In so long each of four endpoints gets 100 requests, if it gets its share.
const SHARES: Duration = Duration::from_secs(2);
/// How long anything may take before the demo gives up: far above every bound.
const PATIENCE: Duration = Duration::from_secs(20);

/// What has to live on while the demo stays up.
pub struct Cast {
    orders: Vec<Upstream>,
    _payments: Vec<Upstream>,
    _registrations: Vec<Process>,
}

/// Plays every scene and fills in the figures.
pub async fn tell(world: &mut World, figures: &mut Figures) -> Result<Cast> {
    let mut cast = Cast { orders: Vec::new(), _payments: Vec::new(), _registrations: Vec::new() };
    three_register(world, &mut cast).await?;
    a_fourth_joins(world, &mut cast).await?;
    cast._payments = rounds(world, figures).await?;
    one_fails(world, &cast, figures).await?;
    one_is_drained(world, &cast, figures).await?;
    the_agent_is_killed(world, &mut cast, figures).await?;
    a_trace(world, figures).await?;
    Ok(cast)
}

async fn three_register(world: &World, cast: &mut Cast) -> Result<()> {
    scene("Three instances register themselves in etcd");
    for i in 1..=3 {
        join(world, cast, i).await?;
    }
    let seen = async || {
        let report = load(world, FIRST).rate(200.0).run_for_secs(0.2).await;
        report.failed() == 0 && report.by_upstream().len() == 3
    };
    eventually("three instances with traffic", seen).await?;
    // The shares of the table are of the last seconds.
    let report = load(world, FIRST).run_for_secs(3.0).await;
    println!("{}", report.summary());
    if let Ok(table) = Agent::services_table(world.agent.admin()).await {
        print!("{table}");
    }
    Ok(())
}

async fn a_fourth_joins(world: &World, cast: &mut Cast) -> Result<()> {
    scene("A fourth joins, under 1000 requests/s");
    let load = load(world, FIRST).start();
    let began = Instant::now();
    join(world, cast, 4).await?;
    let fourth = last(&cast.orders)?;
    eventually("a request at the fourth", async || fourth.first_at().is_some()).await?;
    let first = fourth.first_at().unwrap_or(began);
    println!("first request there {:.0} ms after its process started", ms(first - began));
    expect_clean(&load.stop().await)
}

/// Puts one instance after the other and measures from the put (sent, not acknowledged) to the
/// arrival of the first request there.
async fn rounds(world: &World, figures: &mut Figures) -> Result<Vec<Upstream>> {
    scene(&format!(
        "{ROUNDS} times: an instance is put into etcd; when does its first request come?"
    ));
    let mut all = vec![quick("payments-0").await?];
    world.etcd.register(&Instance::of(SECOND, last(&all)?)).await?;
    let served = async || {
        let request = http::request(SECOND, "GET", "/", "");
        let Ok(request) = request else { return false };
        http::send(world.envoy.addr(), request).await.is_ok_and(|r| r.status == 200)
    };
    eventually("the second service", served).await?;
    let load = load(world, SECOND).start();
    for round in 1..=ROUNDS {
        let upstream = quick(&format!("payments-{round}")).await?;
        let instance = Instance::of(SECOND, &upstream);
        let put = Instant::now();
        world.etcd.register(&instance).await?;
        eventually("a request at a new instance", async || upstream.first_at().is_some()).await?;
        let first = upstream.first_at().unwrap_or(put);
        figures.propagation_ms.push(ms(first - put));
        all.push(upstream);
        // Apart, so that each is a change of its own to the agent, which paces a service that
        // changes all the time; and not in step with any tick.
        tokio::time::sleep(Duration::from_millis(181 + 7 * round as u64 % 40)).await;
    }
    println!(
        "p50 {:.1} ms, p99 {:.1} ms, each {:.1?}",
        figures.propagation(0.5),
        figures.propagation(0.99),
        figures.propagation_ms,
    );
    expect_clean(&load.stop().await)?;
    Ok(all)
}

async fn one_fails(world: &World, cast: &Cast, figures: &mut Figures) -> Result<()> {
    let failing = first(&cast.orders)?;
    scene(&format!("{} answers 500 to everything", failing.name()));
    // By latency and failures, it would hardly be asked again before its breaker has seen enough;
    // in turns it is. The policy is in force without a word to Envoy, and gone at the end of the
    // scene.
    let policy = format!("/pintle/policies/{FIRST}");
    world.etcd.put(&policy, r#"{"select": {"strategy": "round_robin"}}"#).await?;
    println!("for this scene, {policy} in etcd asks for turns");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let opened = "wasmcustom.pintle_breaker_opened_total";
    let before = world.envoy.stat(opened).await.unwrap_or(0);
    // Few enough that none is under way at it when the fifth failure opens its breaker.
    let load = load(world, FIRST).rate(200.0).start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let healthy = failing.behaviour();
    let fault = Instant::now();
    failing.set(Behaviour::failing(Fault::Status(500)));
    // Opened: nothing arrives for half a second. It would be a probe's turn after two.
    let silent = async || {
        fault.elapsed() > Duration::from_millis(500)
            && failing.last_at().is_none_or(|at| at.elapsed() > Duration::from_millis(500))
    };
    eventually("the breaker to open", silent).await?;
    if world.envoy.stat(opened).await.unwrap_or(0) == before {
        return Err(Error::new("nothing reaches it, and its breaker has not opened"));
    }
    let reached = failing.requests_since(fault);
    figures.breaker_failures = reached;
    println!("{reached} requests reached it and failed, then its breaker opened");
    let recovered = Instant::now();
    failing.set(healthy);
    let back = async || failing.requests_since(recovered) > 20;
    eventually("the endpoint to be used again", back).await?;
    figures.breaker_recovery_ms = ms(recovered.elapsed());
    println!("it recovered; probed, closed and back in turns after {:.0?}", recovered.elapsed());
    world.etcd.delete(&policy).await?;
    // By latency and failures it is looked at before it gets its share, so that one look that fails
    // costs one request.
    let policy_gone = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let used = async || failing.requests_since(Instant::now() - SHARES / 10) >= 5;
    eventually("the endpoint to be trusted again", used).await?;
    figures.trusted_ms = ms(policy_gone.elapsed());
    let by_cost = Instant::now();
    tokio::time::sleep(SHARES).await;
    let got = cast.orders.iter().map(|upstream| upstream.requests_since(by_cost));
    let got: Vec<usize> = got.collect();
    let mean = got.iter().sum::<usize>() as f64 / got.len().max(1) as f64;
    figures.recovered_share = got.first().map_or(0.0, |got| *got as f64 / mean);
    println!(
        "the policy is gone; by latency and load it is in full use {:.1} s later, and of the next \
         {SHARES:.0?} it got {:.2} of the mean: {got:?}",
        figures.trusted_ms / 1000.0,
        figures.recovered_share
    );
    let after = load.since(recovered);
    println!("since it recovered: {}", after.summary());
    load.stop().await;
    expect_clean(&after)
}

async fn one_is_drained(world: &World, cast: &Cast, figures: &mut Figures) -> Result<()> {
    let drained = cast.orders.get(1).ok_or_else(|| Error::new("no second instance"))?;
    scene(&format!("{} is drained by an event", drained.name()));
    let load = load(world, FIRST).start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut tap = world.nats.tap("events.>").await?;
    // Side by side: an event counts from when it is read, and the command ends later than it
    // publishes.
    let url = world.nats.url();
    let command = Agent::drain(&url, FIRST, drained.name(), Duration::from_secs(60));
    let (event, done) = tokio::join!(tap.next(PATIENCE), command);
    let event = event?;
    done?;
    // The last request may come before we read the event; then nothing is left to wait for.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let last = drained.last_at().unwrap_or(event.at);
    if last.elapsed() < Duration::from_millis(500) {
        return Err(Error::new(format!("{} still gets requests", drained.name())));
    }
    figures.drain_ms = ms(last.saturating_duration_since(event.at));
    println!("{}: last request {:.1} ms after it", event.subject, figures.drain_ms);
    expect_clean(&load.stop().await)
}

async fn the_agent_is_killed(
    world: &mut World,
    cast: &mut Cast,
    figures: &mut Figures,
) -> Result<()> {
    scene("The agent is killed with SIGKILL under load; an instance joins meanwhile");
    let load = load(world, FIRST).start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.agent.kill9();
    let killed = Instant::now();
    tokio::time::sleep(AGENT_GONE / 2).await;
    let newcomer = quick("orders-5").await?;
    world.etcd.register(&Instance::of(FIRST, &newcomer)).await?;
    tokio::time::sleep(AGENT_GONE.saturating_sub(killed.elapsed())).await;
    if newcomer.first_at().is_some() {
        return Err(Error::new("the newcomer got requests without an agent"));
    }
    let returned = Instant::now();
    world.agent.relaunch()?;
    let served = async || newcomer.first_at().is_some();
    eventually("a request at what joined meanwhile", served).await?;
    let first = newcomer.first_at().unwrap_or(returned);
    figures.catch_up_ms = ms(first - returned);
    world.agent.wait_ready(PATIENCE).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let report = load.stop().await;
    figures.agent_gone_requests = report.total();
    figures.failed_requests = report.failed();
    println!("{:.0?} without an agent: {}", returned - killed, report.summary());
    println!("back: caught up {:.0} ms after its start", figures.catch_up_ms);
    cast.orders.push(newcomer);
    Ok(())
}

async fn a_trace(world: &World, figures: &mut Figures) -> Result<()> {
    scene("What a traced request looks like at the upstream");
    let id = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{id}-b7ad6b7169203331-01");
    let mut request = http::request(FIRST, "GET", "/traced", "")?;
    let headers =
        [("traceparent", parent.as_str()), ("tracestate", "vendor=1"), ("baggage", "k=v")];
    for (name, value) in headers {
        let value = value.parse().map_err(|_| Error::new("not a header value"))?;
        request.headers_mut().insert(name, value);
        println!(
            "  client    {name}: {}",
            headers.iter().find(|h| h.0 == name).map_or("", |h| h.1)
        );
    }
    let reply = http::send(world.envoy.addr(), request).await?;
    for (name, _) in headers {
        for value in reply.echoed(name) {
            println!("  upstream  {name}: {value}");
        }
    }
    let sent = reply.echoed("traceparent");
    let continued = sent.len() == 1 && sent.iter().all(|t| *t == parent);
    let rest = reply.echoed("baggage") == ["k=v"]
        && reply.echoed("tracestate").concat().contains("vendor=1");
    figures.trace_continued = continued && rest;
    let bare = http::send(world.envoy.addr(), http::request(FIRST, "GET", "/", "")?).await?;
    for value in bare.echoed("traceparent") {
        println!("  and of a request without any: traceparent: {value}");
    }
    Ok(())
}

/// Starts an upstream and the `pintle register` beside it, as a service would.
async fn join(world: &World, cast: &mut Cast, number: usize) -> Result<()> {
    let upstream = quick(&format!("{FIRST}-{number}")).await?;
    let etcd = world.etcd.url();
    let process = Agent::register(&etcd, FIRST, upstream.name(), upstream.addr(), &[])?;
    println!("{} at {}", upstream.name(), upstream.addr());
    cast._registrations.push(process);
    cast.orders.push(upstream);
    Ok(())
}

fn load(world: &World, service: &str) -> Load {
    Load::to(world.envoy.addr()).host(service).rate(RATE).connections(16)
}

fn scene(title: &str) {
    println!("\n## {title}");
}

async fn eventually(what: &str, mut good: impl AsyncFnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !good().await {
        if began.elapsed() > PATIENCE {
            return Err(Error::new(format!("waited {PATIENCE:?} for {what}")));
        }
        pause().await;
    }
    Ok(())
}

fn expect_clean(report: &Report) -> Result<()> {
    match report.failed() {
        0 => Ok(()),
        _ => Err(Error::new(format!("requests failed: {}", report.summary()))),
    }
}

fn first(upstreams: &[Upstream]) -> Result<&Upstream> {
    upstreams.first().ok_or_else(|| Error::new("no instance"))
}

fn last(upstreams: &[Upstream]) -> Result<&Upstream> {
    upstreams.last().ok_or_else(|| Error::new("no instance"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
