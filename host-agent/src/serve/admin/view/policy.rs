//! A service's policy and what it is made of.

use pintle_state::{PolicyLayer, Service};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `/v1/policies/{name}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PolicyJson {
    /// The service.
    pub service: String,
    /// What is told to the proxies: a merge patch over the plugin's own configuration; null when
    /// there is none.
    pub effective: Value,
    /// Its layers, lowest first.
    pub layers: Vec<LayerJson>,
}

/// One layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerJson {
    /// `file`, `registry` or `event`.
    pub layer: String,
    /// The merge patch.
    pub policy: Value,
    /// Whether it is not in force, since it does not go with the others.
    pub left_out: bool,
}

impl PolicyJson {
    /// Of one service.
    #[must_use]
    pub(crate) fn of(service: &Service) -> Self {
        let layer = |layer: &PolicyLayer| LayerJson {
            layer: layer.source.to_owned(),
            policy: layer.patch.clone(),
            left_out: !layer.in_force,
        };
        Self {
            service: service.table.service.clone(),
            effective: serde_json::from_str(&service.table.policy).unwrap_or_default(),
            layers: service.layers.iter().map(layer).collect(),
        }
    }
}
