//! W3C Trace Context and Baggage as the upstream receives them.

use pintle_tests::{Upstream, http};
use serde_json::json;

use crate::support::{PARENT, Rig, SPAN, Sent, TRACE, exporting, hex};

#[tokio::test]
async fn a_context_goes_through_on_both_sides_and_is_ours_exactly_when_spans_are_exported() {
    for direction in ["ingress", "egress"] {
        let rig = Rig::start(json!({"direction": direction})).await;
        let sent = rig.sent(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]).await;
        assert_eq!(sent.one("traceparent").as_deref(), Some(PARENT), "{direction}");
        assert_eq!(sent.one("tracestate").as_deref(), Some("a=1,b=2"), "{direction}");
        let (trace, _, flags) = rig.sent(&[]).await.parent();
        assert_ne!(trace, TRACE, "{direction}");
        assert_eq!(flags, 3, "{direction}: a new trace is sampled, and its id is random");
        rig.end().await;

        let rig = Rig::start(exporting(json!({"direction": direction}))).await;
        let sent = rig.sent(&[("traceparent", PARENT), ("tracestate", "a=1,b=2")]).await;
        let (trace, span, flags) = sent.parent();
        assert_eq!((trace.as_str(), flags), (TRACE, 1), "{direction}");
        assert_ne!(span, SPAN, "{direction}: the proxy is a span of its own");
        assert_eq!(sent.one("tracestate").as_deref(), Some("a=1,b=2"), "{direction}");
        let exported = rig.span().await;
        assert_eq!(hex(&exported.trace_id), TRACE);
        assert_eq!(hex(&exported.parent_span_id), SPAN);
        assert_eq!(hex(&exported.span_id), span, "the upstream's parent is the span");
        let (trace, span, _) = rig.sent(&[]).await.parent();
        let exported = rig.span().await;
        assert_eq!((hex(&exported.trace_id), hex(&exported.span_id)), (trace, span));
        assert!(exported.parent_span_id.is_empty(), "a root has no parent");
        rig.end().await;
    }
}

#[tokio::test]
async fn through_two_proxies_the_client_span_is_the_parent_of_the_server_span() {
    let ingress = Rig::start(exporting(json!({"direction": "ingress"}))).await;
    let behind = ingress.envoy.addr();
    let egress = Rig::with(exporting(json!({"direction": "egress"})), |config| {
        config.static_hosts("orders", &[behind])
    });
    let egress = egress.await;
    let (trace, parent, _) = egress.sent(&[("traceparent", PARENT)]).await.parent();
    let (client, server) = (egress.span().await, ingress.span().await);
    assert_eq!((trace.as_str(), hex(&client.trace_id).as_str()), (TRACE, TRACE));
    assert_eq!(hex(&client.parent_span_id), SPAN);
    assert_eq!(hex(&server.parent_span_id), hex(&client.span_id));
    assert_eq!(parent, hex(&server.span_id));
    egress.end().await;
    ingress.end().await;
}

/// What becomes of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trace {
    /// It goes on, with these flags.
    On(u8),
    /// Another one begins.
    New,
}

/// Headers, what becomes of the trace, and the `tracestate` that goes on.
type Row = (&'static str, &'static [(&'static str, &'static str)], Trace, Option<&'static str>);

const ROWS: &[Row] = &[
    ("valid", &[("traceparent", PARENT)], Trace::On(1), None),
    (
        "not sampled",
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")],
        Trace::On(0),
        None,
    ),
    (
        "random flag kept",
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03")],
        Trace::On(3),
        None,
    ),
    (
        "unknown flags become zero",
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-fd")],
        Trace::On(1),
        None,
    ),
    (
        "a future version is read as far as known and answered as 00",
        &[
            ("traceparent", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the"),
            ("tracestate", "a=1"),
        ],
        Trace::On(1),
        Some("a=1"),
    ),
    (
        "a future version whose flags do not end",
        &[("traceparent", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-011")],
        Trace::New,
        None,
    ),
    (
        "version ff",
        &[
            ("traceparent", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=1"),
        ],
        Trace::New,
        None,
    ),
    (
        "version 00 with more behind it",
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x")],
        Trace::New,
        None,
    ),
    (
        "all-zero trace id",
        &[
            ("traceparent", "00-00000000000000000000000000000000-b7ad6b7169203331-01"),
            ("tracestate", "a=1"),
        ],
        Trace::New,
        None,
    ),
    (
        "all-zero parent id",
        &[("traceparent", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01")],
        Trace::New,
        None,
    ),
    (
        "upper case",
        &[("traceparent", "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01")],
        Trace::New,
        None,
    ),
    ("empty", &[("traceparent", ""), ("tracestate", "a=1")], Trace::New, None),
    (
        "duplicated, though equal",
        &[("traceparent", PARENT), ("traceparent", PARENT), ("tracestate", "a=1")],
        Trace::New,
        None,
    ),
    ("tracestate alone", &[("tracestate", "a=1")], Trace::New, None),
    (
        "several tracestate headers",
        &[
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", "b=2,c=3"),
            ("tracestate", "d=4"),
        ],
        Trace::On(1),
        Some("a=1,b=2,c=3,d=4"),
    ),
    (
        "an empty tracestate header among others",
        &[
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", ""),
            ("tracestate", "b=2"),
        ],
        Trace::On(1),
        Some("a=1,b=2"),
    ),
    ("an empty tracestate", &[("traceparent", PARENT), ("tracestate", "")], Trace::On(1), None),
    (
        "a malformed member drops the list and not the trace",
        &[("traceparent", PARENT), ("tracestate", "a=1,B=2")],
        Trace::On(1),
        None,
    ),
    (
        "the left-most of a repeated key",
        &[("traceparent", PARENT), ("tracestate", "a=1,b=2,a=3")],
        Trace::On(1),
        Some("a=1,b=2"),
    ),
];

#[tokio::test]
async fn each_rule_of_trace_context_holds_on_the_wire() {
    let sides = ["ingress", "egress"].map(|side| json!({"direction": side}));
    let [ingress, egress] = sides;
    let silent = json!({"participate": true});
    // Of traces that are not sampled an exporter has no spans; who is told to take part does all
    // the same.
    let (exporters, always) = ([exporting(ingress), exporting(egress)], silent.clone());
    for trace in exporters.into_iter().chain([silent]) {
        let stands_by = trace != always;
        let rig = Rig::start(trace).await;
        for (what, headers, becomes, tracestate) in ROWS {
            // Twice, each on a connection of its own: both workers are to see it.
            for _ in 0..2 {
                let sent = rig.sent(headers).await;
                let (trace, span, flags) = sent.parent();
                let found = if trace == TRACE { Trace::On(flags) } else { Trace::New };
                assert_eq!(found, *becomes, "{what}: {:?}", sent.one("traceparent"));
                let unsampled = matches!(becomes, Trace::On(flags) if flags & 1 == 0);
                assert_eq!(span == SPAN, stands_by && unsampled, "{what}");
                assert_eq!(sent.one("tracestate").as_deref(), *tracestate, "{what}");
            }
        }
        rig.end().await;
    }
}

#[tokio::test]
async fn a_forwarding_proxy_changes_nothing_of_a_valid_context() {
    let rig = Rig::start(json!({})).await;
    let future = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff-more";
    let headers = [("traceparent", future), ("tracestate", "a=1"), ("tracestate", " b=2")];
    let sent = rig.sent(&headers).await;
    assert_eq!(sent.one("traceparent").as_deref(), Some(future));
    assert_eq!(sent.all("tracestate"), ["a=1", "b=2"], "two headers stay two");
    // What is not valid is no context to forward.
    let sent = rig.sent(&[("traceparent", "garbage"), ("tracestate", "a=1")]).await;
    assert_ne!(sent.parent().0, TRACE);
    assert_eq!(sent.one("tracestate"), None);
    rig.end().await;
}

#[tokio::test]
async fn names_count_in_any_case_and_white_space_around_values_does_not() {
    let rig = Rig::start(exporting(json!({}))).await;
    let head = format!(
        "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\
         TraceParent: \t {PARENT} \t\r\nTRACESTATE:  a=1 , b=2\t\r\nBaggage: k = v ;p\r\n\r\n"
    );
    let answer = http::raw(rig.envoy.addr(), head.as_bytes(), crate::support::SOON).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let seen = rig.upstream.seen().pop().unwrap();
    let text = |name: &str| {
        let all: Vec<_> = seen.headers.get_all(name).iter().collect();
        assert_eq!(all.len(), 1, "{name}: {all:?}");
        all[0].to_str().unwrap().to_string()
    };
    assert!(text("traceparent").starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    assert_eq!(text("tracestate"), "a=1 , b=2", "a valid list in one header is left as it is");
    assert_eq!(text("baggage"), "k = v ;p");
    rig.end().await;
}

#[tokio::test]
async fn an_over_long_list_loses_whole_members_the_long_ones_first() {
    let rig = Rig::start(exporting(json!({"tracestate_member": "pintle"}))).await;
    // With our own they are 33.
    let mut members: Vec<String> = (0..32).map(|n| format!("k{n}=v")).collect();
    members[3] = format!("k3={}", "x".repeat(140));
    let list = members.join(",");
    let sent = rig.sent(&[("traceparent", PARENT), ("tracestate", &list)]).await;
    let state = sent.one("tracestate").unwrap();
    let kept: Vec<&str> = state.split(',').collect();
    assert_eq!(kept.len(), 32, "{state}");
    assert_eq!(kept[0], format!("pintle={}", sent.parent().1), "our member is the first");
    assert!(!kept.iter().any(|member| member.starts_with("k3=")), "{state}");
    let others: Vec<&str> = members.iter().filter(|m| m.len() < 128).map(String::as_str).collect();
    assert_eq!(kept[1..], others[..31], "whole members, in order");

    // 32 headers of one member each are one list, too; one more, and there is no list.
    let mut headers = vec![("traceparent", PARENT)];
    headers.extend(members.iter().map(|member| ("tracestate", member.as_str())));
    let again = rig.sent(&headers).await.one("tracestate").unwrap();
    assert_eq!(again.split(',').count(), 32, "{again}");
    headers.push(("tracestate", "more=v"));
    let sent = rig.sent(&headers).await;
    assert_eq!(sent.one("tracestate"), Some(format!("pintle={}", sent.parent().1)));
    rig.end().await;
}

#[tokio::test]
async fn baggage_goes_on_whole_within_its_limits_and_never_in_part() {
    let rig = Rig::start(json!({})).await;
    let all = |sent: &Sent| sent.all("baggage").join(",");
    let sent = rig.sent(&[("baggage", "a=1;p=q,b=%20"), ("baggage", "c=3")]).await;
    assert_eq!(all(&sent), "a=1;p=q,b=%20,c=3");
    // 64 members pass; of more, and of more than 8192 bytes, only whole ones do.
    let many = (0..64).map(|n| format!("k{n}=v")).collect::<Vec<_>>();
    assert_eq!(all(&rig.sent(&[("baggage", &many.join(","))]).await), many.join(","));
    let long: Vec<String> = (0..100).map(|n| format!("k{n}={}", "x".repeat(150))).collect();
    let passed = all(&rig.sent(&[("baggage", &long.join(","))]).await);
    assert!(passed.len() <= 8192, "{}", passed.len());
    for member in passed.split(',').filter(|member| !member.is_empty()) {
        assert!(long.iter().any(|whole| whole == member), "a partial member: {member}");
    }
    rig.end().await;

    let rig = Rig::start(json!({"baggage_allow": ["tenant"]})).await;
    let sent = rig.sent(&[("baggage", "secret=1,tenant=a"), ("baggage", "tenant2=b")]).await;
    assert_eq!(sent.one("baggage").as_deref(), Some("tenant=a"));
    assert_eq!(rig.sent(&[("baggage", "secret=1")]).await.one("baggage"), None);
    rig.end().await;
}

#[tokio::test]
async fn a_trust_boundary_restarts_the_trace_or_decides_for_itself() {
    let rig = Rig::start(exporting(json!({"boundary": "restart"}))).await;
    let sent = rig.sent(&[("traceparent", PARENT), ("tracestate", "a=1")]).await;
    assert_ne!(sent.parent().0, TRACE);
    assert_eq!(sent.one("tracestate"), None, "the list is the old trace's");
    let span = rig.span().await;
    assert!(span.parent_span_id.is_empty());
    let links: Vec<_> = span.links.iter().map(|l| (hex(&l.trace_id), hex(&l.span_id))).collect();
    assert_eq!(links, [(TRACE.to_string(), SPAN.to_string())]);
    rig.end().await;

    let trace = json!({"boundary": "ignore_sampled", "ratio": 0.0});
    let rig = Rig::start(exporting(trace)).await;
    let (trace, span, flags) = rig.sent(&[("traceparent", PARENT)]).await.parent();
    assert_eq!((trace.as_str(), flags), (TRACE, 0), "the ids stay, the decision is ours");
    assert_ne!(span, SPAN, "a changed decision changes the parent id");
    rig.end().await;

    let rig = Rig::start(exporting(json!({"boundary": "trust", "ratio": 0.0}))).await;
    assert_eq!(rig.sent(&[("traceparent", PARENT)]).await.parent().2, 1);
    assert_eq!(rig.sent(&[]).await.parent().2, 2, "a new trace is not sampled, and random");
    assert_eq!(hex(&rig.span().await.trace_id), TRACE, "the parent's decision alone exports");
    rig.end().await;
}

#[tokio::test]
async fn a_service_may_have_a_ratio_of_its_own_without_any_agent() {
    let upstream = Upstream::start("ledger-1").await.unwrap();
    let rig = Rig::with(exporting(json!({})), |config| {
        let config = config.service("ledger").static_hosts("ledger", &[upstream.addr()]);
        config.plugin(|plugin| plugin["services"] = json!({"ledger": {"trace": {"ratio": 0}}}))
    });
    let rig = rig.await;
    let mut request = crate::support::request(&[]);
    request.headers_mut().insert("host", "ledger".parse().unwrap());
    let reply = http::send(rig.envoy.addr(), request).await.unwrap();
    assert_eq!(Sent(reply).parent().2 & 1, 0, "ledger samples nothing");
    assert_eq!(rig.sent(&[]).await.parent().2 & 1, 1, "everything else is sampled");
    rig.spans(1).await;
    rig.end().await;
}
