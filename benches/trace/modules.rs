//! Modules that are none of ours, in text: what Envoy does for host calls, without what a module
//! does.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message as _;

/// Spans in a batch of ours, which the native tracer does not say of its own.
pub const BATCH: usize = 512;

/// Nothing but the callbacks that ours needs.
pub const EMPTY: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_log") (param i32))"#;

/// In one callback, asks for the three trace headers and writes a constant one: no propagation
/// costs less.
pub const LEAST_PROPAGATION: &str = r#"
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $ask (i32.const 16) (i32.const 11))
    (call $ask (i32.const 32) (i32.const 10))
    (call $ask (i32.const 48) (i32.const 7))
    (call $write)
    (i32.const 0))"#;

/// The same calls in the callbacks of ours: what Envoy does for our propagation, without what the
/// module does.
pub const PROPAGATION_CALLS: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $ask (i32.const 16) (i32.const 11))
    (call $ask (i32.const 32) (i32.const 10))
    (call $ask (i32.const 48) (i32.const 7))
    (call $write)
    (i32.const 0))
  (func (export "proxy_on_log") (param i32))"#;

/// In two callbacks, reads what no span can do without (headers, clock, code) and writes a constant
/// header, but makes no span and sends none: no tracer in Wasm costs less.
pub const LEAST_SPANS: &str = r#"
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $headers) (call $clock) (call $write)
    (i32.const 0))
  (func (export "proxy_on_log") (param i32)
    (call $clock)
    (call $property (i32.const 64) (i32.const 13)))"#;

/// The callbacks and host calls of ours, and a batch that was encoded beforehand: what Envoy does
/// for our spans, without what the module does.
pub const SPAN_CALLS: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $headers) (call $clock) (call $write)
    (i32.const 0))
  (func (export "proxy_on_log") (param i32)
    (call $clock)
    (call $property (i32.const 64) (i32.const 13))
    (call $property (i32.const 160) (i32.const 14))
    (call $property (i32.const 192) (i32.const 30))
    (call $property (i32.const 256) (i32.const 14))
    (call $send_each))"#;

/// The callbacks and host calls of ours with every part on, for a request that goes well and has no
/// span (`filters/module/src/request.rs` counts them), and nothing that the module does.
pub const ALL_CALLS: &str = r#"
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $clock) (call $headers)
    (call $property (i32.const 512) (i32.const 51))
    (call $list)
    (call $write)
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (call $clock)
    (drop (call $get (i32.const 2) (i32.const 576) (i32.const 7) (i32.const 0) (i32.const 4)))
    (call $property (i32.const 192) (i32.const 30))
    (i32.const 0))
  (func (export "proxy_on_response_trailers") (param i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_log") (param i32))
  (func (export "proxy_on_delete") (param i32)
    (call $property (i32.const 160) (i32.const 14)))"#;

/// Where [`batch`] lies in the memory of a module.
const BATCH_AT: usize = 65_536;

/// A module with these callbacks, which lists this address.
pub fn module(callbacks: &str, address: SocketAddr) -> String {
    let list = address.to_string();
    let listed = list.len();
    let message = batch();
    let escaped: String = message.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let size = message.len();
    format!(
        r#"(module
  (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_property" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
  (import "env" "proxy_grpc_call" (func $grpc
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 8)
  (global $spans (mut i32) (i32.const 0))
  (data (i32.const 16) "traceparent")
  (data (i32.const 32) "tracestate")
  (data (i32.const 48) "baggage")
  (data (i32.const 64) "response\00code")
  (data (i32.const 96) "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
  (data (i32.const 160) "response\00flags")
  (data (i32.const 192) "upstream\00request_attempt_count")
  (data (i32.const 256) "source\00address")
  (data (i32.const 288) "otlp")
  (data (i32.const 304) "opentelemetry.proto.collector.trace.v1.TraceService")
  (data (i32.const 368) "Export")
  (data (i32.const 400) "x-pintle-endpoints")
  (data (i32.const 432) "{list}")
  (data (i32.const 512) "xds\00cluster_metadata\00filter_metadata\00pintle\00service")
  (data (i32.const 576) ":status")
  (data (i32.const {BATCH_AT}) "{escaped}")
  (func $ask (param i32 i32)
    (drop (call $get (i32.const 0) (local.get 0) (local.get 1) (i32.const 0) (i32.const 4))))
  (func $write
    (drop (call $set (i32.const 0) (i32.const 16) (i32.const 11) (i32.const 96) (i32.const 55))))
  (func $list
    (drop (call $set (i32.const 0) (i32.const 400) (i32.const 18) (i32.const 432) (i32.const {listed}))))
  (func $headers (drop (call $pairs (i32.const 0) (i32.const 0) (i32.const 4))))
  (func $clock (drop (call $now (i32.const 0))))
  (func $property (param i32 i32)
    (drop (call $read (local.get 0) (local.get 1) (i32.const 0) (i32.const 4))))
  (func $send_each
    (global.set $spans (i32.add (global.get $spans) (i32.const 1)))
    (if (i32.eq (global.get $spans) (i32.const {BATCH})) (then
      (global.set $spans (i32.const 0))
      (drop (call $grpc (i32.const 288) (i32.const 4) (i32.const 304) (i32.const 51)
        (i32.const 368) (i32.const 6) (i32.const 0) (i32.const 0)
        (i32.const {BATCH_AT}) (i32.const {size}) (i32.const 10000) (i32.const 0))))))
  (func (export "_initialize"))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  {callbacks})"#
    )
}

/// A batch of spans of the size of ours here, by the published encoder.
fn batch() -> Vec<u8> {
    let text = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        ..KeyValue::default()
    };
    let span = Span {
        trace_id: vec![1; 16],
        span_id: vec![2; 8],
        name: "GET".into(),
        kind: 2,
        start_time_unix_nano: 1 << 60,
        end_time_unix_nano: 1 << 60,
        flags: 0x103,
        attributes: vec![
            text("http.request.method", "GET"),
            text("url.scheme", "http"),
            text("url.path", "/"),
            text("server.address", "orders"),
            text("client.address", "127.0.0.1"),
            text("network.peer.address", "127.0.0.1"),
            text("network.peer.port", "40000"),
            text("http.response.status_code", "200"),
        ],
        ..Span::default()
    };
    let scope_spans = vec![ScopeSpans { spans: vec![span; BATCH], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}
