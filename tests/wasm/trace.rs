//! Headers out, spans to a collector, and headers that are meant to hurt.

use std::collections::VecDeque;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use pintle_harness::{Outcome, Request, RequestBuilder, Thread};
use prost::Message as _;

use crate::support::{ALL, Run, builder, endpoints, get, list};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

const EXPORTING: &str = r#"{
    "sync": {"cluster": "pintle_agent"}, "select": {}, "breaker": {},
    "trace": {"export": {"cluster": "otel", "service_name": "edge", "service_version": "1.2"}}
}"#;

fn send(run: &mut Run, request: RequestBuilder) -> Request {
    let request = run.envoy.worker(0).request(request);
    let first = list(&request).first().cloned().unwrap_or_else(|| "10.0.0.1:80".to_owned());
    run.envoy.finish(request.clone(), Outcome::ok(first));
    request
}

/// The spans that have come to the collector, with the time given to come.
fn spans(run: &mut Run, wait: Duration) -> Vec<Span> {
    run.envoy.advance(wait);
    let mut spans = Vec::new();
    while let Some(call) = run.envoy.cluster("otel").next_call() {
        assert_eq!(call.service(), "opentelemetry.proto.collector.trace.v1.TraceService");
        assert_eq!(call.method(), "Export");
        let request = ExportTraceServiceRequest::decode(call.message().as_slice()).expect("OTLP");
        call.reply([]);
        for resource in request.resource_spans {
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    run.envoy.settle();
    spans
}

fn text(span: &Span, key: &str) -> String {
    let value = span.attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn without_an_exporter_the_context_is_forwarded_as_it_came() {
    let mut run = Run::start(ALL);
    run.table("orders", endpoints(3));
    let request = get("orders").header("traceparent", PARENT).header("tracestate", "a=1,b=2");
    let request = send(&mut run, request);
    assert_eq!(request.header("traceparent").as_deref(), Some(PARENT));
    assert_eq!(request.header("tracestate").as_deref(), Some("a=1,b=2"));
}

#[test]
fn a_request_without_a_context_starts_one() {
    let mut run = Run::start(ALL);
    let request = send(&mut run, get("orders"));
    let value = request.header("traceparent").expect("a traceparent");
    assert_eq!(value.len(), 55, "{value}");
    assert!(value.starts_with("00-"), "{value}");
}

#[test]
fn a_span_says_what_was_decided() {
    let mut run = Run::start(EXPORTING);
    run.table("orders", endpoints(3));
    let request = send(&mut run, get("orders").header("traceparent", PARENT));
    let outgoing = request.header("traceparent").expect("a traceparent");
    assert_ne!(outgoing, PARENT, "the proxy is a span of its own");
    let spans = spans(&mut run, Duration::from_secs(2));
    assert_eq!(spans.len(), 1);
    let span = &spans[0];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
    assert_eq!(hex(&span.span_id), outgoing[36..52]);
    let endpoint = list(&request)[0].clone();
    for (key, expect) in [
        ("http.request.method", "GET"),
        ("url.path", "/cart"),
        ("http.response.status_code", "200"),
        ("pintle.service", "orders"),
        ("pintle.strategy", "p2c"),
        ("pintle.candidates", "3"),
        ("pintle.endpoint", endpoint.as_str()),
        ("pintle.breaker.state", "closed"),
        ("pintle.outcome", "chosen"),
        ("pintle.snapshot.version", "1.1"),
    ] {
        assert_eq!(text(span, key), expect, "{key} of {:?}", span.attributes);
    }
}

#[test]
fn what_is_not_sampled_is_not_exported() {
    let mut run = Run::start(EXPORTING);
    run.table_with("orders", endpoints(3), r#"{"trace": {"ratio": 0}}"#);
    send(&mut run, get("orders"));
    send(&mut run, get("orders").header("traceparent", PARENT.replace("-01", "-00")));
    assert_eq!(spans(&mut run, Duration::from_secs(2)).len(), 0);
    send(&mut run, get("orders").header("traceparent", PARENT));
    assert_eq!(spans(&mut run, Duration::from_secs(2)).len(), 1, "the parent decides");
    run.table("orders", endpoints(3));
    send(&mut run, get("orders"));
    assert_eq!(spans(&mut run, Duration::from_secs(2)).len(), 1, "the ratio is back");
}

/// Whatever stands in the configuration, Envoy shows at its admin address.
#[test]
fn the_collector_s_headers_come_from_the_environment() {
    let headers = r#""headers": {"authorization": {"env": "OTLP_AUTH"}, "x-none": {"env": "NONE"},
        "x-odd": {"env": "ODD"}}, "service_name""#;
    let configuration = EXPORTING.replace("\"service_name\"", headers);
    let envoy = builder(&configuration).env("OTLP_AUTH", "Bearer secret").env("ODD", "a\nb");
    let mut run = Run::of(envoy.build().expect("the module starts"));
    run.table("orders", endpoints(1));
    send(&mut run, get("orders"));
    run.envoy.advance(Duration::from_secs(2));
    let call = run.envoy.cluster("otel").next_call().expect("a batch");
    assert_eq!(call.metadata().text("authorization").as_deref(), Some("Bearer secret"));
    assert_eq!(call.metadata().text("x-none").or(call.metadata().text("x-odd")), None);
    let logs = format!("{:?}", run.envoy.logs());
    assert!(logs.contains("NONE is not passed") && logs.contains("ODD is not"), "{logs}");
    assert!(!logs.contains("secret"), "{logs}");
}

#[test]
fn a_collector_that_is_down_costs_counters_and_no_request() {
    let mut run = Run::start(EXPORTING);
    run.table("orders", endpoints(3));
    run.envoy.cluster("otel").down();
    for turn in 0..6_000 {
        let request = send(&mut run, get("orders"));
        assert!(request.continues());
        if turn % 100 == 0 {
            run.tick();
        }
    }
    let dropped = run.envoy.metrics().counter("pintle_span_dropped_total").unwrap_or(0);
    assert!(dropped > 0, "the queue is bounded");
    run.envoy.cluster("otel").up();
    let mut came = 0;
    for _ in 0..40 {
        came += spans(&mut run, Duration::from_secs(1)).len();
    }
    assert!(came >= 2_048, "what fitted in the queue comes when the collector is back: {came}");
    assert_eq!(run.envoy.traps(), Vec::new());
}

#[test]
fn no_header_is_a_trap() {
    let mut run = Run::start(EXPORTING);
    run.table("orders", endpoints(3));
    let long = vec![b'a'; 60 * 1024];
    let members = (0..1_000).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    let values: Vec<Vec<u8>> = vec![
        b"\xff\xfe\x00\x80".to_vec(),
        Vec::new(),
        long,
        members.into_bytes(),
        b"00-00000000000000000000000000000000-0000000000000000-01".to_vec(),
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_vec(),
        b"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01".to_vec(),
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-".to_vec(),
        b"----".to_vec(),
        b",,,;;;===".to_vec(),
        "\u{202e}\u{1f980}".as_bytes().to_vec(),
    ];
    let names = [
        "traceparent",
        "tracestate",
        "baggage",
        "b3",
        "x-b3-traceid",
        "uber-trace-id",
        "x-datadog-trace-id",
        "x-amzn-trace-id",
        "cookie",
        ":path",
        ":authority",
        ":method",
        "content-type",
        "user-agent",
        "x-pintle-endpoints",
        "retry-after",
    ];
    for name in names {
        for value in &values {
            let request = get("orders").header(name, value).header(name, value);
            let request = send(&mut run, request);
            assert!(request.continues(), "{name}");
            for (name, value) in request.headers().iter() {
                let name = String::from_utf8_lossy(name).into_owned();
                if name == "traceparent" {
                    assert_eq!(value.len(), 55, "{:?}", String::from_utf8_lossy(value));
                }
            }
        }
    }
    spans(&mut run, Duration::from_secs(3));
    assert_eq!(run.envoy.traps(), Vec::new());
    assert_eq!(run.envoy.violations(), Vec::<String>::new());
}

/// Envoy copies all headers into the module before the first of them is looked at, so what they
/// take is theirs and a copy; a page is 64 KiB, and memory that has grown stays.
#[test]
fn ninety_six_kibibytes_of_headers_take_less_than_a_mebibyte_of_the_modules_memory() {
    const SIZE: usize = 96 * 1024;
    const FORMATS: &str =
        r#"["tracecontext", "b3", "b3multi", "jaeger", "datadog", "xray", "baggage"]"#;
    let configuration = EXPORTING.replace(
        r#""trace": {"#,
        &format!(
            r#""trace": {{"extract": {FORMATS}, "inject": {FORMATS}, "tracestate_member": "pintle",
            "baggage_allow": ["a", "k"], "spans": "per_attempt", "#
        ),
    );
    let fill = |piece: &[u8], size| piece.iter().copied().cycle().take(size).collect::<Vec<_>>();
    for (name, piece) in [
        ("traceparent", &b"-"[..]),
        ("tracestate", b"k=v,"),
        ("tracestate", b","),
        ("baggage", b"a=b;c,"),
        ("x-datadog-tags", b"_dd.p.tid=0000000000000001,"),
        ("x-amzn-trace-id", b"Root=1-0af76519-16cd43dd8448eb211c80319c;"),
        ("b3", b"-"),
        ("uber-trace-id", b":"),
        ("x-other", b"x"),
    ] {
        for lines in [1, 100, 1_000] {
            let mut run = Run::start(&configuration);
            run.table("orders", endpoints(3));
            for _ in 0..50 {
                send(&mut run, get("orders").header("traceparent", PARENT));
            }
            let before = run.envoy.memory_pages(Thread::Worker(0));
            for _ in 0..20 {
                let mut request = get("orders").header("traceparent", PARENT);
                for _ in 0..lines {
                    request = request.header(name, fill(piece, SIZE / lines));
                }
                assert!(send(&mut run, request).continues(), "{name}");
            }
            let grown = run.envoy.memory_pages(Thread::Worker(0)) - before;
            assert!(grown < 16, "{name} in {lines} lines: {grown} pages");
            assert_eq!(run.envoy.traps(), Vec::new());
        }
    }
}

#[test]
fn of_too_many_open_streams_the_oldest_give_way() {
    // As many as are kept, and one.
    const STREAMS: usize = 65_536 + 1;
    let mut run = Run::start(EXPORTING);
    let mut open = VecDeque::new();
    for _ in 0..STREAMS {
        open.push_back(run.envoy.worker(0).request(get("orders")));
    }
    let mut end = |request: Option<Request>| {
        let request = request.expect("an open stream");
        let id = request.header("traceparent").and_then(|v| v.get(3..35).map(str::to_owned));
        run.envoy.finish(request, Outcome::ok("10.0.0.1:80"));
        id.expect("a trace id")
    };
    let given_up = end(open.pop_front());
    let oldest = end(open.pop_front());
    let newest = end(open.pop_back());
    let hex = |id: Vec<u8>| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let told = spans(&mut run, Duration::from_secs(2));
    let told: Vec<_> = told.into_iter().map(|span| hex(span.trace_id)).collect();
    assert_eq!(told, [oldest, newest], "{given_up} was the first to go");
}
