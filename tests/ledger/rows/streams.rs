//! Streams of 2 s: server-sent events and WebSockets.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use pintle_tests::Patience;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::config::host;
use crate::row::{Row, Site};
use crate::upstream::Upstream;

/// How long a stream lives.
const LIFE: Duration = Duration::from_secs(2);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("sse-whole", 2, |site| async move { site.gets(1, "sse/2000", 200).await }),
        Row::new("sse-left", 2, |site| async move {
            leave(&site, "sse/8000", LIFE).await;
            share(&site).await;
        })
        .endpoints(3),
        Row::new("sse-again", 5, |site| async move {
            // A subscriber that always comes back, and others beside it.
            let subscriber = async {
                for _ in 0..2 {
                    leave(&site, "sse/8000", LIFE / 2).await;
                }
            };
            tokio::join!(subscriber, share(&site));
            share(&site).await;
        })
        .endpoints(3),
        Row::new("ws-client-closes", 3, |site| async move {
            websocket(&site, "ws/client", LIFE).await;
            share(&site).await;
        })
        .endpoints(3)
        .configured(|config| upgrades(config, "ws-client-closes")),
        Row::new("ws-server-closes", 4, |site| async move {
            for _ in 0..8 {
                websocket(&site, "ws/server", Duration::ZERO).await;
            }
        })
        .configured(|config| upgrades(config, "ws-server-closes")),
        Row::new("ws-cut", 4, |site| async move {
            for _ in 0..8 {
                websocket(&site, "ws/drop", Duration::ZERO).await;
            }
        })
        .configured(|config| upgrades(config, "ws-cut")),
        // The head settles a probe, and the stream goes on.
        Row::new("probe-by-stream", 6, |site| async move {
            for _ in 0..5 {
                site.get("status/503").await;
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
            let streams = [0, 1, 2].map(|_| site.gets(1, "sse/2000", 200));
            futures::future::join_all(streams).await;
            site.gets(10, "ok", 200).await;
        })
        .configured(|config| {
            config.plugin(|plugin| {
                plugin["services"]["probe-by-stream"] = json!({"breaker":
                {"open": "300ms", "open_max": "300ms", "half_open": {"timeout": "1s"}}});
            })
        })
        .opens(&[0]),
    ]
}

fn upgrades(mut config: pintle_tests::EnvoyConfig, name: &str) -> pintle_tests::EnvoyConfig {
    let route = &mut host(&mut config, name)["routes"][0]["route"];
    route["upgrade_configs"] = json!([{"upgrade_type": "websocket"}]);
    config
}

/// Plain requests, until each endpoint has had half of its share of the last ones at least. An
/// answer that was slow because so many rows begin at once keeps an endpoint out for a second or
/// two.
async fn share(site: &Site) {
    const WINDOW: usize = 60;
    const WITHIN: Duration = Duration::from_secs(5);
    let counts = || -> Vec<usize> {
        let plain = |one: &Upstream| one.log().iter().filter(|entry| entry.act == "ok").count();
        site.upstreams.iter().map(plain).collect()
    };
    let mut patience = Patience::new(WITHIN);
    loop {
        let before = counts();
        site.gets(WINDOW, "ok", 200).await;
        let shares: Vec<usize> =
            counts().iter().zip(&before).map(|(now, then)| now - then).collect();
        if shares.iter().all(|share| share * shares.len() * 2 >= WINDOW) {
            return;
        }
        assert!(patience.lasts().await, "{}: shares {shares:?}", site.name);
    }
}

/// Reads a stream for so long and then closes the connection.
async fn leave(site: &Site, act: &str, after: Duration) {
    site.sending();
    let mut stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
    let get = format!("GET /{act} HTTP/1.1\r\nhost: {}\r\n\r\n", site.name);
    stream.write_all(get.as_bytes()).await.expect("Envoy reads");
    let mut some = [0; 1024];
    assert!(stream.read(&mut some).await.expect("the head") > 0);
    let _ = tokio::time::timeout(after, async {
        while stream.read(&mut some).await.is_ok_and(|read| read > 0) {}
    })
    .await;
}

/// One message there and back, so long of nothing, and the close by whoever the act names.
async fn websocket(site: &Site, act: &str, life: Duration) {
    site.sending();
    let stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
    let uri = format!("ws://{}/{act}", site.name);
    let connected = tokio_tungstenite::client_async(uri, stream).await;
    let (mut socket, response) = connected.expect("a WebSocket");
    assert_eq!(response.status(), 101);
    socket.send(Message::text("hello")).await.expect("sent");
    let answer = socket.next().await.expect("a message").expect("an echo");
    assert_eq!(answer.into_text().expect("text").as_str(), "hello");
    tokio::time::sleep(life).await;
    if act == "ws/client" {
        socket.close(None).await.expect("closed");
    }
    while let Some(Ok(_)) = socket.next().await {}
}
