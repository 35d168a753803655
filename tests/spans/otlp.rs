//! Spans as a collector receives them: names, values, kinds, status, attempts, batches.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use pintle_tests::{Behaviour, Fault, Load, Upstream, assert_eventually, http};
use serde_json::json;

use crate::support::{
    PARENT, Rig, SOON, attribute, decode, expect, exporting, hex, request, spans_of,
};

fn status(span: &Span) -> StatusCode {
    span.status.clone().unwrap_or_default().code()
}

#[tokio::test]
async fn a_server_span_has_the_stable_conventions_names_and_values() {
    let rig = Rig::start(exporting(json!({"direction": "ingress"}))).await;
    let before = now();
    rig.send(&[("traceparent", PARENT), ("user-agent", "probe/1.0")]).await;
    let span = rig.span().await;
    assert_eq!((span.name.as_str(), span.kind()), ("GET", SpanKind::Server));
    assert_eq!(status(&span), StatusCode::Unset);
    // Sampled, and the parent is known to be elsewhere.
    assert_eq!(span.flags, 0x301, "{:#x}", span.flags);
    assert!(before <= span.start_time_unix_nano && span.end_time_unix_nano <= now());
    assert!(span.start_time_unix_nano < span.end_time_unix_nano);
    expect(
        &span,
        &[
            ("http.request.method", "GET"),
            ("url.scheme", "http"),
            ("url.path", "/cart"),
            ("url.query", ""),
            ("server.address", "shop.example"),
            ("server.port", "8080"),
            ("client.address", "127.0.0.1"),
            ("network.peer.address", "127.0.0.1"),
            ("http.response.status_code", "200"),
            ("user_agent.original", "probe/1.0"),
            ("http.request.resend_count", ""),
            ("error.type", ""),
            ("pintle.strategy", ""),
        ],
    );
    assert!(attribute(&span.attributes, "network.peer.port").is_some());
    let names: std::collections::BTreeSet<_> = span.attributes.iter().map(|a| &a.key).collect();
    assert_eq!(names.len(), span.attributes.len(), "no name twice: {:?}", span.attributes);
    rig.end().await;
}

#[tokio::test]
async fn a_client_span_names_the_upstream_as_its_peer() {
    let trace = exporting(json!({"direction": "egress"}));
    let rig = Rig::start(trace).await;
    rig.send(&[("traceparent", PARENT)]).await;
    let span = rig.span().await;
    assert_eq!((span.name.as_str(), span.kind()), ("GET", SpanKind::Client));
    let port = rig.upstream.addr().port().to_string();
    expect(
        &span,
        &[
            ("http.request.method", "GET"),
            ("url.full", "http://shop.example:8080/cart"),
            ("server.address", "shop.example"),
            ("server.port", "8080"),
            ("network.peer.address", "127.0.0.1"),
            ("network.peer.port", &port),
            ("client.address", ""),
            ("http.response.status_code", "200"),
        ],
    );
    rig.end().await;
}

#[tokio::test]
async fn a_server_span_is_an_error_from_500_on_and_a_client_span_from_400_on() {
    for (direction, client) in [("ingress", false), ("egress", true)] {
        let rig = Rig::start(exporting(json!({"direction": direction}))).await;
        for code in [200_u16, 302, 404, 499, 500, 503] {
            rig.upstream.set(Behaviour { status: code, ..Behaviour::default() });
            let reply = http::send(rig.envoy.addr(), request(&[])).await.unwrap();
            assert_eq!(reply.status, code);
            let span = rig.span().await;
            let failed = code >= if client { 400 } else { 500 };
            let text = code.to_string();
            expect(&span, &[("http.response.status_code", &text)]);
            expect(&span, &[("error.type", if failed { &text } else { "" })]);
            let expected = if failed { StatusCode::Error } else { StatusCode::Unset };
            assert_eq!(status(&span), expected, "{direction} {code}");
        }
        rig.end().await;
    }
}

#[tokio::test]
async fn a_failure_without_a_status_of_the_upstream_says_what_it_was() {
    let mut rig = Rig::start(exporting(json!({}))).await;
    rig.upstream.set(Behaviour::failing(Fault::Reset));
    assert_eq!(http::send(rig.envoy.addr(), request(&[])).await.unwrap().status, 503);
    let span = rig.span().await;
    expect(&span, &[("error.type", "reset"), ("http.response.status_code", "503")]);
    assert_eq!(status(&span), StatusCode::Error);

    rig.upstream.close().await;
    assert_eq!(http::send(rig.envoy.addr(), request(&[])).await.unwrap().status, 503);
    expect(&rig.span().await, &[("error.type", "connection_failure")]);
    rig.end().await;
}

#[tokio::test]
async fn envoys_own_answers_are_spans_too() {
    let rig = Rig::with(exporting(json!({"direction": "ingress"})), |mut config| {
        let hosts =
            config.http_connection_manager()["route_config"]["virtual_hosts"].as_array_mut();
        hosts.unwrap().push(json!({"name": "closed", "domains": ["closed.example"], "routes": [
            {"match": {"prefix": "/teapot"}, "direct_response": {"status": 418}},
            {"match": {"prefix": "/down"}, "direct_response": {"status": 503}}]}));
        config
    });
    let rig = rig.await;
    for (path, code, error) in [("/teapot", 418, ""), ("/down", 503, "503"), ("/nowhere", 404, "")]
    {
        let request = http::request("closed.example", "GET", path, "").unwrap();
        assert_eq!(http::send(rig.envoy.addr(), request).await.unwrap().status, code);
        let span = rig.span().await;
        let code = code.to_string();
        let expected = [("http.response.status_code", code.as_str()), ("url.path", path)];
        expect(&span, &expected);
        expect(&span, &[("error.type", error), ("http.request.resend_count", "")]);
    }
    assert_eq!(rig.upstream.requests(), 0);
    rig.end().await;
}

#[tokio::test]
async fn a_retry_is_counted_and_each_attempt_is_a_span_below_the_request_when_asked() {
    for per_attempt in [false, true] {
        let spans = if per_attempt { "per_attempt" } else { "per_request" };
        let mut refusing = Upstream::start("refusing").await.unwrap();
        let refused = refusing.addr();
        refusing.close().await;
        let working = Upstream::start("working").await.unwrap();
        let trace = exporting(json!({"direction": "egress", "spans": spans}));
        let both = [refused, working.addr()];
        let rig = Rig::with(trace, |config| config.static_hosts("orders", &both)).await;
        let mut retried = 0;
        for _ in 0..8 {
            rig.send(&[("traceparent", PARENT)]).await;
            let mut spans = Vec::new();
            assert_eventually!(SOON, {
                spans.extend(rig.resources().into_iter().flat_map(spans_of));
                !spans.is_empty()
            });
            let parent = spans.iter().position(|s| hex(&s.parent_span_id) == crate::support::SPAN);
            let request = spans.remove(parent.expect("the request's span"));
            let resent = attribute(&request.attributes, "http.request.resend_count");
            let port = working.addr().port().to_string();
            expect(&request, &[("network.peer.port", &port), ("error.type", "")]);
            let attempts = if resent.is_some() { 2 } else { 1 };
            if resent.is_some() {
                assert_eq!(resent.as_deref(), Some("1"));
                retried += 1;
            }
            assert_eq!(spans.len(), if per_attempt { attempts } else { 0 }, "{spans:#?}");
            for (at, attempt) in spans.iter().enumerate() {
                assert_eq!(attempt.parent_span_id, request.span_id);
                assert_eq!(
                    (attempt.trace_id.clone(), attempt.kind()),
                    (request.trace_id.clone(), SpanKind::Client)
                );
                let last = at + 1 == attempts;
                let (code, error) = if last { ("200", "") } else { ("", "retried") };
                expect(attempt, &[("http.response.status_code", code), ("error.type", error)]);
                expect(attempt, &[("network.peer.port", if last { &port } else { "" })]);
                expect(attempt, &[("http.request.resend_count", if at > 0 { "1" } else { "" })]);
            }
        }
        assert!(retried > 0, "round robin never began with the one that refuses");
        rig.end().await;
    }
}

#[tokio::test]
async fn the_resource_names_the_service_and_the_scope_the_module() {
    let mut trace = exporting(json!({}));
    trace["export"]["service_version"] = json!("1.2.3");
    trace["export"]["environment"] = json!("staging");
    trace["export"]["resource"] = json!({"k8s.pod.name": "edge-0"});
    trace["export"]["query"] = json!(true);
    let rig = Rig::start(trace).await;
    rig.send(&[]).await;
    let mut resources = Vec::new();
    assert_eventually!(SOON, {
        resources.extend(rig.resources());
        !resources.is_empty()
    });
    let attributes = resources[0].resource.clone().unwrap().attributes;
    for (key, value) in [
        ("service.name", "edge"),
        ("service.version", "1.2.3"),
        ("deployment.environment.name", "staging"),
        ("k8s.pod.name", "edge-0"),
    ] {
        assert_eq!(attribute(&attributes, key).as_deref(), Some(value), "{attributes:?}");
    }
    assert_eq!(resources[0].scope_spans[0].scope.clone().unwrap().name, "pintle");
    expect(&spans_of(resources.remove(0))[0], &[("url.query", "id=7")]);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_512_spans_or_what_came_in_a_second() {
    let mut trace = exporting(json!({}));
    trace["export"] = json!({"cluster": "otlp", "service_name": "edge"});
    let rig = Rig::start(trace).await;
    let began = Instant::now();
    rig.send(&[]).await;
    assert_eventually!(SOON, !rig.collector.calls().is_empty());
    let waited = rig.collector.drain()[0].at - began;
    let second = Duration::from_millis(900)..Duration::from_millis(2_500);
    assert!(second.contains(&waited), "a lonely span waits a second: {waited:?}");

    let sent = Load::to(rig.envoy.addr()).closed().connections(8).run_for_secs(2.0).await;
    assert_eq!(sent.failed(), 0, "{}", sent.summary());
    let mut sizes = Vec::new();
    assert_eventually!(SOON, {
        for call in rig.collector.drain() {
            sizes.push(decode(&call.path, &call.message).into_iter().flat_map(spans_of).count());
        }
        sizes.iter().sum::<usize>() == sent.total()
    });
    assert!(sizes.iter().all(|size| *size <= 512), "{sizes:?}");
    assert!(sent.total() < 3_000 || sizes.contains(&512), "{} in {sizes:?}", sent.total());
    assert_eq!(rig.counter("span_dropped").await, 0);
    // The collector has a call before Envoy has its answer.
    assert_eventually!(SOON, rig.counter("span_exported").await == sent.total() as u64 + 1);
    rig.end().await;
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}
