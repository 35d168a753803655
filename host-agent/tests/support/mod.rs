//! What the agent's own tests on real servers share: an agent without its servers, and looks at it.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pintle_agent::link::Sources;
use pintle_agent::source::{self, EtcdConfig, NatsConfig, Running, SourcesConfig, StateConfig};
use pintle_state::Snapshot;
use pintle_tests::Patience;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub(crate) fn any(_: &Value) -> Result<(), pintle_state::BadPolicy> {
    Ok(())
}

/// An agent's sources and state, ended when dropped.
pub(crate) struct Agent {
    pub(crate) running: Running,
    shutdown: CancellationToken,
}

pub(crate) fn config() -> SourcesConfig {
    SourcesConfig {
        agent: "test".into(),
        state: StateConfig {
            allow: Some(["127.0.0.0/8", "10.0.0.0/8"].map(|range| range.parse().unwrap()).into()),
            ..StateConfig::default()
        },
        ..SourcesConfig::default()
    }
}

pub(crate) fn with_etcd(urls: Vec<String>) -> SourcesConfig {
    SourcesConfig {
        etcd: Some(EtcdConfig { endpoints: urls, ..EtcdConfig::default() }),
        ..config()
    }
}

pub(crate) fn with_nats(url: String) -> SourcesConfig {
    SourcesConfig {
        nats: Some(NatsConfig { servers: vec![url], ..NatsConfig::default() }),
        ..config()
    }
}

impl Agent {
    pub(crate) fn start(config: SourcesConfig) -> Self {
        let shutdown = CancellationToken::new();
        let running = source::start(config, any, shutdown.clone());
        Self { running, shutdown }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.running.snapshots.borrow().clone()
    }

    pub(crate) fn sources(&self) -> Sources {
        self.running.sources.borrow().clone()
    }

    pub(crate) fn ids(&self, service: &str) -> Vec<String> {
        let snapshot = self.snapshot();
        let service = snapshot.services.get(service);
        service.map_or(Vec::new(), |s| s.table.endpoints.iter().map(|e| e.id.clone()).collect())
    }

    pub(crate) fn count(&self) -> usize {
        let snapshot = self.snapshot();
        snapshot.services.values().map(|s| s.table.endpoints.len()).sum()
    }

    /// Waits until `check` holds; how long it took.
    pub(crate) async fn until(
        &self,
        budget: Duration,
        what: &str,
        check: impl Fn(&Self) -> bool,
    ) -> Duration {
        let began = Instant::now();
        let mut patience = Patience::new(budget);
        while !check(self) {
            assert!(
                patience.lasts().await,
                "not within {budget:?}: {what}\n{:#?}\n{:?}",
                self.sources(),
                self.snapshot().services.keys().collect::<Vec<_>>()
            );
        }
        began.elapsed()
    }

    /// Waits until the watch stands. A listing is published before; a fault in between would hit
    /// another session than the one that is meant.
    pub(crate) async fn watching(&self) {
        self.until(secs(30), "the watch", |a| a.sources().etcd.connected).await;
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.running.join().await;
    }
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// At an address that no other id has.
pub(crate) fn value(service: &str, id: &str, port: u16) -> String {
    let [.., a, b, c] = id
        .bytes()
        .fold(7_u32, |sum: u32, b| sum.wrapping_mul(31).wrapping_add(b.into()))
        .to_be_bytes();
    value_at(service, id, &format!("10.{a}.{b}.{c}"), port)
}

pub(crate) fn value_at(service: &str, id: &str, address: &str, port: u16) -> String {
    json!({
        "id": id, "name": service, "address": address, "port": port,
        "metadata": null, "health": "healthy", "tags": null,
        "registered_at": "2026-01-01T00:00:00Z", "last_heartbeat": "2026-01-01T00:00:00Z",
    })
    .to_string()
}

pub(crate) fn key(service: &str, id: &str) -> String {
    format!("/services/{service}/{id}")
}
