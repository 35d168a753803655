//! Ends that are nobody's answer: clients that leave, time-outs of the route, replies of Envoy's
//! own.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::{route, unretried};
use crate::row::{Row, Site};
use crate::upstream::Said;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("gone-before-head", 0, |site| async move {
            for _ in 0..10 {
                abort(&site, "hang", Leaves::BeforeHead).await;
            }
        })
        .endpoints(2),
        Row::new("gone-in-body", 2, |site| async move {
            for _ in 0..10 {
                abort(&site, "large", Leaves::InBody).await;
            }
        })
        .endpoints(2),
        Row::new("gone-in-body-of-500", 2, |site| async move {
            for _ in 0..6 {
                abort(&site, "stall/500", Leaves::InBody).await;
            }
        })
        .opens(&[0]),
        Row::new("half-a-body", 0, |site| async move {
            for _ in 0..6 {
                abort(&site, "half", Leaves::AtEnd).await;
            }
        })
        .opens(&[0]),
        Row::new("reset-before-head", 0, |site| async move {
            for _ in 0..6 {
                site.get("reset").await;
            }
        })
        .configured(|config| unretried(config, "reset-before-head"))
        .opens(&[0]),
        Row::new("route-timeout", 0, |site| async move { site.gets(6, "hang", 504).await })
            .configured(|config| limited(config, "route-timeout", "0.5s"))
            .failed(|entry| entry.said == Said::Nothing)
            .opens(&[0]),
        Row::new("timeout-in-body", 2, |site| async move {
            for _ in 0..6 {
                abort(&site, "sse/2000", Leaves::AtEnd).await;
            }
        })
        .configured(|config| limited(config, "timeout-in-body", "0.5s")),
        // No time-out of the route, and an idle stream whose request was whole.
        Row::new("idle-before-head", 23, |site| async move { site.gets(6, "hang", 504).await })
            .configured(|config| idle(config, "idle-before-head"))
            .failed(|entry| entry.said == Said::Nothing)
            .opens(&[0]),
        Row::new("idle-in-body", 23, |site| async move {
            for _ in 0..6 {
                abort(&site, "stall", Leaves::AtEnd).await;
            }
        })
        .configured(|config| idle(config, "idle-in-body")),
        // The client has not sent what it promised.
        Row::new("idle-in-request", 23, |site| async move {
            for _ in 0..6 {
                site.sending();
                let mut stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
                let head = "POST /grpc/echo HTTP/1.1\r\nhost: idle-in-request\r\n\
                            content-length: 9\r\n\r\nsome";
                stream.write_all(head.as_bytes()).await.expect("Envoy reads");
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .configured(|config| idle(config, "idle-in-request")),
        Row::new("longest-duration", 23, |site| async move { site.gets(6, "hang", 504).await })
            .configured(|mut config| {
                route(&mut config, "longest-duration")["timeout"] = json!("0s");
                route(&mut config, "longest-duration")["max_stream_duration"] =
                    json!({"max_stream_duration": "0.5s"});
                unretried(config, "longest-duration")
            })
            .failed(|entry| entry.said == Said::Nothing)
            .opens(&[0]),
    ]
}

/// When a client closes its connection.
#[derive(PartialEq, Eq)]
enum Leaves {
    /// Once the upstream has seen the request.
    BeforeHead,
    /// With the head in hand.
    InBody,
    /// When there is no more to read.
    AtEnd,
}

/// Sends a request, reads so far, and closes the connection.
async fn abort(site: &Site, act: &str, leaves: Leaves) {
    site.sending();
    let mut stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
    let get = format!("GET /{act} HTTP/1.1\r\nhost: {}\r\n\r\n", site.name);
    stream.write_all(get.as_bytes()).await.expect("Envoy reads");
    if leaves == Leaves::BeforeHead {
        return site.arrived().await;
    }
    let mut some = [0; 4096];
    assert!(stream.read(&mut some).await.expect("a head") > 0);
    if leaves == Leaves::AtEnd {
        let end = async { while stream.read(&mut some).await.is_ok_and(|read| read > 0) {} };
        tokio::time::timeout(crate::PATIENCE, end).await.expect("the end");
    }
}

fn limited(
    mut config: pintle_tests::EnvoyConfig,
    name: &str,
    timeout: &str,
) -> pintle_tests::EnvoyConfig {
    route(&mut config, name)["timeout"] = json!(timeout);
    unretried(config, name)
}

fn idle(mut config: pintle_tests::EnvoyConfig, name: &str) -> pintle_tests::EnvoyConfig {
    route(&mut config, name)["idle_timeout"] = json!("0.5s");
    limited(config, name, "0s")
}
