//! The registry on a real etcd: what the agent sees of it when all is well, and when nothing is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test, helpers included"
)]

mod access;
mod cluster;
mod formats;
mod gone;
mod listing;
mod registry;
mod rough;
#[path = "../support/mod.rs"]
mod support;

use etcd_client::{Client, Txn, TxnOp};
use support::{key, value};

async fn put_many(url: &str, service: &str, numbers: std::ops::Range<usize>, pad: usize) {
    let mut client = Client::connect([url], None).await.unwrap();
    let numbers: Vec<_> = numbers.collect();
    for chunk in numbers.chunks(100) {
        let puts = chunk.iter().map(|n| {
            let id = format!("i{n:05}");
            let mut text = value(service, &id, 1000 + u16::try_from(*n).unwrap());
            text.insert_str(text.len() - 1, &format!(",\"pad\":\"{}\"", "x".repeat(pad)));
            TxnOp::put(key(service, &id), text, None)
        });
        client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
    }
}
