//! Answers that no library of servers gives, and answers that Envoy gives after the module has
//! chosen.

use std::net::Shutdown;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pintle_tests::{assert_eventually, http};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::config::{route, unretried};
use crate::row::{Row, Site};

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("garbage", 0, |site| async move { site.gets(6, "raw/garbage", 502).await })
            .configured(|config| unretried(config, "garbage"))
            .opens(&[0]),
        Row::new("long-head", 0, |site| async move { site.gets(6, "raw/long-head", 502).await })
            .configured(|config| unretried(config, "long-head"))
            .opens(&[0]),
        Row::new("early-hints", 0, |site| async move { site.gets(6, "raw/hints", 200).await }),
        Row::new("until-close", 0, |site| async move { site.gets(6, "raw/old", 200).await }),
        // The answer comes while the client still sends.
        Row::new("early-answer", 0, |site| async move {
            for _ in 0..6 {
                let body = "x".repeat(4 << 20);
                let request = http::request(site.name, "POST", "/raw/early", &body);
                assert_eq!(site.send(request.expect("a request")).await.status, 413);
            }
        }),
        Row::new("http10", 0, |site| async move {
            for _ in 0..4 {
                said(&site, "GET /ok HTTP/1.0\r\nhost: http10\r\n\r\n", " 200 ").await;
            }
        })
        .configured(|mut config| {
            config.http_connection_manager()["http_protocol_options"] =
                json!({"accept_http_10": true});
            config
        }),
        Row::new("pipelined", 0, |site| async move {
            let one = "GET /ok HTTP/1.1\r\nhost: pipelined\r\n\r\n";
            let last = "GET /ok HTTP/1.1\r\nhost: pipelined\r\nconnection: close\r\n\r\n";
            for _ in 0..3 {
                site.sending();
            }
            said(&site, &[one, one, one, last].concat(), " 200 ").await;
        }),
        Row::new("upgrade-refused", 0, |site| async move {
            for _ in 0..4 {
                let request = "GET /status/403 HTTP/1.1\r\nhost: upgrade-refused\r\n\
                    connection: upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
                said(&site, request, " 403 ").await;
            }
        })
        .configured(|mut config| {
            route(&mut config, "upgrade-refused")["upgrade_configs"] =
                json!([{"upgrade_type": "websocket"}]);
            config
        }),
        // Envoy follows a redirect itself: two requests, of which the client sent one.
        Row::new("redirected", 0, |site| async move {
            for _ in 0..4 {
                site.sending();
                site.gets(1, "moved/ok", 200).await;
            }
        })
        .endpoints(2)
        .configured(|mut config| {
            route(&mut config, "redirected")["internal_redirect_policy"] =
                json!({"max_internal_redirects": 1});
            config
        }),
        // Ten streams end with the connection that they share.
        Row::new("h2-cut", 0, |site| async move {
            let stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
            let stream = stream.into_std().expect("a socket");
            let other = stream.try_clone().expect("the same socket");
            let io = TokioIo::new(TcpStream::from_std(stream).expect("a socket"));
            let connected = http2::handshake(TokioExecutor::new(), io).await;
            let (mut sender, connection) = connected.expect("HTTP/2");
            tokio::spawn(connection);
            let answers = (0..10).map(|_| {
                site.sending();
                let request = Request::builder().uri(format!("http://{}/hang", site.name));
                let request = request.body(Full::<Bytes>::default()).expect("a request");
                sender.send_request(request)
            });
            let answers = tokio::spawn(futures::future::join_all(answers));
            site.arrived().await;
            other.shutdown(Shutdown::Both).expect("cut");
            let answers = answers.await.expect("ends");
            assert!(answers.iter().all(Result::is_err), "nobody had an answer");
        })
        .endpoints(2),
        // As browsers do where the server allows it (RFC 8441); the endpoint speaks HTTP/1.1.
        Row::new("h2-websocket", 0, |site| async move {
            let stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2");
            tokio::spawn(connection);
            // Envoy says that it allows it with its settings.
            site.gets(1, "ok", 200).await;
            site.sending();
            let request = Request::builder()
                .method("CONNECT")
                .uri(format!("http://{}/ws/server", site.name))
                .extension(Protocol::from_static("websocket"))
                .header("sec-websocket-version", "13")
                .body(Full::<Bytes>::default())
                .expect("a request");
            let mut response = sender.send_request(request).await.expect("an answer");
            assert_eq!(response.status(), 200);
            let io = TokioIo::new(hyper::upgrade::on(&mut response).await.expect("a tunnel"));
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
            socket.send(Message::text("hello")).await.expect("sent");
            let answer = socket.next().await.expect("a message").expect("an echo");
            assert_eq!(answer.into_text().expect("text").as_str(), "hello");
            while let Some(Ok(_)) = socket.next().await {}
        })
        .configured(|mut config| {
            config.http_connection_manager()["http2_protocol_options"]["allow_connect"] = json!(true);
            route(&mut config, "h2-websocket")["upgrade_configs"] =
                json!([{"upgrade_type": "websocket"}]);
            config
        }),
        // Envoy's own circuit breakers are full: nobody was asked.
        Row::new("overflow", 0, |site| async move {
            let held = tokio::spawn({
                let site = site.clone();
                async move { site.gets(1, "held/ok", 200).await }
            });
            let arrived = || !site.upstreams[0].log().is_empty();
            assert_eventually!(crate::PATIENCE, arrived(), "the one that is held");
            site.gets(6, "ok", 503).await;
            site.upstreams[0].release();
            held.await.expect("the one that was held");
            site.gets(1, "ok", 200).await;
        })
        .configured(|mut config| {
            let thresholds = json!([{"max_requests": 1}]);
            config.cluster("overflow")["circuit_breakers"] = json!({"thresholds": thresholds});
            unretried(crate::config::http2(config, "overflow"), "overflow")
        }),
    ]
}

/// Sends these bytes and reads to the end; so many answers must be in it as were asked for.
async fn said(site: &Site, request: &str, status: &str) {
    site.sending();
    let said = http::raw(site.tcp, request.as_bytes(), std::time::Duration::from_secs(1)).await;
    let said = String::from_utf8_lossy(&said.expect("an answer")).into_owned();
    let asked = request.matches("host: ").count();
    assert_eq!(said.matches(status).count(), asked, "{request}\n{said}");
}
