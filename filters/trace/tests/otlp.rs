//! Spans as a receiver sees them that we did not write the encoder for: everything is decoded by
//! the published OpenTelemetry protos.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{config, policy};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1 as proto;
use pintle_contract::Now;
use pintle_trace::{
    Answer, Attempt, Context, Decision, Edits, Exporter, Link, Outcome, Span, propagate,
};
use proptest::prelude::*;
use prost::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;

const INGRESS: &str = r#"{"export": {"cluster": "otel", "service_name": "cart",
    "service_version": "1.2.3", "environment": "staging", "resource": {"host.name": "a"},
    "batch": 1}}"#;
const EGRESS: &str = r#"{"direction": "egress", "export": {"cluster": "otel", "service_name": "cart",
    "batch": 1, "query": true}}"#;
const VALID: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn context(json: &str, policy_json: &str, headers: &[(&[u8], &[u8])]) -> Context {
    let mut rng = StdRng::seed_from_u64(1);
    let mut edits = Edits::new();
    propagate(&config(json), &policy(policy_json), headers.iter().copied(), &mut rng, &mut edits)
}

fn span(context: &Context) -> Span<'_> {
    Span {
        context,
        start: Now(1_700_000_000_000_000_000),
        end: Now(1_700_000_000_250_000_000),
        method: b"GET",
        path: b"/users/42?token=secret",
        scheme: b"https",
        authority: b"users.example:8443",
        client: b"192.0.2.7:50123",
        upstream: b"10.0.0.2:8080",
        status: Some(200),
        grpc_status: None,
        error: None,
        user_agent: b"curl/8.5",
        tracestate: b"",
        resend_count: 0,
        decision: Decision::default(),
        attempts: &[],
    }
}

/// What the collector decodes of one request's spans.
fn decode(json: &str, spans: &[Span<'_>]) -> ExportTraceServiceRequest {
    let mut exporter = Exporter::new(&config(json), 1).unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    for span in spans {
        assert!(exporter.push(span, &mut rng, Now(0)));
    }
    let bytes = exporter.poll(Now(u64::MAX)).unwrap();
    ExportTraceServiceRequest::decode(bytes).unwrap()
}

fn spans(request: ExportTraceServiceRequest) -> Vec<proto::Span> {
    let [resource] = <[_; 1]>::try_from(request.resource_spans).unwrap();
    let [scope] = <[_; 1]>::try_from(resource.scope_spans).unwrap();
    scope.spans
}

fn one(json: &str, span: &Span<'_>) -> proto::Span {
    spans(decode(json, std::slice::from_ref(span))).remove(0)
}

fn attributes(list: &[KeyValue]) -> BTreeMap<&str, String> {
    let map: BTreeMap<_, _> = list
        .iter()
        .map(|pair| {
            let value = match pair.value.as_ref().unwrap().value.as_ref().unwrap() {
                Value::StringValue(text) => text.clone(),
                Value::IntValue(n) => format!("int {n}"),
                Value::ArrayValue(list) => list
                    .values
                    .iter()
                    .map(|v| match v.value.as_ref().unwrap() {
                        Value::StringValue(text) => text.as_str(),
                        other => panic!("{other:?}"),
                    })
                    .collect::<Vec<_>>()
                    .join(" "),
                other => panic!("{other:?}"),
            };
            (&*pair.key, value)
        })
        .collect();
    assert_eq!(map.len(), list.len(), "a key came twice: {list:?}");
    map
}

fn expect(list: &[KeyValue], expected: &[(&str, &str)]) {
    let expected: BTreeMap<_, _> = expected.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
    assert_eq!(attributes(list), expected);
}

#[test]
fn a_call_has_its_grpc_status_and_is_an_error_by_the_conventions_of_its_side() {
    // Status, its name, and whether a server's span and a client's are errors.
    let rows = [
        (0, "OK", false, false),
        (1, "CANCELLED", false, true),
        (2, "UNKNOWN", true, true),
        (4, "DEADLINE_EXCEEDED", true, true),
        (5, "NOT_FOUND", false, true),
        (8, "RESOURCE_EXHAUSTED", false, true),
        (12, "UNIMPLEMENTED", true, true),
        (13, "INTERNAL", true, true),
        (14, "UNAVAILABLE", true, true),
        (15, "DATA_LOSS", true, true),
        (16, "UNAUTHENTICATED", false, true),
        (99, "UNKNOWN", true, true),
    ];
    for (status, name, server, client) in rows {
        for (json, error) in [(INGRESS, server), (EGRESS, client)] {
            let context = context(json, "{}", &[(b"traceparent", VALID)]);
            let span = one(json, &Span { grpc_status: Some(status), ..span(&context) });
            let attributes = attributes(&span.attributes);
            let is = |key: &str| attributes.get(key).map(String::as_str);
            assert_eq!(is("rpc.system.name"), Some("grpc"));
            assert_eq!(is("rpc.response.status_code"), Some(name));
            assert_eq!(is("rpc.grpc.status_code"), Some(&*format!("int {status}")));
            assert_eq!(is("error.type"), error.then_some(name), "{status} {json}");
            let told = span.status.is_some_and(|told| told.code == 2);
            assert_eq!(told, error, "{status} {json}");
        }
    }
}

#[test]
fn a_server_span_has_the_stable_conventions_names_and_values() {
    let context = context(INGRESS, "{}", &[(b"traceparent", VALID)]);
    let span = one(INGRESS, &span(&context));
    assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(span.span_id, context.span_id);
    assert_eq!((&*span.name, span.kind()), ("GET", proto::span::SpanKind::Server));
    assert_eq!(span.start_time_unix_nano, 1_700_000_000_000_000_000);
    assert_eq!(span.end_time_unix_nano, 1_700_000_000_250_000_000);
    assert_eq!((span.status, span.flags), (None, 0x301));
    expect(
        &span.attributes,
        &[
            ("http.request.method", "GET"),
            ("url.scheme", "https"),
            ("url.path", "/users/42"),
            ("server.address", "users.example"),
            ("server.port", "int 8443"),
            ("user_agent.original", "curl/8.5"),
            ("client.address", "192.0.2.7"),
            ("network.peer.address", "192.0.2.7"),
            ("network.peer.port", "int 50123"),
            ("http.response.status_code", "int 200"),
        ],
    );
}

#[test]
fn a_client_span_names_the_upstream_as_its_peer_and_has_the_full_url() {
    let context = context(EGRESS, "{}", &[(b"traceparent", VALID)]);
    let span = one(EGRESS, &Span { resend_count: 2, ..span(&context) });
    assert_eq!(span.kind(), proto::span::SpanKind::Client);
    expect(
        &span.attributes,
        &[
            ("http.request.method", "GET"),
            ("url.scheme", "https"),
            ("url.path", "/users/42"),
            ("url.query", "token=secret"),
            ("url.full", "https://users.example:8443/users/42?token=secret"),
            ("server.address", "users.example"),
            ("server.port", "int 8443"),
            ("user_agent.original", "curl/8.5"),
            ("network.peer.address", "10.0.0.2"),
            ("network.peer.port", "int 8080"),
            ("http.request.resend_count", "int 2"),
            ("http.response.status_code", "int 200"),
        ],
    );
}

#[test]
fn resource_and_scope_are_on_every_batch() {
    let context = context(INGRESS, "{}", &[]);
    let request = decode(INGRESS, &[span(&context)]);
    let resource = &request.resource_spans[0];
    expect(
        &resource.resource.as_ref().unwrap().attributes,
        &[
            ("service.name", "cart"),
            ("service.version", "1.2.3"),
            ("deployment.environment.name", "staging"),
            ("host.name", "a"),
        ],
    );
    assert_eq!(resource.scope_spans[0].scope.as_ref().unwrap().name, "pintle");
}

#[test]
fn a_server_span_is_an_error_from_500_on_and_a_client_span_from_400_on() {
    use proto::status::StatusCode::{Error, Unset};
    for (json, status, error, code, error_type) in [
        (INGRESS, Some(399), None, Unset, None),
        (INGRESS, Some(404), None, Unset, None),
        (INGRESS, Some(499), None, Unset, None),
        (INGRESS, Some(500), None, Error, Some("500")),
        (INGRESS, Some(503), Some(&b"connection_failure"[..]), Error, Some("connection_failure")),
        (INGRESS, None, Some(b"client_disconnect"), Error, Some("client_disconnect")),
        (INGRESS, None, None, Unset, None),
        (EGRESS, Some(399), None, Unset, None),
        (EGRESS, Some(400), None, Error, Some("400")),
        (EGRESS, Some(500), None, Error, Some("500")),
        (EGRESS, Some(200), Some(b"14"), Error, Some("14")),
    ] {
        let context = context(json, "{}", &[]);
        let span = one(json, &Span { status, error, ..span(&context) });
        let got = span.status.clone().unwrap_or_default().code();
        let attributes = attributes(&span.attributes);
        let row = format!("{json} {status:?}");
        assert_eq!(got, code, "{row}");
        assert_eq!(attributes.get("error.type").map(String::as_str), error_type, "{row}");
    }
}

#[test]
fn methods_outside_the_standard_nine_are_other() {
    let context = context(INGRESS, "{}", &[]);
    let span = one(INGRESS, &Span { method: b"PURGE", ..span(&context) });
    let attributes = attributes(&span.attributes);
    assert_eq!(span.name, "HTTP");
    assert_eq!(attributes["http.request.method"], "_OTHER");
    assert_eq!(attributes["http.request.method_original"], "PURGE");
}

#[test]
fn the_decision_is_on_the_span() {
    let context = context(INGRESS, "{}", &[]);
    let attempts = [
        Attempt { endpoint: b"10.0.0.1:80", status: Some(503), ..Attempt::default() },
        Attempt { endpoint: b"10.0.0.2:80", error: Some(b"timeout"), ..Attempt::default() },
        Attempt { endpoint: b"10.0.0.3:80", ..Attempt::default() },
    ];
    let decision = Decision {
        service: b"users",
        strategy: "p2c",
        candidates: Some(10),
        endpoint: b"10.0.0.1:80",
        breaker: "half-open",
        version: Some((3, 1_000_000)),
        age: Some(Duration::from_millis(1234)),
        outcome: Outcome::Panic,
        reason: "fewer than 50 % eligible",
    };
    let span = one(INGRESS, &Span { decision, attempts: &attempts, ..span(&context) });
    let all = attributes(&span.attributes);
    let ours: Vec<_> = all.iter().filter(|(key, _)| key.starts_with("pintle.")).collect();
    let expected = [
        ("pintle.attempts", "10.0.0.1:80=503 10.0.0.2:80=timeout 10.0.0.3:80"),
        ("pintle.breaker.state", "half-open"),
        ("pintle.candidates", "int 10"),
        ("pintle.endpoint", "10.0.0.1:80"),
        ("pintle.outcome", "panic"),
        ("pintle.reason", "fewer than 50 % eligible"),
        ("pintle.service", "users"),
        ("pintle.snapshot.age_ms", "int 1234"),
        ("pintle.snapshot.version", "3.1000000"),
        ("pintle.strategy", "p2c"),
    ];
    let got: Vec<_> = ours.iter().map(|(k, v)| (**k, v.as_str())).collect();
    assert_eq!(got, expected);
}

#[test]
fn each_attempt_is_a_client_span_below_the_request_when_asked() {
    let context = context(INGRESS, r#"{"spans": "per_attempt"}"#, &[(b"traceparent", VALID)]);
    let attempts = [
        Attempt { endpoint: b"10.0.0.1:80", status: Some(503), ..Attempt::default() },
        Attempt {
            endpoint: b"[2001:db8::1]:80",
            status: Some(200),
            times: Some((Now(1_700_000_000_100_000_000), Now(1_700_000_000_200_000_000))),
            ..Attempt::default()
        },
    ];
    let all = spans(decode(
        INGRESS.replace("\"batch\": 1", "\"batch\": 9").as_str(),
        &[Span { attempts: &attempts, ..span(&context) }],
    ));
    let [request, first, second] = <[_; 3]>::try_from(all).unwrap();
    for child in [&first, &second] {
        assert_eq!(child.trace_id, request.trace_id);
        assert_eq!(child.parent_span_id, request.span_id);
        assert_eq!(child.kind(), proto::span::SpanKind::Client);
        assert_eq!(child.flags, 0x101, "the parent is not remote");
    }
    assert_ne!(first.span_id, second.span_id);
    assert_eq!(first.status.unwrap().code(), proto::status::StatusCode::Error);
    assert_eq!(first.start_time_unix_nano, request.start_time_unix_nano);
    assert_eq!(second.start_time_unix_nano, 1_700_000_000_100_000_000);
    let attributes = attributes(&second.attributes);
    assert_eq!(attributes["server.address"], "2001:db8::1");
    assert_eq!(attributes["http.request.resend_count"], "int 1");
}

#[test]
fn a_restarted_trace_links_to_the_one_before() {
    let json = INGRESS.replacen('{', r#"{"boundary": "restart","#, 1);
    let context = context(&json, "{}", &[(b"traceparent", VALID)]);
    let span = one(&json, &span(&context));
    assert_eq!((span.parent_span_id.len(), span.flags), (0, 0x103));
    assert_eq!(span.links.len(), 1);
    assert_eq!(span.links[0].span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(
        span.links[0].trace_id,
        0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes()
    );
}

#[test]
fn what_is_not_sampled_or_not_wanted_is_not_queued() {
    let mut exporter = Exporter::new(&config(INGRESS), 1).unwrap();
    for policy in [r#"{"ratio": 0}"#, r#"{"spans": "off"}"#] {
        let context = context(INGRESS, policy, &[]);
        assert!(!context.is_recorded());
        assert!(exporter.push(&span(&context), &mut StdRng::seed_from_u64(1), Now(0)));
    }
    assert_eq!((exporter.waiting(), exporter.poll(Now(u64::MAX))), (0, None));
    assert!(Exporter::new(&config("{}"), 1).is_none());
}

#[test]
fn strings_are_cut_at_a_characters_border_and_made_utf8() {
    let context = context(INGRESS, "{}", &[]);
    let long = "/".to_owned() + &"ä".repeat(1000);
    let span = one(
        INGRESS,
        &Span { path: long.as_bytes(), user_agent: b"a\xff\xfeb\xc3", ..span(&context) },
    );
    let attributes = attributes(&span.attributes);
    assert_eq!(attributes["url.path"], "/".to_owned() + &"ä".repeat(511));
    assert_eq!(attributes["user_agent.original"], "a\u{fffd}\u{fffd}b\u{fffd}");
}

#[test]
fn malformed_bytes_do_not_grow_beyond_the_bound() {
    let context = context(EGRESS, "{}", &[]);
    let agent = [b"aa".as_slice(), &[0xff; 300]].concat();
    // A character of four bytes that begins within the bound and ends behind it.
    let error = [&[b'e'; 255][..], "\u{10348}".as_bytes()].concat();
    let span = one(EGRESS, &Span { user_agent: &agent, error: Some(&error), ..span(&context) });
    let attributes = attributes(&span.attributes);
    assert_eq!(attributes["user_agent.original"], "aa".to_owned() + &"\u{fffd}".repeat(84));
    assert_eq!(attributes["error.type"], "e".repeat(255));
}

/// Everything at its longest, of bytes that take three each as UTF-8.
#[test]
fn a_span_is_at_most_16_kib() {
    for junk in [[0xff; 4096], [b'a'; 4096]] {
        let query = [&junk[..], b"?", &junk].concat();
        let attempt =
            Attempt { endpoint: &junk, status: Some(503), error: Some(&junk), times: None };
        let attempts = vec![attempt; 20];
        let mut context = context(EGRESS, "{}", &[(b"traceparent", VALID)]);
        context.link = Some(Link { trace_id: [1; 16], span_id: [1; 8], sampled: true });
        let span = Span {
            method: &junk,
            path: &query,
            scheme: &junk,
            authority: &junk,
            client: &junk,
            upstream: &junk,
            status: Some(503),
            error: Some(&junk),
            user_agent: &junk,
            tracestate: &junk,
            resend_count: u32::MAX,
            attempts: &attempts,
            decision: Decision {
                service: &junk,
                strategy: "weighted_round_robin",
                candidates: Some(u32::MAX),
                endpoint: &junk,
                breaker: "half-open",
                version: Some((u64::MAX, u64::MAX)),
                age: Some(Duration::MAX),
                outcome: Outcome::LocalReply,
                reason: "no_endpoints",
            },
            ..span(&context)
        };
        let size = one(EGRESS, &span).encoded_len();
        assert!((14 * 1024..=16 * 1024).contains(&size), "{size}");
    }
}

#[test]
fn a_clock_that_stepped_back_makes_a_span_of_no_length() {
    let context = context(INGRESS, "{}", &[]);
    let span = one(INGRESS, &Span { end: Now(5), ..span(&context) });
    assert_eq!(span.end_time_unix_nano, span.start_time_unix_nano);
}

#[test]
fn a_partial_success_is_understood() {
    for rejected in [0, 1, 7, 1_000_000, -1] {
        let partial_success = Some(ExportTracePartialSuccess {
            rejected_spans: rejected,
            error_message: "too old".into(),
        });
        let bytes = ExportTraceServiceResponse { partial_success }.encode_to_vec();
        let expect = u64::try_from(rejected).unwrap_or(0);
        assert_eq!(Answer::from_grpc(0, &bytes), Answer::Accepted { rejected: expect });
    }
    assert_eq!(Answer::from_grpc(0, b""), Answer::Accepted { rejected: 0 });
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        proptest::collection::vec(any::<u8>(), 1500..1600),
        "[a-z:?@/\\[\\]0-9]{0,30}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn any_bytes_make_a_span_that_decodes_and_is_bounded(
        texts in proptest::array::uniform9(text()),
        status in any::<Option<u16>>(),
        resend_count in any::<u32>(),
        times in any::<(u64, u64)>(),
        attempts in 0_usize..40,
        egress in any::<bool>(),
    ) {
        let json = if egress { EGRESS } else { INGRESS };
        let json = json.replace("\"batch\": 1", "\"batch\": 64");
        let context = context(&json, r#"{"spans": "per_attempt"}"#, &[]);
        let [method, path, scheme, authority, client, upstream, error, agent, state] = &texts;
        let attempts = vec![
            Attempt { endpoint: upstream, status, error: Some(error), times: None };
            attempts
        ];
        let span = Span {
            start: Now(times.0),
            end: Now(times.1),
            method,
            path,
            scheme,
            authority,
            client,
            upstream,
            status,
            error: Some(error),
            user_agent: agent,
            tracestate: state,
            resend_count,
            attempts: &attempts,
            decision: Decision { service: path, endpoint: client, ..Decision::default() },
            ..span(&context)
        };
        let spans = spans(decode(&json, &[span]));
        prop_assert_eq!(spans.len(), 1 + attempts.len().min(16));
        for span in spans {
            prop_assert!(span.encoded_len() <= 16 * 1024, "{}", span.encoded_len());
        }
    }

    #[test]
    fn any_response_is_answered(status in any::<u32>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Answer::from_grpc(status, &bytes);
        let _ = Answer::from_grpc(0, &bytes);
    }
}
