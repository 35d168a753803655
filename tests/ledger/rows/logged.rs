//! Several attempts for one request where the router logs each to the module: all of them are
//! booked as they were, whatever the next one followed. The rows of `attempts` without the log
//! stand beside these.

use std::time::Duration;

use pintle_tests::{EnvoyConfig, assert_eventually};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::config::{policy, retry, route};
use crate::row::{Row, Site};
use crate::upstream::Upstream;

pub fn rows() -> Vec<Row> {
    vec![
        logged("logged-5xx", 7, 2, "5xx", json!(null), |site| async move {
            site.upstreams[0].always("status/503");
            site.gets(4, "ok", 200).await;
        }),
        logged("logged-404", 7, 3, "retriable-status-codes", not_found(), |site| async move {
            site.gets(12, "status/404", 404).await;
        }),
        logged("logged-409", 7, 3, "retriable-4xx", json!(null), |site| async move {
            site.gets(12, "status/409", 409).await;
        }),
        logged("logged-404-well", 7, 2, "retriable-status-codes", not_found(), |site| async move {
            site.upstreams[0].always("status/404");
            site.gets(12, "ok", 200).await;
        }),
        logged("logged-reset", 7, 2, "reset", json!(null), |site| async move {
            site.upstreams[0].always("reset");
            site.gets(4, "ok", 200).await;
        }),
        logged("logged-per-try", 7, 2, "5xx", within("0.4s"), |site| async move {
            site.upstreams[0].always("hang");
            site.gets(4, "ok", 200).await;
        })
        .failed(|entry| entry.act == "hang"),
        // The first answers after its time, and the second, which is asked beside it, is outrun.
        logged("logged-hedge", 8, 2, "5xx", within("1s"), |site| async move {
            let (first, second) = order(&site).await;
            first.always("held/ok");
            second.always("hang");
            for _ in 0..2 {
                let seen = second.log().len() + 1;
                let both = async {
                    let asked = || second.log().len() >= seen;
                    assert_eventually!(crate::PATIENCE, asked(), "the second is asked");
                    first.release();
                };
                tokio::join!(site.gets(1, "ok", 200), both);
            }
        })
        .failed(|_| false),
        // The first hangs, and the second answers in its place.
        logged("logged-hedge-late", 8, 2, "5xx", within("0.4s"), |site| async move {
            let (first, _) = order(&site).await;
            first.always("hang");
            site.gets(4, "ok", 200).await;
        })
        .failed(|entry| entry.act == "hang"),
        // Beyond the list Envoy goes on where it likes.
        logged("logged-more", 9, 2, "5xx", json!({"num_retries": 4}), |site| async move {
            site.gets(1, "status/503", 503).await;
        }),
        // The client leaves during the second attempt: the first has failed, and the second nobody
        // knows.
        logged("logged-left", 7, 2, "5xx", json!(null), |site| async move {
            let (first, second) = order(&site).await;
            first.always("status/503");
            second.always("hang");
            for turn in 1..=3 {
                site.sending();
                let mut stream = TcpStream::connect(site.tcp).await.expect("Envoy accepts");
                let get = format!("GET /ok HTTP/1.1\r\nhost: {}\r\n\r\n", site.name);
                stream.write_all(get.as_bytes()).await.expect("Envoy reads");
                let asked = || second.log().len() >= turn;
                assert_eventually!(crate::PATIENCE, asked(), "the second is asked");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }),
    ]
}

/// A service whose policy is to be told by the router, and whose route tries up to three times.
fn logged<F>(
    name: &'static str,
    traffic: u8,
    endpoints: usize,
    on: &'static str,
    more: Value,
    drive: impl Fn(Site) -> F + Send + Sync + 'static,
) -> Row
where
    F: Future<Output = ()> + Send + 'static,
{
    Row::new(name, traffic, drive).endpoints(endpoints).configured(
        move |mut config: EnvoyConfig| {
            retry(&mut config, name, on, 2, &more);
            if name.starts_with("logged-hedge") {
                route(&mut config, name)["hedge_policy"] =
                    json!({"hedge_on_per_try_timeout": true});
            }
            // Always in the same order.
            let one = json!({"strategy": "ring_hash", "hash_key": [{"header": ":authority"}]});
            let first = name.starts_with("logged-hedge") || name == "logged-left";
            let select = if first { one } else { json!({}) };
            policy(config, name, json!({"select": select, "breaker": {"retries": "logged"}}))
        },
    )
}

fn not_found() -> Value {
    json!({"retriable_status_codes": [404]})
}

fn within(limit: &str) -> Value {
    json!({"per_try_timeout": limit})
}

/// The two upstreams in the order in which they are asked.
async fn order(site: &Site) -> (&Upstream, &Upstream) {
    site.gets(1, "ok", 200).await;
    let [one, other] = &site.upstreams[..] else { panic!("two upstreams") };
    if one.log().is_empty() { (other, one) } else { (one, other) }
}
