use pintle_contract::Now;

use super::*;
use crate::policy::{Rate, SlowCall};

/// What Envoy 1.40 was seen to report. `upstream` is whether there is an address.
struct Row {
    name: &'static str,
    report: Report<'static>,
    expect: Outcome,
}

const SUCCESS: Outcome = Outcome::Success { slow: false };
const SOFT: Outcome = Outcome::Soft { retry_after: None };

const fn failed(kind: FailureKind) -> Outcome {
    Outcome::Failure(kind)
}

/// A report of code, flags, details, and whether there is an upstream address.
const fn said(code: u16, flags: u64, details: &'static str, upstream: bool) -> Report<'static> {
    Report {
        code: if code == 0 { None } else { Some(code) },
        flags,
        head: false,
        connect: false,
        overdue: false,
        details: details.as_bytes(),
        upstream,
        grpc: None,
        took: None,
        retry_after: None,
    }
}

const fn grpc(status: u32) -> Report<'static> {
    Report { grpc: Some(status), ..said(200, 0, "via_upstream", true) }
}

/// The same after the head of the answer had come.
const fn head(code: u16, flags: u64, details: &'static str) -> Report<'static> {
    Report { head: true, ..said(code, flags, details, true) }
}

const fn overdue(report: Report<'static>) -> Report<'static> {
    Report { overdue: true, ..report }
}

const CLIENT: &str = "downstream_remote_disconnect";
const RESET: &str = "upstream_reset_before_response_started{connection_termination}";
const REMOTE_RESET: &str = "upstream_reset_before_response_started{remote_reset}";
const REFUSED: &str = "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}";
const CONNECT_TIMEOUT: &str = "upstream_reset_before_response_started{connection_timeout}";
const TLS: &str = "upstream_reset_before_response_started{remote_connection_failure|TLS_error:_certificate_verify_failed}";
const OVERFLOW: &str = "upstream_reset_before_response_started{overflow}";
const MID_BODY: &str = "upstream_reset_after_response_started{protocol_error}";
const MID_BODY_H2: &str = "upstream_reset_after_response_started{remote_reset}";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    // The table of what a real Envoy reported, in its order.
    Row { name: "200", report: said(200, 0, "via_upstream", true), expect: SUCCESS },
    Row { name: "500", report: said(500, 0, "via_upstream", true), expect: failed(FailureKind::Status(500)) },
    Row { name: "refused", report: said(503, 32, REFUSED, true), expect: failed(FailureKind::Connect) },
    Row { name: "connect timeout", report: said(503, 32, CONNECT_TIMEOUT, true), expect: failed(FailureKind::Timeout) },
    Row { name: "TLS failure", report: said(503, 32, TLS, true), expect: failed(FailureKind::Connect) },
    Row { name: "route timeout", report: said(504, 4, "response_timeout", true), expect: failed(FailureKind::Timeout) },
    Row { name: "per-try timeout", report: said(504, 4, "upstream_per_try_timeout", true), expect: failed(FailureKind::Timeout) },
    Row { name: "per-try timeout then ok", report: said(200, 0, "via_upstream", true), expect: SUCCESS },
    Row { name: "upstream close before response", report: said(503, 64, RESET, true), expect: failed(FailureKind::Reset) },
    Row { name: "upstream h2 reset before response", report: said(503, 16, REMOTE_RESET, true), expect: failed(FailureKind::Reset) },
    Row { name: "upstream dies mid body", report: head(200, 8_388_608, MID_BODY), expect: failed(FailureKind::Protocol) },
    Row { name: "upstream h2 reset mid body", report: head(200, 16, MID_BODY_H2), expect: failed(FailureKind::Reset) },
    Row { name: "client gone before response", report: said(0, 16_384, CLIENT, true), expect: Outcome::Ignored },
    Row { name: "client gone mid response", report: head(200, 16_384, CLIENT), expect: SUCCESS },
    Row { name: "h2 client reset", report: head(200, 268_435_456, "http2.remote_reset"), expect: SUCCESS },
    Row { name: "h2 client reset before response", report: said(0, 268_435_456, "http2.remote_reset", true), expect: Outcome::Ignored },
    Row { name: "gRPC 14 trailers-only", report: grpc(14), expect: failed(FailureKind::Grpc(14)) },
    Row { name: "gRPC 14 in trailers", report: grpc(14), expect: failed(FailureKind::Grpc(14)) },
    Row { name: "local reply by later filter", report: said(403, 0, "", false), expect: Outcome::Ignored },
    Row { name: "local 503 by later filter", report: said(503, 0, "", false), expect: Outcome::Ignored },
    Row { name: "our own reply to a gRPC client", report: Report { grpc: Some(14), ..said(200, 0, "", false) }, expect: Outcome::Ignored },
    Row { name: "no route", report: said(404, 256, "route_not_found", false), expect: Outcome::Ignored },
    Row { name: "no healthy upstream", report: said(503, 2, "no_healthy_upstream", false), expect: Outcome::Ignored },
    Row { name: "cluster breaker overflow", report: said(503, 128, OVERFLOW, false), expect: Outcome::Ignored },
    Row { name: "retry 503 -> 200", report: said(200, 0, "via_upstream", true), expect: SUCCESS },
    Row { name: "retries exhausted", report: said(503, 32_768, "via_upstream", true), expect: failed(FailureKind::Status(503)) },
    Row { name: "retries exhausted, refused", report: said(503, 32_768 | 32, REFUSED, true), expect: failed(FailureKind::Connect) },
    Row { name: "headers too large", report: said(431, 262_144, "http1.headers_too_large", false), expect: Outcome::Ignored },
    Row { name: "websocket, closed by the client", report: head(101, 16_384, CLIENT), expect: SUCCESS },
    Row { name: "websocket, closed by the endpoint", report: head(101, 64, "upstream_reset_after_response_started{connection_termination}"), expect: SUCCESS },
    Row { name: "websocket, its head unseen", report: said(101, 64, MID_BODY_H2, true), expect: SUCCESS },
    Row { name: "websocket, reset by the endpoint", report: head(101, 16, MID_BODY_H2), expect: SUCCESS },
    Row { name: "tunnel, closed by the endpoint", report: Report { connect: true, ..head(200, 64, RESET) }, expect: SUCCESS },
    Row { name: "tunnel refused", report: Report { connect: true, ..head(503, 0, "via_upstream") }, expect: failed(FailureKind::Status(503)) },
    Row { name: "client gone in the body of a 500", report: head(500, 16_384, CLIENT), expect: failed(FailureKind::Status(500)) },
    Row { name: "route timeout during the body", report: head(200, 4, "response_timeout"), expect: SUCCESS },
    Row { name: "idle during the body", report: head(200, 65_536, "stream_idle_timeout"), expect: SUCCESS },
    Row { name: "longest duration during the body", report: head(200, 524_288, ""), expect: SUCCESS },
    Row { name: "idle before the head", report: said(504, 65_536, "stream_idle_timeout", true), expect: failed(FailureKind::Timeout) },
    Row { name: "idle in the request", report: said(408, 65_536, "stream_idle_timeout", true), expect: Outcome::Ignored },
    Row { name: "idle in another filter", report: said(504, 65_536, "stream_idle_timeout", false), expect: Outcome::Ignored },
    Row { name: "longest duration before the head", report: said(504, 524_288, "", true), expect: failed(FailureKind::Timeout) },
    Row { name: "time-out that the client asked for", report: overdue(said(504, 4, "response_timeout", true)), expect: Outcome::Ignored },
    Row { name: "refused after the client's deadline", report: overdue(said(503, 32, REFUSED, true)), expect: failed(FailureKind::Connect) },
    Row { name: "from a cache", report: head(500, 1 << 20, ""), expect: Outcome::Ignored },
    // Attempts as the router's upstream log has them: without details, with flags of their own.
    Row { name: "attempt: 200", report: head(200, 0, ""), expect: SUCCESS },
    Row { name: "attempt: 503", report: head(503, 0, ""), expect: failed(FailureKind::Status(503)) },
    Row { name: "attempt: answered after its time", report: head(200, 4, ""), expect: SUCCESS },
    Row { name: "attempt: refused", report: said(0, 32, "", true), expect: failed(FailureKind::Connect) },
    Row { name: "attempt: closed", report: said(0, 64, "", true), expect: failed(FailureKind::Reset) },
    Row { name: "attempt: timed out", report: said(0, 4, "", true), expect: failed(FailureKind::Timeout) },
    Row { name: "attempt: outrun by another, or the client left", report: said(0, 0, "", true), expect: Outcome::Ignored },
    // Status codes.
    Row { name: "302", report: said(302, 0, "via_upstream", true), expect: SUCCESS },
    Row { name: "404", report: said(404, 0, "via_upstream", true), expect: SUCCESS },
    Row { name: "429", report: said(429, 0, "via_upstream", true), expect: SOFT },
    Row { name: "429 of our own rate limit", report: said(429, 2048, "local_rate_limited", false), expect: Outcome::Ignored },
    Row { name: "599", report: said(599, 0, "via_upstream", true), expect: failed(FailureKind::Status(599)) },
    Row { name: "no response at all", report: said(0, 0, "", false), expect: Outcome::Ignored },
    // gRPC statuses.
    Row { name: "OK", report: grpc(0), expect: SUCCESS },
    Row { name: "CANCELLED", report: grpc(1), expect: Outcome::Ignored },
    Row { name: "UNKNOWN", report: grpc(2), expect: failed(FailureKind::Grpc(2)) },
    Row { name: "INVALID_ARGUMENT", report: grpc(3), expect: SUCCESS },
    Row { name: "DEADLINE_EXCEEDED of the server", report: grpc(4), expect: failed(FailureKind::Grpc(4)) },
    Row { name: "DEADLINE_EXCEEDED at the client's own", report: overdue(grpc(4)), expect: Outcome::Ignored },
    Row { name: "INTERNAL after the client's deadline", report: overdue(grpc(13)), expect: failed(FailureKind::Grpc(13)) },
    Row { name: "504 at the client's own deadline", report: overdue(head(504, 0, "via_upstream")), expect: Outcome::Ignored },
    Row { name: "UNAVAILABLE, retries exhausted", report: Report { grpc: Some(14), ..said(200, 32_768, "via_upstream", true) }, expect: failed(FailureKind::Grpc(14)) },
    Row { name: "UNAVAILABLE after an injected delay", report: Report { grpc: Some(14), ..said(200, 512, "via_upstream", true) }, expect: failed(FailureKind::Grpc(14)) },
    Row { name: "NOT_FOUND", report: grpc(5), expect: SUCCESS },
    Row { name: "ALREADY_EXISTS", report: grpc(6), expect: SUCCESS },
    Row { name: "PERMISSION_DENIED", report: grpc(7), expect: SUCCESS },
    Row { name: "RESOURCE_EXHAUSTED", report: grpc(8), expect: SOFT },
    Row { name: "FAILED_PRECONDITION", report: grpc(9), expect: SUCCESS },
    Row { name: "ABORTED", report: grpc(10), expect: SUCCESS },
    Row { name: "OUT_OF_RANGE", report: grpc(11), expect: SUCCESS },
    Row { name: "UNIMPLEMENTED", report: grpc(12), expect: SUCCESS },
    Row { name: "INTERNAL", report: grpc(13), expect: failed(FailureKind::Grpc(13)) },
    Row { name: "UNAVAILABLE", report: grpc(14), expect: failed(FailureKind::Grpc(14)) },
    Row { name: "DATA_LOSS", report: grpc(15), expect: failed(FailureKind::Grpc(15)) },
    Row { name: "UNAUTHENTICATED", report: grpc(16), expect: SUCCESS },
    Row { name: "a status nobody knows", report: grpc(99), expect: SUCCESS },
    Row { name: "gRPC over a 503", report: Report { grpc: Some(14), ..said(503, 0, "via_upstream", true) }, expect: failed(FailureKind::Grpc(14)) },
    Row { name: "gRPC 5 over a bridge's 503", report: Report { grpc: Some(5), ..said(503, 0, "via_upstream", true) }, expect: SUCCESS },
    Row { name: "gRPC 8 over a 500", report: Report { grpc: Some(8), ..said(500, 0, "via_upstream", true) }, expect: SOFT },
    Row { name: "gRPC over a 404", report: Report { grpc: Some(12), ..said(404, 0, "via_upstream", true) }, expect: SUCCESS },
    Row { name: "gRPC local reply to a refused connection", report: Report { grpc: Some(14), ..said(200, 32, REFUSED, true) }, expect: failed(FailureKind::Connect) },
    Row { name: "gRPC, client's deadline", report: said(0, 268_435_456, "http2.remote_reset", true), expect: Outcome::Ignored },
];

#[test]
fn every_row_that_envoy_was_seen_to_report() {
    let policy = Policy::unconfigured();
    for Row { name, report, expect } in ROWS {
        assert_eq!(classify(report, &policy), *expect, "{name}: {report:?}");
    }
}

/// Leaving a value unread must never change the outcome where the documentation says it may be
/// left.
#[test]
fn values_that_are_not_asked_for_are_not_needed() {
    let policy = Policy::unconfigured();
    for Row { name, report, expect } in ROWS {
        let mut read = *report;
        if !report.asks_upstream() {
            read.upstream = false;
        }
        if !report.asks_details() && report.code.is_none() {
            read.details = b"";
        }
        if !report.asks_grpc() {
            read.grpc = None;
        }
        assert_eq!(classify(&read, &policy), *expect, "{name}");
    }
}

#[test]
fn a_plain_success_asks_for_nothing_more() {
    let report = said(200, 0, "", false);
    assert!(!report.asks_upstream() && !report.asks_details());
    assert_eq!(classify(&report, &Policy::unconfigured()), SUCCESS);
}

/// After a head of 200 only the endpoint itself can still fail.
#[test]
fn every_flag_of_envoy_is_decided_after_the_head() {
    let cut = flag::TRANSPORT;
    for bit in 0..31 {
        let flags = 1 << bit;
        let outcome = classify(&head(200, flags, ""), &Policy::unconfigured());
        let expect = match flags {
            flag::FROM_CACHE => Outcome::Ignored,
            _ if cut & flags != 0 => outcome,
            _ => SUCCESS,
        };
        assert_eq!(outcome, expect, "flag {bit}");
        assert_eq!(matches!(outcome, Outcome::Failure(_)), cut & flags != 0, "flag {bit}");
    }
}

/// Every flag alone, on a 503 that came from upstream: the client's, ours, the transport's, or
/// none.
#[test]
fn every_flag_of_envoy_is_decided() {
    let by_code = failed(FailureKind::Status(503));
    let ours = Outcome::Ignored;
    let expect = [
        ours,                          // LH
        ours,                          // UH
        failed(FailureKind::Timeout),  // UT
        failed(FailureKind::Reset),    // LR
        failed(FailureKind::Reset),    // UR
        failed(FailureKind::Connect),  // UF
        failed(FailureKind::Reset),    // UC
        ours,                          // UO
        ours,                          // NR
        by_code,                       // DI
        ours,                          // FI
        ours,                          // RL
        ours,                          // UAEX
        ours,                          // RLSE
        ours,                          // DC
        by_code,                       // URX
        failed(FailureKind::Timeout),  // SI
        ours,                          // IH
        ours,                          // DPE
        failed(FailureKind::Timeout),  // UMSDR
        ours,                          // RFCF
        ours,                          // NFCF
        ours,                          // DT
        failed(FailureKind::Protocol), // UPE
        ours,                          // NC
        ours,                          // OM
        ours,                          // DF
        ours,                          // DO
        ours,                          // DR
        ours,                          // UDO
        by_code,                       // one that Envoy does not have yet
    ];
    for (bit, expect) in expect.into_iter().enumerate() {
        let report = said(503, 1 << bit, "", true);
        assert_eq!(classify(&report, &Policy::unconfigured()), expect, "flag {bit}");
    }
}

#[test]
fn the_set_of_failure_codes_is_the_operators() {
    let policy: Policy =
        pintle_settings::read("", serde_json::json!({"failure_codes": [404, "502-503", 429]}))
            .unwrap();
    for (code, expect) in [
        (404, failed(FailureKind::Status(404))),
        (429, failed(FailureKind::Status(429))),
        (500, SUCCESS),
        (502, failed(FailureKind::Status(502))),
        (504, SUCCESS),
    ] {
        assert_eq!(classify(&said(code, 0, "via_upstream", true), &policy), expect, "{code}");
    }
}

#[test]
fn slow_is_at_or_above_the_threshold_and_only_where_asked() {
    let rate = Rate { percent: 50, min_requests: 10 };
    let slow_call = Some(SlowCall { threshold: Duration::from_secs(1), rate });
    for (slow_call, millis, slow) in
        [(slow_call, 999, false), (slow_call, 1000, true), (None, 9999, false)]
    {
        let policy = Policy { slow_call, ..Policy::unconfigured() };
        let report = Report { took: Some(Duration::from_millis(millis)), ..said(200, 0, "", true) };
        assert_eq!(classify(&report, &policy), Outcome::Success { slow }, "{millis} ms");
    }
}

#[test]
fn the_retry_after_of_a_soft_refusal_is_handed_on_up_to_the_policys_limit() {
    let policy = Policy { retry_after: Duration::from_secs(30), ..Policy::unconfigured() };
    for (asked, kept) in [(7, 7), (86_400, 30)].map(|(a, k)| (Some(a), Some(k))) {
        let [asked, retry_after] = [asked, kept].map(|s| s.map(Duration::from_secs));
        for report in [said(429, 0, "via_upstream", true), grpc(8)] {
            let report = Report { retry_after: asked, ..report };
            assert_eq!(classify(&report, &policy), Outcome::Soft { retry_after });
        }
    }
}

#[test]
fn retry_after_in_seconds_or_as_a_date() {
    // 1994-11-06T08:49:37Z, the example of RFC 9110.
    let now = Now(784_111_777 * 1_000_000_000);
    for (value, expect) in [
        ("120", Some(120)),
        (" 0 ", Some(0)),
        ("99999999999999999999999999", Some(u64::from(u32::MAX))),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
        ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600 - 784_111_777)),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 CET", None),
        ("Sun, 06 Foo 1994 08:49:37 GMT", None),
        ("Sun, 00 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1969 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:49:37 GMT", None),
        ("Sunday, 06-Nov-94 08:49:37 GMT", None),
    ] {
        let expect = expect.map(Duration::from_secs);
        assert_eq!(parse_retry_after(value.as_bytes(), now), expect, "{value:?}");
    }
}

#[test]
fn a_clients_deadline_as_grpc_and_as_envoy_writes_it() {
    for (value, expect) in [
        ("30m", Some(30_000)),
        ("1S", Some(1_000_000)),
        ("2M", Some(120_000_000)),
        ("1H", Some(3_600_000_000)),
        ("250u", Some(250)),
        ("99999999n", Some(99_999)),
        ("0m", Some(0)),
        ("", None),
        ("m", None),
        ("30", None),
        ("-1m", None),
        ("999999999m", None),
        ("3 0m", None),
    ] {
        let found = parse_grpc_timeout(value.as_bytes()).map(|d| d.as_micros());
        assert_eq!(found, expect, "{value:?}");
    }
    for (value, expect) in [("30", Some(30)), ("0", None), ("", None), ("3s", None)] {
        let found = parse_timeout_ms(value.as_bytes()).map(|d| d.as_millis());
        assert_eq!(found, expect, "{value:?}");
    }
}

#[test]
fn a_deadline_counts_as_passed_from_nine_tenths_on() {
    let ms = Duration::from_millis;
    for (deadline, lasted, expect) in
        [(Some(30), 26, false), (Some(30), 27, true), (Some(30), 100, true), (None, 100, false)]
    {
        assert_eq!(super::overdue(deadline.map(ms), ms(lasted)), expect, "{deadline:?} {lasted}");
    }
}

proptest::proptest! {
    #[test]
    fn nothing_that_is_reported_traps(
        code: Option<u16>, flags: u64, details: Vec<u8>, upstream: bool,
        grpc: Option<u32>, header: Vec<u8>, now: u64, head: bool, connect: bool,
        overdue: bool,
    ) {
        let retry_after = parse_retry_after(&header, Now(now));
        let report = Report {
            code, flags, head, connect, overdue, details: &details, upstream,
            grpc, took: None, retry_after,
        };
        let outcome = classify(&report, &Policy::unconfigured());
        // Whatever else is reported, a client that left before the head charges nobody.
        let left = Report { flags: flags | flag::CLIENT_GONE, head: false, ..report };
        let left = classify(&left, &Policy::unconfigured());
        proptest::prop_assert_eq!(left, Outcome::Ignored);
        proptest::prop_assert!(outcome == Outcome::Ignored || upstream
            || report.flags & (flag::TRANSPORT | flag::UPSTREAM_TIMEOUT) != 0
            || code.is_some_and(|code| code < 400) || details.starts_with(b"upstream_reset_")
            || head);
    }

    #[test]
    fn no_date_traps(text in "[A-Za-z]{3}, [0-9]{2} (Jan|Feb|Mar|Dec) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT") {
        let _ = parse_retry_after(text.as_bytes(), Now(0));
    }
}
