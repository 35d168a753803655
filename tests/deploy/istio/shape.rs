//! The shapes of a service, and the cluster that istiod makes of each.
//!
//! From its sources, `pilot/pkg/networking/core`: `cluster_builder.go` and
//! `cluster_traffic_policy.go` (011b88bb) for what a Service, a ServiceEntry and a DestinationRule
//! become, `loadbalancer/loadbalancer.go` for where locality weights come from.

use pintle_tests::{Authority, Identity, Upstream};
use serde_json::{Value, json};

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TYPES: &str = "type.googleapis.com/envoy";

/// How Envoy comes to a service's hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Found {
    /// istiod tells them.
    #[default]
    Told,
    /// By the address that the application looked up: `clusterIP: None`, a ServiceEntry with
    /// resolution `NONE`, a DestinationRule with `PASSTHROUGH`.
    Original,
    /// Envoy looks all of them up: an ExternalName, or a ServiceEntry with resolution `DNS`.
    Dns,
    /// Envoy looks them up and takes one after the other: `DNS_ROUND_ROBIN`.
    RoundRobinDns,
}

/// A service of the mesh, and what of it and of its DestinationRule shapes its cluster.
#[derive(Clone, Copy, Default)]
pub struct Shape<'a> {
    /// The service's name in the mesh.
    pub host: &'a str,
    /// The port that requests go to; 80 where it is 0.
    pub port: u16,
    /// A subset that a VirtualService routes to.
    pub subset: &'a str,
    /// The pods behind it, all in one zone or each in its own.
    pub pods: &'a [&'a Upstream],
    /// How Envoy comes to them.
    pub found: Found,
    /// The mesh's authority, and the sidecar's certificate.
    pub mtls: Option<(&'a Authority, &'a Identity)>,
    /// The port is called `grpc`, or `h2UpgradePolicy` asks for it.
    pub http2: bool,
    /// The port's name says no protocol: Envoy goes by what the client speaks.
    pub unnamed: bool,
    /// `trafficDistribution: PreferClose`.
    pub close: bool,
    /// The mesh's `zoneAwareLbSetting`, and a proxy that knows where its own kind runs
    /// (`ISTIO_META_ENABLE_SELF_DISCOVERY`).
    pub zonal: bool,
    /// `connectionPool.http.maxRequestsPerConnection: 1`.
    pub pool: bool,
    /// `outlierDetection`.
    pub outlier: bool,
    /// `consistentHash.httpHeaderName` beside `localityLbSetting` off.
    pub sticky: bool,
    /// `warmup`.
    pub warmup: bool,
}

impl<'a> Shape<'a> {
    /// One HTTP port and nothing else.
    pub fn new(host: &'a str, pods: &'a [&'a Upstream]) -> Self {
        Self { host, pods, ..Self::default() }
    }

    /// The port that requests go to.
    pub fn port(&self) -> u16 {
        if self.port == 0 { 80 } else { self.port }
    }

    /// As istiod calls the cluster.
    pub fn cluster(&self) -> String {
        format!("outbound|{}|{}|{}", self.port(), self.subset, self.host)
    }

    /// As the application calls it.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port())
    }

    /// The cluster; `hosts` is where it gets those that istiod tells.
    pub fn built(&self, hosts: &Value) -> Value {
        let mut built = json!({
            "@type": format!("{TYPES}.config.cluster.v3.Cluster"),
            "name": self.cluster(),
            "connect_timeout": "10s",
            "lb_policy": "LEAST_REQUEST",
            "common_lb_config": {},
            "circuit_breakers": {"thresholds": [{"max_connections": u32::MAX,
                "max_pending_requests": u32::MAX, "max_requests": u32::MAX, "max_retries": u32::MAX,
                "track_remaining": true}]},
            "metadata": {"filter_metadata": {"istio": {"services": [{"host": self.host}]}}},
        });
        let mut matches = self.sockets();
        match self.found {
            Found::Told => {
                built["type"] = json!("EDS");
                built["eds_cluster_config"] =
                    json!({"eds_config": hosts, "service_name": self.cluster()});
            }
            Found::Original => {
                built["type"] = json!("ORIGINAL_DST");
                built["lb_policy"] = json!("CLUSTER_PROVIDED");
                // Without hosts that could be matched, the first is for all.
                built["transport_socket"] = matches[0]["transport_socket"].take();
                matches.clear();
            }
            Found::Dns | Found::RoundRobinDns => {
                let all = self.found == Found::Dns;
                built["type"] = json!(if all { "STRICT_DNS" } else { "LOGICAL_DNS" });
                built["dns_lookup_family"] = json!("V4_ONLY");
                built["dns_refresh_rate"] = json!("60s");
                built["respect_dns_ttl"] = json!(true);
                built["load_assignment"] = self.endpoints();
            }
        }
        if !matches.is_empty() {
            built["transport_socket_matches"] = json!(matches);
        }
        if let Some(options) = self.options() {
            built["typed_extension_protocol_options"] = json!({OPTIONS: options});
        }
        if self.close {
            built["common_lb_config"]["locality_weighted_lb_config"] = json!({});
        }
        if self.zonal {
            built["common_lb_config"]["zone_aware_lb_config"] = json!({"min_cluster_size": 1});
        }
        if self.outlier {
            built["outlier_detection"] =
                json!({"consecutive_5xx": 5, "enforcing_success_rate": 0, "interval": "10s"});
            built["common_lb_config"]["healthy_panic_threshold"] = json!({});
        }
        if self.sticky {
            built["lb_policy"] = json!("RING_HASH");
            built["ring_hash_lb_config"] = json!({"minimum_ring_size": 1024});
        }
        if self.warmup {
            let warmup = json!({"slow_start_config": {"slow_start_window": "30s"}});
            built["least_request_lb_config"] = warmup;
        }
        built
    }

    /// By which of them a host is spoken to, its own metadata says.
    fn sockets(&self) -> Vec<Value> {
        let socket = |name: &str, message: &str, mut fields: Value| {
            fields["@type"] = json!(format!("{TYPES}.extensions.transport_sockets.{message}"));
            json!({"name": format!("envoy.transport_sockets.{name}"), "typed_config": fields})
        };
        let raw = socket("raw_buffer", "raw_buffer.v3.RawBuffer", json!({}));
        let disabled = json!({"name": "tlsMode-disabled", "match": {}, "transport_socket": raw});
        let istio = self.mtls.map(|(authority, workload)| {
            let certificate = json!({"certificate_chain": {"filename": workload.certificate},
                "private_key": {"filename": workload.key}});
            let context = json!({"common_tls_context": {"tls_certificates": [certificate],
                "validation_context": {"trusted_ca": {"filename": authority.certificate()}}}});
            json!({"name": "tlsMode-istio", "match": {"tlsMode": "istio"},
                "transport_socket": socket("tls", "tls.v3.UpstreamTlsContext", context)})
        });
        istio.into_iter().chain([disabled]).collect()
    }

    fn options(&self) -> Option<Value> {
        let mut options = json!({"@type": format!("type.googleapis.com/{OPTIONS}")});
        if self.unnamed {
            options["use_downstream_protocol_config"] =
                json!({"http_protocol_options": {}, "http2_protocol_options": {}});
        } else if self.http2 {
            options["explicit_http_config"] = json!({"http2_protocol_options": {}});
        } else if self.pool {
            options["explicit_http_config"] = json!({"http_protocol_options": {}});
        }
        if self.pool {
            options["common_http_protocol_options"] = json!({"max_requests_per_connection": 1});
        }
        (self.unnamed || self.http2 || self.pool).then_some(options)
    }

    /// Its hosts as istiod tells them; of names that Envoy looks up, the names.
    pub fn endpoints(&self) -> Value {
        let metadata =
            json!({"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}});
        let named = [Found::Dns, Found::RoundRobinDns].contains(&self.found);
        let hosts = self.pods.iter().map(|pod| {
            let address = if named { "localhost".to_owned() } else { pod.addr().ip().to_string() };
            json!({"endpoint": {"address": {"socket_address": {
                "address": address, "port_value": pod.addr().port()}}}, "metadata": metadata})
        });
        let zones = hosts.enumerate().map(|(zone, host)| {
            json!({"lb_endpoints": [host], "load_balancing_weight": 1,
                "locality": {"region": "eu", "zone": format!("eu-{zone}")},
                "priority": if self.close { zone } else { 0 }})
        });
        let mut zones = zones.collect::<Vec<_>>();
        if self.found == Found::RoundRobinDns {
            zones.truncate(1);
        }
        json!({"@type": format!("{TYPES}.config.endpoint.v3.ClusterLoadAssignment"),
            "cluster_name": self.cluster(), "endpoints": zones})
    }
}
