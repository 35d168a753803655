//! Streams that end at every phase, by the tens of thousands, leave no count and no probe slot
//! behind. (A million of them go through the module in the harness, `wasm/breaker.rs`.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pintle_tests::{Behaviour, EnvoyConfig, Fault, Latency, assert_eventually};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, World, breakers, upstream};

const STREAMS: usize = 20_000;
/// Where nobody waits long for an answer.
const HASTY: &str = "/hasty";
const CLIENTS: usize = 32;

fn patch(config: EnvoyConfig) -> EnvoyConfig {
    let mut config = config;
    let base = "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer";
    let buffer = json!({"name": "envoy.filters.http.buffer",
        "typed_config": {"@type": base, "max_request_bytes": 1024}});
    let hcm = config.http_connection_manager();
    let filters = hcm["http_filters"].as_array_mut().expect("filters");
    filters.insert(filters.len() - 1, buffer);
    let routes = &mut hcm["route_config"]["virtual_hosts"][0]["routes"];
    let mut hasty = routes[0].clone();
    hasty["name"] = json!("hasty");
    hasty["match"] = json!({"path": HASTY});
    hasty["route"]["timeout"] = json!("0.05s");
    routes.as_array_mut().expect("routes").insert(0, hasty);
    config
}

/// One stream that ends in phase `number`; whatever the answer.
async fn abort(addr: SocketAddr, number: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let get = format!("GET {HASTY} HTTP/1.1\r\nhost: orders\r\n\r\n");
    let get = get.as_bytes();
    let mut some = [0; 512];
    match number % 6 {
        // Gone in the middle of the request's head: there never was a stream.
        0 => stream.write_all(&get[..20]).await?,
        // Reset before the answer.
        1 => {
            stream.write_all(get).await?;
            stream.set_zero_linger()?;
        }
        // Gone a little later, while the endpoint works or the answer comes.
        2 => {
            stream.write_all(get).await?;
            tokio::time::sleep(Duration::from_millis((number % 7) as u64)).await;
            stream.set_zero_linger()?;
        }
        // Gone during the answer.
        3 => {
            stream.write_all(get).await?;
            let _ = stream.read(&mut some).await?;
            stream.set_zero_linger()?;
        }
        // 413, from a filter after ours; the rest of the body never comes.
        4 => {
            let head =
                format!("POST {HASTY} HTTP/1.1\r\nhost: orders\r\ncontent-length: 9000\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&[b'x'; 2000]).await?;
            let _ = stream.read(&mut some).await?;
        }
        // 431, before any filter.
        _ => {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\nx-large: ").await?;
            // Envoy may close before it has read all.
            let _ = stream.write_all(&vec![b'x'; 70 << 10]).await;
            let _ = stream.write_all(b"\r\n\r\n").await;
            let _ = stream.read(&mut some).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tens_of_thousands_of_aborted_streams_leave_nothing_behind() {
    let quick = |plugin: &mut serde_json::Value| {
        plugin["select"]["strategy"] = json!("round_robin");
        plugin["breaker"] =
            json!({"open": "300ms", "open_max": "300ms", "half_open": {"timeout": "1s"}});
    };
    let world = World::start(&["orders"], quick, patch).await;
    let all = [upstream("one").await, upstream("two").await, upstream("three").await];
    world.serve("orders", &[&all[0], &all[1], &all[2]]).await;
    let some = |fault| Behaviour { fail_ratio: 0.3, fault, ..Behaviour::default() };
    let faults = [
        some(Fault::Reset),
        some(Fault::CloseMidBody),
        some(Fault::Hang),
        Behaviour::failing(Fault::Status(500)),
        Behaviour::slow(Latency::Fixed(Duration::from_millis(4))),
        Behaviour { body_bytes: Some(1 << 20), ..Behaviour::default() },
    ];
    let began = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let addr = world.envoy.addr();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let next = next.clone();
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= STREAMS {
                    return;
                }
                let _ = tokio::time::timeout(Duration::from_secs(5), abort(addr, number)).await;
            }
        });
    }
    let mut turn = 0;
    while !clients.is_empty() {
        for (offset, one) in all.iter().enumerate() {
            one.set(faults[(turn + offset) % faults.len()].clone());
        }
        turn += 1;
        let _ = tokio::time::timeout(Duration::from_millis(200), async {
            while clients.join_next().await.is_some() {}
        })
        .await;
    }
    let took = began.elapsed();
    all.iter().for_each(|one| one.set(Behaviour::default()));
    let trips = world.trips("orders").await;
    println!("{STREAMS} streams in {took:.1?}, {trips} trips meanwhile");
    assert!(trips > 0.0, "probes were among them");

    let metric = async |name: &str| world.agent.metric(name, &["service=\"orders\""]).await;
    assert_eventually!(PATIENCE, metric("http_requests_in_flight").await == Some(0.0));
    assert_eventually!(PATIENCE, metric("pintle_endpoint_in_flight").await == Some(0.0));
    // With every endpoint well, ordinary traffic closes every breaker: no slot is taken for ever.
    assert_eventually!(PATIENCE, {
        world.get("orders").await;
        breakers(&world.agent).await.is_empty()
    });
    for one in &all {
        one.forget();
    }
    // A breaker of which the agent had not heard yet is open for 300 ms: all of them serve once it
    // is over.
    assert_eventually!(PATIENCE, {
        assert_eq!(world.get("orders").await.status, 200);
        all.iter().all(|one| one.requests() >= 20)
    });
    assert!(breakers(&world.agent).await.is_empty(), "none is left");
    assert_eventually!(PATIENCE, metric("http_requests_in_flight").await == Some(0.0));
    world.no_traps().await;
}
