//! Clusters for Envoy itself (CDS), where `serve.clusters` asks for them: one for each service that
//! the agent knows, all copies of one template, so that a new service needs no change of Envoy's
//! files.
//!
//! They go down the aggregated delta stream beside the hosts of [`super::eds`], as the newest
//! Envoys and 1.36 ask for them
//! (`dynamic_resources: {ads_config: {api_type: DELTA_GRPC, ...}, cds_config: {ads: {}}}`). The
//! state-of-the-world protocol is not answered: it would send all clusters with each new one.

mod session;
mod template;

pub(crate) use session::Session;
pub(crate) use template::Template;

/// The name of the resource type.
pub(crate) const TYPE_URL: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

#[cfg(test)]
mod tests;
