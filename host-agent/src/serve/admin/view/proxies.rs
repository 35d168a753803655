//! Envoys and their workers.

use serde::{Deserialize, Serialize};

use super::{clean, time};
use crate::fleet::ProxyView;

/// `/v1/proxies`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProxiesJson {
    /// By node id.
    pub proxies: Vec<ProxyJson>,
}

/// One Envoy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ProxyJson {
    /// Node id.
    pub proxy: String,
    /// Whether it holds a stream.
    pub connected: bool,
    /// Since when it does, or does not.
    pub since: String,
    /// Who it is to the kernel.
    pub peer: String,
    /// The schema that is spoken with it: 1 is that of 0.1.
    pub schema: u8,
    /// The leading worker.
    pub leader: String,
    /// The leader's term.
    pub fence: u64,
    /// The version all its workers hold.
    pub version: String,
    /// Whether that is the newest.
    pub current: bool,
    /// How many workers it says it has.
    pub expected: u32,
    /// Those that spoke lately.
    pub workers: Vec<WorkerJson>,
}

impl ProxyJson {
    /// Of one proxy.
    #[must_use]
    pub(crate) fn of(view: &ProxyView) -> Self {
        Self {
            proxy: clean(&view.proxy),
            connected: view.connected,
            since: time(view.since),
            peer: view.peer.clone(),
            schema: view.schema as u8,
            leader: format!("{:016x}", view.leader),
            fence: view.fence,
            version: view.version.to_string(),
            current: view.current,
            expected: view.expected,
            workers: view
                .workers
                .iter()
                .map(|worker| WorkerJson {
                    worker: format!("{:016x}", worker.worker),
                    version: worker.version.to_string(),
                    silent_seconds: worker.silent.round(),
                })
                .collect(),
        }
    }
}

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkerJson {
    /// Its random id, hexadecimal.
    pub worker: String,
    /// What it holds.
    pub version: String,
    /// Seconds since it spoke.
    pub silent_seconds: f64,
}
