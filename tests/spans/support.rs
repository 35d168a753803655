//! An Envoy with the module, an upstream that says what it got, and a collector.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use pintle_artifact::PINTLE_PATH;
use pintle_tests::http::{self, Reply};
use pintle_tests::{
    Agent, Collector, Envoy, EnvoyConfig, Etcd, Instance, Nats, Server as _, Upstream, Written,
    assert_eventually,
};
use prost::Message as _;
use serde_json::{Value, json};

pub const SOON: Duration = Duration::from_secs(10);

pub const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
pub const SPAN: &str = "b7ad6b7169203331";
pub const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The part of `trace` that exports to the rig's collector, quickly.
pub fn exporting(mut trace: Value) -> Value {
    trace["export"] =
        json!({"cluster": "otlp", "service_name": "edge", "interval": "100ms", "timeout": "1s"});
    trace
}

pub struct Rig {
    pub upstream: Upstream,
    pub collector: Collector,
    pub envoy: Envoy,
}

impl Rig {
    /// Trace alone, with this configuration: no agent, no table, no choice.
    pub async fn start(trace: Value) -> Self {
        Self::with(trace, |config| config).await
    }

    /// As [`Rig::start`], with a change of Envoy's configuration.
    pub async fn with(trace: Value, change: impl FnOnce(EnvoyConfig) -> EnvoyConfig) -> Self {
        let upstream = Upstream::start("orders-1").await.unwrap();
        let collector = Collector::start().await.unwrap();
        let config = config(&collector).static_hosts("orders", &[upstream.addr()]);
        let config = config.plugin(|plugin| *plugin = json!({"trace": trace}));
        let envoy = Envoy::start(change(config)).await.unwrap();
        Self { upstream, collector, envoy }
    }

    /// Sends a request with these headers over HTTP/1.1.
    pub async fn send(&self, headers: &[(&str, &str)]) -> Reply {
        let reply = http::send(self.envoy.addr(), request(headers)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply
    }

    /// The headers that the upstream got for a request with these.
    pub async fn sent(&self, headers: &[(&str, &str)]) -> Sent {
        Sent(self.send(headers).await)
    }

    /// Waits for so many spans and takes them, oldest first.
    pub async fn spans(&self, count: usize) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        assert_eventually!(
            SOON,
            {
                spans.extend(self.resources().into_iter().flat_map(spans_of));
                // A call whose answer came too late is made again: whoever collects has to expect
                // that.
                let mut known = BTreeSet::new();
                spans.retain(|span| known.insert(span.span_id.clone()));
                spans.len() >= count
            },
            "{} of {count} spans have come",
            spans.len()
        );
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    /// The one span that came.
    pub async fn span(&self) -> Span {
        self.spans(1).await.remove(0)
    }

    /// What has come to the collector since the last look.
    pub fn resources(&self) -> Vec<ResourceSpans> {
        self.collector.drain().iter().flat_map(|call| decode(&call.path, &call.message)).collect()
    }

    /// A counter of the module's.
    pub async fn counter(&self, name: &str) -> u64 {
        self.envoy.stat(&format!("wasmcustom.pintle_{name}_total")).await.unwrap_or(0)
    }

    /// What holds at the end of every test: no VM trapped, no host call failed, and Envoy goes in
    /// peace.
    pub async fn end(mut self) {
        assert_eq!(self.envoy.vm_reloads().await.unwrap(), 0, "{}", self.envoy.log());
        assert_eq!(self.counter("host_error").await, 0);
        assert!(!self.envoy.log().contains("Function: proxy_on"), "{}", self.envoy.log());
        self.envoy.terminate(SOON).await.unwrap();
    }
}

/// A rig in a whole installation: the hosts of `orders` are what etcd says, by EDS and in the
/// module's tables, and events come by NATS.
pub struct Installed {
    pub etcd: Etcd,
    pub nats: Nats,
    pub agent: Agent,
    /// Its upstream is `orders-1`.
    pub rig: Rig,
    /// `orders-2` and so on.
    pub others: Vec<Upstream>,
}

impl Installed {
    /// So many endpoints of `orders`; everything is on as shipped, with this `trace`.
    pub async fn start(
        count: usize,
        trace: Value,
        change: impl FnOnce(EnvoyConfig) -> EnvoyConfig,
    ) -> Self {
        let (etcd, nats) = tokio::try_join!(Etcd::start(), Nats::start()).unwrap();
        let mut all = Vec::new();
        let mut written = Written { revision: 0 };
        for number in 1..=count {
            let upstream = Upstream::start(&format!("orders-{number}")).await.unwrap();
            written = etcd.register(&Instance::of("orders", &upstream)).await.unwrap();
            all.push(upstream);
        }
        let agent = Agent::with(&etcd, &nats).start().await.unwrap();
        let collector = Collector::start().await.unwrap();
        let config = config(&collector).agent_socket(agent.socket());
        let config = config.plugin(|plugin| plugin["trace"] = trace);
        let envoy = Envoy::start(change(config)).await.unwrap();
        agent.settled(written).await.unwrap();
        assert_eventually!(SOON, envoy.hosts("orders").await.unwrap().len() == count);
        let rig = Rig { upstream: all.remove(0), collector, envoy };
        Self { etcd, nats, agent, rig, others: all }
    }

    /// `/pintle/policies/{service}`, in force when this returns.
    pub async fn policy(&self, service: &str, policy: Value) {
        let key = format!("/pintle/policies/{service}");
        let written = self.etcd.put(&key, &policy.to_string()).await.unwrap();
        self.agent.settled(written).await.unwrap();
    }

    /// Runs the command line with this NATS server.
    pub async fn order(&self, command: &[&str]) {
        let url = self.nats.url();
        let done = Agent::command(&[command, &["--nats", &url]].concat()).await.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// The shipped files with the module and the collector put in.
pub fn config(collector: &Collector) -> EnvoyConfig {
    let config = EnvoyConfig::shipped().unwrap().clusters_from("tracing.yaml").unwrap();
    config.static_hosts("otlp", &[collector.addr()]).wasm(PINTLE_PATH)
}

pub fn request(headers: &[(&str, &str)]) -> ::http::Request<Full<Bytes>> {
    let mut request = http::request("shop.example:8080", "GET", "/cart?id=7", "").unwrap();
    for (name, value) in headers {
        let name: ::http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

/// What the upstream got.
pub struct Sent(pub Reply);

impl Sent {
    /// All values of a header, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.echoed(name)
    }

    /// The value of a header that came at most once.
    pub fn one(&self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        assert!(all.len() <= 1, "{name}: {all:?}");
        all.pop()
    }

    /// Trace id, parent id and flags of a valid `traceparent`.
    pub fn parent(&self) -> (String, String, u8) {
        let value = self.one("traceparent").expect("a traceparent");
        let parts: Vec<&str> = value.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { panic!("{value}") };
        assert_eq!((version, trace.len(), span.len(), flags.len()), ("00", 32, 16, 2), "{value}");
        let digits = |text: &str| text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        assert!(digits(trace) && digits(span), "{value}");
        assert!(trace.bytes().any(|c| c != b'0') && span.bytes().any(|c| c != b'0'), "{value}");
        (trace.into(), span.into(), u8::from_str_radix(flags, 16).unwrap())
    }
}

pub fn decode(path: &str, message: &[u8]) -> Vec<ResourceSpans> {
    assert_eq!(path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    ExportTraceServiceRequest::decode(message).expect("OTLP").resource_spans
}

pub fn spans_of(resource: ResourceSpans) -> Vec<Span> {
    resource.scope_spans.into_iter().flat_map(|scope| scope.spans).collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An attribute as text; numbers in decimal, lists joined by spaces.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone()?.value.map(text)
}

fn text(value: Any) -> String {
    match value {
        Any::StringValue(text) => text,
        Any::IntValue(number) => number.to_string(),
        Any::ArrayValue(list) => {
            let all: Vec<String> =
                list.values.into_iter().filter_map(|v| v.value.map(text)).collect();
            all.join(" ")
        }
        other => format!("{other:?}"),
    }
}

/// Every one of these attributes, and none where the value is empty.
pub fn expect(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = attribute(&span.attributes, key);
        let value = (!value.is_empty()).then_some(*value);
        assert_eq!(found.as_deref(), value, "{key} of {:#?}", span.attributes);
    }
}
