//! HTTP/3 from the client: Envoy calls `proxy_on_done` and `proxy_on_delete` for its streams, and
//! no `proxy_on_log` but for aborted ones (seen on 1.36.4 and 1.40.0).

use std::time::Duration;

use crate::quic::Until;
use crate::row::{Row, Site};

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("h3", 1, |site| async move { get(&site, 200, "ok", Until::End, Some(200)).await })
            .endpoints(3),
        Row::new("h3-statuses", 1, |site| async move {
            get(&site, 4, "status/404", Until::End, Some(404)).await;
            get(&site, 2, "status/500", Until::End, Some(500)).await;
            get(&site, 2, "trailers", Until::End, Some(200)).await;
        }),
        Row::new("h3-reset-before", 1, |site| async move {
            get(&site, 60, "hang", Until::Head, None).await;
        })
        .endpoints(3),
        Row::new("h3-reset-in-body", 1, |site| async move {
            get(&site, 60, "stall", Until::Body, Some(200)).await;
        })
        .endpoints(3),
        // What a client of the one listener finds out holds at the other.
        Row::new("h3-breaker", 1, |site| async move {
            get(&site, 5, "status/503", Until::End, Some(503)).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let reply = site.pass(site.request("GET", "ok")).await;
            assert_eq!(reply.header("x-pintle-reason"), Some("no-endpoint"), "{}", reply.status);
        })
        .configured(|config| {
            config.plugin(|plugin| {
                plugin["services"]["h3-breaker"] =
                    serde_json::json!({"select": {"panic_percent": 0}});
            })
        })
        .opens(&[0]),
    ]
}

async fn get(site: &Site, count: usize, act: &str, until: Until, status: Option<u16>) {
    let mut connection = site.quic.connect().await;
    for _ in 0..count {
        site.sending();
        let seen = site.arrived();
        assert_eq!(connection.get(site.name, act, until, seen).await, status, "{}", site.name);
    }
    // The last reset is on its way.
    tokio::time::sleep(Duration::from_millis(200)).await;
}
